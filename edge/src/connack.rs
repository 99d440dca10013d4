//! One CONNECT: does the broker answer, and with which limits?
//!
//! The CONNACK of MQTT 5 is the only in-band read-back of a running Mosquitto's configuration: it
//! shows the effective `max_inflight_messages` (Receive Maximum) and `max_packet_size`. That of
//! MQTT 3.1.1 shows nothing.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::mqtt::{Protocol, ProtocolChoice};
use crate::tls::{self, Stream, Tls};

/// Longest CONNACK that is looked at; Mosquitto's takes some 30 bytes.
const CONNACK_BYTES_MAX: usize = 512;
/// Longest string of MQTT, and so longest user name or password.
const STRING_BYTES_MAX: usize = 65_535;
/// Reason code of a broker that does not speak the version of a CONNECT.
const UNSUPPORTED_PROTOCOL: u8 = 0x84;
/// MQTT 5 reason codes for the return codes 0 to 5 of MQTT 3.1.1.
const REASONS_311: [u8; 6] = [0, UNSUPPORTED_PROTOCOL, 0x85, 0x88, 0x86, 0x87];

/// User and password, as read from their files.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password; may be empty.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What the broker said to a CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connack {
    /// The version that it is of.
    pub protocol: Protocol,
    /// MQTT 5 reason code, also for an answer of 3.1.1; 0 is success.
    pub reason: u8,
    /// Receive Maximum; `None` (65535 by the standard) where the broker sets no window.
    pub receive_maximum: Option<u16>,
    /// Maximum Packet Size in bytes; `None` where the broker sets none.
    pub packet_bytes_max: Option<u32>,
}

impl Connack {
    /// The connection was accepted.
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.reason == 0
    }

    /// It tells the broker's limits: what it does not name is unlimited.
    #[must_use]
    pub fn shows_limits(&self) -> bool {
        self.accepted() && self.protocol == Protocol::V5
    }

    /// The broker does not speak this version of MQTT here.
    #[must_use]
    pub fn refuses_protocol(&self) -> bool {
        self.reason == UNSUPPORTED_PROTOCOL
    }

    /// The broker runs but does not let this client in (bad credentials, not authorised, banned).
    #[must_use]
    pub fn denied(&self) -> bool {
        matches!(self.reason, 0x85..=0x87 | 0x8A | 0x8C)
    }
}

/// Why no CONNACK was read.
#[derive(Debug, thiserror::Error)]
pub enum ConnackError {
    /// Nothing listens there.
    #[error(
        "nothing listens on {address}: start the broker, or correct broker.host and broker.port"
    )]
    Refused {
        /// Where.
        address: SocketAddr,
    },
    /// The socket opened but no answer came in time.
    #[error("{address} accepts connections but did not answer CONNECT within {timeout_ms} ms")]
    Silent {
        /// Where.
        address: SocketAddr,
        /// How long was waited.
        timeout_ms: u128,
    },
    /// Closed before a whole CONNACK was there.
    #[error("{address} closed the connection instead of answering CONNECT")]
    Closed {
        /// Where.
        address: SocketAddr,
    },
    /// An answer, but no CONNACK.
    #[error(
        "{address} answered CONNECT with something that is no CONNACK ({reason}); is it a Mosquitto 2?"
    )]
    Malformed {
        /// Where.
        address: SocketAddr,
        /// What is wrong with the bytes.
        reason: &'static str,
    },
    /// It does not speak TLS as configured.
    #[error("{address}: {what}")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Any other socket error.
    #[error("{address}: {source}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

