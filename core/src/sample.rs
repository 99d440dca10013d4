//! Counters from `$SYS` and `/proc` to rates and gauges.
//!
//! Facts of `$SYS` that shape this (measured on 2.0.11, 2.0.21, 2.1.2): only changed values are
//! published, so silence means "unchanged"; uptime changes at every update, so it is the pulse;
//! counters restart at 0 with the broker; the period is `sys_interval` plus one second on 2.0.x.

use core::fmt;
use embassy_time::{Duration, Instant};

/// Number of `$SYS` topics that are read.
pub const SYS_COUNT: usize = 20;

/// A `$SYS/broker/...` topic that matters to a tuner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the topic of its name; see SYS_TOPICS")]
pub enum Sys {
    UptimeS = 0,
    ClientsConnected,
    ClientsDisconnected,
    MessagesReceived,
    MessagesSent,
    PublishReceived,
    PublishSent,
    PublishDropped,
    PublishBytesReceived,
    PublishBytesSent,
    BytesReceived,
    BytesSent,
    StoreMessages,
    StoreBytes,
    RetainedMessages,
    Subscriptions,
    HeapBytes,
    HeapBytesMax,
    /// 2.1 on: packets waiting in all clients' send buffers.
    PacketsOut,
    /// 2.1 on: their bytes.
    PacketsOutBytes,
}

/// Topic of every [`Sys`], below `$SYS/broker/`.
pub static SYS_TOPICS: [(Sys, &str); SYS_COUNT] = [
    (Sys::UptimeS, "uptime"),
    (Sys::ClientsConnected, "clients/connected"),
    (Sys::ClientsDisconnected, "clients/disconnected"),
    (Sys::MessagesReceived, "messages/received"),
    (Sys::MessagesSent, "messages/sent"),
    (Sys::PublishReceived, "publish/messages/received"),
    (Sys::PublishSent, "publish/messages/sent"),
    (Sys::PublishDropped, "publish/messages/dropped"),
    (Sys::PublishBytesReceived, "publish/bytes/received"),
    (Sys::PublishBytesSent, "publish/bytes/sent"),
    (Sys::BytesReceived, "bytes/received"),
    (Sys::BytesSent, "bytes/sent"),
    (Sys::StoreMessages, "store/messages/count"),
    (Sys::StoreBytes, "store/messages/bytes"),
    (Sys::RetainedMessages, "retained messages/count"),
    (Sys::Subscriptions, "subscriptions/count"),
    (Sys::HeapBytes, "heap/current"),
    (Sys::HeapBytesMax, "heap/maximum"),
    (Sys::PacketsOut, "packet/out/count"),
    (Sys::PacketsOutBytes, "packet/out/bytes"),
];

/// Prefix of all topics above.
pub const SYS_PREFIX: &str = "$SYS/broker/";

/// Values settle this long after the last one: an update is a burst of publishes.
const SETTLE: Duration = Duration::from_millis(50);

/// Broker version from `$SYS/broker/version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Version(pub u8, pub u8, pub u8);

impl Version {
    /// Reads `mosquitto version 2.0.21` or `2.0.21`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Version> {
        let digits = text.trim().rsplit(' ').next()?;
        let mut parts = digits.split('.').map(|part| part.parse().ok());
        let version = Version(parts.next()??, parts.next()??, parts.next()??);
        if parts.next().is_none() { Some(version) } else { None }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A `$SYS` payload that is not what its topic promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NotANumber(pub Sys);

impl fmt::Display for NotANumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, topic) = SYS_TOPICS[self.0 as usize];
        write!(f, "{SYS_PREFIX}{topic}: expected a whole number")
    }
}

impl core::error::Error for NotANumber {}

/// The values of one `$SYS` update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SysFrame {
    values: [Option<u64>; SYS_COUNT],
    /// Arrival of the update's pulse (uptime); `None` before the first.
    pub at: Option<Instant>,
}

