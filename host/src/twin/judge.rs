//! The twin's judge: the same broker, message by message and client by client, in continuous time.
//!
//! Shares with the twin the figures, when messages are due, which topics match and what settings
//! mean; no slices, no cohorts, no batches. Slow, and for steady loads only (no absences, no
//! restarts). What both have from the same source, this cannot find wrong.

use super::calibration::Calibration;
use crate::load::schedule::Schedule;
use crate::scenario::{Qos, Scenario, topic};
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, Settings};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

const DELAYED_ACK_US: f64 = 40_000.0;
/// A turn of a client's loop.
const LATE_US_MAX: f64 = 1_000.0;
const WRITES_PER_BUFFER: usize = 17;
const SEGMENT_BYTES: u32 = 32_768;
const HEADER_BYTES: u32 = 23;

#[derive(Clone, Copy, Debug)]
struct Message {
    due_us: f64,
    bytes: u32,
    qos: Qos,
}

/// What goes from the broker to a client.
#[derive(Clone, Copy, Debug)]
enum Packet {
    Publish(Message),
    Release,
}

/// What a client sends to the broker.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Acknowledge,
    Received,
    Complete,
}

struct Publisher {
    group: usize,
    due: VecDeque<f64>,
    unsent: VecDeque<Message>,
    inbox: VecDeque<Message>,
    window: usize,
}

struct Subscriber {
    /// In the first phase's list.
    group: usize,
    qos: Qos,
    ack_delay_us: f64,
    inflight: usize,
    inflight_bytes: u64,
    /// Sizes in the order of sending.
    sizes: VecDeque<u32>,
    queue: VecDeque<Message>,
    queued_bytes: u64,
    held: Vec<Packet>,
    unacked_until: Option<f64>,
    answers: bool,
    last_read: f64,
    /// How much later than asked for what was read last is answered.
    late_us: f64,
    /// On the way to the broker.
    answering: VecDeque<(f64, Answer)>,
    inbox: VecDeque<Answer>,
}

/// When something happens; the number is of a publisher or subscriber.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Event {
    Due(usize),
    Answer(usize),
    Timer(usize),
    Broker,
}

/// A run.
pub(super) struct Judge<'a> {
    calibration: &'a Calibration,
    settings: Settings,
    site: SiteValues,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    /// By publisher: the subscribers that its messages go to.
    audience: Vec<Vec<usize>>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    kinds: BTreeMap<u64, Event>,
    number: u64,
    free_at: f64,
    is_awake: bool,
    deadlines_us: Vec<f64>,
    /// By subscribe group and second of intended send: expected, in time.
    seconds: Vec<Vec<(u64, u64)>>,
    rotation: usize,
    rng: Pcg32,
}

