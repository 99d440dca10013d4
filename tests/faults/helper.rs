//! The privileged helper, started for each connection as its socket's unit does it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::unistd::{Uid, User};

use super::site::Site;
use super::{ROW, Row};
use crate::support::edge::program;

pub(super) static ROWS: &[Row] = &[
    Row {
        name: "the helper is killed before it renames its first drop-in",
        fault: |site| killed(site, 1),
        says: &["the helper at", "The change did not go through.", "Changed."],
        ..ROW
    },
    Row {
        name: "the helper is killed before it renames its second drop-in",
        fault: |site| killed(site, 2),
        says: &["the helper at", "The change did not go through.", "Changed."],
        ..ROW
    },
];

/// Beside the drop-in nothing stays of the helper that was killed, and the next try goes through.
fn killed(site: &mut Site, rename: u32) {
    let user = User::from_uid(Uid::effective()).unwrap().expect("this user has a name").name;
    let socket = site.path("helper.sock");
    site.config.extra += &format!("[helper]\nuse = true\nsocket = {socket:?}\nuser = {user:?}\n");
    let config = site.write_config();
    let helpers = Helpers::listen(socket, config, rename);
    site.start_agent();
    if rename > 1 {
        site.until_tuned();
        super::models::want_less(site);
    }
    site.until_said("The change did not go through.");
    assert!(helpers.was_killed.load(Ordering::Relaxed), "no helper was killed");
    assert_alone(site);
    site.until_said_after("The change did not go through.", "The change stood its verification.");
    site.stop_agent();
    drop(helpers);
    assert_alone(site);
}

/// The include directory holds the drop-in and nothing else.
fn assert_alone(site: &Site) {
    let left: Vec<_> = fs::read_dir(site.include_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| *path != site.config.drop_in)
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A helper for each connection, until it is dropped.
struct Helpers {
    socket: PathBuf,
    was_killed: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Helpers {
    /// The helper that begins rename number `rename` is killed at it.
    fn listen(socket: PathBuf, config: PathBuf, rename: u32) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let (was_killed, is_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (killed, over) = (Arc::clone(&was_killed), Arc::clone(&is_over));
        let trace = socket.with_extension("trace");
        let serve = move || {
            let mut renames = 0;
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let is_next = renames + 1 == rename && !killed.load(Ordering::Relaxed);
                let end = helper(stream.unwrap(), &config, &trace, is_next);
                killed.fetch_or(end.signal().is_some(), Ordering::Relaxed);
                let text = fs::read_to_string(&trace).unwrap_or_default();
                renames += u32::from(text.contains("rename"));
            }
        };
        let thread = Some(thread::spawn(serve));
        Self { socket, was_killed, is_over, thread }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // It waits for a connection.
        let _ = UnixStream::connect(&self.socket);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn helper(stream: UnixStream, config: &Path, trace: &Path, is_killed: bool) -> ExitStatus {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=rename,renameat,renameat2", "-o"]).arg(trace);
    if is_killed {
        command.args(["-e", "inject=rename,renameat,renameat2:signal=SIGKILL:when=1"]);
    }
    command.arg("--").arg(program()).args(["helper", "--config"]).arg(config);
    for variable in ["MOSQUITTO_PID", "MOSQUITTO_TUNER_CONFIG", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command.stdin(OwnedFd::from(stream)).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().expect(super::calls::INSTALL)
}
