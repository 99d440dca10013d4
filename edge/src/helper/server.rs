//! The helper's side: checks who asks, does one of five things, answers.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use brokertuner_core::envelope::Violation;
use brokertuner_core::{Envelope, Settings, render};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::{Answer, Request, receive, send};
use crate::apply::{Paths, set_aside};
use crate::control::{Broker as _, LiveBroker};
use crate::fs::{self, Files as _, MODE_CONF, RealFiles};
use crate::sampler::read_process;

/// How long a peer may take for its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the helper may touch, and who may ask.
#[derive(Debug)]
pub struct Helper {
    /// The broker, by the helper's own configuration.
    pub broker: LiveBroker,
    /// Its files.
    pub paths: Paths,
    /// The operator's bounds: which options may be written at all, and to what.
    pub envelope: Envelope,
    /// The user whose processes may ask, besides root.
    pub user_id: u32,
}

impl Helper {
    /// Does what is asked, if it can be done.
    fn answer(&self, request: Request) -> Answer {
        let done = match request {
            Request::Process => match self.broker.process() {
                Ok(process) => return Answer::Process(process),
                Err(error) => Err(error.to_string()),
            },
            Request::Status => {
                let read = |process| read_process(process).map_err(|error| error.to_string());
                match self.broker.process().map_err(|error| error.to_string()).and_then(read) {
                    Ok(status) => return Answer::Status(status),
                    Err(error) => Err(error),
                }
            }
            Request::Write(text) => self.write(text.as_deref()),
            Request::Reload => self.reload(),
            Request::Restart { save_first, set_database_aside } => {
                self.restart(save_first, set_database_aside)
            }
        };
        done.map_or_else(Answer::Refused, |()| Answer::Done)
    }

    /// Writes only what core itself renders: no line of another option, no include, no comment.
    fn write(&self, text: Option<&str>) -> Result<(), String> {
        if let Some(text) = text {
            let settings = render::parse(text).map_err(|error| format!("refused: {error}"))?;
            if render::render(&settings).as_str() != text {
                return Err("refused: not as BrokerTuner renders settings".into());
            }
            self.check(&settings)?;
        }
        let bytes = text.map(str::as_bytes);
        fs::replace(&RealFiles, &self.paths.drop_in, bytes, MODE_CONF).map_err(|e| e.to_string())
    }

    /// What the operator forbids is refused, whoever asks. What the site has and what stands in the
    /// drop-in already is nothing new: a line is given up, or put back.
    fn check(&self, settings: &Settings) -> Result<(), String> {
        let present = RealFiles.read(&self.paths.drop_in).ok().flatten();
        let present = present.and_then(|bytes| render::parse(&String::from_utf8(bytes).ok()?).ok());
        let present = present.unwrap_or_default();
        let found = self.envelope.check(settings);
        let forbidden = found.iter().find(|violation| {
            let knob = violation.knob();
            let is_operators = matches!(violation, Violation::Held(_) | Violation::OutOfBounds(..));
            let is_sites = settings.get(knob).value() == Some(self.envelope.site.get(knob));
            is_operators && !is_sites && settings.get(knob) != present.get(knob)
        });
        forbidden.map_or(Ok(()), |violation| Err(format!("refused: {violation}")))
    }

    fn reload(&self) -> Result<(), String> {
        let process = self.broker.process().map_err(|error| error.to_string())?;
        self.broker.reload(process).map_err(|error| error.to_string())
    }

    fn restart(&self, save_first: bool, set_database_aside: bool) -> Result<(), String> {
        let database = self.paths.database.as_deref();
        if (save_first || set_database_aside) && database.is_none() {
            return Err("the broker's database is not known; set broker.database".into());
        }
        if let Some(database) = database.filter(|_| save_first) {
            let process = self.broker.process().map_err(|error| error.to_string())?;
            self.broker.save(process, database).map_err(|error| error.to_string())?;
        }
        if let Some(database) = database.filter(|_| set_database_aside) {
            set_aside(&RealFiles, database).map_err(|error| error.to_string())?;
        }
        self.broker.restart().map_err(|error| error.to_string())
    }
}

/// Answers the one request of a connection.
///
/// # Errors
/// A peer that may not ask, or that does not ask in time; nothing was done then.
pub fn serve(helper: &Helper, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() != 0 && peer.uid() != helper.user_id {
        let said = format!("user {} may not ask; helper.user may", peer.uid());
        tracing::warn!(pid = peer.pid(), "{said}");
        return send(stream, &Answer::Refused(said));
    }
    let request: Request = receive(stream)?;
    let answer = helper.answer(request.clone());
    match (&request, &answer) {
        (_, Answer::Refused(reason)) => tracing::warn!(?request, %reason, "Refused."),
        (Request::Process | Request::Status, _) => tracing::debug!(?request, "Done."),
        _ => tracing::info!(?request, "Done."),
    }
    send(stream, &answer)
}

/// Serves one connection after the other.
pub fn serve_for_ever(helper: &Helper, listener: &UnixListener) -> io::Error {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = serve(helper, &stream) {
                    tracing::warn!(%error, "A request was not answered.");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error,
        }
    }
}
