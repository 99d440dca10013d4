#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, KnobSet, Settings};

use super::world::{DROP_IN, Fault, Shared};
use super::*;

pub(super) fn settings(values: &[(Knob, u64)]) -> Settings {
    let mut settings = Settings::UNWRITTEN;
    for &(knob, value) in values {
        settings.set(knob, value).unwrap();
    }
    settings
}

pub(super) fn wide() -> Settings {
    settings(&[(Knob::InflightMessagesMax, 4000), (Knob::QueuedMessagesMax, 8000)])
}

pub(super) fn limited() -> Settings {
    settings(&[(Knob::AutosaveInterval, 600), (Knob::MemoryLimit, 64 << 20)])
}

/// Applies and says how it ended; no fault of the world may panic the applier.
fn apply(shared: &Shared, wanted: Option<Settings>, how: How) -> Result<Applied, ApplyError> {
    shared.applier().apply(wanted, how, &SiteValues::default())
}

/// What must hold once nothing fails any more: the applier recovers, and file, broker and memory
/// agree.
pub(super) fn assert_sound(shared: &Shared, context: &str) {
    {
        let mut world = shared.world();
        (world.dies_at, world.fails_one_in, world.ends_at) = (None, None, None);
        // A broker that a crash left down or disabled is started by its supervisor: that must work.
        if [Fault::Overridden, Fault::RestartIgnored, Fault::NeverStarts].contains(&world.fault) {
            world.fault = Fault::None;
        }
        world.serve();
        if !world.running {
            world.start();
        }
    }
    let mut applier = shared.applier();
    let recovered = applier.recover();
    assert!(recovered.is_ok(), "{context}: {recovered:?}");
    assert_eq!(applier.state().intent, None, "{context}: {recovered:?}");
    applier.check_ours().unwrap_or_else(|e| panic!("{context}: {recovered:?}: {e}"));
    let ready = ready::look(applier.broker(), None);
    let ready = ready.unwrap_or_else(|e| panic!("{context}: {recovered:?}: {e}"));
    applier.observe(ready, KnobSet::all()).unwrap();
    let aside = fs::aside(Path::new(DROP_IN));
    assert!(!shared.world().files.contains_key(&aside), "{context}: a part is left aside");
    let believed = applier.state().effective.unwrap().settings;
    let effective = shared.world().effective;
    assert!(alike(believed, effective), "{context}: {recovered:?}: {believed:?} is {effective:?}");
}

/// Equal but for a site's value that was written for a moment, which is as good as no line.
pub(super) fn alike(a: Settings, b: Settings) -> bool {
    let site = SiteValues::default();
    Knob::ALL.into_iter().all(|knob| a.effective(knob, &site) == b.effective(knob, &site))
}

#[test]
fn a_change_goes_through_and_is_remembered() {
    let shared = Shared::new(Fault::None);
    let applied = apply(&shared, Some(wide()), How::Restart).unwrap();
    assert_eq!(applied.ready.process.pid, 101);
    assert_eq!(shared.drop_in(), Some(wide()));
    let mut applier = shared.applier();
    assert_eq!(applier.state().written, Some(wide()));
    assert_eq!(applier.state().effective.unwrap().settings, wide());
    assert_eq!(applier.state().restarts_unix_s.len(), 1);
    assert_eq!(applier.state().good, None, "good only after the verify window");
    applier.mark_good().unwrap();
    assert_eq!(shared.applier().state().good, Some(wide()));
}

#[test]
fn a_reload_leaves_restart_options_dormant() {
    let shared = Shared::new(Fault::None);
    let both = settings(&[(Knob::InflightMessagesMax, 1000), (Knob::AutosaveInterval, 600)]);
    apply(&shared, Some(both), How::Reload).unwrap();
    let state = shared.applier().state().clone();
    assert_eq!(state.effective.unwrap().settings, settings(&[(Knob::AutosaveInterval, 600)]));
    // Somebody else restarts the broker: what lay dormant is in force.
    shared.world().start();
    let mut applier = shared.applier();
    let ready = ready::look(applier.broker(), None).unwrap();
    applier.observe(ready, KnobSet::all()).unwrap();
    assert_eq!(applier.state().effective.unwrap().settings, both);
}

