//! The agent in-process, as a trainer drives it.

use std::fs;
use std::time::Duration;

use brokertuner_core::controller::HoldReason;
use brokertuner_core::envelope::Envelope;
use brokertuner_core::features::View;
use brokertuner_core::sample::Sys;
use brokertuner_core::{Knob, Settings};
use brokertuner_edge::agent::{Agent, Mode, Tick, Verdict};
use brokertuner_edge::apply::unix_s;
use brokertuner_edge::config::Config;
use brokertuner_edge::control::Broker as _;
use brokertuner_edge::fs::{MODE_CONF, RealFiles, replace};
use brokertuner_edge::journal::{Event, Journal};
use brokertuner_edge::knobs_request::{KnobsAnswer, KnobsRequest};
use brokertuner_edge::orders::{Order, Restraint};
use brokertuner_edge::sampler::Link;
use brokertuner_edge::site::{Environment, Site};
use brokertuner_edge::state::{self, How, Intent, State, StateStore};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
    let before = agent.controller().before_watched();
    assert!(before.is_some_and(|(_, health)| health.clients.is_some()), "{before:?}");
    drop(agent);
    let script = fs::read_to_string(broker.path("start")).unwrap();
    let script = script.replace("max_inflight_messages 4000", "max_inflight_messages 600");
    fs::write(broker.path("start"), script).unwrap();
    broker.live().restart().unwrap();
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    assert_eq!(agent.controller().before_watched(), before, "it is judged against the same");
    let tick = until(&mut agent, "the change back", |tick| {
        matches!(tick.verdict, Verdict::Changed(..) | Verdict::Failed(..))
    });
    assert!(matches!(&tick.verdict, Verdict::Changed(plan, _) if plan.is_roll_back), "{tick:?}");
}

/// Whoever lost the memory can still have the broker as it was.
#[test]
fn a_drop_in_of_ours_is_taken_away_also_when_its_record_was_lost() {
    let broker = Broker::start("");
    let rules = "[decide]\ndwell_s = 0\nverify_window_s = 1\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
    drop(agent);
    fs::remove_dir_all(broker.path("state")).unwrap();
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    assert_eq!(agent.controller().written().get(Knob::InflightMessagesMax).value(), Some(WINDOW));
    let answer = agent.obey(&Order::Off { restore: true, allow_state_loss: true });
    assert!(answer.done && !broker.drop_in().exists(), "{answer}");
    let ready = brokertuner_edge::ready::look(&broker.live(), None).unwrap();
    assert_eq!(ready.connack.receive_maximum, Some(20), "{answer}");
}

/// A damaged memory may have held `edge off`: nothing is changed until a person says so.
#[test]
fn a_damaged_memory_holds_until_told() {
    let broker = Broker::start("");
    let site = || site(&broker, "[decide]\ndwell_s = 0\n");
    drop(Agent::start(site(), Box::new(policy)).unwrap());
    let state = site().paths.state_dir.join("edge.state");
    fs::write(&state, "neither magic nor state").unwrap();
    for _ in 0..2 {
        let mut agent = Agent::start(site(), Box::new(policy)).unwrap();
        let tick = agent.tick(Mode::Act);
        assert!(
            matches!(tick.verdict, Verdict::Restrained(Restraint::Paused)),
            "{:?}",
            tick.verdict
        );
    }
    let mut agent = Agent::start(site(), Box::new(policy)).unwrap();
    assert!(agent.obey(&Order::Resume).done);
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
}

/// A restart that was cut short: the drop-in is in place, the broker may have it or not.
pub(super) fn cut_short(broker: &Broker) -> Settings {
    let mut to = Settings::UNWRITTEN;
    to.set(Knob::InflightMessagesMax, WINDOW).unwrap();
    to.set(Knob::QueuedMessagesMax, 5000).unwrap();
    let before = broker.live().process().unwrap();
    let (interim, interim_back) = (None, None);
    let how = How::Restart;
    let intent =
        Intent { from: None, to: Some(to), interim, interim_back, how, before, back: false };
    fs::create_dir_all(broker.path("state")).unwrap();
    let state = State { intent: Some(intent), last_decision: 7, ..State::default() };
    StateStore::in_dir(&broker.path("state")).save(&RealFiles, &state).unwrap();
    let text = brokertuner_core::render::render(&to);
    replace(&RealFiles, &broker.drop_in(), Some(text.as_bytes()), MODE_CONF).unwrap();
    to
}

