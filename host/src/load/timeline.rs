//! Phases: who connects before one starts, who stays, who leaves, and what is handed to the caller.

use std::rc::Rc;

use super::client::{Client, Role, State, Subscription};
use super::engine::Engine;
use super::payload::Sizes;
use super::publisher::{Assignment, Publisher};
use super::schedule::Schedule;
use super::track::{Away, Instance, Readers, Writers};
use super::{ClosedSecond, LoadConfig, NANOS_PER_S, Stage, nanos, payload};
use crate::scenario::{Phase, PublishGroup, Scenario, SubscribeGroup};

/// From the last client's readiness to the first message.
const BREATH_NS: u64 = 20_000_000;
/// Clients of a phase start to connect this long before it, and a millisecond more for each of
/// them.
const CONNECT_LEAD_NS: u64 = 500_000_000;
/// Closed seconds that wait for a caller that never asks.
const CLOSED_MAX: usize = 100_000;
/// Runs of phases that a repeating load keeps for its result.
const REPEAT_KEPT_MAX: usize = 16;

/// Identity of a client's connection across phases.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClientKey {
    publishes: bool,
    group: String,
    /// Counts the connections of that name that cannot be one and the same.
    generation: u32,
    index: u32,
}

/// What comes next, and which groups are the same connections.
pub(super) struct Timeline {
    upcoming: Option<Upcoming>,
    lead_in_s: u32,
    repeat: bool,
    next_number: u16,
    /// By phase, then group.
    publish_generations: Vec<Vec<u32>>,
    subscribe_generations: Vec<Vec<u32>>,
    ended: bool,
}

/// The run of a phase that starts next.
struct Upcoming {
    phase: usize,
    is_lead_in: bool,
    start_ns: u64,
    prepare_ns: u64,
    prepared: bool,
}

impl Timeline {
    pub(super) fn new(config: &LoadConfig) -> Self {
        let lead_in_s = config.lead_in.map_or(0, |lead_in| lead_in.as_millis().div_ceil(1000));
        let lead_in_s = u32::try_from(lead_in_s).unwrap_or(u32::MAX);
        let upcoming = Upcoming {
            phase: 0,
            is_lead_in: lead_in_s > 0,
            start_ns: u64::MAX,
            prepare_ns: 0,
            prepared: true,
        };
        Self {
            upcoming: Some(upcoming),
            lead_in_s,
            repeat: config.repeat,
            next_number: 0,
            publish_generations: generations(
                &config.scenario,
                |phase| &phase.publish,
                |group| &group.name,
                same_publisher,
            ),
            subscribe_generations: generations(
                &config.scenario,
                |phase| &phase.subscribe,
                |group| &group.name,
                same_subscriber,
            ),
            ended: false,
        }
    }

    /// Fixes the start of the load shortly after `now_ns`; the start of the scored part.
    pub(super) fn begin_at(&mut self, now_ns: u64) -> u64 {
        let start_ns = now_ns + BREATH_NS;
        if let Some(upcoming) = &mut self.upcoming {
            upcoming.start_ns = start_ns;
        }
        start_ns + u64::from(self.lead_in_s) * NANOS_PER_S
    }

    /// When the next step of the timeline is due.
    pub(super) fn next_ns(&self, live: &std::collections::VecDeque<Instance>) -> Option<u64> {
        let upcoming_ns = self
            .upcoming
            .as_ref()
            .map(|next| if next.prepared { next.start_ns } else { next.prepare_ns });
        let end_ns = live
            .back()
            .filter(|_| upcoming_ns.is_none() && !self.ended)
            .map(|instance| instance.end_ns);
        let stay_ns = live.front().map(|instance| instance.stay_until_ns);
        [upcoming_ns, end_ns, stay_ns].into_iter().flatten().min()
    }
}

/// For each group of each phase the number of its connection identity among the groups of its name.
fn generations<G>(
    scenario: &Scenario,
    groups: impl Fn(&Phase) -> &Vec<G>,
    name: impl Fn(&G) -> &str,
    same: impl Fn(&G, &G) -> bool,
) -> Vec<Vec<u32>> {
    let mut known: Vec<(&G, u32)> = Vec::new();
    let mut numbers = Vec::new();
    for phase in &scenario.phases {
        let mut of_phase = Vec::new();
        for group in groups(phase) {
            let namesakes = known.iter().filter(|(other, _)| name(other) == name(group));
            let number = match known
                .iter()
                .find(|(other, _)| name(other) == name(group) && same(other, group))
            {
                Some((_, number)) => *number,
                None => {
                    let number = u32::try_from(namesakes.count()).unwrap_or(u32::MAX);
                    known.push((group, number));
                    number
                }
            };
            of_phase.push(number);
        }
        numbers.push(of_phase);
    }
    numbers
}