#[test]
fn a_reloadable_option_that_is_given_up_gets_the_sites_value_first() {
    let shared = Shared::new(Fault::None);
    apply(&shared, Some(limited()), How::Reload).unwrap();
    apply(&shared, None, How::Reload).unwrap();
    assert_eq!(shared.drop_in(), None);
    let effective = shared.world().effective;
    assert_eq!(effective.get(Knob::MemoryLimit).value(), Some(0), "lifted, not left behind");
}

#[test]
fn refused_settings_are_taken_back() {
    for (fault, wanted, how) in [
        (Fault::RefusesWideWindows, wide(), How::Restart),
        (Fault::DisabledByReload, limited(), How::Reload),
        (Fault::Overridden, wide(), How::Restart),
        (Fault::RestartIgnored, wide(), How::Restart),
        (Fault::ReloadFails, limited(), How::Reload),
    ] {
        let shared = Shared::new(Fault::None);
        let before = settings(&[(Knob::TcpNodelay, 1)]);
        apply(&shared, Some(before), How::Restart).unwrap();
        shared.world().fault = fault;
        let error = apply(&shared, Some(wanted), how).unwrap_err();
        assert!(error.is_restored(), "{fault:?}: {error}");
        assert!(error.to_string().contains("the previous settings are back"), "{error}");
        assert_eq!(shared.drop_in(), Some(before), "{fault:?}");
        assert!(alike(shared.world().effective, before), "{fault:?}");
        assert_eq!(shared.applier().state().written, Some(before), "{fault:?}");
        assert_eq!(shared.applier().state().intent, None, "{fault:?}");
        assert!(!shared.world().disabled, "{fault:?}");
    }
}

#[test]
fn a_restart_that_never_happened_costs_no_second_one() {
    let shared = Shared::new(Fault::RestartIgnored);
    apply(&shared, Some(wide()), How::Restart).unwrap_err();
    assert_eq!(shared.world().restarts, 0);
}

#[test]
fn a_file_of_someone_else_is_left_alone() {
    let shared = Shared::new(Fault::None);
    shared.world().files.insert(DROP_IN.into(), b"max_queued_messages 500\n".to_vec());
    let error = apply(&shared, Some(wide()), How::Restart).unwrap_err();
    assert!(matches!(error, ApplyError::EditedByHand { .. }), "{error}");
    assert_eq!(shared.world().files[Path::new(DROP_IN)], b"max_queued_messages 500\n");

    let shared = Shared::new(Fault::None);
    apply(&shared, Some(wide()), How::Restart).unwrap();
    shared.world().files.get_mut(Path::new(DROP_IN)).unwrap().extend_from_slice(b"# mine\n");
    let error = apply(&shared, None, How::Restart).unwrap_err();
    assert!(matches!(error, ApplyError::EditedByHand { .. }), "{error}");
    shared.world().files.remove(Path::new(DROP_IN));
    let error = apply(&shared, Some(wide()), How::Restart).unwrap_err();
    assert!(matches!(error, ApplyError::Removed { .. }), "{error}");
}

#[test]
fn a_lost_state_does_not_make_our_own_file_a_strangers() {
    let shared = Shared::new(Fault::None);
    apply(&shared, Some(wide()), How::Restart).unwrap();
    shared.world().files.remove(Path::new("/var/lib/brokertuner/edge.state"));
    assert_eq!(shared.applier().written().unwrap(), Some(wide()));
    apply(&shared, Some(limited()), How::Restart).unwrap();
    assert_eq!(shared.drop_in(), Some(limited()));
}

#[test]
fn damaged_state_is_said_and_not_fatal() {
    let shared = Shared::new(Fault::None);
    apply(&shared, Some(wide()), How::Restart).unwrap();
    let path = Path::new("/var/lib/brokertuner/edge.state");
    shared.world().files.get_mut(path).unwrap()[20] ^= 1;
    let paths =
        Paths { drop_in: DROP_IN.into(), state_dir: path.parent().unwrap().into(), database: None };
    let opened = Applier::open(Box::new(shared.clone()), Box::new(shared.clone()), paths);
    let (applier, damage) = opened.unwrap();
    assert!(damage.unwrap().to_string().contains("edge.state"));
    assert_eq!(applier.written().unwrap(), Some(wide()));
    assert_eq!(applier.state().standing, Standing::Paused, "it may have held that, or off");
}

