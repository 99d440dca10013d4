//! `host train`.

use super::hyper::{HyperArgs, Preset};
use super::options::{self, BrokerOptions};
use super::sweep::{self, SweepArgs};
use super::{Answer, print};
use crate::ddpg::{Agent, Hyper};
use crate::env::Environment;
use crate::env::broker::{BrokerEnv, BrokerEnvConfig};
use crate::env::twin::{Source, TwinEnv, TwinEnvConfig};
use crate::export::{About, export, policy_bytes, schema_of};
use crate::reward::{DeadlinePrices, RewardKind, SeedWeights};
use crate::scenario::Scenario;
use crate::sweep::{Swept, TrialFile};
use crate::train::{Ended, Origin, TrainConfig, Trained, Validation, train};
use crate::trial::Profile;
use crate::twin::{Calibration, FilePolicy, Play};
use anyhow::{Context as _, Result, bail};
use brokertuner_core::KNOB_COUNT;
use brokertuner_core::features::Schema;
use brokertuner_edge::policy::ModelPolicy;
use clap::ValueEnum;
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Which world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum EnvKind {
    /// A real Mosquitto under the load generator.
    #[default]
    Broker,
    /// The simulator of it: thousands of times faster.
    Twin,
}

/// Which reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum RewardName {
    /// The score of the interval, less small prices for CPU, memory and change.
    #[default]
    Deadline,
    /// alpha clients + beta rate - gamma cpu - delta memory.
    Seed,
}

/// Which state vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum SchemaName {
    /// Everything that the decision needs.
    #[default]
    Edge,
    /// The five numbers of the seed.
    Seed5,
}

impl From<SchemaName> for Schema {
    fn from(name: SchemaName) -> Schema {
        match name {
            SchemaName::Edge => Schema::Edge,
            SchemaName::Seed5 => Schema::Seed5,
        }
    }
}

/// What is trained in.
struct Envs {
    list: Vec<Box<dyn Environment>>,
    /// For the model's card.
    loads: String,
    broker: String,
}

/// Plays a policy as the gateway would run it.
struct Judge {
    about: About,
    scenarios: Vec<Arc<Scenario>>,
    /// Brokers that the loads meet in turn, with what each passes.
    brokers: Vec<(Calibration, Option<f64>)>,
    profile: Profile,
}

impl Judge {
    /// Mean score over the loads.
    fn score(&self, agent: &Agent) -> Result<f64> {
        let bytes = policy_bytes(agent, &self.about)?;
        let scores = self.scenarios.par_iter().enumerate().map(|(number, scenario)| {
            let path = Path::new("the agent's policy");
            let policy = ModelPolicy::of_bytes(bytes.clone(), self.about.schema, path)?;
            let mut policy = FilePolicy::from(policy);
            let (calibration, capacity_msgs_per_s) = self.brokers[number % self.brokers.len()];
            let play = Play {
                scenario: Arc::clone(scenario),
                calibration,
                capacity_msgs_per_s,
                profile: self.profile,
                seed: number as u64,
            };
            Ok(play.tuned(&mut policy).score.unwrap_or(0.0))
        });
        let scores = scores.collect::<Result<Vec<f64>>>()?;
        Ok(scores.iter().sum::<f64>() / scores.len().max(1) as f64)
    }
}

/// Where the sites begin that policies are chosen by.
const VALIDATION_SITES: u64 = 1 << 31;
/// Where a seed's sites begin that fixed settings are tried on.
const SWEPT_SITES: u64 = 1 << 30;
/// Loads of a run on real brokers that is given none: those of `host demo`.
const BROKER_SCENARIOS: [&str; 2] = ["wan-uplink", "alarm-burst"];
/// Seconds after which a run on real brokers ends that is not told when.
const BROKER_DURATION_S: u64 = 1800;
/// Randomised sites of one training seed, so that runs of different seeds share none; those below
/// are kept for validation.
pub(super) const SITES_PER_SEED: u64 = 1 << 32;
/// Seeds whose sites are neither those of `host evaluate --sites` nor those of validation.
const SEEDS: std::ops::Range<u64> = 1..1 << 32;
/// Seed of a run that is given none.
const DEFAULT_SEED: u64 = 1;