/// Whether a connection made for one group serves the other.
fn same_publisher(a: &PublishGroup, b: &PublishGroup) -> bool {
    a.protocol == b.protocol
}

/// Whether a session made for one group serves the other.
pub(crate) fn same_subscriber(a: &SubscribeGroup, b: &SubscribeGroup) -> bool {
    (&a.filter, a.qos, a.protocol, a.clean_session, a.receive_maximum)
        == (&b.filter, b.qos, b.protocol, b.clean_session, b.receive_maximum)
}

impl Engine {
    /// Takes the steps of the timeline that are due; false at the end of the run.
    pub(super) fn advance(&mut self, now_ns: u64) -> bool {
        match self.is_started(now_ns) {
            None => return false,
            Some(false) => return true,
            Some(true) => {}
        }
        if let Some(next) = &mut self.timeline.upcoming
            && !next.prepared
            && now_ns >= next.prepare_ns
        {
            next.prepared = true;
            let phase = next.phase;
            self.prepare(phase);
        }
        if self
            .timeline
            .upcoming
            .as_ref()
            .is_some_and(|next| next.prepared && now_ns >= next.start_ns)
        {
            self.begin();
        } else if self.timeline.upcoming.is_none()
            && !self.timeline.ended
            && self.live.back().is_some_and(|instance| instance.end_ns <= now_ns)
        {
            self.timeline.ended = true;
            self.send_rest();
            let stay_until_ns = self.live.back().map_or(now_ns, |instance| instance.stay_until_ns);
            self.dismiss(&[], stay_until_ns);
        }
        while self.live.front().is_some_and(|instance| instance.stay_until_ns < now_ns) {
            self.close_seconds(now_ns);
            self.finish();
        }
        self.timeline.upcoming.is_some() || !self.live.is_empty()
    }

    /// Puts the oldest run of a phase aside.
    fn finish(&mut self) {
        if let Some(instance) = self.live.pop_front() {
            self.done.push_back(instance);
        }
        if self.timeline.repeat && self.done.len() > REPEAT_KEPT_MAX {
            self.done.pop_front();
        }
    }

    /// Connects the clients of a phase that are not connected yet.
    pub(super) fn prepare(&mut self, phase: usize) {
        let now_ns = self.clock.now_ns();
        let definition = self.config.scenario.phases[phase].clone();
        for (g, group) in definition.publish.iter().enumerate() {
            for slot in self.publish_slots(phase, g, group) {
                self.want(slot, now_ns);
            }
        }
        for (g, group) in definition.subscribe.iter().enumerate() {
            for slot in self.subscribe_slots(phase, g, group) {
                self.want(slot, now_ns);
            }
        }
    }

    fn want(&mut self, slot: usize, now_ns: u64) {
        let client = &mut self.clients[slot];
        client.wanted = true;
        client.leave_at_ns = None;
        if client.state == State::Idle {
            self.connect_at(slot, now_ns);
        }
    }

    /// Slots of a publish group, made where they do not exist.
    fn publish_slots(&mut self, phase: usize, g: usize, group: &PublishGroup) -> Vec<usize> {
        let generation = self.timeline.publish_generations[phase][g];
        (0..group.clients)
            .map(|index| {
                let key =
                    ClientKey { publishes: true, group: group.name.clone(), generation, index };
                let slot =
                    self.slot(key, || (group.protocol, Role::Publisher(Publisher::default())));
                self.clients[slot].reconnect_ns = nanos(group.reconnect);
                slot
            })
            .collect()
    }

    /// Slots of a subscribe group, made where they do not exist.
    fn subscribe_slots(&mut self, phase: usize, g: usize, group: &SubscribeGroup) -> Vec<usize> {
        let generation = self.timeline.subscribe_generations[phase][g];
        (0..group.clients)
            .map(|index| {
                let key =
                    ClientKey { publishes: false, group: group.name.clone(), generation, index };
                let slot = self.slot(key, || {
                    (group.protocol, Role::Subscriber(Subscription::new(group, index)))
                });
                self.clients[slot].reconnect_ns = nanos(group.reconnect);
                slot
            })
            .collect()
    }

