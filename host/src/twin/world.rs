//! The whole of it: phases, clients, broker and score.

use super::broker::{Broker, Held, Orphans};
use super::calibration::Calibration;
use super::cohort::{Expectation, Publishers, Subscribers};
use super::link::Batch;
use super::time::{Slice, Span};
use crate::load::schedule::Schedule;
use crate::load::score::{self, GroupCounts, MemorySeconds, PhaseCounts, Tally};
use crate::scenario::{Phase, Qos, Scenario, SubscribeGroup};
use brokertuner_core::knobs::Apply;
use brokertuner_core::sample::Sample;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Instant, Settings};
use std::collections::VecDeque;
use std::sync::Arc;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The load.
    pub scenario: Arc<Scenario>,
    /// The broker.
    pub calibration: Calibration,
    /// What holds for options without a line.
    pub site: SiteValues,
    /// What the broker starts with.
    pub settings: Settings,
    /// Messages a second that the broker passes, for scenarios that ask for a multiple of it.
    pub capacity_msgs_per_s: Option<f64>,
    /// The part before the score, with the groups of the first phase.
    pub lead_in_s: u32,
    /// The phases follow each other for ever.
    pub repeat: bool,
    /// Length of a slice.
    pub slice_us: u32,
    /// Of what blurs the agent's sight.
    pub seed: u64,
}

/// One run of a phase.
#[derive(Debug)]
struct Stage {
    phase: usize,
    is_scored: bool,
    start: Slice,
    end: Slice,
    /// Until when subscribers stay for what is still in time.
    stay_until: Slice,
    publishers: Vec<Publishers>,
    expectations: Vec<Expectation>,
}

/// How soon a client answers that answers at once, about: it wakes, reads and writes.
const CLIENT_TURN_US: f64 = 200.0;

/// Weight of a group, and its seconds whose deadlines have passed.
type Closed = (f64, Vec<score::SecondCounts>);

/// How far the broker's loop is in its round.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// Of the publish groups.
    turn: usize,
    /// Clients of that group that it has read.
    read: u32,
    /// Clients whose packets there is surely time for.
    at_once: u32,
    cost_us: f64,
}

impl Default for Round {
    fn default() -> Round {
        Round { turn: 0, read: 0, at_once: 1, cost_us: 0.0 }
    }
}

impl Round {
    fn next(&mut self) {
        *self = Round { turn: self.turn + 1, cost_us: self.cost_us, ..Round::default() };
    }

    /// `count` packets took `cost_us`, and so much time is left in the slice.
    fn spent(&mut self, cost_us: f64, count: u32, left_us: f64) {
        self.cost_us += cost_us;
        let each_us = cost_us / f64::from(count.max(1));
        self.at_once = (left_us / each_us.max(f64::MIN_POSITIVE)).clamp(1.0, 1e9) as u32;
    }
}

/// A broker, its clients and their load.
#[derive(Debug)]
pub struct World {
    config: Config,
    broker: Broker,
    now: Slice,
    scored_from: Slice,
    /// CPU time of the broker before that.
    lead_in_cpu_us: f64,
    /// The end of the last phase, and CPU time of the broker until then; subscribers stay for longer.
    ended: Option<(Slice, f64)>,
    connections: Vec<Subscribers>,
    round: Round,
    /// Stages under way, the current one last.
    live: VecDeque<Stage>,
    done: Vec<Stage>,
    memory: MemorySeconds,
    is_over: bool,
}

impl World {
    /// A broker, and clients that connect to it.
    #[must_use]
    pub fn new(config: Config) -> World {
        let scenario = &config.scenario;
        let broker = Broker::new(
            config.calibration,
            config.site,
            &config.settings,
            scenario.broker.cpu_share,
            scenario.broker.sys_interval_s,
            config.slice_us,
        );
        let memory = MemorySeconds::new(scenario.rss_limit_bytes);
        let mut world = World {
            scored_from: Slice::START + Span::of_s(config.lead_in_s, config.slice_us),
            broker,
            lead_in_cpu_us: 0.0,
            ended: None,
            now: Slice::START,
            connections: Vec::new(),
            round: Round::default(),
            live: VecDeque::new(),
            done: Vec::new(),
            memory,
            is_over: false,
            config,
        };
        let lead_in_s = world.config.lead_in_s;
        world.begin(0, (lead_in_s > 0).then_some(lead_in_s));
        world
    }

