//! `host search`.

use super::options::{self, BrokerOptions, create_parent};
use super::{Answer, print};
use crate::env::broker::site_values;
use crate::reward::DeadlinePrices;
use crate::scenario::Scenario;
use crate::search::{Candidate, Evaluations, Evaluator, Method, Search, World, rule};
use crate::trial::{Outcome, Profile, Setter, Trial};
use crate::twin::{Calibration, Play};
use anyhow::{Context as _, Result, bail};
use brokertuner_core::{Envelope, KnobSet, Settings, render};
use clap::ValueEnum;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Search for the best fixed settings: for several loads together, or for each of them.
///
/// Leaves best-static.conf, or with --each one file per load, in --out, for `--fixed` and
/// `--per-site` of `host evaluate`. Every evaluation is appended to evaluations.jsonl; --resume
/// repeats none. Exit status 1 where the time ran out, or the machine was too slow for a load.
#[derive(Debug, clap::Args)]
pub(crate) struct SearchArgs {
    /// Loads, by name or path; default: all that the program carries.
    #[arg(long = "scenario", value_name = "NAME|PATH")]
    scenarios: Vec<String>,
    /// So many randomised sites beside the loads: those of `host evaluate --sites`.
    #[arg(long, value_name = "N", default_value_t = 0)]
    sites: u32,
    /// The best for each load instead of the best for all.
    #[arg(long)]
    each: bool,
    /// Where settings are tried.
    #[arg(long, value_enum, default_value_t)]
    env: SearchEnv,
    /// How settings are proposed.
    #[arg(long, value_enum, default_value_t)]
    method: Method,
    /// Proposals.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    n: u32,
    /// Measure so many of the twin's best on the real broker, and take the best of those: settings
    /// that are not nearly the same.
    #[arg(long, value_name = "N", default_value_t = 0)]
    confirm: u32,
    /// Real measurements of each, with seeds of their own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// The broker that the twin simulates: a file of `host calibrate`.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of the results.
    #[arg(long, value_name = "DIR", default_value = "runs/search")]
    out: PathBuf,
    /// Start no new evaluation after this many seconds; --resume goes on.
    #[arg(long, value_name = "S")]
    duration_s: Option<u64>,
    /// Go on with the evaluations in --out.
    #[arg(long)]
    resume: bool,
    /// The results as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerOptions,
}

/// Added to the seed for confirmations: nobody is judged on the run that chose him, nor on those of
/// a later `host evaluate`.
const CONFIRM_SEED_OFFSET: u64 = 2_000_000;

/// Actions of the actor's grid that differ by no more than this in each option are nearly the same.
const NEAR_STEPS: i16 = 8;

/// What ends the search for a load, and leaves what was evaluated.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("the time is up; go on with --resume")]
    TimeIsUp,
    #[error("the machine is too slow for {0}: end what else runs on it, and go on with --resume")]
    TooSlow(String),
}

/// Where settings are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum SearchEnv {
    /// The simulator.
    #[default]
    Twin,
    /// A real Mosquitto: about a minute an evaluation.
    Broker,
}

/// The best of a search.
#[derive(Debug, Serialize)]
struct Best {
    scenario: String,
    file: PathBuf,
    score: f64,
    settings_conf: String,
    /// Of the rule of thumb.
    rule_score: f64,
    default_score: f64,
}

