//! The whole of it: clients, broker and score.

use super::cohort::{Publishers, Subscribers};
use super::cpu::{Budget, Costs};
use super::link::Limits;
use super::time::Slice;
use crate::load::schedule::Schedule;
use crate::load::score::{self, GroupCounts, MemorySeconds, PhaseCounts};
use crate::scenario::{Phase, Qos, Scenario};
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, Settings};

/// What a run comes to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// 0..=1.
    pub score: Option<f64>,
    /// Of the broker's core.
    pub cpu_share: f64,
    /// Messages dropped for want of room.
    pub dropped: u64,
}

/// One phase under way.
struct Stage {
    start: Slice,
    publishers: Vec<Publishers>,
    subscribers: Vec<Subscribers>,
}

fn limits(settings: &Settings, site: &SiteValues) -> Limits {
    let value = |knob| settings.effective(knob, site);
    let count = |knob| match value(knob) {
        0 => u32::MAX,
        limit => u32::try_from(limit).unwrap_or(u32::MAX),
    };
    let bytes = |knob| match value(knob) {
        0 => u64::MAX,
        limit => limit,
    };
    Limits {
        window: count(Knob::InflightMessagesMax),
        window_bytes: bytes(Knob::InflightBytesMax),
        queue: count(Knob::QueuedMessagesMax),
        queue_bytes: bytes(Knob::QueuedBytesMax),
        nodelay: value(Knob::TcpNodelay) != 0,
    }
}

/// Plays `scenario` with fixed settings.
#[must_use]
pub fn play(
    scenario: &Scenario,
    settings: &Settings,
    costs: &Costs,
    slice_us: u32,
    capacity: Option<f64>,
) -> Outcome {
    let limits = limits(settings, &SiteValues::default());
    let mut budget = Budget::new(slice_us, scenario.broker.cpu_share);
    let mut now = Slice::START;
    let mut dropped = 0;
    let mut stages = Vec::new();
    for phase in &scenario.phases {
        let mut stage = stage(phase, limits, slice_us, capacity, now);
        let slices = phase.duration_s * (1_000_000 / slice_us);
        for slice in 0..slices + 2 * (1_000_000 / slice_us) {
            dropped += step(&mut stage, &mut budget, costs, now, slice, slice_us);
            now = now + super::time::Span::of_us(slice_us, slice_us);
        }
        stages.push(stage);
    }
    let memory = MemorySeconds::new(scenario.rss_limit_bytes);
    let counts: Vec<PhaseCounts<'_>> = scenario
        .phases
        .iter()
        .zip(&stages)
        .map(|(phase, stage)| PhaseCounts {
            weight: phase.weight,
            groups: stage
                .subscribers
                .iter()
                .map(|group| GroupCounts { weight: group.weight, seconds: &group.seconds })
                .collect(),
        })
        .collect();
    let wall_us = f64::from(now.since(Slice::START).slices()) * f64::from(slice_us);
    Outcome {
        score: score::run_score(&counts, &memory),
        cpu_share: budget.used_us() / wall_us,
        dropped,
    }
}

fn stage(
    phase: &Phase,
    limits: Limits,
    slice_us: u32,
    capacity: Option<f64>,
    start: Slice,
) -> Stage {
    let sockets: u32 = phase.subscribe.iter().map(|group| group.clients).sum();
    let answers = phase.publish.iter().any(|group| group.qos != Qos::AtMostOnce);
    let publishers = phase
        .publish
        .iter()
        .map(|group| {
            let rate = group.rate.per_client_hz(group.clients, capacity).unwrap_or(1.0);
            let schedule =
                Schedule::new(group.clients, rate, group.sync, group.burst, phase.duration_s);
            Publishers::new(group, schedule, &phase.subscribe)
        })
        .collect();
    let subscribers = phase
        .subscribe
        .iter()
        .map(|group| {
            Subscribers::new(
                group,
                phase.publish.len(),
                phase.duration_s,
                limits,
                answers || sockets > 1,
                slice_us,
            )
        })
        .collect();
    Stage { start, publishers, subscribers }
}

fn step(
    stage: &mut Stage,
    budget: &mut Budget,
    costs: &Costs,
    now: Slice,
    slice: u32,
    slice_us: u32,
) -> u64 {
    let mut dropped = 0;
    let end_ns = u64::from(slice + 1) * u64::from(slice_us) * 1000;
    let slices_per_s = 1_000_000 / slice_us;
    for group in &mut stage.publishers {
        let count = group.due(now, end_ns);
        if count > 0 {
            let second = (slice / slices_per_s) as usize;
            for (s, readers) in stage.subscribers.iter_mut().enumerate() {
                let share = group.audience[s];
                let expected = (share * f64::from(count) * f64::from(readers.members)) as u64;
                if let Some(counts) = readers.seconds.get_mut(second) {
                    counts.expected += expected;
                }
            }
        }
        group.send();
    }
    for readers in &mut stage.subscribers {
        let work = readers.link.arrive(now, &mut readers.inbox);
        budget.spend(costs.of_work(&work, readers.members));
    }
    budget.refill();
    while budget.is_left() {
        let mut is_idle = true;
        let mut cost = costs.round_us;
        for (p, group) in stage.publishers.iter_mut().enumerate() {
            let Some(batch) = group.read() else { continue };
            is_idle = false;
            cost += costs.of_publishes(batch.count, batch.bytes);
            for (s, readers) in stage.subscribers.iter_mut().enumerate() {
                let count = readers.portion(p, group.audience[s], batch.count);
                if count > 0 {
                    let work = readers.link.publish(now, batch.of(count));
                    dropped += u64::from(work.dropped) * u64::from(readers.members);
                    cost += costs.of_work(&work, readers.members)
                        + f64::from(count * readers.members) * costs.route_us;
                }
            }
            group.send();
        }
        for readers in &mut stage.subscribers {
            let Some(packet) = readers.read() else { continue };
            is_idle = false;
            let work = readers.link.acknowledge(now, packet);
            cost += costs.of_work(&work, readers.members)
                + f64::from(readers.members) * costs.acknowledge_us;
        }
        if is_idle {
            break;
        }
        budget.spend(cost);
    }
    for readers in &mut stage.subscribers {
        readers.score(now, stage.start, slices_per_s);
    }
    dropped
}
