//! What is expected of one run of a phase, and what arrived.

use std::rc::Rc;

use hdrhistogram::Histogram;

use super::outage::Outages;
use super::schedule::Schedule;
use super::score::SecondCounts;
use super::{NANOS_PER_S, RunClock, nanos};
use crate::scenario::{Phase, PublishGroup, SubscribeGroup, topic};

/// Longest latency that the histograms tell apart: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// One run of a phase: the lead-in, or a phase of the scored part (again and again when it
/// repeats).
pub(super) struct Instance {
    /// Distinguishes the messages of successive runs; wraps, as only neighbours are ever alive
    /// together.
    pub(super) number: u16,
    /// Index of the phase in the scenario.
    pub(super) phase: usize,
    /// False for the lead-in.
    pub(super) scored: bool,
    /// First and last instant, on the run's clock.
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    /// Until when subscribers stay for what is still in time.
    pub(super) stay_until_ns: u64,
    pub(super) writers: Vec<Writers>,
    pub(super) readers: Vec<Readers>,
    /// By slot: group and client.
    reader_of_slot: Vec<Option<(usize, usize)>>,
    /// Deliveries that nobody expected: exempt, or of another phase's filter.
    pub(super) unexpected: u64,
}

/// A publish group in one run of a phase.
pub(super) struct Writers {
    pub(super) schedule: Rc<Schedule>,
    /// Number of its first client among all publishers of the phase.
    pub(super) base: u32,
    /// By client.
    pub(super) slots: Vec<usize>,
    pub(super) topics: Vec<Rc<str>>,
    /// Next message that is not due yet, and when it is.
    pub(super) next: u64,
    pub(super) next_due_ns: u64,
    /// Subscribers that expect a client's messages: `[client * reader groups + reader group]`.
    audience: Vec<u32>,
}

/// A subscribe group in one run of a phase.
pub(super) struct Readers {
    pub(super) slots: Vec<usize>,
    filters: Vec<String>,
    pub(super) deadline_ns: u64,
    pub(super) clean: bool,
    pub(super) away: Option<Away>,
    /// By second of intended send.
    pub(super) seconds: Vec<SecondCounts>,
    /// Messages that arrived: by client, then publisher.
    seen: Vec<Vec<Bits>>,
    pub(super) latency_us: Histogram<u32>,
    pub(super) duplicates: u64,
    /// Seconds whose last deadline is over.
    pub(super) closed: usize,
}

/// A scheduled absence on the run's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Away {
    pub(super) at_ns: u64,
    /// When the group connects again: `reconnect_ms` after the end.
    pub(super) back_ns: u64,
}

/// A set of message numbers.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// Adds `k`; false where it was there.
    fn insert(&mut self, k: u64) -> bool {
        let Ok(word) = usize::try_from(k / 64) else {
            return false;
        };
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let bit = 1 << (k % 64);
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    fn contains(&self, k: u64) -> bool {
        usize::try_from(k / 64)
            .ok()
            .and_then(|word| self.0.get(word))
            .is_some_and(|word| word & (1 << (k % 64)) != 0)
    }
}

impl Writers {
    pub(super) fn new(
        group: &PublishGroup,
        schedule: Schedule,
        base: u32,
        slots: Vec<usize>,
        start_ns: u64,
    ) -> Self {
        let topics = (0..group.clients)
            .map(|c| topic::expand(&group.topic, &group.name, c).into())
            .collect();
        let mut writers = Self {
            schedule: Rc::new(schedule),
            base,
            slots,
            topics,
            next: 0,
            next_due_ns: 0,
            audience: Vec::new(),
        };
        writers.set_next(0, start_ns);
        writers
    }

    fn set_next(&mut self, next: u64, start_ns: u64) {
        self.next = next;
        self.next_due_ns = if next < self.schedule.count() {
            let (client, k) = self.schedule.message(next);
            start_ns + self.schedule.due_ns(client, k)
        } else {
            u64::MAX
        };
    }
}

