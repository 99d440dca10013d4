//! One client: its identity, its connection, its buffers.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use super::codec::{self, Connect};
use super::publisher::Publisher;
use crate::scenario::{Protocol, Qos, SubscribeGroup, topic};

/// Keep alive of every connection; a PINGREQ goes after three quarters of it without any other
/// packet.
pub(super) const KEEP_ALIVE_S: u16 = 60;

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not part of the load now.
    Idle,
    /// Connects at this time.
    Waiting { until_ns: u64 },
    /// Connects as soon as few enough others are at it.
    Queued,
    /// TCP connection under way.
    Opening,
    /// CONNECT sent.
    Handshake,
    /// SUBSCRIBE sent.
    Subscribing,
    /// Takes part.
    Ready,
}

/// What a client is for.
pub(super) enum Role {
    Publisher(Publisher),
    Subscriber(Subscription),
}

/// What a subscriber asks for on every connection, and how it acknowledges.
pub(super) struct Subscription {
    pub(super) filter: String,
    pub(super) qos: Qos,
    pub(super) clean_session: bool,
    pub(super) receive_maximum: Option<u16>,
    pub(super) ack_delay_ns: u64,
}

impl Subscription {
    /// The subscription of client `index` of a group; its delay is set when a phase starts.
    pub(super) fn new(group: &SubscribeGroup, index: u32) -> Self {
        Self {
            filter: topic::expand(&group.filter, &group.name, index),
            qos: group.qos,
            clean_session: group.clean_session,
            receive_maximum: group.receive_maximum,
            ack_delay_ns: 0,
        }
    }
}

/// A client; its slot in the engine's list is its token.
pub(super) struct Client {
    pub(super) id: String,
    pub(super) protocol: Protocol,
    pub(super) role: Role,
    pub(super) reconnect_ns: u64,
    pub(super) state: State,
    /// Belongs to the current phase or the next.
    pub(super) wanted: bool,
    /// Leaves by then; a publisher as soon as nothing is in flight.
    pub(super) leave_at_ns: Option<u64>,
    /// Absence scheduled by the scenario: start, and when it connects again.
    pub(super) away_ns: Option<(u64, u64)>,
    /// While connecting: when to give up.
    pub(super) give_up_ns: u64,
    /// Counts connections: what was meant for an earlier one is dropped.
    pub(super) epoch: u32,
    /// The last bytes left at this time.
    pub(super) sent_ns: u64,
    /// When to look whether a PINGREQ is needed.
    pub(super) ping_at_ns: u64,
    /// The start of a packet whose rest has not arrived.
    pub(super) input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    blocked: bool,
    /// The broker has closed its side; what it sent before may still be unread.
    pub(super) is_ending: bool,
    stream: Option<TcpStream>,
}

impl Client {
    pub(super) fn new(id: String, protocol: Protocol, role: Role) -> Self {
        Self {
            id,
            protocol,
            role,
            reconnect_ns: 0,
            state: State::Idle,
            wanted: false,
            leave_at_ns: None,
            away_ns: None,
            give_up_ns: u64::MAX,
            epoch: 0,
            sent_ns: 0,
            ping_at_ns: 0,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            blocked: false,
            is_ending: false,
            stream: None,
        }
    }

    /// Whether a connection attempt is under way.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.state, State::Opening | State::Handshake | State::Subscribing)
    }

    /// Starts a connection attempt.
    pub(super) fn open(
        &mut self,
        addr: SocketAddr,
        registry: &Registry,
        slot: usize,
    ) -> io::Result<()> {
        let mut stream = TcpStream::connect(addr)?;
        registry.register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        self.stream = Some(stream);
        self.state = State::Opening;
        Ok(())
    }

    /// Whether the TCP connection stands; then Nagle's algorithm is off and CONNECT is in the
    /// buffer.
    pub(super) fn opened(&mut self) -> io::Result<bool> {
        let Some(stream) = &self.stream else {
            return Ok(false);
        };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        if let Err(error) = stream.peer_addr() {
            return if error.kind() == io::ErrorKind::NotConnected {
                Ok(false)
            } else {
                Err(error)
            };
        }
        stream.set_nodelay(true)?;
        let (clean_session, receive_maximum) = match &self.role {
            Role::Publisher(_) => (true, None),
            Role::Subscriber(subscription) => {
                (subscription.clean_session, subscription.receive_maximum)
            }
        };
        let connect = Connect {
            protocol: self.protocol,
            client_id: &self.id,
            clean_session,
            keep_alive_s: KEEP_ALIVE_S,
            receive_maximum,
        };
        codec::put_connect(&mut self.output, &connect);
        self.state = State::Handshake;
        Ok(true)
    }

    /// Appends the SUBSCRIBE of a subscriber.
    pub(super) fn subscribe(&mut self) {
        if let Role::Subscriber(subscription) = &self.role {
            codec::put_subscribe(
                &mut self.output,
                self.protocol,
                &subscription.filter,
                subscription.qos,
            );
            self.state = State::Subscribing;
        }
    }

    /// The buffer of what is to be sent.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Appends what the publisher may send now.
    pub(super) fn pump(&mut self, possible_ns: &mut Vec<u64>) {
        if self.state == State::Ready
            && let Role::Publisher(publisher) = &mut self.role
        {
            publisher.pump(&mut self.output, self.protocol, possible_ns);
        }
    }

    /// One read into `scratch`.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Some(stream) => stream.read(scratch),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes as much of the buffer as the socket takes.
    pub(super) fn flush(&mut self, now_ns: u64) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        while self.written < self.output.len() {
            match stream.write(&self.output[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    self.written += bytes;
                    self.sent_ns = now_ns;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    self.output.drain(..self.written);
                    self.written = 0;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        if std::mem::take(&mut self.blocked)
            && let Role::Publisher(publisher) = &mut self.role
        {
            publisher.socket_open(now_ns);
        }
        Ok(())
    }

    /// Whether the socket did not take everything.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Drops the connection and everything that belongs to it. `reset`: with RST instead of FIN.
    pub(super) fn close(&mut self, registry: &Registry, reset: bool) {
        if let Some(mut stream) = self.stream.take() {
            if reset {
                // Best effort: without it the broker sees an orderly close, still without
                // DISCONNECT.
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            let _ = registry.deregister(&mut stream); // closing removes it as well
        }
        self.epoch += 1;
        self.input.clear();
        self.output.clear();
        (self.written, self.blocked, self.is_ending) = (0, false, false);
    }
}
