//! The MQTT client of either version, behind one face.

use rumqttc::v5::{self, mqttbytes as bytes5};
use rumqttc::{AsyncClient, ConnectReturnCode, ConnectionError, EventLoop, MqttOptions};
use rumqttc::{NetworkOptions, Outgoing, SubscribeFilter, SubscribeReasonCode};

use super::SamplerOptions;
use super::link::{
    CONNECT_TIMEOUT_S, INFLIGHT_MAX, KEEP_ALIVE, PACKET_BYTES_MAX, REQUESTS_MAX, SYS_FILTER,
};
use super::probe::PAYLOAD_BYTES;
use crate::mqtt::Protocol;
use crate::tls;

/// What is sent.
#[derive(Clone)]
pub(super) enum Client {
    V311(AsyncClient),
    V5(v5::AsyncClient),
}

/// What comes.
pub(super) enum Events {
    V311(Box<EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// One thing that came.
#[allow(
    clippy::large_enum_variant,
    reason = "moved once; in a box each message would be on the heap"
)]
pub(super) enum Incoming {
    Connected,
    /// Whether `$SYS` and the probe's topic were granted.
    Subscribed(bool, bool),
    Message(Message),
    /// One of our probes went out, by this QoS.
    ProbeSent(u8),
    /// Another packet of ours went out, of so many bytes.
    Sent(u64),
    /// An answer of so many bytes, of no further interest.
    Answer(u64),
    /// No packet, or one that came before all that is counted.
    Other,
}

/// PUBACK without a reason, of either version.
const PUBACK_BYTES: u64 = 4;
/// PINGREQ and PINGRESP.
const PING_BYTES: u64 = 2;

/// A PUBLISH; its bytes stay where they were read.
pub(super) enum Message {
    V311(rumqttc::Publish),
    V5(bytes5::v5::Publish),
}

impl Message {
    pub(super) fn topic(&self) -> Option<&str> {
        match self {
            Self::V311(publish) => Some(&publish.topic),
            Self::V5(publish) => std::str::from_utf8(&publish.topic).ok(),
        }
    }

    pub(super) fn payload(&self) -> &[u8] {
        match self {
            Self::V311(publish) => &publish.payload,
            Self::V5(publish) => &publish.payload,
        }
    }

    /// The packet's size as it came.
    pub(super) fn wire_bytes(&self) -> u64 {
        match self {
            Self::V311(publish) => {
                let qos = publish.qos as u8;
                publish_bytes(publish.topic.len(), qos, None, publish.payload.len())
            }
            Self::V5(publish) => {
                // Of all properties, those of `$SYS` and of our own probes have this one at most.
                let expiry = publish.properties.as_ref().and_then(|p| p.message_expiry_interval);
                let properties = expiry.map_or(0, |_| 5);
                let qos = publish.qos as u8;
                publish_bytes(publish.topic.len(), qos, Some(properties), publish.payload.len())
            }
        }
    }

    pub(super) fn is_retained(&self) -> bool {
        match self {
            Self::V311(publish) => publish.retain,
            Self::V5(publish) => publish.retain,
        }
    }
}

/// The size of a PUBLISH on the wire; `properties` is their length, `None` before MQTT 5.
fn publish_bytes(topic: usize, qos: u8, properties: Option<usize>, payload: usize) -> u64 {
    let identifier = if qos > 0 { 2 } else { 0 };
    // The properties' own length takes a byte up to 127.
    let rest = 2 + topic + identifier + properties.map_or(0, |length| 1 + length) + payload;
    let digits = if rest < 1 << 7 { 1 } else { 2 };
    (1 + digits + rest) as u64
}

