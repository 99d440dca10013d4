//! The agent's timer, and the file that tells others how it goes.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration as StdDuration, Instant as StdInstant};

use brokertuner_core::Duration;
use embassy_time::{Instant, Timer};

use super::{Agent, Mode, Report, Tick, Verdict, VerdictReport};
use crate::fs::{self, FileError, Files, RealFiles};
use crate::model::ModelReport;

/// The status file is renewed at least this often, and whenever the verdict changes.
const STATUS_AGE_MAX: StdDuration = StdDuration::from_secs(60);

/// How soon a tick that could not see the broker is tried again.
const BLIND_INTERVAL: Duration = Duration::from_secs(1);

/// Ticks once per `interval`, the first time at once and sooner while it is blind, until `stop` is
/// ready or `each` breaks.
///
/// A tick under way is brought to its end: `stop` takes effect after it.
pub async fn drive(
    agent: &mut Agent,
    mode: Mode,
    interval: Duration,
    stop: impl Future,
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
        }
    }
}

/// What is news when it changes.
type Said = (VerdictReport, Option<ModelReport>);

/// `status.json` in the state directory, for `edge status`.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    written: Option<(StdInstant, Said)>,
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
        let said = (report.verdict.clone(), report.model.clone());
        let is_news = self
            .written
            .as_ref()
            .is_none_or(|(at, before)| *before != said || at.elapsed() >= STATUS_AGE_MAX);
        if !is_news {
            return Ok(());
        }
        let aside = fs::aside(&self.path);
        let text = serde_json::to_vec_pretty(report).map_err(io::Error::from);
        text.and_then(|text| std::fs::write(&aside, text)).map_err(fs::at("write", &aside))?;
        RealFiles.rename(&aside, &self.path).map_err(fs::at("replace", &self.path))?;
        self.written = Some((StdInstant::now(), said));
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
