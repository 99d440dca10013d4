//! Which process is the broker, and is it still the same one?
//!
//! A pid alone is no identity: the kernel reuses it. A process is known by pid *and* start time.

mod listener;

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use brokertuner_core::sample::ProcSample;
use procfs::ProcError;
use serde::{Deserialize, Serialize};

use crate::command;
use crate::helper::Client;
use crate::sampler::{read_process, with_stat};
pub use listener::{Holder, mosquittos};

/// The environment variable that may name the broker's pid.
pub const PID_VARIABLE: &str = "MOSQUITTO_PID";
/// How much younger than its pid file a process may look: clock ticks and whole boot seconds.
const PID_FILE_SLACK: Duration = Duration::from_secs(3);
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_secs(5);

/// One process, told apart from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks after boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

/// Where the broker's pid comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidSource {
    /// The owner of the port; where that may not be seen, what configured pid, environment, pid
    /// file and systemd agree on.
    #[default]
    Auto,
    /// `pid.pid` of the configuration.
    Config,
    /// The environment variable `MOSQUITTO_PID`.
    Env,
    /// The pid file that the broker writes.
    File,
    /// `MainPID` of the systemd unit.
    Systemd,
    /// The owner of the listening socket.
    Listener,
}

/// Why the broker's process is not known; the messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum PidError {
    /// The pid names no living process.
    #[error(
        "no process {pid} is running, as {said_by} says it should; start the broker, or correct {said_by}"
    )]
    Gone {
        /// The pid that was named.
        pid: i32,
        /// Who named it.
        said_by: String,
    },
    /// The pid file is older than the process that now has its pid.
    #[error("{}: process {pid} is younger than the file, so the pid was reused; the broker is gone", path.display())]
    Reused {
        /// The pid file.
        path: PathBuf,
        /// Its pid.
        pid: i32,
    },
    /// The process listens nowhere.
    #[error(
        "{said_by} names process {pid}, which listens on no port: it is not the broker; correct {said_by}, or choose another pid.source"
    )]
    Stranger {
        /// The pid that was named.
        pid: i32,
        /// Who named it.
        said_by: String,
    },
    /// No pid in a place that was to hold one.
    #[error("{said_by} holds no process id ({found:?})")]
    NotAPid {
        /// Who was asked.
        said_by: String,
        /// What stood there.
        found: String,
    },
    /// The source that the configuration asks for was not given.
    #[error("{said_by} is not set; set it, or choose another pid.source")]
    Unset {
        /// What is missing.
        said_by: &'static str,
    },
    /// The pid file can't be read.
    #[error("cannot read the pid file {}: {source}; set pid.pid_file to the pid_file of mosquitto.conf", path.display())]
    File {
        /// The pid file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// systemd doesn't know.
    #[error(
        "systemd names no main process for unit {unit}: {reason}; set pid.unit, or choose another pid.source"
    )]
    Systemd {
        /// The unit.
        unit: String,
        /// What systemctl said.
        reason: String,
    },
    /// No process was found behind the port.
    #[error("no process listens on port {port}: start the broker, or correct broker.port")]
    NobodyListens {
        /// The port.
        port: u16,
    },
    /// Something listens, but its process may not be looked at.
    #[error(
        "something listens on port {port}, but its process is hidden (another user's, or in a container){running}; run edge as root, as the broker's user or in the broker's container, use the helper, or set pid.pid_file"
    )]
    Hidden {
        /// The port.
        port: u16,
        /// Brokers that can be seen, in words.
        running: String,
    },
    /// What listens passes connections on.
    #[error(
        "port {port} is served by {name} (process {pid}), which passes connections on: the broker's own process is hidden; run edge where that is seen, or name it by pid.source = \"file\" or \"config\""
    )]
    Proxy {
        /// The port.
        port: u16,
        /// The program.
        name: String,
        /// Its process.
        pid: i32,
    },
    /// More than one process could be the broker.
    #[error(
        "it is not clear which process is the broker on port {port}: {found}; name it by pid.source and what belongs to it"
    )]
    Ambiguous {
        /// The port.
        port: u16,
        /// Those that it could be.
        found: String,
    },
    /// The helper doesn't know either.
    #[error(transparent)]
    Helper {
        /// Its answer.
        source: std::io::Error,
    },
    /// `/proc` could not be read.
    #[error("cannot read /proc: {source}")]
    Proc {
        /// procfs's answer.
        #[from]
        source: ProcError,
    },
    /// What it says of a process is not understood.
    #[error("cannot understand /proc: {source}")]
    Stat {
        /// What is wrong.
        #[from]
        source: io::Error,
    },
}

