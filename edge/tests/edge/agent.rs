//! The agent in-process, as a trainer drives it.

use std::fs;
use std::time::Duration;

use brokertuner_core::controller::HoldReason;
use brokertuner_core::envelope::Envelope;
use brokertuner_core::features::View;
use brokertuner_core::{Knob, Settings};
use brokertuner_edge::agent::{Agent, Mode, Tick, Verdict};
use brokertuner_edge::apply::unix_s;
use brokertuner_edge::config::Config;
use brokertuner_edge::control::Broker as _;
use brokertuner_edge::site::{Environment, Site};
use brokertuner_edge::state::{self, State};

use super::broker::{Broker, eventually};

const WINDOW: u64 = 600;

fn site(broker: &Broker, extra: &str) -> Site {
    let model = broker.path("none.btm");
    let config = Config::load(&broker.edge_config(&model, extra)).unwrap();
    let mut site = Site::look(&config, &Environment::default()).unwrap();
    site.ready_timeout = Duration::from_secs(5);
    site
}

/// Wants a window of [`WINDOW`], and an option that is held: a policy may say anything.
fn policy(_: &View<'_>, _: &Envelope) -> Settings {
    let mut wanted = Settings::UNWRITTEN;
    wanted.set(Knob::InflightMessagesMax, WINDOW).unwrap();
    wanted.set(Knob::QueuedMessagesMax, 5000).unwrap();
    wanted.set(Knob::Persistence, 1).unwrap();
    wanted
}

fn until(agent: &mut Agent, what: &str, mut is_it: impl FnMut(&Tick) -> bool) -> Tick {
    eventually(what, || {
        let tick = agent.tick(Mode::Act);
        is_it(&tick).then_some(tick)
    })
}

#[test]
fn a_closure_is_policy_enough_and_stays_inside_the_envelope() {
    let broker = Broker::start("");
    let site = site(&broker, "[decide]\ndwell_s = 0\nverify_window_s = 1\n");
    let mut agent = Agent::start(site, Box::new(policy)).unwrap();
    let changed = |tick: &Tick| matches!(tick.verdict, Verdict::Changed(..));
    let tick = until(&mut agent, "a change", changed);
    let Verdict::Changed(plan, applied) = &tick.verdict else { unreachable!() };
    assert_eq!(applied.ready.connack.receive_maximum.map(u64::from), Some(WINDOW));
    assert_eq!(plan.to.get(Knob::Persistence).value(), None, "held");
    assert_eq!(agent.applier().state().good, None, "not before the verify window");
    let held = until(
        &mut agent,
        "the end of the verify window",
        |tick| matches!(tick.verdict, Verdict::Hold(reason) if reason.to_string() == "the settings fit"),
    );
    assert_eq!(held.metrics.clients_others, Some(0.0));
    assert_eq!(agent.applier().state().good, agent.applier().state().written);
}

#[test]
fn a_broker_that_dies_of_a_change_gets_the_old_settings_back() {
    let broker = Broker::start("");
    let site = site(&broker, "[decide]\ndwell_s = 0\nverify_window_s = 2\n");
    let mut agent = Agent::start(site, Box::new(policy)).unwrap();
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
    // From now on it does not start with these settings.
    let script = fs::read_to_string(broker.path("start")).unwrap();
    let script = script.replace("max_inflight_messages 4000", "max_inflight_messages 600");
    fs::write(broker.path("start"), script).unwrap();
    broker.live().restart().unwrap();
    let tick = until(&mut agent, "the change back", |tick| {
        matches!(tick.verdict, Verdict::Changed(..) | Verdict::Failed(..))
    });
    let Verdict::Changed(plan, applied) = &tick.verdict else { panic!("{:?}", tick.verdict) };
    assert!(plan.why.contains("stopped answering"), "{}", plan.why);
    assert_eq!(applied.ready.connack.receive_maximum, Some(20));
    assert_eq!(agent.controller().failures(), 1);
    assert_eq!(agent.applier().state().failures, 1, "remembered across a restart of the agent");
}