impl<'a> Judge<'a> {
    /// The first phase of `scenario`.
    pub(super) fn new(
        scenario: &Scenario,
        calibration: &'a Calibration,
        settings: Settings,
        site: SiteValues,
    ) -> Judge<'a> {
        let phase = &scenario.phases[0];
        let mut judge = Judge {
            calibration,
            settings,
            site,
            publishers: Vec::new(),
            subscribers: Vec::new(),
            audience: Vec::new(),
            events: BinaryHeap::new(),
            kinds: BTreeMap::new(),
            number: 0,
            free_at: 0.0,
            is_awake: false,
            deadlines_us: phase.subscribe.iter().map(|g| g.deadline.as_secs_f64() * 1e6).collect(),
            seconds: vec![vec![(0, 0); phase.duration_s as usize]; phase.subscribe.len()],
            rotation: 0,
            rng: Pcg32::seed_from_u64(1),
        };
        let filters = judge.subscribe(phase);
        judge.announce(phase, &filters);
        for index in 0..judge.publishers.len() {
            judge.schedule_due(index);
        }
        judge.run(phase);
        judge
    }

    /// Subscribers of the phase; answers with their filters.
    fn subscribe(&mut self, phase: &crate::scenario::Phase) -> Vec<String> {
        let mut filters = Vec::new();
        for (index, group) in phase.subscribe.iter().enumerate() {
            for client in 0..group.clients {
                filters.push(topic::expand(&group.filter, &group.name, client));
                self.subscribers.push(Subscriber {
                    group: index,
                    qos: group.qos,
                    ack_delay_us: group.ack_delay.as_secs_f64() * 1e6,
                    inflight: 0,
                    inflight_bytes: 0,
                    sizes: VecDeque::new(),
                    queue: VecDeque::new(),
                    queued_bytes: 0,
                    held: Vec::new(),
                    unacked_until: None,
                    answers: false,
                    last_read: 0.0,
                    late_us: 0.0,
                    answering: VecDeque::new(),
                    inbox: VecDeque::new(),
                });
            }
        }
        filters
    }

    /// Publishers of the phase, and who hears them.
    fn announce(&mut self, phase: &crate::scenario::Phase, filters: &[String]) {
        for (index, group) in phase.publish.iter().enumerate() {
            let rate_hz = group.rate.per_client_hz(group.clients, None).unwrap_or(1.0);
            let schedule =
                Schedule::new(group.clients, rate_hz, group.sync, group.burst, phase.duration_s);
            for client in 0..group.clients {
                let topic = topic::expand(&group.topic, &group.name, client);
                let mut due = VecDeque::new();
                let mut k = 0;
                while schedule.has(client, k) {
                    due.push_back(schedule.due_ns(client, k) as f64 / 1000.0);
                    k += 1;
                }
                let hears = |filter: &String| topic::matches(filter, &topic);
                self.audience.push(
                    filters.iter().enumerate().filter(|(_, f)| hears(f)).map(|(i, _)| i).collect(),
                );
                let window = match group.qos {
                    Qos::AtMostOnce => usize::MAX,
                    _ => usize::from(group.inflight),
                };
                let (unsent, inbox) = (VecDeque::new(), VecDeque::new());
                self.publishers.push(Publisher { group: index, due, unsent, inbox, window });
            }
        }
    }

    /// Mean over the seconds, mean over the groups by weight.
    pub(super) fn score(&self, scenario: &Scenario) -> f64 {
        let phase = &scenario.phases[0];
        let (mut sum, mut weights) = (0.0, 0.0);
        for (group, seconds) in phase.subscribe.iter().zip(&self.seconds) {
            let shares: Vec<f64> = seconds
                .iter()
                .filter(|(expected, _)| *expected > 0)
                .map(|(expected, in_time)| *in_time as f64 / *expected as f64)
                .collect();
            sum += group.weight * shares.iter().sum::<f64>() / shares.len().max(1) as f64;
            weights += group.weight;
        }
        sum / weights
    }

    fn push(&mut self, at_us: f64, event: Event) {
        self.number += 1;
        self.kinds.insert(self.number, event);
        // Nanoseconds, so that times have a total order.
        self.events.push(Reverse(((at_us * 1000.0) as u64, self.number)));
    }

    fn schedule_due(&mut self, publisher: usize) {
        if let Some(&at) = self.publishers[publisher].due.front() {
            self.push(at, Event::Due(publisher));
        }
    }

    fn run(&mut self, phase: &crate::scenario::Phase) {
        let longest = self.deadlines_us.iter().copied().fold(0.0, f64::max);
        let end_us = f64::from(phase.duration_s) * 1e6 + longest;
        while let Some(Reverse((at, number))) = self.events.pop() {
            let now = at as f64 / 1000.0;
            if now > end_us {
                return;
            }
            match self.kinds.remove(&number) {
                Some(Event::Due(publisher)) => self.due(publisher, now, phase),
                Some(Event::Answer(subscriber)) => self.answer(subscriber, now),
                Some(Event::Timer(subscriber)) => self.timer(subscriber, now),
                Some(Event::Broker) => self.round(now),
                None => {}
            }
        }
    }

    fn due(&mut self, publisher: usize, now: f64, phase: &crate::scenario::Phase) {
        let one = &mut self.publishers[publisher];
        one.due.pop_front();
        let group = &phase.publish[one.group];
        let bytes = group.payload_bytes_min.midpoint(group.payload_bytes_max);
        one.unsent.push_back(Message { due_us: now, bytes, qos: group.qos });
        let second = (now / 1e6) as usize;
        for &subscriber in &self.audience[publisher] {
            let of_group = &mut self.seconds[self.subscribers[subscriber].group];
            if let Some(counts) = of_group.get_mut(second) {
                counts.0 += 1;
            }
        }
        self.send(publisher);
        self.wake(now);
        self.schedule_due(publisher);
    }

    fn send(&mut self, publisher: usize) {
        let one = &mut self.publishers[publisher];
        while one.inbox.len() < one.window
            && let Some(message) = one.unsent.pop_front()
        {
            one.inbox.push_back(message);
        }
    }

    /// The broker begins a round as soon as it is free.
    fn wake(&mut self, now: f64) {
        if !self.is_awake {
            self.is_awake = true;
            self.push(now.max(self.free_at) + self.calibration.costs.wake_us, Event::Broker);
        }
    }

    /// A packet of each socket that has one.
    fn round(&mut self, now: f64) {
        let costs = self.calibration.costs;
        let mut at = now;
        let sockets = self.publishers.len() + self.subscribers.len();
        self.rotation = (self.rotation + 1) % sockets;
        let mut has_read = false;
        for socket in 0..sockets {
            let socket = (socket + self.rotation) % sockets;
            if socket < self.publishers.len() {
                let Some(message) = self.publishers[socket].inbox.pop_front() else { continue };
                at +=
                    costs.publish_us + f64::from(message.bytes) / 1024.0 * costs.publish_us_per_kib;
                for subscriber in self.audience[socket].clone() {
                    at += costs.route_us;
                    at = self.route(subscriber, message, at);
                }
                self.send(socket);
            } else {
                let subscriber = socket - self.publishers.len();
                let Some(answer) = self.subscribers[subscriber].inbox.pop_front() else { continue };
                at += costs.acknowledge_us;
                at = self.take(subscriber, answer, at);
            }
            has_read = true;
        }
        if !has_read {
            self.is_awake = false;
            return;
        }
        self.free_at = at + costs.round_us;
        self.push(self.free_at, Event::Broker);
    }

    fn value(&self, knob: Knob) -> u64 {
        match self.settings.effective(knob, &self.site) {
            0 => u64::MAX,
            limit => limit,
        }
    }

    fn has_room(&self, subscriber: usize) -> bool {
        let one = &self.subscribers[subscriber];
        (one.inflight as u64) < self.value(Knob::InflightMessagesMax)
            && one.inflight_bytes < self.value(Knob::InflightBytesMax)
    }

    fn route(&mut self, subscriber: usize, message: Message, at: f64) -> f64 {
        let one = &self.subscribers[subscriber];
        let message = Message { qos: message.qos.min(one.qos), ..message };
        if message.qos == Qos::AtMostOnce {
            return self.write(subscriber, Packet::Publish(message), at);
        }
        if one.queue.is_empty() && self.has_room(subscriber) {
            return self.launch(subscriber, message, at);
        }
        let window = self.value(Knob::InflightMessagesMax);
        let count_max = self.value(Knob::QueuedMessagesMax).saturating_add(window);
        let window_bytes = self.value(Knob::InflightBytesMax);
        let bytes_max = self.value(Knob::QueuedBytesMax).saturating_add(window_bytes);
        let one = &mut self.subscribers[subscriber];
        if (one.queue.len() as u64) < count_max && one.queued_bytes < bytes_max {
            one.queue.push_back(message);
            one.queued_bytes += u64::from(message.bytes);
        }
        at
    }

    fn launch(&mut self, subscriber: usize, message: Message, at: f64) -> f64 {
        let one = &mut self.subscribers[subscriber];
        one.inflight += 1;
        one.inflight_bytes += u64::from(message.bytes);
        one.sizes.push_back(message.bytes);
        self.write(subscriber, Packet::Publish(message), at)
    }

    fn take(&mut self, subscriber: usize, answer: Answer, at: f64) -> f64 {
        if matches!(answer, Answer::Received) {
            return self.write(subscriber, Packet::Release, at);
        }
        let one = &mut self.subscribers[subscriber];
        one.inflight -= 1;
        one.inflight_bytes -= u64::from(one.sizes.pop_front().unwrap_or(0));
        let mut at = at;
        while self.has_room(subscriber)
            && let Some(message) = self.subscribers[subscriber].queue.pop_front()
        {
            self.subscribers[subscriber].queued_bytes -= u64::from(message.bytes);
            at = self.launch(subscriber, message, at);
        }
        at
    }

    /// Writes to the socket; the kernel sends or holds.
    fn write(&mut self, subscriber: usize, packet: Packet, at: f64) -> f64 {
        let costs = self.calibration.costs;
        let bytes = match packet {
            Packet::Publish(message) => message.bytes,
            Packet::Release => 0,
        };
        let mut at = at + costs.write_us + f64::from(bytes) / 1024.0 * costs.write_us_per_kib;
        let is_interleaved = self.subscribers.len() > 1 || self.publishers.len() > 1;
        let is_at_once = self.settings.effective(Knob::TcpNodelay, &self.site) != 0
            || bytes + HEADER_BYTES >= SEGMENT_BYTES;
        let one = &mut self.subscribers[subscriber];
        if is_at_once {
            at += costs.segment_us;
            self.read(subscriber, packet, at);
            return at;
        }
        if one.unacked_until.is_none() {
            at += costs.segment_us;
            if one.answers {
                one.unacked_until = Some(at + DELAYED_ACK_US);
                self.push(at + DELAYED_ACK_US, Event::Timer(subscriber));
            }
            self.read(subscriber, packet, at);
            return at;
        }
        one.held.push(packet);
        let held_bytes: u32 = one
            .held
            .iter()
            .map(|packet| match packet {
                Packet::Publish(message) => message.bytes + HEADER_BYTES,
                Packet::Release => HEADER_BYTES,
            })
            .sum();
        let is_full = is_interleaved && one.held.len() >= WRITES_PER_BUFFER;
        if is_full || held_bytes >= SEGMENT_BYTES {
            at += costs.segment_us;
            self.let_go(subscriber, at);
            self.subscribers[subscriber].unacked_until = None;
        }
        at
    }

    fn let_go(&mut self, subscriber: usize, at: f64) {
        for packet in std::mem::take(&mut self.subscribers[subscriber].held) {
            self.read(subscriber, packet, at);
        }
    }

    /// The client reads a packet.
    fn read(&mut self, subscriber: usize, packet: Packet, at: f64) {
        let one = &mut self.subscribers[subscriber];
        if one.ack_delay_us > 0.0 && at > one.last_read {
            one.late_us = self.rng.random_range(0.0..LATE_US_MAX);
        }
        one.last_read = at;
        let answer = match packet {
            Packet::Publish(message) => {
                let second = (message.due_us / 1e6) as usize;
                if at - message.due_us <= self.deadlines_us[one.group]
                    && let Some(counts) = self.seconds[one.group].get_mut(second)
                {
                    counts.1 += 1;
                }
                match message.qos {
                    Qos::AtMostOnce => return,
                    Qos::AtLeastOnce => Answer::Acknowledge,
                    Qos::ExactlyOnce => Answer::Received,
                }
            }
            Packet::Release => Answer::Complete,
        };
        let arrives = at + one.ack_delay_us + one.late_us;
        // Answers go in the order of the reads.
        let arrives = one.answering.back().map_or(arrives, |(last, _)| arrives.max(*last));
        one.answering.push_back((arrives, answer));
        self.push(arrives, Event::Answer(subscriber));
    }

    /// The client's answers reach the broker, and its write acknowledges what TCP sent.
    fn answer(&mut self, subscriber: usize, now: f64) {
        let one = &mut self.subscribers[subscriber];
        let before = one.inbox.len();
        // Events are in whole nanoseconds: what is due may seem to be due a little later.
        while one.answering.front().is_some_and(|(at, _)| *at <= now + 0.01) {
            one.inbox.extend(one.answering.pop_front().map(|(_, answer)| answer));
        }
        if one.inbox.len() == before {
            return;
        }
        one.answers = now - one.last_read < DELAYED_ACK_US;
        self.acknowledged(subscriber, now);
        self.wake(now);
    }

    fn timer(&mut self, subscriber: usize, now: f64) {
        let one = &mut self.subscribers[subscriber];
        if one.unacked_until.is_some_and(|until| until <= now + 0.01) {
            one.answers = false;
            self.acknowledged(subscriber, now);
        }
    }

    fn acknowledged(&mut self, subscriber: usize, now: f64) {
        let one = &mut self.subscribers[subscriber];
        one.unacked_until = None;
        if one.held.is_empty() {
            return;
        }
        let answers = one.answers;
        self.let_go(subscriber, now);
        if answers {
            self.subscribers[subscriber].unacked_until = Some(now + DELAYED_ACK_US);
            self.push(now + DELAYED_ACK_US, Event::Timer(subscriber));
        }
    }
}