/// Train a policy, on real brokers or in their twin.
///
/// Leaves progress.csv, action_throughput_log.csv, checkpoints, the final agent and model.btm in
/// --out. Ctrl-C ends the run in good order and keeps what was learnt; --resume goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    /// Loads to train on, by name or path; parallel environments and episodes take them in turn.
    /// Default: wan-uplink and alarm-burst on real brokers, randomised sites in the twin.
    #[arg(long = "scenario", value_name = "NAME|PATH")]
    scenarios: Vec<String>,
    /// Where to train.
    #[arg(long, value_enum, default_value_t)]
    env: EnvKind,
    /// A broker that the twin simulates: a file of `host calibrate`; may be repeated. Default: all
    /// that the program carries.
    #[arg(long, value_name = "FILE")]
    calibration: Vec<PathBuf>,
    /// Environment steps after which training ends, with those before --resume.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Seconds after which training ends; --resume has them anew. Default: 1800 on real brokers,
    /// none in the twin.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    duration_s: Option<u64>,
    /// Steps of an episode.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    episode_steps: u64,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_steps: u64,
    /// Randomised sites of the twin that the policy is judged on, never those that it learns from
    /// (with --scenario: those loads themselves); the best policy is the result. 0: the last one is.
    #[arg(long, value_name = "N", default_value_t = 200)]
    validate_sites: u32,
    /// Steps between two judgements.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    validate_steps: u64,
    /// Brokers at once. Loads that need a core for themselves want 1. Default: 1 on real brokers, 2
    /// in the twin.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: Option<u8>,
    /// Seed of all random choices; default: 1, or that of the run that is resumed.
    #[arg(long, value_parser = clap::value_parser!(u64).range(SEEDS))]
    seed: Option<u64>,
    /// Folder of logs, checkpoints and model.
    #[arg(long, value_name = "DIR", default_value = "runs/train")]
    out: PathBuf,
    /// Go on from the newest checkpoint in --out, with its hyperparameters, schema and seed. Takes
    /// the same loads as before (--scenario). Interrupted in the trials before the first step, there is
    /// none yet: then with all options as before.
    #[arg(long)]
    resume: bool,
    /// Starting point of the hyperparameters. Default: twin in the twin; on real brokers default,
    /// and finish with --from.
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// The state vector; default: edge.
    #[arg(long, value_enum)]
    schema: Option<SchemaName>,
    /// What a step is worth.
    #[arg(long, value_enum, default_value_t)]
    reward: RewardName,
    /// Prices of the deadline reward, in score: of a whole core, of all of the memory limit, of
    /// changing every option. Default: 0.02,0.02,0.01.
    #[arg(
        long,
        value_name = "CPU,MEM,CHANGE",
        allow_hyphen_values = true,
        value_parser = options::list::<f64, 3>
    )]
    prices: Option<[f64; 3]>,
    /// Weights of the seed reward: alpha of clients, beta of the rate, gamma of CPU and delta of
    /// memory, each on the normalised term. Default: 1,1,1,1.
    #[arg(
        long,
        value_name = "A,B,G,D",
        allow_hyphen_values = true,
        value_parser = options::list::<f64, 4>
    )]
    weights: Option<[f64; 4]>,
    /// The summary as JSON.
    #[arg(long)]
    json: bool,
    /// Begin with the agent of another run's checkpoint (best.safetensors, for one) in place of
    /// random networks: to finish on real brokers what was learnt in the twin.
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    from: Option<PathBuf>,
    #[command(flatten)]
    sweep: SweepArgs,
    #[command(flatten)]
    broker: BrokerOptions,
    #[command(flatten)]
    hyper: HyperArgs,
}

/// What `host train --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Summary {
    version: u32,
    seed: u64,
    steps: u64,
    episodes: u64,
    ended: Ended,
    score_mean_last_quarter: Option<f64>,
    /// Null where nothing was learnt: there is no model then.
    model: Option<PathBuf>,
    deviation_steps_max: Option<f64>,
    deviation_steps_mean: Option<f64>,
}

