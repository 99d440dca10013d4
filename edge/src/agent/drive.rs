//! The agent's timer, and the file that tells others how it goes.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration as StdDuration, Instant as StdInstant};

use brokertuner_core::Duration;
use embassy_time::{Instant, Timer};

use super::{Agent, Calls, Mode, Report, Request, Tick, Verdict, VerdictReport};
use crate::fs::{self, FileError, Files, RealFiles};
use crate::model::ModelReport;
use crate::state::Standing;

/// The status file is renewed at least this often, and whenever the verdict changes.
const STATUS_AGE_MAX: StdDuration = StdDuration::from_secs(60);

/// How soon a tick that could not see the broker is tried again.
const BLIND_INTERVAL: Duration = Duration::from_secs(1);

/// Ticks once per `interval`, the first time at once and sooner while it is blind, until `stop` is
/// ready or `each` breaks. Answers `calls` between two ticks, and ticks again after each.
///
/// A tick under way is brought to its end: `stop` and calls take effect after it.
pub async fn drive(
    agent: &mut Agent,
    mode: Mode,
    interval: Duration,
    stop: impl Future,
    calls: &mut Calls,
    mut each: impl FnMut(&Agent, &Tick) -> ControlFlow<()>,
) {
    let mut stop = pin!(stop);
    loop {
        let started = Instant::now();
        let tick = agent.tick(mode);
        let is_blind = matches!(tick.verdict, Verdict::Blind(_));
        let wait = if is_blind { interval.min(BLIND_INTERVAL) } else { interval };
        if each(agent, &tick).is_break() {
            return;
        }
        tokio::select! {
            () = Timer::at(started + wait) => {}
            _ = &mut stop => return,
            Some(request) = calls.recv() => match request {
                Request::Order(order, reply) => {
                    // An asker that has gone does not need to know.
                    let _ = reply.send(agent.obey(&order));
                }
                Request::Knobs(request, reply) => {
                    let _ = reply.send(agent.set_knobs(*request));
                }
            },
        }
    }
}

/// `status.json` in the state directory, for `edge status`.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    written: Option<(StdInstant, News)>,
}

/// What of a report is news: figures alone are not, they change with every tick.
#[derive(Debug, PartialEq)]
struct News {
    verdict: VerdictReport,
    model: Option<ModelReport>,
    standing: Standing,
    /// Written and effective value of every option.
    settings: Vec<(Option<u64>, Option<u64>)>,
    is_wanted_known: bool,
    is_last_verified: bool,
    pinned: Vec<String>,
    scheduled: Option<u64>,
}

impl News {
    fn of(report: &Report) -> Self {
        let options = report.options.iter();
        Self {
            verdict: report.verdict.clone(),
            model: report.model.clone(),
            standing: report.standing,
            settings: options.clone().map(|option| (option.written, option.effective)).collect(),
            is_last_verified: report.last.as_ref().is_some_and(|last| last.after.is_some()),
            pinned: report.pinned.clone(),
            scheduled: report.scheduled,
            is_wanted_known: options.clone().any(|option| option.wanted.is_some()),
        }
    }
}

impl StatusFile {
    /// The status file of a state directory.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("status.json"), written: None }
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the report where it says something new, or the file has got old; whole or not at all.
    ///
    /// Not synced to the disk: it is worth nothing after a power cut, and this spares the medium.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn write(&mut self, report: &Report) -> Result<(), FileError> {
        let news = News::of(report);
        let is_news = self
            .written
            .as_ref()
            .is_none_or(|(at, old)| *old != news || at.elapsed() >= STATUS_AGE_MAX);
        if !is_news {
            return Ok(());
        }
        let aside = fs::aside(&self.path);
        let text = serde_json::to_vec_pretty(report).map_err(io::Error::from);
        text.and_then(|text| std::fs::write(&aside, text)).map_err(fs::at("write", &aside))?;
        RealFiles.rename(&aside, &self.path).map_err(fs::at("replace", &self.path))?;
        self.written = Some((StdInstant::now(), news));
        Ok(())
    }

    /// The last report; `None` where the agent never ran here.
    ///
    /// # Errors
    /// [`FileError`], also where the file holds something else.
    pub fn read(&self) -> Result<Option<Report>, FileError> {
        let bytes = RealFiles.read(&self.path).map_err(fs::at("read", &self.path))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let report = serde_json::from_slice(&bytes).map_err(io::Error::from);
        report.map(Some).map_err(fs::at("understand", &self.path))
    }
}