impl SysFrame {
    /// An update of these values, in the order of [`SYS_TOPICS`].
    #[must_use]
    pub const fn new(values: [Option<u64>; SYS_COUNT], at: Option<Instant>) -> SysFrame {
        SysFrame { values, at }
    }

    /// All values, in the order of [`SYS_TOPICS`].
    #[must_use]
    pub const fn values(&self) -> &[Option<u64>; SYS_COUNT] {
        &self.values
    }

    /// The value of a topic; `None` where it was never published.
    #[must_use]
    pub const fn get(&self, sys: Sys) -> Option<u64> {
        self.values[sys as usize]
    }

    /// The same with a value for a topic.
    #[must_use]
    pub const fn with(mut self, sys: Sys, value: u64) -> SysFrame {
        self.values[sys as usize] = Some(value);
        self
    }
}

/// Collects `$SYS` publishes into frames.
#[derive(Clone, Debug, Default)]
pub struct SysTree {
    arriving: SysFrame,
    settled: SysFrame,
    last_at: Option<Instant>,
    version: Option<Version>,
}

impl SysTree {
    /// Takes one publish; topics that are not read are ignored and answer `false`.
    ///
    /// # Errors
    /// [`NotANumber`]; the old value stays.
    pub fn update(
        &mut self,
        topic: &str,
        payload: &[u8],
        now: Instant,
    ) -> Result<bool, NotANumber> {
        let Some(name) = topic.strip_prefix(SYS_PREFIX) else { return Ok(false) };
        let text = core::str::from_utf8(payload).unwrap_or("").trim();
        if name == "version" {
            self.version = Version::parse(text);
            return Ok(true);
        }
        let Some(&(sys, _)) = SYS_TOPICS.iter().find(|(_, topic)| *topic == name) else {
            return Ok(false);
        };
        let digits = if sys == Sys::UptimeS { text.trim_end_matches(" seconds") } else { text };
        let value = digits.parse().map_err(|_| NotANumber(sys))?;
        self.settle(now);
        if sys == Sys::UptimeS {
            self.arriving.at = Some(now);
        }
        self.arriving.values[sys as usize] = Some(value);
        self.last_at = Some(now);
        Ok(true)
    }

    /// Forgets everything: to be called when the connection to the broker was lost.
    pub fn clear(&mut self) {
        *self = SysTree::default();
    }

    /// The last whole update.
    #[must_use]
    pub fn frame(&mut self, now: Instant) -> SysFrame {
        self.settle(now);
        self.settled
    }

    /// The broker's version, once seen.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        self.version
    }

    fn settle(&mut self, now: Instant) {
        let is_quiet =
            self.last_at.is_some_and(|last| now.saturating_duration_since(last) >= SETTLE);
        if is_quiet && self.arriving.at.is_some() {
            self.settled = self.arriving;
        }
    }
}

/// What `/proc` says of the broker's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ProcSample {
    /// Process id.
    pub pid: u32,
    /// Start time in ticks since boot: with the pid, the process's identity.
    pub start_ticks: u64,
    /// VmRSS.
    pub rss_bytes: u64,
    /// User and system time since its start.
    pub cpu_us: u64,
    /// Voluntary and involuntary context switches since its start.
    pub context_switches: u64,
}

/// Round trips of the agent's own messages through the broker: the worst since the last sample, or
/// the latest of the last seconds where none came back since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ProbeSample {
    /// By QoS 0; `None` where none came back of late.
    pub latency_us_qos0: Option<u32>,
    /// By QoS 1, likewise.
    pub latency_us_qos1: Option<u32>,
}

/// The agent's own part in the broker's counters, since its connection was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OwnTraffic {
    /// Connections that it holds.
    pub connections: u32,
    /// Subscriptions that it holds.
    pub subscriptions: u32,
    /// Publishes that it sent (probes).
    pub publish_sent: u64,
    /// Publishes that it was sent ($SYS and probes).
    pub publish_received: u64,
    /// Payload bytes of those that it sent.
    pub publish_bytes_sent: u64,
    /// All MQTT packets that it sent.
    pub packets_sent: u64,
    /// Their bytes, as MQTT puts them on the wire.
    pub bytes_sent: u64,
    /// Bytes of all MQTT packets that it was sent.
    pub bytes_received: u64,
}