impl TrainArgs {
    /// Trains and exports. Answers no where it was interrupted, or ended before anything was learnt.
    ///
    /// # Errors
    /// Options that do not fit, a broker that cannot be found, files that cannot be written.
    pub(crate) fn run(&self) -> Result<Answer> {
        if self.json {
            crate::progress::hide();
        }
        let reward = self.reward()?;
        let (mut agent, schema) = self.agent()?;
        // A resumed run has those of its checkpoint, whatever the defaults are now.
        let hyper = agent.hyper().clone();
        let envs = match self.env {
            EnvKind::Broker if !self.calibration.is_empty() => {
                bail!("--calibration is of the twin; give --env twin, or leave it out")
            }
            EnvKind::Broker => self.brokers(&agent, schema, reward)?,
            EnvKind::Twin => self.twins(&agent, schema, reward)?,
        };
        tracing::info!(
            seed = agent.seed(),
            out = %self.out.display(),
            loads = envs.loads,
            duration_s = self.duration().map(|limit| limit.as_secs()),
            steps = self.steps,
            broker = envs.broker,
            "training"
        );
        let origin = self.origin(&envs, reward)?;
        let config = TrainConfig {
            hyper,
            out: self.out.clone(),
            steps: self.steps,
            duration: self.duration(),
            episode_steps: self.episode_steps,
            checkpoint_steps: self.checkpoint_steps,
            tuned: crate::env::trained(),
            resume: self.resume && !self.is_in_trials(),
        };
        let (scenarios, broker_versions) = (envs.loads, envs.broker);
        let about = About { tuned: config.tuned, scenarios, broker_versions, ..About::new(schema) };
        let judge = match self.env {
            EnvKind::Broker => None,
            EnvKind::Twin => Some(self.judge(&about)?),
        };
        if let Some(judge) = judge.as_ref().filter(|_| !config.resume && self.from.is_none())
            && !self.sweep(&mut agent, schema, reward, judge)?
        {
            bail!(
                "interrupted before the first step: with the same options and --resume it goes on with \
                 the trials that were made"
            );
        }
        let score = |agent: &Agent| judge.as_ref().context("no judge")?.score(agent);
        let validation = judge
            .as_ref()
            .filter(|_| self.validate_sites > 0)
            .map(|_| Validation { every_steps: self.validate_steps, score: &score });
        let trained = train(envs.list, &config, agent, validation)?;
        // Its checkpoint has them.
        let _ = std::fs::remove_file(self.trials());
        self.report(&trained, about, origin)
    }

    /// What the run learns from, written down before it does; a resumed run goes on with the same.
    fn origin(&self, envs: &Envs, reward: RewardKind) -> Result<Origin> {
        let (loads, broker) = (envs.loads.clone(), envs.broker.clone());
        let mut origin = Origin::new(loads, broker, reward, self.validate_sites);
        if let Some(before) = Origin::read(&self.out)?.filter(|_| self.resume) {
            origin.refuse_other(&before, &self.out)?;
            origin.best = before.best;
        }
        origin.write(&self.out)?;
        Ok(origin)
    }

    /// Where the twin's loads come from: sites of the agent's seed, from that number of them on.
    fn source(&self, seed: u64, first: u64) -> Result<Source> {
        let scenarios = options::scenarios(&self.scenarios)?;
        Ok(match scenarios.is_empty() {
            true => Source::Sites(seed.wrapping_mul(SITES_PER_SEED).wrapping_add(first)),
            false => Source::Scenarios(scenarios),
        })
    }

    /// Tries fixed settings, and fits the agent to what they were worth. Answers false where that was
    /// interrupted.
    fn sweep(
        &self,
        agent: &mut Agent,
        schema: Schema,
        reward: RewardKind,
        judge: &Judge,
    ) -> Result<bool> {
        let config = self.sweep.config(sweep::Parts {
            source: self.source(agent.seed(), SWEPT_SITES)?,
            calibrations: self.calibrations()?,
            capacity_msgs_per_s: judge.brokers[0].1,
            schema,
            reward,
            seed: agent.seed(),
        });
        let after_round = &mut |round: u32, swept: &Swept, score: f64| {
            tracing::info!(
                round = round + 1,
                trials = swept.trials,
                default = format!("{:.3}", swept.default_mean),
                best_of_site = format!("{:.3}", swept.best_mean),
                validation = format!("{score:.3}"),
                "swept"
            );
            Ok(())
        };
        let score = &|agent: &Agent| judge.score(agent);
        let run = crate::search::digest(&(&config, agent.hyper(), env!("CARGO_PKG_VERSION")));
        let file = TrialFile::open(&self.trials(), &run)?;
        if !file.is_empty() {
            tracing::info!(file = %self.trials().display(), "going on with the trials");
        }
        let is_interrupted = crate::broker::interrupted;
        crate::sweep::sweep(agent, &config, &file, is_interrupted, score, after_round)?;
        Ok(!is_interrupted())
    }

