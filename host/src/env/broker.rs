//! The real world: a Mosquitto of its own, under its own load, changed through edge's library.

use super::{Environment, StepOutcome};
use crate::broker::{BrokerProcess, LogTypes, Mosquitto, Phase, SpawnConfig, rss_bytes};
use crate::load::{LoadConfig, LoadGenerator, Window};
use crate::logs::ActionRow;
use crate::reward::{RewardKind, StepView};
use crate::scenario::Scenario;
use crate::trial::RSS_PERIOD;
use anyhow::{Context as _, bail};
use brokertuner_core::features::{self, Schema, Targets, View};
use brokertuner_core::knobs::Apply;
use brokertuner_core::sample::{Meter, Metrics};
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Action, Envelope, KNOB_COUNT, Knob, Settings};
use brokertuner_edge::apply::{Applier, Paths};
use brokertuner_edge::control::{LiveBroker, Method};
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::pid::PidFinder;
use brokertuner_edge::sampler::{Sampler, SamplerOptions};
use brokertuner_edge::state::How;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Steps between two looks at whether the load still runs.
const LOAD_CHECK_STEPS: u64 = 5;
/// Steps on the defaults before an episode's first decision: 1 to this many.
const DEFAULT_STEPS_MAX: u64 = 3;
/// How often the agent's own messages go through the broker.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Longest wait for one CONNACK.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest run of the restart command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// What an environment is made of.
#[derive(Clone, Debug)]
pub struct BrokerEnvConfig {
    /// The broker's program.
    pub mosquitto: Mosquitto,
    /// Loads, one per episode in turn.
    pub scenarios: Vec<Arc<Scenario>>,
    /// Which of several parallel environments this is, for the log.
    pub index: usize,
    /// The decision interval.
    pub step: Duration,
    /// The state vector.
    pub schema: Schema,
    /// What a step is worth.
    pub reward: RewardKind,
    /// Seed of the load's random choices; each episode derives its own.
    pub seed: u64,
    /// Messages a second that the broker passes, for scenarios that ask for a multiple of it.
    pub capacity_msgs_per_s: Option<f64>,
    /// Go on without a CPU quota where none can be set.
    pub allow_uncapped: bool,
}

/// One Mosquitto and its load.
pub struct BrokerEnv {
    config: BrokerEnvConfig,
    world: Option<World>,
    scenario: Arc<Scenario>,
    episode: u64,
    steps: u64,
}

impl BrokerEnv {
    /// An environment; nothing runs before its first [`Environment::reset`].
    ///
    /// # Errors
    /// Where there is no scenario.
    pub fn new(config: BrokerEnvConfig) -> anyhow::Result<BrokerEnv> {
        let Some(first) = config.scenarios.first() else {
            bail!("no scenario to train on; give at least one with --scenario");
        };
        let scenario = Arc::clone(first);
        Ok(BrokerEnv { config, world: None, scenario, episode: 0, steps: 0 })
    }

    fn world(&mut self) -> anyhow::Result<&mut World> {
        self.world.as_mut().context("the environment was stepped before its first reset")
    }

    /// Builds the episode's world anew after the broker was lost, and marks the step as cut.
    fn recover(&mut self, applied: &'static str) -> anyhow::Result<StepOutcome> {
        tracing::warn!(env = self.config.index, "the broker ended; a new one is started");
        // The load that the step was lost under.
        let (scenario, site) = (self.scenario.name.clone(), site_values(&self.scenario));
        let state = self.reset(self.episode)?;
        let row = ActionRow { scenario, applied, site, ..ActionRow::default() };
        let reward = Some(self.config.reward.worst());
        Ok(StepOutcome { state, reward, score: Some(0.0), is_cut: true, row })
    }
}