#[test]
fn a_change_that_was_cut_short_has_its_account() {
    let broker = Broker::start("");
    cut_short(&broker);
    let mut agent = Agent::start(site(&broker, ""), Box::new(policy)).unwrap();
    agent.tick(Mode::Act);
    let entries = Journal::in_dir(&broker.path("state")).read().unwrap();
    let [cut] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((cut.id, cut.event), (7, Event::Failed));
    assert!(cut.why.contains("cut short") && cut.why.contains("are back"), "{}", cut.why);
    assert_eq!(cut.diff[0], format!("max_inflight_messages (no line) -> {WINDOW}"));
}

/// A reload at once and a restart after the dwell are verified together, and each is told of.
#[test]
fn each_change_that_stands_its_verification_is_told() {
    let broker = Broker::start("");
    let rules = "[decide]\ndwell_s = 1\nverify_window_s = 3\nrestarts_per_hour_max = 32\n";
    let both = |view: &View<'_>, envelope: &Envelope| {
        let mut wanted = policy(view, envelope);
        wanted.set(Knob::AutosaveInterval, 300).unwrap();
        wanted
    };
    let mut agent = Agent::start(site(&broker, rules), Box::new(both)).unwrap();
    let is_content = |tick: &Tick| matches!(tick.verdict, Verdict::Hold(HoldReason::Satisfied));
    until(&mut agent, "contentment", is_content);
    drop(agent);
    let entries = Journal::in_dir(&broker.path("state")).read().unwrap();
    let ids = |event: Event| -> Vec<u64> {
        entries.iter().filter(|entry| entry.event == event).map(|entry| entry.id).collect()
    };
    assert_eq!(ids(Event::Changed).len(), 2, "{entries:?}");
    assert_eq!(ids(Event::Verified), ids(Event::Changed), "{entries:?}");
}

/// What a person undid has nothing more to stand.
#[test]
fn a_change_that_was_ordered_back_is_not_verified_later() {
    let broker = Broker::start("");
    let rules = "[decide]\ndwell_s = 0\nverify_window_s = 2\nrestarts_per_hour_max = 32\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    let is_change = |tick: &Tick| matches!(tick.verdict, Verdict::Changed(..));
    until(&mut agent, "a change", is_change);
    let first = agent.applier().state().watched.clone();
    assert_eq!(first.len(), 1);
    assert!(agent.obey(&Order::Rollback { allow_state_loss: true }).done);
    assert!(agent.obey(&Order::Resume).done);
    until(&mut agent, "it once more", is_change);
    until(&mut agent, "its verification", |_| agent_is_content(&broker));
    let entries = Journal::in_dir(&broker.path("state")).read().unwrap();
    let verified: Vec<_> = entries.iter().filter(|it| it.event == Event::Verified).collect();
    assert_eq!(verified.len(), 1, "{entries:?}");
    assert!(!first.contains(&verified[0].id), "{entries:?}");
}

fn agent_is_content(broker: &Broker) -> bool {
    let entries = Journal::in_dir(&broker.path("state")).read().unwrap();
    entries.iter().any(|entry| entry.event == Event::Verified)
}