#[test]
fn persistence_is_not_switched_on_over_an_unknown_database() {
    let shared = Shared::new(Fault::None);
    let wanted = settings(&[(Knob::Persistence, 1)]);
    let error = apply(&shared, Some(wanted), How::Restart).unwrap_err();
    assert!(matches!(error, ApplyError::NoDatabase), "{error}");
    assert_eq!(shared.drop_in(), None);

    let database = Path::new("/var/lib/mosquitto/mosquitto.db");
    shared.world().files.insert(database.into(), b"stale".to_vec());
    let mut applier = shared.applier();
    applier.paths.database = Some(database.into());
    applier.apply(Some(wanted), How::Restart, &SiteValues::default()).unwrap();
    let world = shared.world();
    assert!(!world.files.contains_key(database), "the broker must not read it");
    assert!(world.files.values().any(|bytes| bytes == b"stale"), "but it is kept");
    // After a power cut the broker must not find both the old database and the new drop-in.
    let at = |path: &Path| world.moves.iter().position(|moved| moved == path).unwrap();
    assert!(at(Path::new("/var/lib/mosquitto")) < at(Path::new(DROP_IN)), "{:?}", world.moves);
}

/// Nobody permitted a restart for it, and a full broker serves those whom it has.
#[test]
fn a_reload_is_taken_back_without_a_restart_where_the_broker_may_still_serve() {
    let shared = Shared::new(Fault::None);
    let before = settings(&[(Knob::AutosaveInterval, 300)]);
    apply(&shared, Some(before), How::Restart).unwrap();
    let restarts = shared.world().restarts;
    shared.world().fault = Fault::Full;
    let wanted = settings(&[(Knob::AutosaveInterval, 600)]);
    let error = apply(&shared, Some(wanted), How::Reload).unwrap_err();
    assert!(!error.is_restored(), "nobody has seen that the old ones are in force: {error}");
    assert_eq!(shared.drop_in(), Some(before), "but they are put back");
    assert!(shared.applier().recover().is_err());
    assert_eq!(shared.world().restarts, restarts, "neither at once nor by a recovery");
    shared.world().fault = Fault::None;
    assert_sound(&shared, "with room again");
    assert_eq!(shared.world().restarts, restarts);
}

#[test]
fn every_restart_counts_also_where_it_fails() {
    let shared = Shared::new(Fault::None);
    let mut applier = shared.applier();
    let before = settings(&[(Knob::TcpNodelay, 1)]);
    applier.apply(Some(before), How::Restart, &SiteValues::default()).unwrap();
    shared.world().fault = Fault::RefusesWideWindows;
    applier.apply(Some(wide()), How::Restart, &SiteValues::default()).unwrap_err();
    assert_eq!(applier.restarts_asked(), 3, "the change, the refused one, and its undoing");
    assert_eq!(shared.applier().state().restarts_unix_s.len(), 3, "also after a crash");
}

/// A reload that switches persistence writes over the database, or leaves a stale one behind.
#[test]
fn a_reload_never_switches_persistence() {
    let on = settings(&[(Knob::Persistence, 1), (Knob::AutosaveInterval, 300)]);
    let kept = settings(&[(Knob::Persistence, 1)]);
    let mut off = on;
    off.set(Knob::Persistence, 0).unwrap();
    for (wanted, left) in [
        (None, Some(kept)),
        (Some(settings(&[(Knob::AutosaveInterval, 300)])), Some(on)),
        (Some(off), Some(on)),
    ] {
        let shared = Shared::new(Fault::None);
        let mut applier = shared.applier();
        applier.paths.database = Some("/var/lib/mosquitto/mosquitto.db".into());
        applier.apply(Some(on), How::Restart, &SiteValues::default()).unwrap();
        applier.apply(wanted, How::Reload, &SiteValues::default()).unwrap();
        assert_eq!(shared.drop_in(), left, "{wanted:?}");
        assert_eq!(shared.world().effective.get(Knob::Persistence).value(), Some(1), "{wanted:?}");
        assert_eq!(applier.state().written, left, "{wanted:?}");
    }
    // Where it runs without, a line that would switch it on is left out.
    let shared = Shared::new(Fault::None);
    apply(&shared, Some(on), How::Reload).unwrap();
    assert_eq!(shared.drop_in(), Some(settings(&[(Knob::AutosaveInterval, 300)])));
}