/// The size of a probe on the wire.
pub(super) fn probe_bytes(protocol: Protocol, topic: &str, qos: u8) -> u64 {
    let properties = (protocol == Protocol::V5).then_some(0);
    publish_bytes(topic.len(), qos, properties, PAYLOAD_BYTES)
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum Broken {
    /// Wrong user or password, or not permitted.
    Login,
    /// Another refusal.
    Refused(String),
    /// What came is no MQTT of that version: so a broker without it answers, too.
    Garbled(String),
    NobodyListens,
    TimedOut,
    Ended(String),
    Tls(String),
    Other(String),
}

/// A client for `protocol`; it connects at the first look for events.
pub(super) fn open(options: &SamplerOptions, protocol: Protocol) -> (Client, Events) {
    let (host, port) = (options.address.ip().to_string(), options.address.port());
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_TIMEOUT_S);
    if protocol == Protocol::V5 {
        let mut mqtt = v5::MqttOptions::new(&options.client_id, host, port);
        mqtt.set_keep_alive(KEEP_ALIVE)
            .set_clean_start(true)
            .set_max_packet_size(Some(PACKET_BYTES_MAX))
            // The client keeps a slot for each: 14 MB for the default of 65535.
            .set_outgoing_inflight_upper_limit(INFLIGHT_MAX)
            .set_connection_timeout(CONNECT_TIMEOUT_S)
            .set_network_options(network);
        if let Some(tls) = &options.tls {
            mqtt.set_transport(tls.transport());
        }
        if let Some(login) = &options.credentials {
            mqtt.set_credentials(&login.user, &login.password);
        }
        let (client, events) = v5::AsyncClient::new(mqtt, REQUESTS_MAX);
        return (Client::V5(client), Events::V5(Box::new(events)));
    }
    let mut mqtt = MqttOptions::new(&options.client_id, host, port);
    let packet_bytes_max = PACKET_BYTES_MAX as usize;
    mqtt.set_keep_alive(KEEP_ALIVE)
        .set_clean_session(true)
        .set_max_packet_size(packet_bytes_max, packet_bytes_max)
        .set_inflight(INFLIGHT_MAX);
    if let Some(tls) = &options.tls {
        mqtt.set_transport(tls.transport());
    }
    if let Some(login) = &options.credentials {
        mqtt.set_credentials(&login.user, &login.password);
    }
    let (client, mut events) = AsyncClient::new(mqtt, REQUESTS_MAX);
    events.set_network_options(network);
    (Client::V311(client), Events::V311(Box::new(events)))
}

impl Client {
    /// Subscribes to `$SYS` and to the probe's topic; false where nothing more is taken.
    pub(super) fn subscribe(&self, probe_topic: &str) -> bool {
        match self {
            Self::V311(client) => {
                let sys = SubscribeFilter::new(SYS_FILTER.into(), rumqttc::QoS::AtMostOnce);
                let probe = SubscribeFilter::new(probe_topic.into(), rumqttc::QoS::AtLeastOnce);
                client.try_subscribe_many([sys, probe]).is_ok()
            }
            Self::V5(client) => {
                let sys = bytes5::v5::Filter::new(SYS_FILTER, bytes5::QoS::AtMostOnce);
                let probe = bytes5::v5::Filter::new(probe_topic, bytes5::QoS::AtLeastOnce);
                client.try_subscribe_many([sys, probe]).is_ok()
            }
        }
    }

    /// Publishes by QoS 0 or 1; nothing is done where the queue is full.
    pub(super) fn publish(&self, topic: &str, qos: u8, payload: Vec<u8>) {
        let _ = match self {
            Self::V311(client) => {
                let qos =
                    if qos == 0 { rumqttc::QoS::AtMostOnce } else { rumqttc::QoS::AtLeastOnce };
                client.try_publish(topic, qos, false, payload).is_ok()
            }
            Self::V5(client) => {
                let qos = if qos == 0 { bytes5::QoS::AtMostOnce } else { bytes5::QoS::AtLeastOnce };
                client.try_publish(topic.to_owned(), qos, false, payload).is_ok()
            }
        };
    }

    /// Says DISCONNECT, as soon as events are looked for.
    pub(super) fn disconnect(&self) -> bool {
        match self {
            Self::V311(client) => client.try_disconnect().is_ok(),
            Self::V5(client) => client.try_disconnect().is_ok(),
        }
    }
}

impl Events {
    /// Waits for what comes next. Cancel-safe, as the clients' own.
    pub(super) async fn next(&mut self) -> Result<Incoming, Broken> {
        match self {
            Self::V311(events) => events.poll().await.map(incoming_311).map_err(broken_311),
            Self::V5(events) => events.poll().await.map(incoming_5).map_err(broken_5),
        }
    }
}

