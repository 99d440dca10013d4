//! The result of a run: the score, and every figure behind it.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::NANOS_PER_S;
use super::client::Role;
use super::engine::Engine;
use super::score::{self, GroupCounts, MemorySeconds, PhaseCounts, SecondCounts, Tally};
use super::track::Instance;
use crate::scenario::Scenario;

/// Format of [`LoadResult`] as JSON.
pub const RESULT_VERSION: u32 = 1;

/// Result of a run. Serialised as JSON it is version 1 of its format; keys carry their units.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LoadResult {
    /// Format of this object.
    pub version: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// Seed of the run.
    pub seed: u64,
    /// 0..=1; `None` where no second takes part.
    pub score: Option<f64>,
    /// Too many void seconds, or none that takes part: the score says nothing about the broker.
    pub is_void: bool,
    /// Every phase was played to its end; always true when it repeats.
    pub is_complete: bool,
    /// Seconds of intended send in the scored part.
    pub seconds: u64,
    /// Of them left out because the generator lagged.
    pub seconds_void: u64,
    /// The broker's capacity that rates were multiplied with.
    pub capacity_msgs_per_s: Option<f64>,
    /// Sums over the scored part.
    pub tally: Tally,
    /// First deliveries of the scored part, late ones included, over its length.
    pub delivered_per_s: f64,
    /// Deliveries of a message that its subscriber had already.
    pub duplicates: u64,
    /// Deliveries that nobody expected.
    pub unexpected: u64,
    /// Publishes that never left because of a full or missing connection.
    pub discarded_by_publishers: u64,
    /// Publishes sent again after a reconnect.
    pub resent: u64,
    /// Connections lost, scheduled absences not included.
    pub connections_lost: u64,
    /// Connections closed because of bytes that are no MQTT.
    pub malformed_packets: u64,
    /// Largest sample of the broker's resident memory.
    pub rss_bytes_max: Option<u64>,
    /// Wall-clock seconds above the limit.
    pub rss_seconds_over: u64,
    /// How much later than possible messages left.
    pub generator_lag_us_p99: u64,
    /// The largest of these.
    pub generator_lag_us_max: u64,
    /// The longest turn of the generator's loop.
    pub generator_turn_us_max: u64,
    /// The scored part, phase by phase.
    pub phases: Vec<PhaseResult>,
}

impl LoadResult {
    /// Whether at most half of the seconds are void: enough for a difference as large as that between a
    /// broker that fails and one that does not, also where the run is void for a comparison.
    #[must_use]
    pub fn is_telling(&self) -> bool {
        self.score.is_some() && self.seconds_void * 2 <= self.seconds
    }
}

/// One run of a phase.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PhaseResult {
    /// Name of the phase.
    pub name: String,
    /// Share in the score.
    pub weight: f64,
    /// Mean over the groups.
    pub score: Option<f64>,
    /// Its subscribe groups.
    pub groups: Vec<GroupResult>,
}

/// One subscribe group in one run of a phase.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupResult {
    /// Name of the group.
    pub name: String,
    /// Share in the phase's score.
    pub weight: f64,
    /// Deadline of its messages.
    pub deadline_ms: u64,
    /// Mean over the seconds.
    pub score: Option<f64>,
    /// Sums over the seconds, void ones included.
    pub tally: Tally,
    /// Deliveries of a message that its subscriber had already.
    pub duplicates: u64,
    /// From intended send to first delivery: median. 0 without any.
    pub latency_us_p50: u64,
    /// 99th percentile.
    pub latency_us_p99: u64,
    /// The largest.
    pub latency_us_max: u64,
    /// By second of intended send.
    pub seconds: Vec<SecondResult>,
}

/// One second of intended send.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct SecondResult {
    /// `None` where the second does not take part.
    pub score: Option<f64>,
    /// Left out because the generator lagged.
    pub is_void: bool,
    /// What became of its messages.
    pub tally: Tally,
}

