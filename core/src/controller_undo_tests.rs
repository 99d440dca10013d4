//! Undoing a change: what holds it, and what becomes of it where it fails.

use super::*;
use std::vec;

/// It waits in quiet hours, and where it would lose what is worth more, unless the broker is down.
#[test]
fn a_roll_back_waits_where_a_restart_would() {
    for (veto, reason) in [
        (Inputs { state_at_risk: true, ..wants(window(1000)) }, HoldReason::StateAtRisk),
        (Inputs { quiet_hours: true, ..wants(window(1000)) }, HoldReason::QuietHours),
    ] {
        let (mut controller, second, sick) = after_a_bad_restart();
        let held = controller.step(at(second + 30), &Inputs { health: sick.health, ..veto });
        assert_eq!(held, Decision::Hold(reason));
        let down = Inputs { health: Health::default(), ..veto };
        let decision = controller.step(at(second + 35), &down);
        assert!(
            matches!(decision, Decision::RollBack { reason: RollBackReason::NotServing, .. }),
            "{decision:?}"
        );
    }
}

/// It is for safety: no budget and no earlier failure keep it waiting, but it counts.
#[test]
fn the_first_roll_back_is_never_held_and_counts() {
    let (mut controller, second, sick) = after_a_bad_restart();
    for _ in controller.restarts_in_hour(at(second))..4 {
        controller.count_restart(at(second));
    }
    let decision = controller.step(at(second + 30), &sick);
    assert!(matches!(decision, Decision::RollBack { .. }), "{decision:?}");
    controller.applied(at(second + 30), &decision, Outcome::Done, sick.health);
    assert_eq!(controller.restarts_in_hour(at(second + 30)), 5);

    let (mut controller, second, sick) = after_a_bad_restart();
    controller.recall(at(second + 25), &[], 2);
    let decision = controller.step(at(second + 30), &sick);
    assert!(matches!(decision, Decision::RollBack { .. }), "{decision:?}");
}

#[test]
fn a_roll_back_that_failed_is_held_as_any_change() {
    let after_a_failed_one = || {
        let (mut controller, second, sick) = after_a_bad_restart();
        let decision = controller.step(at(second + 30), &sick);
        controller.applied(at(second + 30), &decision, Outcome::Dormant, sick.health);
        assert_eq!(controller.undoing(), Undoing { failures: 1, is_in_file: true });
        // Beyond any back-off after one failure.
        (controller, second + 1000, sick)
    };
    let (mut controller, later, sick) = after_a_failed_one();
    let quiet = Inputs { quiet_hours: true, ..sick };
    assert_eq!(controller.step(at(later), &quiet), Decision::Hold(HoldReason::QuietHours));
    for _ in controller.restarts_in_hour(at(later))..4 {
        controller.count_restart(at(later));
    }
    assert_eq!(controller.step(at(later), &sick), Decision::Hold(HoldReason::RestartBudget));
    // An outage goes on whatever the budget says.
    let down = Inputs { health: Health::default(), ..quiet };
    let decision = controller.step(at(later), &down);
    assert!(matches!(decision, Decision::RollBack { .. }), "{decision:?}");

    let (mut controller, mut later, sick) = after_a_failed_one();
    let down = Inputs { health: Health::default(), ..sick };
    for failures in 2..=3 {
        let decision = controller.step(at(later), &down);
        assert!(matches!(decision, Decision::RollBack { .. }), "{failures}: {decision:?}");
        controller.applied(at(later), &decision, Outcome::Dormant, down.health);
        let held = controller.step(at(later + 1), &down);
        let reason = if failures < 3 { HoldReason::BackingOff } else { HoldReason::Failed };
        assert_eq!(held, Decision::Hold(reason), "{failures}");
        later += 5000;
    }
    assert_eq!(controller.step(at(later), &down), Decision::Hold(HoldReason::Failed));
}

