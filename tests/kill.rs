//! Agent and broker killed at random moments of applies: the broker starts every time afterwards,
//! with a whole drop-in, and the agent knows what was going on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use brokertuner_core::knobs::Apply;
use brokertuner_core::{KNOBS, Knob, KnobSet, Setting, Settings, render};
use brokertuner_edge::apply::Applier;
use brokertuner_edge::config::Config;
use brokertuner_edge::control::{Broker as _, ControlError};
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::pid;
use brokertuner_edge::ready;
use brokertuner_edge::site::{Environment, Site};
use brokertuner_host::broker::{BrokerProcess, SpawnConfig};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use tempfile::TempDir;

use crate::support::edge::EdgeConfig;
use crate::support::mqtt::{Client, Level};
use crate::support::{PATIENCE, broker_with, wait_for};

/// An apply takes 0.2 to 0.5 s here, its writing a millisecond or so: moments are drawn evenly over
/// these orders of magnitude.
const MOMENTS_S: (f64, f64) = (50e-6, 0.6);
/// The longest apply: a broker that its supervisor has given up is waited for, then restarted.
const APPLY_MAX: Duration = Duration::from_secs(60);
/// A broker that is not back by then was given up by its supervisor, after five bad ends in 10 s.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(5);
/// Rounds that run at once, each with a broker of its own: most of a round is waiting.
const LANES: u64 = 4;

/// Who is killed, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victims {
    Agent,
    AgentThenBroker,
    BrokerThenAgent,
    Broker,
}

/// A round's plan, drawn from its seed.
#[derive(Debug, Clone, Copy)]
struct Plan {
    victims: Victims,
    /// The change that is waited for, counted from 1; 0: the start of the agent.
    change: usize,
    /// Time of the first kill after that.
    moment: Duration,
    /// Time between the kills.
    gap: Duration,
    /// When the agent that follows is killed too, as it may still be recovering.
    again: Option<Duration>,
    /// Whether what an agent has started dies with it, as in a control group.
    with_children: bool,
    /// Whether the last agent starts only when the broker is there.
    waits: bool,
    seed: u64,
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let victims = match rng.random_range(0..9) {
            0..6 => Victims::Agent,
            6 => Victims::AgentThenBroker,
            7 => Victims::BrokerThenAgent,
            _ => Victims::Broker,
        };
        let change = rng.random_range(0..=3);
        let mut moment = || {
            let (min_s, max_s) = MOMENTS_S;
            Duration::from_secs_f64(min_s * (max_s / min_s).powf(rng.random()))
        };
        let (first, gap, again) = (moment(), moment() / 10, moment());
        let again = (rng.random_range(0..3) == 0).then_some(again);
        let (with_children, waits) = (rng.random(), rng.random());
        Self { victims, change, moment: first, gap, again, with_children, waits, seed }
    }
}

/// The `apply-loop` program and all that it has said.
struct Agent {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Agent {
    fn start(config: &Path, seed: u64, log: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_apply-loop"))
            .arg(config)
            .arg(seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (heard, lines) = mpsc::channel();
        thread::spawn(move || out.lines().try_for_each(|line| heard.send(line.unwrap())));
        Self { child, lines, said: Vec::new() }
    }

    fn wait_for_change(&mut self, change: usize) {
        while self.said.iter().filter(|line| line.starts_with("begin ")).count() < change {
            let line = self.lines.recv_timeout(PATIENCE);
            self.said.push(line.unwrap_or_else(|error| panic!("{error} after {:#?}", self.said)));
        }
    }

    /// All that was said so far.
    fn hear(&mut self) -> &[String] {
        self.said.extend(self.lines.try_iter());
        &self.said
    }

    fn kill(&mut self, with_children: bool) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let killed = if with_children { killpg } else { kill }(pid, Signal::SIGKILL);
        killed.unwrap();
        self.child.wait().unwrap();
        self.said.extend(self.lines.iter());
    }