    /// Lets time pass; false at the end of the load.
    pub fn advance(&mut self, seconds: f64) -> bool {
        let slices = (seconds * self.slices_per_s() as f64).round() as u32;
        for _ in 0..slices {
            if self.is_over {
                return false;
            }
            self.step();
        }
        !self.is_over
    }

    /// Plays the rest of a load that does not repeat.
    pub fn finish(&mut self) {
        while !self.is_over && !self.config.repeat {
            self.step();
        }
    }

    /// Changes the broker's settings.
    pub fn apply(&mut self, settings: &Settings, how: Apply) {
        match how {
            Apply::Reload => {
                self.broker.reload(settings);
                if self.broker.is_starved() {
                    self.lose_all(true);
                }
            }
            Apply::Restart => self.restart(settings),
        }
    }

    /// Whether the broker answers.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.broker.is_up(self.now)
    }

    /// The score of the messages whose deadline has passed since the last call, each phase weighted
    /// by its seconds; `None` where there are none.
    pub fn window(&mut self) -> Option<f64> {
        let (now, slice_us) = (self.now, self.config.slice_us);
        let stages = self.done.iter_mut().chain(&mut self.live);
        let mut phases: Vec<(f64, Vec<Closed>)> = Vec::new();
        for stage in stages {
            let start = stage.start;
            let groups: Vec<Closed> = stage
                .expectations
                .iter_mut()
                .map(|expectation| (expectation.weight, expectation.close(start, now, slice_us)))
                .collect();
            let seconds = groups.iter().map(|(_, seconds)| seconds.len()).max().unwrap_or(0);
            if seconds > 0 {
                phases.push((seconds as f64, groups));
            }
        }
        let counts: Vec<PhaseCounts<'_>> = phases
            .iter()
            .map(|(weight, groups)| PhaseCounts {
                weight: *weight,
                groups: groups
                    .iter()
                    .map(|(weight, seconds)| GroupCounts { weight: *weight, seconds })
                    .collect(),
            })
            .collect();
        score::run_score(&counts, &self.memory)
    }

    /// What an agent beside the broker sees.
    #[must_use]
    pub fn sample(&self) -> Sample {
        super::eyes::seen(self.broker.sample(self.now), self.config.seed)
    }

    /// 0..=1, of all that was scored.
    #[must_use]
    pub fn score(&self) -> Option<f64> {
        let stages = self.done.iter().chain(&self.live).filter(|stage| stage.is_scored);
        let phases: Vec<PhaseCounts<'_>> = stages
            .map(|stage| PhaseCounts {
                weight: self.config.scenario.phases[stage.phase].weight,
                groups: groups(stage, |expectation| &expectation.seconds),
            })
            .collect();
        score::run_score(&phases, &self.memory)
    }

    /// What became of all that was scored.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let stages = self.done.iter().chain(&self.live).filter(|stage| stage.is_scored);
        let mut tally = Tally::default();
        for seconds in stages.flat_map(|s| &s.expectations).flat_map(|e| &e.seconds) {
            tally.add(seconds, &self.memory);
        }
        tally
    }

    /// The world's clock, as the agent reads it.
    #[must_use]
    pub fn instant(&self) -> Instant {
        self.broker.instant(self.now)
    }

    /// Seconds since the start.
    #[must_use]
    pub fn now_s(&self) -> f64 {
        f64::from(self.now.since(Slice::START).slices()) * f64::from(self.config.slice_us) / 1e6
    }

    /// CPU time of the broker in the scored part, of one core.
    #[must_use]
    pub fn cpu_share(&self) -> f64 {
        let (until, used_us) = self.ended.unwrap_or((self.now, self.broker.budget.used_us()));
        let scored_us =
            f64::from(until.since(self.scored_from).slices()) * f64::from(self.config.slice_us);
        (used_us - self.lead_in_cpu_us) / scored_us.max(1.0)
    }

    /// Resident memory now.
    #[must_use]
    pub fn rss_bytes(&self) -> u64 {
        self.broker.rss_bytes()
    }

    /// The largest resident memory.
    #[must_use]
    pub fn rss_bytes_max(&self) -> u64 {
        self.memory.rss_bytes_max().unwrap_or(0)
    }

    fn slices_per_s(&self) -> u32 {
        1_000_000 / self.config.slice_us
    }

    /// One slice.
    fn step(&mut self) {
        if self.now == self.scored_from {
            self.lead_in_cpu_us = self.broker.budget.used_us();
        }
        self.turn_the_page();
        self.come_and_go();
        self.send();
        self.run_broker();
        self.count();
        self.broker.keep_house(self.now);
        let slices_per_sample = (100_000 / self.config.slice_us).max(1);
        let is_due = self.now.since(Slice::START).slices().is_multiple_of(slices_per_sample);
        if is_due || self.broker.has_memory_limit() {
            self.look_at_memory();
        }
        if is_due && self.broker.is_up(self.now) {
            let second = second_of(self.now, self.scored_from, self.slices_per_s());
            self.memory.push(second, self.broker.rss_bytes());
        }
        self.now = self.now + Span::ONE;
    }

    /// Starts the next phase and ends the last one's stay.
    fn turn_the_page(&mut self) {
        if let Some(stage) = self.live.back()
            && stage.end <= self.now
        {
            let next = if stage.is_scored { stage.phase + 1 } else { stage.phase };
            let count = self.config.scenario.phases.len();
            if next < count {
                self.begin(next, None);
            } else if self.config.repeat {
                self.begin(0, None);
            } else {
                self.is_over = stage.stay_until <= self.now;
                self.ended.get_or_insert((self.now, self.broker.budget.used_us()));
            }
        }
        while self.live.len() > 1 && self.live.front().is_some_and(|s| s.stay_until <= self.now) {
            self.dismiss();
        }
    }

    /// Puts the oldest stage aside; who is not wanted any more disconnects.
    fn dismiss(&mut self) {
        let Some(stage) = self.live.pop_front() else { return };
        self.done.push(stage);
        for connection in &mut self.connections {
            if !connection.is_wanted && connection.back.is_none() {
                connection.lose(Slice::NEVER, true);
            }
        }
    }

    fn begin(&mut self, phase: usize, lead_in_s: Option<u32>) {
        let scenario = Arc::clone(&self.config.scenario);
        let slice_us = self.config.slice_us;
        let mut definition = scenario.phases[phase].clone();
        if let Some(seconds) = lead_in_s {
            definition.duration_s = seconds;
            definition.subscribe.iter_mut().for_each(|group| group.offline = None);
        }
        let end = self.now + Span::of_s(definition.duration_s, slice_us);
        // Of the phase with the most: what the one before has sent is still read in this one.
        let publish_groups = scenario.phases.iter().map(|phase| phase.publish.len()).max();
        let publish_groups = publish_groups.unwrap_or(0);
        self.connections.iter_mut().for_each(|connection| connection.leave(publish_groups));
        let expectations: Vec<Expectation> = definition
            .subscribe
            .iter()
            .map(|group| {
                let connection = self.connection(&definition, group, publish_groups);
                let size = (definition.duration_s, publish_groups);
                Expectation::new(group, connection, self.now, size, slice_us)
            })
            .collect();
        let stay = definition.subscribe.iter().map(|group| super::cohort::us(group.deadline)).max();
        let publishers = self.publishers(&definition);
        if let Some(before) = self.live.back_mut() {
            before.publishers.iter_mut().for_each(Publishers::stop);
        }
        self.live.push_back(Stage {
            phase,
            is_scored: lead_in_s.is_none(),
            start: self.now,
            end,
            stay_until: end + Span::of_us(stay.unwrap_or(0), slice_us) + Span::ONE,
            publishers,
            expectations,
        });
    }

    /// The connections of a group: those of a namesake that differs in nothing that matters to the
    /// broker, or new ones.
    fn connection(
        &mut self,
        phase: &Phase,
        group: &SubscribeGroup,
        publish_groups: usize,
    ) -> usize {
        let slice_us = self.config.slice_us;
        let found = self.connections.iter().position(|other| {
            other.group.name == group.name
                && crate::load::same_subscriber(&other.group, group)
                && (!group.clean_session || other.back.is_none())
        });
        let index = found.unwrap_or_else(|| {
            let sockets: u32 = phase.subscribe.iter().map(|group| group.clients).sum();
            let answers = phase.publish.iter().any(|group| group.qos != Qos::AtMostOnce);
            self.connections.push(Subscribers::new(group, answers || sockets > 1, slice_us));
            self.connections.len() - 1
        });
        let connection = &mut self.connections[index];
        connection.enter(group, publish_groups, slice_us);
        if connection.back.is_some() {
            connection.back = Some(self.now);
        }
        index
    }

    fn publishers(&self, phase: &Phase) -> Vec<Publishers> {
        let capacity = self.config.capacity_msgs_per_s;
        let schedule = |group: &crate::scenario::PublishGroup| {
            let rate_hz = group.rate.per_client_hz(group.clients, capacity).unwrap_or(1.0);
            Schedule::new(group.clients, rate_hz, group.sync, group.burst, phase.duration_s)
        };
        let new = |group| {
            Publishers::new(group, schedule(group), &self.connections, self.config.slice_us)
        };
        phase.publish.iter().map(new).collect()
    }

    /// Scheduled absences, and connections that come back.
    fn come_and_go(&mut self) {
        let now = self.now;
        if let Some(stage) = self.live.back() {
            for expectation in &stage.expectations {
                if let Some((from, to)) = expectation.absence
                    && from == now
                {
                    self.connections[expectation.connection].lose(to, true);
                }
            }
        }
        let down_until = self.broker.down_until().filter(|until| *until > now);
        for connection in &mut self.connections {
            if connection.back.is_none_or(|back| back > now) || !connection.is_wanted {
                continue;
            }
            if down_until.is_some() {
                connection.back = Some(now + connection.reconnect);
                continue;
            }
            let work = connection.connect(now, &self.broker.limits);
            let cost = self.broker.account(&work, connection.members());
            self.broker.budget.spend(cost);
        }
        for publishers in self.live.iter_mut().flat_map(|stage| &mut stage.publishers) {
            if publishers.back.is_some_and(|back| back <= now) {
                publishers.back = down_until.map(|_| now + publishers.reconnect);
            }
        }
    }

    /// What is due, and what clients acknowledge.
    fn send(&mut self) {
        let (now, slices_per_s) = (self.now, self.slices_per_s());
        let slice_s = f64::from(self.config.slice_us) / 1e6;
        for stage in &mut self.live {
            let slice = now.since(stage.start).slices();
            let second = (slice / slices_per_s) as usize;
            for (group, publishers) in stage.publishers.iter_mut().enumerate() {
                let count = publishers.due(now, f64::from(slice + 1) * slice_s);
                if count > 0 {
                    let wakes = if publishers.is_sync { 1 } else { count };
                    self.broker.wake(wakes);
                    for expectation in &mut stage.expectations {
                        let share = publishers.audience[expectation.connection];
                        expectation.expect(now, second, group, share, count);
                    }
                }
                publishers.send();
            }
        }
        for connection in &mut self.connections {
            // What Nagle held and this lets go, the client's processor sends (loopback).
            let work = connection.arrive(now);
            // The others, and the other members', come while the broker is at the first one.
            self.broker.wake(work.arrivals.min(1));
        }
    }

    /// Rounds of the broker's loop, for as long as there is time and something to do. A round that
    /// is longer than the slice goes on in the next one, where it stopped.
    fn run_broker(&mut self) {
        let mut unheard_us = 0.0;
        self.broker.budget.refill();
        if !self.broker.is_up(self.now) {
            return;
        }
        while self.broker.budget.is_left() {
            let groups: usize = self.live.iter().map(|stage| stage.publishers.len()).sum();
            while self.round.turn < groups && self.broker.budget.is_left() {
                self.read_publishes();
            }
            if !self.broker.budget.is_left() {
                return;
            }
            let answers_us = self.read_acknowledgements();
            let cost = std::mem::take(&mut self.round).cost_us + answers_us;
            if cost == 0.0 {
                break;
            }
            let round_us = self.broker.costs().round_us;
            self.broker.budget.spend(answers_us + round_us);
            self.broker.budget.round_us = cost + round_us;
            unheard_us += cost + round_us;
            if unheard_us >= CLIENT_TURN_US {
                unheard_us = 0.0;
                // Clients that answer at once do so while the broker is at later rounds.
                for connection in &mut self.connections {
                    connection.arrive(self.now);
                }
            }
        }
        if self.broker.budget.is_left() {
            // Nothing waits: a probe is a round of its own.
            self.broker.budget.round_us = 0.0;
        }
    }

    /// Reads of the publish group whose turn it is what there is time for, at most a packet of each
    /// client.
    fn read_publishes(&mut self) {
        let (now, limits, turn) = (self.now, self.broker.limits, self.round.turn);
        let queues_qos0 = self.broker.queues_qos0();
        let mut groups = self.live.iter_mut().flat_map(|s| s.publishers.iter_mut().enumerate());
        let Some((p, publishers)) = groups.nth(turn) else { return };
        if publishers.is_waiting() && self.broker.is_out_of_memory() {
            // Whoever sends is disconnected (mosquitto.md 5.1): alike clients all.
            publishers.lose(now + publishers.reconnect);
        }
        let batch = publishers.clients.checked_sub(self.round.read).filter(|left| *left > 0);
        let Some(batch) = batch.and_then(|left| publishers.read(left.min(self.round.at_once)))
        else {
            self.round.next();
            return;
        };
        self.round.read += batch.count;
        let counters = &mut self.broker.counters;
        counters.packets_received += u64::from(batch.count);
        counters.publish_received += u64::from(batch.count);
        counters.publish_bytes_received += batch.total_bytes();
        let mut cost = self.broker.costs().of_publishes(batch.count, batch.bytes);
        for (s, connection) in self.connections.iter_mut().enumerate() {
            let share = publishers.audience.get(s).copied().unwrap_or(0.0);
            if share > 0.0 {
                cost +=
                    route(&mut self.broker, connection, p, share, batch, now, &limits, queues_qos0);
            }
        }
        publishers.send();
        self.broker.budget.spend(cost);
        self.round.spent(cost, batch.count, self.broker.budget.left_us());
    }

    fn read_acknowledgements(&mut self) -> f64 {
        let now = self.now;
        let mut cost = 0.0;
        for connection in &mut self.connections {
            let Some(packet) = connection.read() else { continue };
            let work = connection.link.acknowledge(now, packet);
            let members = connection.members();
            self.broker.counters.packets_received += u64::from(members);
            cost += self.broker.account(&work, members)
                + f64::from(members) * self.broker.costs().acknowledge_us;
        }
        cost
    }

    /// Counts what was read in this slice.
    fn count(&mut self) {
        let (now, slices_per_s) = (self.now, self.slices_per_s());
        let arrived = second_of(now, self.scored_from, slices_per_s);
        for (index, connection) in self.connections.iter_mut().enumerate() {
            for batch in connection.link.take_delivered() {
                let stage = self.live.iter_mut().rev().find(|stage| stage.start <= batch.due);
                let Some(stage) = stage else { continue };
                let second = (batch.due.since(stage.start).slices() / slices_per_s) as usize;
                let mut expectations = stage.expectations.iter_mut();
                if let Some(expectation) = expectations.find(|it| it.connection == index) {
                    expectation.score(second, batch, now, arrived);
                }
            }
        }
    }

    fn look_at_memory(&mut self) {
        let mut held = Held::default();
        for connection in &self.connections {
            let (messages, bytes) = connection.backlog();
            let members = u64::from(connection.members());
            held.entries += u64::from(messages) * members;
            // Alike members share their messages, and so do most groups.
            held.messages = held.messages.max(u64::from(messages));
            held.bytes = held.bytes.max(bytes);
            if connection.back.is_none() {
                held.clients += connection.members();
                held.subscriptions += connection.members();
            } else if !connection.group.clean_session {
                held.clients_offline += connection.members();
                held.subscriptions += connection.members();
            }
        }
        if let Some(stage) = self.live.back() {
            held.clients += stage
                .publishers
                .iter()
                .filter(|group| group.back.is_none())
                .map(|group| group.clients)
                .sum::<u32>();
        }
        self.broker.held = held;
        self.broker.look_at_memory();
    }

    /// What no durable session waits for too; groups of one kind share their messages, mostly.
    fn waited_for_by_clean_sessions(&self) -> Orphans {
        let most = |is_clean: bool| {
            let of_kind = self.connections.iter().filter(|one| one.group.clean_session == is_clean);
            of_kind.map(Subscribers::backlog).fold((0, 0), |most, (messages, bytes)| {
                (most.0.max(u64::from(messages)), most.1.max(bytes))
            })
        };
        let (clean, durable) = (most(true), most(false));
        let messages = clean.0.saturating_sub(durable.0);
        Orphans { messages, bytes: clean.1.saturating_sub(durable.1) }
    }

    fn restart(&mut self, settings: &Settings) {
        // Without memory it does not save; what an earlier save had is not modelled.
        let was_kept = self.broker.persists() && !self.broker.is_starved();
        let clean = self.waited_for_by_clean_sessions();
        self.broker.restart(self.now, settings, clean);
        self.lose_all(was_kept && self.broker.persists());
    }

    /// Disconnects everyone.
    fn lose_all(&mut self, session_lives: bool) {
        let now = self.now;
        for connection in &mut self.connections {
            let back = match connection.back {
                Some(back) => back,
                None => now + connection.reconnect,
            };
            connection.lose(back, session_lives);
        }
        for publishers in self.live.iter_mut().flat_map(|stage| &mut stage.publishers) {
            let back = now + publishers.reconnect;
            publishers.lose(back);
        }
    }
}

