//! Open-loop MQTT load on a broker, and what became of every message.
//!
//! [`LoadGenerator::start`] spawns one thread that plays a [`Scenario`] to its end, through broker
//! restarts, with its own MQTT client so that nothing but the schedule decides when a message is
//! due. [`LoadGenerator::window`] gives the score of the last moments while it runs,
//! [`LoadGenerator::join`] the result. The score itself is in [`score`].

pub mod capacity;
pub mod codec;
pub mod schedule;
pub mod score;

mod awake;
mod client;
mod engine;
mod lag;
mod outage;
mod payload;
mod publisher;
mod result;
mod timeline;
pub(crate) use timeline::same_subscriber;
mod track;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub use capacity::capacity;
pub use result::{GroupResult, LoadResult, PhaseResult, RESULT_VERSION, SecondResult};

use crate::scenario::Scenario;
use awake::Awake;
use engine::Engine;
use score::{GroupCounts, MemorySeconds, PhaseCounts, SecondCounts, Tally};

const NANOS_PER_S: u64 = 1_000_000_000;
/// Wall-clock seconds of memory samples that a window may still need: the longest deadline and a
/// margin.
const MEMORY_KEPT_S: i64 = 700;
/// File descriptors that are not the load's.
const FILES_SPARE: u64 = 64;

/// What to play, and how.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// The load.
    pub scenario: Arc<Scenario>,
    /// The broker's listener.
    pub addr: SocketAddr,
    /// Decides payload sizes.
    pub seed: u64,
    /// Unscored time on the groups of the first phase, without `offline`, before the scored part;
    /// whole seconds, rounded up.
    pub lead_in: Option<Duration>,
    /// The broker's capacity, for scenarios with `rate_x_capacity`: see [`capacity()`].
    pub capacity_msgs_per_s: Option<f64>,
    /// Start again with the first phase after the last, until stopped; the result has the last 16
    /// runs of phases.
    pub repeat: bool,
    /// Cores that the generator's thread may use.
    pub pin_cores: Option<Vec<usize>>,
    /// How long the clients of the first phase have to connect and subscribe.
    pub start_timeout: Duration,
}

impl LoadConfig {
    /// The scenario once, without lead-in, on any core, with seed 1; 20 s to connect.
    #[must_use]
    pub fn new(scenario: impl Into<Arc<Scenario>>, addr: SocketAddr) -> Self {
        Self {
            scenario: scenario.into(),
            addr,
            seed: 1,
            lead_in: None,
            capacity_msgs_per_s: None,
            repeat: false,
            pin_cores: None,
            start_timeout: Duration::from_secs(20),
        }
    }
}

/// Why a load could not be played.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The scenario has rates relative to a capacity that was not given.
    #[error(
        "scenario {scenario:?} has rate_x_capacity: measure the broker's capacity first and pass it"
    )]
    CapacityNeeded {
        /// Its name.
        scenario: String,
    },
    /// More connections than the system allows this process.
    #[error(
        "{clients} clients need more open files than the {limit} that this process may have: raise `ulimit -Hn`"
    )]
    TooManyClients {
        /// Connections at the busiest moment.
        clients: u64,
        /// Hard limit of open files.
        limit: u64,
    },
    /// Not all clients of the first phase were ready in time.
    #[error(
        "{missing} of {wanted} clients are not connected to {addr} after {timeout_s} s; last problem: {reason}"
    )]
    NotConnected {
        /// The broker.
        addr: SocketAddr,
        /// Clients that are not ready.
        missing: usize,
        /// Clients of the phase.
        wanted: usize,
        /// The time they had.
        timeout_s: u64,
        /// The last problem of any of them.
        reason: String,
    },
    /// The system refused something that the generator needs.
    #[error("load generator: {what}: {source}")]
    System {
        /// What it was doing.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Ctrl-C, or another signal that asks this process to end.
    #[error("interrupted")]
    Interrupted,
    /// The generator's thread ended by a panic: a bug in this program.
    #[error("load generator: its thread panicked, which is a bug")]
    Panicked,
    /// The capacity could not be measured.
    #[error("capacity: not even {msgs_per_s:.0} messages/s pass with less than 1 % loss")]
    NoCapacity {
        /// The lowest rate tried.
        msgs_per_s: f64,
    },
}

