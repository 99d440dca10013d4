//! `host evaluate`.

use super::export::read_model;
use super::options::{self, BrokerOptions, create_parent};
use super::train::EnvKind;
use super::{Answer, print};
use crate::evaluate::{
    Architecture, Arm, Bench, Done, EvaluateConfig, Journal, Record, Summary, evaluate,
    is_checkpoint, losses, summarise, tell_apart, text,
};
use crate::scenario::Scenario;
use crate::trial::{JUDGING, Profile, edge_program};
use anyhow::{Context as _, Result, bail};
use brokertuner_core::model::Model;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

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
    /// So many randomised sites, never seen in training, beside the loads.
    #[arg(long, value_name = "N", default_value_t = 0)]
    sites: u32,
    /// Where to measure.
    #[arg(long, value_enum, default_value_t)]
    env: EnvKind,
    /// The broker that the twin simulates: a file of `host calibrate`. Default: what the program
    /// carries.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Mosquitto's defaults (always measured unless --no-default).
    #[arg(long)]
    no_default: bool,
    /// Fixed settings from a file in the drop-in's syntax; may be repeated.
    #[arg(long, value_name = "FILE")]
    fixed: Vec<PathBuf>,
    /// The rule of thumb: fixed settings from the bandwidth-delay product of each load.
    #[arg(long)]
    rule: bool,
    /// Fixed settings for each load, from a folder of `host search --each`; may be repeated.
    #[arg(long, value_name = "DIR")]
    per_site: Vec<PathBuf>,
    /// An exported model, run by `edge`; may be repeated. In the twin also a checkpoint, which
    /// decides in f32.
    #[arg(long, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Five actors with random weights (seeds 1 to 5), each in every repeat, run by `edge`; the
    /// arm's mean is over all of them.
    ///
    /// They have the schema, layer widths, options and input normalisation of the first --model;
    /// without one, those of `host train` without options, and features that go in as they are.
    #[arg(long)]
    untrained: bool,
    /// The best of random settings in the envelope, chosen on one run each and measured again.
    #[arg(long)]
    random: bool,
    /// How many random settings are tried.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    random_n: u32,
    /// Measurements of each arm on each scenario; in the twin, fixed settings come to the same in
    /// each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File that each result is appended to, one JSON object a line.
    #[arg(long, value_name = "FILE", default_value = "runs/evaluate.jsonl")]
    out: PathBuf,
    /// Go on with what --out holds, at the capacity that was measured then; what was void is
    /// measured again. Refused where anything that was measured has changed since.
    #[arg(long)]
    resume: bool,
    /// Start no new measurement after this many seconds.
    #[arg(long, value_name = "S")]
    duration_s: Option<u64>,
    /// Every phase so many times as long; absences stay as they are.
    #[arg(long, value_name = "FACTOR", default_value_t = 1, conflicts_with = "quick", value_parser = clap::value_parser!(u32).range(1..=1000))]
    stretch: u32,
    /// How often the broker publishes $SYS, in seconds, in place of what the loads say.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=60))]
    sys_interval_s: Option<u32>,
    /// The rules that policies decide by.
    #[arg(long, value_enum, default_value_t)]
    profile: ProfileName,
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

/// Whose rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum ProfileName {
    /// Decisions every 5 s, and a restart for each phase and one more: for loads of minutes.
    #[default]
    Judging,
    /// What a gateway has without a line in its configuration: four restarts an hour.
    Gateway,
}

impl ProfileName {
    fn rules(self) -> Result<Profile> {
        match self {
            ProfileName::Judging => Profile::judging(),
            ProfileName::Gateway => Profile::gateway(),
        }
    }
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
    /// Measures what is missing and prints what there is. Answers no where the time ran out or
    /// somebody interrupted, and where the machine was too slow for an arm in every repeat.
    ///
    /// # Errors
    /// Options that do not fit, a broker or file that cannot be used.
    pub(crate) fn run(&self) -> Result<Answer> {
        if self.json {
            crate::progress::hide();
        }
        let scenarios = self.loads()?;
        let dir = tempfile::tempdir().context("cannot make a folder for untrained models")?;
        let arms = self.arms(&dir, &scenarios)?;
        let (bench, broker_version) = self.bench()?;
        create_parent(&self.out)?;
        let mut journal = Journal::open(&self.out, self.resume)?;
        let mut config = EvaluateConfig {
            bench,
            broker_version,
            scenarios,
            arms,
            repeats: if self.quick { 1 } else { self.repeats },
            seed: self.seed,
            random_count: self.random_n,
            duration: self.duration_s.map(Duration::from_secs),
            profile: self.profile.rules()?,
            capacity_msgs_per_s: journal.capacity_msgs_per_s(),
        };
        // Before the capacity, which takes a minute.
        config.check(&journal)?;
        if config.capacity_msgs_per_s.is_none() {
            config.capacity_msgs_per_s = match &config.bench {
                Bench::Broker { mosquitto, .. } => {
                    options::capacity(mosquitto, &config.scenarios, self.seed)?
                }
                Bench::Twin { calibration } => {
                    options::twin_capacity(calibration, &config.scenarios)?
                }
            };
        }
        let done = evaluate(&config, &mut journal);
        // What was measured is worth something, whatever came after it.
        let summaries = summarise(journal.records());
        if done.is_ok() || !journal.records().is_empty() {
            let is_complete = matches!(done, Ok(Done::All));
            self.report(&config, journal.records(), &summaries, is_complete)?;
        }
        let is_known = summaries.iter().all(|summary| summary.score_mean.is_some());
        Ok(if done? == Done::All && is_known { Answer::Yes } else { Answer::No })
    }

