//! The loop of three calls: sample, decide (core's controller), apply.
//!
//! [`Agent::tick`] is one decision; the gateway calls it from its timer, a trainer from its own
//! loop.

mod account;
mod calls;
mod drive;
mod knobs;
mod obey;
mod report;
mod tick;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use brokertuner_core::controller::{Controller, Health};
use brokertuner_core::features::Features;
use brokertuner_core::sample::{Meter, Metrics, Sample};
use brokertuner_core::{Duration, Instant, Settings};

pub use calls::{Call, Calls, Request};
pub use drive::{StatusFile, drive};
pub(crate) use report::NO_READ_BACK;
pub use report::{BrokerReport, OptionReport, Report, VerdictReport};
pub use tick::{Mode, Tick, Verdict};

use self::account::CutShort;
use crate::apply::{Applier, ApplyError, Recovery};
use crate::clock::{self, Clocks};
use crate::fs::{self, FileError};
use crate::journal::{Entry, Journal};
use crate::orders::{START_LOOP_S, START_LOOP_STARTS};
use crate::pid::ProcessId;
use crate::policy::Policy;
use crate::sampler::Sampler;
use crate::site::Site;
use crate::state::{Before, StateError};

/// What was seen before a change says nothing of a load so much later.
const BEFORE_AGE_MAX_S: u64 = 3600;

/// Why the agent can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory can't be used.
    #[error("agent.state_dir: {0}")]
    StateDir(#[from] FileError),
    /// Another agent works there.
    #[error("agent.state_dir: {}: another edge is at work on this broker; stop it first", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// Its memory.
    #[error("agent.state_dir: {0}")]
    State(#[from] StateError),
    /// No thread for the sampler.
    #[error("cannot start the sampler: {0}")]
    Sampler(std::io::Error),
}

/// Keeps a second agent from the same state directory for as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the directory where it is missing, and locks it.
    ///
    /// # Errors
    /// [`StartError::StateDir`] and [`StartError::Busy`].
    pub fn take(dir: &Path) -> Result<Self, StartError> {
        std::fs::create_dir_all(dir).map_err(fs::at("make", dir))?;
        let path = dir.join("lock");
        let file = fs::open_own(&path).map_err(fs::at("create", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StartError::Busy { path: dir.into() }),
            Err(TryLockError::Error(error)) => Err(fs::at("lock", &path)(error).into()),
        }
    }
}

