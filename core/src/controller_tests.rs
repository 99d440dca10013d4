//! The controller against a clock that the test turns: days pass in milliseconds.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::Envelope;
use crate::settings::Action;
use proptest::prelude::*;

fn at(seconds: u64) -> Instant {
    Instant::from_secs(seconds)
}

fn with(values: &[(Knob, u64)]) -> Settings {
    let mut settings = Settings::UNWRITTEN;
    for &(knob, value) in values {
        settings.set(knob, value).unwrap();
    }
    settings
}

fn window(value: u64) -> Settings {
    with(&[(Knob::InflightMessagesMax, value), (Knob::QueuedMessagesMax, 10_000)])
}

fn healthy() -> Health {
    Health {
        is_serving: true,
        received_per_s: Some(1000.0),
        probe_latency_us: Some(2000.0),
        dropped_share: Some(0.0),
        clients: Some(20.0),
        memory_share: Some(0.5),
    }
}

fn wants(wanted: Settings) -> Inputs {
    Inputs {
        wanted,
        envelope: Envelope::default(),
        health: healthy(),
        stored_share: Some(0.4),
        state_at_risk: false,
        quiet_hours: false,
    }
}

fn controller() -> Controller {
    Controller::new(Rules::default(), Settings::UNWRITTEN)
}

/// Steps every 5 s from `from` until something is done, at most an hour; carries it out as
/// `outcome`.
fn until_done(
    controller: &mut Controller,
    from: u64,
    inputs: &Inputs,
    outcome: Outcome,
) -> Option<(u64, Decision)> {
    (from..from + 3600).step_by(5).find_map(|second| {
        let decision = controller.step(at(second), inputs);
        if matches!(decision, Decision::Hold(_)) {
            return None;
        }
        controller.applied(at(second), &decision, outcome, inputs.health);
        Some((second, decision))
    })
}

/// Steps every 5 s from `from` until something is undone, at most two minutes.
fn until_undone(
    controller: &mut Controller,
    from: u64,
    inputs: &Inputs,
) -> Option<(Settings, Apply, RollBackReason)> {
    (from..from + 120).step_by(5).find_map(|second| match controller.step(at(second), inputs) {
        Decision::RollBack { settings, apply, reason } => Some((settings, apply, reason)),
        _ => None,
    })
}

#[test]
fn a_restart_waits_for_the_dwell() {
    let mut controller = controller();
    let inputs = wants(window(1000));
    assert_eq!(controller.step(at(100), &inputs), Decision::Hold(HoldReason::Settling));
    assert_eq!(controller.step(at(159), &inputs), Decision::Hold(HoldReason::Settling));
    let change = Decision::Change { settings: window(1000), apply: Apply::Restart };
    assert_eq!(controller.step(at(160), &inputs), change);
    assert_eq!(controller.effective(), &Settings::UNWRITTEN, "not before it was carried out");
    controller.applied(at(160), &change, Outcome::Done, healthy());
    assert_eq!(controller.effective(), &window(1000));
    assert_eq!(controller.step(at(165), &inputs), Decision::Hold(HoldReason::Verifying));
    assert_eq!(controller.step(at(190), &inputs), Decision::Hold(HoldReason::Satisfied));
}

#[test]
fn a_wavering_policy_never_restarts() {
    let mut controller = controller();
    for step in 0..2000 {
        let value = if step % 2 == 0 { 1000 } else { 100 };
        let wanted = with(&[(Knob::InflightMessagesMax, value)]);
        let decision = controller.step(at(step * 5), &wants(wanted));
        assert_eq!(decision, Decision::Hold(HoldReason::Settling));
    }
}

/// One option that wavers holds back only itself.
#[test]
fn what_is_steady_does_not_wait_for_what_wavers() {
    let mut controller = controller();
    let decisions = (0..=12).map(|step| {
        let wanted = if step % 2 == 0 { window(1000) } else { window(100) };
        controller.step(at(step * 5), &wants(wanted))
    });
    let steady = with(&[(Knob::QueuedMessagesMax, 10_000)]);
    let change = Decision::Change { settings: steady, apply: Apply::Restart };
    assert_eq!(decisions.last(), Some(change));
}

