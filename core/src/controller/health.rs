//! How the broker does, as one decision sees it.

use super::Rules;
use crate::features::Targets;
use crate::sample::Metrics;

/// How the broker does; `None` where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Health {
    /// Whether the broker answers at all.
    pub is_serving: bool,
    /// Messages that clients publish a second: the load that the other figures belong to.
    pub received_per_s: Option<f32>,
    /// Round trip of the agent's probe.
    pub probe_latency_us: Option<f32>,
    /// Dropped over dropped and sent.
    pub dropped_share: Option<f32>,
    /// Connections of others.
    pub clients: Option<f32>,
    /// Resident memory over what the site permits.
    pub memory_share: Option<f32>,
}

impl Health {
    /// Health by what was measured.
    #[must_use]
    pub fn of(metrics: &Metrics, targets: &Targets, is_serving: bool) -> Health {
        let dropped = metrics.publish_dropped_per_s.zip(metrics.publish_sent_per_s);
        Health {
            is_serving,
            received_per_s: metrics.publish_received_per_s,
            probe_latency_us: metrics.probe_latency_us_qos1.or(metrics.probe_latency_us_qos0),
            dropped_share: dropped.map(|(dropped, sent)| match dropped + sent {
                total if total > 0.0 => dropped / total,
                _ => 0.0,
            }),
            clients: metrics.clients_others,
            memory_share: metrics.rss_bytes.map(|bytes| targets.memory_share(bytes)),
        }
    }

    /// The most that other settings could gain in score, 0 to 1, as far as it shows what these lose: the
    /// share that is dropped, or anything at all where the probe takes longer than nobody minds or memory
    /// is short. `None` where drops are not known.
    #[must_use]
    pub fn gain_max(&self, rules: &Rules) -> Option<f32> {
        let is_slow = self.probe_latency_us.is_some_and(|us| us > rules.worse_latency_us_min);
        let is_short = self.memory_share.is_some_and(|share| share > rules.ample_memory_share_max);
        if is_slow || is_short { Some(1.0) } else { self.dropped_share }
    }

    /// Whether every figure that `before` had is there.
    pub(super) fn shows_all_of(&self, before: &Health) -> bool {
        let pairs = [
            (before.probe_latency_us, self.probe_latency_us),
            (before.dropped_share, self.dropped_share),
            (before.clients, self.clients),
            (before.memory_share, self.memory_share),
        ];
        pairs.iter().all(|(before, now)| before.is_none() || now.is_some())
    }
}