impl PidError {
    /// A broker serves, but which process it is can't be known here.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        matches!(self, Self::Hidden { .. } | Self::Proxy { .. } | Self::Ambiguous { .. })
    }

    /// The broker has ended, as far as can be told: not merely hidden from whoever looks.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::Reused { .. } | Self::NobodyListens { .. } => true,
            // Mosquitto removes it when it ends.
            Self::File { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// What is needed to find the broker's process.
#[derive(Debug, Clone)]
pub struct PidFinder {
    /// Which source to ask.
    pub source: PidSource,
    /// The configured pid.
    pub pid: Option<i32>,
    /// The pid of the environment, read once at the start.
    pub env: Option<String>,
    /// The broker's pid file.
    pub pid_file: Option<PathBuf>,
    /// The systemd unit.
    pub unit: Option<String>,
    /// The broker's address; its port serves [`PidSource::Listener`].
    pub address: SocketAddr,
    /// Asked where this process may not see the broker's.
    pub helper: Option<Client>,
}

impl PidFinder {
    /// Finds only by the owner of the listening socket at `address`.
    #[must_use]
    pub fn listener(address: SocketAddr) -> Self {
        let source = PidSource::Listener;
        Self { source, pid: None, env: None, pid_file: None, unit: None, address, helper: None }
    }

    /// Finds by the pid file that the broker writes.
    #[must_use]
    pub fn pid_file(path: &Path, address: SocketAddr) -> Self {
        let pid_file = Some(path.to_path_buf());
        Self { source: PidSource::File, pid_file, ..Self::listener(address) }
    }

    /// The broker's process now.
    ///
    /// # Errors
    /// [`PidError`]; with [`PidSource::Auto`] that of the last source (the socket) where none
    /// knows.
    pub fn find(&self) -> Result<ProcessId, PidError> {
        self.find_here().or_else(|error| match &self.helper {
            Some(helper) => helper.process().map_err(|source| PidError::Helper { source }),
            None => Err(error),
        })
    }

    /// What `/proc` says of `process`, here or by the helper.
    ///
    /// # Errors
    /// Where it has gone, or `/proc` hides it.
    pub fn read(&self, process: ProcessId) -> io::Result<ProcSample> {
        read_process(process).or_else(|error| match self.helper.as_ref().map(Client::status) {
            Some(Ok(status)) if status.start_ticks == process.start_ticks => Ok(status),
            _ => Err(error),
        })
    }

    fn find_here(&self) -> Result<ProcessId, PidError> {
        match self.source {
            PidSource::Config => self.by_config(),
            PidSource::Env => self.by_env(),
            PidSource::File => self.by_file(),
            PidSource::Systemd => self.by_systemd(),
            PidSource::Listener => listener::owner(self.address),
            PidSource::Auto => self.by_any(),
        }
    }

    /// Where it may be seen, the owner of the port settles it: a unit or a pid left behind may be
    /// another broker's. Where it may not, all who know one must agree.
    fn by_any(&self) -> Result<ProcessId, PidError> {
        let unseen = match listener::owner(self.address) {
            Ok(owner) => return Ok(owner),
            Err(error) => error,
        };
        let mut named = Vec::new();
        for (said_by, source) in [
            ("pid.pid", Self::by_config as fn(&Self) -> _),
            (PID_VARIABLE, Self::by_env),
            ("pid.pid_file", Self::by_file),
            ("pid.unit", Self::by_systemd),
        ] {
            match source(self) {
                Ok(process) => named.push((said_by, process)),
                Err(PidError::Unset { .. }) => {}
                Err(error) => tracing::debug!(%error, "Next source of the broker's pid."),
            }
        }
        if unseen.is_hidden() {
            named.retain(|(_, process)| !listener::listens(process.pid));
        }
        match named.as_slice() {
            [] => Err(unseen),
            [(_, first), rest @ ..] if rest.iter().all(|(_, other)| other == first) => Ok(*first),
            _ => {
                let said = named.iter().map(|(by, it)| format!("process {} by {by}", it.pid));
                let found = said.collect::<Vec<_>>().join(", ");
                Err(PidError::Ambiguous { port: self.address.port(), found })
            }
        }
    }

    /// `known` where it still runs (one small file read), else the broker's process now.
    ///
    /// # Errors
    /// As [`PidFinder::find`].
    pub fn still(&self, known: ProcessId) -> Result<ProcessId, PidError> {
        match alive(known.pid) {
            Ok(Some(now)) if now == known => Ok(known),
            _ => self.find(),
        }
    }

    fn by_config(&self) -> Result<ProcessId, PidError> {
        let pid = self.pid.ok_or(PidError::Unset { said_by: "pid.pid" })?;
        serving(running(pid, || "pid.pid".into())?, || "pid.pid".into())
    }

    fn by_env(&self) -> Result<ProcessId, PidError> {
        let text = self.env.as_deref().ok_or(PidError::Unset { said_by: PID_VARIABLE })?;
        let process = running(parse_pid(text, PID_VARIABLE)?, || PID_VARIABLE.into())?;
        serving(process, || PID_VARIABLE.into())
    }

    fn by_file(&self) -> Result<ProcessId, PidError> {
        let path = self.pid_file.as_deref().ok_or(PidError::Unset { said_by: "pid.pid_file" })?;
        let failed = |source| PidError::File { path: path.to_path_buf(), source };
        let text = fs::read_to_string(path).map_err(failed)?;
        let written = fs::metadata(path).and_then(|m| m.modified()).map_err(failed)?;
        let said_by = path.display().to_string();
        let pid = parse_pid(&text, &said_by)?;
        let process = running(pid, || said_by.clone())?;
        // The broker writes the file after it starts; a process that started later has its pid by
        // chance. Or the clock was set forward since, which moves every start: what serves the port
        // is the broker all the same, and so is a Mosquitto where the file were older than the boot.
        if started(process)?.is_some_and(|start| start > written + PID_FILE_SLACK)
            && !(written < booted()? && is_mosquitto(pid))
            && !listener::owner(self.address).is_ok_and(|owner| owner == process)
        {
            return Err(PidError::Reused { path: path.to_path_buf(), pid });
        }
        serving(process, || said_by)
    }

    fn by_systemd(&self) -> Result<ProcessId, PidError> {
        let unit = self.unit.as_deref().ok_or(PidError::Unset { said_by: "pid.unit" })?;
        let mut systemctl = Command::new("systemctl");
        systemctl.args(["show", "--property=MainPID", "--value", "--", unit]);
        let failed = |reason: String| PidError::Systemd { unit: unit.into(), reason };
        let said =
            command::output(systemctl, SYSTEMCTL_TIMEOUT).map_err(|e| failed(e.to_string()))?;
        match said.trim().parse() {
            Ok(pid) if pid > 0 => running(pid, || format!("systemd unit {unit}")),
            _ => Err(failed("the unit is not running".into())),
        }
    }
}

fn parse_pid(text: &str, said_by: &str) -> Result<i32, PidError> {
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(PidError::NotAPid {
            said_by: said_by.into(),
            found: text.trim().chars().take(40).collect(),
        }),
    }
}