impl LoadError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Where the load stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The clients of the first phase are not all connected, or the first message is not due.
    Connecting,
    /// Unscored.
    LeadIn,
    /// In a phase of the scored part.
    Phase {
        /// Index in the scenario.
        index: usize,
    },
    /// After the last message, while deadlines run.
    Draining,
    /// Nothing more happens.
    Ended,
}

/// The score of the messages whose deadline expired since the last look, in whole seconds of
/// intended send.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// As [`score::run_score`], each phase weighted by its seconds in the window; `None` where no
    /// second closed or all were void.
    pub score: Option<f64>,
    /// Sums over the window; losses without looking for outages.
    pub tally: Tally,
    /// Seconds that closed, times groups.
    pub seconds: u64,
    /// Of them void.
    pub seconds_void: u64,
    /// First deliveries per second since the last look.
    pub delivered_per_s: f64,
    /// The longest time from intended send to first delivery since the last look, to 50 ms; `None`
    /// without deliveries.
    pub latency_us_max: Option<u64>,
    /// Clients that are connected and subscribed now.
    pub clients_connected: usize,
    /// Clients that should be, scheduled absences included.
    pub clients_wanted: usize,
    /// Lag of the generator's sends so far.
    pub generator_lag_us_p99: u64,
}

/// A load being played by its own thread. Dropping it stops and joins the thread.
#[derive(Debug)]
pub struct LoadGenerator {
    shared: Arc<Shared>,
    waker: mio::Waker,
    clock: RunClock,
    thread: Option<JoinHandle<Result<LoadResult, LoadError>>>,
}

impl LoadGenerator {
    /// Connects the clients of the first phase and starts to play; returns once all of them are
    /// ready.
    ///
    /// # Errors
    /// [`LoadError`]: a missing capacity, too many clients, clients that are not ready in time, or
    /// the system.
    pub fn start(config: LoadConfig) -> Result<Self, LoadError> {
        if config.scenario.needs_capacity() && config.capacity_msgs_per_s.is_none() {
            return Err(LoadError::CapacityNeeded { scenario: config.scenario.name.clone() });
        }
        allow_clients(&config.scenario)?;
        let shared = Arc::new(Shared::new(config.scenario.rss_limit_bytes));
        let poll = mio::Poll::new().map_err(LoadError::system("epoll"))?;
        let waker = mio::Waker::new(poll.registry(), engine::WAKER)
            .map_err(LoadError::system("eventfd"))?;
        let (sender, started) = mpsc::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || play(config, for_thread, poll, sender))
            .map_err(LoadError::system("thread"))?;
        let clock = match started.recv() {
            Ok(Ok(clock)) => clock,
            Ok(Err(error)) => {
                let _ = thread.join(); // it has told its error
                return Err(error);
            }
            // The thread ended before it told anything: its result says why.
            Err(mpsc::RecvError) => return Err(ended(thread).err().unwrap_or(LoadError::Panicked)),
        };
        Ok(Self { shared, waker, clock, thread: Some(thread) })
    }

    /// When the scored part begins; publishers have empty buffers then.
    #[must_use]
    pub fn scored_start(&self) -> Instant {
        self.clock.origin + Duration::from_nanos(self.clock.scored_ns)
    }

    /// Where the load stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.shared.handover().stage
    }

    /// Whether the thread still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Tells the broker's resident memory (VmRSS) at an instant; wanted every 100 ms, lead-in
    /// included.
    pub fn rss_sample(&self, at: Instant, rss_bytes: u64) {
        let second = self.clock.second_of(at);
        self.shared.handover().memory.push(second, rss_bytes);
    }

    /// The score of the seconds whose deadlines expired since the last call, lead-in included. Give
    /// memory samples first.
    pub fn window(&self) -> Window {
        let now = Instant::now();
        let mut handover = self.shared.handover();
        let elapsed = now.saturating_duration_since(handover.looked_at);
        let closed: Vec<ClosedSecond> = handover.closed.drain(..).collect();
        if handover.repeat {
            handover.memory.forget_before(self.clock.second_of(now) - MEMORY_KEPT_S);
        }
        let delivered = std::mem::take(&mut handover.delivered);
        handover.looked_at = now;
        let mut tally = Tally::default();
        closed.iter().for_each(|second| tally.add(&second.counts, &handover.memory));
        Window {
            score: window_score(&closed, &handover.weights, &handover.memory),
            tally,
            seconds: closed.len() as u64,
            seconds_void: closed.iter().filter(|second| second.counts.void).count() as u64,
            delivered_per_s: delivered as f64 / elapsed.as_secs_f64().max(1e-3),
            latency_us_max: handover.latency_us_max.take(),
            clients_connected: handover.clients_connected,
            clients_wanted: handover.clients_wanted,
            generator_lag_us_p99: handover.generator_lag_us_p99,
        }
    }

    /// Asks the thread to end: the clients disconnect, and the result has the seconds that are
    /// over.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.waker.wake(); // without it the loop looks within 50 ms
    }

    /// Waits for the end of the scenario, or of a stopped run, and returns the result.
    ///
    /// # Errors
    /// [`LoadError::System`] where the generator could not go on; [`LoadError::Panicked`].
    pub fn join(mut self) -> Result<LoadResult, LoadError> {
        self.thread.take().map_or(Err(LoadError::Panicked), ended)
    }
}