    /// What was tried before the first step, as long as there is no checkpoint.
    fn trials(&self) -> PathBuf {
        self.out.join("trials.bin")
    }

    /// Whether an earlier run in --out did not get beyond its trials.
    fn is_in_trials(&self) -> bool {
        self.trials().exists() && crate::train::newest_checkpoint(&self.out).is_err()
    }

    /// Who judges policies in the twin.
    fn judge(&self, about: &About) -> Result<Judge> {
        let sites = (0..u64::from(self.validate_sites)).map(|number| {
            // Far from those of `host evaluate --sites`, which nobody may choose by.
            Ok(Arc::new(crate::sites::site(VALIDATION_SITES + number)?))
        });
        let named = options::scenarios(&self.scenarios)?;
        let scenarios = if named.is_empty() { sites.collect::<Result<_>>()? } else { named };
        let brokers = self.calibrations()?.into_iter().map(|calibration| {
            Ok((calibration, options::twin_capacity(&calibration, &scenarios)?))
        });
        let brokers = brokers.collect::<Result<_>>()?;
        Ok(Judge { about: about.clone(), scenarios, brokers, profile: Profile::judging()? })
    }

    /// At least one.
    fn calibrations(&self) -> Result<Vec<Calibration>> {
        match self.calibration.is_empty() {
            true => Ok(Calibration::shipped()),
            false => options::calibrations(&self.calibration),
        }
    }

    fn duration(&self) -> Option<Duration> {
        let default_s = match self.env {
            EnvKind::Broker => Some(BROKER_DURATION_S),
            EnvKind::Twin => None,
        };
        self.duration_s.or(default_s).map(Duration::from_secs)
    }

    /// Real brokers, under the scenarios.
    fn brokers(&self, agent: &Agent, schema: Schema, reward: RewardKind) -> Result<Envs> {
        let mosquitto = self.broker.find()?;
        let names = if self.scenarios.is_empty() {
            BROKER_SCENARIOS.map(str::to_owned).to_vec()
        } else {
            self.scenarios.clone()
        };
        let scenarios = options::scenarios(&names)?;
        let capacity_msgs_per_s = options::capacity(&mosquitto, &scenarios, agent.seed())?;
        let env = |index| {
            let env = BrokerEnv::new(BrokerEnvConfig {
                mosquitto: mosquitto.clone(),
                scenarios: scenarios.clone(),
                index,
                step: Duration::from_secs_f64(agent.hyper().step_s),
                schema,
                reward,
                seed: agent.seed(),
                capacity_msgs_per_s,
                allow_uncapped: self.broker.allow_uncapped,
            })?;
            Ok(Box::new(env) as Box<dyn Environment>)
        };
        let count = usize::from(self.parallel.unwrap_or(1));
        let list = (0..count).map(env).collect::<Result<_>>()?;
        Ok(Envs { list, loads: names.join(" "), broker: mosquitto.version().to_string() })
    }

    /// Brokers of the twin, under the scenarios or under randomised sites.
    fn twins(&self, agent: &Agent, schema: Schema, reward: RewardKind) -> Result<Envs> {
        let calibrations = self.calibrations()?;
        let scenarios = options::scenarios(&self.scenarios)?;
        let source = self.source(agent.seed(), 0)?;
        let loads = match &source {
            Source::Sites(first) => format!("sites from {first}"),
            Source::Scenarios(_) => self.scenarios.join(" "),
        };
        let capacity_msgs_per_s = options::twin_capacity(&calibrations[0], &scenarios)?;
        let env = |index: u64| {
            let env = TwinEnv::new(TwinEnvConfig {
                source: source.clone(),
                calibrations: calibrations.clone(),
                step_s: agent.hyper().step_s,
                schema,
                reward,
                seed: agent.seed().wrapping_mul(SITES_PER_SEED).wrapping_add(index),
                capacity_msgs_per_s,
                profile: Profile::judging()?,
            })?;
            Ok(Box::new(env) as Box<dyn Environment>)
        };
        let count = u64::from(self.parallel.unwrap_or(2));
        let list = (0..count).map(env).collect::<Result<_>>()?;
        Ok(Envs { list, loads, broker: "twin".to_owned() })
    }