impl Environment for BrokerEnv {
    fn reset(&mut self, episode: u64) -> anyhow::Result<Vec<f32>> {
        // The old world's processes end before the new ones start.
        self.world = None;
        self.episode = episode;
        let turn = usize::try_from(episode)? % self.config.scenarios.len();
        self.scenario = Arc::clone(&self.config.scenarios[turn]);
        let mut world = World::start(&self.config, &self.scenario, episode)?;
        // An agent meets the defaults at any age, because a change has to be wanted for a while.
        let aged = u32::try_from(1 + episode % DEFAULT_STEPS_MAX)?;
        let mut state = Vec::new();
        for _ in 0..aged {
            world.pass(Instant::now() + self.config.step)?;
            (_, state) = world.look(self.config.schema);
        }
        // What expired meanwhile is the defaults' score: no action of this episode earned it.
        let _ = world.load.window();
        self.world = Some(world);
        Ok(state)
    }

    fn step(&mut self, action: &Action) -> anyhow::Result<StepOutcome> {
        self.steps += 1;
        let (step, schema, steps) = (self.config.step, self.config.schema, self.steps);
        let reward = self.config.reward;
        let world = self.world()?;
        let end = Instant::now() + step;
        let change = world.apply(action)?;
        if world.broker.phase() == Phase::Failed || world.pass(end).is_err() {
            if crate::broker::interrupted() {
                bail!("interrupted");
            }
            return self.recover(crate::logs::LOST);
        }
        let load_restarted = steps.is_multiple_of(LOAD_CHECK_STEPS) && world.mend_load()?;
        let (metrics, state) = world.look(schema);
        let window = world.load.window();
        let view = StepView {
            score: window.score,
            metrics: &metrics,
            rss_limit_bytes: world.rss_limit_bytes,
            changed_share: f64::from(change.options) / KNOB_COUNT as f64,
            is_failed: change.is_refused,
        };
        let reward = reward.of(&view);
        let applied = if load_restarted { "load-restarted" } else { change.applied };
        let row = world.row(&metrics, &window, &change, applied, reward);
        let row = ActionRow { scenario: self.scenario.name.clone(), ..row };
        Ok(StepOutcome { state, reward, score: window.score, is_cut: load_restarted, row })
    }

    fn scenario(&self) -> &str {
        &self.scenario.name
    }
}

/// What applying an action came to.
#[derive(Clone, Copy, Debug)]
struct Change {
    applied: &'static str,
    options: u8,
    ready_ms: u64,
    is_refused: bool,
}

/// A running broker, its load, and edge's eyes and hands.
struct World {
    // Dropped in this order: the load ends before the broker does.
    load: LoadGenerator,
    sampler: Sampler,
    applier: Applier,
    broker: BrokerProcess,
    meter: Meter,
    settings: Settings,
    envelope: Envelope,
    targets: Targets,
    rss_limit_bytes: f64,
    load_config: LoadConfig,
    _state_dir: TempDir,
}

/// How a scenario wants its broker to be started.
#[must_use]
pub fn spawn_config(scenario: &Scenario) -> SpawnConfig {
    SpawnConfig {
        persistence: scenario.broker.persistence,
        sys_interval_s: u16::try_from(scenario.broker.sys_interval_s).unwrap_or(u16::MAX),
        cpu_share: scenario.broker.cpu_share,
        log_types: LogTypes::Default,
        supervised: true,
        ..SpawnConfig::default()
    }
}

/// What the scenario asks of a policy: its smallest group deadline and its memory.
#[must_use]
pub fn targets(scenario: &Scenario) -> Targets {
    let deadline = scenario
        .phases
        .iter()
        .flat_map(|phase| phase.subscribe.iter().map(|group| group.deadline))
        .min()
        .unwrap_or(scenario.deadline);
    Targets {
        deadline_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
        rss_limit_mib: u32::try_from(scenario.rss_limit_bytes >> 20).unwrap_or(u32::MAX),
    }
}

/// What holds where the drop-in is silent: the main file that [`spawn_config`] makes.
#[must_use]
pub fn site_values(scenario: &Scenario) -> SiteValues {
    let mut site = SiteValues::default();
    site.0[Knob::Persistence as usize] = u64::from(scenario.broker.persistence);
    site
}

