//! Fixed settings tried on many sites of the twin, and a policy fitted to what they were worth:
//! where training begins that shall serve sites it has never seen.
//!
//! A step of DDPG says what one action did in one interval on one site. A trial says what fixed
//! settings are worth there for good, without the noise of exploration and of changes on the way,
//! and for every state that is seen on the site. What it takes is sites: with 250 of them a critic
//! chose settings on unseen ones that got 74 % of what the best of twenty gains over the defaults,
//! with 1700 of them 85 %.

mod file;
mod library;
#[cfg(test)]
mod tests;

pub use file::TrialFile;

use crate::ddpg::{Agent, Trial};
use crate::env::twin::Source;
use crate::progress::Progress;
use crate::reward::{RewardKind, StepView};
use crate::scenario::Scenario;
use crate::twin::{Calibration, Config, Gateway, SLICE_US, World, is_sighted};
use brokertuner_core::controller::Rules;
use brokertuner_core::features::{self, Schema};
use brokertuner_core::knobs::Apply;
use brokertuner_core::sample::Metrics;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Action, Envelope, KNOB_COUNT, Knob, KnobSet, Settings, quantise_action};
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seconds of a trial before anything counts: clients connect, queues fill.
const SETTLE_S: f64 = 4.0;
/// Seconds that are scored; of an absence all, to its end.
const SCORED_S: f64 = 30.0;
/// Seconds on the defaults before a trial's settings come by a restart, where that matters.
const ENTRY_S: std::ops::Range<f64> = 6.0..25.0;
/// Share of the memory limit that waits in the broker from which on it matters: what waits for
/// clean sessions weighs on the broker that was restarted (tests/semantics).
const ENTRY_STORE_MIN: f64 = 0.02;
/// By how much the resident memory may grow while it is scored, as a share of its limit: where it
/// grows more, settings are not yet worth what they are worth for good, and what follows is scored
/// instead.
const GROWTH_MAX: f64 = 0.04;
/// After so long no stretch of a trial begins, and none is longer: a few updates at the longest
/// `sys_interval`.
const TRIAL_S_MAX: f64 = 150.0;
/// Updates of `$SYS` in a trial at the least: two make a rate.
const SYS_PERIODS: f64 = 2.3;
/// States kept of a trial.
const STATES_MAX: usize = 6;
/// Time between two looks, in seconds.
const LOOK_S: std::ops::Range<f64> = 2.0..6.0;
/// Share of the first half of a site's trials that come from the library; the others are random.
const LIBRARY_SHARE: f64 = 0.7;
/// Deviation of the second half's proposals from the best so far: near, and farther.
const AROUND: [f32; 2] = [0.15, 0.4];
/// Trials of the policy itself on a site, once there is one.
const OWN_TRIALS: usize = 2;
/// Looks at the policy in the second half of the last round's updates.
const LOOKS: u64 = 6;

/// How much is tried, and how long is learnt from it.
#[derive(Clone, Debug)]
pub struct SweepConfig {
    /// The sites.
    pub source: Source,
    /// Brokers, one drawn for each site.
    pub calibrations: Vec<Calibration>,
    /// Messages a second that the first broker passes, for scenarios that ask for a multiple of it.
    pub capacity_msgs_per_s: Option<f64>,
    /// The state vector.
    pub schema: Schema,
    /// What a trial is worth, as if each of its steps were.
    pub reward: RewardKind,
    /// Options that are moved.
    pub tuned: KnobSet,
    /// Random settings that the library is chosen from.
    pub library_pool: usize,
    /// Sites that it is chosen by.
    pub library_sites: u64,
    /// Rounds: sites, then updates; from the second one on the policy's own proposals are tried.
    pub rounds: u32,
    /// Sites of a round.
    pub sites: u64,
    /// Settings tried on each.
    pub tries: usize,
    /// Updates after each round.
    pub updates: u64,
    /// Seed of all that is drawn.
    pub seed: u64,
}

/// What a round showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Swept {
    /// Trials.
    pub trials: usize,
    /// Mean reward of the defaults.
    pub default_mean: f64,
    /// Mean over the sites of the best that was tried.
    pub best_mean: f64,
}

/// One action in the actor's units.
type Output = [f32; KNOB_COUNT];

/// What was tried on a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tried {
    states: Vec<Vec<f32>>,
    output: Output,
    reward: f64,
    /// So much waits for clean sessions that a restart carries on with it.
    is_loaded: bool,
}

