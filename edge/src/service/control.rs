//! The operator's verbs to the running agent: a Unix socket in the state directory, one order a
//! connection, as a line of JSON each way.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::agent::Call;
use crate::orders::{Answer, Order};

/// Longest order.
const ORDER_BYTES_MAX: usize = 256;
/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Time for an asker to say what it wants, and to take the answer.
const TALK: Duration = Duration::from_secs(2);
/// How long an agent that has just started may take to listen.
const LISTEN_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// Orders are for root and the agent's own user.
pub(super) const MODE: u32 = 0o600;

/// Makes the socket, in place of one that an earlier run left behind, and of nothing else.
pub(super) fn bind(path: &Path, mode: u32) -> io::Result<StdListener> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("something else than a socket lies there"));
        }
        // Full is as good as taken.
        Ok(_) => match StdStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            _ => return Err(io::Error::new(io::ErrorKind::AddrInUse, "someone listens there")),
        },
    }
    let aside = crate::fs::aside(path);
    let _ = fs::remove_file(&aside);
    let listener = StdListener::bind(&aside)?;
    // Under its name only with its rights on.
    fs::set_permissions(&aside, Permissions::from_mode(mode))?;
    fs::rename(&aside, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes one connection after the other: an operator has no two orders at once.
pub(super) async fn serve(listener: UnixListener, call: Call) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = talk(stream, &call).await {
                    tracing::debug!(%error, "An order was not understood or not answered.");
                }
            }
            // Out of descriptors, or the like: no reason to spin.
            Err(_) => tokio::time::sleep(TALK).await,
        }
    }
}

async fn talk(mut stream: UnixStream, call: &Call) -> io::Result<()> {
    let order: Order = serde_json::from_slice(&timeout(TALK, line(&mut stream)).await??)?;
    let Some(answer) = call.order(order).await else { return Ok(()) };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(TALK, stream.write_all(&text)).await?
}

async fn line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(ORDER_BYTES_MAX);
    while line.len() < ORDER_BYTES_MAX {
        match stream.read_u8().await? {
            b'\n' => return Ok(line),
            byte => line.push(byte),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Why the running agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It can't be reached.
    #[error("an edge is at work here, but does not listen on {}: {source}; where that is `edge once`, wait for its end; else run this as root or as the agent's user", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It ended, or has too much to do.
    #[error("the agent at work did not answer ({0}); look at its log, then try again")]
    Broken(String),
}

/// Asks the running agent to carry out `order`, and waits for as long as that takes.
///
/// # Errors
/// [`AskError`]; whether the order was carried out is then not known.
pub fn ask(path: &Path, order: &Order) -> Result<Answer, AskError> {
    let mut stream = connect(path)?;
    let broken = |error: io::Error| AskError::Broken(error.to_string());
    let mut text = serde_json::to_vec(order).map_err(io::Error::from).map_err(broken)?;
    text.push(b'\n');
    stream.write_all(&text).map_err(broken)?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line).map_err(broken)?;
    if line.is_empty() {
        return Err(AskError::Broken("it closed the connection".into()));
    }
    serde_json::from_str(&line).map_err(io::Error::from).map_err(broken)
}

fn connect(path: &Path) -> Result<StdStream, AskError> {
    let deadline = Instant::now() + LISTEN_PATIENCE;
    loop {
        let source = match StdStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(source) => source,
        };
        let is_early =
            matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        if !is_early || Instant::now() >= deadline {
            return Err(AskError::Connect { path: path.into(), source });
        }
        thread::sleep(POLL);
    }
}
