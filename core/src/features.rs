//! Metrics to the actor's input: one function makes the state vector in training and on the
//! gateway.

use crate::fingerprint::Fnv;
use crate::knobs::{KNOB_COUNT, Knob};
use crate::math::log2;
use crate::sample::Metrics;
use crate::settings::{Settings, SiteValues};

/// Longest state vector of any schema.
pub const FEATURES_MAX: usize = 40;

/// A state vector.
pub type Features = heapless::Vec<f32, FEATURES_MAX>;

/// Which state vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Schema {
    /// The five numbers of the seed program.
    Seed5 = 1,
    /// Everything that the decision needs; the default.
    #[default]
    Edge = 2,
}

/// What the site asks for: constant for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Targets {
    /// A delivery counts within this time; the smallest of the scenario's groups.
    pub deadline_ms: u32,
    /// Memory that the broker may take.
    pub rss_limit_mib: u32,
}

impl Default for Targets {
    fn default() -> Self {
        Targets { deadline_ms: 250, rss_limit_mib: 64 }
    }
}

impl Targets {
    /// `bytes` over the memory that the broker may take.
    #[must_use]
    pub fn memory_share(&self, bytes: f32) -> f32 {
        bytes / (self.rss_limit_mib.max(1) as f32 * 1_048_576.0)
    }
}

/// Divisors of the `seed5` schema, as the seed program had them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Seed5Norms {
    /// Connected clients that make 1.
    pub clients: f32,
    /// Received messages a second that make 1.
    pub messages_per_s: f32,
    /// CPU % of the process that makes 1.
    pub cpu_percent: f32,
    /// Resident bytes that make 1.
    pub rss_bytes: f32,
    /// Context switches that make 1.
    pub context_switches: f32,
}

impl Default for Seed5Norms {
    fn default() -> Self {
        Seed5Norms {
            clients: 1000.0,
            messages_per_s: 10_000.0,
            cpu_percent: 400.0,
            rss_bytes: 1024.0 * 1024.0 * 1024.0,
            context_switches: 1e6,
        }
    }
}

const SEED5: [&str; 5] = ["clients_norm", "msg_rate_norm", "cpu_ratio", "mem_ratio", "ctxt_ratio"];

/// Names of the `edge` schema's measured part; the settings in force follow, one per option.
const EDGE: [&str; 25] = [
    "clients_others",
    "clients_offline",
    "subscriptions",
    "publish_received_rate",
    "publish_sent_rate",
    "fan_out",
    "publish_dropped_rate",
    "dropped_share",
    "payload_bytes_mean",
    "bytes_sent_rate",
    "acks_per_delivery",
    "backlog_messages",
    "store_bytes",
    "heap_ratio",
    "rss_ratio",
    "cpu_share",
    "context_switch_rate",
    "probe_latency_qos0",
    "probe_latency_qos1",
    "deadline",
    "rss_limit",
    "sys_period",
    "sys_is_fresh",
    "proc_is_fresh",
    "probe_is_fresh",
];

impl Schema {
    /// The schema of that id in a model file.
    #[must_use]
    pub const fn from_id(id: u8) -> Option<Schema> {
        match id {
            1 => Some(Schema::Seed5),
            2 => Some(Schema::Edge),
            _ => None,
        }
    }

    /// The id in a model file.
    #[must_use]
    pub const fn id(self) -> u8 {
        self as u8
    }

    /// Length of the state vector.
    #[must_use]
    pub const fn len(self) -> usize {
        match self {
            Schema::Seed5 => SEED5.len(),
            Schema::Edge => EDGE.len() + KNOB_COUNT,
        }
    }

    /// Never: every schema has features.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Name of feature `index`; that of an option for the settings in force.
    #[must_use]
    pub fn name(self, index: usize) -> Option<&'static str> {
        match self {
            Schema::Seed5 => SEED5.get(index).copied(),
            Schema::Edge => EDGE
                .get(index)
                .copied()
                .or_else(|| Some(Knob::ALL.get(index.checked_sub(EDGE.len())?)?.spec().key)),
        }
    }

    /// Identifies names and order: a model for another schema is refused.
    #[must_use]
    pub fn fingerprint(self) -> u32 {
        (0..self.len())
            .filter_map(|index| self.name(index))
            .fold(Fnv::new().number(u64::from(self.id())), |hash, name| hash.text(name))
            .finish()
    }
}

/// What a state vector is made from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Rates and gauges.
    pub metrics: &'a Metrics,
    /// The settings that are in force in the running broker.
    pub effective: &'a Settings,
    /// What holds for options without a line.
    pub site: &'a SiteValues,
    /// What the site asks for.
    pub targets: &'a Targets,
}