/// What a gateway sees of a trial.
struct Eyes {
    gateway: Gateway,
    schema: Schema,
    states: Vec<Vec<f32>>,
}

impl Eyes {
    fn new(site: &Site, schema: Schema) -> Eyes {
        let gateway = Gateway::new(&site.whole, Settings::UNWRITTEN, Rules::default());
        Eyes { gateway, schema, states: Vec::new() }
    }

    /// Looks now and then for so long, and remembers what it sees; what was measured last.
    fn watch(&mut self, world: &mut World, seconds: f64, rng: &mut Pcg64Mcg) -> Metrics {
        let until_s = world.now_s() + seconds;
        let mut metrics = self.gateway.look(world);
        while world.now_s() < until_s {
            world.advance(rng.random_range(LOOK_S));
            metrics = self.gateway.look(world);
            if is_sighted(&metrics) {
                self.states
                    .push(features::state(self.schema, &self.gateway.view(&metrics)).to_vec());
            }
        }
        metrics
    }
}

/// A site to try settings on: one phase of a load that goes on for ever, and a broker.
#[derive(Clone, Debug)]
struct Site {
    scenario: Arc<Scenario>,
    /// The load that the phase is of: a gateway is told the shortest deadline of all its phases.
    whole: Arc<Scenario>,
    calibration: Calibration,
}

