//! One trial: a fresh broker, a load with its lead-in and its scored part, and either fixed
//! settings or an `edge` process that tunes. Evaluation, demo and search are made of trials.

mod agent;
mod cores;
mod edge_program;
mod profile;
mod timeline;

pub use agent::{AgentDecision, AgentReport};
pub use edge_program::edge_program;
pub use profile::{JUDGING, Profile};
pub use timeline::{InForce, PhaseSpan, phases, steps};

use crate::broker::{BrokerError, BrokerProcess, Mosquitto, SpawnConfig, cpu_time, rss_bytes};
use crate::env::broker::spawn_config;
use crate::load::{LoadConfig, LoadGenerator, LoadResult};
use crate::scenario::Scenario;
use agent::Agent;
use anyhow::bail;
use brokertuner_core::{Settings, render};
use cores::{Cores, RestoreAffinity};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How often resident memory is sampled for the score.
pub(crate) const RSS_PERIOD: Duration = Duration::from_millis(100);
/// What a run may take beyond its own length and the last deadline: connecting, disconnecting.
const SLACK: Duration = Duration::from_secs(60);

/// Who sets the broker in a trial.
#[derive(Clone, Debug)]
pub enum Setter {
    /// These settings from the start; unwritten ones are the defaults.
    Fixed(Settings),
    /// An `edge` process with this model, entering on the defaults.
    Edge {
        /// The program.
        edge: PathBuf,
        /// The model file.
        model: PathBuf,
    },
}

/// What is tried.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The broker's program.
    pub mosquitto: Mosquitto,
    /// The load.
    pub scenario: Arc<Scenario>,
    /// Who sets the broker.
    pub setter: Setter,
    /// Seed of the load's random choices.
    pub seed: u64,
    /// Rules of the comparison.
    pub profile: Profile,
    /// Pin the broker to one core, everything else to the others: for scored runs, one at a time.
    pub pin: bool,
    /// Messages a second that the broker passes, for scenarios that ask for a multiple of it.
    pub capacity_msgs_per_s: Option<f64>,
    /// Go on without a CPU quota where none can be set; the result is marked.
    pub allow_uncapped: bool,
}

/// What came of a trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Score and detail.
    pub load: LoadResult,
    /// What the agent did; `None` with fixed settings.
    pub agent: Option<AgentReport>,
    /// The drop-in at the end.
    pub settings_conf: String,
    /// Starts of the broker beyond the first.
    pub restarts: u32,
    /// The CPU quota could not be set.
    pub is_uncapped: bool,
    /// CPU time of the broker in the scored part, of one core; `None` where the kernel does not
    /// say.
    #[serde(default)]
    pub cpu_share: Option<f64>,
    /// Resident memory at the end.
    #[serde(default)]
    pub rss_bytes_end: Option<u64>,
    /// The phases of the scored part, in order; none in results of earlier versions.
    #[serde(default)]
    pub phases: Vec<PhaseSpan>,
    /// The settings in force from the lead-in on, an entry for each change; none in results of
    /// earlier versions.
    #[serde(default)]
    pub timeline: Vec<InForce>,
}

/// What the broker took, looked at again and again.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// When the scored part was first seen, and what the process had used by then.
    from: Option<(Instant, Duration)>,
    until: Option<(Instant, Duration)>,
    pid: u32,
    /// Of processes that ended in the scored part.
    cpu_before: Duration,
    rss_bytes: Option<u64>,
}

impl Taken {
    fn look(&mut self, pid: u32, is_scored: bool) {
        let Ok(cpu) = cpu_time(pid) else { return };
        if !is_scored {
            return;
        }
        let now = Instant::now();
        if let Some((_, last)) = self.until.filter(|_| pid != self.pid) {
            // A restarted broker's clock begins at nothing.
            self.cpu_before += last;
        }
        self.pid = pid;
        self.from.get_or_insert((now, cpu));
        self.until = Some((now, cpu));
    }

    fn cpu_share(&self) -> Option<f64> {
        let ((from, cpu_from), (until, cpu_until)) = self.from.zip(self.until)?;
        let cpu = (self.cpu_before + cpu_until).saturating_sub(cpu_from);
        let wall_s = until.duration_since(from).as_secs_f64();
        (wall_s > 0.0).then(|| cpu.as_secs_f64() / wall_s)
    }
}

/// Spawns a broker; where its CPU quota cannot be set and `allow_uncapped`, without one, which is
/// answered beside it.
///
/// # Errors
/// [`BrokerError`], with the remedy in the message.
pub fn spawn(
    mosquitto: &Mosquitto,
    config: SpawnConfig,
    allow_uncapped: bool,
) -> Result<(BrokerProcess, bool), BrokerError> {
    match BrokerProcess::spawn(mosquitto, &config) {
        Err(error @ BrokerError::CpuShare { .. }) if allow_uncapped => {
            tracing::warn!("{error}; going on without the quota");
            let uncapped = SpawnConfig { cpu_share: None, ..config };
            Ok((BrokerProcess::spawn(mosquitto, &uncapped)?, true))
        }
        result => Ok((result?, false)),
    }
}

