//! A broker that belongs to this program.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use procfs::process::Process;
use tempfile::TempDir;

use super::cgroup::CpuGroup;
use super::conf::Files;
use super::error::{BrokerError, io_error};
use super::find::Mosquitto;
use super::lifecycle::Lifecycle;
use super::port;
use super::supervise;

/// How often a new port is tried when another program took the chosen one.
const PORT_TRIES_MAX: u32 = 5;
/// How the broker says so.
const PORT_TAKEN: &str = "Address already in use";
/// Open files that a broker may have: enough for every scenario's clients.
const OPEN_FILES_MAX: u64 = 65_536;
const POLL: Duration = Duration::from_millis(1);

/// What to start, and how.
#[derive(Debug, Clone)]
pub struct SpawnConfig {
    /// `persistence` of the main file.
    pub persistence: bool,
    /// `sys_interval` of the main file, in seconds.
    pub sys_interval_s: u16,
    /// Further lines of the main file, before its `include_dir`.
    pub main_conf_lines: Vec<String>,
    /// Content of the drop-in at the first start; no file where `None`.
    pub dropin: Option<String>,
    /// The processor core that the broker is pinned to.
    pub core: Option<usize>,
    /// Share of one core that the broker may use, 0.01 to 1; no quota where `None`.
    pub cpu_share: Option<f64>,
    /// What the broker logs.
    pub log_types: LogTypes,
    /// Starts the broker again when it ends by itself, as a service manager would, and offers
    /// [`BrokerProcess::restart_command`].
    pub supervised: bool,
}

impl Default for SpawnConfig {
    fn default() -> Self {
        Self {
            persistence: true,
            sys_interval_s: 1,
            main_conf_lines: Vec::new(),
            dropin: None,
            core: None,
            cpu_share: None,
            log_types: LogTypes::Default,
            supervised: false,
        }
    }
}

/// What the broker writes to its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTypes {
    /// Errors and warnings: cheapest, and hides whether a reload was seen.
    Problems,
    /// Mosquitto's own choice, as on a site: connections and reloads too.
    Default,
    /// Everything, each message included.
    All,
}

/// Where a broker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Between a start and its first answer, or between two starts.
    Starting,
    /// It answered after its last start.
    Running,
    /// No process: ended by [`BrokerProcess::stop`] or [`BrokerProcess::kill`], or by itself and,
    /// if it is supervised, about to be started again.
    Stopped,
    /// Supervised, and ended too often; waits for a restart to be asked for.
    Failed,
}

/// A restart that succeeded.
#[derive(Debug, Clone, Copy)]
pub struct RestartInfo {
    /// From SIGTERM to the end of the old process.
    pub stop_took: Duration,
    /// From the start of the new process to its first CONNACK.
    pub start_took: Duration,
    /// How the old process ended; `None` where none ran.
    pub exit: Option<ExitStatus>,
    /// The new process.
    pub pid: u32,
}

/// A running Mosquitto with its temporary folder; both go when this is dropped.
#[derive(Debug)]
pub struct BrokerProcess {
    life: Arc<Lifecycle>,
    supervisor: Option<JoinHandle<()>>,
    // Dropped last: the broker writes into it until its end.
    _dir: TempDir,
}

impl BrokerProcess {
    /// Starts a broker on a free loopback port and waits until it answers a CONNECT.
    ///
    /// The limit on open files of this process is raised for the broker, as far as the system lets
    /// it.
    ///
    /// # Errors
    /// [`BrokerError::Exited`] with what the broker said, [`BrokerError::NotReady`] after 20 s,
    /// [`BrokerError::CpuShare`] and [`BrokerError::Pin`] where it cannot be confined as asked.
    pub fn spawn(mosquitto: &Mosquitto, config: &SpawnConfig) -> Result<Self, BrokerError> {
        raise_open_files();
        let dir = tempfile::Builder::new()
            .prefix("brokertuner-")
            .tempdir()
            .map_err(io_error("making a temporary folder"))?;
        Files::new(dir.path())
            .create(config)
            .map_err(io_error(format!("filling {}", dir.path().display())))?;
        let life = Arc::new(start_on_free_port(mosquitto, config, dir.path())?);
        let mut broker = Self { life, supervisor: None, _dir: dir };
        if config.supervised {
            let supervisor = supervise::start(Arc::clone(&broker.life));
            broker.supervisor =
                Some(supervisor.map_err(io_error("starting the supervisor's thread"))?);
        }
        Ok(broker)
    }

    /// Where the broker listens; stays the same over restarts.
    pub fn addr(&self) -> SocketAddr {
        self.life.addr
    }

    /// The process that was started last; a restart changes it, and the pid file names it too.
    pub fn pid(&self) -> u32 {
        self.life.pid()
    }

    /// The tuned file in the include directory; it need not exist.
    pub fn dropin_path(&self) -> &Path {
        &self.life.files.dropin
    }

    /// The main file.
    pub fn conf_path(&self) -> &Path {
        &self.life.files.conf
    }

    /// The broker's log.
    pub fn log_path(&self) -> &Path {
        &self.life.files.log
    }

    /// The broker's own pid file; absent while no broker runs.
    pub fn pid_path(&self) -> &Path {
        &self.life.files.pid_file
    }

    /// The folder of the persistence database.
    pub fn data_dir(&self) -> &Path {
        &self.life.files.data_dir
    }

