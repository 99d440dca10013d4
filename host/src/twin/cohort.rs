//! Publishers and subscribers of a phase: a group is one cohort.

use super::link::{Batch, Client, Limits, Link, Packet, Work};
use super::time::{Slice, Span};
use crate::load::schedule::Schedule;
use crate::load::score::SecondCounts;
use crate::scenario::{PublishGroup, Qos, SubscribeGroup, topic};
use std::collections::{HashMap, VecDeque};

/// Shortest wait before a client connects again.
pub(super) const RETRY_MIN_US: u64 = 10_000;
/// Filters of a group that are matched one by one.
const FILTERS_MATCHED_MAX: u32 = 16;
/// Unsent messages that a client keeps.
const UNSENT_MAX: u32 = 10_000;

/// A publish group.
#[derive(Debug)]
pub(super) struct Publishers {
    pub(super) clients: u32,
    pub(super) qos: Qos,
    pub(super) bytes: u32,
    window: u32,
    /// All clients send at the same instants.
    pub(super) is_sync: bool,
    schedule: Schedule,
    /// Messages that were due so far.
    begun: u64,
    is_stopped: bool,
    /// Due, and kept by the clients because their window is full.
    unsent: VecDeque<Batch>,
    unsent_count: u32,
    /// Sent, and not read by the broker yet.
    inbox: VecDeque<Batch>,
    inbox_count: u32,
    /// Of each subscribe group: the share of this group's messages that a member expects.
    pub(super) audience: Vec<f64>,
    pub(super) reconnect: Span,
    /// When the clients connect again; `None` while they are connected.
    pub(super) back: Option<Slice>,
}

impl Publishers {
    pub(super) fn new(
        group: &PublishGroup,
        schedule: Schedule,
        subscribers: &[Subscribers],
        slice_us: u32,
    ) -> Publishers {
        let bytes = group.payload_bytes_min.midpoint(group.payload_bytes_max);
        let audience = subscribers.iter().map(|readers| share(group, &readers.group)).collect();
        Publishers {
            clients: group.clients,
            qos: group.qos,
            bytes,
            window: u32::from(group.inflight),
            is_sync: group.sync,
            schedule,
            begun: 0,
            is_stopped: false,
            unsent: VecDeque::new(),
            unsent_count: 0,
            inbox: VecDeque::new(),
            inbox_count: 0,
            audience,
            reconnect: Span::of_us(us(group.reconnect).max(RETRY_MIN_US), slice_us),
            back: None,
        }
    }

    /// Messages due before `end_s` of the phase; they count as due at `now`.
    pub(super) fn due(&mut self, now: Slice, end_s: f64) -> u32 {
        if self.is_stopped {
            return 0;
        }
        let begun = self.schedule.due_before(end_s);
        let count = u32::try_from(begun.saturating_sub(self.begun)).unwrap_or(u32::MAX);
        self.begun = begun;
        if count > 0 {
            let (packet, bytes, qos) = (Packet::Publish, self.bytes, self.qos);
            let batch = Batch { packet, due: now, count, bytes, qos, is_repeat: false };
            self.unsent.push_back(batch);
            self.unsent_count += count;
            let excess = self.unsent_count.saturating_sub(UNSENT_MAX.saturating_mul(self.clients));
            let _ = take(&mut self.unsent, &mut self.unsent_count, excess);
        }
        count
    }

    /// Sends what the clients' windows permit.
    pub(super) fn send(&mut self) {
        if self.back.is_some() {
            if self.qos == Qos::AtMostOnce {
                self.unsent.clear();
                self.unsent_count = 0;
            }
            return;
        }
        let window = match self.qos {
            Qos::AtMostOnce => u32::MAX,
            _ => self.window.saturating_mul(self.clients),
        };
        loop {
            let room = window.saturating_sub(self.inbox_count);
            let Some(batch) = take_front(&mut self.unsent, &mut self.unsent_count, room) else {
                return;
            };
            self.inbox_count += batch.count;
            self.inbox.push_back(batch);
        }
    }