    /// The reward with its prices or weights, which are checked before anything starts.
    fn reward(&self) -> Result<RewardKind> {
        let (kind, option) = match (self.reward, self.prices, self.weights) {
            (RewardName::Deadline, _, Some(_)) => {
                bail!("--weights belongs to --reward seed; the deadline reward has --prices")
            }
            (RewardName::Seed, Some(_), _) => {
                bail!("--prices belongs to --reward deadline; the seed reward has --weights")
            }
            (RewardName::Deadline, Some([cpu, memory, change]), None) => {
                (RewardKind::Deadline(DeadlinePrices { cpu, memory, change }), "--prices")
            }
            (RewardName::Deadline, ..) => {
                (RewardKind::Deadline(DeadlinePrices::default()), "--prices")
            }
            (RewardName::Seed, None, Some([alpha, beta, gamma, delta])) => {
                (RewardKind::Seed(SeedWeights { alpha, beta, gamma, delta }), "--weights")
            }
            (RewardName::Seed, ..) => (RewardKind::Seed(SeedWeights::default()), "--weights"),
        };
        kind.validate().with_context(|| format!("{option} cannot be used"))?;
        Ok(kind)
    }

    /// A fresh agent, or that of the newest checkpoint, with the schema of its states.
    fn agent(&self) -> Result<(Agent, Schema)> {
        match (self.resume, self.is_in_trials()) {
            (true, false) => return self.resumed(),
            (true, true) => {}
            (false, true) => bail!(
                "{} is of a run that was interrupted; give --resume to go on with it, or another --out",
                self.trials().display()
            ),
            (false, false) => crate::train::refuse_checkpoints(&self.out)?,
        }
        let seed = self.seed.unwrap_or(DEFAULT_SEED);
        if let Some(path) = &self.from {
            return self.continued(path, seed);
        }
        let default = match self.env {
            EnvKind::Broker => Preset::Default,
            EnvKind::Twin => Preset::Twin,
        };
        let hyper = self.hyper.over(self.preset.unwrap_or(default).hyper());
        let schema = Schema::from(self.schema.unwrap_or_default());
        Ok((Agent::new(hyper, schema.len(), KNOB_COUNT, seed)?, schema))
    }

    /// Another run's agent for this run's options.
    fn continued(&self, path: &Path, seed: u64) -> Result<(Agent, Schema)> {
        let agent = Agent::load(path)?;
        let name = path.display();
        let schema = schema_of(agent.state_dim())
            .with_context(|| format!("{name} cannot be continued; begin without --from"))?;
        if self.schema.is_some_and(|wanted| Schema::from(wanted) != schema) {
            bail!("{name} is of schema {schema:?}; leave --schema out, or begin without --from");
        }
        let default = match self.env {
            EnvKind::Broker => Preset::Finish,
            EnvKind::Twin => Preset::Twin,
        };
        let preset = self.preset.unwrap_or(default).hyper();
        let (hidden, critic_hidden) = (agent.hyper().hidden, agent.hyper().critic_hidden);
        let agent = agent
            .continued(self.hyper.over(Hyper { hidden, critic_hidden, ..preset }), seed)
            .with_context(|| format!("{name} does not fit --preset or the widths given"))?;
        Ok((agent, schema))
    }

    /// The newest checkpoint; what is asked for beside it must be what it was trained with.
    fn resumed(&self) -> Result<(Agent, Schema)> {
        let newest = crate::train::newest_checkpoint(&self.out)?;
        tracing::info!(checkpoint = %newest.display(), "resuming");
        let agent = Agent::load(&newest)?;
        let name = newest.display();
        let schema = schema_of(agent.state_dim())
            .with_context(|| format!("{name} cannot be resumed; begin anew with another --out"))?;
        let hyper = agent.hyper();
        let wanted = self.hyper.over(self.preset.map_or_else(|| hyper.clone(), Preset::hyper));
        let mut faults = differing(hyper, &wanted)?;
        if let Some(seed) = self.seed.filter(|seed| *seed != agent.seed()) {
            faults.push(format!("seed is {}, not {seed}", agent.seed()));
        }
        if self.schema.is_some_and(|wanted| Schema::from(wanted) != schema) {
            faults.push(format!("schema is {schema:?}"));
        }
        if faults.is_empty() {
            return Ok((agent, schema));
        }
        bail!(
            "{name} was trained otherwise: {}; leave these options (or --preset) out to go on with \
             it, or begin anew with another --out",
            faults.join(", ")
        )
    }