/// Connects, sends one CONNECT (clean start, no session), reads the CONNACK, disconnects.
///
/// With [`ProtocolChoice::Auto`] a broker that refuses MQTT 5 is asked once more by 3.1.1.
/// `timeout` bounds each exchange, whatever the peer does.
///
/// # Errors
/// [`ConnackError`]; a CONNACK that refuses is no error here, see [`Connack::reason`].
pub fn probe(
    address: SocketAddr,
    client_id: &str,
    credentials: Option<&Credentials>,
    tls: Option<&Tls>,
    choice: ProtocolChoice,
    timeout: Duration,
) -> Result<Connack, ConnackError> {
    let ask = |protocol| {
        let packet = connect_packet(protocol, client_id, credentials);
        exchange(address, &packet, tls, timeout).and_then(|connack| {
            if connack.protocol == protocol || connack.refuses_protocol() {
                Ok(connack)
            } else {
                Err(ConnackError::Malformed { address, reason: "it is of another version of MQTT" })
            }
        })
    };
    match ask(choice.first()) {
        Ok(connack) if connack.refuses_protocol() && choice == ProtocolChoice::Auto => {
            ask(Protocol::V311)
        }
        answer => answer,
    }
}

fn exchange(
    address: SocketAddr,
    packet: &[u8],
    tls: Option<&Tls>,
    timeout: Duration,
) -> Result<Connack, ConnackError> {
    let deadline = Instant::now() + timeout;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::ConnectionRefused => ConnackError::Refused { address },
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            ConnackError::Silent { address, timeout_ms: timeout.as_millis() }
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => ConnackError::Closed { address },
        _ => match tls::remedy(&source) {
            Some(what) => ConnackError::Tls { address, what },
            None => ConnackError::Io { address, source },
        },
    };
    let socket = TcpStream::connect_timeout(&address, timeout).map_err(failed)?;
    let timed = Timed { socket, deadline };
    let mut stream: Box<dyn Stream> = match tls {
        Some(tls) => tls.wrap(timed).map_err(failed)?,
        None => Box::new(timed),
    };
    stream.write_all(packet).map_err(failed)?;

    let mut bytes = Vec::with_capacity(64);
    let mut chunk = [0; 64];
    loop {
        match parse(&bytes) {
            Ok(Some(connack)) => {
                // DISCONNECT: the broker logs an orderly end. It may already be gone.
                let _ = stream.write_all(&[0xE0, 0x00]);
                return Ok(connack);
            }
            Ok(None) => {}
            Err(reason) => return Err(ConnackError::Malformed { address, reason }),
        }
        if Instant::now() >= deadline {
            return Err(ConnackError::Silent { address, timeout_ms: timeout.as_millis() });
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Err(ConnackError::Closed { address }),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// A socket that answers nothing after its deadline, however little a peer sends at a time.
struct Timed {
    socket: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.remaining()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.remaining()?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

fn connect_packet(
    protocol: Protocol,
    client_id: &str,
    credentials: Option<&Credentials>,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    push_string(&mut body, "MQTT");
    let clean_start = 0x02;
    let with_login = if credentials.is_some() { 0xC0 } else { 0 };
    let level = if protocol == Protocol::V5 { 5 } else { 4 };
    body.extend_from_slice(&[level, clean_start | with_login, 0, 30]); // keep alive 30 s
    if protocol == Protocol::V5 {
        body.push(0); // no properties
    }
    push_string(&mut body, client_id);
    if let Some(login) = credentials {
        push_string(&mut body, &login.user);
        push_string(&mut body, &login.password);
    }
    let mut packet = vec![0x10];
    let mut length = body.len();
    loop {
        let digit = u8::try_from(length % 128).unwrap_or(0);
        length /= 128;
        packet.push(if length > 0 { digit | 0x80 } else { digit });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(&body);
    packet
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(STRING_BYTES_MAX)];
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Reads a CONNACK from the start of `bytes`: `None` while more is needed. Never panics.
///
/// # Errors
/// What is wrong with the bytes, in words.
pub fn parse(bytes: &[u8]) -> Result<Option<Connack>, &'static str> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    if first != 0x20 {
        return Err("its first byte is not that of a CONNACK");
    }
    let Some((length, body)) = variable_int(rest)? else { return Ok(None) };
    if length > CONNACK_BYTES_MAX {
        return Err("longer than any CONNACK");
    }
    let Some(body) = body.get(..length) else { return Ok(None) };
    let [_session_present, reason, properties @ ..] = body else { return Err("too short") };
    let mut connack = Connack {
        protocol: Protocol::V5,
        reason: *reason,
        receive_maximum: None,
        packet_bytes_max: None,
    };
    if properties.is_empty() {
        let known = REASONS_311.get(usize::from(*reason));
        let reason = *known.ok_or("a return code that MQTT 3.1.1 does not have")?;
        return Ok(Some(Connack { protocol: Protocol::V311, reason, ..connack }));
    }
    let Some((length, rest)) = variable_int(properties)? else {
        return Err("properties cut short");
    };
    let mut rest = rest.get(..length).ok_or("properties cut short")?;
    while let Some((&id, value)) = rest.split_first() {
        let size =
            property_size(id, value).ok_or("a property that no CONNACK has, or cut short")?;
        let field = value.get(..size).ok_or("a property cut short")?;
        match (id, field) {
            (0x21, &[a, b]) => connack.receive_maximum = Some(u16::from_be_bytes([a, b])),
            (0x27, &[a, b, c, d]) => {
                connack.packet_bytes_max = Some(u32::from_be_bytes([a, b, c, d]));
            }
            _ => {}
        }
        rest = &value[size..];
    }
    Ok(Some(connack))
}

/// Size in bytes of the value of property `id` at the start of `value` (MQTT 5, section 3.2.2.3).
fn property_size(id: u8, value: &[u8]) -> Option<usize> {
    let string = |at: usize| {
        let length = value.get(at..at + 2)?;
        Some(at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]])))
    };
    match id {
        0x24 | 0x25 | 0x28..=0x2A => Some(1),
        0x13 | 0x21 | 0x22 => Some(2),
        0x11 | 0x27 => Some(4),
        0x12 | 0x15 | 0x16 | 0x1A | 0x1C | 0x1F => string(0),
        0x26 => string(string(0)?),
        _ => None,
    }
}