impl SearchArgs {
    /// Searches and writes what was found.
    ///
    /// # Errors
    /// Options that do not fit, a broker that cannot be measured, files that cannot be written.
    pub(crate) fn run(&self) -> Result<Answer> {
        if self.json {
            crate::progress::hide();
        }
        if self.env == SearchEnv::Broker || self.confirm > 0 {
            // Before the minutes in the twin.
            self.broker.find()?;
        }
        let scenarios = options::loads(&self.scenarios, self.sites)?;
        let journal = self.out.join("evaluations.jsonl");
        create_parent(&journal)?;
        let evaluations = Evaluations::open(&journal, self.resume)?;
        let groups: Vec<(String, Vec<Arc<Scenario>>)> = if self.each {
            scenarios.iter().map(|one| (one.name.clone(), vec![Arc::clone(one)])).collect()
        } else {
            vec![("best-static".to_owned(), scenarios)]
        };
        let until = self.duration_s.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let work = Work { args: self, evaluations: &evaluations, until };
        let (mut found, mut answer) = (Vec::with_capacity(groups.len()), Answer::Yes);
        for (name, group) in groups {
            tracing::info!(name, n = self.n, "searching");
            match work.best(&name, group) {
                Ok(best) => {
                    if !self.json {
                        print(&line(&best))?;
                    }
                    found.push(best);
                }
                Err(error) => {
                    let stop = error.downcast_ref::<Stop>();
                    if stop.is_none() {
                        return Err(error);
                    }
                    tracing::warn!(name, "{error:#}");
                    answer = Answer::No;
                    if matches!(stop, Some(Stop::TimeIsUp)) {
                        break;
                    }
                }
            }
        }
        if self.json {
            print(&(serde_json::to_string_pretty(&found)? + "\n"))?;
        }
        Ok(answer)
    }
}

/// A search with what it goes on with and how long.
struct Work<'a> {
    args: &'a SearchArgs,
    evaluations: &'a Evaluations,
    until: Option<Instant>,
}

impl<'a> Work<'a> {
    fn best(&self, name: &str, scenarios: Vec<Arc<Scenario>>) -> Result<Best> {
        let args = self.args;
        let envelope = Envelope {
            site: scenarios.first().map(|one| site_values(one)).unwrap_or_default(),
            ..Envelope::default()
        };
        let by_rule: Vec<Settings> =
            scenarios.iter().map(|one| rule::settings(one, &envelope)).collect();
        let search = Search {
            scenarios: scenarios.clone(),
            envelope,
            tuned: KnobSet::tuned_by_default(),
            method: args.method,
            count: args.n as usize,
            seed: args.seed,
        };
        let starts: Vec<Settings> =
            [Settings::UNWRITTEN].into_iter().chain(by_rule.iter().copied()).collect();
        let candidates = match args.env {
            SearchEnv::Twin => search.run(&starts, &self.twin(&scenarios)?)?,
            SearchEnv::Broker => {
                search.run_one_by_one(&starts, &self.real(&scenarios, args.seed)?)?
            }
        };
        let confirmed = match args.confirm as usize {
            0 => candidates,
            count => {
                let mut some = unlike(&candidates, count, &search.envelope);
                // One line must not mix two worlds, nor may the rule be left behind unseen.
                some.extend(
                    starts.iter().filter(|one| !some.contains(one)).copied().collect::<Vec<_>>(),
                );
                let seed = args.seed.wrapping_add(CONFIRM_SEED_OFFSET);
                search.measure(&some, &self.real(&scenarios, seed)?)?
            }
        };
        let best = confirmed.first().context("nothing was evaluated")?;
        let score_of = |settings: &Settings| {
            let found: Option<&Candidate> = confirmed.iter().find(|one| one.settings == *settings);
            found.map_or(f64::NAN, |one| one.score)
        };
        let file = args.out.join(format!("{name}.conf"));
        let settings_conf = render::render(&best.settings).as_str().to_owned();
        options::write(&file, settings_conf.as_bytes())?;
        Ok(Best {
            scenario: name.to_owned(),
            file,
            score: best.score,
            settings_conf,
            rule_score: by_rule.iter().map(score_of).fold(f64::NAN, f64::max),
            default_score: score_of(&Settings::UNWRITTEN),
        })
    }