/// The agent can't connect, for a reason of its own; the clients are fine. It must not restart the
/// broker at each of its own starts, and not at all in between.
#[test]
fn a_recovery_that_fails_is_not_repeated_for_ever() {
    let broker = Broker::start("");
    cut_short(&broker);
    broker.live().restart().unwrap();
    let restarted = |pid| {
        let now = eventually("a broker", || broker.live().process().ok());
        eventually("an answer", || broker.live().answer().ok());
        (now.pid != pid).then_some(now.pid)
    };
    let mut pid = eventually("the restart", || restarted(0));
    let mut restarts = 0;
    for start in 1..=5 {
        let mut deaf = site(&broker, "[decide]\ndwell_s = 0\n");
        deaf.broker.address.set_port(1);
        deaf.ready_timeout = Duration::from_millis(500);
        let mut agent = Agent::start(deaf, Box::new(policy)).unwrap();
        for _ in 0..3 {
            let tick = agent.tick(Mode::Act);
            let Verdict::Restrained(restraint) = tick.verdict else { panic!("{:?}", tick.verdict) };
            match start {
                5 => assert!(matches!(restraint, Restraint::StartLoop(5)), "{restraint}"),
                _ => assert!(matches!(restraint, Restraint::Unended(_)), "{restraint}"),
            }
        }
        let mut asked = Settings::UNWRITTEN;
        asked.set(Knob::AutosaveInterval, 300).unwrap();
        let answer = agent.set_knobs(KnobsRequest { settings: asked, ..KnobsRequest::default() });
        assert!(matches!(answer, KnobsAnswer::Held(_)), "{answer:?}");
        // The kill switch coming and going gives no new try either.
        fs::write(broker.path("state/kill-switch"), "").unwrap();
        assert!(matches!(
            agent.tick(Mode::Act).verdict,
            Verdict::Restrained(Restraint::KillSwitch(_))
        ));
        fs::remove_file(broker.path("state/kill-switch")).unwrap();
        assert!(matches!(agent.tick(Mode::Act).verdict, Verdict::Restrained(_)));
        assert!(agent.applier().state().intent.is_some(), "what is to be ended is not forgotten");
        if let Some(now) = restarted(pid) {
            (pid, restarts) = (now, restarts + 1);
        }
    }
    assert!(restarts <= 4, "{restarts} restarts");

    // Where the agent hears again, a person's word ends it.
    let rules = "[decide]\ndwell_s = 0\nrestarts_per_hour_max = 32\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    let answer = agent.obey(&Order::Resume);
    assert!(answer.done, "{answer}");
    assert_eq!(agent.applier().state().intent, None);
    assert!(!broker.drop_in().exists(), "taken back");
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
}

/// While the file exists nothing is changed, also not by an order that finds a change half done.
#[test]
fn an_order_under_the_kill_switch_ends_nothing() {
    let broker = Broker::start("");
    let to = cut_short(&broker);
    let pid = broker.pid();
    fs::write(broker.path("state/kill-switch"), "").unwrap();
    let mut agent = Agent::start(site(&broker, ""), Box::new(policy)).unwrap();
    let restored = Order::Off { restore: true, allow_state_loss: true };
    let rolled_back = Order::Rollback { allow_state_loss: true };
    let off = Order::Off { restore: false, allow_state_loss: false };
    let text = brokertuner_core::render::render(&to);
    for (order, is_done) in
        [(restored, false), (rolled_back, false), (Order::Resume, false), (off, true)]
    {
        let answer = agent.obey(&order);
        assert_eq!(answer.done, is_done, "{answer}");
        agent.tick(Mode::Act);
        assert_eq!(fs::read_to_string(broker.drop_in()).unwrap(), text.as_str(), "{order}");
        assert_eq!(broker.pid(), pid, "{order}");
        assert!(agent.applier().state().intent.is_some(), "{order}");
    }
    fs::remove_file(broker.path("state/kill-switch")).unwrap();
    agent.tick(Mode::Act);
    assert!(agent.applier().state().intent.is_some(), "it is off");
    assert!(agent.obey(&Order::Resume).done);
    assert!(!broker.drop_in().exists(), "the restart never happened: taken back");
    assert_eq!(broker.pid(), pid);
}

