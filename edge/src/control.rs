//! The broker seam: find its process, make it reload or restart, ask whether it answers.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::command::{self, CommandError};
use crate::connack::{self, Connack, ConnackError, Credentials};
use crate::mqtt::ProtocolChoice;
use crate::notify;
use crate::pid::{self, PidError, PidFinder, ProcessId};
use crate::tls::Tls;

/// Longest wait for systemd's word on a unit.
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_secs(5);
const SAVE_POLL: Duration = Duration::from_millis(20);

/// Everything that applying asks of a broker; tests and trainers bring their own.
pub trait Broker: Send {
    /// Another change begins: what was asked for beside one that never came to its restart is
    /// forgotten.
    fn begin(&self) {}

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

    /// Makes `process` save its state to `database`, and returns when a newer file lies there.
    ///
    /// # Errors
    /// [`ControlError`] where no newer file came: a restart may then lose what is queued.
    fn save(&self, process: ProcessId, database: &Path) -> Result<(), ControlError>;

    /// Connects once.
    ///
    /// # Errors
    /// [`ConnackError`] where no CONNACK came.
    fn answer(&self) -> Result<Connack, ConnackError>;
}

/// Why the broker was not reloaded or restarted.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The configuration has no way to do it.
    #[error(
        "{key} = \"none\": edge may not {verb} the broker; choose another method, or {verb} it yourself"
    )]
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
    #[error(
        "cannot signal process {pid} of the broker: {errno}; run edge as root or as the broker's user, or choose another control.reload"
    )]
    Signal {
        /// The process.
        pid: i32,
        /// The system's answer.
        errno: Errno,
    },
    /// The privileged helper did not do it.
    #[error("the helper did not {verb} the broker: {source}")]
    Helper {
        /// `reload` or `restart`.
        verb: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The broker did not save its state.
    #[error("the broker did not write {} within {timeout_s} s of SIGUSR1, so a restart could lose what it holds; correct broker.database, or see its log", path.display())]
    NotSaved {
        /// The database file.
        path: PathBuf,
        /// How long was waited.
        timeout_s: u64,
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

/// Why a way can't work here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// What is wrong.
    pub found: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.found, self.remedy)
    }
}

impl Method {
    /// What keeps this way from working, as far as can be told without going it; `verb` is `reload`
    /// or `restart`. Asks systemd, for at most some seconds.
    #[must_use]
    pub fn flaw(&self, verb: &str) -> Option<Flaw> {
        let (found, remedy) = match self {
            Self::Signal | Self::None => return None,
            Self::Command(words) => {
                let program = words.first().map_or("", String::as_str);
                if command::is_there(program) {
                    return None;
                }
                let found = format!("{program} is not there, or not executable");
                (found, format!("correct control.{verb}_command"))
            }
            Self::Systemd(unit) => {
                let mut show = Command::new("systemctl");
                show.args(["show", "--property=LoadState", "--value", "--", unit]);
                match command::output(show, SYSTEMCTL_TIMEOUT).as_deref().map(str::trim) {
                    Ok("loaded") => return None,
                    Ok(state) => {
                        let found = format!("systemd has {unit} as {state}");
                        (found, "correct control.unit".into())
                    }
                    Err(error) => {
                        let other = if verb == "reload" { "\"signal\" or " } else { "" };
                        let remedy = format!(
                            "where there is no systemd, set control.{verb} to {other}\"command\""
                        );
                        (error.to_string(), remedy)
                    }
                }
            }
        };
        Some(Flaw { found: format!("control.{verb}: {found}"), remedy })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Systemd(unit) => write!(f, "systemctl, {unit}"),
            Self::Signal => f.write_str("SIGHUP"),
            Self::Command(words) => f.write_str(words.first().map_or("", String::as_str)),
            Self::None => f.write_str("nothing"),
        }
    }
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
    /// How to connect by TLS; `None`: plainly.
    pub tls: Option<Tls>,
    /// Which version of MQTT is spoken.
    pub mqtt: ProtocolChoice,
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
        notify::alive();
        let done = command::run(command, self.command_timeout);
        done.map_err(|source| ControlError::Command { verb, source })
    }
}

/// Signals the broker, and never a stranger that was given its old pid.
fn signal(process: ProcessId, signal: Signal) -> Result<(), ControlError> {
    check_alive(process)?;
    let pid = process.pid;
    kill(Pid::from_raw(pid), signal).map_err(|errno| ControlError::Signal { pid, errno })
}

fn check_alive(process: ProcessId) -> Result<(), ControlError> {
    let pid = process.pid;
    match pid::alive(pid) {
        Ok(Some(now)) if now == process => Ok(()),
        _ => Err(ControlError::Gone { pid }),
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|found| found.modified()).ok()
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
            Method::Signal => signal(process, Signal::SIGHUP),
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

    fn save(&self, process: ProcessId, database: &Path) -> Result<(), ControlError> {
        notify::alive();
        let before = modified(database);
        signal(process, Signal::SIGUSR1)?;
        let deadline = Instant::now() + self.command_timeout;
        while modified(database).is_none() || modified(database) == before {
            if Instant::now() >= deadline {
                let timeout_s = self.command_timeout.as_secs();
                return Err(ControlError::NotSaved { path: database.to_path_buf(), timeout_s });
            }
            // A broker that died has nothing left to save.
            check_alive(process)?;
            thread::sleep(SAVE_POLL);
        }
        Ok(())
    }

    fn answer(&self) -> Result<Connack, ConnackError> {
        let (login, tls) = (self.credentials.as_ref(), self.tls.as_ref());
        connack::probe(self.address, &self.client_id, login, tls, self.mqtt, self.answer_timeout)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_cannot_work_is_told_with_its_remedy() {
        let absent = Method::Command(vec!["/nonexistent/restart".into()]);
        let said = absent.flaw("restart").unwrap().to_string();
        assert!(said.starts_with("control.restart: /nonexistent/restart is not there"), "{said}");
        assert!(said.ends_with("correct control.restart_command"), "{said}");
        assert_eq!(Method::Command(vec!["sh".into()]).flaw("restart"), None);
        assert_eq!(Method::None.flaw("reload").or(Method::Signal.flaw("reload")), None);
        // With systemd or without it: nobody has such a unit.
        let unit = Method::Systemd("brokertuner-no-such.service".into());
        let flaw = unit.flaw("reload").unwrap();
        assert!(flaw.remedy.contains("control."), "{flaw}");
    }
}
