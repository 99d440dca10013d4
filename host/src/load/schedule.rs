//! When each message of a group is due: arithmetic, so that any message's instant is known from its
//! number alone.

use super::{NANOS_PER_S, nanos_from_s};
use crate::scenario::Burst;

/// Rounding slack in messages: times that fall on a boundary by the scenario's decimals do so here
/// too.
const SLACK: f64 = 1e-6;

/// Send times of one publish group in one phase, in nanoseconds from the start of the phase.
///
/// The messages of a group are numbered `i = k * clients + client` for the `k`-th message of each
/// client; in this order their times never fall.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    clients: u32,
    interval_s: f64,
    sync: bool,
    burst: Option<Burst>,
    count: u64,
}

impl Schedule {
    /// A schedule for `clients` clients that send `rate_hz` messages a second each, for
    /// `duration_s`.
    #[must_use]
    pub fn new(
        clients: u32,
        rate_hz: f64,
        sync: bool,
        burst: Option<Burst>,
        duration_s: u32,
    ) -> Self {
        let mut schedule = Self { clients, interval_s: 1.0 / rate_hz, sync, burst, count: 0 };
        schedule.count = schedule.count_before(f64::from(duration_s));
        schedule
    }

    /// Messages of the whole group.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Client and number within the client of the group's message `i`.
    #[must_use]
    pub fn message(&self, i: u64) -> (u32, u64) {
        let clients = u64::from(self.clients);
        let client = u32::try_from(i % clients).unwrap_or_default(); // below `clients`, which is u32
        (client, i / clients)
    }

    /// Whether the client has a `k`-th message.
    #[must_use]
    pub fn has(&self, client: u32, k: u64) -> bool {
        let index =
            k.checked_mul(u64::from(self.clients)).and_then(|i| i.checked_add(u64::from(client)));
        client < self.clients && index.is_some_and(|i| i < self.count)
    }

    /// When the client's `k`-th message is due.
    #[must_use]
    pub fn due_ns(&self, client: u32, k: u64) -> u64 {
        let even_s = (k as f64 + self.offset(client)) * self.interval_s;
        nanos_from_s(match self.burst {
            None => even_s,
            Some(Burst { period_s, duty }) => {
                let period = (even_s / period_s + SLACK * self.interval_s / period_s).floor();
                period * period_s + (even_s - period * period_s).max(0.0) * duty
            }
        })
    }

    /// The second of the phase, from 0, in which the client's `k`-th message is due.
    #[must_use]
    pub fn second(&self, client: u32, k: u64) -> usize {
        usize::try_from(self.due_ns(client, k) / NANOS_PER_S).unwrap_or(usize::MAX)
    }

    /// Part of an interval by which the client's messages come later than the first client's.
    fn offset(&self, client: u32) -> f64 {
        if self.sync { 0.0 } else { f64::from(client) / f64::from(self.clients) }
    }

    /// Messages of the whole group that are due before `end_s` seconds of the phase have passed.
    pub(crate) fn due_before(&self, end_s: f64) -> u64 {
        self.count_before(end_s).min(self.count)
    }

    /// Messages due before `end_s`, however long the phase is.
    fn count_before(&self, end_s: f64) -> u64 {
        // The evenly spaced time before which messages go: of the last period, all that its burst
        // has sent by the end.
        let even_end_s = match self.burst {
            None => end_s,
            Some(Burst { period_s, duty }) => {
                let periods = (end_s / period_s + 1e-9).floor();
                let left_s = (end_s - periods * period_s).max(0.0);
                periods * period_s + (left_s / duty).min(period_s)
            }
        };
        let intervals = even_end_s / self.interval_s;
        if self.sync {
            whole((intervals - SLACK).ceil()) * u64::from(self.clients)
        } else {
            whole((intervals * f64::from(self.clients) - SLACK).ceil())
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "saturates; a count below 2^53 is exact")]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn all_ms(schedule: &Schedule) -> Vec<(u32, u64)> {
        (0..schedule.count())
            .map(|i| schedule.message(i))
            .map(|(c, k)| (c, schedule.due_ns(c, k) / MS))
            .collect()
    }