/// The `edge` state vector. A missing input is 0, and then its group's `*_is_fresh` is 0 too.
///
/// Counts and rates go by their logarithm; all lie within about 0 to 2, settings in -1 to 1.
#[must_use]
pub fn edge(view: &View<'_>) -> Features {
    let m = view.metrics;
    let log = |value: Option<f32>, octaves: f32| {
        value.map_or(0.0, |v| (log2(1.0 + v.max(0.0)) / octaves).clamp(0.0, 2.0))
    };
    let limit_bytes = view.targets.rss_limit_mib.max(1) as f32 * 1_048_576.0;
    let of_limit = |value: Option<f32>| value.map_or(0.0, |v| (v / limit_bytes).clamp(0.0, 2.0));
    let flag = |is_fresh: bool| if is_fresh { 1.0 } else { 0.0 };
    let (received, sent) = (m.publish_received_per_s, m.publish_sent_per_s);
    let dropped = m.publish_dropped_per_s;
    let acks = m.packets_others_per_s.zip(received).map(|(all, publish)| (all - publish).max(0.0));
    let sys = [
        m.clients_others,
        m.subscriptions,
        received,
        sent,
        dropped,
        m.publish_bytes_received_per_s,
        m.bytes_sent_per_s,
        m.packets_others_per_s,
        m.backlog_messages,
        m.store_bytes,
        m.heap_bytes,
    ];
    let measured: [f32; EDGE.len()] = [
        log(m.clients_others, 16.0),
        log(m.clients_offline, 16.0),
        log(m.subscriptions, 16.0),
        log(received, 16.0),
        log(sent, 20.0),
        log(ratio(sent, received), 8.0),
        log(dropped, 20.0),
        ratio(dropped, sent.zip(dropped).map(|(s, d)| s + d)).unwrap_or(0.0).clamp(0.0, 1.0),
        log(ratio(m.publish_bytes_received_per_s, received), 16.0),
        log(m.bytes_sent_per_s, 30.0),
        ratio(acks, sent).unwrap_or(0.0).clamp(0.0, 2.0),
        log(m.backlog_messages, 20.0),
        log(m.store_bytes, 30.0),
        of_limit(m.heap_bytes),
        of_limit(m.rss_bytes),
        m.cpu_share.unwrap_or(0.0).clamp(0.0, 2.0),
        log(m.context_switches_per_s, 16.0),
        log(m.probe_latency_us_qos0, 24.0),
        log(m.probe_latency_us_qos1, 24.0),
        log(Some(view.targets.deadline_ms as f32), 20.0),
        log(Some(view.targets.rss_limit_mib as f32), 16.0),
        log(m.sys_period_s, 6.0),
        flag(sys.iter().all(Option::is_some)),
        flag(m.cpu_share.is_some() && m.rss_bytes.is_some()),
        flag(m.probe_latency_us_qos0.is_some() && m.probe_latency_us_qos1.is_some()),
    ];
    // What is no number is missing too.
    let measured = measured.map(|value| if value.is_nan() { 0.0 } else { value });
    let settings = view.effective.encode(view.site).map(|raw| f32::from(raw) / 127.0);
    // Fits: FEATURES_MAX is asserted below.
    measured.into_iter().chain(settings).collect()
}

const _: () = assert!(Schema::Edge.len() <= FEATURES_MAX && Schema::Seed5.len() <= FEATURES_MAX);

/// The `seed5` state vector: connected clients, messages received a second, CPU, memory and
/// context switches, each over its norm. Missing inputs are 0: five numbers have no room to say so.
#[must_use]
pub fn seed5(metrics: &Metrics, norms: &Seed5Norms) -> Features {
    let over = |value: Option<f32>, norm: f32| value.map_or(0.0, |v| v / norm);
    [
        over(metrics.clients_connected, norms.clients),
        over(metrics.packets_received_per_s, norms.messages_per_s),
        over(metrics.cpu_share.map(|share| share * 100.0), norms.cpu_percent),
        over(metrics.rss_bytes, norms.rss_bytes),
        over(metrics.context_switches, norms.context_switches),
    ]
    .into_iter()
    .collect()
}

/// The state vector of `schema`, with the seed's own norms for [`Schema::Seed5`].
#[must_use]
pub fn state(schema: Schema, view: &View<'_>) -> Features {
    match schema {
        Schema::Seed5 => seed5(view.metrics, &Seed5Norms::default()),
        Schema::Edge => edge(view),
    }
}

/// `a / b`, `None` where either is missing; where nothing flows, the ratio is 0.
fn ratio(a: Option<f32>, b: Option<f32>) -> Option<f32> {
    let (a, b) = a.zip(b)?;
    Some(if b > 0.0 { a / b } else { 0.0 })
}

#[cfg(test)]
#[path = "features_tests.rs"]
mod tests;