    /// Where it is measured, and the broker's version for the record.
    fn bench(&self) -> Result<(Bench, String)> {
        if self.env == EnvKind::Twin {
            let paths: Vec<PathBuf> = self.calibration.iter().cloned().collect();
            let calibration = options::calibrations(&paths)?[0];
            return Ok((Bench::Twin { calibration }, "twin".to_owned()));
        }
        let mosquitto = self.broker.find()?;
        let version = mosquitto.version().to_string();
        let needs_edge = !self.model.is_empty() || self.untrained;
        let bench = Bench::Broker {
            mosquitto,
            edge: if needs_edge { Some(edge_program()?) } else { None },
            allow_uncapped: self.broker.allow_uncapped,
            pin: !self.no_pin,
        };
        Ok((bench, version))
    }

    fn loads(&self) -> Result<Vec<Arc<Scenario>>> {
        let loads = options::loads(&self.scenarios, self.sites)?;
        let changed = |load: &Arc<Scenario>| {
            let load = load.stretched(self.stretch);
            let load = match self.sys_interval_s {
                Some(seconds) => load.with_sys_interval(seconds),
                None => load,
            };
            Arc::new(if self.quick { load.with_phases_of_at_most(QUICK_PHASE_S) } else { load })
        };
        Ok(loads.iter().map(changed).collect())
    }

    fn arms(&self, dir: &TempDir, scenarios: &[Arc<Scenario>]) -> Result<Vec<Arm>> {
        let mut arms = Vec::new();
        if !self.no_default {
            arms.push(Arm::Default);
        }
        if self.rule {
            arms.push(Arm::Rule);
        }
        for dir in &self.per_site {
            arms.push(Arm::per_site(dir, scenarios)?);
        }
        for path in &self.fixed {
            arms.push(Arm::fixed(path)?);
        }
        for path in &self.model {
            if !is_checkpoint(path) {
                // `edge` would refuse it too, in the middle of the evaluation.
                Model::read(&read_model(path)?)
                    .with_context(|| format!("{} cannot be used", path.display()))?;
            } else if self.env == EnvKind::Broker {
                bail!(
                    "{} is a checkpoint, which decides in the twin only; `host export` makes a \
                     model of it",
                    path.display()
                );
            }
            arms.push(Arm::model(path));
        }
        if self.untrained {
            let like = self.model.first().map(|path| Architecture::of_model(path));
            let actors = like.transpose()?.unwrap_or_default().write_untrained(dir.path())?;
            arms.push(Arm::Untrained { actors });
        }
        if self.random {
            arms.push(Arm::Random);
        }
        if arms.is_empty() {
            bail!(
                "nothing to compare; give --fixed, --per-site, --rule, --model, --untrained or --random, or leave out --no-default"
            );
        }
        tell_apart(&mut arms)?;
        Ok(arms)
    }

    fn report(
        &self,
        config: &EvaluateConfig,
        records: &[Record],
        summaries: &[Summary],
        is_complete: bool,
    ) -> Result<()> {
        if self.json {
            let (profile, version) = (config.profile, 1);
            let document = Document { version, profile, is_complete, summaries, records };
            return print(&(serde_json::to_string_pretty(&document)? + "\n"));
        }
        let mut out = String::new();
        for record in records {
            out += &line(record);
        }
        let rules = match self.profile {
            ProfileName::Judging => JUDGING.to_owned(),
            ProfileName::Gateway => toml::to_string(&config.profile)?,
        };
        out +=
            &format!("\nMosquitto {}, rules of the comparison:\n{rules}\n", config.broker_version);
        out += &text(summaries);
        out += "\nOf the messages expected, in %:\n";
        out += &losses(summaries);
        if !is_complete {
            out += &format!(
                "\nNot everything was measured; go on with --resume --out {}\n",
                self.out.display()
            );
        } else if summaries.iter().any(|summary| summary.void > 0) {
            out += &format!(
                "\nVoid: the machine was too slow for the load. When it is less busy, measure these \
                 again with --resume --out {}\n",
                self.out.display()
            );
        }
        print(&out)
    }
}

/// A measurement in one line.
fn line(record: &Record) -> String {
    let actor = record.actor.map_or_else(String::new, |seed| format!(" (actor {seed})"));
    let score = record.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.3}"));
    let mut marks = String::new();
    if record.is_void {
        marks += " (void)";
    }
    if record.outcome.is_uncapped {
        marks += " (uncapped)";
    }
    let Record { scenario, arm, repeat, seed, .. } = record;
    format!("{scenario} {arm}{actor} repeat {repeat} seed {seed}: {score}{marks}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    /// What `host evaluate --untrained` says of files in a folder of their own.
    fn refusal(options: &[&str], names: &[&str], content: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec!["host".to_owned(), "evaluate".to_owned(), "--untrained".to_owned()];
        for (option, name) in options.iter().zip(names) {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            args.extend([(*option).to_owned(), path.display().to_string()]);
        }
        let out = dir.path().join("out.jsonl");
        args.extend(["--out".to_owned(), out.display().to_string()]);
        let Command::Evaluate(args) = Cli::try_parse_from(args).unwrap().command else {
            panic!("another verb")
        };
        let error = args.run().unwrap_err();
        assert!(!out.exists(), "nothing was begun");
        format!("{error:#}")
    }

    #[test]
    fn files_that_are_no_arms_are_refused_before_anything_is_measured() {
        let conf = b"max_inflight_messages 100\n";
        let message = refusal(&["--fixed", "--fixed"], &["a.conf", "a.conf"], conf);
        assert!(message.contains("a.conf and ") && message.contains("rename"), "{message}");
        let message = refusal(&["--model"], &["wrong.btm"], b"text");
        assert!(message.contains("wrong.btm cannot be used: not a model file"), "{message}");
    }
}
