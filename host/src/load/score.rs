//! The score: pure functions over counts. Benchmark, simulator, reward and evaluation all use this
//! module.
//!
//! For each subscribe group and each second of intended send: in-time first deliveries over
//! expected ones. Mean over the seconds, mean over the groups of the phase by weight, mean over the
//! phases by weight. Deliveries that arrive in a wall-clock second whose median resident memory is
//! above the limit count as lost; seconds in which the generator itself lagged are left out.

use std::collections::BTreeMap;

/// A run with more than this share of void seconds is void.
pub const VOID_SECONDS_SHARE_MAX: f64 = 0.05;
/// A second in which more than 1 % of the generator's sends or turns lag above this is void.
pub const LAG_LIMIT_US: u64 = 5_000;

/// What became of the messages of one subscribe group that were due in one second.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecondCounts {
    /// Messages times subscribers.
    pub expected: u64,
    /// First deliveries within the deadline, by the wall-clock second of their arrival.
    pub arrivals: Vec<Arrivals>,
    /// First deliveries after the deadline.
    pub late: u64,
    /// Of `expected`: late or never delivered while publisher or subscriber had lost its
    /// connection.
    pub outage: u64,
    /// Of `outage`: delivered, but late.
    pub outage_late: u64,
    /// The generator lagged: the second is left out of the means.
    pub void: bool,
}

/// In-time first deliveries that arrived in one wall-clock second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrivals {
    /// Seconds from the start of the scored part, rounded down; negative during the lead-in.
    pub second: i64,
    /// Deliveries.
    pub in_time: u64,
}

impl SecondCounts {
    /// Counts one in-time first delivery.
    pub fn arrive(&mut self, second: i64) {
        self.arrive_many(second, 1);
    }

    /// Counts in-time first deliveries that arrive in the same second.
    pub fn arrive_many(&mut self, second: i64, count: u64) {
        match self.arrivals.last_mut() {
            Some(last) if last.second == second => last.in_time += count,
            _ => match self.arrivals.iter_mut().find(|arrivals| arrivals.second == second) {
                Some(found) => found.in_time += count,
                None => self.arrivals.push(Arrivals { second, in_time: count }),
            },
        }
    }

    /// In-time first deliveries, whatever the memory.
    #[must_use]
    pub fn in_time(&self) -> u64 {
        self.arrivals.iter().map(|arrivals| arrivals.in_time).sum()
    }
}

/// All seconds of one subscribe group in one phase.
#[derive(Debug, Clone, Copy)]
pub struct GroupCounts<'a> {
    /// The group's weight.
    pub weight: f64,
    /// In any order.
    pub seconds: &'a [SecondCounts],
}

/// All groups of one phase.
#[derive(Debug, Clone)]
pub struct PhaseCounts<'a> {
    /// The phase's weight.
    pub weight: f64,
    /// The subscribe groups.
    pub groups: Vec<GroupCounts<'a>>,
}

/// Sums over seconds, with each lost message under exactly one cause:
/// `expected = in_time + lost_memory + lost_late + lost_queue + lost_outage`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Messages times subscribers.
    pub expected: u64,
    /// First deliveries that count.
    pub in_time: u64,
    /// Delivered after the deadline.
    pub lost_late: u64,
    /// Never delivered.
    pub lost_queue: u64,
    /// Late or never delivered, and publisher or subscriber had lost its connection before the
    /// deadline.
    pub lost_outage: u64,
    /// In time, but in a second with too much resident memory.
    pub lost_memory: u64,
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Tally {
        tallies.fold(Tally::default(), |a, b| Tally {
            expected: a.expected + b.expected,
            in_time: a.in_time + b.in_time,
            lost_late: a.lost_late + b.lost_late,
            lost_queue: a.lost_queue + b.lost_queue,
            lost_outage: a.lost_outage + b.lost_outage,
            lost_memory: a.lost_memory + b.lost_memory,
        })
    }
}

impl Tally {
    /// Adds one second.
    pub fn add(&mut self, counts: &SecondCounts, memory: &MemorySeconds) {
        let in_time = counted(counts, memory);
        let arrived = counts.in_time();
        self.expected += counts.expected;
        self.in_time += in_time;
        self.lost_memory += arrived - in_time;
        self.lost_outage += counts.outage;
        self.lost_late += counts.late.saturating_sub(counts.outage_late);
        let outage_never = counts.outage.saturating_sub(counts.outage_late);
        let undelivered = counts.expected.saturating_sub(arrived).saturating_sub(counts.late);
        self.lost_queue += undelivered.saturating_sub(outage_never);
    }
}

