//! Publishers and subscribers of a phase: a group is one cohort.

use super::link::{Batch, Client, Limits, Link, Packet};
use super::time::{Slice, Span};
use crate::load::schedule::Schedule;
use crate::load::score::SecondCounts;
use crate::scenario::{PublishGroup, Qos, SubscribeGroup, topic};
use std::collections::VecDeque;

/// Unsent messages that a client keeps.
const UNSENT_MAX: u32 = 10_000;

/// A publish group.
#[derive(Debug)]
pub(super) struct Publishers {
    pub(super) clients: u32,
    pub(super) qos: Qos,
    pub(super) bytes: u32,
    window: u32,
    schedule: Schedule,
    next: u64,
    next_due_ns: u64,
    /// Due, and kept by the clients because their window is full.
    unsent: VecDeque<Batch>,
    unsent_count: u32,
    /// Sent, and not read by the broker yet.
    inbox: VecDeque<Batch>,
    inbox_count: u32,
    /// Of each subscribe group: the share of this group's messages that a member expects.
    pub(super) audience: Vec<f64>,
}

impl Publishers {
    pub(super) fn new(
        group: &PublishGroup,
        schedule: Schedule,
        subscribers: &[SubscribeGroup],
    ) -> Publishers {
        let bytes = group.payload_bytes_min.midpoint(group.payload_bytes_max);
        let audience = subscribers.iter().map(|readers| share(group, readers)).collect();
        let mut publishers = Publishers {
            clients: group.clients,
            qos: group.qos,
            bytes,
            window: u32::from(group.inflight),
            schedule,
            next: 0,
            next_due_ns: 0,
            unsent: VecDeque::new(),
            unsent_count: 0,
            inbox: VecDeque::new(),
            inbox_count: 0,
            audience,
        };
        publishers.look_ahead();
        publishers
    }

    fn look_ahead(&mut self) {
        self.next_due_ns = if self.next < self.schedule.count() {
            let (client, k) = self.schedule.message(self.next);
            self.schedule.due_ns(client, k)
        } else {
            u64::MAX
        };
    }

    /// Messages due before `end_ns`, from the start of the phase; they count as due at `now`.
    pub(super) fn due(&mut self, now: Slice, end_ns: u64) -> u32 {
        let first = self.next;
        while self.next_due_ns < end_ns {
            self.next += 1;
            self.look_ahead();
        }
        let count = u32::try_from(self.next - first).unwrap_or(u32::MAX);
        if count > 0 {
            let (packet, bytes, qos) = (Packet::Publish, self.bytes, self.qos);
            let batch = Batch { packet, due: now, count, bytes, qos };
            self.unsent.push_back(batch);
            self.unsent_count += count;
            let excess = self.unsent_count.saturating_sub(UNSENT_MAX.saturating_mul(self.clients));
            let _ = take(&mut self.unsent, &mut self.unsent_count, excess);
        }
        count
    }

    /// Sends what the clients' windows permit.
    pub(super) fn send(&mut self) {
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

    /// What one round of the broker's loop reads: a packet of each socket at the most.
    pub(super) fn read(&mut self) -> Option<Batch> {
        take_front(&mut self.inbox, &mut self.inbox_count, self.clients)
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
    let is_own = topic::is_per_client(&readers.filter);
    let members = if is_own { readers.clients } else { 1 };
    let filters = (0..members).map(|m| topic::expand(&readers.filter, &readers.name, m));
    let topics: Vec<String> =
        (0..group.clients).map(|c| topic::expand(&group.topic, &group.name, c)).collect();
    let matched: usize = filters
        .map(|filter| topics.iter().filter(|topic| topic::matches(&filter, topic)).count())
        .sum();
    matched as f64 / (f64::from(group.clients) * f64::from(members))
}

/// A subscribe group.
#[derive(Debug)]
pub(super) struct Subscribers {
    pub(super) members: u32,
    pub(super) weight: f64,
    pub(super) deadline: Span,
    pub(super) link: Link,
    /// Acknowledgements that the broker has not read, for one member.
    pub(super) inbox: VecDeque<Batch>,
    /// Parts of a message that a member has still to get, by publish group.
    rest: Vec<f64>,
    /// By second of intended send.
    pub(super) seconds: Vec<SecondCounts>,
}

impl Subscribers {
    pub(super) fn new(
        group: &SubscribeGroup,
        publish_groups: usize,
        duration_s: u32,
        limits: Limits,
        is_interleaved: bool,
        slice_us: u32,
    ) -> Subscribers {
        let us = |duration: std::time::Duration| {
            u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
        };
        let limits = match group.receive_maximum {
            Some(window) => Limits { window: u32::from(window), ..limits },
            None => limits,
        };
        let client = Client {
            qos: group.qos,
            ack_delay: Span::of_us(us(group.ack_delay), slice_us),
            is_interleaved,
        };
        Subscribers {
            members: group.clients,
            weight: group.weight,
            deadline: Span::of_us(us(group.deadline), slice_us),
            link: Link::new(limits, client, slice_us),
            inbox: VecDeque::new(),
            rest: vec![0.0; publish_groups],
            seconds: vec![SecondCounts::default(); duration_s as usize],
        }
    }

    /// Whole messages that a member gets out of `count`.
    pub(super) fn portion(&mut self, publish_group: usize, share: f64, count: u32) -> u32 {
        if share >= 1.0 {
            return count;
        }
        let exact = self.rest[publish_group] + share * f64::from(count);
        self.rest[publish_group] = exact.fract();
        exact as u32
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

    /// Counts what the members have read at `now`.
    pub(super) fn score(&mut self, now: Slice, start: Slice, slices_per_s: u32) {
        let second = |slice: Slice| (slice.since(start).slices() / slices_per_s) as usize;
        let arrived = second(now) as i64;
        for batch in self.link.take_delivered() {
            let counts = match self.seconds.get_mut(second(batch.due)) {
                Some(counts) if batch.due >= start => counts,
                _ => continue,
            };
            let count = u64::from(batch.count) * u64::from(self.members);
            if now.since(batch.due) <= self.deadline {
                counts.arrive_many(arrived, count);
            } else {
                counts.late += count;
            }
        }
    }
}
