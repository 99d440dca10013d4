//! Waiting until the broker is really ready: its process, its port, a CONNACK, within a time limit.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::connack::{Connack, ConnackError};
use crate::control::Broker;
use crate::notify;
use crate::pid::{PidError, ProcessId};

/// Default limit: what a large database takes to load, and design.md's figure.
pub const READY_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_FIRST: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(200);

/// A broker that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Its process.
    pub process: ProcessId,
    /// Its answer; limits are shown only where [`Connack::accepted`].
    pub connack: Connack,
}

/// What was last seen of a broker that did not become ready.
#[derive(Debug)]
pub enum Missing {
    /// Its process is not known.
    Process(PidError),
    /// The old process is still there: the restart did not happen.
    OldProcess(ProcessId),
    /// The process ended while it was asked: whose answer came is not known.
    Replaced(ProcessId),
    /// No CONNACK.
    Answer(ConnackError),
    /// A CONNACK that says it can't serve now.
    Unavailable(u8),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(error) => error.fmt(f),
            Self::OldProcess(process) => {
                write!(f, "process {} still runs: it was never restarted", process.pid)
            }
            Self::Replaced(process) => {
                write!(f, "process {} ended while it was asked", process.pid)
            }
            Self::Answer(error) => error.fmt(f),
            Self::Unavailable(reason) => write!(f, "it answers CONNECT with reason {reason:#04x}"),
        }
    }
}

/// Looks once.
///
/// # Errors
/// [`Missing`]: what keeps the broker from being ready.
pub fn look(broker: &dyn Broker, not: Option<ProcessId>) -> Result<Ready, Missing> {
    let process = broker.process().map_err(Missing::Process)?;
    if not == Some(process) {
        return Err(Missing::OldProcess(process));
    }
    let connack = broker.answer().map_err(Missing::Answer)?;
    if broker.process().ok() != Some(process) {
        return Err(Missing::Replaced(process));
    }
    if connack.accepted() || connack.denied() {
        Ok(Ready { process, connack })
    } else {
        Err(Missing::Unavailable(connack.reason))
    }
}

/// Looks until the broker is ready, at least once, at most for `timeout` and one look.
///
/// `not`: the process that a restart is to replace; `None` where any will do.
///
/// # Errors
/// The [`Missing`] of the last look.
pub fn wait(
    broker: &dyn Broker,
    not: Option<ProcessId>,
    timeout: Duration,
) -> Result<Ready, Missing> {
    notify::alive();
    let deadline = Instant::now() + timeout;
    let mut pause = POLL_FIRST;
    loop {
        let missing = match look(broker, not) {
            Ok(ready) => return Ok(ready),
            Err(missing) => missing,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(missing);
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(POLL_MAX);
    }
}
