//! Sampling a broker: `$SYS`, `/proc` and a latency probe, put together into core's [`Sample`].
//!
//! The connection lives in a thread of its own and stays subscribed: Mosquitto publishes only what
//! changed, and 2.0.11 forgets values after 60 s. Silence therefore means "unchanged".

mod latency;
mod link;
mod probe;
mod process;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration as StdDuration;

use brokertuner_core::sample::{OwnTraffic, Sample, SysTree, Version};
use brokertuner_core::{Duration, Instant};
use tokio::sync::watch;

pub use latency::Latency;
pub use link::Link;
pub(crate) use process::with_stat;
pub use process::{Stat, figures, read as read_process};

use crate::connack::Credentials;
use crate::mqtt::{Protocol, ProtocolChoice};
use crate::pid::{PidError, PidFinder, ProcessId};
use crate::tls::Tls;
use probe::Probes;

/// A monotonic clock; tests bring their own.
pub type Clock = fn() -> Instant;

/// After this long with a granted subscription and not one message, `$SYS` is said to be absent:
/// retained values come at once where there are any.
const SILENCE: Duration = Duration::from_secs(5);

/// How to sample.
#[derive(Debug, Clone)]
pub struct SamplerOptions {
    /// Where the broker listens.
    pub address: SocketAddr,
    /// Client identifier; unique on the broker.
    pub client_id: String,
    /// User and password, where the broker asks for them.
    pub credentials: Option<Credentials>,
    /// How to connect by TLS; `None`: plainly.
    pub tls: Option<Tls>,
    /// Which version of MQTT to speak.
    pub mqtt: ProtocolChoice,
    /// How often a pair of probes goes through the broker; `None`: never.
    pub probe_interval: Option<StdDuration>,
    /// The clock that stamps every update.
    pub clock: Clock,
}

/// Mosquitto 2.0.11 forgets an unchanged `$SYS` value after this time.
const SYS_EXPIRY: Duration = Duration::from_secs(60);
/// Topics of `$SYS` that are remembered; there are 53 to 56.
const SYS_TOPICS_MAX: usize = 256;

/// What becomes of `$SYS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysStatus {
    /// Not connected, or not subscribed for long enough to tell.
    Unknown,
    /// Values come.
    Flowing,
    /// The broker refused the subscription.
    Refused,
    /// The subscription was granted, and nothing comes.
    Silent,
}

impl SysStatus {
    /// The state in words that say what to do; `None` where all is well.
    #[must_use]
    pub fn complaint(self) -> Option<&'static str> {
        match self {
            Self::Unknown | Self::Flowing => None,
            Self::Refused => Some(
                "the broker refuses the subscription to $SYS/#; grant this user `topic read $SYS/#`",
            ),
            Self::Silent => Some(
                "subscribed to $SYS/#, but nothing comes: either an ACL denies $SYS to this user (grant `topic read $SYS/#`), or sys_interval is 0 (set it to 10 or so)",
            ),
        }
    }
}

/// What the connection's thread and the sampler share.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    tree: SysTree,
    own: OwnTraffic,
    /// The same as of the last message of `$SYS`: what its counters hold of it.
    own_then: OwnTraffic,
    link: Link,
    /// The version that is spoken, or was last.
    protocol: Option<Protocol>,
    /// When the subscription was granted, and whether for `$SYS` and for the probe's topic.
    subscribed: Option<(Instant, bool, bool)>,
    /// When a message last came on this connection.
    heard: Option<Instant>,
    /// Anything of `$SYS` came on this connection.
    is_flowing: bool,
    /// When each topic of `$SYS` was last published on this connection.
    sys_topics: BTreeMap<String, Instant>,
    /// Payloads that were not what their topic promises, since the start.
    malformed: u64,
    probes: Probes,
}