    /// A program without arguments for another process, such as `edge`, that restarts a supervised
    /// broker.
    ///
    /// Like `systemctl restart` it returns with 0 when the broker serves again, else with 1 and the
    /// broker's last words, and it also starts a broker in [`Phase::Failed`]. `None` for an
    /// unsupervised broker.
    pub fn restart_command(&self) -> Option<&Path> {
        self.supervisor.is_some().then_some(self.life.files.restart.as_path())
    }

    /// Where the broker is in its life.
    pub fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// Whether a process runs; it need not serve.
    pub fn is_alive(&self) -> bool {
        self.life.is_alive()
    }

    /// How the last process that ended did.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.life.exit_status()
    }

    /// Successful starts so far; one more than the restarts.
    pub fn start_count(&self) -> u32 {
        self.life.start_count()
    }

    /// Ends the broker in order and starts it again with the same files.
    ///
    /// # Errors
    /// As [`BrokerProcess::spawn`]; the broker is then stopped, or in the hands of its supervisor.
    pub fn restart(&self) -> Result<RestartInfo, BrokerError> {
        self.life.restart()
    }

    /// Makes the broker save its database (SIGUSR1). Says nothing about whether it could.
    ///
    /// # Errors
    /// [`BrokerError::NotRunning`].
    pub fn save(&self) -> Result<(), BrokerError> {
        self.life.signal(Signal::SIGUSR1)
    }

    /// Makes the broker read its configuration again (SIGHUP). Says nothing about whether it liked
    /// it.
    ///
    /// # Errors
    /// [`BrokerError::NotRunning`].
    pub fn reload(&self) -> Result<(), BrokerError> {
        self.life.signal(Signal::SIGHUP)
    }

    /// Waits until the broker has been started more than `start_count` times and runs.
    ///
    /// # Errors
    /// [`BrokerError::GaveUp`] as soon as the supervisor has given up, [`BrokerError::NotReady`]
    /// after `timeout`.
    pub fn wait_for_start(&self, start_count: u32, timeout: Duration) -> Result<(), BrokerError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.phase() {
                Phase::Running if self.start_count() > start_count => return Ok(()),
                Phase::Failed => {
                    let attempts = supervise::UNCLEAN_ENDS_MAX;
                    return Err(BrokerError::GaveUp { attempts, log: self.life.files.said() });
                }
                _ if Instant::now() >= deadline => return Err(self.life.not_ready(timeout)),
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// Ends the broker in order (SIGTERM, after 20 s SIGKILL) for good; the folder stays until this
    /// is dropped.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// Ends the broker at once for good, as a power cut would: nothing is saved.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        self.end(Signal::SIGKILL)
    }

    fn end(&mut self, signal: Signal) -> Option<ExitStatus> {
        let exit = self.life.end_for_good(signal);
        if let Some(supervisor) = self.supervisor.take() {
            // It only ends by itself; a panic in it is no reason for another one here.
            let _ = supervisor.join();
        }
        exit
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM);
    }
}

fn start_on_free_port(
    mosquitto: &Mosquitto,
    config: &SpawnConfig,
    dir: &Path,
) -> Result<Lifecycle, BrokerError> {
    for tries in 1..=PORT_TRIES_MAX {
        let port = port::free_port().map_err(io_error("finding a free port"))?;
        let files = Files::new(dir);
        files
            .write_conf(config, port)
            .map_err(io_error(format!("writing {}", files.conf.display())))?;
        // Also empties what a try before left there.
        File::create(&files.log).map_err(io_error(format!("writing {}", files.log.display())))?;
        let group = config.cpu_share.map(CpuGroup::new).transpose()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let life = Lifecycle::new(mosquitto.path(), files, addr, config.core, group);
        match life.first_start() {
            Ok(()) if port::listens_on(life.pid(), port) => return Ok(life),
            // Another program's broker answered, ours is about to fail.
            Ok(()) => {
                life.end_for_good(Signal::SIGKILL);
            }
            Err(BrokerError::Exited { log, .. })
                if tries < PORT_TRIES_MAX && log.contains(PORT_TAKEN) => {}
            Err(error) => return Err(error),
        }
    }
    Err(BrokerError::NoPort { tries: PORT_TRIES_MAX })
}

/// Raises the soft limit, which the broker inherits; where that fails the old limit serves smaller
/// loads.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(OPEN_FILES_MAX);
        if soft < wanted {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
        }
    }
}

/// Resident memory of a process (VmRSS), in bytes.
///
/// # Errors
/// Where the process is gone, or its status cannot be read.
pub fn rss_bytes(pid: u32) -> Result<u64, BrokerError> {
    let what = format!("reading /proc/{pid}/status");
    let pid = i32::try_from(pid).map_err(|_| BrokerError::NotRunning)?;
    let status = Process::new(pid).and_then(|process| process.status());
    let status =
        status.map_err(|error| BrokerError::Io { what, source: std::io::Error::other(error) })?;
    // A zombie has no memory and no such line.
    status.vmrss.map(|kib| kib.saturating_mul(1024)).ok_or(BrokerError::NotRunning)
}

/// CPU time that the process's main thread has used, to the nanosecond (`/proc/PID/schedstat`):
/// Mosquitto 2.0 has no other that works.
///
/// # Errors
/// As [`rss_bytes`], or a kernel that does not count.
pub fn cpu_time(pid: u32) -> Result<Duration, BrokerError> {
    let what = format!("reading /proc/{pid}/schedstat");
    let id = i32::try_from(pid).map_err(|_| BrokerError::NotRunning)?;
    let stat = Process::new(id).and_then(|process| process.schedstat());
    let stat =
        stat.map_err(|error| BrokerError::Io { what, source: std::io::Error::other(error) })?;
    Ok(Duration::from_nanos(stat.sum_exec_runtime))
}