fn running(pid: i32, said_by: impl FnOnce() -> String) -> Result<ProcessId, PidError> {
    alive(pid)?.ok_or_else(|| PidError::Gone { pid, said_by: said_by() })
}

/// The process, if it may be the broker. It will be signalled, so it must not be a stranger: a
/// broker listens, in a container's own network too, where its port may be another one.
fn serving(process: ProcessId, said_by: impl FnOnce() -> String) -> Result<ProcessId, PidError> {
    let pid = process.pid;
    match listener::listens_at_home(pid) {
        Some(false) => Err(PidError::Stranger { pid, said_by: said_by() }),
        Some(true) | None => Ok(process),
    }
}

/// The living process with this pid; a zombie counts as gone.
///
/// # Errors
/// Where `/proc` can't be read for another reason than that there is no such process.
pub fn alive(pid: i32) -> io::Result<Option<ProcessId>> {
    let found = with_stat(pid, |stat| {
        Ok((!stat.is_dead()).then_some(ProcessId { pid, start_ticks: stat.start_ticks }))
    });
    match found {
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(error),
        // ESRCH: it ended between opening and reading.
        Err(_) => Ok(None),
        found => found,
    }
}

/// When the machine was started, by the clock on the wall as it goes now.
fn booted() -> Result<SystemTime, ProcError> {
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(procfs::boot_time_secs()?))
}

fn is_mosquitto(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "mosquitto")
}