fn asks(values: &[(Knob, u64)]) -> KnobsRequest {
    let mut settings = Settings::UNWRITTEN;
    for &(knob, value) in values {
        settings.set(knob, value).unwrap();
    }
    KnobsRequest { settings, ..KnobsRequest::default() }
}

/// Leaves a retained message with the broker.
fn retain(broker: &Broker) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(broker.address).unwrap();
    stream.write_all(b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    stream.write_all(b"\x31\x06\0\x03a/bx\xc0\0").unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
}

const PERSISTENT: &str = "[decide]\ndwell_s = 0\n[knobs.persistence]\ntune = \"yes\"\n";

/// Leaves messages of 10 kB waiting for a subscriber that acknowledges none; returns its connection.
fn let_wait(broker: &Broker, messages: u16) -> std::net::TcpStream {
    use std::io::{Read as _, Write as _};
    let connect = |id: u8| {
        let mut stream = std::net::TcpStream::connect(broker.address).unwrap();
        stream
            .write_all(&[b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01".as_slice(), &[id]].concat())
            .unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream
    };
    let (mut subscriber, mut publisher) = (connect(b's'), connect(b'p'));
    subscriber.write_all(b"\x82\x06\0\x01\0\x01t\x01").unwrap();
    subscriber.read_exact(&mut [0; 5]).unwrap();
    for id in 1..=messages {
        let head = [0x32, 0x95, 0x4e, 0, 1, b't'];
        publisher
            .write_all(&[&head, id.to_be_bytes().as_slice(), &[b'x'; 10_000]].concat())
            .unwrap();
    }
    publisher.read_exact(&mut vec![0; 4 * usize::from(messages)]).unwrap();
    subscriber
}

/// The save before a restart keeps what waits for a clean session, and the broker starts with it once.
#[test]
fn what_a_restart_carried_over_is_shed_by_a_second_one() {
    let place = tempfile::tempdir().unwrap();
    let lines = format!("persistence true\npersistence_location {}/\n", place.path().display());
    let broker = Broker::start(&lines);
    let rules = "[decide]\ndwell_s = 0\nverify_window_s = 4\n[targets]\nrss_limit_mib = 10\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    let _subscriber = let_wait(&broker, 800);
    let is_change = |tick: &Tick| matches!(tick.verdict, Verdict::Changed(..));
    let first = until(&mut agent, "a change", is_change);
    let second = until(&mut agent, "a second restart", is_change);
    let share = |tick: &Tick| tick.health.memory_share.unwrap();
    assert!(share(&first) > 1.0 && share(&second) > 1.0, "{first:?} {second:?}");
    let plan = second.verdict.plan().unwrap();
    assert_eq!((plan.from, plan.how), (plan.to, How::Restart), "{plan}");
    assert!(plan.to_string().starts_with("the same settings by restart"), "{plan}");
    let held = until(
        &mut agent,
        "the end of the verify window",
        |tick| matches!(tick.verdict, Verdict::Hold(reason) if reason.to_string() == "the settings fit"),
    );
    assert!(share(&held) < 1.0, "{held:?}");
    assert_eq!(agent.controller().restarts_in_hour(held.at), 2);
    let entries = Journal::in_dir(&broker.path("state")).read().unwrap();
    let [changed, again, verified] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!([again.event, verified.event], [Event::Restarted, Event::Verified], "{entries:?}");
    assert_eq!(verified.id, changed.id, "the change is verified, not the restart");
    assert!(again.diff.is_empty() && again.undo.is_empty(), "{again:?}");
}

/// What a person asks for is judged by where it leads, whatever the policy wants meanwhile.
#[test]
fn a_restart_into_no_persistence_waits_where_it_would_lose_messages() {
    let place = tempfile::tempdir().unwrap();
    let lines = format!("persistence true\npersistence_location {}/\n", place.path().display());
    let broker = Broker::start(&lines);
    retain(&broker);
    let wants_nothing = |_: &View<'_>, _: &Envelope| Settings::UNWRITTEN;
    let mut agent = Agent::start(site(&broker, PERSISTENT), Box::new(wants_nothing)).unwrap();
    until(&mut agent, "figures", |tick| matches!(tick.verdict, Verdict::Hold(_)));
    let pid = broker.pid();
    let answer = agent.set_knobs(asks(&[(Knob::Persistence, 0)]));
    assert!(matches!(answer, KnobsAnswer::Scheduled { .. }), "{answer:?}");
    let tick = agent.tick(Mode::Act);
    let Verdict::Hold(reason) = tick.verdict else { panic!("{:?}", tick.verdict) };
    assert!(reason.to_string().contains("would lose"), "{reason}");
    assert_eq!(broker.pid(), pid);
}

/// Off without permission for the restart: a reload must not switch persistence, nor may an agent at
/// work take the present settings for those to come.
#[test]
fn going_back_to_no_persistence_asks_first_and_switches_nothing_by_a_reload() {
    let place = tempfile::tempdir().unwrap();
    let broker = Broker::start(&format!("persistence_location {}/\n", place.path().display()));
    let persistent = |_: &View<'_>, _: &Envelope| {
        let mut wanted = Settings::UNWRITTEN;
        wanted.set(Knob::Persistence, 1).unwrap();
        wanted
    };
    let mut agent = Agent::start(site(&broker, PERSISTENT), Box::new(persistent)).unwrap();
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
    until(
        &mut agent,
        "its end",
        |tick| matches!(tick.verdict, Verdict::Hold(reason) if reason.to_string() == "the settings fit"),
    );
    retain(&broker);
    let pid = broker.pid();
    eventually("the message to be seen", || {
        let tick = agent.tick(Mode::Act);
        let seen = tick.record.sample.sys.get(Sys::RetainedMessages)?;
        (seen > agent.sampler().sys_retained()).then_some(())
    });
    for order in [
        Order::Rollback { allow_state_loss: false },
        Order::Off { restore: true, allow_state_loss: false },
    ] {
        let answer = agent.obey(&order);
        assert!(!answer.done && answer.said.contains("--allow-state-loss"), "{answer}");
        assert_eq!(broker.pid(), pid, "{answer}");
        let text = fs::read_to_string(broker.drop_in()).unwrap();
        assert!(text.contains("persistence true"), "{order}: {text}");
    }
    let answer = agent.obey(&Order::Off { restore: true, allow_state_loss: true });
    assert!(answer.done && !broker.drop_in().exists(), "{answer}");
}

/// What a person set stays theirs when a change of the policy's is undone; what could not be set is
/// not theirs.
#[test]
fn what_a_person_set_outlives_a_rollback_of_the_policys() {
    let broker = Broker::start("");
    let rules = "[decide]\ndwell_s = 0\nverify_window_s = 1\n";
    let is_on = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let switch = std::sync::Arc::clone(&is_on);
    let policy = move |view: &View<'_>, envelope: &Envelope| {
        let wants = switch.load(std::sync::atomic::Ordering::Relaxed);
        if wants { policy(view, envelope) } else { Settings::UNWRITTEN }
    };
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    let fits = |tick: &Tick| matches!(tick.verdict, Verdict::Hold(reason) if reason.to_string() == "the settings fit");
    until(&mut agent, "figures", fits);
    let answer = agent.set_knobs(asks(&[(Knob::AutosaveInterval, 300)]));
    assert!(matches!(answer, KnobsAnswer::Applied(_)), "{answer:?}");
    eventually("its verification", || {
        agent.tick(Mode::Act);
        let state = agent.applier().state();
        (state.good == state.written).then_some(())
    });

    is_on.store(true, std::sync::atomic::Ordering::Relaxed);
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
    let script = fs::read_to_string(broker.path("start")).unwrap();
    let script = script.replace("max_inflight_messages 4000", "max_inflight_messages 600");
    fs::write(broker.path("start"), script).unwrap();
    broker.live().restart().unwrap();
    until(
        &mut agent,
        "the change back",
        |tick| matches!(&tick.verdict, Verdict::Changed(plan, _) if plan.is_roll_back),
    );
    let pinned = agent.applier().state().pinned.unwrap_or_default();
    assert_eq!(pinned.get(Knob::AutosaveInterval).value(), Some(300));

    // Set elsewhere meanwhile: refused, and no pin is left behind.
    fs::write(broker.path("conf.d/zzzz.conf"), "autosave_interval 77\n").unwrap();
    let answer = agent.set_knobs(asks(&[(Knob::AutosaveInterval, 500)]));
    assert!(!matches!(answer, KnobsAnswer::Applied(_)), "{answer:?}");
    let pinned = agent.applier().state().pinned.unwrap_or_default();
    assert_eq!(pinned.get(Knob::AutosaveInterval).value(), Some(300));
}

