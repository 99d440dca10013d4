//! `host evaluate`.

use super::options::{self, BrokerOptions};
use super::{Answer, print};
use crate::ddpg::{Agent, Hyper};
use crate::evaluate::{Arm, Done, EvaluateConfig, Record, Summary, evaluate, summarise, text};
use crate::export::{About, export};
use crate::scenario::{EMBEDDED, Scenario};
use crate::trial::{JUDGING, Profile, edge_program};
use anyhow::{Context as _, Result, bail};
use brokertuner_core::features::Schema;
use brokertuner_core::{KNOB_COUNT, KnobSet};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Seeds of the actors that were never trained.
const UNTRAINED_SEEDS: std::ops::RangeInclusive<u64> = 1..=5;
/// Longest phase of a `--quick` evaluation.
const QUICK_PHASE_S: u32 = 8;

/// Compare policies and fixed settings by score.
///
/// Every arm gets a fresh broker, the same load and a lead-in before the score; policies run as an
/// `edge` process. Each result is appended to --out as it is measured; --resume goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct EvaluateArgs {
    /// Loads, by name or path; default: all that the program carries.
    #[arg(long = "scenario", value_name = "NAME|PATH")]
    scenarios: Vec<String>,
    /// Mosquitto's defaults (always measured unless --no-default).
    #[arg(long)]
    no_default: bool,
    /// Fixed settings from a file in the drop-in's syntax; may be repeated.
    #[arg(long, value_name = "FILE")]
    fixed: Vec<PathBuf>,
    /// An exported model, run by `edge`; may be repeated.
    #[arg(long, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Actors of the same architecture that were never trained, seeds 1 to 5, one per repeat.
    #[arg(long)]
    untrained: bool,
    /// The best of random settings in the envelope, chosen on one run each and measured again.
    #[arg(long)]
    random: bool,
    /// How many random settings are tried.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    random_n: u32,
    /// Measurements of each arm on each scenario.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File that each result is appended to, one JSON object a line.
    #[arg(long, value_name = "FILE", default_value = "runs/evaluate.jsonl")]
    out: PathBuf,
    /// Go on with what --out holds.
    #[arg(long)]
    resume: bool,
    /// Start no new measurement after this many seconds.
    #[arg(long, value_name = "S")]
    duration_s: Option<u64>,
    /// Phases cut to 8 s, one repeat: shows that everything works, not who is better.
    #[arg(long)]
    quick: bool,
    /// Leave broker and load unpinned.
    #[arg(long)]
    no_pin: bool,
    /// Summaries and records as one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerOptions,
}

/// What `host evaluate --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    profile: Profile,
    is_complete: bool,
    summaries: &'a [Summary],
    records: &'a [Record],
}

impl EvaluateArgs {
    /// Measures what is missing and prints what there is. Answers no where the time ran out.
    ///
    /// # Errors
    /// Options that do not fit, a broker or file that cannot be used.
    pub(crate) fn run(&self) -> Result<Answer> {
        let mosquitto = self.broker.find()?;
        let scenarios = self.loads()?;
        let dir = tempfile::tempdir().context("cannot make a folder for untrained models")?;
        let arms = self.arms(&dir)?;
        let capacity_msgs_per_s = options::capacity(&mosquitto, &scenarios, self.seed)?;
        create_parent(&self.out)?;
        let needs_edge = !self.model.is_empty() || self.untrained;
        let config = EvaluateConfig {
            broker_version: mosquitto.version().to_string(),
            mosquitto,
            scenarios,
            arms,
            repeats: if self.quick { 1 } else { self.repeats },
            seed: self.seed,
            random_count: self.random_n,
            out: self.out.clone(),
            resume: self.resume,
            duration: self.duration_s.map(Duration::from_secs),
            profile: Profile::judging()?,
            capacity_msgs_per_s,
            allow_uncapped: self.broker.allow_uncapped,
            edge: if needs_edge { Some(edge_program()?) } else { None },
            pin: !self.no_pin,
        };
        let (records, done) = evaluate(&config)?;
        self.report(&config, &records, done)?;
        Ok(if done == Done::All { Answer::Yes } else { Answer::No })
    }

    fn loads(&self) -> Result<Vec<Arc<Scenario>>> {
        let all: Vec<String> = EMBEDDED.iter().map(|(name, _)| (*name).to_owned()).collect();
        let names = if self.scenarios.is_empty() { &all } else { &self.scenarios };
        let loads = options::scenarios(names)?;
        if !self.quick {
            return Ok(loads);
        }
        Ok(loads.iter().map(|load| Arc::new(load.with_phases_of_at_most(QUICK_PHASE_S))).collect())
    }

    fn arms(&self, dir: &TempDir) -> Result<Vec<Arm>> {
        let mut arms = Vec::new();
        if !self.no_default {
            arms.push(Arm::Default);
        }
        for path in &self.fixed {
            arms.push(Arm::fixed(path)?);
        }
        for path in &self.model {
            std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
            arms.push(Arm::model(path));
        }
        if self.untrained {
            arms.push(Arm::Untrained { models: untrained(dir.path())? });
        }
        if self.random {
            arms.push(Arm::Random);
        }
        if arms.is_empty() {
            bail!(
                "nothing to compare; give --fixed, --model, --untrained or --random, or leave out --no-default"
            );
        }
        Ok(arms)
    }

    fn report(&self, config: &EvaluateConfig, records: &[Record], done: Done) -> Result<()> {
        let summaries = summarise(records);
        let is_complete = done == Done::All;
        if self.json {
            let (profile, version) = (config.profile, 1);
            let document =
                Document { version, profile, is_complete, summaries: &summaries, records };
            return print(&(serde_json::to_string_pretty(&document)? + "\n"));
        }
        let mut out = String::new();
        for record in records {
            out += &format!(
                "{} {} repeat {} seed {}: {}{}\n",
                record.scenario,
                record.arm,
                record.repeat,
                record.seed,
                record.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.3}")),
                if record.is_void { " (void)" } else { "" }
            );
        }
        out += &format!("\nMosquitto {}, judging profile:\n{JUDGING}\n", config.broker_version);
        out += &text(&summaries);
        if !is_complete {
            out += &format!(
                "\nNot everything was measured; go on with --resume --out {}\n",
                self.out.display()
            );
        }
        print(&out)
    }
}

/// Models of actors that were never trained: same architecture, same decoding, one per seed.
///
/// # Errors
/// Where a file cannot be written.
pub(crate) fn untrained(dir: &Path) -> Result<Vec<PathBuf>> {
    UNTRAINED_SEEDS
        .map(|seed| {
            let path = dir.join(format!("untrained-{seed}.btm"));
            let agent = Agent::new(Hyper::default(), Schema::Edge.len(), KNOB_COUNT, seed)?;
            let about = About {
                schema: Schema::Edge,
                tuned: KnobSet::tuned_by_default(),
                scenarios: String::new(),
                broker_versions: String::new(),
                scores: "untrained".to_owned(),
            };
            export(&agent, &about, &path)?;
            Ok(path)
        })
        .collect()
}

/// Makes the folder that a result file is to lie in.
///
/// # Errors
/// Where it cannot be made.
pub(crate) fn create_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot create {}; choose another --out", dir.display())),
        _ => Ok(()),
    }
}
