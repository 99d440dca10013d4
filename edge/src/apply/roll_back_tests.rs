#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, Settings};

use super::tests::{alike, assert_sound, limited, settings, wide};
use super::world::{Fault, Shared};
use super::*;

fn good() -> Settings {
    settings(&[(Knob::InflightMessagesMax, 1000)])
}

/// A broker whose last change, to `bad`, has yet to stand its verification.
fn doubtful(bad: Settings, how: How) -> Shared {
    let shared = Shared::new(Fault::None);
    let mut applier = shared.applier();
    applier.apply(Some(good()), How::Restart, &SiteValues::default()).unwrap();
    applier.mark_good().unwrap();
    applier.apply(Some(bad), how, &SiteValues::default()).unwrap();
    shared
}

fn roll_back(shared: &Shared, how: How) -> Result<Applied, ApplyError> {
    shared.applier().roll_back(Some(good()), how, &SiteValues::default())
}

/// It never will save, so that to wait for it would be never to undo what made it hang.
#[test]
fn a_broker_that_hangs_is_rolled_back_without_a_save() {
    let shared = doubtful(wide(), How::Restart);
    shared.world().disabled = true;
    let restarts = shared.world().restarts;
    let mut site = SiteValues::default();
    site.0[Knob::Persistence as usize] = 1;
    let mut applier = shared.applier();
    applier.paths.database = Some("/var/lib/mosquitto/mosquitto.db".into());
    let error = applier.apply(Some(limited()), How::Restart, &site).unwrap_err();
    assert!(error.to_string().contains("did not write"), "no other change is so urgent: {error}");
    applier.roll_back(Some(good()), How::Restart, &site).unwrap();
    assert_eq!((shared.drop_in(), shared.world().restarts), (Some(good()), restarts + 1));
    assert!(!shared.world().disabled);
    assert_sound(&shared, "after a hang");

    // One that serves and does not save keeps what it holds.
    let shared = doubtful(wide(), How::Restart);
    shared.world().fault = Fault::NotSaved;
    let mut applier = shared.applier();
    applier.paths.database = Some("/var/lib/mosquitto/mosquitto.db".into());
    let error = applier.roll_back(Some(good()), How::Restart, &site).unwrap_err();
    assert_eq!(error.restored(), Some(&Restored::Kept), "{error}");
}

#[test]
fn what_is_undone_stays_out_of_the_file_where_the_broker_does_not_follow() {
    let saving = settings(&[(Knob::InflightMessagesMax, 1000), (Knob::AutosaveInterval, 60)]);
    for (bad, how, fault) in
        [(wide(), How::Restart, Fault::RestartIgnored), (saving, How::Reload, Fault::ReloadFails)]
    {
        let shared = doubtful(bad, how);
        shared.world().fault = fault;
        let error = roll_back(&shared, how).unwrap_err();
        assert_eq!(error.restored(), Some(&Restored::Dormant), "{fault:?}: {error}");
        assert!(error.is_restored() && error.to_string().contains("the last good settings stand"));
        let written = shared.drop_in().unwrap();
        assert!(alike(written, good()), "{fault:?}: {written:?}");
        let state = shared.applier().state().clone();
        assert_eq!((state.intent, state.rolls_back), (None, false), "{fault:?}");
        assert_eq!(state.written, shared.drop_in());
        assert!(alike(state.effective.unwrap().settings, bad), "it runs on with what was bad");
        shared.world().fault = Fault::None;
        assert_sound(&shared, "dormant");
        roll_back(&shared, how).unwrap();
        assert!(alike(shared.world().effective, good()), "{fault:?}");
    }
}

/// The agent's records and the broker's files may lie on two disks, and either may be full.
#[test]
fn a_full_disk_keeps_nothing_bad_in_force() {
    let saving = settings(&[(Knob::InflightMessagesMax, 1000), (Knob::AutosaveInterval, 60)]);
    for (bad, how) in [(wide(), How::Restart), (saving, How::Reload)] {
        for (full, left) in [("/var/lib/brokertuner", Some(good())), ("/etc/mosquitto", None)] {
            let shared = doubtful(bad, how);
            let mut applier = shared.applier();
            shared.world().full = Some(full);
            let ended = applier.roll_back(Some(good()), how, &SiteValues::default());
            match ended {
                Ok(_) => assert_eq!(left, Some(good())),
                Err(error) => assert_eq!((left, error.restored()), (None, Some(&Restored::Bare))),
            }
            assert_eq!(shared.drop_in(), left, "{full} {how}");
            let effective = shared.world().effective;
            let in_force = effective.effective(Knob::AutosaveInterval, &SiteValues::default());
            assert_eq!(in_force, 1800, "{full} {how}");
            assert!(!alike(effective, wide()), "{full} {how}");
            // As soon as there is room, all of it is noted.
            shared.world().full = None;
            applier.remember(|_| {}).unwrap();
            assert_eq!(shared.applier().state().written, left, "{full} {how}");
            assert_sound(&shared, full);
        }
    }
}