impl Shared {
    /// A new connection starts from nothing: the broker may be another one.
    fn disconnected(&mut self, reason: String) {
        self.tree.clear();
        self.own = OwnTraffic::default();
        self.own_then = OwnTraffic::default();
        self.subscribed = None;
        self.heard = None;
        self.is_flowing = false;
        self.sys_topics.clear();
        self.probes.clear();
        self.link = Link::Lost(reason);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Plain values, written whole: those of a panicked thread are as good as any.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Samples one broker until it is dropped.
#[derive(Debug)]
pub struct Sampler {
    shared: Arc<Mutex<Shared>>,
    stop: watch::Sender<bool>,
    finder: PidFinder,
    process: Option<ProcessId>,
    hidden: Option<String>,
    clock: Clock,
}

impl Sampler {
    /// Starts the connection's thread; a broker that is not there yet is waited for.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(options: SamplerOptions, finder: PidFinder) -> std::io::Result<Self> {
        let clock = options.clock;
        let shared = Arc::new(Mutex::new(Shared {
            clock,
            tree: SysTree::default(),
            own: OwnTraffic::default(),
            own_then: OwnTraffic::default(),
            link: Link::Connecting,
            protocol: None,
            subscribed: None,
            heard: None,
            is_flowing: false,
            sys_topics: BTreeMap::new(),
            malformed: 0,
            probes: Probes::default(),
        }));
        let (stop, stopped) = watch::channel(false);
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("sampler".into())
            .spawn(move || link::run(&options, &theirs, stopped))?;
        Ok(Self { shared, stop, finder, process: None, hidden: None, clock })
    }

    /// What is known now; never waits for the broker.
    pub fn sample(&mut self) -> Sample {
        let proc = self.find_process().ok().and_then(|process| self.finder.read(process).ok());
        let at = (self.clock)();
        let mut shared = lock(&self.shared);
        let OwnTraffic { connections, subscriptions, .. } = shared.own;
        Sample {
            at,
            sys: shared.tree.frame(at),
            proc,
            probe: shared.probes.take(at),
            own: OwnTraffic { connections, subscriptions, ..shared.own_then },
        }
    }

    /// The broker's process, looked for again only when the known one has gone.
    ///
    /// # Errors
    /// [`PidError`].
    pub fn find_process(&mut self) -> Result<ProcessId, PidError> {
        let found = match self.process {
            Some(known) => self.finder.still(known),
            None => self.finder.find(),
        };
        self.process = found.as_ref().ok().copied();
        // One that is gone while its broker is heard is not the broker's, whatever names it.
        let is_heard = self.link() == Link::Up;
        let unknown = found.as_ref().err().filter(|error| is_heard || error.is_hidden());
        self.hidden = unknown.map(ToString::to_string);
        found
    }

    /// The broker's process as of the last sample.
    #[must_use]
    pub fn process(&self) -> Option<ProcessId> {
        self.process
    }

    /// Why the process of a broker that serves is not known, as of the last sample.
    #[must_use]
    pub fn hidden(&self) -> Option<&str> {
        self.hidden.as_deref()
    }

    /// The state of the connection.
    #[must_use]
    pub fn link(&self) -> Link {
        lock(&self.shared).link.clone()
    }

    /// The version of MQTT that is spoken, or was last; `None` before the first connection.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        lock(&self.shared).protocol
    }

    /// The broker's version, once it was published.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        lock(&self.shared).tree.version()
    }

    /// How many retained messages are `$SYS`'s own: before 2.0.16 a value expires after 60 s.
    #[must_use]
    pub fn sys_retained(&self) -> u64 {
        let (shared, now) = (lock(&self.shared), (self.clock)());
        let expires = shared.tree.version().is_none_or(|version| version < Version(2, 0, 16));
        let is_there = |&&at: &&Instant| !expires || now.saturating_duration_since(at) < SYS_EXPIRY;
        shared.sys_topics.values().filter(is_there).count() as u64
    }

    /// How the probe's round trips by QoS 0 and 1 were spread over the last minutes.
    #[must_use]
    pub fn latencies(&self) -> [Option<Latency>; 2] {
        lock(&self.shared).probes.latencies()
    }

    /// Whether a message came from the broker within the last `age`, a probe of ours among them.
    #[must_use]
    pub fn has_heard_within(&self, age: Duration) -> bool {
        let (shared, now) = (lock(&self.shared), (self.clock)());
        shared.heard.is_some_and(|at| now.saturating_duration_since(at) <= age)
    }

    /// Payloads under `$SYS` that were not numbers, since the start.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        lock(&self.shared).malformed
    }

    /// What becomes of `$SYS`.
    #[must_use]
    pub fn sys_status(&self) -> SysStatus {
        let shared = lock(&self.shared);
        match shared.subscribed {
            None => SysStatus::Unknown,
            Some((_, false, _)) => SysStatus::Refused,
            Some(_) if shared.is_flowing => SysStatus::Flowing,
            Some((since, ..)) if (self.clock)().saturating_duration_since(since) > SILENCE => {
                SysStatus::Silent
            }
            Some(_) => SysStatus::Unknown,
        }
    }

    /// Whether the broker lets the latency probe through; `None` while that is not known.
    #[must_use]
    pub fn is_probe_allowed(&self) -> Option<bool> {
        lock(&self.shared).subscribed.map(|(_, _, probe)| probe)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // The thread says DISCONNECT and ends by itself; nobody waits for it.
        let _ = self.stop.send(true);
    }
}
