//! A raw MQTT client that does exactly what a test says, wrong things included.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// The protocol level of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    V311 = 4,
    V5 = 5,
}

/// What a CONNACK of MQTT 5 said about the broker's limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Receive Maximum: the effective `max_inflight_messages`; absent where unlimited.
    pub(crate) receive_maximum: Option<u16>,
    /// Maximum Packet Size: the effective `max_packet_size`; absent where unlimited.
    pub(crate) packet_bytes_max: Option<u32>,
}

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    level: Level,
    /// From the CONNACK; empty for 3.1.1.
    pub(crate) limits: Limits,
    pub(crate) session_present: bool,
}

/// A packet: its first byte and what follows the length.
pub(crate) type Packet = (u8, Vec<u8>);

impl Client {
    /// Connects with a new session.
    pub(crate) fn connect(addr: SocketAddr, level: Level, id: &str) -> Self {
        Self::open(addr, level, id, true).unwrap()
    }

    /// Connects with a session that stays (3.1.1).
    pub(crate) fn connect_durable(addr: SocketAddr, id: &str) -> Self {
        Self::open(addr, Level::V311, id, false).unwrap()
    }

    /// Connects; an error where the broker does not accept.
    pub(crate) fn open(
        addr: SocketAddr,
        level: Level,
        id: &str,
        clean: bool,
    ) -> Result<Self, String> {
        let stream =
            TcpStream::connect_timeout(&addr, PATIENCE).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).unwrap();
        let mut client = Self {
            stream,
            buffer: Vec::new(),
            level,
            limits: Limits::default(),
            session_present: false,
        };
        let mut body = b"\0\x04MQTT".to_vec();
        body.extend([level as u8, u8::from(clean) << 1, 0, 60]);
        client.push_properties(&mut body);
        body.extend(string(id));
        client.send(0x10, &body);
        let (kind, connack) = client.receive(PATIENCE).ok_or("closed instead of a CONNACK")?;
        assert_eq!(kind, 0x20, "expected a CONNACK");
        if connack[1] != 0 {
            return Err(format!("CONNACK code {}", connack[1]));
        }
        client.session_present = connack[0] == 1;
        if level == Level::V5 {
            client.limits = limits(&connack[2..]);
        }
        Ok(client)
    }

    /// Subscribes and waits for the SUBACK.
    pub(crate) fn subscribe(&mut self, filter: &str, qos: u8) {
        let mut body = vec![0, 1];
        self.push_properties(&mut body);
        body.extend(string(filter));
        body.push(qos);
        self.send(0x82, &body);
        self.receive_kind(0x90);
    }

    /// Sends a PUBLISH and waits for nothing.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], qos: u8, id: u16) {
        let mut body = string(topic);
        if qos > 0 {
            body.extend(id.to_be_bytes());
        }
        self.push_properties(&mut body);
        body.extend(payload);
        self.send(0x30 | qos << 1, &body);
    }

    /// Sends a retained QoS 0 PUBLISH.
    pub(crate) fn publish_retained(&mut self, topic: &str, payload: &[u8]) {
        self.send(0x31, &[&string(topic)[..], payload].concat());
    }

    /// Sends a PUBACK.
    pub(crate) fn acknowledge(&mut self, id: [u8; 2]) {
        self.send(0x40, &id);
    }

    /// Sends QoS 1 publishes 1 to `count`, each after the PUBACK of the one before.
    pub(crate) fn publish_acked(&mut self, topic: &str, payload: &[u8], count: u16) {
        for id in 1..=count {
            self.publish(topic, payload, 1, id);
            self.receive_kind(0x40);
        }
    }

    /// Skips packets up to one of a kind.
    ///
    /// # Panics
    /// Where the connection closes first.
    pub(crate) fn receive_kind(&mut self, wanted: u8) -> Packet {
        loop {
            let packet = self
                .receive(PATIENCE)
                .unwrap_or_else(|| panic!("closed before packet {wanted:#x}"));
            if packet.0 & 0xf0 == wanted {
                return packet;
            }
        }
    }

    /// The next packet; `None` where the broker closed the connection.
    ///
    /// # Panics
    /// Where nothing comes in time.
    pub(crate) fn receive(&mut self, within: Duration) -> Option<Packet> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(packet) = self.take() {
                return Some(packet);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no packet within {within:?}");
            self.stream.set_read_timeout(Some(left)).unwrap();
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(len) => self.buffer.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                // Interrupted: stopped and continued in between.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// All packets up to the answer to a ping: what the broker had sent by then.
    pub(crate) fn receive_until_ping(&mut self) -> Vec<Packet> {
        self.send(0xc0, &[]);
        let mut packets = Vec::new();
        loop {
            let packet = self.receive(PATIENCE).expect("closed before the PINGRESP");
            if packet.0 == 0xd0 {
                return packets;
            }
            packets.push(packet);
        }
    }

    /// Disconnects, and returns when the broker has let go of the connection.
    pub(crate) fn leave(mut self) {
        self.send(0xe0, &[]);
        while self.receive(PATIENCE).is_some() {}
    }

    /// Whether the broker still answers on this connection.
    pub(crate) fn is_open(&mut self) -> bool {
        if self.stream.write_all(&[0xc0, 0]).is_err() {
            return false;
        }
        while let Some(packet) = self.receive(PATIENCE) {
            if packet.0 == 0xd0 {
                return true;
            }
        }
        false
    }

    fn take(&mut self) -> Option<Packet> {
        let (length, at) = variable_integer(self.buffer.get(1..)?)?;
        let end = 1 + at + length;
        if self.buffer.len() < end {
            return None;
        }
        let packet = (self.buffer[0], self.buffer[1 + at..end].to_vec());
        self.buffer.drain(..end);
        Some(packet)
    }

    fn push_properties(&self, body: &mut Vec<u8>) {
        if self.level == Level::V5 {
            body.push(0);
        }
    }

    /// A broker that has closed the connection is noticed by the next receive.
    fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut left = body.len();
        loop {
            let low = u8::try_from(left % 128).unwrap();
            left /= 128;
            packet.push(if left > 0 { low | 0x80 } else { low });
            if left == 0 {
                break;
            }
        }
        packet.extend(body);
        let _ = self.stream.write_all(&packet);
    }
}

/// The limits as a new MQTT 5 client sees them.
pub(crate) fn limits_at(addr: SocketAddr) -> Limits {
    Client::connect(addr, Level::V5, "limits").limits
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

fn variable_integer(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

fn limits(properties: &[u8]) -> Limits {
    let (length, start) = variable_integer(properties).expect("a property length");
    let mut rest = &properties[start..start + length];
    let mut limits = Limits::default();
    while let Some((&id, value)) = rest.split_first() {
        let bytes = match id {
            0x21 => {
                limits.receive_maximum = Some(u16::from_be_bytes([value[0], value[1]]));
                2
            }
            0x27 => {
                limits.packet_bytes_max = Some(u32::from_be_bytes(*value.first_chunk().unwrap()));
                4
            }
            0x22 | 0x13 => 2,
            0x11 => 4,
            0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
            0x12 => 2 + usize::from(u16::from_be_bytes([value[0], value[1]])),
            other => panic!("a property {other:#x} in the CONNACK"),
        };
        rest = &value[bytes..];
    }
    limits
}
