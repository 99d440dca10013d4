//! `host demo`: the whole path on this machine, from the defaults to a live broker that `edge`
//! tuned.

mod report;

use crate::broker::{self, Mosquitto};
use crate::cli::{Answer, print};
use crate::ddpg::{Agent, Deviation, Hyper};
use crate::env::Environment;
use crate::env::broker::{BrokerEnv, BrokerEnvConfig};
use crate::evaluate::Architecture;
use crate::export::{About, export};
use crate::reward::{DeadlinePrices, RewardKind};
use crate::scenario::Scenario;
use crate::train::{TrainConfig, Trained, train};
use crate::trial::{Outcome, Profile, Setter, Trial, edge_program};
use anyhow::{Context as _, Result, bail};
use brokertuner_core::features::Schema;
use brokertuner_core::{KNOB_COUNT, Settings};
use report::{Measured, Report};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The loads: the defaults fail on both, and a machine of two cores carries several brokers of
/// each.
const SCENARIOS: [&str; 2] = ["wan-uplink", "alarm-burst"];
/// How often a run that the machine was too slow for is made again: others take a shared machine
/// for a minute or two at a time (21 of 30 seconds void in the run alone too, measured).
const AGAIN_MAX: usize = 3;
/// Nothing is measured again later than this: ten minutes are to be enough.
const AGAIN_UNTIL: Duration = Duration::from_secs(550);
/// A tuned score from which the demo counts as a success.
const TUNED_SCORE_MIN: f64 = 0.9;
/// A policy below that is trained for this share of its time once more, in fifths: of 250 trainings as
/// long as the demo's, in the twin, 12 were below it.
const MORE_FIFTHS: u64 = 2;
/// Debian's suite whose broker's inflight window holds.
const FETCHED_SUITE: &str = "trixie";
/// Where a fetched broker is unpacked, below the user's cache folder.
const FETCHED_DIR: &str = "brokertuner/brokers/trixie";

/// Everything at once: measure the defaults, train, export, tune a live broker, compare.
///
/// Takes about 7 minutes on 2 cores, 9 where a policy that does not do well yet is trained further,
/// and leaves report.md, report.json, the logs and the model in --out. Exit status 1 where the tuned
/// score stays below 0.9 on either load, or where the machine was too slow to measure it.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// The broker's program; default: mosquitto on PATH.
    #[arg(long, value_name = "PATH", conflicts_with = "fetch_broker")]
    mosquitto: Option<PathBuf>,
    /// Unpack Debian 13's Mosquitto beside the installed one (nothing is installed) and use it.
    #[arg(long)]
    fetch_broker: bool,
    /// Go on although the broker's inflight window does not hold: there is no gain to show then.
    #[arg(long)]
    accept_window: bool,
    /// Folder of report, logs and model.
    #[arg(long, value_name = "DIR", default_value = "demo-report")]
    out: PathBuf,
    /// Seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Brokers that are trained on at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel: u8,
    /// Seconds of training.
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    train_s: u64,
    /// The report as JSON on stdout.
    #[arg(long)]
    json: bool,
}

/// Runs the demo.
///
/// # Errors
/// No broker, one whose window does not hold, files that cannot be written, an interrupt.
pub fn run(args: &DemoArgs) -> Result<Answer> {
    let demo = Demo::prepare(args)?;
    let report = demo.run()?;
    report.write(&args.out)?;
    print(&if args.json { report.json()? } else { report.markdown() })?;
    eprintln!("Report: {}", args.out.join("report.md").display());
    Ok(if report.is_good() { Answer::Yes } else { Answer::No })
}

/// What stays the same through the demo.
struct Demo<'a> {
    args: &'a DemoArgs,
    mosquitto: Mosquitto,
    edge: PathBuf,
    scenarios: Vec<Arc<Scenario>>,
    profile: Profile,
    started: Instant,
}