impl OwnTraffic {
    /// The agent's part in a counter; 0 where it has none or can't know it.
    const fn part_of(&self, sys: Sys) -> u64 {
        match sys {
            Sys::MessagesReceived => self.packets_sent,
            Sys::PublishReceived => self.publish_sent,
            Sys::PublishSent => self.publish_received,
            Sys::PublishBytesReceived => self.publish_bytes_sent,
            Sys::BytesReceived => self.bytes_sent,
            Sys::BytesSent => self.bytes_received,
            _ => 0,
        }
    }
}

/// Everything seen at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Sample {
    /// When it was taken.
    pub at: Instant,
    /// The last whole `$SYS` update.
    pub sys: SysFrame,
    /// The process; `None` where it could not be read.
    pub proc: Option<ProcSample>,
    /// The probe.
    pub probe: ProbeSample,
    /// What of the counters is the agent's own.
    pub own: OwnTraffic,
}

/// Rates per second and gauges; `None` is missing or stale, never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[allow(missing_docs, reason = "the names carry quantity and unit; sources are Sys and ProcSample")]
pub struct Metrics {
    /// Real period of `$SYS`, between its last two updates.
    pub sys_period_s: Option<f32>,
    /// Open connections, the agent's own among them.
    pub clients_connected: Option<f32>,
    /// Open connections of others.
    pub clients_others: Option<f32>,
    pub clients_offline: Option<f32>,
    /// Those of others.
    pub subscriptions: Option<f32>,
    /// All MQTT packets, the agent's own among them; the other rates are without them.
    pub packets_received_per_s: Option<f32>,
    /// MQTT packets of others.
    pub packets_others_per_s: Option<f32>,
    pub publish_received_per_s: Option<f32>,
    pub publish_sent_per_s: Option<f32>,
    pub publish_dropped_per_s: Option<f32>,
    pub publish_bytes_received_per_s: Option<f32>,
    pub bytes_received_per_s: Option<f32>,
    pub bytes_sent_per_s: Option<f32>,
    /// Distinct messages kept, retained ones left out.
    pub backlog_messages: Option<f32>,
    pub store_bytes: Option<f32>,
    pub heap_bytes: Option<f32>,
    pub heap_bytes_max: Option<f32>,
    pub rss_bytes: Option<f32>,
    /// Of one core.
    pub cpu_share: Option<f32>,
    /// Since the process's start.
    pub context_switches: Option<f32>,
    pub context_switches_per_s: Option<f32>,
    pub probe_latency_us_qos0: Option<f32>,
    pub probe_latency_us_qos1: Option<f32>,
}

/// `$SYS` is stale when the next update is overdue by this many periods.
const STALE_PERIODS: u32 = 3;
/// Largest period that is expected before two updates were seen: `sys_interval 60` and some.
const PERIOD_MAX: Duration = Duration::from_secs(62);

/// Turns successive samples into [`Metrics`]. O(topics), no allocation.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    base: Option<(SysFrame, OwnTraffic)>,
    rates: SysRates,
    proc: Option<(Instant, ProcSample)>,
    packet_bytes_bound: Option<u64>,
}

/// Rates between the last two updates: they hold until the next.
#[derive(Clone, Copy, Debug, Default)]
struct SysRates {
    /// Without the agent's own part.
    others_per_s: [Option<f32>; SYS_COUNT],
    /// With it.
    packets_received_per_s: Option<f32>,
    bytes_received_per_s: Option<f32>,
    period: Option<Duration>,
}