/// It says nothing of the settings, so it does not bring the agent nearer to giving up.
#[test]
fn a_request_while_the_broker_is_away_is_no_failure() {
    let broker = Broker::start("");
    let mut deaf = site(&broker, "");
    deaf.broker.address.set_port(1);
    deaf.ready_timeout = Duration::from_millis(500);
    let mut agent = Agent::start(deaf, Box::new(policy)).unwrap();
    for _ in 0..4 {
        let answer = agent.set_knobs(asks(&[(Knob::AutosaveInterval, 300)]));
        let KnobsAnswer::Held(reason) = answer else { panic!("{answer:?}") };
        assert!(reason.contains("the broker can't be asked now"), "{reason}");
    }
    assert_eq!((agent.controller().failures(), agent.applier().state().failures), (0, 0));
    assert!(!broker.drop_in().exists());
}

/// Lines that lie dormant since someone wrote them by hand are not what was asked for.
#[test]
fn setting_a_reloadable_option_never_restarts() {
    let broker = Broker::start("");
    let wants_nothing = |_: &View<'_>, _: &Envelope| Settings::UNWRITTEN;
    let held = "[decide]\nrestarts_per_hour_max = 0\n";
    let mut agent = Agent::start(site(&broker, held), Box::new(wants_nothing)).unwrap();
    until(&mut agent, "figures", |tick| matches!(tick.verdict, Verdict::Hold(_)));
    fs::write(broker.drop_in(), "set_tcp_nodelay true\n").unwrap();
    until(&mut agent, "hands off", |tick| matches!(tick.verdict, Verdict::HandsOff(_)));
    let stored = StateStore::in_dir(&broker.path("state")).load(&RealFiles).unwrap();
    assert_eq!(stored.last_decision, 1, "killed now, the next decision has a number of its own");
    assert!(agent.obey(&Order::Resume).done);
    assert!(agent.controller().dormant().contains(Knob::TcpNodelay));
    let answer = agent.set_knobs(asks(&[(Knob::AutosaveInterval, 300)]));
    assert!(matches!(answer, KnobsAnswer::Applied(_)), "{answer:?}");
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

/// Its connections stay open, and it answers nobody: seen within seconds, not a keep-alive later.
#[test]
fn a_broker_that_hangs_after_a_change_is_seen_at_once() {
    let broker = Broker::start("");
    let rules = "[decide]\ndwell_s = 0\nverify_window_s = 60\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
    eventually("the sampler's connection", || {
        agent.tick(Mode::Act);
        (agent.sampler().link() == Link::Up).then_some(())
    });
    let pid = Pid::from_raw(broker.pid());
    kill(pid, Signal::SIGSTOP).unwrap();
    let link = eventually("that to be seen", || {
        let tick = agent.tick(Mode::Act);
        (!tick.health.is_serving).then(|| agent.sampler().link())
    });
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(link, Link::Up, "not by the end of the connection");
}

/// The restart that fails and the one that undoes it disconnect the clients twice.
#[test]
fn a_refused_restart_counts_twice() {
    let broker = Broker::start("");
    let refused = |_: &View<'_>, _: &Envelope| {
        let mut wanted = Settings::UNWRITTEN;
        wanted.set(Knob::InflightMessagesMax, 4000).unwrap();
        wanted.set(Knob::QueuedMessagesMax, 8000).unwrap();
        wanted
    };
    let mut agent =
        Agent::start(site(&broker, "[decide]\ndwell_s = 0\n"), Box::new(refused)).unwrap();
    let tick = until(&mut agent, "a try", |tick| matches!(tick.verdict, Verdict::Failed(..)));
    assert_eq!(agent.controller().restarts_in_hour(tick.at), 2);
    assert_eq!(agent.applier().state().restarts_unix_s.len(), 2);
}