/// Messages a second that `mosquitto` passes on this machine, with a window and queue that do not
/// limit it: the unit of `rate_x_capacity`. Takes about a minute.
///
/// # Errors
/// A broker that cannot be started, or that passes nothing.
pub fn measure_capacity(mosquitto: &Mosquitto, seed: u64) -> anyhow::Result<f64> {
    let dropin = Some(crate::load::capacity::SETTINGS.to_owned());
    let broker =
        BrokerProcess::spawn(mosquitto, &SpawnConfig { dropin, ..SpawnConfig::default() })?;
    Ok(crate::load::capacity(broker.addr(), seed, None)?)
}

impl Trial {
    /// Runs it: at most its own length, the load's longest deadline and a minute.
    ///
    /// # Errors
    /// A broker, load or agent that cannot be started or ends early, or an interrupt.
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let (broker_core, _restored) = self.pin_self()?;
        let dropin = match &self.setter {
            Setter::Fixed(settings) if *settings != Settings::UNWRITTEN => {
                Some(render::render(settings).as_str().to_owned())
            }
            Setter::Fixed(_) | Setter::Edge { .. } => None,
        };
        let config = SpawnConfig { dropin, core: broker_core, ..spawn_config(&self.scenario) };
        let (broker, is_uncapped) = spawn(&self.mosquitto, config, self.allow_uncapped)?;
        let lead_in = self.profile.lead_in(self.scenario.broker.sys_interval_s);
        let load = LoadGenerator::start(LoadConfig {
            seed: self.seed,
            capacity_msgs_per_s: self.capacity_msgs_per_s,
            lead_in: Some(lead_in),
            ..LoadConfig::new(Arc::clone(&self.scenario), broker.addr())
        })?;
        // Not before the clients are connected.
        let score_begins =
            SystemTime::now() + load.scored_start().saturating_duration_since(Instant::now());
        let mut agent = match &self.setter {
            Setter::Fixed(_) => None,
            Setter::Edge { edge, model } => {
                Some(Agent::start(edge, model, &broker, &self.scenario, &self.profile)?)
            }
        };
        let taken = self.watch(&broker, &load, agent.as_mut())?;
        let load = load.join()?;
        let (agent, changes) = match agent.map(Agent::finish).transpose()? {
            Some((report, changes)) => (Some(report), changes),
            None => (None, Vec::new()),
        };
        let entered = match &self.setter {
            Setter::Fixed(settings) => *settings,
            Setter::Edge { .. } => Settings::UNWRITTEN,
        };
        let changes = changes.into_iter().map(|(at, set)| (timeline::since(score_begins, at), set));
        let entry = (-lead_in.as_secs_f64(), entered);
        Ok(Outcome {
            load,
            agent,
            settings_conf: std::fs::read_to_string(broker.dropin_path()).unwrap_or_default(),
            restarts: broker.start_count().saturating_sub(1),
            is_uncapped,
            cpu_share: taken.cpu_share(),
            rss_bytes_end: taken.rss_bytes,
            phases: phases(&self.scenario),
            timeline: steps(std::iter::once(entry).chain(changes)),
        })
    }

    /// Feeds memory samples until the load has ended; an agent that ends before is an error at
    /// once.
    fn watch(
        &self,
        broker: &BrokerProcess,
        load: &LoadGenerator,
        mut agent: Option<&mut Agent>,
    ) -> anyhow::Result<Taken> {
        let scored = load.scored_start()..load.scored_start() + self.scenario.duration();
        let end = scored.end + self.scenario.deadline_max() + SLACK;
        let mut taken = Taken::default();
        while load.is_alive() {
            if crate::broker::interrupted() {
                bail!("interrupted");
            }
            if Instant::now() > end {
                bail!("the load generator did not end in time");
            }
            if let Some(agent) = &mut agent {
                agent.check()?;
            }
            if let Ok(bytes) = rss_bytes(broker.pid()) {
                load.rss_sample(Instant::now(), bytes);
                taken.rss_bytes = Some(bytes);
            }
            taken.look(broker.pid(), scored.contains(&Instant::now()));
            std::thread::sleep(RSS_PERIOD);
        }
        Ok(taken)
    }

    /// Confines this thread, and whatever it starts, to the cores that the broker does not get.
    fn pin_self(&self) -> anyhow::Result<(Option<usize>, Option<RestoreAffinity>)> {
        if !self.pin {
            return Ok((None, None));
        }
        let allowed = Cores::allowed()?;
        let Some((broker, others)) = allowed.split() else {
            tracing::warn!("one core only: broker and load share it, and the score suffers");
            return Ok((None, None));
        };
        Ok((Some(broker), Some(RestoreAffinity::confine_to(&others, allowed)?)))
    }
}

#[cfg(test)]
mod tests;
