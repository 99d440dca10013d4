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

use super::guard::{self, Belongings};

struct Request {
    command: Command,
    belongings: Belongings,
    reply: mpsc::Sender<io::Result<Child>>,
}

/// Starts `program` with `arguments`, its output appended to `output`; it is registered with the
/// signal guard.
///
/// It gets a process group of its own: Ctrl-C in a terminal reaches this process, which then ends
/// the broker in order. Where `setpriv` of util-linux is absent it runs without a parent-death
/// signal.
pub(super) fn spawn(
    program: &Path,
    arguments: &[&OsStr],
    output: &File,
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
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0);
    let (reply, answer) = mpsc::channel();
    sender()?
        .send(Request { command, belongings, reply })
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
