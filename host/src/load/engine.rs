//! The generator's thread: one loop over sockets, clock and phases.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::client::{Client, KEEP_ALIVE_S, Role, State};
use super::codec::{self, Ack, Packet};
use super::lag::Lag;
use super::outage::Outages;
use super::timeline::Timeline;
use super::track::{Delivery, Instance};
use super::{LoadConfig, LoadError, NANOS_PER_S, RunClock, Shared, payload};
use crate::scenario::Qos;

/// Token of the timer; slots and the waker have others.
const TIMER: Token = Token(usize::MAX - 1);
pub(super) const WAKER: Token = Token(usize::MAX);
/// Connection attempts at once: below the backlog of Mosquitto's listener (100), so that none waits
/// for a SYN timeout.
const CONNECTING_MAX: usize = 64;
/// An attempt is given up after this long.
const CONNECT_TIMEOUT_NS: u64 = 5 * NANOS_PER_S;
/// Shortest wait after a refused connection, whatever `reconnect_ms` says.
const RETRY_MIN_NS: u64 = 10_000_000;
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;
/// Sends taken per look at the clock: stop and sockets get their turn even when the schedule asks
/// the impossible.
const SENDS_PER_LOOK: usize = 2_000;
/// Shortest sleep between sends: messages this close together share a turn.
const NAP_MIN_NS: u64 = 50_000;
/// How often closed seconds and the status are handed over.
const REPORT_NS: u64 = 50_000_000;
/// The loop asks to be woken for every report: after twice that it did not sleep, it was kept from
/// running.
const HELD_UP_NS: u64 = 2 * REPORT_NS;

/// An acknowledgement that leaves later.
struct DelayedAck {
    due_ns: u64,
    slot: usize,
    epoch: u32,
    ack: Ack,
    packet_id: u16,
}

/// Everything the thread owns.
pub(super) struct Engine {
    pub(super) config: LoadConfig,
    pub(super) clock: RunClock,
    pub(super) clients: Vec<Client>,
    pub(super) slots: HashMap<super::timeline::ClientKey, usize>,
    pub(super) timeline: Timeline,
    /// Runs of phases whose messages may still arrive; the last is the current one while it lasts.
    pub(super) live: VecDeque<Instance>,
    pub(super) done: VecDeque<Instance>,
    pub(super) outages: Outages,
    pub(super) lag: Lag,
    pub(super) nonce: u32,
    pub(super) totals: Totals,
    pub(super) shared: Arc<Shared>,
    poll: Poll,
    timer: TimerFd,
    timer_ns: u64,
    timers: BinaryHeap<Reverse<(u64, usize)>>,
    connect_queue: VecDeque<usize>,
    /// By delay: acknowledgements in the order of their times.
    acks: HashMap<u64, VecDeque<DelayedAck>>,
    /// Sockets that may hold more than their last read took.
    unread: Vec<usize>,
    /// Clients with bytes to write at the end of a pass.
    dirty: Vec<usize>,
    scratch: Vec<u8>,
    possible_ns: Vec<u64>,
    last_problem: String,
    report_ns: u64,
    started: Option<Sender<Result<RunClock, LoadError>>>,
    start_deadline_ns: u64,
}

/// Counters of the whole run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    /// Since the last report, as the next.
    pub(super) delivered: u64,
    pub(super) latency_us_max: Option<u64>,
    pub(super) connections_lost: u64,
    pub(super) foreign: u64,
    pub(super) bad_packets: u64,
}

