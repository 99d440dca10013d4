//! Starting children so that the kernel ends them when this process dies.
//!
//! The parent-death signal fires when the *thread* that started the child ends, so all children are
//! started by one thread that lives as long as the process.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::guard::{self, Belongings};

struct Request {
    command: Command,
    belongings: Belongings,
    /// The cores of whoever asks, where they can be told.
    cores: Option<CpuSet>,
    reply: mpsc::Sender<io::Result<Child>>,
}

/// Where a child's words go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output<'a> {
    pub(crate) stdout: &'a File,
    pub(crate) stderr: &'a File,
}

/// Starts `program` with `arguments` on the cores of the calling thread; it is registered with the
/// signal guard, and whoever waits for it calls [`guard::unregister`] after.
///
/// It gets a process group of its own: Ctrl-C in a terminal reaches this process, which then ends
/// the child in order. Where `setpriv` of util-linux is absent it runs without a parent-death
/// signal.
pub(crate) fn spawn(
    program: &Path,
    arguments: &[&OsStr],
    output: Output<'_>,
    belongings: Belongings,
) -> io::Result<Child> {
    let mut command = if setpriv_works() {
        // It replaces itself by the program, so the process id stays.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.stdout.try_clone()?)
        .stderr(output.stderr.try_clone()?)
        .process_group(0);
    let cores = sched_getaffinity(Pid::from_raw(0)).ok();
    let (reply, answer) = mpsc::channel();
    sender()?
        .send(Request { command, belongings, cores, reply })
        .map_err(|_| io::Error::other("the thread that starts children has ended"))?;
    answer.recv().map_err(|_| io::Error::other("the thread that starts children has ended"))?
}

/// The way to the spawner thread, which is started by the first call.
fn sender() -> io::Result<mpsc::Sender<Request>> {
    static SENDER: Mutex<Option<mpsc::Sender<Request>>> = Mutex::new(None);
    let mut sender = SENDER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = &*sender {
        return Ok(sender.clone());
    }
    let (new, requests) = mpsc::channel::<Request>();
    thread::Builder::new().name("broker-spawner".into()).spawn(move || {
        for mut request in requests {
            if let Some(cores) = &request.cores {
                // A child inherits them from this thread. Where that is forbidden it runs where
                // this thread does; who needs a certain core sets it afterwards.
                let _ = sched_setaffinity(Pid::from_raw(0), cores);
            }
            let child = guard::register(request.belongings, || request.command.spawn());
            // A caller that stopped waiting would leave the child without an owner.
            if let Err(mpsc::SendError(Ok(mut child))) = request.reply.send(child) {
                let _ = child.kill();
                let _ = child.wait();
                guard::unregister(child.id());
            }
        }
    })?;
    *sender = Some(new.clone());
    Ok(new)
}

fn setpriv_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    /// The cores of a child, as the kernel names them.
    fn cores_of_a_child() -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let output = Output { stdout: file.as_file(), stderr: file.as_file() };
        let arguments = ["Cpus_allowed_list:", "/proc/self/status"].map(OsStr::new);
        let belongings = Belongings::default();
        let mut child = spawn(Path::new("grep"), &arguments, output, belongings).unwrap();
        assert!(child.wait().unwrap().success());
        guard::unregister(child.id());
        let line = std::fs::read_to_string(file.path()).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    }

    #[test]
    fn a_child_starts_on_the_cores_of_whoever_asks_not_of_who_asked_first() {
        let before = cores_of_a_child();
        let confined = thread::spawn(|| {
            let this = Pid::from_raw(0);
            let allowed = sched_getaffinity(this).unwrap();
            let core = (0..CpuSet::count()).find(|core| allowed.is_set(*core).unwrap()).unwrap();
            let mut one = CpuSet::new();
            one.set(core).unwrap();
            sched_setaffinity(this, &one).unwrap();
            (cores_of_a_child(), core.to_string())
        });
        let (found, core) = confined.join().unwrap();
        assert_eq!(found, core);
        assert_eq!(cores_of_a_child(), before);
    }
}