    /// Lets the change under way come to its end.
    fn stop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + APPLY_MAX;
        let end = loop {
            if let Some(end) = self.child.try_wait().unwrap() {
                break end;
            }
            assert!(Instant::now() < deadline, "an apply does not end: {}", self.hear().join("\n"));
            thread::sleep(Duration::from_millis(2));
        };
        self.said.extend(self.lines.iter());
        assert!(end.success(), "the agent ended with {end} after {:#?}", self.said);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the rounds met.
#[derive(Debug, Default)]
struct Tally {
    rounds: u32,
    victims: BTreeMap<Victims, u32>,
    /// Agents that died with a change under way.
    midway: u32,
    recoveries: BTreeMap<String, u32>,
    recovery_max: Duration,
    /// Brokers that their supervisor had given up.
    given_up: u32,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.rounds += other.rounds;
        self.midway += other.midway;
        self.given_up += other.given_up;
        self.recovery_max = self.recovery_max.max(other.recovery_max);
        for (victims, count) in other.victims {
            *self.victims.entry(victims).or_default() += count;
        }
        for (recovery, count) in other.recoveries {
            *self.recoveries.entry(recovery).or_default() += count;
        }
    }
}

/// One broker through all rounds of a lane.
struct Lane {
    version: &'static str,
    broker: BrokerProcess,
    dir: TempDir,
    config: PathBuf,
    site: Site,
    /// What the drop-in said after the last round.
    settled: Option<Settings>,
    tally: Tally,
}

impl Lane {
    /// With persistence a restart begins with a save, without it with the writing.
    fn new(version: &'static str, persistence: bool) -> Self {
        let spawn = SpawnConfig { persistence, supervised: true, ..SpawnConfig::default() };
        let broker = broker_with(version, &spawn);
        let dir = TempDir::new().unwrap();
        let mut config = EdgeConfig::of(&broker, dir.path());
        for spec in &KNOBS {
            let _ = write!(config.extra, "[knobs.{}]\ntune = \"yes\"\n", spec.key);
        }
        let config = config.write(dir.path());
        let site = Site::look(&Config::load(&config).unwrap(), &Environment::default()).unwrap();
        Self { version, broker, dir, config, site, settled: None, tally: Tally::default() }
    }

    fn round(&mut self, plan: Plan) {
        let log = self.dir.path().join("agent.log");
        let mut agent = Agent::start(&self.config, plan.seed, &log);
        self.strike(&plan, &mut agent);
        let mut said = std::mem::take(&mut agent.said);
        if let Some(moment) = plan.again {
            let mut next = Agent::start(&self.config, !plan.seed, &log);
            thread::sleep(moment);
            next.kill(plan.with_children);
            said.append(&mut next.said);
        }
        let context =
            format!("Mosquitto {}, {plan:?}\n{}\n{}", self.version, said.join("\n"), read(&log));

        // Where the restart command died before its signal, nobody is to find its note later.
        let command = self.broker.restart_command().expect("a supervised broker");
        let _ = fs::remove_file(command.with_file_name("restart-request"));
        self.assert_whole(&said, &context);
        if plan.waits {
            self.wait_for_broker(&context);
        }
        let mut applier = self.recover(&context);
        let written = applier.written().unwrap();
        assert_eq!(self.assert_whole(&said, &context), written, "{context}");
        self.wait_for_broker(&context);
        self.assert_effective(&mut applier, &context);

        let before = self.broker.pid();
        let restart = self.broker.restart().unwrap_or_else(|error| panic!("{context}\n{error}"));
        assert_ne!(restart.pid, before, "{context}");
        self.assert_effective(&mut applier, &context);
        let effective = applier.state().effective.unwrap().settings;
        assert_eq!(effective, written.unwrap_or_default(), "{context}: after a restart");
        self.settled = written;
        self.tally.rounds += 1;
        *self.tally.victims.entry(plan.victims).or_default() += 1;
    }

    fn strike(&self, plan: &Plan, agent: &mut Agent) {
        agent.wait_for_change(plan.change);
        // No waits for anything: the moments of death are what is varied.
        thread::sleep(plan.moment);
        match plan.victims {
            Victims::Agent => agent.kill(plan.with_children),
            Victims::AgentThenBroker => {
                agent.kill(plan.with_children);
                thread::sleep(plan.gap);
                self.kill_broker();
            }
            Victims::BrokerThenAgent => {
                self.kill_broker();
                thread::sleep(plan.gap);
                agent.kill(plan.with_children);
            }
            Victims::Broker => {
                self.kill_broker();
                thread::sleep(plan.gap);
                agent.stop();
            }
        }
    }