/// Wall-clock start of a process; `None` where the numbers make no time.
fn started(process: ProcessId) -> Result<Option<SystemTime>, ProcError> {
    let since_boot_s = process.start_ticks / procfs::ticks_per_second().max(1);
    let seconds = procfs::boot_time_secs()?.checked_add(since_boot_s);
    Ok(seconds.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn own_pid() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    fn anywhere() -> SocketAddr {
        "127.0.0.1:1".parse().unwrap()
    }

    #[test]
    fn the_owner_of_a_listening_socket_is_found() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = TcpListener::bind(bind) else { continue };
            let finder = PidFinder::listener(socket.local_addr().unwrap());
            assert_eq!(finder.find().unwrap().pid, own_pid());
            drop(socket);
            assert!(matches!(finder.find(), Err(PidError::NobodyListens { .. })));
        }
    }

    #[test]
    fn auto_takes_what_is_named_where_nobody_listens_and_nothing_where_that_is_two() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        fs::write(&file, format!("{}\n", own_pid())).unwrap();
        let _socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut finder = PidFinder::pid_file(&file, anywhere());
        finder.source = PidSource::Auto;
        finder.pid = Some(i32::MAX);
        finder.env = Some("nonsense".into());
        assert_eq!(finder.find().unwrap().pid, own_pid());
        finder.env = Some("1".into());
        let said = finder.find().unwrap_err();
        let both = ["process 1 by MOSQUITTO_PID".into(), format!("process {} by", own_pid())];
        assert!(both.iter().all(|part| said.to_string().contains(part)), "{said}");
        assert!(said.is_hidden());
    }

    #[test]
    fn auto_passes_over_a_process_that_does_not_serve_the_port() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut finder = PidFinder::listener(socket.local_addr().unwrap());
        finder.source = PidSource::Auto;
        finder.pid = Some(1);
        assert_eq!(finder.find().unwrap().pid, own_pid());
    }

    #[test]
    fn each_source_says_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut finder = PidFinder::pid_file(&file, anywhere());
        assert!(matches!(finder.find(), Err(PidError::File { .. })));
        for wrong in ["", "abc", "-4", "0", "99999999999"] {
            fs::write(&file, wrong).unwrap();
            assert!(matches!(finder.find(), Err(PidError::NotAPid { .. })), "{wrong:?}");
        }
        fs::write(&file, i32::MAX.to_string()).unwrap();
        let error = finder.find().unwrap_err();
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        assert!(matches!(error, PidError::Gone { .. }));
        finder.source = PidSource::Env;
        assert!(matches!(finder.find(), Err(PidError::Unset { said_by: PID_VARIABLE })));
    }

    #[test]
    fn a_pid_older_than_its_process_is_a_reused_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, own_pid().to_string()).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(86_400 * 365);
        fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        let mut finder = PidFinder::pid_file(&path, anywhere());
        assert!(matches!(finder.find(), Err(PidError::Reused { .. })));
        // It serves the port: the clock was set forward since it wrote the file.
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        finder.address = socket.local_addr().unwrap();
        assert_eq!(finder.find().unwrap().pid, own_pid());
    }

    /// /run is empty at a boot: a file there that seems older tells of a clock that was set since.
    #[test]
    fn a_file_that_seems_older_than_the_boot_is_a_mosquittos_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let long_ago = SystemTime::now() - Duration::from_secs(86_400 * 365);
        for (name, is_believed) in [("mosquitto", true), ("sleep", false)] {
            let program = dir.path().join(name);
            fs::copy("/bin/sleep", &program).unwrap();
            let mut process = Command::new(&program).arg("60").spawn().unwrap();
            fs::write(&path, process.id().to_string()).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
            let found = PidFinder::pid_file(&path, anywhere()).find();
            process.kill().unwrap();
            process.wait().unwrap();
            // Nor does this one listen, where that can be seen.
            let is_reused = matches!(found, Err(PidError::Reused { .. }));
            assert_eq!(is_reused, !is_believed, "{name}: {found:?}");
        }
    }

    /// It would be sent the broker's signals, and most programs end at the first.
    #[test]
    fn a_process_that_listens_nowhere_is_not_the_broker() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(&path, stranger.id().to_string()).unwrap();
        let found = PidFinder::pid_file(&path, anywhere()).find();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert!(matches!(found, Err(PidError::Stranger { .. })), "{found:?}");
    }

    #[test]
    fn another_start_time_is_another_process() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let finder = PidFinder::listener(socket.local_addr().unwrap());
        let now = finder.find().unwrap();
        assert_eq!(finder.still(now).unwrap(), now);
        let before = ProcessId { start_ticks: now.start_ticks.wrapping_add(1), ..now };
        assert_eq!(finder.still(before).unwrap(), now, "found afresh");
    }

    #[test]
    fn a_zombie_is_gone() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while alive(pid).unwrap().is_some() {
            assert!(std::time::Instant::now() < deadline, "`true` still runs");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
