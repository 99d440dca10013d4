//! The simulated world: a broker of the twin, changed through the gateway's own controller.

use super::broker::site_values;
use super::{Environment, StepOutcome};
use crate::logs::ActionRow;
use crate::reward::{RewardKind, StepView};
use crate::scenario::Scenario;
use crate::trial::Profile;
use crate::twin::{Calibration, Config, Gateway, SLICE_US, World, is_sighted};
use anyhow::{Context as _, bail};
use brokertuner_core::controller::{Decision, Rules};
use brokertuner_core::features::{self, Schema};
use brokertuner_core::knobs::Apply;
use brokertuner_core::sample::Metrics;
use brokertuner_core::{Action, Duration, KNOB_COUNT, Settings};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use std::sync::Arc;

/// Longest time without figures, in seconds: three updates at the longest `sys_interval`.
const BLIND_S_MAX: u32 = 200;
/// Steps on the first settings before an episode's first decision: 1 to this many.
const FIRST_STEPS_MAX: u32 = 3;
/// Share of the episodes that begin on the defaults; the others begin on random settings.
const DEFAULTS_SHARE: f64 = 0.5;
/// Share of the episodes whose controller follows every wish at once, so that each action shows
/// its effect in its own step; the others have the judging profile's.
const IMPATIENT_SHARE: f64 = 0.6;

/// Where the loads of the episodes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// These, in turn.
    Scenarios(Vec<Arc<Scenario>>),
    /// Randomised sites, one an episode, from this number on.
    Sites(u64),
}

/// What an environment is made of.
#[derive(Clone, Debug)]
pub struct TwinEnvConfig {
    /// The loads.
    pub source: Source,
    /// Brokers, one drawn for each episode.
    pub calibrations: Vec<Calibration>,
    /// The decision interval in seconds.
    pub step_s: f64,
    /// The state vector.
    pub schema: Schema,
    /// What a step is worth.
    pub reward: RewardKind,
    /// Seed of all that is drawn; each episode derives its own.
    pub seed: u64,
    /// Messages a second that the first broker passes, for scenarios that ask for a multiple of it.
    pub capacity_msgs_per_s: Option<f64>,
    /// The comparison's rules, which the episodes without impatience keep.
    pub profile: Profile,
}

/// One broker of the twin and its load.
#[derive(Debug)]
pub struct TwinEnv {
    config: TwinEnvConfig,
    scenario: Arc<Scenario>,
    world: Option<(World, Gateway)>,
    metrics: Metrics,
}

impl TwinEnv {
    /// An environment; nothing is played before its first [`Environment::reset`].
    ///
    /// # Errors
    /// Where there is no scenario or no broker, or a site cannot be drawn.
    pub fn new(config: TwinEnvConfig) -> anyhow::Result<TwinEnv> {
        if config.calibrations.is_empty() {
            bail!("no broker to simulate; give at least one calibration");
        }
        let scenario = config.source.scenario(0)?;
        Ok(TwinEnv { config, scenario, world: None, metrics: Metrics::default() })
    }

    /// Lets time pass until there are figures to decide on.
    fn pass(&mut self, seconds: f64) -> anyhow::Result<Vec<f32>> {
        let (world, gateway) = self.world.as_mut().context("stepped before the first reset")?;
        world.advance(seconds);
        self.metrics = gateway.look(world);
        for _ in 0..BLIND_S_MAX {
            if is_sighted(&self.metrics) {
                break;
            }
            world.advance(1.0);
            self.metrics = gateway.look(world);
        }
        Ok(features::state(self.config.schema, &gateway.view(&self.metrics)).to_vec())
    }
}

impl Source {
    /// The load of that episode.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn scenario(&self, episode: u64) -> anyhow::Result<Arc<Scenario>> {
        match self {
            Source::Sites(first) => Ok(Arc::new(crate::sites::site(first.wrapping_add(episode))?)),
            Source::Scenarios(scenarios) if scenarios.is_empty() => {
                bail!("no scenario to train on; give at least one with --scenario")
            }
            Source::Scenarios(scenarios) => {
                let turn = usize::try_from(episode)? % scenarios.len();
                Ok(Arc::clone(&scenarios[turn]))
            }
        }
    }
}

