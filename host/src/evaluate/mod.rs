//! `host evaluate`: arms against scenarios, unit by unit, each result appended to a file.

mod arms;
mod journal;
mod table;

pub use arms::{Arm, ArmError};
pub use journal::{Journal, Record};
pub use table::{Summary, mean_and_sd, summarise, text};

use crate::broker::Mosquitto;
use crate::scenario::Scenario;
use crate::trial::{Profile, Setter, Trial};
use anyhow::Context as _;
use brokertuner_core::Settings;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is compared, on what, and how often.
#[derive(Clone, Debug)]
pub struct EvaluateConfig {
    /// The broker's program.
    pub mosquitto: Mosquitto,
    /// Its version, for the record.
    pub broker_version: String,
    /// The loads.
    pub scenarios: Vec<Arc<Scenario>>,
    /// Who is compared.
    pub arms: Vec<Arm>,
    /// Measurements of each arm on each scenario, each with a seed of its own.
    pub repeats: u32,
    /// First seed; repeat k uses `seed + k`.
    pub seed: u64,
    /// Random settings that the `random` arm tries on one run each.
    pub random_count: u32,
    /// File that each result is appended to.
    pub out: PathBuf,
    /// Leave out what the file holds already.
    pub resume: bool,
    /// Stop starting new trials after this long; `resume` goes on.
    pub duration: Option<Duration>,
    /// Rules of the comparison.
    pub profile: Profile,
    /// Messages a second that the broker passes; found by a probe where a scenario needs it.
    pub capacity_msgs_per_s: Option<f64>,
    /// Go on without a CPU quota where none can be set.
    pub allow_uncapped: bool,
    /// The `edge` program for arms that tune.
    pub edge: Option<PathBuf>,
    /// Pin broker and load to cores of their own.
    pub pin: bool,
}

/// One measurement to be made.
#[derive(Clone, Debug)]
struct Unit<'a> {
    scenario: &'a Arc<Scenario>,
    arm: String,
    setter: Setter,
    repeat: u32,
    seed: u64,
}

/// Whether everything was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Every arm on every scenario, as often as asked for.
    All,
    /// The time was up; `--resume` goes on.
    Partly,
}

/// Measures what is missing. Arms are interleaved within a repeat, so that drift of the machine
/// falls on all alike.
///
/// # Errors
/// A trial that cannot be run, or a result that cannot be written.
pub fn evaluate(config: &EvaluateConfig) -> anyhow::Result<(Vec<Record>, Done)> {
    let mut journal = Journal::open(&config.out, config.resume)?;
    let started = Instant::now();
    for repeat in 0..config.repeats {
        for scenario in &config.scenarios {
            for arm in &config.arms {
                for unit in units(config, &mut journal, started, scenario, arm, repeat)? {
                    if journal.has(&unit.scenario.name, &unit.arm, unit.repeat) {
                        continue;
                    }
                    if config.duration.is_some_and(|limit| started.elapsed() >= limit) {
                        return Ok((journal.into_records(), Done::Partly));
                    }
                    journal.append(measure(config, &unit)?)?;
                }
            }
        }
    }
    Ok((journal.into_records(), Done::All))
}

/// The measurements of one arm in one repeat. The `random` arm first tries its settings once each.
fn units<'a>(
    config: &EvaluateConfig,
    journal: &mut Journal,
    started: Instant,
    scenario: &'a Arc<Scenario>,
    arm: &Arm,
    repeat: u32,
) -> anyhow::Result<Vec<Unit<'a>>> {
    let seed = config.seed + u64::from(repeat);
    let unit = |arm: String, setter| Unit { scenario, arm, setter, repeat, seed };
    let edge = || config.edge.clone().context("this arm needs the edge program");
    Ok(match arm {
        Arm::Default => vec![unit(arm.name(), Setter::Fixed(Settings::UNWRITTEN))],
        Arm::Fixed { settings, .. } => vec![unit(arm.name(), Setter::Fixed(*settings))],
        Arm::Model { path, .. } => {
            vec![unit(arm.name(), Setter::Edge { edge: edge()?, model: path.clone() })]
        }
        Arm::Untrained { models } => {
            // One of the five seeds per repeat, so that the arm costs no more than the others.
            let model = &models[repeat as usize % models.len()];
            vec![unit(arm.name(), Setter::Edge { edge: edge()?, model: model.clone() })]
        }
        Arm::Random => {
            let Some(best) = best_random(config, journal, started, scenario)? else {
                return Ok(Vec::new());
            };
            vec![unit(arm.name(), Setter::Fixed(best))]
        }
    })
}

/// The best of the random settings by one run each; `None` where the time ran out before.
fn best_random(
    config: &EvaluateConfig,
    journal: &mut Journal,
    started: Instant,
    scenario: &Arc<Scenario>,
) -> anyhow::Result<Option<Settings>> {
    let candidates = arms::random_settings(config.random_count, config.seed, scenario);
    for (index, settings) in candidates.iter().enumerate() {
        let arm = format!("random-{index}");
        if journal.has(&scenario.name, &arm, 0) {
            continue;
        }
        if config.duration.is_some_and(|limit| started.elapsed() >= limit) {
            return Ok(None);
        }
        // A seed that no later measurement uses: the choice must not be judged on its own run.
        let seed = config.seed + 1_000_000;
        let unit = Unit { scenario, arm, setter: Setter::Fixed(*settings), repeat: 0, seed };
        journal.append(measure(config, &unit)?)?;
    }
    let score = |index: usize| {
        let arm = format!("random-{index}");
        journal.find(&scenario.name, &arm, 0).and_then(|record| record.score).unwrap_or(0.0)
    };
    let best = (0..candidates.len()).max_by(|&a, &b| score(a).total_cmp(&score(b)));
    Ok(best.map(|index| candidates[index]))
}

fn measure(config: &EvaluateConfig, unit: &Unit<'_>) -> anyhow::Result<Record> {
    tracing::info!(
        scenario = unit.scenario.name,
        arm = unit.arm,
        repeat = unit.repeat,
        seed = unit.seed,
        "measuring"
    );
    let trial = Trial {
        mosquitto: config.mosquitto.clone(),
        scenario: Arc::clone(unit.scenario),
        setter: unit.setter.clone(),
        seed: unit.seed,
        profile: config.profile,
        pin: config.pin,
        capacity_msgs_per_s: config.capacity_msgs_per_s,
        allow_uncapped: config.allow_uncapped,
    };
    let outcome = trial.run().with_context(|| {
        format!("{} with {} (repeat {})", unit.scenario.name, unit.arm, unit.repeat)
    })?;
    let record = Record {
        scenario: unit.scenario.name.clone(),
        arm: unit.arm.clone(),
        repeat: unit.repeat,
        seed: unit.seed,
        score: outcome.load.score,
        is_void: outcome.load.is_void,
        broker_version: config.broker_version.clone(),
        outcome,
    };
    tracing::info!(
        score = record.score.map(|score| format!("{score:.3}")),
        void = record.is_void,
        "measured"
    );
    Ok(record)
}
