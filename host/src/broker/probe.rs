//! Questions to a broker, in as much MQTT 3.1.1 as they need.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::error::BrokerError;
use super::find::Mosquitto;
use super::process::{BrokerProcess, LogTypes, SpawnConfig};

const CONNECT_WAIT: Duration = Duration::from_millis(500);
const ANSWER_WAIT: Duration = Duration::from_millis(500);
/// With clean session the broker accepts an empty client identifier.
const CONNECT: [u8; 14] = *b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0";
const DISCONNECT: [u8; 2] = [0xe0, 0];
const TOPIC: &[u8] = b"p";

const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const SUBACK: u8 = 0x90;

/// Whether a broker answers a CONNECT on `addr`, with whatever code.
pub(super) fn answers(addr: SocketAddr) -> bool {
    connect(addr).is_ok_and(|mut stream| {
        let _ = stream.write_all(&DISCONNECT); // it has answered: that was the question
        true
    })
}

/// Whether this broker keeps at most `max_inflight_messages` messages unacknowledged while
/// acknowledgements do come back. 2.0.11 does not: its window grows with a subscriber that
/// acknowledges 50 ms late.
///
/// Takes up to 2 s on a broker of its own with a window of 20: as many messages are offered as fill
/// it over and over.
///
/// # Errors
/// Those of [`BrokerProcess::spawn`], and [`BrokerError::Probe`] where the answers make no sense.
pub fn window_holds(mosquitto: &Mosquitto) -> Result<bool, BrokerError> {
    const WINDOW: usize = 20;
    let config = SpawnConfig {
        persistence: false,
        dropin: Some(format!("max_inflight_messages {WINDOW}\n")),
        log_types: LogTypes::Problems,
        ..SpawnConfig::default()
    };
    let broker = BrokerProcess::spawn(mosquitto, &config)?;
    let most = most_unacked(broker.addr(), WINDOW)
        .map_err(|error| BrokerError::Probe { reason: error.to_string() })?;
    if most < WINDOW {
        let reason = format!(
            "only {most} messages came at once through a window of {WINDOW}: the load was too low"
        );
        return Err(BrokerError::Probe { reason });
    }
    Ok(most == WINDOW)
}

/// The most messages that a subscriber ever held unacknowledged; stops at the first beyond
/// `enough`.
fn most_unacked(addr: SocketAddr, enough: usize) -> io::Result<usize> {
    const DURATION: Duration = Duration::from_millis(1_500);
    const INTERVAL: Duration = Duration::from_millis(1);
    const ACK_DELAY: Duration = Duration::from_millis(50);

    let mut subscriber = Packets::new(connect(addr)?);
    subscriber.stream.write_all(&subscribe())?;
    subscriber.wait_for(SUBACK)?;
    subscriber.stream.set_nonblocking(true)?;
    let mut publisher = Packets::new(connect(addr)?);
    publisher.stream.set_nonblocking(true)?;

    let began = Instant::now();
    let mut sent: u32 = 0;
    let mut most = 0;
    let mut unacked: VecDeque<(Instant, [u8; 2])> = VecDeque::new();
    while began.elapsed() < DURATION {
        while INTERVAL * sent < began.elapsed() {
            sent += 1;
            publisher.stream.write_all(&publish(sent))?;
        }
        while publisher.next()?.is_some() {}
        while let Some((kind, body)) = subscriber.next()? {
            if kind & 0xf0 == PUBLISH {
                unacked.push_back((Instant::now() + ACK_DELAY, packet_id(&body)?));
            }
        }
        most = most.max(unacked.len());
        if most > enough {
            break;
        }
        while let Some(&(due, [high, low])) = unacked.front()
            && due <= Instant::now()
        {
            subscriber.stream.write_all(&[0x40, 2, high, low])?;
            unacked.pop_front();
        }
        std::thread::sleep(INTERVAL / 4);
    }
    Ok(most)
}

/// Connects and waits for the CONNACK.
fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&addr, CONNECT_WAIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    stream.write_all(&CONNECT)?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack)?;
    if connack[0] != CONNACK {
        return Err(io::Error::other(format!("no CONNACK but {connack:?}")));
    }
    Ok(stream)
}

fn subscribe() -> Vec<u8> {
    [&[0x82, 6, 0, 1, 0, 1][..], TOPIC, &[1]].concat()
}

/// QoS 1, with no payload; identifiers 1 to 65535 in turn.
fn publish(number: u32) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation, reason = "below 65536 by the remainder")]
    let id = (number % 65_535 + 1) as u16;
    [&[0x32, 5, 0, 1][..], TOPIC, &id.to_be_bytes()].concat()
}

/// The identifier of a QoS 1 PUBLISH on [`TOPIC`].
fn packet_id(body: &[u8]) -> io::Result<[u8; 2]> {
    let at = 2 + TOPIC.len();
    match body.get(at..at + 2) {
        Some(&[high, low]) => Ok([high, low]),
        _ => Err(io::Error::other("a PUBLISH without an identifier")),
    }
}

/// Cuts a connection's bytes into packets of less than 128 bytes, which is all that comes here.
struct Packets {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Packets {
    fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next packet's first byte and body, reading once if need be; `None` where none is
    /// complete.
    fn next(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        if let Some(packet) = self.take()? {
            return Ok(Some(packet));
        }
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => self.buffer.extend_from_slice(&chunk[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        self.take()
    }

    fn take(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        let Some(&[kind, length]) = self.buffer.first_chunk() else { return Ok(None) };
        if length >= 128 {
            return Err(io::Error::other("a packet longer than the probe's own"));
        }
        let end = 2 + usize::from(length);
        if self.buffer.len() < end {
            return Ok(None);
        }
        let body = self.buffer[2..end].to_vec();
        self.buffer.drain(..end);
        Ok(Some((kind, body)))
    }

    fn wait_for(&mut self, wanted: u8) -> io::Result<()> {
        match self.next()? {
            Some((kind, _)) if kind == wanted => Ok(()),
            other => Err(io::Error::other(format!("expected packet {wanted:#x}, got {other:?}"))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn peer(answer: &'static [u8]) -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut connect = [0; CONNECT.len()];
            stream.read_exact(&mut connect).unwrap();
            stream.write_all(answer).unwrap();
        });
        (addr, thread)
    }

    #[test]
    fn only_a_connack_is_an_answer() {
        for (answer, expected) in [
            (&b"\x20\x02\0\0"[..], true),
            (b"\x20\x02\0\x05", true),
            (b"HTTP", false),
            (b"\x20", false),
            (b"", false),
        ] {
            let (addr, thread) = peer(answer);
            assert_eq!(answers(addr), expected, "{answer:?}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn packets_are_cut_wherever_the_bytes_are() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (reader, _) = listener.accept().unwrap();
        reader.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut packets = Packets::new(reader);
        writer.write_all(b"\x32").unwrap();
        assert_eq!(packets.next().unwrap(), None);
        writer.write_all(b"\x05\0\x01p\x12\x34\x40\x02\0\x01").unwrap();
        let (kind, body) = packets.next().unwrap().unwrap();
        assert_eq!((kind, packet_id(&body).unwrap()), (0x32, [0x12, 0x34]));
        writer.write_all(b"\x40\x80").unwrap();
        assert_eq!(packets.next().unwrap(), Some((0x40, vec![0, 1])));
        assert!(packets.next().is_err(), "a long packet is refused");
        assert!(packet_id(b"\0\x01p\x12").is_err());
    }
}
