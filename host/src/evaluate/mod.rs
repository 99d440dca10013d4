//! `host evaluate`: arms against scenarios, unit by unit, each result appended to a file.

mod arms;
mod bench;
mod identity;
mod journal;
mod table;
#[cfg(test)]
mod tests;
mod untrained;

pub use arms::{Arm, ArmError, tell_apart};
pub use bench::Bench;
pub(crate) use bench::is_checkpoint;
pub(crate) use identity::of_this_program;
pub use identity::{Differs, Identity};
pub use journal::{Journal, Record};
pub use table::{Summary, losses, mean_and_sd, summarise, text};
pub use untrained::Architecture;

use crate::progress::Progress;
use crate::scenario::Scenario;
use crate::search::rule;
use crate::trial::Profile;
use anyhow::Context as _;
use arms::envelope_of;
use bench::{Hand, Measurement};
use brokertuner_core::{Settings, render};
use journal::Key;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Added to the seed for the tries of the `random` arm, which no later measurement uses: the choice
/// must not be judged on its own run.
const TRY_SEED_OFFSET: u64 = 1_000_000;

/// What is compared, on what, and how often.
#[derive(Clone, Debug)]
pub struct EvaluateConfig {
    /// Where it is measured.
    pub bench: Bench,
    /// The broker's version, for the record; `twin` in the twin.
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
    /// Stop starting new trials after this long; `resume` goes on.
    pub duration: Option<Duration>,
    /// Rules of the comparison.
    pub profile: Profile,
    /// Messages a second that the broker passes; found by a probe where a scenario needs it.
    pub capacity_msgs_per_s: Option<f64>,
}

/// One measurement to be made.
#[derive(Clone, Debug)]
struct Unit<'a> {
    scenario: &'a Arc<Scenario>,
    hand: Hand,
    key: Key,
    identity: Identity,
    /// What its setter was read from.
    file: Option<PathBuf>,
}

/// Who measures in a unit: the arm's name, the actor's seed, and what tells the setter from others.
struct Who<'a> {
    arm: String,
    actor: Option<u64>,
    digest: String,
    is_per_load: bool,
    file: Option<&'a Path>,
}

/// Whether everything was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Every arm on every scenario, as often as asked for.
    All,
    /// The time was up, or it was interrupted; `--resume` goes on.
    Partly,
}

/// An evaluation that goes on.
struct Progressing<'a> {
    journal: &'a mut Journal,
    progress: Progress,
    started: Instant,
    /// Measurements made since then.
    measured: u64,
}

/// What came of trying the random settings.
enum Choice {
    Best(Settings),
    TimeIsUp,
    /// Every run was void.
    None,
}

/// Measures what is missing. Arms are interleaved within a repeat, so that drift of the machine
/// falls on all alike. What was measured stands in the journal, whatever this answers.
///
/// # Errors
/// As [`EvaluateConfig::check`]; a trial that cannot be run, or a result that cannot be written.
pub fn evaluate(config: &EvaluateConfig, journal: &mut Journal) -> anyhow::Result<Done> {
    let progress = Progress::new(config.check(journal)?);
    let mut run = Progressing { journal, progress, started: Instant::now(), measured: 0 };
    let mut done = Done::All;
    for repeat in 0..config.repeats {
        for scenario in &config.scenarios {
            for arm in &config.arms {
                let mut best = None;
                if matches!(arm, Arm::Random) {
                    match config.best_random(&mut run, scenario)? {
                        Choice::Best(settings) => best = Some(settings),
                        Choice::TimeIsUp => return Ok(Done::Partly),
                        Choice::None => {
                            tracing::warn!(
                                scenario = scenario.name,
                                "no try of the random arm counts, so that it is left out: the \
                                 machine is too slow for this load"
                            );
                            done = Done::Partly;
                            continue;
                        }
                    }
                }
                for unit in config.units(scenario, arm, repeat, best)? {
                    if !config.measure_missing(&mut run, &unit)? {
                        return Ok(Done::Partly);
                    }
                }
            }
        }
    }
    Ok(done)
}

