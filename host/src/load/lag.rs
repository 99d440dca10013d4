//! The generator's own lag: how much later than possible it sent, and how long its turns took.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::score::{self, LAG_LIMIT_US};

/// Longest lag that the histogram tells apart: ten minutes.
const LAG_US_MAX: u64 = 600_000_000;
/// Seconds that are kept; only repeating runs have more.
const SECONDS_MAX: usize = 200_000;

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
}

impl Default for Lag {
    fn default() -> Self {
        let sends_us =
            Histogram::new_with_bounds(1, LAG_US_MAX, 2).expect("bounds and digits are valid");
        Self { seconds: BTreeMap::new(), sends_us, turn_us_max: 0 }
    }
}

impl Lag {
    /// A message went this much later than it could have.
    pub(super) fn send(&mut self, second: i64, lag_ns: u64) {
        let lag_us = lag_ns / 1000;
        self.sends_us.saturating_record(lag_us);
        let counts = self.second(second);
        counts.sends += 1;
        counts.sends_above += u64::from(lag_us > LAG_LIMIT_US);
    }

    /// A turn of the loop took this long.
    pub(super) fn turn(&mut self, second: i64, turn_ns: u64) {
        let turn_us = turn_ns / 1000;
        self.turn_us_max = self.turn_us_max.max(turn_us);
        let counts = self.second(second);
        counts.turns += 1;
        counts.turns_above += u64::from(turn_us > LAG_LIMIT_US);
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

    #[test]
    fn a_second_is_void_above_one_percent() {
        let mut lag = Lag::default();
        for i in 0..200 {
            lag.send(0, if i < 2 { 6_000_000 } else { 10_000 });
            lag.send(1, if i < 3 { 6_000_000 } else { 10_000 });
            lag.turn(2, if i < 3 { 6_000_000 } else { 10_000 });
            lag.turn(3, 5_000_000);
        }
        assert_eq!(
            [0, 1, 2, 3, 4].map(|second| lag.is_void(second)),
            [false, true, true, false, false]
        );
        assert_eq!(lag.turn_us_max(), 6_000);
        assert!(lag.send_us(0.5) <= 10);
    }
}