impl<'a> Demo<'a> {
    fn prepare(args: &'a DemoArgs) -> Result<Demo<'a>> {
        std::fs::create_dir_all(&args.out).with_context(|| {
            format!("cannot create {}; choose another --out", args.out.display())
        })?;
        let mosquitto = find_broker(args)?;
        let edge = edge_program()?;
        let scenarios = SCENARIOS
            .iter()
            .map(|name| Ok(Arc::new(Scenario::load(name)?)))
            .collect::<Result<Vec<_>>>()?;
        let profile = Profile::judging()?;
        Ok(Demo { args, mosquitto, edge, scenarios, profile, started: Instant::now() })
    }

    fn run(&self) -> Result<Report> {
        self.say(&format!(
            "1/4 measuring {} with Mosquitto {}'s defaults",
            SCENARIOS.join(" and "),
            self.mosquitto.version()
        ));
        let nobody = Setter::Fixed(Settings::UNWRITTEN);
        let mut default = self.measure(&nobody)?;
        self.say(&format!(
            "2/4 training on {} real brokers for {} s",
            self.args.parallel, self.args.train_s
        ));
        let model = self.args.out.join("model.btm");
        let by_model = self.edge_with(model.clone());
        let mut train_s = self.args.train_s;
        let (mut trained, mut deviation, mut tuned) =
            self.tune(self.train(train_s, None)?, &by_model, &model)?;
        if tuned.iter().any(is_lacking) {
            let more_s = (train_s * MORE_FIFTHS).div_ceil(5);
            self.say(&format!("    below {TUNED_SCORE_MIN}: training for {more_s} s more"));
            train_s += more_s;
            let more = self.train(more_s, Some(trained.agent))?;
            (trained, deviation, tuned) = self.tune(more, &by_model, &model)?;
        }
        self.say("4/4 the same with an untrained actor");
        // It sees its input as the trained one does: only the weights differ.
        let untrained = self.args.out.join("untrained.btm");
        let actor = Architecture::of_model(&model)?.untrained(self.args.seed)?;
        export(&actor, &self.about("untrained"), &untrained)?;
        let by_chance = self.edge_with(untrained);
        let mut untrained = self.measure(&by_chance)?;
        self.again_where_void([
            (&mut tuned, &by_model),
            (&mut default, &nobody),
            (&mut untrained, &by_chance),
        ])?;
        self.report([default, untrained, tuned], &trained, train_s, deviation)
    }

    /// Exports what was learnt, and has `edge` tune live brokers by it.
    fn tune(
        &self,
        trained: Trained,
        by_model: &Setter,
        model: &Path,
    ) -> Result<(Trained, Deviation, Vec<Outcome>)> {
        let deviation = export(&trained.agent, &self.about("demo"), model)?;
        self.say(&format!(
            "3/4 exported {} (int8 against f32: largest deviation {:.2}/127); edge tunes live brokers",
            model.display(),
            deviation.max_steps
        ));
        let tuned = self.measure(by_model)?;
        Ok((trained, deviation, tuned))
    }

    fn say(&self, text: &str) {
        eprintln!("[{:4.0} s] {text}", self.started.elapsed().as_secs_f64());
    }

    fn agent(&self) -> Result<Agent> {
        Ok(Agent::new(Hyper::demo(), Schema::Edge.len(), KNOB_COUNT, self.args.seed)?)
    }

    fn about(&self, scores: &str) -> About {
        About {
            schema: Schema::Edge,
            tuned: crate::env::trained(),
            scenarios: SCENARIOS.join(" "),
            broker_versions: self.mosquitto.version().to_string(),
            scores: scores.to_owned(),
        }
    }

    fn edge_with(&self, model: PathBuf) -> Setter {
        Setter::Edge { edge: self.edge.clone(), model }
    }

    /// A setter on all scenarios at once, so that every setter shares the machine with as many
    /// brokers as the others do: outcomes by scenario.
    fn measure(&self, setter: &Setter) -> Result<Vec<Outcome>> {
        let trials: Vec<Trial> =
            self.scenarios.iter().map(|scenario| self.trial(scenario, setter)).collect();
        Self::at_once(&trials)
    }

    /// What the machine was too slow for is measured again; last of all, so that no arm takes the time
    /// of another, and in this order.
    fn again_where_void(&self, arms: [(&mut Vec<Outcome>, &Setter); 3]) -> Result<()> {
        for (outcomes, setter) in arms {
            for (outcome, scenario) in outcomes.iter_mut().zip(&self.scenarios) {
                let trial = Trial { pin: true, ..self.trial(scenario, setter) };
                telling(outcome, || self.again(&trial))?;
            }
        }
        Ok(())
    }

    /// One more run, alone and with a core for the broker; `None` once there is no time for it.
    fn again(&self, trial: &Trial) -> Result<Option<Outcome>> {
        if self.started.elapsed() >= AGAIN_UNTIL {
            return Ok(None);
        }
        let name = &trial.scenario.name;
        self.say(&format!("    {name} again: the machine was too slow for it beside others"));
        trial.run().map(Some)
    }

    fn at_once(trials: &[Trial]) -> Result<Vec<Outcome>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = trials.iter().map(|trial| scope.spawn(|| trial.run())).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Outcome>>| {
                thread.join().unwrap_or_else(|_| bail!("a measurement panicked"))
            };
            threads.into_iter().map(join).collect()
        })
    }

    fn trial(&self, scenario: &Arc<Scenario>, setter: &Setter) -> Trial {
        Trial {
            mosquitto: self.mosquitto.clone(),
            scenario: Arc::clone(scenario),
            setter: setter.clone(),
            // Not the training's seed: what is shown is on a load that was not trained on.
            seed: self.args.seed + 1000,
            profile: self.profile,
            pin: false,
            capacity_msgs_per_s: None,
            allow_uncapped: false,
        }
    }

    /// Trains for `seconds`, `earlier` further where there is one.
    fn train(&self, seconds: u64, earlier: Option<Agent>) -> Result<Trained> {
        let hyper = Hyper::demo();
        let envs = (0..usize::from(self.args.parallel))
            .map(|index| {
                let env = BrokerEnv::new(BrokerEnvConfig {
                    mosquitto: self.mosquitto.clone(),
                    scenarios: self.scenarios.clone(),
                    index,
                    step: Duration::from_secs_f64(hyper.step_s),
                    schema: Schema::Edge,
                    reward: RewardKind::Deadline(DeadlinePrices::default()),
                    seed: self.args.seed,
                    capacity_msgs_per_s: None,
                    allow_uncapped: false,
                })?;
                Ok(Box::new(env) as Box<dyn Environment>)
            })
            .collect::<Result<Vec<_>>>()?;
        let config = TrainConfig {
            hyper,
            out: self.args.out.join("train"),
            steps: u64::MAX,
            duration: Some(Duration::from_secs(seconds)),
            // The gateway starts on the defaults: so do many short episodes.
            episode_steps: 5,
            checkpoint_steps: 10_000,
            tuned: crate::env::trained(),
            resume: earlier.is_some(),
        };
        let agent = earlier.map_or_else(|| self.agent(), Ok)?;
        let trained = train(envs, &config, agent, None)?;
        if broker::interrupted() {
            bail!("interrupted; the checkpoint is in {}", config.out.display());
        }
        Ok(trained)
    }

    fn report(
        &self,
        [default, untrained, tuned]: [Vec<Outcome>; 3],
        trained: &Trained,
        train_s: u64,
        deviation: Deviation,
    ) -> Result<Report> {
        let arms = default.into_iter().zip(untrained).zip(tuned);
        let rows = self.scenarios.iter().zip(arms);
        let measured = rows.map(|(scenario, ((default, untrained), tuned))| Measured {
            scenario: scenario.name.clone(),
            default,
            untrained,
            tuned,
        });
        Ok(Report {
            version: 1,
            seed: self.args.seed,
            broker_version: self.mosquitto.version().to_string(),
            parallel: self.args.parallel,
            train_s,
            train_more_s: train_s - self.args.train_s,
            train_steps: trained.steps,
            train_score_mean_last_quarter: trained.score_mean_last_quarter.unwrap_or(0.0),
            deviation_steps_max: deviation.max_steps,
            deviation_steps_mean: deviation.mean_steps,
            wall_s: self.started.elapsed().as_secs_f64(),
            measured: measured.collect(),
        })
    }
}

