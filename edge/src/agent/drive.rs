//! The agent's timer, and the file that tells others how it goes.

use std::fmt::{self, Write as _};
use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::time::{Duration as StdDuration, Instant as StdInstant};

use brokertuner_core::pace::{self, World};
use brokertuner_core::{Duration, Instant};
use embassy_time::Timer;

use super::{Agent, Calls, Mode, Report, Request, Tick, Verdict};
use crate::clock;
use crate::fs::{self, FileError, Files, MODE_STATE, RealFiles};
use crate::sampler::Link;

/// The status file is renewed at least this often, and whenever the verdict changes.
const STATUS_AGE_MAX: StdDuration = StdDuration::from_secs(60);

/// How soon a tick that could not see the broker is tried again.
const BLIND_INTERVAL: Duration = Duration::from_secs(1);
/// How soon where it could, and only waits for `$SYS`.
const WAITING_INTERVAL: Duration = Duration::from_millis(500);

/// Ticks once per `interval`, the first time at once and sooner while it is blind, until `stop` is
/// ready or `each` breaks. Answers `calls` between two ticks, and ticks again after each.
///
/// A tick under way is brought to its end: `stop` and calls take effect after it. The loop itself
/// is core's, which the firmware runs as well.
///
/// # Errors
/// Where the system gives no timer; outside of an event loop.
pub async fn drive(
    agent: &mut Agent,
    mode: Mode,
    interval: Duration,
    stop: impl Future,
    calls: &mut Calls,
    each: impl FnMut(&Agent, &Tick) -> ControlFlow<()>,
) -> io::Result<()> {
    let stop = pin!(stop);
    let mut gateway = Gateway { agent, mode, interval, stop, calls, each };
    clock::with_timers(pace::drive(&mut gateway)).await
}

/// The loop's world: this machine, its clock, and those who ask something of the agent.
struct Gateway<'a, S, F> {
    agent: &'a mut Agent,
    mode: Mode,
    interval: Duration,
    stop: Pin<&'a mut S>,
    calls: &'a mut Calls,
    each: F,
}

impl<S: Future, F: FnMut(&Agent, &Tick) -> ControlFlow<()>> World for Gateway<'_, S, F> {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        let tick = self.agent.tick(self.mode);
        (self.each)(self.agent, &tick)?;
        let soonest = match tick.verdict {
            Verdict::Blind(_) if self.agent.sampler().link() == Link::Up => WAITING_INTERVAL,
            Verdict::Blind(_) => BLIND_INTERVAL,
            _ => Duration::MAX,
        };
        ControlFlow::Continue(self.interval.min(soonest))
    }

    async fn wait(&mut self, due: Instant) -> ControlFlow<()> {
        tokio::select! {
            () = Timer::at(due) => {}
            _ = &mut self.stop => return ControlFlow::Break(()),
            Some(request) = self.calls.recv() => match request {
                Request::Order(order, reply) => {
                    // An asker that has gone does not need to know.
                    let _ = reply.send(self.agent.obey(&order));
                }
                // Whoever gave up believes that nothing was set.
                Request::Knobs(_, reply) if reply.is_closed() => {}
                Request::Knobs(request, reply) => {
                    let _ = reply.send(self.agent.set_knobs(*request));
                }
            },
        }
        ControlFlow::Continue(())
    }
}

/// `status.json` in the state directory, for `edge status`.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    /// Of the last tick that was asked about.
    news: Option<News>,
    written: Option<(StdInstant, Option<News>)>,
}

/// What of a tick is news, as a number: figures alone are not, they change with every tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct News(u64);

impl News {
    /// At each tick, so without the strings of a report.
    fn of(agent: &Agent, tick: &Tick) -> Self {
        let mut hash = Words(DefaultHasher::new());
        let Words(hasher) = &mut hash;
        let (controller, state) = (agent.controller(), agent.applier().state());
        tick.verdict.kind().hash(hasher);
        tick.verdict.plan().map(|plan| (plan.from, plan.to)).hash(hasher);
        tick.wanted.is_some().hash(hasher);
        (controller.written(), controller.effective()).hash(hasher);
        (state.standing, state.pinned, state.scheduled.map(|it| it.id)).hash(hasher);
        agent.last.as_ref().is_some_and(|last| last.after.is_some()).hash(hasher);
        agent.policy.model().hash(hasher);
        agent.sampler().hidden().hash(hasher);
        agent.sampler().protocol().hash(hasher);
        // It takes all words.
        let _ = write!(hash, "{}", tick.verdict);
        Self(hash.0.finish())
    }
}

/// Hashes what is written into it, figures left out.
struct Words(DefaultHasher);

impl fmt::Write for Words {
    fn write_str(&mut self, words: &str) -> fmt::Result {
        words.bytes().filter(|byte| !byte.is_ascii_digit()).for_each(|byte| self.0.write_u8(byte));
        Ok(())
    }
}

impl StatusFile {
    /// The status file of a state directory.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("status.json"), news: None, written: None }
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the tick says something new, or the file has got old.
    pub fn is_due(&mut self, agent: &Agent, tick: &Tick) -> bool {
        self.news = Some(News::of(agent, tick));
        self.written.is_none_or(|(at, old)| old != self.news || at.elapsed() >= STATUS_AGE_MAX)
    }

    /// Writes the report, whole or not at all.
    ///
    /// Not synced to the disk: it is worth nothing after a power cut, and this spares the medium.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn write(&mut self, report: &Report) -> Result<(), FileError> {
        let aside = fs::aside(&self.path);
        let text = serde_json::to_vec_pretty(report).map_err(io::Error::from);
        text.and_then(|text| fs::write_new(&aside, &text, MODE_STATE).map(drop))
            .map_err(fs::at("write", &aside))?;
        RealFiles.rename(&aside, &self.path).map_err(fs::at("replace", &self.path))?;
        self.written = Some((StdInstant::now(), self.news));
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