/// Handing the drop-in over by hand, with an option that is held since.
#[test]
fn taking_over_a_drop_in_leaves_persistence_as_it_runs() {
    let shared = Shared::new(Fault::None);
    let text = render::render(&settings(&[(Knob::Persistence, 1)]));
    shared.world().files.insert(DROP_IN.into(), text.as_bytes().to_vec());
    shared.world().start();
    let mut applier = shared.applier();
    applier.adopt(&brokertuner_core::Envelope::default()).unwrap();
    assert_eq!(shared.world().effective.get(Knob::Persistence).value(), Some(1));
}

/// Nothing was begun: that is said, and no person is called to look at file and broker.
#[test]
fn a_save_that_fails_before_a_restart_leaves_all_as_it_was() {
    let shared = Shared::new(Fault::NotSaved);
    let mut applier = shared.applier();
    applier.paths.database = Some("/var/lib/mosquitto/mosquitto.db".into());
    let mut site = SiteValues::default();
    site.0[Knob::Persistence as usize] = 1;
    let error = applier.apply(Some(wide()), How::Restart, &site).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("did not write") && said.ends_with("; nothing was changed"), "{said}");
    assert!(error.is_restored());
    assert_eq!((shared.drop_in(), shared.world().restarts), (None, 0));
}

/// Whatever fails, and fails again while it is undone, is said once.
#[test]
fn no_message_says_the_same_twice() {
    for (name, fault, how) in CHANGES {
        let (from, to) = before_and_after(how)[1];
        let shared = Shared::new(Fault::None);
        apply(&shared, from, How::Restart).unwrap();
        shared.world().fault = fault;
        let Err(error) = apply(&shared, to, how) else { continue };
        let said = error.to_string();
        assert!(!said.contains("not yet back"), "{name}: {said}");
        let parts: Vec<_> = said.split("; ").collect();
        let twice = parts.iter().filter(|part| said.matches(*part).count() > 1);
        assert_eq!(twice.count(), 0, "{name}: {said}");
    }
}

/// Changes from `before` to `after`, with a fault of the broker.
const CHANGES: [(&str, Fault, How); 7] = [
    ("restart", Fault::None, How::Restart),
    ("reload", Fault::None, How::Reload),
    ("refused restart", Fault::RefusesWideWindows, How::Restart),
    ("disabling reload", Fault::DisabledByReload, How::Reload),
    ("overridden restart", Fault::Overridden, How::Restart),
    ("ignored restart", Fault::RestartIgnored, How::Restart),
    ("failing reload", Fault::ReloadFails, How::Reload),
];

fn before_and_after(how: How) -> [(Option<Settings>, Option<Settings>); 3] {
    let before = settings(&[(Knob::TcpNodelay, 1), (Knob::AutosaveInterval, 300)]);
    let after = if how == How::Restart { wide() } else { limited() };
    [(None, Some(after)), (Some(before), Some(after)), (Some(before), None)]
}

#[test]
fn killed_at_every_single_operation_it_recovers() {
    let mut points = 0;
    for (name, fault, how) in CHANGES {
        for (case, (before, after)) in before_and_after(how).into_iter().enumerate() {
            for dies_after in 0.. {
                let shared = Shared::new(Fault::None);
                if before.is_some() {
                    apply(&shared, before, How::Restart).unwrap();
                }
                {
                    let mut world = shared.world();
                    world.fault = fault;
                    world.dies_at = None;
                }
                let mut applier = shared.applier();
                let dies_at = shared.world().operations + dies_after;
                shared.world().dies_at = Some(dies_at);
                let _ = applier.apply(after, how, &SiteValues::default());
                let survived = shared.world().operations <= dies_at;
                let context = format!("{name}, case {case}, killed after {dies_after} operations");
                // Whatever reads the include directory now finds a whole file.
                shared.drop_in();
                assert_sound(&shared, &context);
                points += 1;
                if survived {
                    break;
                }
            }
        }
    }
    assert!(points > 200, "only {points} points of death");
}