impl Readers {
    pub(super) fn new(
        group: &SubscribeGroup,
        duration_s: u32,
        slots: Vec<usize>,
        away: Option<Away>,
    ) -> Self {
        Self {
            filters: (0..group.clients)
                .map(|c| topic::expand(&group.filter, &group.name, c))
                .collect(),
            deadline_ns: nanos(group.deadline),
            clean: group.clean_session,
            away,
            seconds: vec![SecondCounts::default(); duration_s as usize],
            seen: slots.iter().map(|_| Vec::new()).collect(),
            slots,
            latency_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 2)
                .expect("bounds and digits are valid"),
            duplicates: 0,
            closed: 0,
        }
    }

    /// Whether nothing is expected of a message due then: a clean session that the scenario has
    /// offline.
    fn is_exempt(&self, due_ns: u64) -> bool {
        self.clean && self.away.is_some_and(|away| away.at_ns <= due_ns && due_ns < away.back_ns)
    }

    /// Last instant at which a message due then is in time.
    pub(super) fn expiry_ns(&self, due_ns: u64) -> u64 {
        match self.away {
            Some(away)
                if !self.clean
                    && due_ns < away.back_ns
                    && due_ns + self.deadline_ns > away.at_ns =>
            {
                away.back_ns + self.deadline_ns
            }
            _ => due_ns + self.deadline_ns,
        }
    }

    /// When every message due in `[from_ns, to_ns)` has expired.
    pub(super) fn all_expired_ns(&self, from_ns: u64, to_ns: u64) -> u64 {
        let plain_ns = to_ns + self.deadline_ns;
        match self.away {
            Some(away) if !self.clean && from_ns < away.back_ns && plain_ns > away.at_ns => {
                plain_ns.max(away.back_ns + self.deadline_ns)
            }
            _ => plain_ns,
        }
    }
}

/// A delivery as its payload names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) slot: usize,
    pub(super) publisher: u32,
    pub(super) k: u64,
    pub(super) now_ns: u64,
}

impl Instance {
    pub(super) fn new(
        number: u16,
        phase: usize,
        scored: bool,
        start_ns: u64,
        definition: &Phase,
    ) -> Self {
        let end_ns = start_ns + u64::from(definition.duration_s) * NANOS_PER_S;
        Self {
            number,
            phase,
            scored,
            start_ns,
            end_ns,
            stay_until_ns: end_ns,
            writers: Vec::new(),
            readers: Vec::new(),
            reader_of_slot: Vec::new(),
            unexpected: 0,
        }
    }

    /// Fixes the groups: who expects what, and how long subscribers stay.
    pub(super) fn set_groups(&mut self, writers: Vec<Writers>, readers: Vec<Readers>) {
        self.writers = writers;
        self.readers = readers;
        let slots =
            self.readers.iter().flat_map(|group| &group.slots).max().map_or(0, |slot| slot + 1);
        self.reader_of_slot = vec![None; slots];
        for (g, group) in self.readers.iter().enumerate() {
            for (client, slot) in group.slots.iter().enumerate() {
                self.reader_of_slot[*slot] = Some((g, client));
            }
            self.stay_until_ns =
                self.stay_until_ns.max(group.all_expired_ns(self.start_ns, self.end_ns));
        }
        for writers in &mut self.writers {
            writers.audience = audience(&writers.topics, &self.readers);
        }
    }

    /// When the next message of any group is due; `u64::MAX` after the last.
    pub(super) fn next_due_ns(&self) -> u64 {
        self.writers.iter().map(|writers| writers.next_due_ns).min().unwrap_or(u64::MAX)
    }

    /// Takes the next message of a group that is due by `now_ns`, and expects it: its client and
    /// number.
    pub(super) fn take_due(&mut self, group: usize, now_ns: u64) -> Option<(usize, u64)> {
        let writers = &mut self.writers[group];
        if writers.next_due_ns > now_ns {
            return None;
        }
        let (client, k) = writers.schedule.message(writers.next);
        let due_ns = writers.next_due_ns;
        let second = usize::try_from((due_ns - self.start_ns) / NANOS_PER_S).unwrap_or(usize::MAX);
        let groups = self.readers.len();
        let client = client as usize;
        for (g, readers) in self.readers.iter_mut().enumerate() {
            let subscribers = writers.audience[client * groups + g];
            if subscribers > 0
                && !readers.is_exempt(due_ns)
                && let Some(counts) = readers.seconds.get_mut(second)
            {
                counts.expected += u64::from(subscribers);
            }
        }
        writers.set_next(writers.next + 1, self.start_ns);
        Some((client, k))
    }

