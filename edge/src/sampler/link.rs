//! The connection: subscribes to `$SYS/#` and the probe's topic, and comes back after every loss.

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Mutex;
use std::time::Duration;

use rumqttc::NetworkOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Filter, Packet, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use tokio::sync::watch;
use tokio::time;

use super::probe::PAYLOAD_BYTES;
use super::{SYS_TOPICS_MAX, SamplerOptions, Shared, lock};
use crate::tls;

const SYS_FILTER: &str = "$SYS/#";
/// Larger than any `$SYS` value; the broker is told, and sends nothing larger.
const PACKET_BYTES_MAX: u32 = 4096;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT_S: u64 = 5;
/// Requests that wait for the connection: two subscriptions and two probes, and room.
const REQUESTS_MAX: usize = 16;
/// Probes of QoS 1 that may be unacknowledged.
const INFLIGHT_MAX: u16 = 16;
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A connection that held this long starts the back-off anew.
const STABLE: Duration = Duration::from_secs(10);
/// Time for a DISCONNECT to get out.
const FAREWELL: Duration = Duration::from_millis(200);

/// The state of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not yet connected.
    Connecting,
    /// Connected.
    Up,
    /// Lost or never made, and why; it is tried again.
    Lost(String),
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Up => f.write_str("connected"),
            Self::Lost(reason) => f.write_str(reason),
        }
    }
}

/// The thread's body: connects again and again until it is told to stop.
pub(super) fn run(options: &SamplerOptions, shared: &Mutex<Shared>, stop: watch::Receiver<bool>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(stay_connected(options, shared, stop)),
        Err(error) => lock(shared).disconnected(format!("no event loop: {error}")),
    }
}

