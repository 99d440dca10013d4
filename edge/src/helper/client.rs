//! The agent's side: the same seams as without a helper, carried out by it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use brokertuner_core::sample::ProcSample;

use super::{Answer, Request, receive, send};
use crate::connack::{Connack, ConnackError};
use crate::control::{Broker, ControlError, LiveBroker};
use crate::fs::{Digest, Files, RealFiles, aside, dir_of};
use crate::notify;
use crate::pid::{PidError, ProcessId};

/// Asks the helper.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its socket.
    pub socket: PathBuf,
    /// Longest wait for an answer: a restart with a save takes two commands' time.
    pub timeout: Duration,
}

impl Client {
    /// One request on a connection of its own.
    ///
    /// # Errors
    /// The helper can't be reached, or refuses; the message says what to do.
    pub fn ask(&self, request: &Request) -> io::Result<Answer> {
        notify::alive();
        let socket = self.socket.display();
        let failed = |error: io::Error| {
            let kind = error.kind();
            io::Error::new(
                kind,
                format!(
                    "the helper at {socket}: {error}; start brokertuner-helper.socket, or set helper.use = false"
                ),
            )
        };
        let stream = UnixStream::connect(&self.socket).map_err(failed)?;
        stream.set_read_timeout(Some(self.timeout)).map_err(failed)?;
        stream.set_write_timeout(Some(self.timeout)).map_err(failed)?;
        exchange(&stream, request).map_err(failed)
    }

    fn done(&self, request: &Request) -> io::Result<()> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            Answer::Refused(reason) => Err(io::Error::other(reason)),
            Answer::Process(_) | Answer::Status(_) => Err(io::Error::other("another answer")),
        }
    }

    /// The broker's process.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn process(&self) -> io::Result<ProcessId> {
        match self.ask(&Request::Process)? {
            Answer::Process(process) => Ok(process),
            Answer::Refused(reason) => Err(io::Error::other(reason)),
            Answer::Done | Answer::Status(_) => Err(io::Error::other("another answer")),
        }
    }

    /// What `/proc` says of the broker's process.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn status(&self) -> io::Result<ProcSample> {
        match self.ask(&Request::Status)? {
            Answer::Status(status) => Ok(status),
            Answer::Refused(reason) => Err(io::Error::other(reason)),
            Answer::Done | Answer::Process(_) => Err(io::Error::other("another answer")),
        }
    }
}

/// Asks, and hears the answer: also where the helper had given it, and closed, before it was asked
/// (it refuses a user without reading on).
fn exchange(stream: &UnixStream, request: &Request) -> io::Result<Answer> {
    let sent = send(stream, request);
    receive(stream).map_err(|error| sent.err().unwrap_or(error))
}

/// What the next restart is to do beside: saving and setting aside come before it, and are one
/// request with it.
#[derive(Debug, Default)]
struct Flags {
    save_first: AtomicBool,
    set_database_aside: AtomicBool,
}

/// A broker that the helper reloads and restarts.
#[derive(Debug)]
pub struct HelperBroker {
    live: LiveBroker,
    client: Client,
    flags: Arc<Flags>,
}

/// The agent's own files, and the drop-in by the helper.
#[derive(Debug)]
pub struct HelperFiles {
    client: Client,
    drop_in: PathBuf,
    database: Option<PathBuf>,
    pending: Mutex<Option<Vec<u8>>>,
    flags: Arc<Flags>,
}

impl Client {
    /// The two seams of the applier, for the broker that `live` connects to.
    #[must_use]
    pub fn seams(
        self,
        live: LiveBroker,
        drop_in: &Path,
        database: Option<&Path>,
    ) -> (HelperFiles, HelperBroker) {
        let flags = Arc::new(Flags::default());
        let files = HelperFiles {
            client: self.clone(),
            drop_in: drop_in.into(),
            database: database.map(Into::into),
            pending: Mutex::default(),
            flags: Arc::clone(&flags),
        };
        (files, HelperBroker { live, client: self, flags })
    }
}

impl Broker for HelperBroker {
    fn begin(&self) {
        self.flags.save_first.store(false, Ordering::Relaxed);
        self.flags.set_database_aside.store(false, Ordering::Relaxed);
    }

