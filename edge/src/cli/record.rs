//! `edge record`: a bounded trace of what the agent sees.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use brokertuner_core::Envelope;
use brokertuner_core::features::View;
use brokertuner_core::trace::{FRAME_BYTES_MAX, Head, Record};
use brokertuner_edge::agent::{Agent, Call, Mode, drive};
use brokertuner_edge::config::Config;
use brokertuner_edge::site::{Environment, Site};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{NO, event_loop, print_result};

/// How long and how much.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Limits {
    /// End after this time, in seconds.
    #[arg(long, value_name = "N", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    duration_s: u64,
    /// End before the file grows beyond this size, in bytes; a record takes 100 to 300.
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1024..=1 << 30))]
    bytes_max: u64,
}

/// What `edge record --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Recorded {
    report_version: u32,
    file: PathBuf,
    records: u64,
    bytes: u64,
    /// `duration`, `size` or `signal`.
    ended_by: &'static str,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, records, bytes, ended_by, .. } = self;
        writeln!(f, "{}: {records} records, {bytes} bytes, ended by {ended_by}", file.display())
    }
}

pub(super) fn record(
    config: &Config,
    file: &Path,
    limits: Limits,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let site = Site::look(config, &Environment::of_process())?;
    let interval = site.interval;
    let head = Head {
        interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
        targets: site.targets,
        envelope: site.envelope,
    };
    let mut recorder = Recorder::create(file, limits, &head)?;
    // Nothing is wanted: recording needs no model.
    let policy = |view: &View<'_>, _: &Envelope| *view.effective;
    let mut ended = Ok("signal");
    event_loop()?.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let stop = async {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        };
        let mut agent = Agent::watch(site, Box::new(policy))?;
        let calls = &mut Call::queue().1;
        drive(&mut agent, Mode::Look, interval, stop, calls, |_, tick| {
            match recorder.add(&tick.record) {
                Ok(None) => return ControlFlow::Continue(()),
                Ok(Some(limit)) => ended = Ok(limit),
                Err(error) => ended = Err(error),
            }
            ControlFlow::Break(())
        })
        .await
        .context("the control loop has no timer")
    })?;
    let ended_by = ended.and_then(|limit| recorder.file.sync_all().map(|()| limit));
    let ended_by = ended_by.with_context(|| {
        format!("cannot write {}: the records before this are whole", file.display())
    })?;
    let Recorder { records, bytes, .. } = recorder;
    let recorded = Recorded { report_version: 1, file: file.into(), records, bytes, ended_by };
    print_result(&recorded, json)?;
    Ok(if records > 0 { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

struct Recorder {
    file: File,
    limits: Limits,
    started: Instant,
    records: u64,
    bytes: u64,
}

impl Recorder {
    fn create(path: &Path, limits: Limits, head: &Head) -> anyhow::Result<Self> {
        let file = match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(anyhow!("{} exists; name a new file", path.display()));
            }
            file => file.with_context(|| format!("cannot create {}", path.display()))?,
        };
        let mut recorder = Self { file, limits, started: Instant::now(), records: 0, bytes: 0 };
        let mut buffer = [0; FRAME_BYTES_MAX];
        let length = head.write(&mut buffer)?;
        recorder
            .append(&buffer[..length])
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(recorder)
    }

    /// Adds a record; `Some` names the limit that is reached.
    fn add(&mut self, record: &Record) -> io::Result<Option<&'static str>> {
        let mut buffer = [0; FRAME_BYTES_MAX];
        let length = record.write(&mut buffer).map_err(io::Error::other)?;
        if self.bytes + length as u64 > self.limits.bytes_max {
            return Ok(Some("size"));
        }
        self.append(&buffer[..length])?;
        self.records += 1;
        let is_over = self.started.elapsed() >= Duration::from_secs(self.limits.duration_s);
        Ok(is_over.then_some("duration"))
    }

    /// Writes all of `bytes`, or nothing that a reader would stumble over.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // A disk that takes nothing may not take this either: the reader copes with a cut end.
            let _ = self.file.set_len(self.bytes);
            let _ = self.file.seek(SeekFrom::Start(self.bytes));
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}