/// In-time first deliveries that no memory limit takes away.
fn counted(counts: &SecondCounts, memory: &MemorySeconds) -> u64 {
    counts
        .arrivals
        .iter()
        .filter(|arrivals| !memory.is_over(arrivals.second))
        .map(|arrivals| arrivals.in_time)
        .sum()
}

/// Share of one second, or `None` where the second does not take part (nothing expected, or void).
#[must_use]
pub fn second_score(counts: &SecondCounts, memory: &MemorySeconds) -> Option<f64> {
    let takes_part = counts.expected > 0 && !counts.void;
    takes_part.then(|| (counted(counts, memory) as f64 / counts.expected as f64).min(1.0))
}

/// Mean over the seconds that take part.
#[must_use]
pub fn group_score(seconds: &[SecondCounts], memory: &MemorySeconds) -> Option<f64> {
    weighted_mean(
        seconds.iter().filter_map(|counts| second_score(counts, memory)).map(|score| (1.0, score)),
    )
}

/// Mean over the groups by weight.
#[must_use]
pub fn phase_score(groups: &[GroupCounts<'_>], memory: &MemorySeconds) -> Option<f64> {
    weighted_mean(
        groups.iter().filter_map(|group| Some((group.weight, group_score(group.seconds, memory)?))),
    )
}

/// The score of a run in 0..=1: mean over the phases by weight. `None` where nothing takes part.
#[must_use]
pub fn run_score(phases: &[PhaseCounts<'_>], memory: &MemorySeconds) -> Option<f64> {
    weighted_mean(
        phases.iter().filter_map(|phase| Some((phase.weight, phase_score(&phase.groups, memory)?))),
    )
}

/// Mean of `(weight, value)`; `None` without any positive weight.
fn weighted_mean(values: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (weights, sum) = values.fold((0.0, 0.0), |(weights, sum), (weight, value)| {
        (weights + weight, sum + weight * value)
    });
    (weights > 0.0).then(|| sum / weights)
}

/// Whether a run with this many void seconds is void.
#[must_use]
pub fn is_void_run(seconds_void: u64, seconds_total: u64) -> bool {
    seconds_void as f64 > VOID_SECONDS_SHARE_MAX * seconds_total as f64
}

/// Whether the 99th percentile of a second's lags is above [`LAG_LIMIT_US`], from how many there
/// were and were above.
#[must_use]
pub fn is_lagging(samples: u64, samples_above_limit: u64) -> bool {
    samples_above_limit * 100 > samples
}

/// Resident memory of the broker by wall-clock second, against the scenario's limit.
#[derive(Debug, Clone, Default)]
pub struct MemorySeconds {
    limit_bytes: u64,
    seconds: BTreeMap<i64, Vec<u64>>,
}

impl MemorySeconds {
    /// No samples yet: nothing is above the limit.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, seconds: BTreeMap::new() }
    }

    /// Adds a sample of VmRSS to its second, numbered as in [`Arrivals`].
    pub fn push(&mut self, second: i64, rss_bytes: u64) {
        self.seconds.entry(second).or_default().push(rss_bytes);
    }

    /// Whether the median of the second's samples is above the limit; false without samples.
    #[must_use]
    pub fn is_over(&self, second: i64) -> bool {
        self.seconds
            .get(&second)
            .and_then(|samples| median(samples))
            .is_some_and(|bytes| bytes > self.limit_bytes)
    }

    /// Drops the seconds before `second`.
    pub fn forget_before(&mut self, second: i64) {
        self.seconds = self.seconds.split_off(&second);
    }

    /// Seconds above the limit.
    #[must_use]
    pub fn seconds_over(&self) -> u64 {
        self.seconds.keys().filter(|second| self.is_over(**second)).count() as u64
    }

    /// Largest sample.
    #[must_use]
    pub fn rss_bytes_max(&self) -> Option<u64> {
        self.seconds.values().flatten().copied().max()
    }
}

/// Median; of an even number of values the mean of the two in the middle.
fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let upper = *sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        1 => Some(upper),
        _ => Some(sorted[sorted.len() / 2 - 1].midpoint(upper)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(expected: u64, arrivals: &[(i64, u64)]) -> SecondCounts {
        let arrivals =
            arrivals.iter().map(|&(second, in_time)| Arrivals { second, in_time }).collect();
        SecondCounts { expected, arrivals, ..SecondCounts::default() }
    }

    fn close(score: Option<f64>, wanted: f64) {
        assert!(
            score.is_some_and(|score| (score - wanted).abs() < 1e-12),
            "{score:?}, wanted {wanted}"
        );
    }

    #[test]
    fn seconds_count_alike_however_many_messages_they_have() {
        let memory = MemorySeconds::new(100);
        // 10 of 10, 0 of 1000, none expected (left out), 5 of 10: (1 + 0 + 0.5) / 3.
        let seconds = [
            second(10, &[(0, 10)]),
            second(1000, &[]),
            second(0, &[]),
            second(10, &[(3, 2), (4, 3)]),
        ];
        close(group_score(&seconds, &memory), 0.5);
    }

    #[test]
    fn groups_and_phases_are_weighted() {
        let memory = MemorySeconds::new(100);
        let (full, half, none) = ([second(4, &[(0, 4)])], [second(4, &[(0, 2)])], [second(0, &[])]);
        let group = |weight, seconds| GroupCounts { weight, seconds };
        // (3 * 1 + 1 * 0.5) / 4; the group without any expected message is left out.
        let groups = [group(3.0, &full[..]), group(1.0, &half[..]), group(100.0, &none[..])];
        close(phase_score(&groups, &memory), 0.875);
        let phases = [
            PhaseCounts { weight: 30.0, groups: groups.to_vec() },
            PhaseCounts { weight: 10.0, groups: vec![group(1.0, &half)] },
            PhaseCounts { weight: 60.0, groups: vec![group(1.0, &none)] },
        ];
        close(run_score(&phases, &memory), (30.0 * 0.875 + 10.0 * 0.5) / 40.0);
        assert_eq!(run_score(&[], &memory), None);
        assert_eq!(phase_score(&[group(0.0, &full)], &memory), None);
    }

    #[test]
    fn void_seconds_are_left_out() {
        let memory = MemorySeconds::new(100);
        let void = SecondCounts { void: true, ..second(10, &[]) };
        close(group_score(&[second(10, &[(0, 10)]), void.clone()], &memory), 1.0);
        assert_eq!(group_score(&[void], &memory), None);
        assert!(
            !is_void_run(5, 100) && is_void_run(6, 100) && is_void_run(1, 19) && !is_void_run(0, 0)
        );
        assert!(!is_lagging(100, 1) && is_lagging(100, 2) && is_lagging(1, 1) && !is_lagging(0, 0));
    }

    #[test]
    fn memory_takes_the_deliveries_that_arrive_in_its_second() {
        let mut memory = MemorySeconds::new(100);
        for bytes in [90, 101, 102] {
            memory.push(1, bytes); // median 101: over
        }
        for bytes in [90, 100, 300] {
            memory.push(2, bytes); // median 100: at the limit, not over
        }
        assert!(!memory.is_over(0) && memory.is_over(1) && !memory.is_over(2));
        assert_eq!((memory.seconds_over(), memory.rss_bytes_max()), (1, Some(300)));
        // Due in second 0: 4 arrive in it, 6 in second 1 and are lost.
        let seconds = [second(10, &[(0, 4), (1, 6)])];
        close(group_score(&seconds, &memory), 0.4);
        let mut tally = Tally::default();
        tally.add(&seconds[0], &memory);
        assert_eq!(tally, Tally { expected: 10, in_time: 4, lost_memory: 6, ..Tally::default() });
    }

    #[test]
    fn an_even_number_of_samples_has_the_mean_of_its_middle() {
        assert_eq!(median(&[4, 1, 3, 2]), Some(2)); // 2.5 rounded down: whole bytes
        assert_eq!(median(&[10, 20]), Some(15));
        assert_eq!(median(&[7]), Some(7));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn every_lost_message_has_one_cause() {
        let memory = MemorySeconds::new(100);
        // 100 expected: 60 in time, 10 late (3 of them by an outage), 30 never (8 of them by an
        // outage).
        let counts =
            SecondCounts { late: 10, outage: 11, outage_late: 3, ..second(100, &[(0, 60)]) };
        let mut tally = Tally::default();
        tally.add(&counts, &memory);
        let wanted = Tally {
            expected: 100,
            in_time: 60,
            lost_late: 7,
            lost_queue: 22,
            lost_outage: 11,
            lost_memory: 0,
        };
        assert_eq!(tally, wanted);
    }

    #[test]
    fn arrivals_gather_by_second() {
        let mut counts = SecondCounts::default();
        for second in [-1, 0, 0, -1, 3] {
            counts.arrive(second);
        }
        let wanted =
            [(-1, 2), (0, 2), (3, 1)].map(|(second, in_time)| Arrivals { second, in_time });
        assert_eq!((counts.arrivals.as_slice(), counts.in_time()), (&wanted[..], 5));
    }

    #[test]
    fn forgetting_keeps_the_later_seconds() {
        let mut memory = MemorySeconds::new(1);
        memory.push(1, 5);
        memory.push(2, 5);
        memory.forget_before(2);
        assert!(!memory.is_over(1) && memory.is_over(2));
    }
}