/// Puts `batch` before the members of `connection`; the time that takes.
#[allow(clippy::too_many_arguments, reason = "the hot path, inlined")]
fn route(
    broker: &mut Broker,
    connection: &mut Subscribers,
    publish_group: usize,
    share: f64,
    batch: Batch,
    now: Slice,
    limits: &super::link::Limits,
    queues_qos0: bool,
) -> f64 {
    let count = connection.portion(publish_group, share, batch.count);
    if count == 0 {
        return 0.0;
    }
    let work = connection.publish(now, batch.of(count), limits, queues_qos0);
    let members = connection.members();
    broker.account(&work, members) + f64::from(count * members) * broker.costs().route_us
}

/// Seconds from `from`, negative before it.
fn second_of(now: Slice, from: Slice, slices_per_s: u32) -> i64 {
    let slices = i64::from(now.since(from).slices()) - i64::from(from.since(now).slices());
    slices.div_euclid(i64::from(slices_per_s))
}

fn groups<'a>(
    stage: &'a Stage,
    seconds: impl Fn(&'a Expectation) -> &'a [score::SecondCounts],
) -> Vec<GroupCounts<'a>> {
    stage
        .expectations
        .iter()
        .map(|expectation| GroupCounts {
            weight: expectation.weight,
            seconds: seconds(expectation),
        })
        .collect()
}