/// Tries settings and fits `agent` to what they were worth, round by round. `score` says how good a
/// policy is on sites that it has not seen, `after_round` is told of each round and of the score of
/// what was learnt; `is_interrupted` ends it between two pieces of work, with what was learnt until
/// then. Trials go to `file` and are taken from there: with the same agent and configuration an
/// interrupted sweep goes on and comes to the same.
///
/// # Errors
/// A site that cannot be drawn, what does not fit the agent, a file that cannot be written, or what
/// `score` and `after_round` say.
pub fn sweep(
    agent: &mut Agent,
    config: &SweepConfig,
    file: &TrialFile,
    is_interrupted: fn() -> bool,
    score: &dyn Fn(&Agent) -> anyhow::Result<f64>,
    after_round: &mut dyn FnMut(u32, &Swept, f64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if config.rounds == 0 {
        return Ok(());
    }
    let chosen = file.library(|| {
        let chosen = library::choose(config, is_interrupted)?;
        Ok((!is_interrupted()).then_some(chosen))
    })?;
    let Some(library) = chosen else { return Ok(()) };
    for round in 0..config.rounds {
        let own = (round > 0).then_some(&*agent);
        let Some(found) = try_sites(config, round, (&library, own), file, is_interrupted)? else {
            return Ok(());
        };
        let swept = summary(&found);
        for tried in found {
            let lesson = |tried: Tried| Trial {
                value: narrow(agent.hyper().value_of(tried.reward)),
                action: tried.output.to_vec(),
                states: tried.states,
            };
            let trials: Vec<Trial> = tried.into_iter().map(lesson).collect();
            agent.teach(&trials)?;
        }
        if let Some(score) = learn(agent, config, round, is_interrupted, score)? {
            after_round(round, &swept, score)?;
        }
    }
    Ok(())
}

/// Fits `agent` to its lessons, and leaves it with the best of the averaged policies that were
/// looked at (the last one of equals), whose score is the answer: `None` where it was interrupted
/// before the first look. Averaged and chosen, because the latest policy gains and loses single
/// loads from one thousand updates to the next.
fn learn(
    agent: &mut Agent,
    config: &SweepConfig,
    round: u32,
    is_interrupted: fn() -> bool,
    score: &dyn Fn(&Agent) -> anyhow::Result<f64>,
) -> anyhow::Result<Option<f64>> {
    let looks = if round + 1 == config.rounds { LOOKS } else { 1 };
    let progress = Progress::new(config.updates);
    let mut best: Option<(f64, Agent)> = None;
    for update in 0..config.updates {
        if update % 100 == 0 {
            progress.set(update, format!("learning from round {} of {}", round + 1, config.rounds));
            if is_interrupted() {
                break;
            }
        }
        let _ = agent.update();
        if is_look(update + 1, config.updates, looks) {
            let averaged = agent.averaged();
            let found = score(&averaged)?;
            tracing::info!(updates = update + 1, score = format!("{found:.4}"), "looked");
            if best.as_ref().is_none_or(|(score, _)| found >= *score) {
                best = Some((found, averaged));
            }
        }
    }
    Ok(best.map(|(score, averaged)| {
        *agent = averaged;
        score
    }))
}

/// Whether one of so many looks, spread evenly over the second half and the last at the end, comes
/// after so many updates of `all`.
fn is_look(updates: u64, all: u64, looks: u64) -> bool {
    let left = all - updates;
    let apart = (all / 2 / looks).max(1);
    left.is_multiple_of(apart) && left / apart < looks
}

/// Tries settings on the sites of a round; `None` where that was interrupted.
fn try_sites(
    config: &SweepConfig,
    round: u32,
    (library, own): (&[Output], Option<&Agent>),
    file: &TrialFile,
    is_interrupted: fn() -> bool,
) -> anyhow::Result<Option<Vec<Vec<Tried>>>> {
    let progress = Progress::new(config.sites);
    let done = AtomicU64::new(0);
    let found = (0..config.sites)
        .into_par_iter()
        .map(|index| {
            if is_interrupted() {
                return Ok(Vec::new());
            }
            let number = u64::from(round) * config.sites + index;
            let tried = file.site(number, || {
                let mut rng = config.rng(number);
                let site = config.site(number, &mut rng)?;
                Ok(try_site(config, &site, library, own, &mut rng))
            })?;
            let count = done.fetch_add(1, Ordering::Relaxed) + 1;
            progress.set(count, format!("sites of round {} of {}", round + 1, config.rounds));
            Ok(tried)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok((!is_interrupted()).then_some(found))
}

/// The defaults, what the policy wants, the library's, random ones, and some around the best.
fn try_site(
    config: &SweepConfig,
    site: &Site,
    library: &[Output],
    own: Option<&Agent>,
    rng: &mut Pcg64Mcg,
) -> Vec<Tried> {
    let mut tried: Vec<Tried> = Vec::new();
    for number in 0..config.tries {
        let best = tried.iter().max_by(|a, b| a.reward.total_cmp(&b.reward));
        let output = match (best, own) {
            (None, _) => None,
            (Some(_), Some(agent)) if number <= OWN_TRIALS => {
                let seen = tried.last().and_then(|last| last.states.choose(rng));
                seen.map(|state| wish(agent, state))
            }
            (Some(best), _) if 2 * number >= config.tries => Some(around(&best.output, rng)),
            _ if rng.random_bool(LIBRARY_SHARE) => library.choose(rng).copied(),
            _ => Some(std::array::from_fn(|_| rng.random_range(-1.0..=1.0))),
        };
        let enters = output.is_some() && tried.first().is_some_and(|first| first.is_loaded);
        let found = site.play(config, output, enters, rng);
        match found {
            Some(found) => tried.push(found),
            // Nothing is expected there, or never seen.
            None if number == 0 => return tried,
            None => {}
        }
    }
    tried
}

fn wish(agent: &Agent, state: &[f32]) -> Output {
    let wished = agent.act(state);
    std::array::from_fn(|knob| *wished.get(knob).unwrap_or(&0.0))
}

fn around(best: &Output, rng: &mut Pcg64Mcg) -> Output {
    let deviation = AROUND[rng.random_range(0..AROUND.len())];
    // The sum of twelve is nearly normal, of deviation 1.
    let mut normal = || (0..12).map(|_| rng.random_range(-0.5..=0.5)).sum::<f32>();
    best.map(|value| (value + deviation * normal()).clamp(-1.0, 1.0))
}

impl SweepConfig {
    fn rng(&self, index: u64) -> Pcg64Mcg {
        Pcg64Mcg::seed_from_u64(self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    fn site(&self, index: u64, rng: &mut Pcg64Mcg) -> anyhow::Result<Site> {
        let whole = self.source.scenario(index)?;
        let mut scenario = Scenario::clone(&*whole);
        let phase = rng.random_range(0..scenario.phases.len());
        scenario.phases = vec![scenario.phases.swap_remove(phase)];
        let calibration = Calibration::of_some_gateway(&self.calibrations, rng);
        Ok(Site { scenario: Arc::new(scenario), whole, calibration })
    }

    /// What is held stays as the site has it, in actions as in the states that end with what is in
    /// force: else critics would tell a site's own settings from the same ones proposed.
    fn only_tuned(&self, mut action: Action, site: &SiteValues) -> Action {
        let held = Settings::UNWRITTEN.encode(site);
        for (knob, (raw, held)) in Knob::ALL.into_iter().zip(action.iter_mut().zip(held)) {
            if !self.tuned.contains(knob) {
                *raw = held;
            }
        }
        action
    }
}

impl Site {
    /// Plays the site with the settings of `output`, or with the defaults; `None` where nothing was
    /// expected or nothing seen. `enters_on_defaults`: the settings come by a restart, some time
    /// after the defaults.
    fn play(
        &self,
        config: &SweepConfig,
        output: Option<Output>,
        enters_on_defaults: bool,
        rng: &mut Pcg64Mcg,
    ) -> Option<Tried> {
        let mut eyes = Eyes::new(self, config.schema);
        let envelope = Envelope { opted_in: config.tuned, ..*eyes.gateway.envelope() };
        let action = match output {
            Some(output) => config.only_tuned(quantise_action(&output), &envelope.site),
            None => Settings::UNWRITTEN.encode(&envelope.site),
        };
        let settings = output.map_or(Settings::UNWRITTEN, |_| Settings::decode(&action, &envelope));
        let mut world = World::new(Config {
            scenario: Arc::clone(&self.scenario),
            calibration: self.calibration,
            site: envelope.site,
            settings: if enters_on_defaults { Settings::UNWRITTEN } else { settings },
            capacity_msgs_per_s: config.capacity_msgs_per_s,
            lead_in_s: 0,
            repeat: true,
            slice_us: SLICE_US,
            seed: rng.random(),
        });
        if enters_on_defaults {
            let entry_s = rng.random_range(ENTRY_S);
            let _ = eyes.watch(&mut world, entry_s, rng);
            world.apply(&settings, Apply::Restart);
        }
        eyes.gateway = Gateway::new(&self.whole, settings, Rules::default());
        world.advance(SETTLE_S);
        let _ = world.window();
        let mut metrics = eyes.gateway.look(&world);
        let limit_bytes = self.scenario.rss_limit_bytes as f64;
        let mut score = None;
        while world.now_s() < TRIAL_S_MAX {
            let rss_bytes = world.rss_bytes();
            metrics = eyes.watch(&mut world, self.length_s(), rng);
            score = world.window();
            let grown_bytes = world.rss_bytes() as f64 - rss_bytes as f64;
            if self.has_absence() || grown_bytes <= GROWTH_MAX * limit_bytes {
                break;
            }
        }
        let reward = config.reward.of(&StepView {
            score,
            metrics: &metrics,
            rss_limit_bytes: limit_bytes,
            changed_share: 0.0,
            is_failed: false,
        })?;
        let stored_bytes = metrics.store_bytes.map_or(0.0, f64::from);
        let is_loaded = stored_bytes > ENTRY_STORE_MIN * limit_bytes
            && self.scenario.broker.persistence
            && !self.has_absence();
        let mut states = eyes.states;
        while states.len() > STATES_MAX {
            states.swap_remove(rng.random_range(0..states.len()));
        }
        let output = action.map(|raw| f32::from(raw) / 127.0);
        (!states.is_empty()).then_some(Tried { states, output, reward, is_loaded })
    }

    fn has_absence(&self) -> bool {
        let groups = self.scenario.phases.iter().flat_map(|phase| &phase.subscribe);
        groups.into_iter().any(|group| group.offline.is_some())
    }

    /// Seconds until a trial is looked at: of settings with steady memory all.
    fn length_s(&self) -> f64 {
        let whole_s = self.scenario.duration().as_secs_f64();
        let scored_s = if self.has_absence() { whole_s } else { whole_s.min(SCORED_S) };
        let seen_s = SYS_PERIODS * f64::from(self.scenario.broker.sys_interval_s + 1) + SETTLE_S;
        scored_s.max(seen_s).min(TRIAL_S_MAX)
    }
}

fn summary(found: &[Vec<Tried>]) -> Swept {
    let sites = found.iter().filter(|tried| !tried.is_empty());
    let count = sites.clone().count().max(1) as f64;
    let best =
        |tried: &[Tried]| tried.iter().map(|one| one.reward).fold(f64::NEG_INFINITY, f64::max);
    Swept {
        trials: found.iter().map(Vec::len).sum(),
        default_mean: sites.clone().map(|tried| tried[0].reward).sum::<f64>() / count,
        best_mean: sites.map(|tried| best(tried)).sum::<f64>() / count,
    }
}

#[allow(clippy::cast_possible_truncation, reason = "values are of order ten")]
fn narrow(value: f64) -> f32 {
    value as f32
}