/// Nothing is lost on the agent's first settings, so that others are worth no second outage; where the
/// site wants them all the same, they are.
#[test]
fn a_broker_that_does_well_is_not_restarted_for_other_settings() {
    for (rules, is_restarted) in [("", false), ("restart_gain_min_percent = 0\n", true)] {
        let broker = Broker::start("");
        let rules = format!("[decide]\ndwell_s = 0\nverify_window_s = 1\n{rules}");
        let wished = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(WINDOW));
        let wish = std::sync::Arc::clone(&wished);
        let policy = move |view: &View<'_>, envelope: &Envelope| {
            let mut wanted = policy(view, envelope);
            let window = wish.load(std::sync::atomic::Ordering::Relaxed);
            wanted.set(Knob::InflightMessagesMax, window).unwrap();
            wanted
        };
        let mut agent = Agent::start(site(&broker, &rules), Box::new(policy)).unwrap();
        until(&mut agent, "a change", |tick| matches!(tick.verdict, Verdict::Changed(..)));
        let is_good = |agent: &mut Agent| {
            agent.tick(Mode::Act);
            let state = agent.applier().state();
            (state.good == state.written).then_some(())
        };
        eventually("its verification", || is_good(&mut agent));
        wished.store(4 * WINDOW, std::sync::atomic::Ordering::Relaxed);
        let tick = until(&mut agent, "an answer", |tick| {
            matches!(tick.verdict, Verdict::Changed(..) | Verdict::Hold(HoldReason::NotWorthIt))
        });
        assert_eq!(matches!(tick.verdict, Verdict::Changed(..)), is_restarted, "{tick:?}");
    }
}