    /// The connections are lost until `back`; what was not acknowledged is sent again then.
    pub(super) fn lose(&mut self, back: Slice) {
        self.back = Some(back);
        let count = std::mem::take(&mut self.inbox_count);
        let mut again = std::mem::take(&mut self.inbox);
        if self.qos != Qos::AtMostOnce {
            again.append(&mut self.unsent);
            self.unsent = again;
            self.unsent_count += count;
        }
    }

    /// The phase is over: clients send nothing that they have not sent.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.unsent.clear();
        self.unsent_count = 0;
    }

    /// Whether the broker has something of it to read.
    pub(super) fn is_waiting(&self) -> bool {
        self.inbox_count > 0
    }

    /// What the broker reads of it: so many packets at the most.
    pub(super) fn read(&mut self, count: u32) -> Option<Batch> {
        take_front(&mut self.inbox, &mut self.inbox_count, count)
    }
}

/// Takes up to `count` messages off the front, all of one batch.
fn take_front(batches: &mut VecDeque<Batch>, total: &mut u32, count: u32) -> Option<Batch> {
    let front = batches.front_mut().filter(|_| count > 0)?;
    let taken = Batch { count: count.min(front.count), ..*front };
    front.count -= taken.count;
    *total -= taken.count;
    if front.count == 0 {
        batches.pop_front();
    }
    Some(taken)
}

/// Discards `count` messages off the front.
fn take(batches: &mut VecDeque<Batch>, total: &mut u32, count: u32) -> u32 {
    let mut left = count;
    while let Some(taken) = take_front(batches, total, left) {
        left -= taken.count;
    }
    count - left
}

/// The share of a publish group's clients whose messages a member of `readers` gets, in the mean
/// over its members.
fn share(group: &PublishGroup, readers: &SubscribeGroup) -> f64 {
    let topic_of = |client| topic::expand(&group.topic, &group.name, client);
    let filter_of = |member| topic::expand(&readers.filter, &readers.name, member);
    let topics = if topic::is_per_client(&group.topic) { group.clients } else { 1 };
    let filters = if topic::is_per_client(&readers.filter) { readers.clients } else { 1 };
    if !readers.filter.contains(['+', '#']) {
        // Equal or not: no need to compare all with all.
        let mut counts: HashMap<String, u64> = HashMap::new();
        (0..topics).for_each(|client| *counts.entry(topic_of(client)).or_default() += 1);
        let matched: u64 = (0..filters).filter_map(|m| counts.get(&filter_of(m))).sum();
        return matched as f64 / (f64::from(topics) * f64::from(filters));
    }
    // Filters with wildcards that differ by member: a few stand for all.
    let some = filters.min(FILTERS_MATCHED_MAX);
    let matched: usize = (0..some)
        .map(|member| {
            filter_of(
                u32::try_from(u64::from(member) * u64::from(filters) / u64::from(some))
                    .unwrap_or(0),
            )
        })
        .map(|filter| (0..topics).filter(|&c| topic::matches(&filter, &topic_of(c))).count())
        .sum();
    matched as f64 / (f64::from(topics) * f64::from(some))
}

/// A subscribe group, or a session that one of an earlier phase left behind.
#[derive(Debug)]
pub(super) struct Subscribers {
    pub(super) group: SubscribeGroup,
    /// False for a session whose client is gone: nothing is expected of it.
    pub(super) is_wanted: bool,
    pub(super) link: Link,
    /// When the clients connect again; `None` while they are connected.
    pub(super) back: Option<Slice>,
    /// What the session of an absent client keeps, and how many messages that is.
    kept: VecDeque<Batch>,
    kept_count: u32,
    kept_bytes: u64,
    /// Acknowledgements that the broker has not read, for one member.
    inbox: VecDeque<Batch>,
    /// Parts of a message that a member has still to get, by publish group.
    rest: Vec<f64>,
    pub(super) reconnect: Span,
}