    #[test]
    fn clients_are_spread_over_the_interval() {
        let schedule = Schedule::new(2, 2.0, false, None, 1);
        assert_eq!(all_ms(&schedule), [(0, 0), (1, 250), (0, 500), (1, 750)]);
        assert!(
            schedule.has(1, 1)
                && !schedule.has(0, 2)
                && !schedule.has(2, 0)
                && !schedule.has(0, u64::MAX)
        );
    }

    #[test]
    fn sync_clients_send_together() {
        assert_eq!(
            all_ms(&Schedule::new(2, 2.0, true, None, 1)),
            [(0, 0), (1, 0), (0, 500), (1, 500)]
        );
    }

    #[test]
    fn a_slow_rate_still_sends_its_first_message() {
        assert_eq!(all_ms(&Schedule::new(1, 0.1, false, None, 1)), [(0, 0)]);
        // Client 1 of 2 would be due at 5 s.
        assert_eq!(all_ms(&Schedule::new(2, 0.1, false, None, 1)), [(0, 0)]);
        assert_eq!(all_ms(&Schedule::new(2, 0.1, true, None, 1)), [(0, 0), (1, 0)]);
    }

    #[test]
    fn a_burst_keeps_the_rate_and_fills_its_duty() {
        let burst = Some(Burst { period_s: 1.5, duty: 0.2 });
        let schedule = Schedule::new(1, 4.0, false, burst, 3);
        assert_eq!(
            all_ms(&schedule).iter().map(|(_, ms)| *ms).collect::<Vec<_>>(),
            [0, 50, 100, 150, 200, 250, 1500, 1550, 1600, 1650, 1700, 1750]
        );
    }

    #[test]
    fn a_period_cut_short_sends_what_its_burst_has_by_then() {
        let burst = Some(Burst { period_s: 1.5, duty: 0.5 });
        // 2 s: one period and 0.5 s of the next, whose burst lasts 0.75 s: 4 of its 6 messages are
        // due before the end.
        let times: Vec<u64> =
            all_ms(&Schedule::new(1, 4.0, false, burst, 2)).iter().map(|(_, ms)| *ms).collect();
        assert_eq!(times, [0, 125, 250, 375, 500, 625, 1500, 1625, 1750, 1875]);
    }

    #[test]
    fn boundaries_hit_by_decimals_are_hit_in_floating_point() {
        // 150 messages of 10 ms are exactly one period of 1.5 s: message 150 opens the next period.
        let schedule =
            Schedule::new(20, 100.0, false, Some(Burst { period_s: 1.5, duty: 0.2 }), 30);
        for period in 0..20 {
            assert_eq!(schedule.due_ns(0, 150 * period), 1500 * MS * period);
        }
        assert_eq!(schedule.count(), 20 * 100 * 30);
        assert_eq!(Schedule::new(10, 2000.0, false, None, 70).count(), 10 * 2000 * 70);
        assert_eq!(Schedule::new(3, 0.7, false, None, 10).count(), 21);
    }

    #[test]
    fn times_never_fall_and_lie_within_the_phase() {
        for (clients, rate_hz, sync, burst) in [
            (7, 13.3, false, None),
            (7, 13.3, true, None),
            (3, 41.7, false, Some(Burst { period_s: 0.7, duty: 0.3 })),
            (5, 0.9, false, Some(Burst { period_s: 2.1, duty: 1.0 })),
        ] {
            let schedule = Schedule::new(clients, rate_hz, sync, burst, 10);
            let times: Vec<u64> = (0..schedule.count())
                .map(|i| schedule.message(i))
                .map(|(c, k)| schedule.due_ns(c, k))
                .collect();
            assert!(
                times.is_sorted() && times.iter().all(|ns| *ns < 10 * NANOS_PER_S),
                "{schedule:?}"
            );
            assert!(times.len() as f64 > 0.9 * f64::from(clients) * rate_hz * 10.0, "{schedule:?}");
        }
    }
}
