//! Starting, ending and starting again one broker, from any thread.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::cgroup::CpuGroup;
use super::conf::Files;
use super::error::{BrokerError, io_error};
use super::guard::{self, Belongings, nix_pid};
use super::probe;
use super::process::{Phase, RestartInfo};
use super::spawner::{self, Output};

/// A broker that has not answered by then is not going to: restoring 35 MB takes half a second.
const READY_WAIT: Duration = Duration::from_secs(20);
/// A broker with much to save takes seconds to end, and longer under a quota.
const STOP_WAIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(1);

/// One broker over all its processes.
#[derive(Debug)]
pub(super) struct Lifecycle {
    program: PathBuf,
    pub(super) files: Files,
    pub(super) addr: SocketAddr,
    core: Option<usize>,
    group: Option<CpuGroup>,
    state: Mutex<State>,
    /// Held by whoever starts or ends the process; `state` is only ever held for a moment.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct State {
    child: Option<Child>,
    pid: u32,
    phase: Phase,
    exit: Option<ExitStatus>,
    start_count: u32,
    ended_for_good: bool,
}

/// The right to start and end the process.
pub(super) struct Turn<'a> {
    life: &'a Lifecycle,
    _guard: MutexGuard<'a, ()>,
}

impl Lifecycle {
    pub(super) fn new(
        program: &Path,
        files: Files,
        addr: SocketAddr,
        core: Option<usize>,
        group: Option<CpuGroup>,
    ) -> Self {
        let state = State {
            child: None,
            pid: 0,
            phase: Phase::Starting,
            exit: None,
            start_count: 0,
            ended_for_good: false,
        };
        let state = Mutex::new(state);
        Self {
            program: program.to_path_buf(),
            files,
            addr,
            core,
            group,
            state,
            turn: Mutex::new(()),
        }
    }

    pub(super) fn first_start(&self) -> Result<(), BrokerError> {
        self.turn().start().map(drop)
    }

    pub(super) fn restart(&self) -> Result<RestartInfo, BrokerError> {
        let turn = self.turn();
        if self.ended_for_good() {
            return Err(BrokerError::NotRunning);
        }
        let began = Instant::now();
        let exit = turn.end(Signal::SIGTERM);
        let stop_took = began.elapsed();
        let start_took = turn.start()?;
        Ok(RestartInfo { stop_took, start_took, exit, pid: self.pid() })
    }

    /// Ends the process and lets no other follow. Returns how it ended, `None` where none ran.
    pub(super) fn end_for_good(&self, signal: Signal) -> Option<ExitStatus> {
        let turn = self.turn();
        self.state().ended_for_good = true;
        let exit = turn.end(signal);
        self.set_phase(Phase::Stopped);
        exit
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), BrokerError> {
        let _turn = self.turn();
        if !self.is_alive() {
            return Err(BrokerError::NotRunning);
        }
        kill(nix_pid(self.pid()), signal).map_err(|_| BrokerError::NotRunning)
    }