    /// Counts a delivery: its latency in microseconds, or `None` where it is not the first of its
    /// message to its subscriber, or nobody expected it.
    pub(super) fn deliver(
        &mut self,
        delivery: Delivery,
        clock: &RunClock,
        outages: &Outages,
    ) -> Option<u64> {
        let Some((g, client)) = self.reader_of_slot.get(delivery.slot).copied().flatten() else {
            self.unexpected += 1;
            return None;
        };
        let (writers, writer) = self.writer(delivery.publisher)?;
        let writers = &self.writers[writers];
        let Delivery { k, now_ns, .. } = delivery;
        if !writers.schedule.has(writer, k) {
            return None;
        }
        let offset_ns = writers.schedule.due_ns(writer, k);
        let due_ns = self.start_ns + offset_ns;
        let readers = &mut self.readers[g];
        if readers.is_exempt(due_ns) {
            self.unexpected += 1;
            return None;
        }
        let seen = &mut readers.seen[client];
        let publisher = delivery.publisher as usize;
        if publisher >= seen.len() {
            seen.resize_with(publisher + 1, Bits::default);
        }
        if !seen[publisher].insert(k) {
            readers.duplicates += 1;
            return None;
        }
        let latency_us = now_ns.saturating_sub(due_ns) / 1000;
        readers.latency_us.saturating_record(latency_us);
        let expiry_ns = readers.expiry_ns(due_ns);
        let second = usize::try_from(offset_ns / NANOS_PER_S).unwrap_or(usize::MAX);
        let counts = readers.seconds.get_mut(second)?;
        if now_ns <= expiry_ns {
            counts.arrive(clock.second(now_ns));
        } else {
            counts.late += 1;
            let writer_slot = writers.slots[writer as usize];
            if outages.any([writer_slot, delivery.slot], due_ns, expiry_ns) {
                counts.outage += 1;
                counts.outage_late += 1;
            }
        }
        Some(latency_us)
    }

    /// Group and client of a publisher's number.
    fn writer(&self, publisher: u32) -> Option<(usize, u32)> {
        self.writers.iter().enumerate().find_map(|(g, writers)| {
            let client = publisher.checked_sub(writers.base)?;
            ((client as usize) < writers.slots.len()).then_some((g, client))
        })
    }

    /// Closes the next second of a reader group whose deadlines are all over by `now_ns`.
    pub(super) fn close_second(&mut self, group: usize, now_ns: u64) -> Option<&SecondCounts> {
        let next_due_ns = self.next_due_ns();
        let readers = &mut self.readers[group];
        let from_ns = self.start_ns + readers.closed as u64 * NANOS_PER_S;
        let to_ns = from_ns + NANOS_PER_S;
        if readers.closed >= readers.seconds.len()
            || next_due_ns < to_ns
            || readers.all_expired_ns(from_ns, to_ns) > now_ns
        {
            return None;
        }
        readers.closed += 1;
        readers.seconds.get(readers.closed - 1)
    }

    /// Forgets the seconds that are not closed: a stopped run is scored on whole seconds.
    pub(super) fn keep_closed(&mut self) {
        for readers in &mut self.readers {
            readers.seconds.truncate(readers.closed);
        }
    }

