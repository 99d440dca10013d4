//! The loads that a broker is measured under: each leans on one cost.

use crate::scenario::{Scenario, ScenarioError};

/// Length of a measurement; the first second is the lead-in.
pub(super) const SECONDS: u32 = 4;

/// A steady load of one kind of publisher and one kind of subscriber.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    publishers: u32,
    total_hz: u32,
    payload_bytes: u32,
    qos: u8,
    readers: u32,
    ack_delay_ms: u32,
    /// Settings of the broker.
    pub(super) conf: &'static str,
}

const WIDE: &str = "max_inflight_messages 1000\nmax_queued_messages 10000\n";
const NODELAY: &str =
    "max_inflight_messages 1000\nmax_queued_messages 10000\nset_tcp_nodelay true\n";
const NARROW: &str = "max_inflight_messages 20\nmax_queued_messages 100\n";

const fn load(
    name: &'static str,
    (publishers, total_hz, payload_bytes, qos): (u32, u32, u32, u8),
    (readers, ack_delay_ms): (u32, u32),
    conf: &'static str,
) -> Load {
    Load { name, publishers, total_hz, payload_bytes, qos, readers, ack_delay_ms, conf }
}

/// All of them.
pub(super) const LOADS: [Load; 15] = [
    load("one reader", (4, 4000, 64, 1), (1, 0), WIDE),
    load("one reader, no delay", (4, 4000, 64, 1), (1, 0), NODELAY),
    load("ten readers", (4, 1000, 64, 1), (10, 0), WIDE),
    load("ten readers, no delay", (4, 1000, 64, 1), (10, 0), NODELAY),
    load("late answers", (4, 1500, 64, 1), (4, 20), WIDE),
    load("late answers, no delay", (4, 1500, 64, 1), (4, 20), NODELAY),
    load("4 KiB", (4, 1000, 4096, 1), (4, 0), WIDE),
    load("64 KiB", (4, 120, 65_536, 1), (4, 0), WIDE),
    load("QoS 0", (4, 3000, 64, 0), (4, 0), WIDE),
    load("QoS 2", (4, 1000, 64, 2), (2, 10), WIDE),
    // More than the broker carries.
    load("flood of one reader", (10, 120_000, 64, 1), (1, 0), WIDE),
    load("flood of ten readers", (10, 40_000, 64, 1), (10, 0), WIDE),
    load("flood of ten readers, no delay", (10, 40_000, 64, 1), (10, 0), NODELAY),
    load("flood through a narrow window", (10, 40_000, 64, 1), (10, 0), NARROW),
    load("flood of 1 KiB", (10, 30_000, 1024, 1), (6, 0), WIDE),
];

impl Load {
    /// The load as a scenario; QoS 2 is answered in four steps, and the reader asks for the same.
    pub(super) fn scenario(&self) -> Result<Scenario, ScenarioError> {
        let Load { publishers, payload_bytes, qos, readers, ack_delay_ms, .. } = self;
        let rate_hz = f64::from(self.total_hz) / f64::from(self.publishers);
        let text = format!(
            "schema = 1\nname = \"calibration\"\nsummary = \"{}\"\n\
             deadline_ms = 5000\nrss_limit_mib = 4096\n\
             [broker]\npersistence = false\n\
             [[phase]]\nname = \"steady\"\nduration_s = {SECONDS}\n\
             [[phase.publish]]\nname = \"p\"\nclients = {publishers}\nrate_hz = {rate_hz}\n\
             qos = {qos}\npayload_bytes = {payload_bytes}\ntopic = \"c/{{client}}\"\n\
             [[phase.subscribe]]\nname = \"s\"\nclients = {readers}\nfilter = \"c/#\"\n\
             qos = {qos}\nack_delay_ms = {ack_delay_ms}\n",
            self.name
        );
        Scenario::parse(&text, self.name)
    }
}

/// A session that is away while messages are kept for it: (readers, payload bytes).
pub(super) const KEPT: [(u32, u32); 3] = [(1, 64), (4, 64), (1, 2048)];
/// Messages that are kept.
pub(super) const KEPT_MESSAGES: u32 = 6000;
/// Seconds for which the session is away.
pub(super) const AWAY_S: u32 = 4;
/// No limit is in the way of what is kept.
pub(super) const KEEP_ALL: &str =
    "max_inflight_messages 1000\nmax_queued_messages 50000\nset_tcp_nodelay true\n";

/// A load whose subscribers are away long enough for [`KEPT_MESSAGES`].
pub(super) fn kept(readers: u32, payload_bytes: u32) -> Result<Scenario, ScenarioError> {
    let rate_hz = f64::from(KEPT_MESSAGES) / f64::from(AWAY_S) / 4.0;
    let text = format!(
        "schema = 1\nname = \"kept\"\nsummary = \"A session that is away\"\n\
         deadline_ms = 5000\nrss_limit_mib = 4096\n[broker]\npersistence = true\n\
         [[phase]]\nname = \"away\"\nduration_s = {}\n\
         [[phase.publish]]\nname = \"p\"\nclients = 4\nrate_hz = {rate_hz}\nqos = 1\n\
         payload_bytes = {payload_bytes}\ntopic = \"c/{{client}}\"\n\
         [[phase.subscribe]]\nname = \"s\"\nclients = {readers}\nfilter = \"c/#\"\nqos = 1\n\
         clean_session = false\noffline = {{ at_s = 1, for_s = {AWAY_S} }}\n",
        AWAY_S + 3
    );
    Scenario::parse(&text, "kept")
}

/// Connections that do next to nothing.
pub(super) fn crowd(clients: u32) -> Result<Scenario, ScenarioError> {
    let text = format!(
        "schema = 1\nname = \"crowd\"\nsummary = \"Connections\"\ndeadline_ms = 5000\n\
         rss_limit_mib = 4096\n[broker]\npersistence = false\n\
         [[phase]]\nname = \"steady\"\nduration_s = 2\n\
         [[phase.publish]]\nname = \"p\"\nclients = 1\nrate_hz = 5.0\nqos = 1\n\
         payload_bytes = 64\ntopic = \"c/{{client}}\"\n\
         [[phase.subscribe]]\nname = \"s\"\nclients = {clients}\nfilter = \"c/#\"\nqos = 1\n"
    );
    Scenario::parse(&text, "crowd")
}