    fn kill_broker(&self) {
        let pid = i32::try_from(self.broker.pid()).unwrap();
        // In the middle of a restart there may be none.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        wait_for("the broker's death", || matches!(pid::alive(pid), Ok(None)).then_some(()));
    }

    /// What an announcement may have left in the drop-in: it, or what was there before it.
    fn announced<'a>(&self, said: &'a [String]) -> impl Iterator<Item = Option<Settings>> + 'a {
        let begun = said.iter().filter_map(|line| line.strip_prefix("begin "));
        let texts = begun.map(|line| line.split_once(' ').expect("how, then what").1);
        let settings = texts.map(|text| match text {
            "-" => None,
            text => Some(render::parse(&text.replace('|', "\n")).unwrap()),
        });
        [self.settled].into_iter().chain(settings)
    }

    /// The drop-in as the next start of the broker finds it: what someone meant to write, and
    /// nothing beside it.
    fn assert_whole(&self, said: &[String], context: &str) -> Option<Settings> {
        let found = self.parse_drop_in(context);
        let is_known = self.announced(said).any(|announced| is_on_the_way(found, announced));
        assert!(is_known, "{context}\nnobody meant to write {found:?}");
        for entry in fs::read_dir(self.include_dir()).unwrap() {
            let path = entry.unwrap().path();
            let is_loaded = path.extension().is_some_and(|extension| extension == "conf");
            assert!(!is_loaded || path == self.broker.dropin_path(), "{context}\n{path:?}");
        }
        found
    }

    fn include_dir(&self) -> &Path {
        self.broker.dropin_path().parent().unwrap()
    }

    /// What the drop-in says; whole to the last byte, or absent.
    fn parse_drop_in(&self, context: &str) -> Option<Settings> {
        if !self.broker.dropin_path().exists() {
            return None;
        }
        let text = fs::read_to_string(self.broker.dropin_path()).unwrap();
        let settings = render::parse(&text);
        let settings = settings.unwrap_or_else(|error| panic!("{context}\n{error} in\n{text}"));
        assert_eq!(render::render(&settings).as_str(), text, "{context}");
        Some(settings)
    }

    /// A fresh agent ends what was cut short.
    fn recover(&mut self, context: &str) -> Applier {
        let (files, broker) = (Box::new(RealFiles), Box::new(self.site.broker.clone()));
        let (applier, damage) = Applier::open(files, broker, self.site.paths.clone()).unwrap();
        assert!(damage.is_none(), "{context}\n{damage:?}");
        let mut applier = applier.with_ready_timeout(self.site.ready_timeout);
        let intent = applier.state().intent;
        self.tally.midway += u32::from(intent.is_some());
        let began = Instant::now();
        let recovery = applier.recover();
        let recovery = recovery.unwrap_or_else(|e| panic!("{context}\n{intent:?}\n{e}"));
        self.tally.recovery_max = self.tally.recovery_max.max(began.elapsed());
        let name = format!("{recovery:?}");
        let name = name.split('(').next().unwrap_or_default().to_owned();
        *self.tally.recoveries.entry(name).or_default() += 1;
        assert_eq!(applier.state().intent, None, "{context}\n{recovery:?}");
        applier.check_ours().unwrap_or_else(|e| panic!("{context}\n{recovery:?}: {e}"));
        let left = fs::read_dir(self.include_dir()).unwrap().count();
        let expected = usize::from(self.broker.dropin_path().exists());
        assert_eq!(left, expected, "{context}\nsomething stays in the include directory");
        applier
    }

    /// As after a start of the agent: what it believes to be in force is what a client is told.
    fn assert_effective(&self, applier: &mut Applier, context: &str) {
        let ready = ready::wait(applier.broker(), None, PATIENCE);
        let ready = ready.unwrap_or_else(|missing| panic!("{context}\n{missing}"));
        assert_eq!(u32::try_from(ready.process.pid).unwrap(), self.broker.pid(), "{context}");
        applier.observe(ready, KnobSet::all()).unwrap();
        let effective = applier.state().effective.unwrap();
        assert_eq!(effective.process, ready.process, "{context}");
        // A restart that a child of the dead agent has asked for may come between.
        let client = || Client::open(self.broker.addr(), Level::V5, "limits", true).ok();
        let told = wait_for("the broker's limits", client).limits;
        let believed = |knob| effective.settings.effective(knob, &self.site.envelope.site);
        let window = told.receive_maximum.map_or(0, u64::from);
        assert_eq!(believed(Knob::InflightMessagesMax), window, "{context}\n{effective:?}");
        let packet_bytes = told.packet_bytes_max.map_or(0, u64::from);
        assert_eq!(believed(Knob::PacketSizeMax), packet_bytes, "{context}\n{effective:?}");
    }

    /// The supervisor starts a broker that was killed, and gives up one that ends too often: then a
    /// person starts it.
    fn wait_for_broker(&mut self, context: &str) {
        let deadline = Instant::now() + GIVEN_UP_AFTER;
        while Client::open(self.broker.addr(), Level::V5, "up", true).is_err() {
            if Instant::now() >= deadline {
                self.tally.given_up += 1;
                self.broker.restart().unwrap_or_else(|error| panic!("{context}\n{error}"));
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// No start of the broker ever read anything but its own files and the drop-in.
    fn assert_loaded_only_ours(&self) {
        let log = read(self.broker.log_path())
            + &read(&self.broker.log_path().with_file_name("output.log"));
        let loaded = log.lines().filter_map(|line| line.split_once("Loading config file "));
        let expected = self.broker.dropin_path().display().to_string();
        for (_, path) in loaded {
            assert_eq!(path, expected);
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether `found` is `announced`, or lies on the way to or from it: options that are given up are
/// set to the site's values first, as a reload does not undo a line that is gone.
fn is_on_the_way(found: Option<Settings>, announced: Option<Settings>) -> bool {
    let (text, announced) = (found.unwrap_or_default(), announced.unwrap_or_default());
    text.differing(&announced).iter().all(|knob| {
        let spec = knob.spec();
        spec.apply == Apply::Reload
            && announced.get(knob) == Setting::Unwritten
            && text.get(knob).value() == Some(spec.default)
    })
}

/// Kills in `rounds` rounds, spread over `lanes` brokers of a version.
fn kill_in_rounds(version: &'static str, seed: u64, lanes: u64, rounds: u64) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::default();
    let run = |lane: u64| {
        let mut broker = Lane::new(version, lane.is_multiple_of(2));
        for round in (0..rounds).filter(|round| round % lanes == lane) {
            broker.round(Plan::draw(seed + round));
        }
        broker.assert_loaded_only_ours();
        broker.tally
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|lane| scope.spawn(move || run(lane))).collect();
        for lane in lanes {
            match lane.join() {
                Ok(found) => tally.add(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    println!("Mosquitto {version}, seeds from {seed}: {tally:?} in {:?}", began.elapsed());
    assert_eq!(u64::from(tally.rounds), rounds);
    assert!(u64::from(tally.midway) * 8 >= rounds, "badly chosen moments: {tally:?}");
    tally
}

#[test]
fn killed_at_random_moments_the_newer_broker_starts_with_a_whole_file() {
    kill_in_rounds("2.0.21", 1_000, LANES, 200);
}

#[test]
fn killed_at_random_moments_the_older_broker_starts_with_a_whole_file() {
    kill_in_rounds("2.0.11", 2_000, 2, 20);
}

#[test]
fn a_save_is_not_waited_for_longer_than_the_broker_lives() {
    let lane = Lane::new("2.0.21", true);
    let broker = &lane.site.broker;
    let process = broker.process().unwrap();
    let pid = Pid::from_raw(process.pid);
    // It takes the request and does nothing about it.
    kill(pid, Signal::SIGSTOP).unwrap();
    let database = lane.site.paths.database.as_deref().unwrap();
    let saved = thread::scope(|scope| {
        let saving = scope.spawn(|| broker.save(process, database));
        thread::sleep(Duration::from_millis(100));
        kill(pid, Signal::SIGKILL).unwrap();
        saving.join().unwrap()
    });
    assert!(matches!(saved, Err(ControlError::Gone { .. })), "{saved:?}");
}