    /// Charges messages that were never delivered to the outages before their deadlines.
    pub(super) fn charge_outages(&mut self, outages: &Outages) {
        if outages.is_empty() {
            return;
        }
        for g in 0..self.readers.len() {
            let mut lost = vec![0; self.readers[g].seconds.len()];
            let open: Vec<bool> =
                self.readers[g].seconds.iter().map(|s| s.in_time() + s.late < s.expected).collect();
            for writers in &self.writers {
                charge(&mut lost, &open, &self.readers[g], writers, self.start_ns, outages);
            }
            for (counts, lost) in self.readers[g].seconds.iter_mut().zip(lost) {
                counts.outage += lost;
            }
        }
    }
}

/// Adds to `lost` the undelivered messages of one publish group to one subscribe group that an
/// outage explains.
fn charge(
    lost: &mut [u64],
    open: &[bool],
    readers: &Readers,
    writers: &Writers,
    start_ns: u64,
    outages: &Outages,
) {
    for (writer, (topic, writer_slot)) in writers.topics.iter().zip(&writers.slots).enumerate() {
        let Ok(writer) = u32::try_from(writer) else {
            return;
        };
        let matching: Vec<usize> = (0..readers.slots.len())
            .filter(|reader| topic::matches(&readers.filters[*reader], topic))
            .filter(|reader| outages.ever([*writer_slot, readers.slots[*reader]]))
            .collect();
        if matching.is_empty() {
            continue;
        }
        let publisher = (writers.base + writer) as usize;
        for k in (0..).take_while(|k| writers.schedule.has(writer, *k)) {
            let offset_ns = writers.schedule.due_ns(writer, k);
            let due_ns = start_ns + offset_ns;
            let second = usize::try_from(offset_ns / NANOS_PER_S).unwrap_or(usize::MAX);
            if !open.get(second).copied().unwrap_or(false) || readers.is_exempt(due_ns) {
                continue;
            }
            for reader in &matching {
                let arrived =
                    readers.seen[*reader].get(publisher).is_some_and(|seen| seen.contains(k));
                let slots = [*writer_slot, readers.slots[*reader]];
                if !arrived && outages.any(slots, due_ns, readers.expiry_ns(due_ns)) {
                    lost[second] += 1;
                }
            }
        }
    }
}