    fn slot(
        &mut self,
        key: ClientKey,
        new: impl FnOnce() -> (crate::scenario::Protocol, Role),
    ) -> usize {
        let slot = self.clients.len();
        let known = *self.slots.entry(key).or_insert(slot);
        if known == slot {
            let (protocol, role) = new();
            self.clients.push(Client::new(format!("bt-{:08x}-{slot}", self.nonce), protocol, role));
        }
        known
    }

    /// Starts the upcoming run of a phase and ends the current one.
    fn begin(&mut self) {
        let Some(next) = self.timeline.upcoming.take() else {
            return;
        };
        self.send_rest();
        let mut definition = self.config.scenario.phases[next.phase].clone();
        if next.is_lead_in {
            definition.duration_s = self.timeline.lead_in_s;
            definition.subscribe.iter_mut().for_each(|group| group.offline = None);
        }
        let number = self.timeline.next_number;
        self.timeline.next_number = number.wrapping_add(1);
        let mut instance =
            Instance::new(number, next.phase, !next.is_lead_in, next.start_ns, &definition);
        let writers = self.writers(&instance, &definition);
        let readers = self.readers(&instance, &definition);
        let members: Vec<usize> = writers
            .iter()
            .map(|group| &group.slots)
            .chain(readers.iter().map(|group| &group.slots))
            .flatten()
            .copied()
            .collect();
        instance.set_groups(writers, readers);
        let stay_until_ns = self.live.back().map_or(next.start_ns, |before| before.stay_until_ns);
        self.dismiss(&members, stay_until_ns);
        for (group, writers) in definition.publish.iter().zip(&instance.writers) {
            self.assign_group(&instance, group, writers);
        }
        self.timeline.upcoming = self.after(&next, instance.end_ns);
        self.live.push_back(instance);
    }

    fn after(&self, current: &Upcoming, start_ns: u64) -> Option<Upcoming> {
        let phases = &self.config.scenario.phases;
        let phase = match current.phase + 1 {
            _ if current.is_lead_in => current.phase,
            next if next < phases.len() => next,
            _ if self.timeline.repeat => 0,
            _ => return None,
        };
        let clients =
            phases[phase].publish.iter().map(|group| u64::from(group.clients)).sum::<u64>()
                + phases[phase].subscribe.iter().map(|group| u64::from(group.clients)).sum::<u64>();
        let prepare_ns = start_ns.saturating_sub(CONNECT_LEAD_NS + clients * 1_000_000);
        Some(Upcoming { phase, is_lead_in: false, start_ns, prepare_ns, prepared: false })
    }

    fn writers(&mut self, instance: &Instance, definition: &Phase) -> Vec<Writers> {
        let mut base = 0;
        let mut writers = Vec::new();
        for (g, group) in definition.publish.iter().enumerate() {
            let slots = self.publish_slots(instance.phase, g, group);
            // Checked at the start: the capacity is there where it is needed.
            let rate_hz = group
                .rate
                .per_client_hz(group.clients, self.config.capacity_msgs_per_s)
                .unwrap_or(1.0);
            let schedule = Schedule::new(
                group.clients,
                rate_hz,
                group.sync,
                group.burst,
                definition.duration_s,
            );
            writers.push(Writers::new(group, schedule, base, slots, instance.start_ns));
            base += group.clients;
        }
        writers
    }

    fn readers(&mut self, instance: &Instance, definition: &Phase) -> Vec<Readers> {
        let mut readers = Vec::new();
        for (g, group) in definition.subscribe.iter().enumerate() {
            let slots = self.subscribe_slots(instance.phase, g, group);
            let away = group.offline.map(|offline| {
                let at_ns = instance.start_ns + nanos(offline.at);
                Away { at_ns, back_ns: at_ns + nanos(offline.lasts) + nanos(group.reconnect) }
            });
            for slot in &slots {
                let client = &mut self.clients[*slot];
                if let Role::Subscriber(subscription) = &mut client.role {
                    subscription.ack_delay_ns = nanos(group.ack_delay);
                }
                client.away_ns = away.map(|away| (away.at_ns, away.back_ns));
                if let Some(away) = away {
                    self.wake_at(away.at_ns, *slot);
                }
            }
            readers.push(Readers::new(group, definition.duration_s, slots, away));
        }
        readers
    }

