//! How the probe's round trips were spread over the last minutes, one histogram per QoS.
//!
//! Probes go by the clock whether the last one is back or not, so a stall is not left out; what
//! never comes back counts with the time after which it was given up.

use std::fmt;

use brokertuner_core::{Duration, Instant};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Half of the time that is looked back on.
const SPAN: Duration = Duration::from_secs(300);
/// Longest round trip that is told from a longer one.
const LATENCY_US_MAX: u64 = 60_000_000;
/// One in a hundred is told apart: 5 KiB a histogram.
const DIGITS: u8 = 2;

/// The round trips of one QoS over the last five to ten minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Median, in microseconds, to two digits as all of these.
    pub us_p50: u64,
    /// 99 of 100 were faster.
    pub us_p99: u64,
    /// The slowest.
    pub us_max: u64,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, us_p50, us_p99, us_max } = self;
        write!(f, "p50 {us_p50} us, p99 {us_p99} us, max {us_max} us, of {count}")
    }
}

/// Two spans of histograms; the older one is given up when the newer one is full.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    /// The present span and the one before, each for QoS 0 and 1.
    spans: Option<[[Histogram<u16>; 2]; 2]>,
    since: Option<Instant>,
}

impl Latencies {
    /// Takes a round trip over.
    pub(super) fn note(&mut self, qos: u8, latency: Duration, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if self.spans.is_none() {
            self.spans = spans();
        }
        let Some([present, before]) = &mut self.spans else { return };
        if now.saturating_duration_since(since) >= SPAN {
            std::mem::swap(present, before);
            present.iter_mut().for_each(Histogram::reset);
            self.since = Some(now);
        }
        // A round trip of no time is one that the clock can't tell from none.
        present[usize::from(qos.min(1))].saturating_record(latency.as_micros().max(1));
    }

    /// What is known of a QoS; `None` where nothing came back.
    pub(super) fn of(&self, qos: u8) -> Option<Latency> {
        let [present, before] = self.spans.as_ref()?;
        let (present, before) =
            (&present[usize::from(qos.min(1))], &before[usize::from(qos.min(1))]);
        // Both have the same bounds, so adding one to the other has no way to fail.
        let mut both = present.clone();
        both.add(before).ok()?;
        (!both.is_empty()).then(|| Latency {
            count: both.len(),
            us_p50: both.value_at_quantile(0.5),
            us_p99: both.value_at_quantile(0.99),
            us_max: both.max(),
        })
    }
}

fn spans() -> Option<[[Histogram<u16>; 2]; 2]> {
    let empty = || Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).ok();
    Some([[empty()?, empty()?], [empty()?, empty()?]])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant::from_secs(s)
    }

    #[test]
    fn quantiles_are_within_a_hundredth_and_each_qos_is_apart() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.of(0), None);
        for ms in 1..=1000 {
            latencies.note(0, Duration::from_millis(ms), at(0));
        }
        assert_eq!(latencies.of(1), None);
        let seen = latencies.of(0).unwrap();
        let is_about = |value: u64, us: u64| value.abs_diff(us) <= us / 100;
        assert_eq!(seen.count, 1000);
        assert!(is_about(seen.us_p50, 500_000) && is_about(seen.us_p99, 990_000), "{seen}");
        assert!(is_about(seen.us_max, 1_000_000), "{seen}");
    }

    #[test]
    fn the_past_is_forgotten_after_two_spans_and_nothing_overflows() {
        let mut latencies = Latencies::default();
        latencies.note(1, Duration::MAX, at(0));
        latencies.note(1, Duration::from_millis(0), at(301));
        assert_eq!(latencies.of(1).unwrap().count, 2);
        latencies.note(1, Duration::from_millis(2), at(602));
        let seen = latencies.of(1).unwrap();
        assert_eq!(seen.count, 2);
        assert!(seen.us_max < 3000, "{seen}");
        for _ in 0..70_000 {
            latencies.note(0, Duration::from_millis(2), at(603));
        }
        assert!(latencies.of(0).unwrap().count >= u64::from(u16::MAX));
    }
}
