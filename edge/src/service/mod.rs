//! What others reach the running agent by: one thread that waits for connections and asks the
//! agent between two of its ticks.

mod control;
mod http;

use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use tokio::net::UnixListener;
use tokio::sync::watch;

pub use control::{AskError, ask};
pub use http::{Board, HttpOptions, Listen, Token, TokenError, read as read_http};

use crate::agent::Call;

/// The thread keeps no more than a request and an answer on its stack.
const STACK_BYTES: usize = 256 * 1024;

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Service {
    stop: watch::Sender<bool>,
    socket: PathBuf,
    http: Option<Listen>,
}

/// Why nobody can reach the agent.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Where the orders come in.
    #[error("orders cannot be taken on {}: {source}; choose an agent.state_dir with a shorter path where the agent may write", path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Where HTTP comes in.
    #[error(
        "http.listen: {listen}: {source}; choose another address, or a directory where the agent may write"
    )]
    Http {
        /// The address or path.
        listen: Listen,
        /// The system's answer.
        source: io::Error,
    },
    /// No thread.
    #[error("no thread for orders and HTTP: {0}")]
    Thread(io::Error),
}

/// Where the operator's verbs find the agent of a state directory.
#[must_use]
pub fn control_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

impl Service {
    /// Listens for the operator's verbs in `state_dir`, and for HTTP where that is asked for.
    /// Orders may be given by whoever may write in `state_dir`: root and the agent's own user.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn start(
        state_dir: &Path,
        http: Option<(HttpOptions, Board)>,
        call: Call,
    ) -> Result<Self, ServiceError> {
        let socket = control_socket(state_dir);
        let failed = |source| ServiceError::Control { path: socket.clone(), source };
        let control = control::bind(&socket, control::MODE).map_err(failed)?;
        let listen = http.as_ref().map(|(options, _)| options.listen.clone());
        let bound = match &listen {
            Some(listen) => {
                let failed = |source| ServiceError::Http { listen: listen.clone(), source };
                Some(http::bind(listen).map_err(failed)?)
            }
            None => None,
        };
        let (stop, mut stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ServiceError::Thread)?;
        let (control, bound) = {
            // Taken over here, where a failure can still be told.
            let _inside = runtime.enter();
            let control = UnixListener::from_std(control).map_err(ServiceError::Thread)?;
            (control, bound.map(http::Bound::into_async).transpose().map_err(ServiceError::Thread)?)
        };
        let thread = thread::Builder::new().name("service".into()).stack_size(STACK_BYTES);
        let serve = async move {
            if let (Some(bound), Some((options, board))) = (bound, http) {
                tokio::spawn(http::serve(bound, options, board, call.clone()));
            }
            tokio::select! {
                () = control::serve(control, call) => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        };
        thread.spawn(move || runtime.block_on(serve)).map_err(ServiceError::Thread)?;
        Ok(Self { stop, socket, http: listen })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        // Left behind it would only make the next verb try for a moment.
        let _ = std::fs::remove_file(&self.socket);
        if let Some(listen) = &self.http {
            http::forget(listen);
        }
    }
}