impl EvaluateConfig {
    /// Holds everything that is to be measured against what the journal has. Answers how many
    /// measurements are missing.
    ///
    /// # Errors
    /// [`Differs`] where the two do not belong into one table; two scenarios of one name; a model
    /// that cannot be read.
    pub fn check(&self, journal: &Journal) -> anyhow::Result<u64> {
        let mut missing = 0;
        for (index, scenario) in self.scenarios.iter().enumerate() {
            anyhow::ensure!(
                self.scenarios[..index].iter().all(|earlier| earlier.name != scenario.name),
                "--scenario: two are called {:?}; give each once, or change the key `name` of one",
                scenario.name
            );
        }
        for repeat in 0..self.repeats {
            for scenario in &self.scenarios {
                for arm in &self.arms {
                    // Which random settings are best is not known yet, and follows from the tries.
                    let best = Some(Settings::UNWRITTEN);
                    let mut units = self.units(scenario, arm, repeat, best)?;
                    if repeat == 0 && matches!(arm, Arm::Random) {
                        units.extend(self.tries(scenario).map(|(unit, _)| unit));
                    }
                    for Unit { key, identity, file, .. } in &units {
                        journal.check(key, identity, file.as_deref())?;
                        missing += u64::from(journal.find(key).is_none());
                    }
                }
            }
        }
        Ok(missing)
    }

