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
    let memory = |share| Health { memory_share: Some(share), ..healthy() };
    let mut persistent = Envelope::default();
    persistent.site.0[Knob::Persistence as usize] = 1;
    let after_a_restart = |before, envelope| {
        let mut controller = controller();
        let inputs = Inputs { health: memory(before), envelope, ..wants(window(1000)) };
        let (second, _) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
        (controller, second, Inputs { health: memory(1.2), ..inputs })
    };
    let (mut controller, second, laden) = after_a_restart(0.9, persistent);
    let first = Decision::Change { settings: window(1000), apply: Apply::Reload };
    assert!(!controller.unloads(&first));
    let decision = controller.step(at(second + 5), &laden);
    assert!(controller.unloads(&decision));
    assert_eq!(decision, Decision::Change { settings: window(1000), apply: Apply::Restart });
    controller.applied(at(second + 5), &decision, Outcome::Done, laden.health);
    assert_eq!(controller.restarts_in_hour(at(second + 5)), 2);
    // Once, and what the change is judged by is still what was before it.
    let held = controller.step(at(second + 10), &laden);
    assert_eq!(held, Decision::Hold(HoldReason::Verifying));
    assert_eq!(controller.before_watched(), Some((Settings::UNWRITTEN, memory(0.9))));

    // Nor again where it did not go through.
    let (mut controller, second, laden) = after_a_restart(0.9, persistent);
    let decision = controller.step(at(second + 5), &laden);
    controller.applied(at(second + 5), &decision, Outcome::Restored, laden.health);
    let held = controller.step(at(second + 10), &laden);
    assert_eq!(held, Decision::Hold(HoldReason::Verifying));
    assert_eq!(controller.failures(), 1);

    // The settings' own doing, memory that is not what is stored, a broker that saves nothing, quiet
    // hours, no budget.
    let mut vetoed =
        vec![after_a_restart(0.5, persistent), after_a_restart(0.9, Envelope::default())];
    for change in [
        |laden| Inputs { quiet_hours: true, ..laden },
        |laden| Inputs { stored_share: Some(0.1), ..laden },
        |laden| Inputs { stored_share: None, ..laden },
    ] {
        let (controller, second, laden) = after_a_restart(0.9, persistent);
        vetoed.push((controller, second, change(laden)));
    }
    let (mut controller, second, laden) = after_a_restart(0.9, persistent);
    for _ in 0..4 {
        controller.count_restart(at(second));
    }
    vetoed.push((controller, second, laden));
    for (mut controller, second, laden) in vetoed {
        let held = controller.step(at(second + 5), &laden);
        assert_eq!(held, Decision::Hold(HoldReason::Verifying), "{laden:?}");
    }
}