impl World {
    fn start(
        config: &BrokerEnvConfig,
        scenario: &Arc<Scenario>,
        episode: u64,
    ) -> anyhow::Result<World> {
        let (broker, _) =
            crate::trial::spawn(&config.mosquitto, spawn_config(scenario), config.allow_uncapped)?;
        let address = broker.addr();
        let state_dir =
            tempfile::tempdir().context("cannot make a folder for the agent's state")?;
        let finder = PidFinder::pid_file(broker.pid_path(), address);
        let applier = applier(&broker, &finder, state_dir.path())?;
        let sampler = Sampler::start(
            SamplerOptions {
                address,
                client_id: "brokertuner-train".to_owned(),
                credentials: None,
                tls: None,
                mqtt: brokertuner_edge::mqtt::ProtocolChoice::default(),
                probe_interval: Some(PROBE_INTERVAL),
                clock: brokertuner_core::Instant::now,
            },
            finder,
        )?;
        let load_config = LoadConfig {
            seed: config.seed.wrapping_mul(1_000_003).wrapping_add(episode),
            capacity_msgs_per_s: config.capacity_msgs_per_s,
            repeat: true,
            ..LoadConfig::new(Arc::clone(scenario), address)
        };
        let load = LoadGenerator::start(load_config.clone())?;
        Ok(World {
            load,
            sampler,
            applier,
            broker,
            meter: Meter::default(),
            settings: Settings::UNWRITTEN,
            envelope: super::envelope(scenario),
            targets: targets(scenario),
            rss_limit_bytes: scenario.rss_limit_bytes as f64,
            load_config,
            _state_dir: state_dir,
        })
    }

    /// 1. Decode and 2. apply, if that changes anything; waits until the broker is ready.
    ///
    /// Settings that the broker refuses are undone by the applier; that is a result, not an error.
    fn apply(&mut self, action: &Action) -> anyhow::Result<Change> {
        let wanted = Settings::decode(action, &self.envelope);
        let differing = wanted.differing(&self.settings);
        let options = u8::try_from(differing.iter().count()).unwrap_or(u8::MAX);
        let restart = differing.iter().any(|knob| knob.spec().apply == Apply::Restart);
        let (how, applied) = match (differing.is_empty(), restart) {
            (true, _) => {
                return Ok(Change { applied: "none", options, ready_ms: 0, is_refused: false });
            }
            (false, false) => (How::Reload, "reload"),
            (false, true) => (How::Restart, "restart"),
        };
        let begun = Instant::now();
        let result = self.applier.apply(Some(wanted), how, &self.envelope.site);
        let ready_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(_) => {
                self.settings = wanted;
                Ok(Change { applied, options, ready_ms, is_refused: false })
            }
            Err(error) => {
                tracing::warn!("{error}");
                Ok(Change { applied: "refused", options, ready_ms, is_refused: true })
            }
        }
    }

    /// 3. Lets time pass until `end` while memory is sampled.
    fn pass(&mut self, end: Instant) -> anyhow::Result<()> {
        while Instant::now() < end {
            if crate::broker::interrupted() {
                bail!("interrupted");
            }
            if let Ok(bytes) = rss_bytes(self.broker.pid()) {
                self.load.rss_sample(Instant::now(), bytes);
            } else if !self.broker.is_alive() && self.broker.phase() != Phase::Starting {
                bail!("the broker ended");
            }
            let left = end.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(RSS_PERIOD));
        }
        Ok(())
    }

    /// 4. Samples and makes the state vector.
    fn look(&mut self, schema: Schema) -> (Metrics, Vec<f32>) {
        let metrics = self.meter.measure(&self.sampler.sample());
        let state = features::state(
            schema,
            &View {
                metrics: &metrics,
                effective: &self.settings,
                site: &self.envelope.site,
                targets: &self.targets,
            },
        );
        (metrics, state.to_vec())
    }

    /// 5. Restarts the load with its last configuration where it has ended.
    fn mend_load(&mut self) -> anyhow::Result<bool> {
        if self.load.is_alive() {
            return Ok(false);
        }
        tracing::warn!("the load ended; it is started again with its last configuration");
        self.load = LoadGenerator::start(self.load_config.clone())?;
        Ok(true)
    }

    fn row(
        &self,
        metrics: &Metrics,
        window: &Window,
        change: &Change,
        applied: &'static str,
        reward: Option<f64>,
    ) -> ActionRow {
        ActionRow {
            applied,
            ready_ms: change.ready_ms,
            score: window.score,
            reward,
            delivered_per_s: window.delivered_per_s,
            latency_us_max: window.latency_us_max,
            dropped_per_s: metrics.publish_dropped_per_s,
            cpu_share: metrics.cpu_share,
            rss_bytes: metrics.rss_bytes,
            settings: self.settings,
            site: self.envelope.site,
            ..ActionRow::default()
        }
    }
}