/// Sums up a run that has ended.
pub(super) fn result(mut engine: Engine) -> LoadResult {
    let mut instances: Vec<Instance> = engine.done.drain(..).chain(engine.live.drain(..)).collect();
    instances.retain(|instance| instance.scored);
    for instance in &mut instances {
        instance.keep_closed();
        instance.charge_outages(&engine.outages);
        for readers in &mut instance.readers {
            for (second, counts) in (0..).zip(&mut readers.seconds) {
                counts.void = engine
                    .lag
                    .is_void(engine.clock.second(instance.start_ns + second * NANOS_PER_S));
            }
        }
    }
    let memory = engine.shared.handover().memory.clone();
    let scenario = &engine.config.scenario;
    let phases: Vec<PhaseResult> =
        instances.iter().map(|instance| phase(scenario, instance, &memory)).collect();
    let counts: Vec<PhaseCounts<'_>> =
        instances.iter().map(|instance| phase_counts(scenario, instance)).collect();
    let (seconds, seconds_void) = seconds(&instances);
    let first_deliveries: u64 = instances
        .iter()
        .flat_map(|instance| &instance.readers)
        .map(|readers| readers.latency_us.len())
        .sum();
    let (discarded_by_publishers, resent) = publishers(&engine);
    let score = score::run_score(&counts, &memory);
    LoadResult {
        version: RESULT_VERSION,
        scenario: scenario.name.clone(),
        seed: engine.config.seed,
        score,
        is_void: score.is_none() || score::is_void_run(seconds_void, seconds),
        is_complete: engine.config.repeat || is_complete(scenario, &instances),
        seconds,
        seconds_void,
        capacity_msgs_per_s: engine
            .config
            .capacity_msgs_per_s
            .filter(|_| scenario.needs_capacity()),
        tally: phases.iter().flat_map(|phase| &phase.groups).map(|group| group.tally).sum(),
        delivered_per_s: if seconds == 0 { 0.0 } else { first_deliveries as f64 / seconds as f64 },
        duplicates: phases
            .iter()
            .flat_map(|phase| &phase.groups)
            .map(|group| group.duplicates)
            .sum(),
        unexpected: engine.totals.foreign
            + instances.iter().map(|instance| instance.unexpected).sum::<u64>(),
        discarded_by_publishers,
        resent,
        connections_lost: engine.totals.connections_lost,
        malformed_packets: engine.totals.bad_packets,
        rss_bytes_max: memory.rss_bytes_max(),
        rss_seconds_over: memory.seconds_over(),
        generator_lag_us_p99: engine.lag.send_us(0.99),
        generator_lag_us_max: engine.lag.send_us(1.0),
        generator_turn_us_max: engine.lag.turn_us_max(),
        phases,
    }
}

fn is_complete(scenario: &Scenario, instances: &[Instance]) -> bool {
    let is_whole = |instance: &Instance| {
        let duration_s = scenario.phases[instance.phase].duration_s as usize;
        instance.readers.iter().all(|readers| readers.seconds.len() == duration_s)
    };
    instances.len() == scenario.phases.len() && instances.iter().all(is_whole)
}

/// Seconds of all runs of phases, and how many of them are void; a phase without subscribers has
/// none.
fn seconds(instances: &[Instance]) -> (u64, u64) {
    let longest = instances
        .iter()
        .filter_map(|instance| instance.readers.iter().max_by_key(|readers| readers.seconds.len()));
    longest.fold((0, 0), |(all, void), readers| {
        let voids = readers.seconds.iter().filter(|counts| counts.void).count();
        (all + readers.seconds.len() as u64, void + voids as u64)
    })
}

fn publishers(engine: &Engine) -> (u64, u64) {
    engine.clients.iter().fold((0, 0), |(discarded, resent), client| match &client.role {
        Role::Publisher(publisher) => (discarded + publisher.discarded, resent + publisher.resent),
        Role::Subscriber(_) => (discarded, resent),
    })
}

fn phase_counts<'a>(scenario: &Scenario, instance: &'a Instance) -> PhaseCounts<'a> {
    let phase = &scenario.phases[instance.phase];
    let groups = phase.subscribe.iter().zip(&instance.readers);
    PhaseCounts {
        weight: phase.weight,
        groups: groups
            .map(|(group, readers)| GroupCounts { weight: group.weight, seconds: &readers.seconds })
            .collect(),
    }
}

fn phase(scenario: &Scenario, instance: &Instance, memory: &MemorySeconds) -> PhaseResult {
    let phase = &scenario.phases[instance.phase];
    let groups = phase.subscribe.iter().zip(&instance.readers).map(|(group, readers)| {
        let seconds: Vec<SecondResult> =
            readers.seconds.iter().map(|counts| second(counts, memory)).collect();
        let latency_us = |quantile| latency(&readers.latency_us, quantile);
        GroupResult {
            name: group.name.clone(),
            weight: group.weight,
            deadline_ms: u64::try_from(group.deadline.as_millis()).unwrap_or(u64::MAX),
            score: score::group_score(&readers.seconds, memory),
            tally: seconds.iter().map(|second| second.tally).sum(),
            duplicates: readers.duplicates,
            latency_us_p50: latency_us(0.5),
            latency_us_p99: latency_us(0.99),
            latency_us_max: latency_us(1.0),
            seconds,
        }
    });
    PhaseResult {
        name: phase.name.clone(),
        weight: phase.weight,
        score: score::phase_score(&phase_counts(scenario, instance).groups, memory),
        groups: groups.collect(),
    }
}

fn second(counts: &SecondCounts, memory: &MemorySeconds) -> SecondResult {
    let mut tally = Tally::default();
    tally.add(counts, memory);
    SecondResult { score: score::second_score(counts, memory), is_void: counts.void, tally }
}

fn latency(histogram: &Histogram<u32>, quantile: f64) -> u64 {
    if histogram.is_empty() { 0 } else { histogram.value_at_quantile(quantile) }
}