async fn stay_connected(
    options: &SamplerOptions,
    shared: &Mutex<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let mut back_off = BACK_OFF_FIRST;
    loop {
        let started = time::Instant::now();
        let (client, mut events) = AsyncClient::new(mqtt_options(options), REQUESTS_MAX);
        let error = tokio::select! {
            error = session(options, shared, &client, &mut events) => error,
            _ = stop.wait_for(|stop| *stop) => {
                farewell(&client, &mut events).await;
                return;
            }
        };
        let reason = explain(options, &error);
        tracing::debug!(%reason, "Connection lost.");
        lock(shared).disconnected(reason);
        if started.elapsed() >= STABLE {
            back_off = BACK_OFF_FIRST;
        }
        let pause = back_off.mul_f64(0.5 + jitter() / 2.0);
        tokio::select! {
            () = time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

fn mqtt_options(options: &SamplerOptions) -> MqttOptions {
    let (host, port) = (options.address.ip().to_string(), options.address.port());
    let mut mqtt = MqttOptions::new(&options.client_id, host, port);
    mqtt.set_keep_alive(KEEP_ALIVE)
        .set_clean_start(true)
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        // The client keeps a slot for each: 14 MB for the default of 65535.
        .set_outgoing_inflight_upper_limit(INFLIGHT_MAX)
        .set_connection_timeout(CONNECT_TIMEOUT_S);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    mqtt.set_network_options(network);
    if let Some(tls) = &options.tls {
        mqtt.set_transport(tls.transport());
    }
    if let Some(login) = &options.credentials {
        mqtt.set_credentials(&login.user, &login.password);
    }
    mqtt
}

/// One connection, until it fails.
async fn session(
    options: &SamplerOptions,
    shared: &Mutex<Shared>,
    client: &AsyncClient,
    events: &mut EventLoop,
) -> ConnectionError {
    let topic = format!("brokertuner/probe/{:016x}", random());
    let filters = [Filter::new(SYS_FILTER, QoS::AtMostOnce), Filter::new(&topic, QoS::AtLeastOnce)];
    if client.try_subscribe_many(filters).is_err() {
        return ConnectionError::RequestsDone;
    }
    let receiving = receive(shared, events, &topic);
    let Some(interval) = options.probe_interval else { return receiving.await };
    tokio::select! {
        error = receiving => error,
        () = send_probes(shared, client, &topic, interval) => ConnectionError::RequestsDone,
    }
}

async fn receive(shared: &Mutex<Shared>, events: &mut EventLoop, topic: &str) -> ConnectionError {
    loop {
        let packet = match events.poll().await {
            Ok(Event::Incoming(packet)) => packet,
            Ok(Event::Outgoing(_)) => continue,
            Err(error) => return error,
        };
        match packet {
            Packet::ConnAck(_) => {
                let mut shared = lock(shared);
                shared.link = Link::Up;
                shared.own.connections = 1;
            }
            Packet::SubAck(ack) => {
                let granted = |index: usize| {
                    matches!(ack.return_codes.get(index), Some(SubscribeReasonCode::Success(_)))
                };
                let mut shared = lock(shared);
                shared.subscribed = Some(((shared.clock)(), granted(0), granted(1)));
            }
            Packet::Publish(publish) => take(&mut lock(shared), &publish, topic),
            _ => {}
        }
    }
}

fn take(shared: &mut Shared, publish: &Publish, probe_topic: &str) {
    let now = (shared.clock)();
    shared.heard = Some(now);
    shared.own.publish_received = shared.own.publish_received.saturating_add(1);
    if publish.topic == probe_topic.as_bytes() {
        if publish.payload.len() == PAYLOAD_BYTES {
            shared.probes.receive(&publish.payload, now);
        }
        return;
    }
    let Ok(topic) = std::str::from_utf8(&publish.topic) else { return };
    if topic.starts_with("$SYS/") {
        shared.is_flowing = true;
        if let Some(at) = shared.sys_topics.get_mut(topic) {
            *at = now;
        } else if shared.sys_topics.len() < SYS_TOPICS_MAX {
            shared.sys_topics.insert(topic.to_owned(), now);
        }
    }
    // A retained uptime is no pulse: the update that it belongs to is up to a period old, and rates
    // from it to the next one would be too high. The other retained values fill what stays
    // unchanged.
    if publish.retain && topic == "$SYS/broker/uptime" {
        return;
    }
    if let Err(error) = shared.tree.update(topic, &publish.payload, now) {
        shared.malformed = shared.malformed.saturating_add(1);
        tracing::debug!(%error, "Unexpected $SYS payload.");
    }
}

async fn send_probes(
    shared: &Mutex<Shared>,
    client: &AsyncClient,
    topic: &str,
    interval: Duration,
) {
    // Half an interval apart: sent together, the second answer would wait for Nagle's algorithm.
    let mut ticks = time::interval(interval / 2);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    for (number, qos) in [(0, QoS::AtMostOnce), (1, QoS::AtLeastOnce)].into_iter().cycle() {
        ticks.tick().await;
        let payload = {
            let mut shared = lock(shared);
            if !matches!(shared.subscribed, Some((_, _, true))) {
                continue;
            }
            shared.own.publish_sent = shared.own.publish_sent.saturating_add(1);
            let now = (shared.clock)();
            shared.probes.send(number, now)
        };
        // A full queue is a stalled connection: the probe stays out and shows as overdue.
        let _ = client.try_publish(topic, qos, false, payload);
    }
}

async fn farewell(client: &AsyncClient, events: &mut EventLoop) {
    if client.try_disconnect().is_ok() {
        let gone = async { while events.poll().await.is_ok() {} };
        let _ = time::timeout(FAREWELL, gone).await;
    }
}

/// The error in words that say what to do.
fn explain(options: &SamplerOptions, error: &ConnectionError) -> String {
    use ConnectReturnCode as Code;
    let address = options.address;
    if let Some(what) = tls::remedy(error) {
        return format!("the broker at {address}: {what}");
    }
    match error {
        ConnectionError::ConnectionRefused(Code::BadUserNamePassword | Code::NotAuthorized) => {
            format!(
                "the broker at {address} refuses the login: set broker.user_file and broker.password_file to what it accepts"
            )
        }
        ConnectionError::ConnectionRefused(code) => {
            format!("the broker at {address} refuses the connection: {code:?}")
        }
        ConnectionError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            format!(
                "no broker listens on {address}: start it, or correct broker.host and broker.port"
            )
        }
        ConnectionError::Timeout(_) => {
            format!(
                "{address} did not answer within {CONNECT_TIMEOUT_S} s: look at the broker there, or correct broker.host and broker.port"
            )
        }
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            format!("the broker at {address} ended the connection: {reason_code:?}")
        }
        error => format!("the connection to the broker at {address} broke: {error}"),
    }
}

/// A random number from the standard library's hash keys: enough for a topic's name and for jitter.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Between 0 and 1.
fn jitter() -> f64 {
    f64::from(u32::try_from(random() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}