fn applier(
    broker: &BrokerProcess,
    finder: &PidFinder,
    state_dir: &std::path::Path,
) -> anyhow::Result<Applier> {
    let restart = broker.restart_command().context("the broker is not supervised")?;
    let live = LiveBroker {
        address: broker.addr(),
        client_id: "brokertuner-ready".to_owned(),
        credentials: None,
        tls: None,
        mqtt: brokertuner_edge::mqtt::ProtocolChoice::default(),
        finder: finder.clone(),
        reload: Method::Signal,
        restart: Method::Command(vec![restart.display().to_string()]),
        command_timeout: COMMAND_TIMEOUT,
        answer_timeout: ANSWER_TIMEOUT,
    };
    let paths = Paths {
        drop_in: broker.dropin_path().to_owned(),
        state_dir: state_dir.to_owned(),
        database: None,
    };
    let (applier, damage) = Applier::open(Box::new(RealFiles), Box::new(live), paths)?;
    match damage {
        None => Ok(applier),
        Some(damage) => Err(damage.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::reward::DeadlinePrices;

    fn env(names: &[&str]) -> BrokerEnv {
        let scenario = |name: &&str| {
            let text = format!(
                "schema = 1\nname = \"{name}\"\nsummary = \"t\"\nrss_limit_mib = 64\ndeadline_ms = 100\n\
                 [[phase]]\nname = \"p\"\nduration_s = 60\n\
                 [[phase.publish]]\nname = \"w\"\nclients = 1\nrate_hz = 20\npayload_bytes = 16\ntopic = \"a\"\n\
                 [[phase.subscribe]]\nname = \"r\"\nclients = 1\nfilter = \"a\"\n"
            );
            Arc::new(Scenario::parse(&text, "test").unwrap())
        };
        BrokerEnv::new(BrokerEnvConfig {
            mosquitto: Mosquitto::find(None).unwrap(),
            scenarios: names.iter().map(scenario).collect(),
            index: 0,
            step: Duration::from_secs(1),
            schema: Schema::Edge,
            reward: RewardKind::Deadline(DeadlinePrices::default()),
            seed: 1,
            capacity_msgs_per_s: None,
            allow_uncapped: false,
        })
        .unwrap()
    }

    #[test]
    fn the_seconds_on_the_defaults_are_no_part_of_the_first_step() {
        let mut env = env(&["a"]);
        // Episode 2 holds the defaults for three steps.
        env.reset(2).unwrap();
        let window = env.world().unwrap().load.window();
        assert!(window.seconds <= 1, "{window:?}");
    }

    #[test]
    fn a_lost_broker_does_not_change_the_episodes_load() {
        let mut env = env(&["a", "b"]);
        env.reset(0).unwrap();
        // An odd number of steps: taken for an episode it would be the other load's turn.
        env.steps = 7;
        let outcome = env.recover("lost").unwrap();
        assert_eq!((outcome.row.scenario.as_str(), env.scenario()), ("a", "a"));
        assert!(outcome.is_cut);
    }
}