    fn assign_group(&mut self, instance: &Instance, group: &PublishGroup, writers: &Writers) {
        let name_seed =
            group.name.bytes().fold(0, |seed, byte| payload::mix(seed ^ u64::from(byte)));
        let seed =
            payload::mix(self.config.seed ^ name_seed ^ payload::mix(u64::from(instance.number)));
        let sizes = Sizes { seed, min: group.payload_bytes_min, max: group.payload_bytes_max };
        for ((slot, topic), client) in writers.slots.iter().zip(&writers.topics).zip(0..) {
            let assignment = Assignment {
                instance: instance.number,
                publisher: writers.base + client,
                client,
                topic: Rc::clone(topic),
                qos: group.qos,
                retain: group.retain,
                window: group.inflight,
                payload: sizes,
                nonce: self.nonce,
                start_ns: instance.start_ns,
                schedule: Rc::clone(&writers.schedule),
            };
            if let Role::Publisher(publisher) = &mut self.clients[*slot].role {
                publisher.assign(Some(Rc::new(assignment)));
            }
        }
    }

    /// Everybody who is no member of the new phase leaves: subscribers at `stay_until_ns`,
    /// publishers then at the latest. All publishers' buffers are emptied.
    fn dismiss(&mut self, members: &[usize], stay_until_ns: u64) {
        let now_ns = self.clock.now_ns();
        let mut stays = vec![false; self.clients.len()];
        members.iter().for_each(|slot| stays[*slot] = true);
        for (slot, stays) in stays.into_iter().enumerate() {
            let client = &mut self.clients[slot];
            let mut is_done = false;
            if let Role::Publisher(publisher) = &mut client.role {
                publisher.assign(None);
                is_done = publisher.is_idle();
            }
            if stays || client.state == State::Idle {
                continue;
            }
            client.leave_at_ns = Some(stay_until_ns);
            client.away_ns = client.away_ns.filter(|_| stay_until_ns > now_ns);
            self.wake_at(stay_until_ns, slot);
            if is_done {
                self.leave(slot, now_ns);
            }
        }
    }

    /// Hands over closed seconds and the status.
    pub(super) fn report(&mut self, now_ns: u64) {
        self.close_seconds(now_ns);
        let stage = self.stage(now_ns);
        let connected = self.clients.iter().filter(|client| client.state == State::Ready).count();
        let wanted = self.clients.iter().filter(|client| client.wanted).count();
        let mut handover = self.shared.handover();
        handover.stage = stage;
        handover.clients_connected = connected;
        handover.clients_wanted = wanted;
        handover.delivered += std::mem::take(&mut self.totals.delivered);
        handover.latency_us_max = handover.latency_us_max.max(self.totals.latency_us_max.take());
        handover.generator_lag_us_p99 = self.lag.send_us(0.99);
    }

    fn stage(&self, now_ns: u64) -> Stage {
        match self.live.back() {
            None if self.timeline.upcoming.is_some() => Stage::Connecting,
            None => Stage::Ended,
            Some(instance) if self.timeline.ended || instance.end_ns < now_ns => Stage::Draining,
            Some(instance) if !instance.scored => Stage::LeadIn,
            Some(instance) => Stage::Phase { index: instance.phase },
        }
    }

    fn close_seconds(&mut self, now_ns: u64) {
        let mut handover = self.shared.handover();
        for instance in &mut self.live {
            for group in 0..instance.readers.len() {
                while let Some(counts) = instance.close_second(group, now_ns) {
                    let mut counts = counts.clone();
                    let closed = instance.readers[group].closed as u64 - 1;
                    counts.void = self
                        .lag
                        .is_void(self.clock.second(instance.start_ns + closed * NANOS_PER_S));
                    if handover.closed.len() >= CLOSED_MAX {
                        handover.closed.pop_front();
                    }
                    let number = instance.number;
                    handover.closed.push_back(ClosedSecond {
                        number,
                        phase: instance.phase,
                        group,
                        counts,
                    });
                }
            }
        }
    }
}