/// What is to be undone is so also when its effect was gone for a moment, and is never written again.
#[test]
fn a_change_that_could_not_be_undone_is_not_acquitted() {
    let (mut controller, second, sick) = after_a_bad_restart();
    let decision = controller.step(at(second + 30), &sick);
    controller.applied(at(second + 30), &decision, Outcome::Dormant, sick.health);
    assert_eq!(
        (controller.written(), controller.effective()),
        (&Settings::UNWRITTEN, &window(1000))
    );
    let well = Inputs { health: healthy(), ..sick };
    let again = controller.step(at(second + 1000), &well);
    let reason = RollBackReason::Dropped;
    let (settings, apply) = (Settings::UNWRITTEN, Apply::Restart);
    assert_eq!(again, Decision::RollBack { settings, apply, reason });
    // Someone restarts the broker: it is undone.
    controller.broker_restarted();
    assert!(!controller.is_watching());
    assert_eq!(controller.effective(), &Settings::UNWRITTEN);
}

/// A save keeps what waits for clean sessions, and the broker starts with it once.
#[test]
fn what_a_restart_carried_over_is_shed_by_a_second_one() {
    let (mut controller, second, laden) = after_a_laden_restart(0.4, persistent());
    // The counts come with the next update of $SYS, as late as that may be.
    let unseen = Inputs { stored_share: None, ..laden };
    let unseen = Inputs { health: Health { clients: None, ..laden.health }, ..unseen };
    for after in [5, 40] {
        let held = controller.step(at(second + after), &unseen);
        assert_eq!(held, Decision::Hold(HoldReason::Verifying));
    }
    let other = Decision::Change { settings: window(2000), apply: Apply::Restart };
    assert!(!controller.unloads(&other));
    let decision = controller.step(at(second + 61), &laden);
    assert_eq!(decision, Decision::Change { settings: window(1000), apply: Apply::Restart });
    assert!(controller.unloads(&decision));
    controller.applied(at(second + 61), &decision, Outcome::Done, laden.health);
    assert_eq!(controller.restarts_in_hour(at(second + 61)), 2);
    // Once, and what the change is judged by is still what was before it.
    let held = controller.step(at(second + 70), &laden);
    assert_eq!(held, Decision::Hold(HoldReason::Verifying));
    let before = Health { memory_share: Some(0.9), ..healthy() };
    assert_eq!(controller.before_watched(), Some((Settings::UNWRITTEN, before)));

    // Nor again where it did not go through.
    let (mut controller, second, laden) = after_a_laden_restart(0.4, persistent());
    let decision = controller.step(at(second + 5), &laden);
    controller.applied(at(second + 5), &decision, Outcome::Restored, laden.health);
    for after in [10, 29] {
        let held = controller.step(at(second + after), &laden);
        assert_eq!(held, Decision::Hold(HoldReason::Verifying));
    }
    assert_eq!(controller.failures(), 1);
}

/// Memory that is not what is stored, or was not stored before; a broker that saves nothing; quiet
/// hours, no budget, a failure just now, a person's request.
#[test]
fn a_second_restart_waits_for_evidence_and_permission() {
    let mut vetoed = vec![
        after_a_laden_restart(0.1, persistent()),
        after_a_laden_restart(0.4, Envelope::default()),
    ];
    for change in [
        |laden| Inputs { quiet_hours: true, ..laden },
        |laden| Inputs { stored_share: Some(0.1), ..laden },
        |laden| Inputs { stored_share: None, ..laden },
    ] {
        let (controller, second, laden) = after_a_laden_restart(0.4, persistent());
        vetoed.push((controller, second, change(laden)));
    }
    let (mut controller, second, laden) = after_a_laden_restart(0.4, persistent());
    for _ in 0..4 {
        controller.count_restart(at(second));
    }
    vetoed.push((controller, second, laden));
    let (mut controller, second, laden) = after_a_laden_restart(0.4, persistent());
    controller.recall(at(second), &[], 1);
    vetoed.push((controller, second, laden));
    let (mut controller, second, laden) = after_a_laden_restart(0.4, persistent());
    controller.request(window(3000));
    vetoed.push((controller, second, laden));
    let (mut controller, second, laden) = after_a_laden_restart(0.4, persistent());
    controller.found(window(4000), window(1000));
    vetoed.push((controller, second, laden));
    for (mut controller, second, laden) in vetoed {
        let held = controller.step(at(second + 5), &laden);
        assert_eq!(held, Decision::Hold(HoldReason::Verifying), "{laden:?}");
    }
}

