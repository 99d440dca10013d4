//! The generator's own lag: how much later than possible it sent, and how long its turns took.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::score::{self, LAG_LIMIT_US};
use super::{NANOS_PER_S, RunClock};

/// Longest lag that the histogram tells apart: ten minutes.
const LAG_US_MAX: u64 = 600_000_000;
/// Seconds that are kept; only repeating runs have more.
const SECONDS_MAX: usize = 200_000;
/// A second is void when turns above the limit took this much of it: the longer a stall, the fewer
/// turns there are to count.
const STALLED_NS_MAX: u64 = NANOS_PER_S / 10;

/// Lag by wall-clock second, numbered from the start of the scored part.
pub(super) struct Lag {
    seconds: BTreeMap<i64, Counts>,
    sends_us: Histogram<u64>,
    turn_us_max: u64,
}

#[derive(Default)]
struct Counts {
    sends: u64,
    sends_above: u64,
    turns: u64,
    turns_above: u64,
    stalled_ns: u64,
}

impl Default for Lag {
    fn default() -> Self {
        let sends_us =
            Histogram::new_with_bounds(1, LAG_US_MAX, 2).expect("bounds and digits are valid");
        Self { seconds: BTreeMap::new(), sends_us, turn_us_max: 0 }
    }
}

impl Lag {
    /// A message that could go at `possible_ns` went at `sent_ns`: the lag is that of the second in
    /// which it could have gone, where its delivery is looked for.
    pub(super) fn send(&mut self, clock: &RunClock, possible_ns: u64, sent_ns: u64) {
        let lag_us = sent_ns.saturating_sub(possible_ns) / 1000;
        self.sends_us.saturating_record(lag_us);
        let counts = self.second(clock.second(possible_ns));
        counts.sends += 1;
        counts.sends_above += u64::from(lag_us > LAG_LIMIT_US);
    }

    /// A turn of the loop lasted from `from_ns` to `to_ns`; it counts in every second that it
    /// touched.
    pub(super) fn turn(&mut self, clock: &RunClock, from_ns: u64, to_ns: u64) {
        let turn_us = to_ns.saturating_sub(from_ns) / 1000;
        self.turn_us_max = self.turn_us_max.max(turn_us);
        let is_above = turn_us > LAG_LIMIT_US;
        let mut at_ns = from_ns;
        for second in clock.second(from_ns)..=clock.second(to_ns) {
            let end_ns = clock.second_end_ns(second).min(to_ns);
            let counts = self.second(second);
            counts.turns += 1;
            counts.turns_above += u64::from(is_above);
            counts.stalled_ns += if is_above { end_ns.saturating_sub(at_ns) } else { 0 };
            at_ns = end_ns;
        }
    }

    fn second(&mut self, second: i64) -> &mut Counts {
        if self.seconds.len() > SECONDS_MAX {
            self.seconds.pop_first();
        }
        self.seconds.entry(second).or_default()
    }

    /// Whether the second does not count.
    pub(super) fn is_void(&self, second: i64) -> bool {
        self.seconds.get(&second).is_some_and(|counts| {
            score::is_lagging(counts.sends, counts.sends_above)
                || score::is_lagging(counts.turns, counts.turns_above)
                || counts.stalled_ns > STALLED_NS_MAX
        })
    }

    /// Lag of the sends at a quantile of the whole run.
    pub(super) fn send_us(&self, quantile: f64) -> u64 {
        self.sends_us.value_at_quantile(quantile)
    }

    /// The longest turn.
    pub(super) fn turn_us_max(&self) -> u64 {
        self.turn_us_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn clock() -> RunClock {
        RunClock { origin: std::time::Instant::now(), scored_ns: 0 }
    }

    fn voids(lag: &Lag, seconds: std::ops::Range<i64>) -> Vec<bool> {
        seconds.map(|second| lag.is_void(second)).collect()
    }

    #[test]
    fn a_second_is_void_above_one_percent() {
        let (mut lag, clock) = (Lag::default(), clock());
        for i in 0..200 {
            let at_ns = i * MS;
            lag.send(&clock, at_ns, at_ns + if i < 2 { 6_000_000 } else { 10_000 });
            let at_ns = at_ns + 1000 * MS;
            lag.send(&clock, at_ns, at_ns + if i < 3 { 6_000_000 } else { 10_000 });
            let at_ns = at_ns + 1000 * MS;
            lag.turn(&clock, at_ns, at_ns + if i < 3 { 6_000_000 } else { 10_000 });
            let at_ns = at_ns + 1000 * MS;
            lag.turn(&clock, at_ns, at_ns + 5_000_000);
        }
        assert_eq!(voids(&lag, 0..5), [false, true, true, false, false]);
        assert_eq!(lag.turn_us_max(), 6_000);
        assert!(lag.send_us(0.5) <= 10);
    }

    #[test]
    fn late_sends_void_the_seconds_in_which_they_could_have_gone() {
        let (mut lag, clock) = (Lag::default(), clock());
        // A message each 10 ms from 9 s to 14 s; those of 10.2 s to 13.1 s all go at 13.1 s.
        for possible_ns in (9_000..14_000).step_by(10).map(|ms| ms * MS) {
            let is_held_up = (10_200 * MS..13_100 * MS).contains(&possible_ns);
            lag.send(&clock, possible_ns, if is_held_up { 13_100 * MS } else { possible_ns });
        }
        assert_eq!(voids(&lag, 9..15), [false, true, true, true, true, false]);
    }

    #[test]
    fn a_long_turn_voids_every_second_from_its_start_to_its_end() {
        let (mut lag, clock) = (Lag::default(), clock());
        // A turn each millisecond, but for one from 10.2 s to 13.3 s, with nothing to send.
        for from_ns in (9_000..10_200).chain(13_300..15_000).map(|ms| ms * MS) {
            lag.turn(&clock, from_ns, from_ns + MS / 10);
        }
        lag.turn(&clock, 10_200 * MS, 13_300 * MS);
        assert_eq!(voids(&lag, 9..16), [false, true, true, true, true, false, false]);
    }

    #[test]
    fn a_turn_across_a_boundary_stalls_each_second_for_its_own_part() {
        let (mut lag, clock) = (Lag::default(), clock());
        for from_ns in (0..2_000).map(|ms| ms * MS) {
            lag.turn(&clock, from_ns, from_ns + MS / 10);
        }
        lag.turn(&clock, 950 * MS, 1_090 * MS);
        assert_eq!(voids(&lag, 0..2), [false, false]);
        lag.turn(&clock, 950 * MS, 1_110 * MS);
        assert_eq!(voids(&lag, 0..2), [false, true]);
    }
}