    fn report(&self, trained: &Trained, about: About, mut origin: Origin) -> Result<Answer> {
        let path = self.out.join("model.btm");
        let scores = match trained.validation {
            Some((score, step)) if self.scenarios.is_empty() => {
                format!("validation: {score:.3} at step {step}")
            }
            Some((score, step)) => {
                format!("on these loads, in the twin: {score:.3} at step {step}")
            }
            None => {
                format!("training, last quarter: {}", score(trained.score_mean_last_quarter))
            }
        };
        if trained.validation.is_some() {
            origin.best = Some(scores.clone());
            origin.write(&self.out)?;
        }
        let about = About { scores, ..about };
        let has_learnt = trained.agent.updates() > 0;
        let deviation = has_learnt.then(|| export(&trained.agent, &about, &path)).transpose()?;
        let summary = Summary {
            version: 1,
            seed: trained.agent.seed(),
            steps: trained.steps,
            episodes: trained.episodes,
            ended: trained.ended,
            score_mean_last_quarter: trained.score_mean_last_quarter,
            model: has_learnt.then_some(path),
            deviation_steps_max: deviation.map(|deviation| deviation.max_steps),
            deviation_steps_mean: deviation.map(|deviation| deviation.mean_steps),
        };
        print(&if self.json {
            serde_json::to_string_pretty(&summary)? + "\n"
        } else {
            format!(
                "{}{} steps, {} episodes, seed {}; mean score of the last quarter {}\n{}\n",
                if trained.ended == Ended::Interrupted {
                    "interrupted; --resume goes on: "
                } else {
                    ""
                },
                summary.steps,
                summary.episodes,
                summary.seed,
                score(summary.score_mean_last_quarter),
                model_line(&summary)
            )
        })?;
        let is_whole = has_learnt && trained.ended != Ended::Interrupted;
        Ok(if is_whole { Answer::Yes } else { Answer::No })
    }
}

/// Where the model is, and how far from the policy that was trained; or why there is none.
fn model_line(summary: &Summary) -> String {
    match (&summary.model, summary.deviation_steps_max, summary.deviation_steps_mean) {
        (Some(model), Some(max), Some(mean)) => format!(
            "{} (int8 against f32: largest deviation {max:.3}/127, mean {mean:.3}/127)",
            model.display()
        ),
        _ => "no model: nothing was learnt yet; train for longer than --warm-up-steps".to_owned(),
    }
}

/// A score for people.
fn score(score: Option<f64>) -> String {
    score.map_or_else(|| "unknown (no step has one)".to_owned(), |score| format!("{score:.3}"))
}