fn persistent() -> Envelope {
    let mut envelope = Envelope::default();
    envelope.site.0[Knob::Persistence as usize] = 1;
    envelope
}

/// A broker of which so much was stored before a restart, above its limit after it.
fn after_a_laden_restart(stored: f32, envelope: Envelope) -> (Controller, u64, Inputs) {
    let memory = |share| Health { memory_share: Some(share), ..healthy() };
    let mut controller = controller();
    let inputs =
        Inputs { health: memory(0.9), stored_share: Some(stored), envelope, ..wants(window(1000)) };
    let (second, _) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    (controller, second, Inputs { health: memory(1.2), stored_share: Some(0.4), ..inputs })
}

/// What is seen where a load jumps is of the old load and the new one: what the new one drops is
/// not held against a change that was made then.
#[test]
fn no_reload_is_measured_by_a_load_that_is_coming_up() {
    let of = |received_per_s: f32, dropped_share: f32, wanted: Settings| {
        let received_per_s = Some(received_per_s);
        let health = Health { received_per_s, dropped_share: Some(dropped_share), ..healthy() };
        Inputs { health, ..wants(wanted) }
    };
    let wanted = with(&[(Knob::AutosaveInterval, 600)]);
    let mut controller = controller();
    controller.step(at(0), &of(100.0, 0.0, Settings::UNWRITTEN));
    let held = controller.step(at(5), &of(15_000.0, 0.01, wanted));
    assert_eq!(held, Decision::Hold(HoldReason::Settling));
    let full = of(20_000.0, 0.13, wanted);
    let reload = controller.step(at(10), &full);
    assert!(matches!(reload, Decision::Change { apply: Apply::Reload, .. }), "{reload:?}");
    controller.applied(at(10), &reload, Outcome::Done, full.health);
    for second in (15..120).step_by(5) {
        assert_eq!(controller.step(at(second), &full), Decision::Hold(HoldReason::Satisfied));
    }
}

/// (mixed-day on a real broker: a phase's consumers left within the window of a restart, which was
/// taken back for it, and the minute after it was lost.)
#[test]
fn clients_that_came_back_may_leave() {
    let verdict_on = |clients: [f32; 6]| {
        let (mut controller, inputs) = restarted();
        clients.into_iter().zip((65..).step_by(5)).find_map(|(clients, second)| {
            let health = Health { clients: Some(clients), ..healthy() };
            match controller.step(at(second), &Inputs { health, ..inputs }) {
                Decision::RollBack { reason, .. } => Some(reason),
                _ => None,
            }
        })
    };
    assert_eq!(verdict_on([3.0, 20.0, 20.0, 20.0, 10.0, 0.0]), None);
    let lost = Some(RollBackReason::ClientsLost);
    assert_eq!(verdict_on([0.0, 5.0, 10.0, 16.0, 16.0, 16.0]), lost);
}

/// A line of ours would be read after the administrator's for ever.
#[test]
fn what_is_no_longer_ours_leaves_the_file_and_does_not_come_back() {
    let ours = with(&[
        (Knob::InflightMessagesMax, 100),
        (Knob::AutosaveInterval, 600),
        (Knob::MemoryLimit, 64 << 20),
    ]);
    for taken in [Knob::InflightMessagesMax, Knob::AutosaveInterval, Knob::MemoryLimit] {
        let mut controller = Controller::new(Rules::default(), ours);
        let mut inputs = wants(ours.with(taken, Setting::Unwritten));
        let opted_in = inputs.envelope.opted_in.with(Knob::MemoryLimit);
        inputs.envelope.opted_in = opted_in.without(taken);
        inputs.envelope.heap_bytes_max = Some(1 << 20);
        let settings = ours.with(taken, Setting::Unwritten);
        let change = Decision::Change { settings, apply: Apply::Reload };
        assert_eq!(controller.step(at(0), &inputs), change);
        controller.applied(at(0), &change, Outcome::Done, healthy());
        for second in (5..3600).step_by(5) {
            let decision = controller.step(at(second), &inputs);
            assert!(matches!(decision, Decision::Hold(_)), "{second} s: {decision:?}");
        }
        assert_eq!(*controller.written(), settings);
    }
}