/// Subscribers of each reader group that match each topic.
fn audience(topics: &[Rc<str>], readers: &[Readers]) -> Vec<u32> {
    let count = |group: &Readers, topic: &str| match group.filters.as_slice() {
        // Groups without {client} have one filter in all their places.
        [first, .., last] if first == last => {
            if topic::matches(first, topic) {
                group.filters.len()
            } else {
                0
            }
        }
        filters => filters.iter().filter(|filter| topic::matches(filter, topic)).count(),
    };
    let counts =
        topics.iter().flat_map(|topic| readers.iter().map(move |group| count(group, topic)));
    counts.map(|count| u32::try_from(count).unwrap_or(u32::MAX)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    const MS: u64 = 1_000_000;

    /// One writer (slot 0, 10 Hz for 4 s) and a durable and a clean reader (slots 1, 2), away from
    /// 1 s to 2.2 s.
    fn instance() -> Instance {
        let reader = "clients = 1\nfilter = \"a\"\nqos = 1\noffline = { at_s = 1, for_s = 1 }";
        let text = format!(
            "schema = 1\nname = \"t\"\nsummary = \"t\"\nrss_limit_mib = 64\ndeadline_ms = 300\n[[phase]]\nname = \"p\"\n\
             duration_s = 4\n[[phase.publish]]\nname = \"w\"\nclients = 1\nrate_hz = 10\npayload_bytes = 16\ntopic = \"a\"\n\
             [[phase.subscribe]]\nname = \"durable\"\nclean_session = false\n{reader}\n\
             [[phase.subscribe]]\nname = \"clean\"\n{reader}\n"
        );
        let phase = &Scenario::parse(&text, "test").unwrap().phases[0];
        let mut instance = Instance::new(0, 0, true, 0, phase);
        let schedule = Schedule::new(1, 10.0, false, None, 4);
        let writers = Writers::new(&phase.publish[0], schedule, 0, vec![0], 0);
        let away = Some(Away { at_ns: 1000 * MS, back_ns: 2200 * MS });
        let readers = phase.subscribe.iter().zip(1..);
        let readers =
            readers.map(|(group, slot)| Readers::new(group, 4, vec![slot], away)).collect();
        instance.set_groups(vec![writers], readers);
        while instance.take_due(0, u64::MAX - 1).is_some() {}
        instance
    }

    fn expected(instance: &Instance, group: usize) -> Vec<u64> {
        instance.readers[group].seconds.iter().map(|counts| counts.expected).collect()
    }

    fn deliver(instance: &mut Instance, slot: usize, k: u64, now_ms: u64) -> bool {
        let clock = RunClock { origin: std::time::Instant::now(), scored_ns: 0 };
        let delivery = Delivery { slot, publisher: 0, k, now_ns: now_ms * MS };
        instance.deliver(delivery, &clock, &Outages::default()).is_some()
    }

    #[test]
    fn a_clean_session_is_exempt_while_away_and_a_durable_one_is_not() {
        let instance = instance();
        assert_eq!(expected(&instance, 0), [10, 10, 10, 10]);
        // Due at 1.0 to 1.9 s, 2.0 and 2.1 s: away until 2.2 s.
        assert_eq!(expected(&instance, 1), [10, 0, 8, 10]);
    }

    #[test]
    fn a_durable_session_has_its_deadline_from_its_return() {
        let mut instance = instance();
        assert_eq!(instance.readers[0].expiry_ns(500 * MS), 800 * MS);
        // In time when it went away: 0.8 s + 0.3 s is after 1 s.
        assert_eq!(instance.readers[0].expiry_ns(800 * MS), 2500 * MS);
        assert_eq!(instance.readers[0].expiry_ns(1500 * MS), 2500 * MS);
        assert_eq!(instance.readers[0].expiry_ns(2200 * MS), 2500 * MS);
        assert!(deliver(&mut instance, 1, 15, 2500) && deliver(&mut instance, 1, 16, 2501));
        let counts = &instance.readers[0].seconds[1];
        assert_eq!((counts.in_time(), counts.late), (1, 1));
    }

    #[test]
    fn only_the_first_expected_delivery_counts() {
        let mut instance = instance();
        assert!(deliver(&mut instance, 1, 0, 10));
        assert!(!deliver(&mut instance, 1, 0, 11), "a duplicate");
        assert!(deliver(&mut instance, 2, 0, 12), "another subscriber");
        assert!(!deliver(&mut instance, 2, 12, 2210), "exempt");
        assert!(!deliver(&mut instance, 7, 0, 10), "no subscriber of this phase");
        assert!(!deliver(&mut instance, 1, 40, 10), "never sent");
        assert!(!deliver(&mut instance, 1, u64::MAX, 10), "never sent");
        assert_eq!((instance.readers[0].duplicates, instance.unexpected), (1, 2));
    }

    #[test]
    fn a_second_closes_with_its_last_deadline() {
        let mut instance = instance();
        assert!(instance.close_second(0, 1299 * MS).is_none());
        // Messages of the first second from 0.7 s on may wait for the return at 2.2 s.
        assert!(instance.close_second(0, 2499 * MS).is_none());
        assert!(instance.close_second(0, 2500 * MS).is_some());
        assert!(
            instance.close_second(1, 1300 * MS).is_some(),
            "a clean session has nothing to wait for"
        );
        assert_eq!(instance.stay_until_ns, 4300 * MS);
    }

    #[test]
    fn undelivered_messages_are_charged_to_outages_that_they_met() {
        let mut instance = instance();
        let mut outages = Outages::default();
        outages.begin(0, 3050 * MS);
        outages.end(0, 3250 * MS);
        (0..30).for_each(|k| assert!(deliver(&mut instance, 1, k, 100 * k + 1)));
        instance.charge_outages(&outages);
        // Of those due from 3.0 s on, the ones due by 3.25 s.
        assert_eq!(instance.readers[0].seconds[3].outage, 3);
        // Due at 2.8 and 2.9 s too: their deadlines were not over at 3.05 s.
        assert_eq!(instance.readers[1].seconds[2].outage, 2);
    }
}
