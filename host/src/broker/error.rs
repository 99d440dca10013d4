//! What can go wrong with a broker process.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;

/// A broker could not be found, started, capped or observed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// No executable in any of the usual places.
    #[error(
        "no Mosquitto in {looked}: install it (`apt-get install mosquitto`, `apk add mosquitto`), \
         name one with --mosquitto PATH, or let `host demo --fetch-broker` unpack one"
    )]
    NotFound {
        /// The folders that were searched.
        looked: String,
    },
    /// The executable ran, and what it printed is not Mosquitto's.
    #[error("{}: not a Mosquitto broker: `-h` printed {output:?}", path.display())]
    NotMosquitto {
        /// The executable.
        path: PathBuf,
        /// The first line of its output.
        output: String,
    },
    /// An operation of the system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, and on which file.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The broker refused to start; with a faulty configuration it exits with 3.
    #[error("the broker ended while starting ({status}); it said:\n{log}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// The ends of its standard error and of its log.
        log: String,
    },
    /// The broker runs but does not serve.
    #[error("the broker did not answer on {addr} within {timeout_ms} ms; it said:\n{log}")]
    NotReady {
        /// Where it should listen.
        addr: SocketAddr,
        /// How long it was given.
        timeout_ms: u64,
        /// The ends of its standard error and of its log.
        log: String,
    },
    /// Other programs took every port that was chosen before the broker could.
    #[error(
        "no loopback port stayed free until the broker took it, {tries} times in a row; try again"
    )]
    NoPort {
        /// Ports that were tried.
        tries: u32,
    },
    /// A supervised broker ended too often; it is left stopped until a restart is asked for.
    #[error("the broker failed to start {attempts} times in a row; it said:\n{log}")]
    GaveUp {
        /// Starts that were tried.
        attempts: u32,
        /// The ends of its standard error and of its log.
        log: String,
    },
    /// The broker is not running, so nothing can be sent to it.
    #[error("the broker is not running")]
    NotRunning,
    /// The quota on processor time cannot be set on this machine.
    #[error(
        "cpu_share {share} cannot be set: {reason}; run where cgroups are writable (as root, or in a delegated \
         cgroup), or pass --allow-uncapped for a result that is marked as uncapped"
    )]
    CpuShare {
        /// The share of one core that was asked for.
        share: f64,
        /// Why not.
        reason: String,
    },
    /// The broker cannot be pinned to the core.
    #[error(
        "the broker cannot be pinned to core {core}: {source}; name a core that this machine lets us use"
    )]
    Pin {
        /// The core that was asked for.
        core: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// The script that fetches a broker failed.
    #[error("fetching Mosquitto failed ({status}): {message}")]
    Fetch {
        /// How the script ended.
        status: ExitStatus,
        /// What it printed on standard error.
        message: String,
    },
    /// The broker's answer is not MQTT, or not what the probe may expect.
    #[error("the probe of the broker failed: {reason}")]
    Probe {
        /// What came instead.
        reason: String,
    },
}

/// Names what was tried in an [`io::Error`].
pub(super) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> BrokerError {
    let what = what.into();
    move |source| BrokerError::Io { what, source }
}