/// The wanted window jitters by a factor of two around 1000: the dwell goes on all the same, and
/// the mean is what is written.
#[test]
fn jitter_does_not_start_the_dwell_anew() {
    let mut controller = controller();
    for (step, window_wanted) in [1000, 700, 1400, 900, 1300].into_iter().enumerate() {
        let second = u64::try_from(step).unwrap() * 12;
        let decision = controller.step(at(second), &wants(window(window_wanted)));
        assert_eq!(decision, Decision::Hold(HoldReason::Settling), "at {second} s");
    }
    let decision = controller.step(at(60), &wants(window(2000)));
    let Decision::Change { settings, apply: Apply::Restart } = decision else {
        panic!("{decision:?}");
    };
    let written = settings.get(Knob::InflightMessagesMax).value().unwrap();
    assert!((1000..1400).contains(&written), "{written}");
}

#[test]
fn small_moves_are_no_moves() {
    let mut controller = Controller::new(Rules::default(), window(1000));
    assert_eq!(
        until_done(&mut controller, 0, &wants(window(1100)), Outcome::Done),
        None,
        "1100 for 1000 is inside the dead band"
    );
}

#[test]
fn reloadable_options_go_at_once_and_leave_the_rest_alone() {
    let mut controller = controller();
    let wanted = window(1000);
    let mut both = wanted;
    both.set(Knob::AutosaveInterval, 300).unwrap();
    let decision = controller.step(at(0), &wants(both));
    let Decision::Change { settings, apply: Apply::Reload } = decision else {
        panic!("{decision:?}");
    };
    assert_eq!(settings, with(&[(Knob::AutosaveInterval, 300)]));
    controller.applied(at(0), &decision, Outcome::Done, healthy());
    assert!(controller.dormant().is_empty(), "nothing restart-only was left in the file");
}

/// The dwell of the restart goes on while the effect of a reload is watched, and a bad restart
/// falls back to what was good before both.
#[test]
fn a_reload_does_not_keep_a_restart_waiting() {
    let mut controller = controller();
    let mut both = window(1000);
    both.set(Knob::AutosaveInterval, 300).unwrap();
    let reload = controller.step(at(0), &wants(both));
    assert!(matches!(reload, Decision::Change { apply: Apply::Reload, .. }), "{reload:?}");
    controller.applied(at(0), &reload, Outcome::Done, healthy());
    assert_eq!(controller.step(at(5), &wants(both)), Decision::Hold(HoldReason::Settling));
    let restart = controller.step(at(60), &wants(both));
    assert_eq!(restart, Decision::Change { settings: both, apply: Apply::Restart });

    let mut early = Controller::new(
        Rules { dwell: Duration::from_secs(10), ..Rules::default() },
        Settings::UNWRITTEN,
    );
    early.step(at(0), &wants(both));
    early.applied(at(0), &reload, Outcome::Done, healthy());
    let restart = early.step(at(10), &wants(both));
    assert!(matches!(restart, Decision::Change { apply: Apply::Restart, .. }), "{restart:?}");
    early.applied(at(10), &restart, Outcome::Done, healthy());
    let sick = Inputs { health: Health { clients: Some(0.0), ..healthy() }, ..wants(both) };
    let back = early.step(at(40), &sick);
    assert_eq!(
        back,
        Decision::RollBack {
            settings: Settings::UNWRITTEN,
            apply: Apply::Restart,
            reason: RollBackReason::ClientsLost
        }
    );
}

#[test]
fn a_reloadable_option_given_up_is_set_back_once() {
    let written = with(&[(Knob::MemoryLimit, 64 << 20)]);
    let mut controller = Controller::new(Rules::default(), written);
    let mut inputs = wants(Settings::UNWRITTEN);
    inputs.envelope.opted_in = inputs.envelope.opted_in.with(Knob::MemoryLimit);
    let (second, decision) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    let back = with(&[(Knob::MemoryLimit, 0)]);
    assert_eq!(decision, Decision::Change { settings: back, apply: Apply::Reload });
    let next = until_done(&mut controller, second, &inputs, Outcome::Done);
    assert_eq!(next, None, "memory_limit 0 stays: deleting the line would not lift a limit");
}

#[test]
fn worse_is_rolled_back_and_backs_off() {
    let mut controller = controller();
    let inputs = wants(window(1000));
    let (second, _) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    let sick = Inputs { health: Health { dropped_share: Some(0.5), ..healthy() }, ..inputs };
    let decision = controller.step(at(second + 30), &sick);
    assert_eq!(
        decision,
        Decision::RollBack {
            settings: Settings::UNWRITTEN,
            apply: Apply::Restart,
            reason: RollBackReason::Dropped
        }
    );
    controller.applied(at(second + 30), &decision, Outcome::Done, sick.health);
    assert_eq!(controller.effective(), &Settings::UNWRITTEN);
    let decision = controller.step(at(second + 35), &inputs);
    assert_eq!(decision, Decision::Hold(HoldReason::BackingOff));
}