    fn process(&self) -> Result<ProcessId, PidError> {
        self.live.finder.find()
    }

    fn reload(&self, _: ProcessId) -> Result<(), ControlError> {
        let failed = |source| ControlError::Helper { verb: "reload", source };
        self.client.done(&Request::Reload).map_err(failed)
    }

    fn restart(&self) -> Result<(), ControlError> {
        let failed = |source| ControlError::Helper { verb: "restart", source };
        let request = Request::Restart {
            save_first: self.flags.save_first.swap(false, Ordering::Relaxed),
            set_database_aside: self.flags.set_database_aside.swap(false, Ordering::Relaxed),
        };
        self.client.done(&request).map_err(failed)
    }

    /// The restart that follows sees to it.
    fn save(&self, _: ProcessId, _: &Path) -> Result<(), ControlError> {
        self.flags.save_first.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn answer(&self) -> Result<Connack, ConnackError> {
        self.live.answer()
    }
}

impl HelperFiles {
    fn pending(&self) -> std::sync::MutexGuard<'_, Option<Vec<u8>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_aside(&self, path: &Path) -> bool {
        path == aside(&self.drop_in)
    }
}

impl Files for HelperFiles {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        RealFiles.read(path)
    }

    fn sha256(&self, path: &Path) -> io::Result<Option<Digest>> {
        RealFiles.sha256(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealFiles.exists(path)
    }

    /// The drop-in's text is kept until its rename: the helper does both in one.
    fn write_synced(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        if !self.is_aside(path) {
            return RealFiles.write_synced(path, bytes, mode);
        }
        *self.pending() = Some(bytes.to_vec());
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.database.as_deref() == Some(from) {
            self.flags.set_database_aside.store(true, Ordering::Relaxed);
            return Ok(());
        }
        if to != self.drop_in {
            return RealFiles.rename(from, to);
        }
        let bytes = self.pending().take().ok_or(io::ErrorKind::NotFound)?;
        let text = String::from_utf8(bytes).map_err(io::Error::other)?;
        self.client.done(&Request::Write(Some(text)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.is_aside(path) {
            *self.pending() = None;
            return Ok(());
        }
        if path != self.drop_in {
            return RealFiles.remove(path);
        }
        self.client.done(&Request::Write(None))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Those of drop-in and database are synced by the helper, before it answers.
        let by_helper = [Some(&*self.drop_in), self.database.as_deref()];
        if by_helper.into_iter().flatten().any(|file| dir == dir_of(file)) {
            Ok(())
        } else {
            RealFiles.sync_dir(dir)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    /// The save of a change that never came to its restart is no part of the next one's.
    #[test]
    fn another_change_begins_without_what_an_earlier_one_asked_for() {
        let socket = tempfile::tempdir().unwrap().path().join("none");
        let client = Client { socket, timeout: Duration::from_secs(1) };
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let live = LiveBroker {
            address,
            client_id: "test".into(),
            credentials: None,
            mqtt: crate::mqtt::ProtocolChoice::default(),
            tls: None,
            finder: crate::pid::PidFinder::listener(address),
            reload: crate::control::Method::None,
            restart: crate::control::Method::None,
            command_timeout: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(1),
        };
        let database = Path::new("/var/lib/mosquitto/mosquitto.db");
        let (files, broker) = client.seams(live, Path::new("/tmp/zz.conf"), Some(database));
        let process = ProcessId { pid: 1, start_ticks: 1 };
        broker.save(process, database).unwrap();
        files.rename(database, Path::new("/aside")).unwrap();
        broker.begin();
        assert!(!broker.flags.save_first.load(Ordering::Relaxed));
        assert!(!broker.flags.set_database_aside.load(Ordering::Relaxed));
    }

    #[test]
    fn a_refusal_is_heard_though_the_helper_has_closed() {
        let (agent, helper) = UnixStream::pair().unwrap();
        send(&helper, &Answer::Refused("user 7 may not ask".into())).unwrap();
        drop(helper);
        let answer = exchange(&agent, &Request::Process).unwrap();
        assert!(matches!(answer, Answer::Refused(reason) if reason.contains("user 7")));
        let (agent, helper) = UnixStream::pair().unwrap();
        drop(helper);
        let error = exchange(&agent, &Request::Process).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{error}");
    }
}