impl Engine {
    pub(super) fn new(
        config: LoadConfig,
        shared: Arc<Shared>,
        poll: Poll,
        nonce: u32,
        started: Sender<Result<RunClock, LoadError>>,
    ) -> io::Result<Self> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        poll.registry().register(
            &mut SourceFd(&timer.as_fd().as_raw_fd()),
            TIMER,
            Interest::READABLE,
        )?;
        Ok(Self {
            timeline: Timeline::new(&config),
            start_deadline_ns: super::nanos(config.start_timeout),
            config,
            clock: RunClock::start(),
            clients: Vec::new(),
            slots: HashMap::new(),
            live: VecDeque::new(),
            done: VecDeque::new(),
            outages: Outages::default(),
            lag: Lag::default(),
            nonce,
            totals: Totals::default(),
            shared,
            poll,
            timer,
            timer_ns: u64::MAX,
            timers: BinaryHeap::new(),
            connect_queue: VecDeque::new(),
            acks: HashMap::new(),
            unread: Vec::new(),
            dirty: Vec::new(),
            scratch: vec![0; READ_BYTES],
            possible_ns: Vec::new(),
            last_problem: "no answer".to_owned(),
            report_ns: 0,
            started: Some(started),
        })
    }

    /// Runs until the last deadline of the scenario, or until told to stop; then disconnects
    /// everybody.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        self.prepare(0);
        loop {
            let now_ns = self.clock.now_ns();
            if self.shared.stop.load(Ordering::Relaxed) || !self.advance(now_ns) {
                break;
            }
            let wait = self.arm(now_ns);
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error);
            }
            let turn_ns = self.clock.now_ns();
            if turn_ns > now_ns + HELD_UP_NS {
                // Before the turn, which may close the seconds that it was held up in.
                self.lag.turn(&self.clock, now_ns, turn_ns);
            }
            self.turn(&events, turn_ns);
            self.lag.turn(&self.clock, turn_ns, self.clock.now_ns());
        }
        let now_ns = self.clock.now_ns();
        for slot in 0..self.clients.len() {
            self.leave(slot, now_ns);
        }
        self.report(now_ns);
        Ok(())
    }

    /// One pass over what is ready and what is due.
    fn turn(&mut self, events: &Events, now_ns: u64) {
        let leftover = std::mem::take(&mut self.unread);
        for event in events {
            let Token(slot) = event.token();
            if slot >= self.clients.len() {
                continue;
            }
            if event.is_writable() || event.is_error() {
                self.writable(slot);
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                // The end may have come with the last bytes: no other event tells of it.
                self.clients[slot].is_ending |= event.is_read_closed();
                self.read(slot);
            }
        }
        for slot in leftover {
            self.read(slot);
        }
        self.due(now_ns);
    }

    /// Everything that the clock asks for: sends, acknowledgements, timers, connections, reports.
    fn due(&mut self, now_ns: u64) {
        self.send_due();
        self.acknowledge_due();
        while let Some(Reverse((at_ns, slot))) = self.timers.peek().copied()
            && at_ns <= now_ns
        {
            self.timers.pop();
            self.on_timer(slot, now_ns);
        }
        self.connect_queued(now_ns);
        if now_ns >= self.report_ns {
            self.report_ns = now_ns + REPORT_NS;
            self.report(now_ns);
        }
    }

    /// Sets the timer for the next thing that is due; zero wait where something is left to do at
    /// once.
    fn arm(&mut self, now_ns: u64) -> Option<Duration> {
        if !self.unread.is_empty() {
            return Some(Duration::ZERO);
        }
        let sends_ns =
            self.live.back().map_or(u64::MAX, Instance::next_due_ns).max(now_ns + NAP_MIN_NS);
        let acks_ns =
            self.acks.values().filter_map(|queue| queue.front()).map(|ack| ack.due_ns).min();
        let timers_ns = self.timers.peek().map(|Reverse((at_ns, _))| *at_ns);
        let next_ns = [
            Some(sends_ns),
            acks_ns,
            timers_ns,
            Some(self.report_ns),
            self.timeline.next_ns(&self.live),
        ];
        let next_ns = next_ns.into_iter().flatten().min().unwrap_or(u64::MAX);
        if next_ns <= now_ns {
            return Some(Duration::ZERO);
        }
        if next_ns != self.timer_ns {
            let wait = TimeSpec::from_duration(Duration::from_nanos(next_ns - now_ns));
            if self.timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty()).is_err() {
                return Some(Duration::from_millis(1));
            }
            self.timer_ns = next_ns;
        }
        // A floor for the case that the timer fails: a report is due that often anyway.
        Some(Duration::from_nanos(REPORT_NS))
    }

    /// Sends every message that is due, in order; packets of one connection share a write.
    pub(super) fn send_due(&mut self) {
        let mut left = SENDS_PER_LOOK;
        let now_ns = self.clock.now_ns();
        let Some(instance) = self.live.back_mut() else {
            return;
        };
        if instance.next_due_ns() > now_ns {
            return;
        }
        for group in 0..instance.writers.len() {
            while left > 0
                && let Some((client, k)) = instance.take_due(group, now_ns)
            {
                let slot = instance.writers[group].slots[client];
                let client = &mut self.clients[slot];
                let is_ready = client.state == State::Ready;
                if let Role::Publisher(publisher) = &mut client.role {
                    publisher.push(k, is_ready);
                }
                if self.dirty.last() != Some(&slot) {
                    self.dirty.push(slot);
                }
                left -= 1;
            }
        }
        self.send_dirty();
    }

    /// Pumps and flushes every client in `dirty`.
    fn send_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for slot in &dirty {
            self.pump(*slot);
        }
        dirty.clear();
        self.dirty = dirty;
    }

    /// Sends what a publisher may send, and notes how late that was.
    fn pump(&mut self, slot: usize) {
        let client = &mut self.clients[slot];
        client.pump(&mut self.possible_ns);
        self.flush(slot);
        let now_ns = self.clock.now_ns();
        for possible_ns in self.possible_ns.drain(..) {
            self.lag.send(&self.clock, possible_ns, now_ns);
        }
    }

    fn flush(&mut self, slot: usize) {
        let now_ns = self.clock.now_ns();
        if let Err(error) = self.clients[slot].flush(now_ns) {
            self.lose(slot, now_ns, &error.to_string());
        }
    }

    fn acknowledge_due(&mut self) {
        let now_ns = self.clock.now_ns();
        for queue in self.acks.values_mut() {
            while let Some(next) = queue.front()
                && next.due_ns <= now_ns
            {
                let DelayedAck { slot, epoch, ack, packet_id, .. } = *next;
                queue.pop_front();
                let client = &mut self.clients[slot];
                if client.epoch == epoch {
                    codec::put_ack(client.output(), ack, packet_id);
                    self.dirty.push(slot);
                }
            }
        }
        self.send_dirty();
    }

    fn writable(&mut self, slot: usize) {
        let client = &mut self.clients[slot];
        if client.state == State::Opening {
            match client.opened() {
                Ok(true) => self.flush(slot),
                Ok(false) => {}
                Err(error) => self.lose(slot, self.clock.now_ns(), &error.to_string()),
            }
        } else if client.is_blocked() {
            self.flush(slot);
            self.pump(slot);
        }
    }

    /// One read, what it brought, and the answers to it in one write.
    fn read(&mut self, slot: usize) {
        if matches!(
            self.clients[slot].state,
            State::Idle | State::Waiting { .. } | State::Queued | State::Opening
        ) {
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let outcome = self.clients[slot].read(&mut scratch);
        let now_ns = self.clock.now_ns();
        match outcome {
            Ok(0) => self.lose(slot, now_ns, "closed by the broker"),
            Ok(bytes) => {
                if bytes == scratch.len() || self.clients[slot].is_ending {
                    self.unread.push(slot);
                }
                self.take(slot, &scratch[..bytes], now_ns);
                self.pump(slot);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.unread.push(slot),
            Err(error) => self.lose(slot, now_ns, &error.to_string()),
        }
        self.scratch = scratch;
        // A turn over many full sockets must not hold up what is due meanwhile.
        self.send_due();
    }

    /// Handles the packets in `bytes` and keeps an unfinished last one.
    fn take(&mut self, slot: usize, bytes: &[u8], now_ns: u64) {
        let epoch = self.clients[slot].epoch;
        let mut input = std::mem::take(&mut self.clients[slot].input);
        let outcome = if input.is_empty() {
            self.packets(slot, bytes, now_ns).map(|used| input.extend_from_slice(&bytes[used..]))
        } else {
            input.extend_from_slice(bytes);
            match codec::packet_bytes(&input) {
                Some(needed) if needed > input.len() => Ok(()),
                _ => self.packets(slot, &input, now_ns).map(|used| drop(input.drain(..used))),
            }
        };
        match outcome {
            Err(error) => {
                self.totals.bad_packets += 1;
                self.lose(slot, now_ns, &error.to_string());
            }
            Ok(()) if self.clients[slot].epoch == epoch => self.clients[slot].input = input,
            Ok(()) => {}
        }
    }

    /// Handles whole packets off the front of `bytes`; the number of bytes that they took.
    fn packets(
        &mut self,
        slot: usize,
        bytes: &[u8],
        now_ns: u64,
    ) -> Result<usize, codec::DecodeError> {
        let (protocol, epoch) = (self.clients[slot].protocol, self.clients[slot].epoch);
        let mut used = 0;
        while let Some((packet, length)) = codec::decode(&bytes[used..], protocol)? {
            used += length;
            self.packet(slot, packet, now_ns);
            if self.clients[slot].epoch != epoch {
                return Ok(bytes.len());
            }
        }
        Ok(used)
    }

    fn packet(&mut self, slot: usize, packet: Packet<'_>, now_ns: u64) {
        match packet {
            Packet::Publish { qos, retain, packet_id, payload } => {
                self.delivered(slot, retain, payload, now_ns);
                match qos {
                    Qos::AtMostOnce => {}
                    Qos::AtLeastOnce => self.acknowledge(slot, Ack::PubAck, packet_id, now_ns),
                    Qos::ExactlyOnce => self.acknowledge(slot, Ack::PubRec, packet_id, now_ns),
                }
            }
            Packet::PubRel(packet_id) => self.acknowledge(slot, Ack::PubComp, packet_id, now_ns),
            Packet::ConnAck { session_present, code, receive_maximum } => {
                self.accepted(slot, session_present, code, receive_maximum, now_ns);
            }
            Packet::SubAck(code) if code >= 0x80 => {
                self.lose(slot, now_ns, &format!("subscription refused with code {code:#x}"));
            }
            Packet::SubAck(_) => self.ready(slot, now_ns),
            Packet::Disconnect(code) => {
                self.lose(slot, now_ns, &format!("disconnected by the broker, reason {code:#x}"))
            }
            Packet::PingResp => {}
            Packet::PubAck(packet_id)
            | Packet::PubComp(packet_id)
            | Packet::PubRec { packet_id, refused: true } => {
                self.done(slot, packet_id, now_ns);
            }
            Packet::PubRec { packet_id, refused: false } => {
                codec::put_ack(self.clients[slot].output(), Ack::PubRel, packet_id);
            }
        }
    }

    /// A publish is complete; a publisher that only waited for that leaves.
    fn done(&mut self, slot: usize, packet_id: u16, now_ns: u64) {
        let client = &mut self.clients[slot];
        if let Role::Publisher(publisher) = &mut client.role {
            publisher.done(packet_id, now_ns);
            if client.leave_at_ns.is_some() && publisher.is_idle() {
                self.leave(slot, now_ns);
            }
        }
    }

    fn delivered(&mut self, slot: usize, retain: bool, bytes: &[u8], now_ns: u64) {
        if retain {
            return; // sent because of the subscription, not because of the publish
        }
        let Some((number, publisher, k)) = payload::decode(self.nonce, bytes) else {
            self.totals.foreign += 1;
            return;
        };
        let Some(instance) = self.live.iter_mut().find(|instance| instance.number == number) else {
            return;
        };
        let delivery = Delivery { slot, publisher, k, now_ns };
        if let Some(latency_us) = instance.deliver(delivery, &self.clock, &self.outages) {
            self.totals.delivered += 1;
            self.totals.latency_us_max = self.totals.latency_us_max.max(Some(latency_us));
        }
    }

    fn acknowledge(&mut self, slot: usize, ack: Ack, packet_id: u16, now_ns: u64) {
        let client = &mut self.clients[slot];
        let Role::Subscriber(subscription) = &client.role else {
            return;
        };
        let delay_ns = subscription.ack_delay_ns;
        if delay_ns == 0 {
            codec::put_ack(client.output(), ack, packet_id);
            return;
        }
        let later =
            DelayedAck { due_ns: now_ns + delay_ns, slot, epoch: client.epoch, ack, packet_id };
        self.acks.entry(delay_ns).or_default().push_back(later);
    }

    fn accepted(
        &mut self,
        slot: usize,
        session_present: bool,
        code: u8,
        receive_maximum: u16,
        now_ns: u64,
    ) {
        if code != 0 {
            return self.lose(slot, now_ns, &format!("connection refused with code {code:#x}"));
        }
        let client = &mut self.clients[slot];
        match &mut client.role {
            Role::Publisher(publisher) => {
                publisher.connected(receive_maximum, now_ns);
                self.ready(slot, now_ns);
            }
            // A kept session has its subscription.
            Role::Subscriber(_) if session_present => self.ready(slot, now_ns),
            Role::Subscriber(_) => client.subscribe(),
        }
    }

    fn ready(&mut self, slot: usize, now_ns: u64) {
        self.clients[slot].state = State::Ready;
        self.outages.end(slot, now_ns);
        if self.clients[slot].ping_at_ns <= now_ns {
            self.look_for_ping(slot, now_ns + ping_after_ns());
        }
    }

    fn look_for_ping(&mut self, slot: usize, at_ns: u64) {
        self.clients[slot].ping_at_ns = at_ns;
        self.timers.push(Reverse((at_ns, slot)));
    }

    /// Asks for a client to be connected from `at_ns` on.
    pub(super) fn connect_at(&mut self, slot: usize, at_ns: u64) {
        self.clients[slot].state = State::Waiting { until_ns: at_ns };
        self.timers.push(Reverse((at_ns, slot)));
    }

    /// Looks at a client when one of its times has come.
    fn on_timer(&mut self, slot: usize, now_ns: u64) {
        let client = &mut self.clients[slot];
        if client.leave_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            return self.leave(slot, now_ns);
        }
        if let Some((at_ns, back_ns)) = client.away_ns
            && at_ns <= now_ns
        {
            client.away_ns = None;
            client.close(self.poll.registry(), true);
            self.outages.end(slot, now_ns);
            return self.connect_at(slot, back_ns);
        }
        match client.state {
            State::Waiting { until_ns } if until_ns <= now_ns => {
                client.state = State::Queued;
                self.connect_queue.push_back(slot);
            }
            State::Ready if client.ping_at_ns <= now_ns => {
                if client.sent_ns + ping_after_ns() <= now_ns {
                    codec::put_ping(client.output());
                    self.flush(slot);
                }
                let sent_ns = self.clients[slot].sent_ns;
                self.look_for_ping(slot, (sent_ns + ping_after_ns()).max(now_ns + NANOS_PER_S));
            }
            _ if client.is_connecting() && client.give_up_ns <= now_ns => {
                self.lose(slot, now_ns, "no answer to the connection attempt");
            }
            _ => {}
        }
    }

    fn connect_queued(&mut self, now_ns: u64) {
        if self.connect_queue.is_empty() {
            return;
        }
        let mut connecting = self.clients.iter().filter(|client| client.is_connecting()).count();
        while connecting < CONNECTING_MAX
            && let Some(slot) = self.connect_queue.pop_front()
        {
            let client = &mut self.clients[slot];
            if client.state != State::Queued {
                continue;
            }
            client.give_up_ns = now_ns + CONNECT_TIMEOUT_NS;
            self.timers.push(Reverse((client.give_up_ns, slot)));
            if let Err(error) = client.open(self.config.addr, self.poll.registry(), slot) {
                self.lose(slot, now_ns, &error.to_string());
            }
            connecting += 1;
        }
        if !self.connect_queue.is_empty() {
            // Those under way finish within a millisecond or so.
            self.timers.push(Reverse((now_ns + 1_000_000, 0)));
        }
    }

    /// The connection is gone: connects again after `reconnect_ms`, unless the client leaves.
    fn lose(&mut self, slot: usize, now_ns: u64, why: &str) {
        let client = &mut self.clients[slot];
        if matches!(client.state, State::Idle | State::Waiting { .. }) {
            return;
        }
        self.totals.connections_lost += u64::from(client.state == State::Ready);
        why.clone_into(&mut self.last_problem);
        client.close(self.poll.registry(), false);
        if client.leave_at_ns.is_some() || !client.wanted {
            return self.leave(slot, now_ns);
        }
        self.outages.begin(slot, now_ns);
        // Before the start nobody has lost anything yet: ask often.
        let wait_ns = client.reconnect_ns.max(RETRY_MIN_NS);
        let wait_ns = if self.started.is_some() { wait_ns.min(20 * RETRY_MIN_NS) } else { wait_ns };
        self.connect_at(slot, now_ns + wait_ns);
    }

    /// DISCONNECT where there is a connection; the client takes no further part.
    pub(super) fn leave(&mut self, slot: usize, now_ns: u64) {
        let client = &mut self.clients[slot];
        if client.state == State::Ready {
            codec::put_disconnect(client.output());
            let _ = client.flush(now_ns); // it leaves either way
        }
        client.close(self.poll.registry(), false);
        client.state = State::Idle;
        client.wanted = false;
        (client.leave_at_ns, client.away_ns) = (None, None);
        self.outages.end(slot, now_ns);
    }

    /// Asks to look at a client at this time.
    pub(super) fn wake_at(&mut self, at_ns: u64, slot: usize) {
        self.timers.push(Reverse((at_ns, slot)));
    }

    /// Until all clients of the first phase are ready: false. Then tells the starter, once.
    pub(super) fn is_started(&mut self, now_ns: u64) -> Option<bool> {
        let Some(started) = &self.started else {
            return Some(true);
        };
        let missing = self
            .clients
            .iter()
            .filter(|client| client.wanted && client.state != State::Ready)
            .count();
        if missing == 0 {
            self.clock.scored_ns = self.timeline.begin_at(now_ns);
            // Until now seconds were numbered from another start, and connecting is not the load.
            self.lag = Lag::default();
            let _ = started.send(Ok(self.clock)); // nobody waits any more: stop comes next
            self.started = None;
            return Some(true);
        }
        if now_ns < self.start_deadline_ns {
            return Some(false);
        }
        let error = LoadError::NotConnected {
            addr: self.config.addr,
            missing,
            wanted: self.clients.len(),
            timeout_s: self.config.start_timeout.as_secs(),
            reason: self.last_problem.clone(),
        };
        let _ = started.send(Err(error));
        self.started = None;
        None
    }

    /// Sends what is due in the current run of a phase to its end, however late: afterwards nothing
    /// is.
    pub(super) fn send_rest(&mut self) {
        while self.live.back().is_some_and(|instance| instance.next_due_ns() != u64::MAX)
            && !self.shared.stop.load(Ordering::Relaxed)
        {
            self.send_due();
        }
    }
}

fn ping_after_ns() -> u64 {
    u64::from(KEEP_ALIVE_S) * NANOS_PER_S * 3 / 4
}