/// Someone starts the broker with another main file: its CONNACK shows that nothing of the drop-in is
/// in force, whatever the file says.
#[test]
fn a_broker_that_was_started_without_the_drop_in_is_found_out() {
    let broker = Broker::start("");
    let rules = "[decide]\ndwell_s = 3600\nverify_window_s = 1\n";
    let mut agent = Agent::start(site(&broker, rules), Box::new(policy)).unwrap();
    let answer = agent
        .set_knobs(asks(&[(Knob::InflightMessagesMax, WINDOW), (Knob::QueuedMessagesMax, 5000)]));
    assert!(matches!(answer, KnobsAnswer::Scheduled { .. }), "{answer:?}");
    until(&mut agent, "the restart", |tick| matches!(tick.verdict, Verdict::Changed(..)));
    assert_eq!(agent.controller().effective().get(Knob::InflightMessagesMax).value(), Some(WINDOW));

    let main = fs::read_to_string(broker.path("mosquitto.conf")).unwrap();
    let without: Vec<&str> = main.lines().filter(|line| !line.starts_with("include_dir")).collect();
    fs::write(broker.path("other.conf"), without.join("\n")).unwrap();
    let script = fs::read_to_string(broker.path("start")).unwrap();
    fs::write(broker.path("start"), script.replace("mosquitto.conf", "other.conf")).unwrap();
    broker.live().restart().unwrap();
    eventually("what is in force", || {
        agent.tick(Mode::Act);
        (*agent.controller().effective() != *agent.controller().written()).then_some(())
    });
    assert!(agent.controller().effective().written().is_empty());
    let noted = agent.applier().state().effective.unwrap().settings;
    assert!(noted.written().is_empty(), "{noted:?}");
    assert!(agent.controller().dormant().contains(Knob::InflightMessagesMax));
}