#[test]
fn three_failures_hold_until_resumed() {
    let mut controller = controller();
    let inputs = wants(window(1000));
    let mut second = 0;
    for _ in 0..3 {
        let (done, _) = until_done(&mut controller, second, &inputs, Outcome::Restored).unwrap();
        second = done + 1;
    }
    assert_eq!(until_done(&mut controller, second, &inputs, Outcome::Done), None);
    assert_eq!(controller.step(at(second + 9000), &inputs), Decision::Hold(HoldReason::Failed));
    controller.resume(at(second + 9000));
    assert!(until_done(&mut controller, second + 9000, &inputs, Outcome::Done).is_some());
}

#[test]
fn each_veto_is_named() {
    let ripe = |inputs: Inputs| {
        let mut controller = controller();
        controller.step(at(0), &inputs);
        controller.step(at(60), &inputs)
    };
    let base = wants(window(1000));
    for (inputs, reason) in [
        (Inputs { quiet_hours: true, ..base }, HoldReason::QuietHours),
        (Inputs { state_at_risk: true, ..base }, HoldReason::StateAtRisk),
        (Inputs { health: Health::default(), ..base }, HoldReason::NotServing),
    ] {
        assert_eq!(ripe(inputs), Decision::Hold(reason));
    }
    assert!(matches!(ripe(base), Decision::Change { .. }));
}

/// Of settings of ours it is seen what they lose; of others a restart is made whatever is seen.
#[test]
fn a_broker_that_does_well_on_our_settings_is_not_restarted() {
    let ripe = |from: Settings, health: Health, rules: Rules| {
        let mut controller = Controller::new(rules, from);
        let inputs = Inputs { health, ..wants(window(1000)) };
        controller.step(at(0), &inputs);
        controller.step(at(60), &inputs)
    };
    let rules = Rules::default();
    let restart = Decision::Change { settings: window(1000), apply: Apply::Restart };
    let not_worth_it = Decision::Hold(HoldReason::NotWorthIt);
    assert_eq!(ripe(window(100), healthy(), rules), not_worth_it);
    assert_eq!(ripe(Settings::UNWRITTEN, healthy(), rules), restart);
    let reloadable = with(&[(Knob::AutosaveInterval, 300)]);
    let first = ripe(reloadable, healthy(), rules);
    assert!(matches!(first, Decision::Change { apply: Apply::Restart, .. }), "{first:?}");
    assert_eq!(ripe(window(100), healthy(), Rules { restart_gain_min: 0.0, ..rules }), restart);
    for (health, decision) in [
        (Health { dropped_share: Some(0.009), ..healthy() }, not_worth_it),
        (Health { dropped_share: Some(0.01), ..healthy() }, restart),
        (Health { dropped_share: None, ..healthy() }, restart),
        (Health { memory_share: Some(0.71), ..healthy() }, restart),
        (Health { memory_share: None, ..healthy() }, not_worth_it),
        (Health { probe_latency_us: Some(10_001.0), ..healthy() }, restart),
        (Health { probe_latency_us: None, ..healthy() }, not_worth_it),
    ] {
        assert_eq!(ripe(window(100), health, rules), decision, "{health:?}");
    }
}

/// What was wanted for the load before is no reason to restart under this one; bursts are one load.
#[test]
fn another_load_begins_the_dwell_anew_and_bursts_do_not() {
    let under = |received_per_s: f32| {
        let health = Health { received_per_s: Some(received_per_s), ..healthy() };
        Inputs { health, ..wants(window(1000)) }
    };
    let restart = Decision::Change { settings: window(1000), apply: Apply::Restart };
    let settling = Decision::Hold(HoldReason::Settling);

    let mut jumped = controller();
    for second in (0..55).step_by(5) {
        assert_eq!(jumped.step(at(second), &under(100.0)), settling);
    }
    for second in (55..115).step_by(5) {
        assert_eq!(jumped.step(at(second), &under(20_000.0)), settling, "{second}");
    }
    assert_eq!(jumped.step(at(115), &under(20_000.0)), restart);

    let mut bursting = controller();
    bursting.step(at(0), &under(20_000.0));
    let load = |second: u64| if second.is_multiple_of(10) { 20_000.0 } else { 100.0 };
    for second in (5..65).step_by(5) {
        assert_eq!(bursting.step(at(second), &under(load(second))), settling, "{second}");
    }
    assert_eq!(
        bursting.step(at(65), &under(load(65))),
        restart,
        "one beginning, at the first jump"
    );
}