impl Meter {
    /// The metrics of `sample`, with rates over the real time since the one before.
    pub fn measure(&mut self, sample: &Sample) -> Metrics {
        self.advance(sample);
        let mut metrics = Metrics {
            probe_latency_us_qos0: sample.probe.latency_us_qos0.map(to_f32_u32),
            probe_latency_us_qos1: sample.probe.latency_us_qos1.map(to_f32_u32),
            ..Metrics::default()
        };
        if self.is_fresh(sample) {
            self.fill_gauges(sample, &mut metrics);
            self.fill_rates(&mut metrics);
        }
        self.fill_proc(sample, &mut metrics);
        self.bound_packets(&metrics);
        metrics
    }

    /// No packet so far was larger; `None` while nothing is known.
    ///
    /// The broker tells the size of no packet. None is larger than all that it received between two
    /// updates, nor than all that it stores: too high a bound leaves a size limit too wide, which
    /// harms nobody.
    #[must_use]
    pub const fn packet_bytes_bound(&self) -> Option<u64> {
        self.packet_bytes_bound
    }

    /// How old the last update of `$SYS` is, where the next ones are so overdue that it says nothing
    /// of now. To be asked after [`Meter::measure`].
    #[must_use]
    pub fn stale_for(&self, sample: &Sample) -> Option<Duration> {
        let at = sample.sys.at.filter(|_| !self.is_fresh(sample))?;
        Some(sample.at.saturating_duration_since(at))
    }

    fn bound_packets(&mut self, metrics: &Metrics) {
        // The agent's own too: their share is known to within a probe only, and the bound is for all.
        let all = self.rates.bytes_received_per_s;
        let received = metrics.bytes_received_per_s.and(all).zip(metrics.sys_period_s);
        let Some((per_s, period_s)) = received else { return };
        let bytes = (per_s * period_s).max(metrics.store_bytes.unwrap_or(0.0));
        self.packet_bytes_bound = self.packet_bytes_bound.max(Some(whole_above(bytes)));
    }

    fn advance(&mut self, sample: &Sample) {
        let Some(at) = sample.sys.at else {
            let Meter { proc, packet_bytes_bound, .. } = *self;
            *self = Meter { proc, packet_bytes_bound, ..Meter::default() };
            return;
        };
        match &self.base {
            Some((base, _)) if base.at == Some(at) => return,
            Some((base, own)) => {
                self.rates = rates_between(base, own, &sample.sys, &sample.own, self.rates.period);
            }
            None => self.rates = SysRates::default(),
        }
        self.base = Some((sample.sys, sample.own));
    }

    fn is_fresh(&self, sample: &Sample) -> bool {
        let period = self.rates.period.unwrap_or(PERIOD_MAX).min(PERIOD_MAX);
        sample
            .sys
            .at
            .is_some_and(|at| sample.at.saturating_duration_since(at) <= period * STALE_PERIODS)
    }

    fn fill_gauges(&self, sample: &Sample, metrics: &mut Metrics) {
        let gauge = |sys| sample.sys.get(sys).map(to_f32);
        let others = |sys, own| gauge(sys).map(|all: f32| (all - to_f32_u32(own)).max(0.0));
        metrics.clients_connected = gauge(Sys::ClientsConnected);
        metrics.clients_others = others(Sys::ClientsConnected, sample.own.connections);
        metrics.clients_offline = gauge(Sys::ClientsDisconnected);
        metrics.subscriptions = others(Sys::Subscriptions, sample.own.subscriptions);
        metrics.backlog_messages = gauge(Sys::StoreMessages)
            .zip(gauge(Sys::RetainedMessages))
            .map(|(stored, retained)| (stored - retained).max(0.0));
        metrics.store_bytes = gauge(Sys::StoreBytes);
        metrics.heap_bytes = gauge(Sys::HeapBytes);
        metrics.heap_bytes_max = gauge(Sys::HeapBytesMax);
    }