/// A duration in microseconds.
pub(super) fn us(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whole messages in a `share` of `count`; `rest` carries the parts of one to the next call.
fn portion(rest: &mut f64, share: f64, count: u32) -> u32 {
    if share >= 1.0 {
        return count;
    }
    let exact = *rest + share * f64::from(count);
    *rest = exact.fract();
    exact as u32
}

impl Subscribers {
    pub(super) fn new(group: &SubscribeGroup, is_interleaved: bool, slice_us: u32) -> Subscribers {
        let client = Client {
            qos: group.qos,
            ack_delay: Span::of_us(us(group.ack_delay), slice_us),
            is_interleaved,
        };
        Subscribers {
            group: group.clone(),
            is_wanted: true,
            link: Link::new(Limits::NONE, client, slice_us),
            back: Some(Slice::START),
            kept: VecDeque::new(),
            kept_count: 0,
            kept_bytes: 0,
            inbox: VecDeque::new(),
            rest: Vec::new(),
            reconnect: Span::of_us(us(group.reconnect).max(RETRY_MIN_US), slice_us),
        }
    }

    /// Goes on in a phase of a load with that many publish groups in one phase at the most.
    pub(super) fn enter(&mut self, group: &SubscribeGroup, publish_groups: usize, slice_us: u32) {
        self.group = group.clone();
        self.is_wanted = true;
        self.rest = vec![0.0; publish_groups];
        self.link.set_ack_delay(Span::of_us(us(group.ack_delay), slice_us));
    }

    /// A phase of such a load begins without it.
    pub(super) fn leave(&mut self, publish_groups: usize) {
        self.is_wanted = false;
        self.rest = vec![0.0; publish_groups];
    }

    pub(super) fn members(&self) -> u32 {
        self.group.clients
    }

    /// Messages and payload bytes that the broker keeps for a member.
    pub(super) fn backlog(&self) -> (u32, u64) {
        (self.link.backlog() + self.kept_count, self.link.backlog_bytes() + self.kept_bytes)
    }

    /// Whole messages that a member gets out of `count`.
    pub(super) fn portion(&mut self, publish_group: usize, share: f64, count: u32) -> u32 {
        portion(&mut self.rest[publish_group], share, count)
    }

    /// The broker routes messages to every member.
    pub(super) fn publish(
        &mut self,
        now: Slice,
        batch: Batch,
        limits: &Limits,
        queues_qos0: bool,
    ) -> Work {
        if self.back.is_none() {
            return self.link.publish(now, batch);
        }
        let qos = batch.qos.min(self.group.qos);
        let is_kept = !self.group.clean_session && (qos != Qos::AtMostOnce || queues_qos0);
        if !is_kept {
            return Work::default();
        }
        let left = limits.queue_bytes.saturating_sub(self.kept_bytes);
        let by_bytes = left.div_ceil(u64::from(batch.bytes.max(1)));
        let by_bytes = u32::try_from(by_bytes).unwrap_or(u32::MAX);
        let room = limits.queue.saturating_sub(self.kept_count).min(by_bytes);
        // Queued QoS 0 has no limit.
        let kept = if qos == Qos::AtMostOnce { batch.count } else { batch.count.min(room) };
        if kept > 0 {
            let batch = Batch { qos, ..batch.of(kept) };
            self.kept_count += kept;
            self.kept_bytes += batch.total_bytes();
            super::link::push(&mut self.kept, batch);
        }
        Work { dropped: batch.count - kept, ..Work::default() }
    }

    /// Acknowledgements that reach the broker now.
    pub(super) fn arrive(&mut self, now: Slice) -> Work {
        if self.back.is_some() {
            return Work::default();
        }
        self.link.arrive(now, &mut self.inbox)
    }

    /// What one round of the broker's loop reads of one member: one packet.
    pub(super) fn read(&mut self) -> Option<Batch> {
        let front = self.inbox.front_mut()?;
        let one = front.of(1);
        front.count -= 1;
        if front.count == 0 {
            self.inbox.pop_front();
        }
        Some(one)
    }

    /// The connection is lost until `back`; the session goes on where it may.
    pub(super) fn lose(&mut self, back: Slice, session_lives: bool) {
        let mut kept = self.link.cut();
        self.inbox.clear();
        if self.back.is_none() {
            self.kept.append(&mut kept);
        }
        if !session_lives || self.group.clean_session {
            self.kept.clear();
        }
        self.count_kept();
        self.back = Some(back);
    }

    /// The clients connect.
    pub(super) fn connect(&mut self, now: Slice, limits: &Limits) -> Work {
        let limits = match self.group.receive_maximum {
            Some(window) => Limits { window: u32::from(window), ..*limits },
            None => *limits,
        };
        let kept = std::mem::take(&mut self.kept);
        self.count_kept();
        self.back = None;
        self.link.connect(now, limits, kept)
    }

    fn count_kept(&mut self) {
        self.kept_count = self.kept.iter().map(|batch| batch.count).sum();
        self.kept_bytes = self.kept.iter().map(|batch| batch.total_bytes()).sum();
    }
}

/// What is expected of a subscribe group in one run of a phase, and what came.
#[derive(Debug)]
pub(super) struct Expectation {
    /// Index of its connections.
    pub(super) connection: usize,
    pub(super) weight: f64,
    pub(super) members: u32,
    is_clean: bool,
    deadline: Span,
    /// The scenario's own absence: from, to.
    pub(super) absence: Option<(Slice, Slice)>,
    /// By second of intended send.
    pub(super) seconds: Vec<SecondCounts>,
    /// Of them closed.
    pub(super) closed: usize,
    /// Parts of a message that a member has still to expect, by publish group.
    rest: Vec<f64>,
}

impl Expectation {
    pub(super) fn new(
        group: &SubscribeGroup,
        connection: usize,
        start: Slice,
        (duration_s, publish_groups): (u32, usize),
        slice_us: u32,
    ) -> Expectation {
        let absence = group.offline.map(|offline| {
            let from = start + Span::of_us(us(offline.at), slice_us);
            let to =
                from + Span::of_us(us(offline.lasts.saturating_add(group.reconnect)), slice_us);
            (from, to)
        });
        Expectation {
            connection,
            weight: group.weight,
            members: group.clients,
            is_clean: group.clean_session,
            deadline: Span::of_us(us(group.deadline), slice_us),
            absence,
            seconds: vec![SecondCounts::default(); duration_s as usize],
            closed: 0,
            rest: vec![0.0; publish_groups],
        }
    }

    fn is_absent(&self, due: Slice) -> bool {
        self.absence.is_some_and(|(from, to)| (from..to).contains(&due))
    }

    /// `count` messages of a publish group are due in `second`, of which each member gets a
    /// `share`.
    pub(super) fn expect(
        &mut self,
        due: Slice,
        second: usize,
        publish_group: usize,
        share: f64,
        count: u32,
    ) {
        let each = portion(&mut self.rest[publish_group], share, count);
        // A clean session's scheduled absence is exempt.
        if self.is_clean && self.is_absent(due) {
            return;
        }
        if let Some(counts) = self.seconds.get_mut(second) {
            counts.expected += u64::from(each) * u64::from(self.members);
        }
    }

    /// When a message due at `due` is late; for a durable session whose absence begins before that,
    /// the return counts.
    pub(super) fn late_after(&self, due: Slice) -> Slice {
        match self.absence {
            Some((from, to)) if !self.is_clean && due < to && due + self.deadline > from => {
                to + self.deadline
            }
            _ => due + self.deadline,
        }
    }

    /// The seconds whose last deadline has passed since the last call.
    pub(super) fn close(&mut self, start: Slice, now: Slice, slice_us: u32) -> Vec<SecondCounts> {
        let first = self.closed;
        while self.closed < self.seconds.len() {
            let number = u32::try_from(self.closed + 1).unwrap_or(u32::MAX);
            let last_due = start + Span::of_s(number, slice_us);
            if now <= self.late_after(last_due).max(last_due + self.deadline) {
                break;
            }
            self.closed += 1;
        }
        self.seconds[first..self.closed].to_vec()
    }

    /// Counts a batch that every member has read at `now`.
    pub(super) fn score(&mut self, second: usize, batch: Batch, now: Slice, arrived: i64) {
        let is_late = now > self.late_after(batch.due);
        let count = u64::from(batch.count) * u64::from(self.members);
        match self.seconds.get_mut(second) {
            Some(counts) if is_late => counts.late += count,
            Some(counts) => counts.arrive_many(arrived, count),
            None => {}
        }
    }
}