#[test]
fn the_budget_survives_the_agent() {
    let mut controller = controller();
    controller.recall(at(10_000), &[Duration::from_secs(60); 4], 0);
    let inputs = wants(window(1000));
    controller.step(at(10_000), &inputs);
    let decision = controller.step(at(10_100), &inputs);
    assert_eq!(decision, Decision::Hold(HoldReason::RestartBudget));
}

/// Restarts of long ago don't count, however short the agent and its clock have been running.
#[test]
fn only_the_last_hours_restarts_are_recalled() {
    let day = Duration::from_secs(86_400);
    let mut controller = controller();
    controller.recall(at(5), &[day, day, day, Duration::from_secs(3500)], 0);
    assert_eq!(controller.restarts_in_hour(at(5)), 1);
    assert_eq!(controller.restarts_in_hour(at(105)), 0, "3600 s after it");
}

/// After a change whose verification found it worse: what happens next.
fn after_a_bad_restart() -> (Controller, u64, Inputs) {
    let mut controller = controller();
    let inputs = wants(window(1000));
    let (second, _) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    let sick = Inputs { health: Health { dropped_share: Some(0.5), ..healthy() }, ..inputs };
    (controller, second, sick)
}

#[test]
fn a_roll_back_that_fails_is_tried_again() {
    let (mut controller, second, sick) = after_a_bad_restart();
    let decision = controller.step(at(second + 30), &sick);
    assert!(matches!(decision, Decision::RollBack { .. }), "{decision:?}");
    controller.applied(at(second + 30), &decision, Outcome::Restored, sick.health);
    let held = controller.step(at(second + 35), &sick);
    assert_eq!(held, Decision::Hold(HoldReason::BackingOff));
    let (_, again) = until_done(&mut controller, second + 40, &sick, Outcome::Done).unwrap();
    assert!(matches!(again, Decision::RollBack { .. }), "{again:?}");
    assert_eq!(controller.effective(), &Settings::UNWRITTEN);
}

#[test]
fn one_bad_moment_in_the_window_is_not_worse() {
    let (mut controller, second, _) = after_a_bad_restart();
    let bad = Health { dropped_share: Some(0.3), ..healthy() };
    for step in 1..=6 {
        let health = if step == 6 { bad } else { healthy() };
        let inputs = Inputs { health, ..wants(window(1000)) };
        let decision = controller.step(at(second + step * 5), &inputs);
        assert!(matches!(decision, Decision::Hold(_)), "{decision:?}");
    }
}

/// What the first half of the window shows is the change itself; what the second shows counts, if
/// it is enough to matter.
#[test]
fn latency_is_worse_where_it_matters() {
    for (early_us, late_us, is_worse) in
        [(900_000.0, 2000.0, false), (2000.0, 9000.0, false), (2000.0, 20_000.0, true)]
    {
        let (mut controller, second, _) = after_a_bad_restart();
        let at_latency = |us| Inputs {
            health: Health { probe_latency_us: Some(us), ..healthy() },
            ..wants(window(1000))
        };
        controller.step(at(second + 10), &at_latency(early_us));
        controller.step(at(second + 20), &at_latency(late_us));
        let decision = controller.step(at(second + 30), &at_latency(late_us));
        let found = matches!(decision, Decision::RollBack { reason: RollBackReason::Latency, .. });
        assert_eq!(found, is_worse, "{early_us} {late_us}: {decision:?}");
    }
}

#[test]
fn memory_beyond_the_limit_is_worse() {
    let (mut controller, second, _) = after_a_bad_restart();
    let health = Health { memory_share: Some(1.2), ..healthy() };
    let decision = controller.step(at(second + 30), &Inputs { health, ..wants(window(1000)) });
    assert!(
        matches!(decision, Decision::RollBack { reason: RollBackReason::Memory, .. }),
        "{decision:?}"
    );
}

/// What grew before the change would have grown without it; one step up is no such growth.
#[test]
fn memory_that_grew_before_the_change_is_not_its_doing() {
    let steadily = |second: u64| 0.5 + 0.005 * second as f32;
    let faster = |second: u64| steadily(second) + 0.02 * second.saturating_sub(60) as f32;
    let once = |second: u64| if second <= 60 { 0.8 } else { 1.1 };
    let cases = [(&steadily as &dyn Fn(u64) -> f32, false), (&faster, true), (&once, true)];
    // A reload at the first look, before anything is known of growth, is no reason to forget it.
    let mut with_reload = window(1000);
    with_reload.set(Knob::AutosaveInterval, 600).unwrap();
    for ((share, is_its_doing), wanted) in
        cases.into_iter().flat_map(|case| [(case, window(1000)), (case, with_reload)])
    {
        let mut controller = controller();
        let found = (0..=90).step_by(5).map(|second| {
            let health = Health { memory_share: Some(share(second)), ..healthy() };
            let decision = controller.step(at(second), &Inputs { health, ..wants(wanted) });
            controller.applied(at(second), &decision, Outcome::Done, health);
            decision
        });
        let is_memory = |decision: &Decision| {
            matches!(decision, Decision::RollBack { reason: RollBackReason::Memory, .. })
        };
        assert_eq!(found.filter(is_memory).count(), usize::from(is_its_doing));
    }
}