    fn twin(&self, scenarios: &[Arc<Scenario>]) -> Result<InTwin<'a>> {
        let paths: Vec<PathBuf> = self.args.calibration.iter().cloned().collect();
        let calibration = options::calibrations(&paths)?[0];
        let capacity_msgs_per_s = options::twin_capacity(&calibration, scenarios)?;
        let (profile, limit) = (Profile::judging()?, self.limit());
        Ok(InTwin { calibration, capacity_msgs_per_s, profile, limit })
    }

    fn limit(&self) -> Limit<'a> {
        Limit { evaluations: self.evaluations, until: self.until }
    }

    fn real(&self, scenarios: &[Arc<Scenario>], seed: u64) -> Result<OnBroker<'a>> {
        let args = self.args;
        let mosquitto = args.broker.find()?;
        // One file has one rate: a capacity that is measured again is another one.
        let known = self.evaluations.capacity_msgs_per_s();
        let capacity_msgs_per_s =
            match known.filter(|_| scenarios.iter().any(|s| s.needs_capacity())) {
                Some(capacity) => Some(capacity),
                None => options::capacity(&mosquitto, scenarios, args.seed)?,
            };
        let trial = Trial {
            mosquitto,
            scenario: scenarios.first().cloned().context("no load to search for")?,
            setter: Setter::Fixed(Settings::UNWRITTEN),
            seed,
            profile: Profile::judging()?,
            pin: true,
            capacity_msgs_per_s,
            allow_uncapped: args.broker.allow_uncapped,
        };
        Ok(OnBroker { trial, repeats: args.repeats, limit: self.limit() })
    }
}

/// The settings of the best candidates, none nearly the same as a better one: a search ends in a
/// crowd.
fn unlike(candidates: &[Candidate], count: usize, envelope: &Envelope) -> Vec<Settings> {
    let mut taken: Vec<Settings> = Vec::with_capacity(count);
    for Candidate { settings, .. } in candidates {
        let action = settings.encode(&envelope.site);
        let is_near = |other: &Settings| {
            let steps = action.iter().zip(other.encode(&envelope.site));
            let mut apart = steps.map(|(a, b)| (i16::from(*a) - i16::from(b)).abs());
            apart.all(|steps| steps <= NEAR_STEPS)
        };
        if taken.len() < count && !taken.iter().any(is_near) {
            taken.push(*settings);
        }
    }
    taken
}

fn line(best: &Best) -> String {
    format!(
        "{:<20} best {:.3}, rule {:.3}, default {:.3}   {}\n",
        best.scenario,
        best.score,
        best.rule_score,
        best.default_score,
        best.file.display()
    )
}

/// Score less what CPU and memory cost.
fn worth(score: f64, cpu_share: f64, rss_bytes: u64, scenario: &Scenario) -> f64 {
    let prices = DeadlinePrices::default();
    let memory = rss_bytes as f64 / scenario.rss_limit_bytes as f64;
    score - prices.cpu * cpu_share - prices.memory * memory.min(1.0)
}

/// What was evaluated, and until when more is.
struct Limit<'a> {
    evaluations: &'a Evaluations,
    until: Option<Instant>,
}

impl Limit<'_> {
    /// That evaluation, made now where it was not before.
    fn get_or(
        &self,
        world: &World<'_>,
        settings: &Settings,
        evaluate: impl FnOnce() -> Result<(f64, f64)>,
    ) -> Result<(f64, f64)> {
        self.evaluations.get_or(world, settings, || {
            if crate::broker::interrupted() {
                bail!("interrupted; go on with --resume");
            }
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Err(Stop::TimeIsUp.into());
            }
            evaluate()
        })
    }
}

/// Evaluates in the twin.
struct InTwin<'a> {
    calibration: Calibration,
    capacity_msgs_per_s: Option<f64>,
    profile: Profile,
    limit: Limit<'a>,
}