impl Drop for LoadGenerator {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop();
            let _ = thread.join(); // nobody asks for its result
        }
    }
}

fn ended(thread: JoinHandle<Result<LoadResult, LoadError>>) -> Result<LoadResult, LoadError> {
    thread.join().unwrap_or(Err(LoadError::Panicked))
}

/// The thread: from the first connection to the result.
fn play(
    config: LoadConfig,
    shared: Arc<Shared>,
    poll: mio::Poll,
    started: mpsc::Sender<Result<RunClock, LoadError>>,
) -> Result<LoadResult, LoadError> {
    if let Some(cores) = &config.pin_cores {
        pin(cores).map_err(LoadError::system("pin to cores"))?;
    }
    let _awake = Awake::hold()
        .inspect_err(|error| tracing::debug!(%error, "The processors may sleep between messages."));
    {
        let mut handover = shared.handover();
        handover.repeat = config.repeat;
        let weights = |phase: &crate::scenario::Phase| {
            phase.subscribe.iter().map(|group| group.weight).collect()
        };
        handover.weights = config.scenario.phases.iter().map(weights).collect();
    }
    let mut engine = Engine::new(config, shared, poll, run_nonce(), started)
        .map_err(LoadError::system("timer"))?;
    engine.run().map_err(LoadError::system("event loop"))?;
    Ok(result::result(engine))
}

fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}

/// Tells this run's messages and client ids from those of any other on the same broker; not a
/// random choice of the load.
fn run_nonce() -> u32 {
    let now_ns = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos);
    let mixed = payload::mix(now_ns ^ u64::from(std::process::id()) << 40);
    u32::try_from(mixed >> 32).unwrap_or(0)
}

/// Raises the limit of open files as far as the scenario needs.
fn allow_clients(scenario: &Scenario) -> Result<(), LoadError> {
    let count = |phase: &crate::scenario::Phase| {
        let publishers: u64 = phase.publish.iter().map(|group| u64::from(group.clients)).sum();
        let subscribers: u64 = phase.subscribe.iter().map(|group| u64::from(group.clients)).sum();
        (publishers, subscribers)
    };
    let counts: Vec<(u64, u64)> = scenario.phases.iter().map(count).collect();
    let of =
        |i: usize| counts.get(i).map_or(0, |(publishers, subscribers)| publishers + subscribers);
    // Where phases meet, both phases' clients are connected.
    let clients = (0..counts.len()).map(|i| of(i) + of(i + 1)).max().unwrap_or(0);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|e| LoadError::system("open files")(e.into()))?;
    let wanted = clients + FILES_SPARE;
    let publishers_max = counts.iter().map(|(publishers, _)| *publishers).max().unwrap_or(0);
    if wanted > hard || publishers_max > u64::from(payload::PUBLISHERS_MAX) {
        return Err(LoadError::TooManyClients { clients, limit: hard });
    }
    if wanted > soft {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|e| LoadError::system("open files")(e.into()))?;
    }
    Ok(())
}