/// The window that was safe beside our queue is not beside the site's.
#[test]
fn where_one_of_a_pair_leaves_the_other_fits_the_sites_value() {
    let ours = with(&[(Knob::InflightMessagesMax, 1000), (Knob::QueuedMessagesMax, 5000)]);
    for (taken, site) in [(Knob::QueuedMessagesMax, 100), (Knob::InflightMessagesMax, 4000)] {
        let mut controller = Controller::new(Rules::default(), ours);
        let mut inputs = wants(ours.with(taken, Setting::Unwritten));
        inputs.envelope.opted_in = inputs.envelope.opted_in.without(taken);
        inputs.envelope.site.0[taken as usize] = site;
        let decision = controller.step(at(0), &inputs);
        let Decision::Change { settings, apply: Apply::Reload } = decision else {
            panic!("{decision:?}")
        };
        assert!(inputs.envelope.check(&settings).is_empty(), "{settings:?}");
        controller.applied(at(0), &decision, Outcome::Done, healthy());
        for second in (5..600).step_by(5) {
            let decision = controller.step(at(second), &inputs);
            let is_reload = matches!(decision, Decision::Change { apply: Apply::Reload, .. });
            assert!(!is_reload, "{second} s: {decision:?}");
        }
    }
}

/// An option may lie dormant for long: it is no reason to disconnect anybody.
#[test]
fn what_a_reload_did_a_reload_undoes() {
    let mut controller = controller();
    controller.found(Settings::UNWRITTEN, with(&[(Knob::InflightMessagesMax, 100)]));
    let mut inputs = wants(with(&[(Knob::AutosaveInterval, 300)]));
    inputs.envelope.opted_in = inputs.envelope.opted_in.without(Knob::InflightMessagesMax);
    let change = controller.step(at(0), &inputs);
    assert!(matches!(change, Decision::Change { apply: Apply::Reload, .. }), "{change:?}");
    controller.applied(at(0), &change, Outcome::Done, healthy());
    let sick = Inputs { health: Health::default(), state_at_risk: true, ..inputs };
    let (settings, apply, _) = until_undone(&mut controller, 5, &sick).unwrap();
    assert_eq!((settings, apply), (Settings::UNWRITTEN, Apply::Reload));
}

#[test]
fn a_reload_that_ended_the_broker_is_judged_as_a_restart() {
    let mut controller = controller();
    let inputs = wants(with(&[(Knob::AutosaveInterval, 300)]));
    let change = controller.step(at(0), &inputs);
    controller.applied(at(0), &change, Outcome::Done, healthy());
    controller.restarted_at_reload();
    let lonely = Inputs { health: Health { clients: Some(1.0), ..healthy() }, ..inputs };
    let (_, _, reason) = until_undone(&mut controller, 5, &lonely).unwrap();
    assert_eq!(reason, RollBackReason::ClientsLost);
}

/// A line that may no longer be there leaves with the next restart.
#[test]
fn where_there_is_no_reload_none_is_asked_for() {
    let rules = Rules { can_reload: false, ..Rules::default() };
    let ours = with(&[(Knob::QueuedMessagesMax, 9000), (Knob::AutosaveInterval, 600)]);
    let mut controller = Controller::new(rules, ours);
    let mut inputs = wants(window(2000));
    inputs.envelope.opted_in = inputs.envelope.opted_in.without(Knob::AutosaveInterval);
    inputs.health.dropped_share = Some(0.5);
    let (_, decision) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    let Decision::Change { settings, apply: Apply::Restart } = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(settings.get(Knob::AutosaveInterval), Setting::Unwritten);
}
