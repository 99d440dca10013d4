//! What others reach the running agent by: one thread that waits for connections and asks the
//! agent between two of its ticks.

mod control;

use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use tokio::net::UnixListener;
use tokio::sync::watch;

pub use control::{AskError, ask};

use crate::agent::Call;

/// The thread keeps no more than a request and an answer on its stack.
const STACK_BYTES: usize = 256 * 1024;

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Service {
    stop: watch::Sender<bool>,
    socket: PathBuf,
}

/// Where the operator's verbs find the agent of a state directory.
#[must_use]
pub fn control_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

impl Service {
    /// Listens for the operator's verbs in `state_dir`. Whoever may write there, and nobody else,
    /// may connect: the socket is the agent's own user's and root's.
    ///
    /// # Errors
    /// Where the socket can't be made, or the system gives no thread.
    pub fn start(state_dir: &Path, call: Call) -> io::Result<Self> {
        let socket = control_socket(state_dir);
        let control = control::bind(&socket)?;
        let (stop, mut stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("service".into()).stack_size(STACK_BYTES).spawn(move || {
            runtime.block_on(async {
                let Ok(control) = UnixListener::from_std(control) else { return };
                tokio::select! {
                    () = control::serve(control, call) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
        })?;
        Ok(Self { stop, socket })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        // Left behind it would only make the next verb try for a moment.
        let _ = std::fs::remove_file(&self.socket);
    }
}