#[test]
fn figures_that_stay_away_are_worse_in_the_end() {
    let (mut controller, second, _) = after_a_bad_restart();
    let health = Health { dropped_share: None, clients: None, ..healthy() };
    let blind = Inputs { health, ..wants(window(1000)) };
    let held = controller.step(at(second + 30), &blind);
    assert_eq!(held, Decision::Hold(HoldReason::Verifying), "an update of $SYS may take a minute");
    let decision = controller.step(at(second + 200), &blind);
    assert!(
        matches!(decision, Decision::RollBack { reason: RollBackReason::Unseen, .. }),
        "{decision:?}"
    );
}

/// An agent that was killed in the window of a restart still undoes it.
#[test]
fn a_verification_that_was_cut_short_is_taken_up_again() {
    let mut controller = Controller::new(Rules::default(), window(1000));
    let before = Health { is_serving: true, ..Health::default() };
    controller.watch_again(at(5), Settings::UNWRITTEN, before);
    let down = Inputs { health: Health::default(), ..wants(window(1000)) };
    assert_eq!(controller.step(at(10), &down), Decision::Hold(HoldReason::Verifying));
    let back = Decision::RollBack {
        settings: Settings::UNWRITTEN,
        apply: Apply::Restart,
        reason: RollBackReason::NotServing,
    };
    assert_eq!(controller.step(at(35), &down), back);
}

/// What was good before may be outside the envelope by now.
#[test]
fn a_roll_back_stays_inside_the_envelope() {
    let mib = 1 << 20;
    let good = with(&[(Knob::MemoryLimit, 32 * mib)]);
    let mut controller = Controller::new(Rules::default(), with(&[(Knob::MemoryLimit, 512 * mib)]));
    controller.watch_again(at(0), good, Health { is_serving: true, ..Health::default() });
    let opted_in = KnobSet::all();
    let envelope = Envelope { opted_in, heap_bytes_max: Some(100 * mib), ..Envelope::default() };
    let inputs = Inputs { envelope, health: Health::default(), ..wants(*controller.written()) };
    let decision = controller.step(at(30), &inputs);
    let Decision::RollBack { settings, .. } = decision else { panic!("{decision:?}") };
    assert!(envelope.check(&settings).is_empty());
    assert_eq!(settings.get(Knob::MemoryLimit).value(), Some(200 * mib));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A hostile policy over a day: never more restarts in any hour than the budget and what it
    /// takes to undo them, never outside the envelope, never a restart-only option left dormant.
    #[test]
    fn a_hostile_day(actions in proptest::collection::vec(any::<Action>(), 1..40), sick in any::<u64>()) {
        let mut controller = controller();
        let envelope = Envelope::default();
        let mut restarts = std::vec::Vec::new();
        for (index, second) in (0..86_400_u64).step_by(5).enumerate() {
            // Each action for two minutes, so that the dwell is passed.
            let action = &actions[(index / 24) % actions.len()];
            let mut inputs = wants(Settings::decode(action, &envelope));
            inputs.health.is_serving = sick.rotate_left(u32::try_from(index % 64).unwrap()) & 7 != 0;
            let decision = controller.step(at(second), &inputs);
            if let Decision::Change { settings, apply } | Decision::RollBack { settings, apply, .. } = decision {
                prop_assert!(envelope.check(&settings).is_empty());
                if apply == Apply::Restart {
                    restarts.push((second, matches!(decision, Decision::RollBack { .. })));
                }
                let outcome = if sick & 1 << (index % 64) == 0 { Outcome::Done } else { Outcome::Restored };
                controller.applied(at(second), &decision, outcome, inputs.health);
                prop_assert!(controller.dormant().is_empty());
            }
        }
        for (i, &(start, _)) in restarts.iter().enumerate() {
            let in_hour = || restarts[i..].iter().take_while(|other| other.0 < start + 3600);
            let changes = in_hour().filter(|other| !other.1).count();
            prop_assert!(changes <= 4, "{changes} from {start} s");
            // Each change is undone at most once with success; failing attempts back off for 5
            // minutes and more.
            prop_assert!(in_hour().count() <= 20, "{} from {start} s", in_hour().count());
        }
    }
}