/// MQTT's variable byte integer and what follows it; `None` while more bytes are needed.
fn variable_int(bytes: &[u8]) -> Result<Option<(usize, &[u8])>, &'static str> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, &bytes[index + 1..])));
        }
    }
    if bytes.len() >= 4 { Err("its length is malformed") } else { Ok(None) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    const TIMEOUT: Duration = Duration::from_millis(200);

    #[test]
    fn limits_are_read_and_absent_ones_are_none() {
        // Captured from Mosquitto 2.0.11: topic alias maximum 10, receive maximum 20.
        let bytes = [0x20, 0x09, 0x00, 0x00, 0x06, 0x22, 0x00, 0x0A, 0x21, 0x00, 0x14];
        let expected = Connack {
            protocol: Protocol::V5,
            reason: 0,
            receive_maximum: Some(20),
            packet_bytes_max: None,
        };
        assert_eq!(parse(&bytes), Ok(Some(expected)));
        let bytes = [0x20, 0x08, 0x00, 0x00, 0x05, 0x27, 0x00, 0x1E, 0x84, 0x80];
        assert_eq!(parse(&bytes).unwrap().unwrap().packet_bytes_max, Some(2_000_000));
        assert_eq!(parse(&[0x20, 0x03, 0x00, 0x87, 0x00]).unwrap().unwrap().reason, 0x87);
    }

    #[test]
    fn the_answers_of_mqtt_3_1_1_have_the_reasons_of_5_and_no_limits() {
        let reasons = [0, 0x84, 0x85, 0x88, 0x86, 0x87];
        for (code, reason) in (0..).zip(reasons) {
            let connack = parse(&[0x20, 0x02, 0x00, code]).unwrap().unwrap();
            assert_eq!((connack.protocol, connack.reason), (Protocol::V311, reason));
            assert!(!connack.shows_limits());
        }
        assert!(parse(&[0x20, 0x02, 0x00, 6]).is_err());
    }

    #[test]
    fn only_a_refusal_of_the_version_falls_back() {
        let auto = ProtocolChoice::Auto;
        for (choice, answers, expected) in [
            (auto, vec![(5, &[0x20, 2, 0, 1][..]), (4, &[0x20, 2, 0, 0])], Ok((Protocol::V311, 0))),
            (
                auto,
                vec![(5, &[0x20, 3, 0, 0x84, 0]), (4, &[0x20, 2, 0, 5])],
                Ok((Protocol::V311, 0x87)),
            ),
            (auto, vec![(5, &[0x20, 3, 0, 0x87, 0])], Ok((Protocol::V5, 0x87))),
            (auto, vec![(5, &[0x20, 2, 0, 0])], Err(())),
            (ProtocolChoice::V5, vec![(5, &[0x20, 2, 0, 1])], Ok((Protocol::V311, 0x84))),
            (ProtocolChoice::V311, vec![(4, &[0x20, 2, 0, 0])], Ok((Protocol::V311, 0))),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let peer = std::thread::spawn(move || {
                for (level, answer) in answers {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut packet = [0; 64];
                    let _ = stream.read(&mut packet).unwrap();
                    assert_eq!(packet[8], level);
                    stream.write_all(answer).unwrap();
                }
            });
            let answer = probe(address, "t", None, None, choice, Duration::from_secs(5));
            let seen = answer.map(|c| (c.protocol, c.reason)).map_err(drop);
            assert_eq!(seen, expected, "{choice:?}");
            peer.join().unwrap();
        }
    }

    #[test]
    fn every_prefix_waits_for_more() {
        let bytes = [0x20, 0x09, 0x00, 0x00, 0x06, 0x22, 0x00, 0x0A, 0x21, 0x00, 0x14];
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(None), "first {end} bytes");
        }
    }

    #[test]
    fn a_connect_packet_has_the_bytes_of_the_standard() {
        let packet = connect_packet(Protocol::V5, "ab", None);
        assert_eq!(packet, b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x1e\x00\x00\x02ab");
        let login = Credentials { user: "u".into(), password: "p".into() };
        let packet = connect_packet(Protocol::V5, "ab", Some(&login));
        assert_eq!(packet, b"\x10\x15\x00\x04MQTT\x05\xc2\x00\x1e\x00\x00\x02ab\x00\x01u\x00\x01p");
        let packet = connect_packet(Protocol::V311, "ab", None);
        assert_eq!(packet, b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x1e\x00\x02ab");
        assert!(!format!("{login:?}").contains("\"p\""), "the password is never printed");
    }

    #[test]
    fn nobody_silent_and_closing_peers_are_told_apart_in_bounded_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let started = Instant::now();
        assert!(matches!(
            probe(address, "t", None, None, ProtocolChoice::Auto, TIMEOUT),
            Err(ConnackError::Silent { .. })
        ));
        assert!(started.elapsed() < TIMEOUT * 10);
        let peer = std::thread::spawn(move || {
            // The silent probe's connection is the first in the backlog.
            let _silent = listener.accept().unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut sink = [0; 64];
            let _ = stream.read(&mut sink).unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut sink).unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
        });
        assert!(matches!(
            probe(address, "t", None, None, ProtocolChoice::Auto, TIMEOUT),
            Err(ConnackError::Closed { .. })
        ));
        assert!(matches!(
            probe(address, "t", None, None, ProtocolChoice::Auto, TIMEOUT),
            Err(ConnackError::Malformed { .. })
        ));
        peer.join().unwrap();
        assert!(matches!(
            probe(address, "t", None, None, ProtocolChoice::Auto, TIMEOUT),
            Err(ConnackError::Refused { .. })
        ));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
            let mut framed = vec![0x20, u8::try_from(bytes.len()).unwrap()];
            framed.extend_from_slice(&bytes);
            let _ = parse(&framed);
        }
    }
}
