//! `host train`.

use super::hyper::{HyperArgs, Preset};
use super::options::{self, BrokerOptions};
use super::{Answer, print};
use crate::broker::Mosquitto;
use crate::ddpg::{Agent, Hyper};
use crate::env::Environment;
use crate::env::broker::{BrokerEnv, BrokerEnvConfig};
use crate::export::{About, export};
use crate::reward::{DeadlinePrices, RewardKind, SeedWeights};
use crate::scenario::Scenario;
use crate::train::{TrainConfig, Trained, train};
use anyhow::{Context as _, Result, bail};
use brokertuner_core::features::Schema;
use brokertuner_core::{KNOB_COUNT, KnobSet};
use clap::ValueEnum;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where to train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum EnvKind {
    /// A real Mosquitto under the load generator.
    #[default]
    Broker,
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

/// Train a policy on real brokers.
///
/// Leaves progress.csv, action_throughput_log.csv, checkpoints, the final agent and model.btm in
/// --out. Ctrl-C ends the run in good order and keeps what was learnt; --resume goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    /// Loads to train on, by name or path; parallel environments and episodes take them in turn.
    #[arg(long = "scenario", value_name = "NAME|PATH", default_values = ["wan-uplink", "alarm-burst"])]
    scenarios: Vec<String>,
    /// Where to train.
    #[arg(long, value_enum, default_value_t)]
    env: EnvKind,
    /// Environment steps after which training ends.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Seconds after which training on real brokers ends.
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    duration_s: u64,
    /// Steps of an episode.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    episode_steps: u64,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_steps: u64,
    /// Brokers at once. Loads that need a core for themselves want 1.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of logs, checkpoints and model.
    #[arg(long, value_name = "DIR", default_value = "runs/train")]
    out: PathBuf,
    /// Go on from the newest checkpoint in --out.
    #[arg(long)]
    resume: bool,
    /// Starting point of the hyperparameters.
    #[arg(long, value_enum, default_value_t)]
    preset: Preset,
    /// The state vector.
    #[arg(long, value_enum, default_value_t)]
    schema: SchemaName,
    /// What a step is worth.
    #[arg(long, value_enum, default_value_t)]
    reward: RewardName,
    /// Prices of the deadline reward: CPU, memory, change.
    #[arg(
        long,
        value_name = "CPU,MEM,CHANGE",
        allow_hyphen_values = true,
        value_parser = options::list::<f64, 3>
    )]
    prices: Option<[f64; 3]>,
    /// Weights of the seed reward: alpha, beta, gamma, delta.
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
    ended: crate::train::Ended,
    score_mean_last_quarter: f64,
    model: PathBuf,
    deviation_steps_max: f64,
    deviation_steps_mean: f64,
}

impl TrainArgs {
    /// Trains and exports.
    ///
    /// # Errors
    /// Options that do not fit, a broker that cannot be found, files that cannot be written.
    pub(crate) fn run(&self) -> Result<Answer> {
        let EnvKind::Broker = self.env;
        let hyper = self.hyper.over(self.preset.hyper());
        hyper.validate()?;
        let reward = self.reward()?;
        let mosquitto = self.broker.find()?;
        let scenarios = options::scenarios(&self.scenarios)?;
        let capacity = options::capacity(&mosquitto, &scenarios, self.seed)?;
        tracing::info!(
            seed = self.seed,
            out = %self.out.display(),
            duration_s = self.duration_s,
            steps = self.steps,
            mosquitto = %mosquitto.version(),
            "training"
        );
        let envs = self.envs(&mosquitto, &scenarios, &hyper, reward, capacity)?;
        let agent = self.agent(&hyper)?;
        let config = TrainConfig {
            hyper,
            out: self.out.clone(),
            steps: self.steps,
            duration: Some(Duration::from_secs(self.duration_s)),
            episode_steps: self.episode_steps,
            checkpoint_steps: self.checkpoint_steps,
            tuned: KnobSet::tuned_by_default(),
            resume: self.resume,
        };
        let trained = train(envs, &config, agent)?;
        self.report(&trained, &config, &mosquitto)
    }

    fn envs(
        &self,
        mosquitto: &Mosquitto,
        scenarios: &[Arc<Scenario>],
        hyper: &Hyper,
        reward: RewardKind,
        capacity_msgs_per_s: Option<f64>,
    ) -> Result<Vec<Box<dyn Environment>>> {
        (0..usize::from(self.parallel))
            .map(|index| {
                let env = BrokerEnv::new(BrokerEnvConfig {
                    mosquitto: mosquitto.clone(),
                    scenarios: scenarios.to_vec(),
                    index,
                    step: Duration::from_secs_f64(hyper.step_s),
                    schema: self.schema.into(),
                    reward,
                    seed: self.seed,
                    capacity_msgs_per_s,
                    allow_uncapped: self.broker.allow_uncapped,
                })?;
                Ok(Box::new(env) as Box<dyn Environment>)
            })
            .collect()
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

    fn agent(&self, hyper: &Hyper) -> Result<Agent> {
        let schema = Schema::from(self.schema);
        if self.resume {
            let newest = crate::train::newest_checkpoint(&self.out)?;
            tracing::info!(checkpoint = %newest.display(), "resuming");
            return Ok(Agent::load(&newest)?);
        }
        Ok(Agent::new(hyper.clone(), schema.len(), KNOB_COUNT, self.seed)?)
    }

    fn report(
        &self,
        trained: &Trained,
        config: &TrainConfig,
        mosquitto: &Mosquitto,
    ) -> Result<Answer> {
        let path = self.out.join("model.btm");
        let about = About {
            schema: self.schema.into(),
            tuned: config.tuned,
            scenarios: self.scenarios.join(" "),
            broker_versions: mosquitto.version().to_string(),
            scores: format!("training, last quarter: {:.3}", trained.score_mean_last_quarter),
        };
        let deviation = export(&trained.agent, &about, &path)?;
        let summary = Summary {
            version: 1,
            seed: self.seed,
            steps: trained.steps,
            episodes: trained.episodes,
            ended: trained.ended,
            score_mean_last_quarter: trained.score_mean_last_quarter,
            model: path,
            deviation_steps_max: deviation.max_steps,
            deviation_steps_mean: deviation.mean_steps,
        };
        print(&if self.json {
            serde_json::to_string_pretty(&summary)? + "\n"
        } else {
            format!(
                "{} steps, {} episodes, seed {}; mean score of the last quarter {:.3}\n{} (int8 against f32: largest deviation {:.3}/127, mean {:.3}/127)\n",
                summary.steps,
                summary.episodes,
                summary.seed,
                summary.score_mean_last_quarter,
                summary.model.display(),
                summary.deviation_steps_max,
                summary.deviation_steps_mean
            )
        })?;
        Ok(Answer::Yes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::cli::{Cli, Command};
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
        let sound = refusal(&["--reward", "seed", "--weights", "-1,1,1,1", "--hidden", "8,8"]);
        assert!(sound.contains("/nonexistent/mosquitto"), "{sound}");
    }
}