#[test]
fn the_days_budget_holds_where_the_hours_has_room() {
    let mut controller = controller();
    let ages: [_; 12] =
        core::array::from_fn(|index| Duration::from_secs((index as u64 + 1) * 5400));
    controller.recall(at(90_000), &ages, 0);
    assert_eq!(controller.restarts_in_hour(at(90_000)), 0);
    assert_eq!(controller.restarts_in_day(at(90_000)), 12);
    let inputs = wants(window(1000));
    controller.step(at(90_000), &inputs);
    let held = controller.step(at(90_100), &inputs);
    assert_eq!(held, Decision::Hold(HoldReason::DailyRestartBudget));
    // The oldest was 18 hours before: 6 hours later it no longer counts.
    let later = 90_000 + 6 * 3600;
    assert_eq!(controller.restarts_in_day(at(later)), 11);
    assert!(matches!(controller.step(at(later), &inputs), Decision::Change { .. }));
}

/// An outage is not watched to the end of the window, but a moment without an answer is none.
#[test]
fn a_broker_that_stays_down_is_rolled_back_at_once() {
    let mut controller = controller();
    let inputs = wants(window(1000));
    let (second, _) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    let down = Inputs { health: Health::default(), quiet_hours: true, ..inputs };
    for (after, health) in [(1, down), (6, inputs), (7, down), (16, down)] {
        let decision = controller.step(at(second + after), &health);
        assert_eq!(decision, Decision::Hold(HoldReason::Verifying), "{after} s");
    }
    let decision = controller.step(at(second + 17), &down);
    let reason = RollBackReason::NotServing;
    let (settings, apply) = (Settings::UNWRITTEN, Apply::Restart);
    assert_eq!(decision, Decision::RollBack { settings, apply, reason });
}

/// It answers whenever it is looked at, but it is another process each time.
#[test]
fn a_broker_that_crashes_after_a_change_gets_the_old_settings_back() {
    let mut controller = controller();
    let inputs = wants(window(1000));
    let (second, _) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    controller.broker_restarted();
    let held = controller.step(at(second + 5), &inputs);
    assert_eq!(held, Decision::Hold(HoldReason::Verifying), "one may be a person's restart");
    controller.broker_restarted();
    let decision = controller.step(at(second + 10), &inputs);
    assert!(
        matches!(decision, Decision::RollBack { reason: RollBackReason::Crashed, .. }),
        "{decision:?}"
    );
}

#[test]
fn what_a_person_asks_for_needs_no_dwell_but_a_permit() {
    let mut controller = controller();
    let asked = with(&[(Knob::InflightMessagesMax, 22)]);
    controller.request(asked);
    let quiet = Inputs { quiet_hours: true, ..wants(Settings::UNWRITTEN) };
    assert_eq!(controller.step(at(0), &quiet), Decision::Hold(HoldReason::QuietHours));
    // A reload of the policy's goes on meanwhile, and is kept.
    let mut reloaded = quiet;
    reloaded.wanted.set(Knob::AutosaveInterval, 300).unwrap();
    let decision = controller.step(at(5), &reloaded);
    assert!(matches!(decision, Decision::Change { apply: Apply::Reload, .. }), "{decision:?}");
    controller.applied(at(5), &decision, Outcome::Done, healthy());
    assert_eq!(controller.requested(), Some(&asked));
    let free = Inputs { quiet_hours: false, ..reloaded };
    let settings = with(&[(Knob::InflightMessagesMax, 22), (Knob::AutosaveInterval, 300)]);
    let decision = controller.step(at(10), &free);
    assert_eq!(decision, Decision::Change { settings, apply: Apply::Restart });
    controller.applied(at(10), &decision, Outcome::Done, healthy());
    assert_eq!(controller.requested(), None);
}

#[test]
fn a_request_stays_inside_the_envelope_of_its_moment() {
    let mut controller = controller();
    controller.request(with(&[(Knob::InflightMessagesMax, 4096)]));
    let inputs = wants(Settings::UNWRITTEN);
    let Decision::Change { settings, .. } = controller.step(at(0), &inputs) else {
        panic!("no change");
    };
    assert!(inputs.envelope.check(&settings).is_empty(), "{settings:?}");
}