impl Lock {
    /// Whether an agent is at work in this state directory.
    #[must_use]
    pub fn is_taken(dir: &Path) -> bool {
        let file = File::open(dir.join("lock"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// One broker's agent.
pub struct Agent {
    site: Site,
    sampler: Sampler,
    applier: Applier,
    controller: Controller,
    meter: Meter,
    metrics: Metrics,
    policy: Box<dyn Policy>,
    wanted: Option<Settings>,
    process: Option<ProcessId>,
    /// Someone else's hand is on the drop-in, and how that was said.
    hands_off: Option<String>,
    sample: Option<Sample>,
    /// When the broker's other files were looked at last.
    looked_around: Instant,
    /// By what the clock on the wall was ahead of the loop's at the last tick, in seconds.
    wall_ahead_s: i64,
    /// Only the agent that acts keeps one.
    journal: Option<Journal>,
    is_journal_broken: bool,
    /// The last change, and what was seen of it.
    last: Option<Entry>,
    /// The state vector of the last change.
    reference: Option<Features>,
    /// Nothing could be changed at the last tick: what was watched then begins anew.
    was_restrained: bool,
    /// Why a change that was cut short, or failed, could not be ended. While the memory holds its
    /// intent nothing else is changed; only a person's order, or a new start, tries again.
    unended: Option<String>,
    start: Option<Start>,
    _lock: Option<Lock>,
}

/// This start of the agent.
#[derive(Debug, Clone, Copy)]
struct Start {
    at: Instant,
    /// Starts without an orderly end, this one among them, where they make a loop.
    loop_of: Option<usize>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("site", &self.site)
            .field("controller", &self.controller)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Takes a broker over: locks the state directory, starts to sample. What a crash cut short is
    /// ended at the first tick. An agent that ends in good order says so by [`Agent::end`].
    ///
    /// # Errors
    /// [`StartError`]. A broker that is not there yet is no error.
    pub fn start(site: Site, policy: Box<dyn Policy>) -> Result<Self, StartError> {
        let lock = Lock::take(&site.paths.state_dir)?;
        let mut agent = Self::open(site, policy)?;
        agent._lock = Some(lock);
        let journal = Journal::in_dir(&agent.site.paths.state_dir);
        agent.last = journal.last();
        // A memory that was lost does not give a number twice.
        agent.applier.number_after(journal.highest());
        agent.journal = Some(journal);
        agent.note_start()?;
        agent.note_refused_model();
        if agent.applier.state().intent.is_none()
            && let Err(error) = agent.applier.recover()
        {
            tracing::warn!(%error, "What a crash left beside the drop-in could not be removed.");
        }
        agent.recall();
        Ok(agent)
    }

    /// Ends in good order: this start is no part of a loop. Whoever only drops the agent has failed.
    pub fn end(mut self) {
        if self.start.is_none_or(|start| start.loop_of.is_some()) {
            return;
        }
        let forgotten = self.applier.remember(|state| {
            state.starts_unix_s.pop();
        });
        if let Err(error) = forgotten {
            tracing::debug!(%error, "That the agent ended in good order could not be noted.");
        }
    }

    /// Counts this start, which an orderly end takes back.
    fn note_start(&mut self) -> Result<(), FileError> {
        let mut starts = 0;
        self.applier.remember(|state| starts = state.note_start(Clocks::now(), START_LOOP_S))?;
        let loop_of = (starts >= START_LOOP_STARTS).then_some(starts);
        self.start = Some(Start { at: clock::now(), loop_of });
        Ok(())
    }

    /// Ends what was cut short. Where that fails, nothing is changed until a person orders it: each
    /// try may cost the clients a restart.
    fn recover(&mut self) -> Result<(), ApplyError> {
        let cut = CutShort::of(self.applier.state());
        let ended = self.applier.recover();
        if let Some(cut) = cut {
            self.note_cut_short(&cut, &ended);
        }
        self.unended = ended.as_ref().err().map(ToString::to_string);
        self.recall();
        if let Err(error) = &ended {
            tracing::error!(%error, "A change that was cut short could not be ended.");
        }
        match ended? {
            Recovery::Clean => {}
            Recovery::NothingDone => {
                tracing::warn!("A change was cut short before it began; nothing was changed.");
            }
            Recovery::Finished(settings) => {
                tracing::warn!(?settings, "A change was cut short; it was brought to its end.");
            }
            Recovery::TakenBack(settings) => {
                tracing::warn!(
                    ?settings,
                    "A change was cut short; the settings of before are back."
                );
            }
            Recovery::EditedByHand => {
                tracing::warn!(drop_in = %self.applier.drop_in().display(), "A change was cut short, and someone edited the drop-in since.");
            }
        }
        Ok(())
    }

    /// As [`Agent::start`], but changes nothing: for looking only.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn watch(site: Site, policy: Box<dyn Policy>) -> Result<Self, StartError> {
        Self::open(site, policy)
    }

    fn open(site: Site, policy: Box<dyn Policy>) -> Result<Self, StartError> {
        let (applier, damage) = site.open_applier()?;
        let sampler = Sampler::start(site.sampler_options(), site.broker.finder.clone());
        let sampler = sampler.map_err(StartError::Sampler)?;
        let agent = Self::with_parts(site, sampler, applier, policy);
        if let Some(damage) = &damage {
            tracing::error!(%damage, "The agent's memory is lost.");
        }
        Ok(agent)
    }

    /// An agent of parts that the caller made: for trainers and tests. Takes no lock.
    #[must_use]
    pub fn with_parts(
        site: Site,
        sampler: Sampler,
        applier: Applier,
        policy: Box<dyn Policy>,
    ) -> Self {
        let written = applier.written().ok().flatten().unwrap_or_default();
        let controller = Controller::new(site.rules, written);
        let mut agent = Self {
            site,
            sampler,
            applier,
            controller,
            meter: Meter::default(),
            metrics: Metrics::default(),
            policy,
            wanted: None,
            process: None,
            hands_off: None,
            sample: None,
            looked_around: clock::now(),
            wall_ahead_s: clock::wall_ahead_s(),
            journal: None,
            is_journal_broken: false,
            last: None,
            reference: None,
            was_restrained: false,
            unended: None,
            start: None,
            _lock: None,
        };
        agent.recall();
        agent
    }

    /// Hands the controller what the memory holds.
    fn recall(&mut self) {
        let now = Clocks::now();
        let state = self.applier.state().followed(now);
        let ages: Vec<Duration> = state.restart_ages_s().map(Duration::from_secs).collect();
        let failures = u8::try_from(state.failures).unwrap_or(u8::MAX);
        let written = self.applier.written().ok().flatten().unwrap_or_default();
        let effective = state.effective.map_or(written, |effective| effective.settings);
        let mut controller = Controller::new(self.site.rules, written);
        controller.found(written, effective);
        controller.recall(clock::now(), &ages, failures);
        if let Some(scheduled) = state.scheduled {
            controller.request(scheduled.settings);
        }
        if state.good != state.written || state.undoing.failures > 0 {
            let is_young =
                |before: &Before| now.unix_s.abs_diff(before.at_unix_s) <= BEFORE_AGE_MAX_S;
            let serving = Health { is_serving: true, ..Health::default() };
            let before = state.before.filter(is_young).map_or(serving, |before| before.health);
            controller.watch_again(clock::now(), state.good.unwrap_or_default(), before);
            controller.undo_again(state.undoing);
        }
        self.controller = controller;
    }

    /// What the agent knows of its surroundings.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The sampler.
    #[must_use]
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The applier.
    #[must_use]
    pub fn applier(&self) -> &Applier {
        &self.applier
    }

    /// The controller.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// The metrics of the last tick.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
