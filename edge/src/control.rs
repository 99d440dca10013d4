//! The broker seam: find its process, make it reload or restart, ask whether it answers.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::command::{self, CommandError};
use crate::connack::{self, Connack, ConnackError, Credentials};
use crate::pid::{self, PidError, PidFinder, ProcessId};

/// Everything that applying asks of a broker; tests and trainers bring their own.
pub trait Broker: Send {
    /// The broker's process now.
    ///
    /// # Errors
    /// [`PidError`] while there is none, or none that is known.
    fn process(&self) -> Result<ProcessId, PidError>;

    /// Makes `process` read its configuration again; returns when it was asked, not when it has.
    ///
    /// # Errors
    /// [`ControlError`]; the broker is then as it was.
    fn reload(&self, process: ProcessId) -> Result<(), ControlError>;

    /// Makes the broker end and start again; returns when that is under way or done.
    ///
    /// # Errors
    /// [`ControlError`]; the broker may then be down.
    fn restart(&self) -> Result<(), ControlError>;

    /// Connects once with MQTT 5.
    ///
    /// # Errors
    /// [`ConnackError`] where no CONNACK came.
    fn answer(&self) -> Result<Connack, ConnackError>;
}

/// Why the broker was not reloaded or restarted.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The configuration has no way to do it.
    #[error("{key} = \"none\": edge may not {verb} the broker; choose another method, or {verb} it yourself")]
    NotConfigured {
        /// The option.
        key: &'static str,
        /// `reload` or `restart`.
        verb: &'static str,
    },
    /// The configured command failed.
    #[error("the {verb} command failed: {source}")]
    Command {
        /// `reload` or `restart`.
        verb: &'static str,
        /// How.
        source: CommandError,
    },
    /// The signal could not be sent.
    #[error("cannot signal process {pid} of the broker: {errno}; run edge as root or as the broker's user, or choose another control.reload")]
    Signal {
        /// The process.
        pid: i32,
        /// The system's answer.
        errno: Errno,
    },
    /// The process is no longer the one that was looked at.
    #[error("process {pid} of the broker ended just now")]
    Gone {
        /// The process.
        pid: i32,
    },
}

/// A way to make the broker reload or restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// `systemctl reload|restart UNIT`.
    Systemd(String),
    /// SIGHUP; for reloading only.
    Signal,
    /// A program and its arguments, run without a shell.
    Command(Vec<String>),
    /// Never.
    None,
}

/// The names of [`Method`] in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MethodName {
    /// By systemctl and the unit.
    Systemd,
    /// By SIGHUP.
    Signal,
    /// By the configured command.
    Command,
    /// Not at all.
    None,
}

/// A broker on this machine.
#[derive(Debug, Clone)]
pub struct LiveBroker {
    /// Where it listens.
    pub address: SocketAddr,
    /// The client identifier of the probe.
    pub client_id: String,
    /// User and password, where it asks for them.
    pub credentials: Option<Credentials>,
    /// How its process is found.
    pub finder: PidFinder,
    /// How it is made to reload.
    pub reload: Method,
    /// How it is made to restart.
    pub restart: Method,
    /// Longest run of a reload or restart command.
    pub command_timeout: Duration,
    /// Longest wait for one CONNACK.
    pub answer_timeout: Duration,
}

impl LiveBroker {
    fn run(&self, verb: &'static str, command: Command) -> Result<(), ControlError> {
        let done = command::output(command, self.command_timeout);
        done.map(drop).map_err(|source| ControlError::Command { verb, source })
    }
}

fn systemctl(verb: &str, unit: &str) -> Command {
    let mut command = Command::new("systemctl");
    command.args(["--no-ask-password", verb, "--", unit]);
    command
}

fn configured(words: &[String]) -> Option<Command> {
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(arguments);
    Some(command)
}

impl Broker for LiveBroker {
    fn process(&self) -> Result<ProcessId, PidError> {
        self.finder.find()
    }

    fn reload(&self, process: ProcessId) -> Result<(), ControlError> {
        const REFUSED: ControlError =
            ControlError::NotConfigured { key: "control.reload", verb: "reload" };
        match &self.reload {
            Method::Systemd(unit) => self.run("reload", systemctl("reload", unit)),
            Method::Command(words) => self.run("reload", configured(words).ok_or(REFUSED)?),
            Method::None => Err(REFUSED),
            Method::Signal => {
                // Never signal a stranger that was given the broker's old pid.
                if !matches!(pid::alive(process.pid), Ok(Some(now)) if now == process) {
                    return Err(ControlError::Gone { pid: process.pid });
                }
                kill(Pid::from_raw(process.pid), Signal::SIGHUP)
                    .map_err(|errno| ControlError::Signal { pid: process.pid, errno })
            }
        }
    }

    fn restart(&self) -> Result<(), ControlError> {
        const REFUSED: ControlError =
            ControlError::NotConfigured { key: "control.restart", verb: "restart" };
        match &self.restart {
            Method::Systemd(unit) => self.run("restart", systemctl("restart", unit)),
            Method::Command(words) => self.run("restart", configured(words).ok_or(REFUSED)?),
            Method::Signal | Method::None => Err(REFUSED),
        }
    }

    fn answer(&self) -> Result<Connack, ConnackError> {
        let login = self.credentials.as_ref();
        connack::probe(self.address, &self.client_id, login, self.answer_timeout)
    }
}