    pub(super) fn turn(&self) -> Turn<'_> {
        Turn { life: self, _guard: self.turn.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Blocks until the present process ends; it is not waited for, so that its id stays taken.
    pub(super) fn wait_for_end(&self) {
        if self.is_alive() {
            // An error means that another thread has waited for it already: also an end.
            let _ =
                waitid(Id::Pid(nix_pid(self.pid())), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.reap();
        self.state().child.is_some()
    }

    pub(super) fn pid(&self) -> u32 {
        self.state().pid
    }

    pub(super) fn phase(&self) -> Phase {
        self.reap();
        self.state().phase
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.state().phase = phase;
    }

    pub(super) fn exit_status(&self) -> Option<ExitStatus> {
        self.reap();
        self.state().exit
    }

    pub(super) fn start_count(&self) -> u32 {
        self.state().start_count
    }

    pub(super) fn ended_for_good(&self) -> bool {
        self.state().ended_for_good
    }

    pub(super) fn not_ready(&self, timeout: Duration) -> BrokerError {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        BrokerError::NotReady { addr: self.addr, timeout_ms, log: self.files.said() }
    }

    /// Takes note of a process that has ended, and returns how.
    fn reap(&self) -> Option<ExitStatus> {
        let mut state = self.state();
        let pid = state.child.as_ref()?.id();
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if matches!(waitid(Id::Pid(nix_pid(pid)), flags), Ok(WaitStatus::StillAlive)) {
            return None;
        }
        // Before its id can be given to another process: a killed broker leaves the file behind.
        let _ = fs::remove_file(&self.files.pid_file);
        let status = state.child.take()?.wait().ok()?;
        guard::unregister(pid);
        state.exit = Some(status);
        if state.phase == Phase::Running {
            state.phase = Phase::Stopped;
        }
        Some(status)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self) -> Result<(), BrokerError> {
        let output = File::create(&self.files.output)
            .map_err(io_error(format!("writing {}", self.files.output.display())))?;
        let arguments = [OsStr::new("-c"), self.files.conf.as_os_str()];
        let cgroup = self.group.as_ref().map(|group| group.path().to_path_buf());
        let belongings = Belongings { dir: self.files.dir.clone(), cgroup };
        let output = Output { stdout: &output, stderr: &output };
        let child = spawner::spawn(&self.program, &arguments, output, belongings)
            .map_err(io_error(format!("starting {}", self.program.display())))?;
        let mut state = self.state();
        state.pid = child.id();
        state.child = Some(child);
        Ok(())
    }

    /// Pins and caps the new process, before it has done much.
    fn confine(&self) -> Result<(), BrokerError> {
        let pid = self.pid();
        if let Some(core) = self.core {
            let pin = |source| BrokerError::Pin { core, source };
            let mut set = CpuSet::new();
            set.set(core).map_err(|error| pin(error.into()))?;
            sched_setaffinity(nix_pid(pid), &set).map_err(|error| pin(error.into()))?;
        }
        if let Some(group) = &self.group {
            group
                .add(pid)
                .map_err(io_error(format!("moving the broker into {}", group.path().display())))?;
        }
        Ok(())
    }

    fn wait_ready(&self) -> Result<(), BrokerError> {
        let deadline = Instant::now() + READY_WAIT;
        loop {
            // Whichever thread reaped it: `reap` tells only one of them.
            if !self.is_alive()
                && let Some(status) = self.exit_status()
            {
                return Err(BrokerError::Exited { status, log: self.files.said() });
            }
            if probe::answers(self.addr) && self.is_alive() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.not_ready(READY_WAIT));
            }
            thread::sleep(POLL);
        }
    }
}

impl Turn<'_> {
    /// Starts a process and waits until it serves; it is ended again where it does not.
    pub(super) fn start(&self) -> Result<Duration, BrokerError> {
        let life = self.life;
        let began = Instant::now();
        life.set_phase(Phase::Starting);
        let started = life.spawn().and_then(|()| life.confine()).and_then(|()| life.wait_ready());
        match started {
            Ok(()) => {
                let mut state = life.state();
                state.phase = Phase::Running;
                state.start_count = state.start_count.saturating_add(1);
                Ok(began.elapsed())
            }
            Err(error) => {
                self.end(Signal::SIGKILL);
                life.set_phase(Phase::Stopped);
                Err(error)
            }
        }
    }

    /// Sends `signal` and waits for the end, which is forced after [`STOP_WAIT`]. `None` where
    /// nothing ran.
    pub(super) fn end(&self, signal: Signal) -> Option<ExitStatus> {
        let life = self.life;
        if !life.is_alive() {
            return None;
        }
        let pid = life.pid();
        let send = |signal| match kill(nix_pid(pid), signal) {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(pid, %signal, %error, "The broker did not take the signal.")
            }
        };
        send(signal);
        let deadline = Instant::now() + STOP_WAIT;
        let mut forced = false;
        while life.is_alive() {
            if !forced && Instant::now() >= deadline {
                tracing::warn!(
                    pid,
                    "The broker did not end in time and is killed; what it had not saved is lost."
                );
                send(Signal::SIGKILL);
                forced = true;
            }
            thread::sleep(POLL);
        }
        life.exit_status()
    }

    /// Leaves the broker stopped until a restart is asked for.
    pub(super) fn give_up(&self) {
        self.life.set_phase(Phase::Failed);
    }

    /// Notes a request for a restart, if there is one, and that it is being served.
    pub(super) fn take_request(&self) -> bool {
        fs::rename(&self.life.files.restart_request, &self.life.files.restart_running).is_ok()
    }

    /// Tells whoever asked for a restart that it is over.
    pub(super) fn finish_request(&self) {
        match fs::remove_file(&self.life.files.restart_running) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "The end of a restart could not be reported.");
            }
            _ => {}
        }
    }
}