/// Score over closed seconds of any phases.
fn window_score(
    closed: &[ClosedSecond],
    weights: &[Vec<f64>],
    memory: &MemorySeconds,
) -> Option<f64> {
    let mut runs: BTreeMap<u16, BTreeMap<(usize, usize), Vec<SecondCounts>>> = BTreeMap::new();
    for second in closed {
        let groups = runs.entry(second.number).or_default();
        groups.entry((second.phase, second.group)).or_default().push(second.counts.clone());
    }
    let phases: Vec<PhaseCounts<'_>> = runs
        .values()
        .map(|groups| PhaseCounts {
            weight: groups.values().map(Vec::len).max().unwrap_or(0) as f64,
            groups: groups
                .iter()
                .map(|((phase, group), seconds)| {
                    let weight = weights
                        .get(*phase)
                        .and_then(|groups| groups.get(*group))
                        .copied()
                        .unwrap_or(1.0);
                    GroupCounts { weight, seconds }
                })
                .collect(),
        })
        .collect();
    score::run_score(&phases, memory)
}

/// What thread and caller share.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    handover: Mutex<Handover>,
}

/// Written by the thread every 50 ms, read by the caller; memory samples go the other way.
#[derive(Debug)]
struct Handover {
    stage: Stage,
    clients_connected: usize,
    clients_wanted: usize,
    /// Since the caller's last look, as the next two.
    delivered: u64,
    latency_us_max: Option<u64>,
    looked_at: Instant,
    generator_lag_us_p99: u64,
    closed: VecDeque<ClosedSecond>,
    memory: MemorySeconds,
    repeat: bool,
    /// Of the subscribe groups, by phase.
    weights: Vec<Vec<f64>>,
}

/// A second of one subscribe group in which all deadlines are over.
#[derive(Debug)]
struct ClosedSecond {
    number: u16,
    phase: usize,
    group: usize,
    counts: SecondCounts,
}

impl Shared {
    fn new(rss_limit_bytes: u64) -> Self {
        let handover = Handover {
            stage: Stage::Connecting,
            clients_connected: 0,
            clients_wanted: 0,
            delivered: 0,
            latency_us_max: None,
            looked_at: Instant::now(),
            generator_lag_us_p99: 0,
            closed: VecDeque::new(),
            memory: MemorySeconds::new(rss_limit_bytes),
            repeat: false,
            weights: Vec::new(),
        };
        Self { stop: AtomicBool::new(false), handover: Mutex::new(handover) }
    }

    /// The lock; counts stay usable after a panic elsewhere.
    fn handover(&self) -> MutexGuard<'_, Handover> {
        self.handover.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nanoseconds since the generator's thread began, and where in them the scored part starts.
#[derive(Debug, Clone, Copy)]
struct RunClock {
    origin: Instant,
    scored_ns: u64,
}

impl RunClock {
    fn start() -> Self {
        Self { origin: Instant::now(), scored_ns: 0 }
    }

    fn now_ns(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    /// Wall-clock second, from the start of the scored part; negative before it.
    fn second(&self, at_ns: u64) -> i64 {
        (at_ns.cast_signed() - self.scored_ns.cast_signed()).div_euclid(NANOS_PER_S.cast_signed())
    }

    /// The first instant after a second of [`RunClock::second`]; 0 for one before the run.
    fn second_end_ns(&self, second: i64) -> u64 {
        let from_scored_ns = second.saturating_add(1).saturating_mul(NANOS_PER_S.cast_signed());
        self.scored_ns.saturating_add_signed(from_scored_ns)
    }

    fn second_of(&self, at: Instant) -> i64 {
        self.second(nanos(at.saturating_duration_since(self.origin)))
    }
}

/// A duration in nanoseconds; 584 years fit.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds in nanoseconds, rounded; negative and NaN are 0.
#[allow(clippy::cast_possible_truncation, reason = "saturates, which is meant")]
fn nanos_from_s(seconds: f64) -> u64 {
    (seconds * NANOS_PER_S as f64).round() as u64
}