/// Names of the hyperparameters in which a checkpoint is not as wanted, with its values.
fn differing(hyper: &Hyper, wanted: &Hyper) -> Result<Vec<String>> {
    let (hyper, wanted) = (serde_json::to_value(hyper)?, serde_json::to_value(wanted)?);
    let fields = hyper.as_object().into_iter().flatten();
    let others = fields.filter(|(name, value)| wanted.get(name.as_str()) != Some(*value));
    Ok(others
        .map(|(name, value)| {
            let wanted = wanted.get(name).cloned().unwrap_or_default();
            format!("{name} is {value}, not {wanted}")
        })
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::ddpg::Keep;
    use clap::Parser as _;

    fn parse(args: &[&str]) -> Result<Box<TrainArgs>> {
        let command = Cli::try_parse_from([&["host", "train"], args].concat())?.command;
        let Command::Train(args) = command else { bail!("another verb") };
        Ok(args)
    }

    /// What `host train` says before it looks for a broker.
    fn refusal(args: &[&str]) -> String {
        let args = [args, &["--mosquitto", "/nonexistent/mosquitto"]].concat();
        match parse(&args).and_then(|args| args.run()) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn prices_and_weights_are_refused_before_anything_starts() {
        for (args, words) in [
            (&["--prices", "NaN,0,0"][..], &["--prices", "cpu is NaN"][..]),
            (&["--prices=0,0,-1"], &["--prices", "change is -1"]),
            (&["--weights", "1,1,1,1"], &["--weights", "--reward seed"]),
            (&["--reward", "seed", "--weights", "1,inf,1,1"], &["--weights", "beta is inf"]),
            (&["--reward", "seed", "--prices", "1,1,1"], &["--prices", "--reward deadline"]),
            (&["--step-s", "1e20"], &["step_s", "0.001 to 3600"]),
            (&["--steps", "0"], &["--steps"]),
            (&["--hidden", "64"], &["--hidden", "1 given, 2 expected"]),
            (&["--prices", "1,x,1"], &["--prices", "\"x\" is no number"]),
        ] {
            let message = refusal(args);
            for word in words {
                assert!(message.contains(word), "{args:?}: {message}");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("fresh").display().to_string();
        let sound = refusal(&[
            "--out",
            &out,
            "--reward",
            "seed",
            "--weights",
            "-1,1,1,1",
            "--hidden",
            "8,8",
        ]);
        assert!(sound.contains("/nonexistent/mosquitto"), "{sound}");
    }

    /// A run in the twin that is over before its first update.
    #[test]
    fn a_run_that_learnt_nothing_says_so_and_leaves_no_model() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().display().to_string();
        let short = ["--env", "twin", "--scenario", "link-50ms", "--out", &out, "--steps", "2"];
        let nothing = ["--sweep-rounds", "0", "--validate-sites", "0", "--parallel", "1"];
        let run = |args: &[&str]| parse(args).and_then(|args| args.run());
        assert_eq!(run(&[&short[..], &nothing].concat()).unwrap(), Answer::No);
        assert!(!dir.path().join("model.btm").exists());
        let longer = ["--resume", "--env", "twin", "--out", &out];
        let error = run(&[&longer[..], &nothing].concat()).unwrap_err().to_string();
        assert!(error.contains("trained on the loads link-50ms, not sites from"), "{error}");

        let checkpoint = crate::train::newest_checkpoint(dir.path()).unwrap();
        let model = dir.path().join("exported.btm");
        let [checkpoint, path] = [&checkpoint, &model].map(|path| path.display().to_string());
        let exported = ["host", "export", &checkpoint, "--out", &path];
        let Command::Export(args) = Cli::try_parse_from(exported).unwrap().command else {
            panic!("another verb")
        };
        args.run().unwrap();
        let bytes = std::fs::read(model).unwrap();
        let card = brokertuner_core::model::Model::read(&bytes).unwrap().parts().card;
        assert_eq!((card.scenarios, card.broker_versions), ("link-50ms", "twin"));
    }

    /// What `host train --out DIR` with more options says where DIR holds a checkpoint of a
    /// `--preset seed --gamma 0.9 --seed 7` run.
    fn refusal_beside_checkpoint(args: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let hyper = Hyper { gamma: 0.9, ..Hyper::seed() };
        let agent = Agent::new(hyper, Schema::Edge.len(), KNOB_COUNT, 7).unwrap();
        agent.save(&dir.path().join("checkpoint-00000000.safetensors"), Keep::Networks).unwrap();
        let out = dir.path().display().to_string();
        refusal(&[&["--out", &out], args].concat())
    }

    #[test]
    fn a_resumed_run_is_that_of_its_checkpoint() {
        for (args, words) in [
            (&[][..], &["checkpoint-00000000.safetensors", "--resume", "another --out"][..]),
            (&["--resume", "--gamma", "0.5"], &["gamma is 0.9, not 0.5", "another --out"]),
            (&["--resume", "--step-s", "5"], &["step_s is 1.0, not 5.0"]),
            (&["--resume", "--preset", "demo"], &["batch is 128, not 64", "--preset"]),
            (&["--resume", "--seed", "8"], &["seed is 7, not 8"]),
            (&["--resume", "--schema", "seed5"], &["schema is Edge"]),
        ] {
            let message = refusal_beside_checkpoint(args);
            for word in words {
                assert!(message.contains(word), "{args:?}: {message}");
            }
        }
        for args in [
            &["--resume"][..],
            &["--resume", "--step-s", "1", "--seed", "7", "--schema", "edge"],
            &["--resume", "--preset", "seed", "--gamma", "0.9"],
        ] {
            let message = refusal_beside_checkpoint(args);
            assert!(message.contains("/nonexistent/mosquitto"), "{args:?}: {message}");
        }
    }
}