#[test]
fn where_the_last_good_settings_do_not_start_either_it_starts_with_none() {
    let shared = doubtful(wide(), How::Restart);
    shared.world().fault = Fault::RefusesWindows;
    let error = roll_back(&shared, How::Restart).unwrap_err();
    assert_eq!(error.restored(), Some(&Restored::Bare), "{error}");
    assert_eq!(shared.drop_in(), None);
    assert_eq!(shared.world().effective, Settings::UNWRITTEN);
    assert_sound(&shared, "bare");

    // Persistence is not given up with the rest: it would be another database, or none.
    let kept = settings(&[(Knob::InflightMessagesMax, 1000), (Knob::Persistence, 1)]);
    let shared = doubtful(wide(), How::Restart);
    shared.world().fault = Fault::RefusesWindows;
    let mut applier = shared.applier();
    applier.paths.database = Some("/var/lib/mosquitto/mosquitto.db".into());
    applier.roll_back(Some(kept), How::Restart, &SiteValues::default()).unwrap_err();
    assert_eq!(shared.drop_in(), Some(settings(&[(Knob::Persistence, 1)])));

    let shared = doubtful(wide(), How::Restart);
    shared.world().fault = Fault::NeverStarts;
    let error = roll_back(&shared, How::Restart).unwrap_err();
    assert!(matches!(error.restored(), Some(Restored::No(_))), "{error}");
    assert_eq!((shared.drop_in(), shared.applier().state().intent), (None, None));
    assert_sound(&shared, "as soon as it starts again");
}

const FAULTS: [(Fault, How); 7] = [
    (Fault::None, How::Restart),
    (Fault::None, How::Reload),
    (Fault::RestartIgnored, How::Restart),
    (Fault::RefusesWindows, How::Restart),
    (Fault::NeverStarts, How::Restart),
    (Fault::Overridden, How::Restart),
    (Fault::ReloadFails, How::Reload),
];

fn bad(how: How) -> Settings {
    let limited = settings(&[(Knob::InflightMessagesMax, 1000), (Knob::MemoryLimit, 64 << 20)]);
    if how == How::Restart { wide() } else { limited }
}

/// Once it is out of the file, nothing brings it back.
#[test]
fn killed_at_every_operation_of_a_roll_back_what_is_undone_stays_undone() {
    let mut points = 0;
    for (fault, how) in FAULTS {
        for dies_after in 0.. {
            let shared = doubtful(bad(how), how);
            shared.world().fault = fault;
            let mut applier = shared.applier();
            let dies_at = shared.world().operations + dies_after;
            shared.world().dies_at = Some(dies_at);
            let _ = applier.roll_back(Some(good()), how, &SiteValues::default());
            let survived = shared.world().operations <= dies_at;
            let context = format!("{fault:?}, {how}, killed after {dies_after} operations");
            let was_out = shared.drop_in() != Some(bad(how));
            assert_sound(&shared, &context);
            let is_out = shared.drop_in() != Some(bad(how));
            assert!(is_out || !was_out, "{context}: it is back");
            points += 1;
            if survived {
                assert!(is_out, "{context}");
                break;
            }
        }
    }
    assert!(points > 60, "only {points} points of death");
}

#[test]
fn with_operations_failing_at_random_a_roll_back_is_sound() {
    for (fault, how) in FAULTS {
        for seed in 0..300 {
            let shared = doubtful(bad(how), how);
            let mut applier = shared.applier();
            {
                let mut world = shared.world();
                (world.fault, world.seed) = (fault, seed);
                world.fails_one_in = Some(3 + seed % 10);
            }
            let outcome = applier.roll_back(Some(good()), how, &SiteValues::default());
            let context = format!("{fault:?}, seed {seed}: {:?}", outcome.as_ref().map(drop));
            let found = shared.drop_in();
            if outcome.is_ok() {
                assert_ne!(found, Some(bad(how)), "{context}");
            }
            // What could not be stored, the agent stores with whatever it stores next.
            shared.world().fails_one_in = None;
            applier.remember(|_| {}).unwrap();
            if fault == Fault::RefusesWindows {
                // Where the file could not be replaced, nothing but that helps.
                shared.world().fault = Fault::None;
            }
            assert_sound(&shared, &context);
        }
    }
}