    fn fill_rates(&self, metrics: &mut Metrics) {
        let rates = &self.rates;
        let others = |sys: Sys| rates.others_per_s[sys as usize];
        metrics.sys_period_s = rates.period.map(to_seconds);
        metrics.packets_received_per_s = rates.packets_received_per_s;
        metrics.packets_others_per_s = others(Sys::MessagesReceived);
        metrics.publish_received_per_s = others(Sys::PublishReceived);
        metrics.publish_sent_per_s = others(Sys::PublishSent);
        metrics.publish_dropped_per_s = others(Sys::PublishDropped);
        metrics.publish_bytes_received_per_s = others(Sys::PublishBytesReceived);
        metrics.bytes_received_per_s = others(Sys::BytesReceived);
        metrics.bytes_sent_per_s = others(Sys::BytesSent);
    }

    fn fill_proc(&mut self, sample: &Sample, metrics: &mut Metrics) {
        let Some(proc) = sample.proc else {
            self.proc = None;
            return;
        };
        metrics.rss_bytes = Some(to_f32(proc.rss_bytes));
        metrics.context_switches = Some(to_f32(proc.context_switches));
        let same = self
            .proc
            .filter(|(_, before)| (before.pid, before.start_ticks) == (proc.pid, proc.start_ticks));
        if let Some((at, before)) = same {
            let seconds = to_seconds(sample.at.saturating_duration_since(at));
            if seconds > 0.0 {
                let delta = |now: u64, then: u64| to_f32(now.saturating_sub(then)) / seconds;
                metrics.cpu_share = Some(delta(proc.cpu_us, before.cpu_us) / 1e6);
                metrics.context_switches_per_s =
                    Some(delta(proc.context_switches, before.context_switches));
            }
        }
        self.proc = Some((sample.at, proc));
    }
}

/// Rates from `base` to `now`; after a broker restart from its start on.
fn rates_between(
    base: &SysFrame,
    base_own: &OwnTraffic,
    now: &SysFrame,
    own: &OwnTraffic,
    last_period: Option<Duration>,
) -> SysRates {
    let (Some(from), Some(to)) = (base.at, now.at) else { return SysRates::default() };
    let uptime = now.get(Sys::UptimeS).unwrap_or(0);
    let restarted = base.get(Sys::UptimeS).is_some_and(|before| uptime < before);
    let elapsed = to.saturating_duration_since(from);
    let elapsed_s = to_seconds(elapsed);
    let (span_s, period) = if restarted {
        (elapsed_s.min(to_f32(uptime)), last_period)
    } else {
        (elapsed_s, Some(elapsed))
    };
    let seconds = span_s.max(0.001);
    let grown = |then: u64, now: u64| if restarted { now } else { now.saturating_sub(then) };
    let all = |sys: Sys| match (base.get(sys), now.get(sys)) {
        (Some(before), Some(after)) => Some(grown(before, after)),
        (None, Some(after)) if restarted => Some(after),
        // A value is published when it changes, and forgotten by 2.0.11 a minute later: whoever comes
        // then and never gets this one, beside those that always change, knows that nothing is dropped.
        (None, None) if sys == Sys::PublishDropped => now.get(Sys::PublishSent).map(|_| 0),
        _ => None,
    };
    let others = |sys: Sys| {
        let ours = grown(base_own.part_of(sys), own.part_of(sys));
        all(sys).map(|all| all.saturating_sub(ours))
    };
    let per_s = |count: u64| to_f32(count) / seconds;
    SysRates {
        others_per_s: SYS_TOPICS.map(|(sys, _)| others(sys).map(per_s)),
        packets_received_per_s: all(Sys::MessagesReceived).map(per_s),
        bytes_received_per_s: all(Sys::BytesReceived).map(per_s),
        period,
    }
}

/// Nearest f32: features need no more than 24 bits.
pub(crate) fn to_f32(value: u64) -> f32 {
    value as f32
}

/// Whole bytes at least as many as `value`; saturates, and makes 0 of what is no number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
fn whole_above(value: f32) -> u64 {
    // core has no `ceil` without the standard library.
    (value as u64).saturating_add(1)
}

fn to_f32_u32(value: u32) -> f32 {
    value as f32
}

fn to_seconds(duration: Duration) -> f32 {
    to_f32(duration.as_micros()) / 1e6
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