/// A controller that follows every wish at once.
fn impatient() -> Rules {
    let instantly = Duration::from_ticks(0);
    Rules {
        dwell: instantly,
        verify_window: instantly,
        restarts_per_hour_max: 32,
        dead_band_steps: 0,
        alike_steps: u8::MAX,
        restart_gain_min: 0.0,
        worse_latency_factor: f32::INFINITY,
        worse_dropped_share: f32::INFINITY,
        clients_back_share_min: 0.0,
        back_off: instantly,
        failures_max: u8::MAX,
        ..Rules::default()
    }
}

impl Environment for TwinEnv {
    fn reset(&mut self, episode: u64) -> anyhow::Result<Vec<f32>> {
        self.scenario = self.config.source.scenario(episode)?;
        let mut rng = Pcg64Mcg::seed_from_u64(self.config.seed ^ episode.wrapping_mul(0x9e37_79b9));
        let scenario = &self.scenario;
        let calibration = Calibration::of_some_gateway(&self.config.calibrations, &mut rng);
        let rules = match rng.random_bool(IMPATIENT_SHARE) {
            true => impatient(),
            false => Rules { restarts_per_hour_max: 32, ..self.config.profile.rules(scenario) },
        };
        let site = site_values(scenario);
        let settings = match rng.random_bool(DEFAULTS_SHARE) {
            true => Settings::UNWRITTEN,
            false => {
                let action: Action = std::array::from_fn(|_| rng.random_range(-127..=127));
                Settings::decode(&action, &super::envelope(scenario))
            }
        };
        let gateway = Gateway::new(scenario, settings, rules);
        let world = World::new(Config {
            scenario: Arc::clone(scenario),
            calibration,
            site,
            settings,
            capacity_msgs_per_s: self.config.capacity_msgs_per_s,
            lead_in_s: 0,
            repeat: true,
            slice_us: SLICE_US,
            seed: rng.random(),
        });
        let steps = rng.random_range(1..=FIRST_STEPS_MAX);
        self.world = Some((world, gateway));
        let state = self.pass(self.config.step_s * f64::from(steps))?;
        // What expired meanwhile was no action of this episode.
        if let Some((world, _)) = &mut self.world {
            let _ = world.window();
        }
        Ok(state)
    }

    fn step(&mut self, action: &Action) -> anyhow::Result<StepOutcome> {
        let (world, gateway) = self.world.as_mut().context("stepped before the first reset")?;
        let wanted = Settings::decode(action, &super::envelope(&self.scenario));
        let before = *gateway.effective();
        let decision = gateway.decide(world, &self.metrics, Some(wanted));
        let options = gateway.effective().differing(&before).iter().count();
        let state = self.pass(self.config.step_s)?;
        let (world, gateway) = self.world.as_mut().context("stepped before the first reset")?;
        let score = world.window();
        let reward = self.config.reward.of(&StepView {
            score,
            metrics: &self.metrics,
            rss_limit_bytes: self.scenario.rss_limit_bytes as f64,
            changed_share: options as f64 / KNOB_COUNT as f64,
            is_failed: false,
        });
        let row = ActionRow {
            scenario: self.scenario.name.clone(),
            applied: applied(&decision),
            score,
            reward,
            delivered_per_s: f64::from(self.metrics.publish_sent_per_s.unwrap_or(0.0)),
            dropped_per_s: self.metrics.publish_dropped_per_s,
            cpu_share: self.metrics.cpu_share,
            rss_bytes: self.metrics.rss_bytes,
            settings: *gateway.effective(),
            site: gateway.envelope().site,
            ..ActionRow::default()
        };
        Ok(StepOutcome { state, reward, score, is_cut: false, row })
    }

    fn scenario(&self) -> &str {
        &self.scenario.name
    }
}

fn applied(decision: &Decision) -> &'static str {
    match decision {
        Decision::Hold(_) => "none",
        Decision::Change { apply, .. } | Decision::RollBack { apply, .. } => match apply {
            Apply::Reload => "reload",
            Apply::Restart => "restart",
        },
    }
}