impl Evaluator for InTwin<'_> {
    fn evaluate(&self, scenario: &Arc<Scenario>, settings: &Settings) -> Result<(f64, f64)> {
        let twin = crate::evaluate::of_this_program();
        let world = crate::search::digest(&(scenario, self.calibration, self.profile, twin));
        let by = World { scenario: &scenario.name, digest: &world, capacity_msgs_per_s: None };
        self.limit.get_or(&by, settings, || {
            let play = Play {
                scenario: Arc::clone(scenario),
                calibration: self.calibration,
                capacity_msgs_per_s: self.capacity_msgs_per_s,
                profile: self.profile,
                seed: 0,
            };
            let played = play.fixed(settings);
            let score = played.score.unwrap_or(0.0);
            Ok((score, worth(score, played.cpu_share, played.rss_bytes_max, scenario)))
        })
    }
}

/// Measures on a real broker, one run at a time.
struct OnBroker<'a> {
    trial: Trial,
    repeats: u32,
    limit: Limit<'a>,
}

impl OnBroker<'_> {
    fn world(&self, scenario: &Arc<Scenario>, seed: u64) -> String {
        let Trial { mosquitto, profile, capacity_msgs_per_s, allow_uncapped, .. } = &self.trial;
        let program = (mosquitto.version().to_string(), env!("CARGO_PKG_VERSION"));
        let machine = (capacity_msgs_per_s, allow_uncapped);
        crate::search::digest(&(scenario, program, profile, machine, seed))
    }
}

/// The score, where it says something.
fn counted(outcome: &Outcome) -> Option<f64> {
    outcome.load.score.filter(|_| !outcome.load.is_void)
}

impl Evaluator for OnBroker<'_> {
    fn evaluate(&self, scenario: &Arc<Scenario>, settings: &Settings) -> Result<(f64, f64)> {
        let (mut score, mut worths) = (0.0, 0.0);
        for repeat in 0..self.repeats {
            let seed = self.trial.seed.wrapping_add(u64::from(repeat));
            let digest = self.world(scenario, seed);
            let by = World {
                scenario: &scenario.name,
                digest: &digest,
                capacity_msgs_per_s: self.trial.capacity_msgs_per_s,
            };
            let measured = self.limit.get_or(&by, settings, || {
                let trial = Trial {
                    scenario: Arc::clone(scenario),
                    setter: Setter::Fixed(*settings),
                    seed,
                    ..self.trial.clone()
                };
                let mut outcome = trial.run()?;
                if counted(&outcome).is_none() {
                    tracing::warn!(scenario = scenario.name, "void; measuring again");
                    outcome = trial.run()?;
                }
                let score =
                    counted(&outcome).ok_or_else(|| Stop::TooSlow(scenario.name.clone()))?;
                let cpu_share = outcome.cpu_share.unwrap_or(0.0);
                let rss_bytes = outcome.load.rss_bytes_max.unwrap_or(0);
                Ok((score, worth(score, cpu_share, rss_bytes, scenario)))
            })?;
            score += measured.0;
            worths += measured.1;
        }
        let count = f64::from(self.repeats);
        Ok((score / count, worths / count))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn those_that_are_confirmed_are_not_nearly_the_same() {
        let settings = |window: u32, queue: u32| {
            let text = format!("max_inflight_messages {window}\nmax_queued_messages {queue}\n");
            render::parse(&text).unwrap()
        };
        let all = [(100, 1000), (102, 1000), (100, 1020), (100, 9000), (1000, 1000), (100, 110)];
        let candidates: Vec<Candidate> = all
            .iter()
            .map(|&(window, queue)| Candidate {
                settings: settings(window, queue),
                score: 0.5,
                worth: 0.5,
            })
            .collect();
        let envelope = Envelope::default();
        let taken = unlike(&candidates, 3, &envelope);
        assert_eq!(taken, [settings(100, 1000), settings(100, 9000), settings(1000, 1000)]);
        assert_eq!(unlike(&candidates, 9, &envelope).len(), 4);
    }
}