    /// The measurements of one arm in one repeat; `best` are the settings that the `random` arm
    /// has chosen.
    fn units<'a>(
        &self,
        scenario: &'a Arc<Scenario>,
        arm: &Arm,
        repeat: u32,
        best: Option<Settings>,
    ) -> anyhow::Result<Vec<Unit<'a>>> {
        let seed = self.seed.wrapping_add(u64::from(repeat));
        let is_per_load = matches!(arm, Arm::Rule | Arm::PerSite { .. });
        let unit = |who: Who<'_>, hand| self.unit(scenario, who, hand, repeat, seed);
        let fixed = |settings: &Settings, file| {
            let digest = of_settings(settings);
            let who = Who { arm: arm.name(), actor: None, digest, is_per_load, file };
            unit(who, Hand::Fixed(*settings))
        };
        let tuned = |actor: Option<u64>, model: &PathBuf| {
            let bytes =
                std::fs::read(model).with_context(|| format!("cannot read {}", model.display()))?;
            let digest = identity::of_policy(&bytes, self.bench.agent());
            let file = actor.is_none().then_some(model.as_path());
            let who = Who { arm: arm.name(), actor, digest, is_per_load, file };
            anyhow::Ok(unit(who, Hand::Model(model.clone())))
        };
        match arm {
            Arm::Default => Ok(vec![fixed(&Settings::UNWRITTEN, None)]),
            Arm::Given { settings, .. } => Ok(vec![fixed(settings, None)]),
            Arm::Fixed { settings, path, .. } => Ok(vec![fixed(settings, Some(path))]),
            Arm::Rule => Ok(vec![fixed(&rule::settings(scenario, &envelope_of(scenario)), None)]),
            Arm::PerSite { dir, .. } => {
                let path = dir.join(format!("{}.conf", scenario.name));
                Ok(vec![fixed(&arms::settings_of(&path)?, Some(&path))])
            }
            Arm::Model { path, .. } => Ok(vec![tuned(None, path)?]),
            Arm::Untrained { actors } => {
                actors.iter().map(|(seed, path)| tuned(Some(*seed), path)).collect()
            }
            Arm::Random => {
                let Some(best) = best else { return Ok(Vec::new()) };
                // How it was chosen is what it is: the choice itself depends on the machine.
                let how = format!("best of {} with seed {}", self.random_count, self.seed);
                let digest = identity::digest(how.as_bytes());
                let who = Who { arm: arm.name(), actor: None, digest, is_per_load, file: None };
                Ok(vec![unit(who, Hand::Fixed(best))])
            }
        }
    }

    fn unit<'a>(
        &self,
        scenario: &'a Arc<Scenario>,
        who: Who<'_>,
        hand: Hand,
        repeat: u32,
        seed: u64,
    ) -> Unit<'a> {
        let bench = self.bench.identity(&self.broker_version);
        let rules = identity::of_rules(&self.profile, &bench);
        let name = scenario.name.clone();
        Unit {
            scenario,
            hand,
            key: Key { scenario: name, arm: who.arm, actor: who.actor, repeat, seed },
            identity: Identity {
                scenario: identity::of_scenario(scenario),
                setter: who.digest,
                is_per_load: who.is_per_load,
                rules,
            },
            file: who.file.map(Path::to_owned),
        }
    }

    /// One run of each of the settings that the `random` arm chooses from.
    fn tries<'a>(
        &self,
        scenario: &'a Arc<Scenario>,
    ) -> impl Iterator<Item = (Unit<'a>, Settings)> + use<'a, '_> {
        let settings = arms::random_settings(self.random_count, self.seed, scenario);
        settings.into_iter().enumerate().map(move |(index, settings)| {
            let (arm, digest) = (arms::try_name(index), of_settings(&settings));
            let who = Who { arm, actor: None, digest, is_per_load: false, file: None };
            let seed = self.seed.wrapping_add(TRY_SEED_OFFSET);
            (self.unit(scenario, who, Hand::Fixed(settings), 0, seed), settings)
        })
    }

    /// The best of the random settings by one run each that counts. What was measured as the best
    /// stays it, whatever a try that was void says when it is made again: one arm has one setting.
    fn best_random(
        &self,
        run: &mut Progressing<'_>,
        scenario: &Arc<Scenario>,
    ) -> anyhow::Result<Choice> {
        let chosen = run.journal.chosen_at_random(&scenario.name)?;
        let mut best: Option<(f64, Settings)> = None;
        for (unit, settings) in self.tries(scenario) {
            if !self.measure_missing(run, &unit)? {
                return Ok(Choice::TimeIsUp);
            }
            let score = run.journal.find(&unit.key).and_then(Record::counted_score);
            if let Some(score) = score.filter(|score| best.is_none_or(|(most, _)| *score > most)) {
                best = Some((score, settings));
            }
        }
        let best = chosen.or(best.map(|(_, settings)| settings));
        Ok(best.map_or(Choice::None, Choice::Best))
    }

    /// Measures a unit that the journal does not have. Answers false where the time is up, or where
    /// somebody has interrupted.
    fn measure_missing(&self, run: &mut Progressing<'_>, unit: &Unit<'_>) -> anyhow::Result<bool> {
        if run.journal.find(&unit.key).is_some() {
            return Ok(true);
        }
        let is_over = self.duration.is_some_and(|limit| run.started.elapsed() >= limit);
        if is_over || crate::broker::interrupted() {
            return Ok(false);
        }
        run.progress.set(run.measured, format!("{} with {}", unit.key.scenario, unit.key.arm));
        // A file may have been replaced since the start: hours may lie between.
        run.journal.check(&unit.key, &unit.identity, unit.file.as_deref())?;
        match measure(self, unit) {
            Err(_) if crate::broker::interrupted() => return Ok(false),
            record => run.journal.append(record?)?,
        }
        run.measured += 1;
        Ok(true)
    }
}

fn of_settings(settings: &Settings) -> String {
    identity::digest(render::render(settings).as_str().as_bytes())
}

fn measure(config: &EvaluateConfig, unit: &Unit<'_>) -> anyhow::Result<Record> {
    let Key { scenario, arm, actor, repeat, seed } = unit.key.clone();
    tracing::info!(scenario, arm, actor, repeat, seed, "measuring");
    let outcome = config
        .bench
        .measure(&Measurement {
            scenario: unit.scenario,
            hand: &unit.hand,
            seed,
            profile: config.profile,
            capacity_msgs_per_s: config.capacity_msgs_per_s,
        })
        .with_context(|| format!("{scenario} with {arm} (repeat {repeat})"))?;
    let record = Record {
        scenario,
        arm,
        actor,
        repeat,
        seed,
        score: outcome.load.score,
        is_void: outcome.load.is_void,
        broker_version: config.broker_version.clone(),
        identity: unit.identity.clone(),
        outcome,
    };
    tracing::info!(
        score = record.score.map(|score| format!("{score:.3}")),
        void = record.is_void,
        "measured"
    );
    Ok(record)
}