fn incoming_311(event: rumqttc::Event) -> Incoming {
    use rumqttc::{Event, Packet};
    match event {
        Event::Incoming(Packet::ConnAck(_)) => Incoming::Connected,
        Event::Incoming(Packet::SubAck(ack)) => {
            let granted = |index: usize| {
                matches!(ack.return_codes.get(index), Some(SubscribeReasonCode::Success(_)))
            };
            Incoming::Subscribed(granted(0), granted(1))
        }
        Event::Incoming(Packet::Publish(publish)) => Incoming::Message(Message::V311(publish)),
        Event::Incoming(Packet::PubAck(_)) => Incoming::Answer(PUBACK_BYTES),
        Event::Incoming(Packet::PingResp) => Incoming::Answer(PING_BYTES),
        Event::Outgoing(outgoing) => sent(&outgoing),
        Event::Incoming(_) => Incoming::Other,
    }
}

/// The client publishes nothing but probes.
fn sent(outgoing: &Outgoing) -> Incoming {
    match outgoing {
        Outgoing::Publish(identifier) => Incoming::ProbeSent(u8::from(*identifier != 0)),
        Outgoing::PubAck(_) => Incoming::Sent(PUBACK_BYTES),
        Outgoing::PingReq => Incoming::Sent(PING_BYTES),
        _ => Incoming::Other,
    }
}

fn incoming_5(event: v5::Event) -> Incoming {
    use bytes5::v5::{Packet, SubscribeReasonCode};
    use v5::Event;
    match event {
        Event::Incoming(Packet::ConnAck(_)) => Incoming::Connected,
        Event::Incoming(Packet::SubAck(ack)) => {
            let granted = |index: usize| {
                matches!(ack.return_codes.get(index), Some(SubscribeReasonCode::Success(_)))
            };
            Incoming::Subscribed(granted(0), granted(1))
        }
        Event::Incoming(Packet::Publish(publish)) => Incoming::Message(Message::V5(publish)),
        Event::Incoming(Packet::PubAck(_)) => Incoming::Answer(PUBACK_BYTES),
        Event::Incoming(Packet::PingResp(_)) => Incoming::Answer(PING_BYTES),
        Event::Outgoing(outgoing) => sent(&outgoing),
        Event::Incoming(_) => Incoming::Other,
    }
}

fn of_io(error: &std::io::Error) -> Broken {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Broken::NobodyListens,
        std::io::ErrorKind::TimedOut => Broken::TimedOut,
        _ => Broken::Other(error.to_string()),
    }
}

fn broken_311(error: ConnectionError) -> Broken {
    use ConnectReturnCode as Code;
    if let Some(what) = tls::remedy(&error) {
        return Broken::Tls(what);
    }
    match error {
        ConnectionError::ConnectionRefused(Code::BadUserNamePassword | Code::NotAuthorized) => {
            Broken::Login
        }
        ConnectionError::ConnectionRefused(code) => Broken::Refused(format!("{code:?}")),
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => Broken::TimedOut,
        ConnectionError::Io(error) => of_io(&error),
        ConnectionError::MqttState(error) => Broken::Garbled(error.to_string()),
        error => Broken::Other(error.to_string()),
    }
}

fn broken_5(error: v5::ConnectionError) -> Broken {
    use bytes5::v5::ConnectReturnCode as Code;
    use v5::{ConnectionError, StateError};
    if let Some(what) = tls::remedy(&error) {
        return Broken::Tls(what);
    }
    match error {
        ConnectionError::ConnectionRefused(Code::BadUserNamePassword | Code::NotAuthorized) => {
            Broken::Login
        }
        ConnectionError::ConnectionRefused(
            code @ (Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion),
        ) => Broken::Garbled(format!("{code:?}")),
        ConnectionError::ConnectionRefused(code) => Broken::Refused(format!("{code:?}")),
        ConnectionError::Timeout(_) => Broken::TimedOut,
        ConnectionError::Io(error) => of_io(&error),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            Broken::Ended(format!("{reason_code:?}"))
        }
        ConnectionError::MqttState(error) => Broken::Garbled(error.to_string()),
        error => Broken::Other(error.to_string()),
    }
}
