//! Where arms are measured: on a real broker, or in its twin.

use super::identity;
use crate::broker::Mosquitto;
use crate::ddpg::Agent;
use crate::export::schema_of;
use crate::load::LoadResult;
use crate::scenario::Scenario;
use crate::trial::{self, Outcome, Profile, Setter, Trial};
use crate::twin::{AgentPolicy, Calibration, FilePolicy, Play, Played};
use anyhow::Context as _;
use brokertuner_core::model::Model;
use brokertuner_core::{Settings, render};
use brokertuner_edge::policy::{ModelPolicy, Policy};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where arms are measured.
#[derive(Clone, Debug)]
pub enum Bench {
    /// A real Mosquitto under the load generator; policies run as an `edge` process.
    Broker {
        /// The broker's program.
        mosquitto: Mosquitto,
        /// The `edge` program for arms that tune.
        edge: Option<PathBuf>,
        /// Go on without a CPU quota where none can be set.
        allow_uncapped: bool,
        /// Pin broker and load to cores of their own.
        pin: bool,
    },
    /// The simulator; policies decide through the same code, without a process.
    Twin {
        /// Its broker.
        calibration: Calibration,
    },
}

/// Who sets the broker in a measurement.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Hand {
    /// These settings from the start.
    Fixed(Settings),
    /// This model, entering on the defaults.
    Model(PathBuf),
}

/// One measurement.
pub(super) struct Measurement<'a> {
    pub(super) scenario: &'a Arc<Scenario>,
    pub(super) hand: &'a Hand,
    pub(super) seed: u64,
    pub(super) profile: Profile,
    pub(super) capacity_msgs_per_s: Option<f64>,
}

impl Bench {
    /// What tells results of this bench from those of others.
    pub(super) fn identity(&self, version: &str) -> String {
        match self {
            Bench::Broker { pin, .. } => format!("{version} {pin}"),
            Bench::Twin { calibration } => {
                format!("{version} {calibration:?} {}", identity::of_this_program())
            }
        }
    }

    /// The program that decides by models, where that is not this one.
    pub(super) fn agent(&self) -> Option<&Path> {
        match self {
            Bench::Broker { edge, .. } => edge.as_deref(),
            Bench::Twin { .. } => None,
        }
    }

    /// Measures once.
    pub(super) fn measure(&self, measurement: &Measurement<'_>) -> anyhow::Result<Outcome> {
        match self {
            Bench::Broker { mosquitto, edge, allow_uncapped, pin } => {
                let setter = match measurement.hand {
                    Hand::Fixed(settings) => Setter::Fixed(*settings),
                    Hand::Model(model) => {
                        let edge = edge.clone().context("this arm needs the edge program")?;
                        Setter::Edge { edge, model: model.clone() }
                    }
                };
                let trial = Trial {
                    mosquitto: mosquitto.clone(),
                    scenario: Arc::clone(measurement.scenario),
                    setter,
                    seed: measurement.seed,
                    profile: measurement.profile,
                    pin: *pin,
                    capacity_msgs_per_s: measurement.capacity_msgs_per_s,
                    allow_uncapped: *allow_uncapped,
                };
                trial.run()
            }
            Bench::Twin { calibration } => {
                let play = Play {
                    scenario: Arc::clone(measurement.scenario),
                    calibration: *calibration,
                    capacity_msgs_per_s: measurement.capacity_msgs_per_s,
                    profile: measurement.profile,
                    seed: measurement.seed,
                };
                let played = match measurement.hand {
                    Hand::Fixed(settings) => play.fixed(settings),
                    Hand::Model(path) => play.tuned(&mut *policy(path)?),
                };
                Ok(outcome(&play, played))
            }
        }
    }
}

/// The policy of a model file or of a checkpoint, whatever its schema.
fn policy(path: &Path) -> anyhow::Result<Box<dyn Policy>> {
    let name = path.display();
    if is_checkpoint(path) {
        let agent = Agent::load(path)?;
        let schema =
            schema_of(agent.state_dim()).with_context(|| format!("{name} cannot be used"))?;
        return Ok(Box::new(AgentPolicy::new(agent, schema, path)?));
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
    let schema = Model::read(&bytes).with_context(|| format!("{name} cannot be used"))?.schema();
    let schema = schema.with_context(|| format!("{name}: unknown schema"))?;
    Ok(Box::new(FilePolicy::from(ModelPolicy::of_bytes(bytes, schema, path)?)))
}

/// Whether a file is a checkpoint by its name, not a model.
pub(crate) fn is_checkpoint(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

fn outcome(play: &Play, played: Played) -> Outcome {
    let seconds = play.scenario.duration().as_secs();
    let delivered = (played.tally.in_time + played.tally.lost_late) as f64;
    let last = played.timeline.last().map(|(_, settings)| *settings).unwrap_or_default();
    Outcome {
        load: LoadResult {
            version: crate::load::RESULT_VERSION,
            scenario: play.scenario.name.clone(),
            score: played.score,
            is_void: played.score.is_none(),
            is_complete: true,
            seconds,
            capacity_msgs_per_s: play.capacity_msgs_per_s,
            tally: played.tally,
            delivered_per_s: delivered / seconds.max(1) as f64,
            rss_bytes_max: Some(played.rss_bytes_max),
            ..LoadResult::default()
        },
        agent: None,
        settings_conf: render::render(&last).as_str().to_owned(),
        restarts: played.restarts,
        is_uncapped: false,
        cpu_share: Some(played.cpu_share),
        rss_bytes_end: None,
        phases: trial::phases(&play.scenario),
        timeline: trial::steps(played.timeline),
    }
}