/// Whether `outcome` says that the policy does not do well.
fn is_lacking(outcome: &Outcome) -> bool {
    outcome.load.is_telling() && outcome.load.score.is_some_and(|score| score < TUNED_SCORE_MIN)
}

/// Where the machine was too slow for `outcome`, puts the one with the fewest void seconds in its
/// place among it and up to [`AGAIN_MAX`] more, until one is telling.
fn telling(
    outcome: &mut Outcome,
    mut again: impl FnMut() -> Result<Option<Outcome>>,
) -> Result<()> {
    for _ in 0..AGAIN_MAX {
        if outcome.load.is_telling() {
            break;
        }
        match again()? {
            Some(next) if next.load.seconds_void < outcome.load.seconds_void => *outcome = next,
            Some(_) => {}
            None => break,
        }
    }
    Ok(())
}

fn find_broker(args: &DemoArgs) -> Result<Mosquitto> {
    let mosquitto = if args.fetch_broker {
        eprintln!("Fetching Mosquitto of Debian {FETCHED_SUITE} ...");
        broker::fetch(FETCHED_SUITE, &fetched_dir()?)?
    } else {
        Mosquitto::find(args.mosquitto.as_deref())?
    };
    if args.accept_window || broker::window_holds(&mosquitto)? {
        return Ok(mosquitto);
    }
    bail!(
        "the inflight window of Mosquitto {} does not hold against late acknowledgements, so its \
         defaults do well on {} and there is no gain to show; run `host demo --fetch-broker`, which \
         unpacks a newer Mosquitto beside it without installing anything, or --accept-window to see \
         for yourself",
        mosquitto.version(),
        SCENARIOS[0]
    )
}

fn fetched_dir() -> Result<PathBuf> {
    let home = std::env::home_dir().context("no home folder; use --mosquitto PATH")?;
    Ok(Path::new(&home).join(".cache").join(FETCHED_DIR))
}