#[test]
fn what_a_verification_saw_is_told_once() {
    let mut controller = controller();
    let inputs = wants(window(1000));
    let (second, _) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    let better = Health { probe_latency_us: Some(500.0), ..healthy() };
    let inputs = Inputs { health: better, ..inputs };
    assert_eq!(controller.take_verified(), None);
    for after in [20, 25, 30] {
        controller.step(at(second + after), &inputs);
    }
    assert_eq!(controller.take_verified(), Some(Verified { before: healthy(), after: better }));
    assert_eq!(controller.take_verified(), None);
}

/// A pause in the verify window: what was seen before it says nothing days later.
#[test]
fn a_verification_begins_anew_after_a_pause() {
    let mut controller = controller();
    let inputs = wants(window(1000));
    let (second, _) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    controller.pause();
    let later = second + 200_000;
    let slow = Health { probe_latency_us: Some(50_000.0), ..healthy() };
    let busy = Inputs { health: slow, ..inputs };
    assert_eq!(controller.step(at(later), &busy), Decision::Hold(HoldReason::Paused));
    controller.resume(at(later));
    assert_eq!(controller.step(at(later + 5), &busy), Decision::Hold(HoldReason::Verifying));
    assert_eq!(controller.step(at(later + 30), &busy), Decision::Hold(HoldReason::Satisfied));
}

/// Someone took a line out of the file; the broker still runs as wanted, until its next restart.
#[test]
fn what_is_in_force_as_wanted_is_written_without_a_restart() {
    let mut controller = controller();
    controller.found(with(&[(Knob::TcpNodelay, 1)]), window(1000));
    let decision = controller.step(at(0), &wants(window(1000)));
    let settings = window(1000).with_that_of(Knob::TcpNodelay, &with(&[(Knob::TcpNodelay, 1)]));
    assert_eq!(decision, Decision::Change { settings, apply: Apply::Reload });
    controller.applied(at(0), &decision, Outcome::Done, healthy());
    let held = controller.step(at(60), &wants(window(1000)));
    assert_eq!(held, Decision::Hold(HoldReason::Satisfied));
    assert!(controller.dormant().contains(Knob::TcpNodelay), "not wanted, and no harm");
}

/// A controller that has just restarted the broker at 60 s for a larger window.
fn restarted() -> (Controller, Inputs) {
    let mut controller = controller();
    let inputs = wants(window(1000));
    let (second, decision) = until_done(&mut controller, 0, &inputs, Outcome::Done).unwrap();
    assert!(second <= 60 && matches!(decision, Decision::Change { apply: Apply::Restart, .. }));
    (controller, inputs)
}

#[test]
fn a_change_is_not_blamed_for_a_heavier_load() {
    let drops = Health { dropped_share: Some(0.5), probe_latency_us: Some(1e6), ..healthy() };
    let ended = |health: Health| {
        let (mut controller, inputs) = restarted();
        until_done(&mut controller, 65, &Inputs { health, ..inputs }, Outcome::Done)
    };
    let blamed = ended(drops);
    assert!(matches!(blamed, Some((_, Decision::RollBack { .. }))), "{blamed:?}");
    let heavier = Health { received_per_s: Some(20_000.0), ..drops };
    assert_eq!(ended(heavier), None);
    let full = ended(Health { memory_share: Some(1.2), ..heavier });
    assert!(
        matches!(full, Some((_, Decision::RollBack { reason: RollBackReason::Memory, .. }))),
        "memory is the machine's, whoever fills it: {full:?}"
    );
    let nobody = Health { clients: Some(0.0), ..heavier };
    let lost = ended(nobody);
    assert!(
        matches!(lost, Some((_, Decision::RollBack { reason: RollBackReason::ClientsLost, .. }))),
        "{lost:?}"
    );
}

#[test]
fn a_reload_is_not_judged_while_a_restart_settles() {
    let rules = Rules {
        verify_window: Duration::from_secs(10),
        dwell: Duration::from_secs(60),
        ..Rules::default()
    };
    let mut controller = Controller::new(rules, Settings::UNWRITTEN);
    let mut both = window(1000);
    both.set(Knob::AutosaveInterval, 300).unwrap();
    let filling = |share| Inputs {
        health: Health { dropped_share: Some(share), ..healthy() },
        ..wants(both)
    };
    let reload = controller.step(at(0), &filling(0.1));
    assert!(matches!(reload, Decision::Change { apply: Apply::Reload, .. }), "{reload:?}");
    controller.applied(at(0), &reload, Outcome::Done, filling(0.1).health);
    for second in (5..60).step_by(5) {
        let decision = controller.step(at(second), &filling(0.6));
        assert_eq!(decision, Decision::Hold(HoldReason::Settling), "{second}");
    }
    let restart = controller.step(at(60), &filling(0.6));
    assert_eq!(restart, Decision::Change { settings: both, apply: Apply::Restart });
}