/// The wall clock is set back an hour, and the agent started again: its restarts lie in the future.
#[test]
fn a_clock_that_is_set_back_frees_no_restart() {
    let broker = Broker::start("");
    let hour_ahead = unix_s() + 3600;
    let state = State { restarts_unix_s: vec![hour_ahead], ..State::default() };
    fs::create_dir(broker.path("state")).unwrap();
    fs::write(broker.path("state/edge.state"), state::encode(&state)).unwrap();
    let rules = "[decide]\ndwell_s = 0\nverify_window_s = 1\nrestarts_per_hour_max = 1\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    let is_spent = |tick: &Tick| matches!(tick.verdict, Verdict::Hold(HoldReason::RestartBudget));
    let tick = until(&mut agent, "the spent budget", is_spent);
    assert_eq!(agent.controller().restarts_in_hour(tick.at), 1);
    assert!(!broker.drop_in().exists());
}

/// Killed in the verify window, the next agent goes on watching, and undoes what turns out bad.
#[test]
fn a_verification_outlives_the_agent() {
    let broker = Broker::start("");
    let rules = "[decide]\ndwell_s = 0\nverify_window_s = 2\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
    drop(agent);
    let script = fs::read_to_string(broker.path("start")).unwrap();
    let script = script.replace("max_inflight_messages 4000", "max_inflight_messages 600");
    fs::write(broker.path("start"), script).unwrap();
    broker.live().restart().unwrap();
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    let tick = until(&mut agent, "the change back", |tick| {
        matches!(tick.verdict, Verdict::Changed(..) | Verdict::Failed(..))
    });
    assert!(matches!(&tick.verdict, Verdict::Changed(plan, _) if plan.is_roll_back), "{tick:?}");
}

#[test]
fn a_damaged_memory_holds_first_and_keeps_holding() {
    let broker = Broker::start("");
    let site = || site(&broker, "[decide]\ndwell_s = 0\n");
    drop(Agent::start(site(), Box::new(policy)).unwrap());
    let state = site().paths.state_dir.join("edge.state");
    fs::write(&state, "neither magic nor state").unwrap();
    for _ in 0..2 {
        let mut agent = Agent::start(site(), Box::new(policy)).unwrap();
        let tick = until(&mut agent, "a hold", |tick| matches!(tick.verdict, Verdict::Hold(_)));
        let Verdict::Hold(reason) = tick.verdict else { unreachable!() };
        assert_eq!(reason.to_string(), "waiting after a failed change");
        assert_eq!(agent.controller().failures(), 1);
    }
}

/// Looking on takes nothing over and writes nothing, also in the verify window of the agent that is
/// at work.
#[test]
fn looking_on_leaves_the_agent_at_work_alone() {
    let broker = Broker::start("");
    let rules = "[decide]\ndwell_s = 0\nverify_window_s = 60\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    // In the same process: under one identifier they would take each other's connection over.
    let mut other = site(&broker, rules);
    other.broker.client_id = "onlooker".into();
    let mut onlooker = Agent::watch(other, Box::new(policy)).unwrap();
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
    let state = site(&broker, rules).paths.state_dir.join("edge.state");
    let before = fs::read(&state).unwrap();
    eventually("the onlooker to see it", || {
        let tick = onlooker.tick(Mode::Look);
        let window = onlooker.controller().written().get(Knob::InflightMessagesMax).value();
        (matches!(tick.verdict, Verdict::Hold(_)) && window == Some(WINDOW)).then_some(())
    });
    assert_eq!(fs::read(&state).unwrap(), before);
    assert_eq!(agent.applier().state().good, None);
}

#[test]
fn a_restart_by_someone_else_is_noticed() {
    let broker = Broker::start("");
    let site = site(&broker, "[decide]\nrestarts_per_hour_max = 0\ndwell_s = 0\n");
    let mut agent = Agent::start(site, Box::new(policy)).unwrap();
    let tick = until(
        &mut agent,
        "the budget to hold",
        |tick| matches!(tick.verdict, Verdict::Hold(reason) if reason.to_string().contains("budget")),
    );
    assert_eq!(tick.wanted.unwrap().get(Knob::InflightMessagesMax).value(), Some(WINDOW));
    let before = agent.applier().state().effective.unwrap().process;
    broker.live().restart().unwrap();
    until(&mut agent, "the new process to be noticed", |_| {
        broker.live().process().is_ok_and(|process| process != before)
    });
    eventually("the new process to be noted", || {
        agent.tick(Mode::Act);
        let noted = agent.applier().state().effective.unwrap().process;
        (noted != before).then_some(())
    });
}
