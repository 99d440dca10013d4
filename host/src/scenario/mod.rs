//! Loads: what is published and subscribed, phase by phase, and what the broker may use for it.
//!
//! A load is a TOML file of `schema = 1`; `host/SCENARIOS.md` documents every key.
//! [`Scenario::load`] takes the name of a scenario that the program carries, or a path. Every fault
//! of a file is reported with its line and dotted key.

mod check;
mod raw;
pub mod topic;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Scenarios that the program carries: name and text.
pub const EMBEDDED: &[(&str, &str)] = &[
    ("alarm-burst", include_str!("../../scenarios/alarm-burst.toml")),
    ("bulk-payload", include_str!("../../scenarios/bulk-payload.toml")),
    ("command-response", include_str!("../../scenarios/command-response.toml")),
    ("fanout-saturation", include_str!("../../scenarios/fanout-saturation.toml")),
    ("idle-telemetry", include_str!("../../scenarios/idle-telemetry.toml")),
    ("link-50ms", include_str!("../../scenarios/link-50ms.toml")),
    ("mixed-day", include_str!("../../scenarios/mixed-day.toml")),
    ("outage-reconnect", include_str!("../../scenarios/outage-reconnect.toml")),
    ("overload", include_str!("../../scenarios/overload.toml")),
    ("slow-consumer", include_str!("../../scenarios/slow-consumer.toml")),
    ("wan-uplink", include_str!("../../scenarios/wan-uplink.toml")),
];

/// A load with all defaults filled in. Every value is within its documented range.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Short name, as commands take it.
    pub name: String,
    /// One sentence for people.
    pub summary: String,
    /// Deadline of the groups that have none of their own.
    pub deadline: Duration,
    /// Resident memory that the broker may take.
    pub rss_limit_bytes: u64,
    /// What the broker starts with.
    pub broker: BrokerSetup,
    /// At least one; they follow each other without a gap.
    pub phases: Vec<Phase>,
}

/// Settings of the broker that belong to the scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct BrokerSetup {
    /// Start value of `persistence`.
    pub persistence: bool,
    /// `sys_interval` as written; the effective period on 2.0.x is one second more.
    pub sys_interval_s: u32,
    /// Share of one core that the broker gets by CPU quota; `None`: no quota.
    pub cpu_share: Option<f64>,
}

/// A stretch of time with a constant set of groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Name for reports.
    pub name: String,
    /// Length in whole seconds.
    pub duration_s: u32,
    /// Share in the scenario's score.
    pub weight: f64,
    /// Groups that publish; names are unique among them.
    pub publish: Vec<PublishGroup>,
    /// Groups that subscribe; names are unique among them.
    pub subscribe: Vec<SubscribeGroup>,
}

/// MQTT version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// MQTT 3.1.1, protocol level 4.
    V4,
    /// MQTT 5.
    V5,
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// QoS 0.
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce,
    /// QoS 2.
    ExactlyOnce,
}

/// How often each client of a group publishes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Messages per second and client.
    PerClientHz(f64),
    /// Multiple of the broker's capacity, shared among the clients of the group.
    TimesCapacity(f64),
}

impl Rate {
    /// Messages per second and client, or `None` where the capacity is needed and not given.
    #[must_use]
    pub fn per_client_hz(self, clients: u32, capacity_msgs_per_s: Option<f64>) -> Option<f64> {
        match self {
            Rate::PerClientHz(hz) => Some(hz),
            Rate::TimesCapacity(multiple) => {
                capacity_msgs_per_s.map(|capacity| multiple * capacity / f64::from(clients))
            }
        }
    }
}

/// A group of clients that publish alike.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishGroup {
    /// Unique among the publish groups of the phase.
    pub name: String,
    /// Number of clients, at least 1.
    pub clients: u32,
    /// Topic with `{group}` and `{client}` still in it: see [`topic::expand`].
    pub topic: String,
    /// Send rate.
    pub rate: Rate,
    /// Smallest payload, at least 16.
    pub payload_bytes_min: u32,
    /// Largest payload; sizes are uniform between the two.
    pub payload_bytes_max: u32,
    /// Quality of service of the publishes.
    pub qos: Qos,
    /// MQTT version.
    pub protocol: Protocol,
    /// RETAIN flag of the publishes.
    pub retain: bool,
    /// All clients send at the same instants instead of spread over the interval.
    pub sync: bool,
    /// Sends squeezed into the first part of each period.
    pub burst: Option<Burst>,
    /// Unacknowledged QoS 1/2 publishes per client.
    pub inflight: u16,
    /// Wait before reconnecting after a lost connection.
    pub reconnect: Duration,
}

/// Sends squeezed into the first part of each period; periods start with the phase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Burst {
    /// Length of a period.
    pub period_s: f64,
    /// Part of the period in which everything is sent, above 0 and at most 1.
    pub duty: f64,
}

