//! What a gateway makes out of what there is: the twin's figures are exact, those of `/proc` and of
//! a probe are not.

use brokertuner_core::sample::{ProbeSample, ProcSample, Sample};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use std::ops::Range;

/// The kernel counts CPU time in ticks.
const TICK_US: u64 = 10_000;
/// Of a whole core, what a saturated broker is seen to use: 0.97 to 1.00 was measured on an idle
/// machine of two cores, 0.90 to 0.93 on one that was busy with other things too.
const CORE_SEEN: Range<f64> = 0.85..1.0;
/// Context switches are counted by those that find the broker asleep: on real brokers there were from
/// 0.6 to 1.8 times as many.
const SWITCHES_FACTOR: Range<f64> = 0.6..1.8;
/// A round trip is mostly near its mean, by this factor up or down.
const PROBE_FACTOR: Range<f64> = 0.7..1.5;
/// A few find the broker at something else: 0.2 ms to 4 ms were measured beside a saturated broker,
/// and of 11 beside brokers of all loads none was beyond 0.4 ms.
const PROBE_LATE_SHARE: f64 = 0.04;
const PROBE_LATE_FACTOR: Range<f64> = 2.0..15.0;

/// The sample as an agent sees it at that time; the same for the same seed.
pub(super) fn seen(sample: Sample, seed: u64) -> Sample {
    let mut of_site = Pcg64Mcg::seed_from_u64(seed);
    let core_seen = of_site.random_range(CORE_SEEN);
    let switches_factor = of_site.random_range(SWITCHES_FACTOR);
    let moment = sample.at.as_micros().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut rng = Pcg64Mcg::seed_from_u64(seed ^ moment);
    let mut late = |latency_us: Option<u32>| {
        let factor = rng.random_range(PROBE_FACTOR);
        let is_late = rng.random_bool(PROBE_LATE_SHARE);
        let late = if is_late { rng.random_range(PROBE_LATE_FACTOR) } else { 1.0 };
        latency_us.map(|us| (f64::from(us) * factor * late) as u32)
    };
    let probe = ProbeSample {
        latency_us_qos0: late(sample.probe.latency_us_qos0),
        latency_us_qos1: late(sample.probe.latency_us_qos1),
    };
    let ticks = |us: u64| (us as f64 * core_seen) as u64 / TICK_US * TICK_US;
    let switches = |count: u64| (count as f64 * switches_factor) as u64;
    let proc = sample.proc.map(|proc| ProcSample {
        cpu_us: ticks(proc.cpu_us),
        context_switches: switches(proc.context_switches),
        ..proc
    });
    Sample { probe, proc, ..sample }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brokertuner_core::Instant;
    use brokertuner_core::sample::{OwnTraffic, SysFrame};

    #[test]
    fn the_same_moment_looks_the_same_and_the_next_one_does_not() {
        let exact = |at_s| Sample {
            at: Instant::from_secs(at_s),
            sys: SysFrame::default(),
            proc: Some(ProcSample {
                pid: 1,
                start_ticks: 0,
                rss_bytes: 0,
                cpu_us: at_s * 1_000_000,
                context_switches: 0,
            }),
            probe: ProbeSample { latency_us_qos0: Some(300), latency_us_qos1: None },
            own: OwnTraffic { connections: 1, ..OwnTraffic::default() },
        };
        let now = seen(exact(5), 1);
        assert_eq!(now, seen(exact(5), 1));
        assert_ne!(now, seen(exact(5), 2));
        assert_ne!(now.probe, seen(exact(6), 1).probe);
        assert_eq!(now.probe.latency_us_qos1, None, "what is not there is not seen");
        for at_s in 1..200 {
            let sample = seen(exact(at_s), at_s);
            let cpu_us = sample.proc.map_or(0, |proc| proc.cpu_us);
            assert!(cpu_us.is_multiple_of(TICK_US));
            assert!((at_s * 840_000..=at_s * 1_000_000).contains(&cpu_us));
            assert!(sample.probe.latency_us_qos0.is_some_and(|us| (210..6750).contains(&us)));
        }
    }
}