/// A restart disconnects everyone: that is not made for what is in force already, nor for an option
/// that was taken from us since.
#[test]
fn a_request_that_a_restart_would_not_serve_is_dropped() {
    for (asked, is_held) in [(window(1000), false), (window(2000), true)] {
        let mut controller = Controller::new(Rules::default(), window(1000));
        controller.request(asked);
        let mut inputs = wants(window(1000));
        if is_held {
            inputs.envelope.opted_in = KnobSet::EMPTY.with(Knob::AutosaveInterval);
        }
        let decision = controller.step(at(0), &inputs);
        let is_restart = matches!(decision, Decision::Change { apply: Apply::Restart, .. });
        assert!(!is_restart, "{decision:?}");
        assert_eq!(controller.requested(), None);
    }
}

/// Fewer clients than before the restart are noticed also where a person sets an option within the
/// window.
#[test]
fn a_reload_within_the_window_does_not_disarm_a_restarts_verification() {
    let (mut controller, inputs) = restarted();
    let reload = with(&[(Knob::AutosaveInterval, 300)]);
    let settings = controller.written().with_stated(&reload);
    let change = Decision::Change { settings, apply: Apply::Reload };
    controller.applied(at(65), &change, Outcome::Done, healthy());
    assert_eq!(controller.watched(), Some(Apply::Restart));
    let lonely = Inputs { health: Health { clients: Some(1.0), ..healthy() }, ..inputs };
    let (_, _, reason) = until_undone(&mut controller, 65, &lonely).unwrap();
    assert_eq!(reason, RollBackReason::ClientsLost);
}

/// A reload takes `persistence` over too, and writes over or resurrects the database.
#[test]
fn a_reload_leaves_persistence_as_it_runs_and_stays_inside_the_envelope() {
    let mut controller = controller();
    let dormant = with(&[(Knob::Persistence, 1), (Knob::TcpNodelay, 1)]);
    controller.found(dormant, Settings::UNWRITTEN);
    let mut inputs = wants(with(&[(Knob::AutosaveInterval, 300)]));
    inputs.envelope.opted_in = KnobSet::EMPTY.with(Knob::AutosaveInterval).with(Knob::Persistence);
    let decision = controller.step(at(0), &inputs);
    let settings = with(&[(Knob::AutosaveInterval, 300)]);
    assert_eq!(decision, Decision::Change { settings, apply: Apply::Reload });
}

/// A line that is in force stays where it is, whatever the envelope has come to since.
#[test]
fn a_reload_leaves_the_lines_that_only_a_restart_takes_over() {
    let mut controller = Controller::new(Rules::default(), with(&[(Knob::PacketSizeMax, 1 << 20)]));
    let mut inputs = wants(with(&[(Knob::AutosaveInterval, 300), (Knob::PacketSizeMax, 1 << 20)]));
    inputs.envelope.opted_in = inputs.envelope.opted_in.with(Knob::PacketSizeMax);
    inputs.envelope.packet_bytes_max = Some(1 << 20);
    let settings = with(&[(Knob::AutosaveInterval, 300), (Knob::PacketSizeMax, 1 << 20)]);
    let change = Decision::Change { settings, apply: Apply::Reload };
    assert_eq!(controller.step(at(0), &inputs), change);
}

#[test]
fn a_verification_is_taken_up_against_what_was_seen_before_the_change() {
    let (controller, inputs) = restarted();
    let (last_good, before) = controller.before_watched().unwrap();
    let mut again = Controller::new(Rules::default(), *controller.written());
    again.watch_again(at(100), last_good, before);
    let lonely = Inputs { health: Health { clients: Some(1.0), ..healthy() }, ..inputs };
    let undone = (100..200)
        .any(|second| matches!(again.step(at(second), &lonely), Decision::RollBack { .. }));
    assert!(undone, "clients that stay away are noticed after a restart of the agent too");
}

#[test]
fn every_restart_counts_against_the_budget() {
    let mut controller = controller();
    let change = Decision::Change { settings: window(1000), apply: Apply::Restart };
    controller.applied(at(0), &change, Outcome::Restored, healthy());
    controller.count_restart(at(0));
    assert_eq!(controller.restarts_in_hour(at(1)), 2);
    controller.applied(at(2), &change, Outcome::NotBegun, healthy());
    assert_eq!((controller.restarts_in_hour(at(3)), controller.failures()), (2, 2));
}

#[path = "controller_undo_tests.rs"]
mod undoing;
