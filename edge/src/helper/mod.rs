//! The privileged helper: five fixed requests over a Unix socket, so that the agent needs no rights.
//!
//! One request a connection: `length u16 | postcard`, both ways, little-endian. The helper acts by its
//! own configuration; a request names no path, no unit and no command. What it writes is what core
//! renders from settings that the knob table permits.

mod client;
mod server;

use std::io::{self, Read, Write};

use brokertuner_core::sample::ProcSample;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pid::ProcessId;

pub use client::{Client, HelperBroker, HelperFiles};
pub use server::{Helper, serve, serve_for_ever};

/// Where the helper listens.
pub const SOCKET_DEFAULT: &str = "/run/brokertuner/helper.sock";
/// Largest message either way: a drop-in has less than half of it.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What the helper does, and all that it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Finds the broker's process.
    Process,
    /// Reads what `/proc` says of the broker's process.
    Status,
    /// Replaces the drop-in by this text, or makes it absent.
    Write(Option<String>),
    /// Makes the broker read its configuration again.
    Reload,
    /// Makes the broker end and start again.
    Restart {
        /// First makes it save its state, and waits for a newer database file; refuses without one.
        save_first: bool,
        /// Renames the database, with a timestamp, so that the broker starts with none.
        set_database_aside: bool,
    },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The broker's process.
    Process(ProcessId),
    /// The broker's figures.
    Status(ProcSample),
    /// Done.
    Done,
    /// Not done, and why, with what to do.
    Refused(String),
}

fn send(mut stream: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut buffer = [0; MESSAGE_BYTES_MAX + 2];
    let length = postcard::to_slice(message, &mut buffer[2..])
        .map_err(|_| io::Error::other("the message is too long"))?
        .len();
    let bytes = u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
    buffer[..2].copy_from_slice(&bytes);
    stream.write_all(&buffer[..length + 2])?;
    stream.flush()
}

fn receive<T: DeserializeOwned>(mut stream: impl Read) -> io::Result<T> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let length = usize::from(u16::from_le_bytes(length));
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let message = buffer.get_mut(..length).ok_or_else(|| wrong("the message is too long"))?;
    stream.read_exact(message)?;
    match postcard::take_from_bytes(message) {
        Ok((message, [])) => Ok(message),
        _ => Err(wrong("the message is malformed")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_read_back_and_too_long_ones_are_refused() {
        for request in [
            Request::Process,
            Request::Write(Some("max_queued_messages 500\n".into())),
            Request::Restart { save_first: true, set_database_aside: false },
        ] {
            let mut bytes = Vec::new();
            send(&mut bytes, &request).unwrap();
            assert_eq!(receive::<Request>(&bytes[..]).unwrap(), request);
            for cut in 0..bytes.len() {
                assert!(receive::<Request>(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
        let long = Request::Write(Some("x".repeat(MESSAGE_BYTES_MAX)));
        assert!(send(Vec::new(), &long).is_err());
        assert!(receive::<Request>(&[0xff; 70_000][..]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = receive::<Request>(&bytes[..]);
            let mut framed = u16::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
            framed.extend_from_slice(&bytes);
            let _ = receive::<Request>(&framed[..]);
        }
    }
}