#[test]
fn killed_again_while_recovering_it_recovers() {
    for (name, fault, how) in CHANGES {
        for first in 0..40 {
            for second in 0..30 {
                let shared = Shared::new(Fault::None);
                let [_, (before, after), _] = before_and_after(how);
                apply(&shared, before, How::Restart).unwrap();
                shared.world().fault = fault;
                let mut applier = shared.applier();
                let at = shared.world().operations + first;
                shared.world().dies_at = Some(at);
                let _ = applier.apply(after, how, &SiteValues::default());
                shared.world().dies_at = None;
                let mut applier = shared.applier();
                let at = shared.world().operations + second;
                shared.world().dies_at = Some(at);
                let _ = applier.recover();
                shared.drop_in();
                assert_sound(&shared, &format!("{name}, killed after {first}, then {second}"));
            }
        }
    }
}

/// The restart that a dead agent has asked for comes when it comes.
#[test]
fn restarted_while_it_recovers_it_knows_with_what() {
    for (case, (before, after)) in before_and_after(How::Restart).into_iter().enumerate() {
        for (killed_after, ends_after, takes) in
            (0..12).flat_map(|a| (0..30).flat_map(move |b| (0..3).map(move |c| (a, b, c))))
        {
            let shared = Shared::new(Fault::None);
            apply(&shared, before, How::Restart).unwrap();
            shared.world().fault = Fault::RestartIgnored;
            let mut applier = shared.applier();
            let at = shared.world().operations + killed_after;
            shared.world().dies_at = Some(at);
            let _ = applier.apply(after, How::Restart, &SiteValues::default());
            {
                let mut world = shared.world();
                (world.fault, world.dies_at) = (Fault::None, None);
                world.ends_at = Some((world.ticks + ends_after, takes));
            }
            let mut applier =
                shared.applier().with_patience(Duration::from_secs(1), Duration::ZERO);
            let _ = applier.recover();
            let context = format!(
                "case {case}, killed after {killed_after} operations, ended {ends_after} later, \
                 away for {takes}"
            );
            assert_sound(&shared, &context);
        }
    }
}

#[test]
fn an_answer_of_the_successor_is_not_taken_for_its_predecessors() {
    let shared = Shared::new(Fault::None);
    // Between its process and its answer.
    shared.world().ends_at = Some((2, 0));
    let missing = ready::look(&shared, None).unwrap_err();
    assert!(matches!(missing, Missing::Replaced(process) if process.pid == 100), "{missing}");
    assert_eq!(ready::look(&shared, None).unwrap().process.pid, 101);
}

#[test]
fn with_operations_failing_at_random_the_file_is_whole_and_said_truly() {
    for (name, fault, how) in CHANGES {
        for seed in 0..300 {
            let shared = Shared::new(Fault::None);
            let [_, (before, after), _] = before_and_after(how);
            apply(&shared, before, How::Restart).unwrap();
            let mut applier = shared.applier();
            {
                let mut world = shared.world();
                world.fault = fault;
                world.seed = seed;
                world.fails_one_in = Some(3 + seed % 10);
            }
            let outcome = applier.apply(after, how, &SiteValues::default());
            let context = format!("{name}, seed {seed}: {:?}", outcome.as_ref().map(drop));
            let found = shared.drop_in();
            match &outcome {
                Ok(_) => assert_eq!(found, after, "{context}"),
                Err(error) if error.is_restored() => assert_eq!(found, before, "{context}"),
                // Said to be in between: the file is whole (read above), and recovery ends it.
                Err(_) => {}
            }
            assert_sound(&shared, &context);
        }
    }
}