/// A group of clients that subscribe alike.
#[derive(Debug, Clone, PartialEq)]
pub struct SubscribeGroup {
    /// Unique among the subscribe groups of the phase.
    pub name: String,
    /// Number of clients, at least 1.
    pub clients: u32,
    /// Filter with `{group}` and `{client}` still in it: see [`topic::expand`].
    pub filter: String,
    /// Quality of service asked for.
    pub qos: Qos,
    /// MQTT version.
    pub protocol: Protocol,
    /// Wait before reconnecting after a lost connection.
    pub reconnect: Duration,
    /// Share in the phase's score.
    pub weight: f64,
    /// A delivery counts only within this time of its intended send.
    pub deadline: Duration,
    /// PUBACK, PUBREC and PUBCOMP leave this much after what they answer.
    pub ack_delay: Duration,
    /// False: the session outlives its connections.
    pub clean_session: bool,
    /// MQTT 5 Receive Maximum of the CONNECT; `None`: not sent.
    pub receive_maximum: Option<u16>,
    /// When the scenario itself has the group disconnected.
    pub offline: Option<Offline>,
}

/// A scheduled absence: reset without DISCONNECT, no connection until the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offline {
    /// Start, from the start of the phase.
    pub at: Duration,
    /// Length; start and length lie within the phase.
    pub lasts: Duration,
}

/// Why a scenario could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Neither the name of an embedded scenario nor a path to a file.
    #[error("no scenario {name:?}: give the path of a .toml file, or one of {}", .known.join(", "))]
    UnknownName {
        /// What was asked for.
        name: String,
        /// Names that exist.
        known: Vec<&'static str>,
    },
    /// The file cannot be read.
    #[error("scenario {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not a scenario; all faults that were found.
    #[error("scenario {origin} is not valid:{}", list(.faults))]
    Invalid {
        /// File or name.
        origin: String,
        /// At least one.
        faults: Vec<Fault>,
    },
}

/// One fault of a scenario file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file, from 1.
    pub line: usize,
    /// Dotted key, such as `phase[0].publish[1].rate_hz`; empty for the whole file.
    pub key: String,
    /// What is wrong, and what is allowed.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "line {}: {}", self.line, self.reason),
            key => write!(f, "line {}: {key}: {}", self.line, self.reason),
        }
    }
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

impl Scenario {
    /// The same load with every phase cut to at most `seconds`, but for phases in which a group
    /// goes offline: those keep their length, or the absence would not fit.
    #[must_use]
    pub fn with_phases_of_at_most(&self, seconds: u32) -> Scenario {
        let mut cut = self.clone();
        for phase in &mut cut.phases {
            if phase.subscribe.iter().all(|group| group.offline.is_none()) {
                phase.duration_s = phase.duration_s.min(seconds.max(1));
            }
        }
        cut
    }

    /// The same load with every phase `factor` times as long; absences stay where they are.
    #[must_use]
    pub fn stretched(&self, factor: u32) -> Scenario {
        let mut long = self.clone();
        for phase in &mut long.phases {
            phase.duration_s = phase.duration_s.saturating_mul(factor.max(1));
        }
        long
    }

    /// The same load under a broker that publishes `$SYS` every `seconds`.
    #[must_use]
    pub fn with_sys_interval(&self, seconds: u32) -> Scenario {
        let mut other = self.clone();
        other.broker.sys_interval_s = seconds;
        other
    }

    /// Loads an embedded scenario by its name, or a file by its path.
    ///
    /// # Errors
    /// [`ScenarioError`]: unknown name, unreadable file, or every fault found in the text.
    pub fn load(name_or_path: &str) -> Result<Self, ScenarioError> {
        if let Some((name, text)) = EMBEDDED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(text, name);
        }
        let path = Path::new(name_or_path);
        let is_path = name_or_path.contains('/')
            || path.extension().is_some_and(|ext| ext == "toml")
            || path.is_file();
        if !is_path {
            return Err(ScenarioError::UnknownName {
                name: name_or_path.to_owned(),
                known: Self::names(),
            });
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| ScenarioError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, name_or_path)
    }

    /// Parses and checks the text of a scenario; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ScenarioError::Invalid`] with every fault that was found. Never panics.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ScenarioError> {
        check::scenario(text)
            .map_err(|faults| ScenarioError::Invalid { origin: origin.to_owned(), faults })
    }

    /// Names of the embedded scenarios, sorted.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        EMBEDDED.iter().map(|(name, _)| *name).collect()
    }

    /// Length of all phases together.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.phases.iter().map(|phase| u64::from(phase.duration_s)).sum())
    }

    /// The largest deadline of any subscribe group.
    #[must_use]
    pub fn deadline_max(&self) -> Duration {
        let groups = self.phases.iter().flat_map(|phase| &phase.subscribe);
        groups.map(|group| group.deadline).max().unwrap_or(self.deadline)
    }

    /// The smallest deadline of any subscribe group.
    #[must_use]
    pub fn deadline_min(&self) -> Duration {
        let groups = self.phases.iter().flat_map(|phase| &phase.subscribe);
        groups.map(|group| group.deadline).min().unwrap_or(self.deadline)
    }

    /// Whether any rate is a multiple of the broker's capacity, which must then be known.
    #[must_use]
    pub fn needs_capacity(&self) -> bool {
        let mut groups = self.phases.iter().flat_map(|phase| &phase.publish);
        groups.any(|group| matches!(group.rate, Rate::TimesCapacity(_)))
    }
}
