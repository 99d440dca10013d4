//! No broker or agent outlives the program: the registry of children and the answer to Ctrl-C.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{self, Child};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Exit status after a second Ctrl-C, as a shell reports SIGINT.
const EXIT_INTERRUPTED: i32 = 130;
/// A killed process is gone at once; this bounds the wait for one stuck in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(2);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static LIVE: Mutex<BTreeMap<u32, Belongings>> = Mutex::new(BTreeMap::new());

/// What a child leaves behind when nobody is left to drop its owner.
#[derive(Debug, Clone, Default)]
pub(crate) struct Belongings {
    /// Its temporary folder.
    pub(crate) dir: PathBuf,
    /// Its control group, if it has one.
    pub(crate) cgroup: Option<PathBuf>,
}

/// Starts to listen for SIGINT, SIGTERM and SIGHUP (a terminal that closes); later calls do
/// nothing. A SIGHUP that is ignored, as under `nohup`, stays so.
///
/// The first signal makes [`interrupted`] true, and whoever polls it is expected to wind up. The
/// second kills every child at once, removes their folders and ends the program with status 130.
///
/// # Errors
/// Where the handlers cannot be installed or the thread cannot be started.
pub fn install_signal_guard() -> io::Result<()> {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    if INSTALLED.set(()).is_err() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    if !is_ignored(SIGHUP) {
        signals.add_signal(SIGHUP)?;
    }
    thread::Builder::new().name("signal-guard".into()).spawn(move || {
        for _ in signals.forever() {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                // Held to the end, so that no other thread starts a child in between.
                let mut live = live();
                kill_all(&mut live);
                process::exit(EXIT_INTERRUPTED);
            }
        }
    })?;
    Ok(())
}

/// Whether a signal that asks this process to end has come since [`install_signal_guard`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Whether this process was started with the signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    status.is_ok_and(|status| status.sigign & (1 << (signal - 1)) != 0)
}

/// Runs `spawn` and registers its child, so that no moment is left in which it lives unknown.
pub(super) fn register(
    belongings: Belongings,
    spawn: impl FnOnce() -> io::Result<Child>,
) -> io::Result<Child> {
    let mut live = live();
    let child = spawn()?;
    live.insert(child.id(), belongings);
    Ok(child)
}

/// Forgets a child that was waited for.
pub(crate) fn unregister(pid: u32) {
    live().remove(&pid);
}

/// The kernel's process ids stay below 2^22.
pub(super) fn nix_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process id fits pid_t"))
}

fn live() -> MutexGuard<'static, BTreeMap<u32, Belongings>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill_all(live: &mut BTreeMap<u32, Belongings>) {
    for &pid in live.keys() {
        let _ = kill(nix_pid(pid), Signal::SIGKILL);
    }
    let deadline = Instant::now() + KILL_WAIT;
    for (&pid, belongings) in live.iter() {
        while !ended(pid) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if let Some(group) = &belongings.cgroup {
            let _ = fs::remove_dir(group);
        }
        let _ = fs::remove_dir_all(&belongings.dir);
    }
}

/// Gone, or a zombie that holds neither files nor its group.
fn ended(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return true };
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.map_or(true, |stat| stat.state == 'Z')
}
