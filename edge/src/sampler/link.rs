//! The connection: subscribes to `$SYS/#` and the probe's topic, and comes back after every loss.

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time;

use super::probe::{PAYLOAD_BYTES, Round};
use super::wire::{self, Broken, Client, Events, Incoming, Message};
use super::{SYS_TOPICS_MAX, SamplerOptions, Shared, lock};
use crate::connack;
use crate::kernel_timer::KernelTimer;
use crate::mqtt::{Protocol, ProtocolChoice};

pub(super) const SYS_FILTER: &str = "$SYS/#";
/// Larger than any `$SYS` value; the broker is told, and sends nothing larger.
pub(super) const PACKET_BYTES_MAX: u32 = 4096;
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(30);
pub(super) const CONNECT_TIMEOUT_S: u64 = 5;
/// Requests that wait for the connection: two subscriptions and two probes, and room.
pub(super) const REQUESTS_MAX: usize = 16;
/// Probes of QoS 1 that may be unacknowledged.
pub(super) const INFLIGHT_MAX: u16 = 16;
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A connection that held this long starts the back-off anew.
const STABLE: Duration = Duration::from_secs(10);
/// Mosquitto sends each value of an update in a packet of its own: a moment after the first of them
/// most have come, and are read at once.
const UPDATE: Duration = Duration::from_millis(10);
/// A value that comes so long after the one before begins another update.
const UPDATES_APART: Duration = Duration::from_millis(100);
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
    let mut back_off = BackOff(BACK_OFF_FIRST);
    let mut protocol = options.mqtt.first();
    let mut is_told = false;
    loop {
        let started = time::Instant::now();
        let (client, mut events) = wire::open(options, protocol);
        let broken = tokio::select! {
            broken = session(options, protocol, shared, &client, &mut events) => broken,
            _ = stop.wait_for(|stop| *stop) => {
                farewell(&client, &mut events).await;
                return;
            }
        };
        let was_up = lock(shared).link == Link::Up;
        let reason = explain(options, &broken);
        tracing::debug!(%reason, %protocol, "Connection lost.");
        lock(shared).disconnected(reason);
        let next = if was_up { options.mqtt.first() } else { after(options, protocol, &broken) };
        if next < protocol {
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!("The broker refuses MQTT 5; MQTT 3.1.1 is spoken.");
            }
            protocol = next;
            continue;
        }
        protocol = next;
        let pause = back_off.pause(started.elapsed(), jitter());
        tokio::select! {
            () = time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// How long the next pause between two tries is at most: twice the one before.
struct BackOff(Duration);

impl BackOff {
    /// The pause after a connection, or a try, of that length. `jitter` is between 0 and 1: agents
    /// that lost their brokers in the same power cut do not all come back at the same instant.
    fn pause(&mut self, held: Duration, jitter: f64) -> Duration {
        if held >= STABLE {
            self.0 = BACK_OFF_FIRST;
        }
        let pause = self.0.mul_f64(0.5 + jitter / 2.0);
        self.0 = (self.0 * 2).min(BACK_OFF_MAX);
        pause
    }
}

/// The version for the next try, after one that did not get as far as a connection.
///
/// The client does not read the answer of a broker without MQTT 5, so that is asked for once more:
/// this thread has nothing else to do meanwhile.
fn after(options: &SamplerOptions, protocol: Protocol, broken: &Broken) -> Protocol {
    let is_refusal = matches!(broken, Broken::Garbled(_) | Broken::Other(_));
    if options.mqtt != ProtocolChoice::Auto || protocol == Protocol::V311 || !is_refusal {
        return options.mqtt.first();
    }
    let login = options.credentials.as_ref();
    let timeout = Duration::from_secs(CONNECT_TIMEOUT_S);
    let (address, id, tls) = (options.address, &options.client_id, options.tls.as_ref());
    connack::probe(address, id, login, tls, options.mqtt, timeout)
        .map_or(Protocol::V5, |connack| connack.protocol)
}

/// One connection, until it fails.
async fn session(
    options: &SamplerOptions,
    protocol: Protocol,
    shared: &Mutex<Shared>,
    client: &Client,
    events: &mut Events,
) -> Broken {
    let topic = format!("brokertuner/probe/{:016x}", random());
    let probe = Probe { shared, client, topic: &topic };
    if !client.subscribe(&topic) {
        return Broken::Other("it takes no subscription".into());
    }
    let receiving = receive(&probe, protocol, events);
    let Some(interval) = options.probe_interval else { return receiving.await };
    tokio::select! {
        broken = receiving => broken,
        ended = probe.begin_rounds(interval) => {
            let why = ended.map_or_else(|error| error.to_string(), |()| "it ended".into());
            Broken::Other(format!("no timer for the probe: {why}"))
        }
    }
}

async fn receive(probe: &Probe<'_>, protocol: Protocol, events: &mut Events) -> Broken {
    let shared = probe.shared;
    let mut last_of_sys: Option<time::Instant> = None;
    loop {
        match events.next().await {
            Ok(Incoming::Connected) => {
                let mut shared = lock(shared);
                shared.link = Link::Up;
                shared.protocol = Some(protocol);
                shared.own.connections = 1;
            }
            Ok(Incoming::Subscribed(sys, probe)) => {
                let mut shared = lock(shared);
                shared.subscribed = Some(((shared.clock)(), sys, probe));
                shared.own.subscriptions = u32::from(sys) + u32::from(probe);
            }
            Ok(Incoming::ProbeSent(qos)) => {
                let own = &mut lock(shared).own;
                own.publish_sent += 1;
                own.publish_bytes_sent += PAYLOAD_BYTES as u64;
                own.packets_sent += 1;
                own.bytes_sent += wire::probe_bytes(protocol, probe.topic, qos);
            }
            Ok(Incoming::Sent(bytes)) => {
                let own = &mut lock(shared).own;
                own.packets_sent += 1;
                own.bytes_sent += bytes;
            }
            Ok(Incoming::Answer(bytes)) => lock(shared).own.bytes_received += bytes,
            Ok(Incoming::Message(message)) => {
                // Not in the match: the lock would be held to its end.
                let taken = take(&mut lock(shared), &message, probe.topic);
                match taken {
                    Taken::FirstProbe => probe.send(Round::Second),
                    Taken::Sys => {
                        let last = last_of_sys.replace(time::Instant::now());
                        let is_first = last.is_none_or(|last| last.elapsed() > UPDATES_APART);
                        // A probe's way back would be measured too long. One that falls due
                        // meanwhile is sent, and its time taken, afterwards.
                        if is_first && !lock(shared).probes.are_out() {
                            std::thread::sleep(UPDATE);
                        }
                    }
                    Taken::Other => {}
                }
            }
            Ok(Incoming::Other) => {}
            Err(broken) => return broken,
        }
    }
}

/// What a message was.
enum Taken {
    /// The first probe of a round: the second may go.
    FirstProbe,
    /// A value of `$SYS`.
    Sys,
    Other,
}

/// Takes a message over.
fn take(shared: &mut Shared, message: &Message, probe_topic: &str) -> Taken {
    let now = (shared.clock)();
    shared.heard = Some(now);
    shared.own.publish_received += 1;
    shared.own.bytes_received += message.wire_bytes();
    let Some(topic) = message.topic() else { return Taken::Other };
    if topic == probe_topic {
        let is_first = shared.probes.receive(message.payload(), now);
        return if is_first { Taken::FirstProbe } else { Taken::Other };
    }
    if topic.starts_with("$SYS/") {
        shared.is_flowing = true;
        shared.own_then = shared.own;
        if let Some(at) = shared.sys_topics.get_mut(topic) {
            *at = now;
        } else if shared.sys_topics.len() < SYS_TOPICS_MAX {
            shared.sys_topics.insert(topic.to_owned(), now);
        }
    }
    // A retained uptime is no pulse: the update that it belongs to is up to a period old, and rates
    // from it to the next one would be too high. The other retained values fill what stays
    // unchanged.
    if message.is_retained() && topic == "$SYS/broker/uptime" {
        return Taken::Sys;
    }
    if let Err(error) = shared.tree.update(topic, message.payload(), now) {
        shared.malformed = shared.malformed.saturating_add(1);
        tracing::debug!(%error, "Unexpected $SYS payload.");
    }
    Taken::Sys
}

/// What sends probes: one by QoS 0, and by QoS 1 as soon as that is back.
///
/// Not together: the second answer would wait for Nagle's algorithm. Nor each by a timer of its
/// own: that would wake the processor once more.
struct Probe<'s> {
    shared: &'s Mutex<Shared>,
    client: &'s Client,
    topic: &'s str,
}

impl Probe<'_> {
    /// Begins a round per interval, until the system has no timer any more.
    async fn begin_rounds(&self, interval: Duration) -> std::io::Result<()> {
        let timer = KernelTimer::new()?;
        timer.every(interval)?;
        loop {
            timer.expired().await?;
            self.send(Round::Next);
        }
    }

    fn send(&self, round: Round) {
        let (qos, payload) = {
            let mut shared = lock(self.shared);
            if !matches!(shared.subscribed, Some((_, _, true))) {
                return;
            }
            let now = (shared.clock)();
            shared.probes.send(round, now)
        };
        // A full queue is a stalled connection: the probe stays out and shows as overdue.
        self.client.publish(self.topic, qos, payload);
    }
}

async fn farewell(client: &Client, events: &mut Events) {
    if client.disconnect() {
        let gone = async { while events.next().await.is_ok() {} };
        let _ = time::timeout(FAREWELL, gone).await;
    }
}

/// Why a connection ended, in words that say what to do.
fn explain(options: &SamplerOptions, broken: &Broken) -> String {
    let address = options.address;
    match broken {
        Broken::Tls(what) => format!("the broker at {address}: {what}"),
        Broken::Login => format!(
            "the broker at {address} refuses the login: set broker.user_file and broker.password_file to what it accepts"
        ),
        Broken::Refused(code) => format!("the broker at {address} refuses the connection: {code}"),
        Broken::NobodyListens => format!(
            "no broker listens on {address}: start it, or correct broker.host and broker.port"
        ),
        Broken::TimedOut => format!(
            "{address} did not answer within {CONNECT_TIMEOUT_S} s: look at the broker there, or correct broker.host and broker.port"
        ),
        Broken::Ended(reason) => format!("the broker at {address} ended the connection: {reason}"),
        Broken::Garbled(what) if options.mqtt == ProtocolChoice::V5 => format!(
            "the broker at {address} does not speak MQTT 5 here ({what}): set broker.mqtt to \"auto\" or \"3.1.1\""
        ),
        Broken::Garbled(what) | Broken::Other(what) => {
            format!("the connection to the broker at {address} broke: {what}")
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_jittered_by_a_half() {
        let tries = |jitter: f64| {
            let mut back_off = BackOff(BACK_OFF_FIRST);
            [(); 12].map(|()| back_off.pause(Duration::ZERO, jitter))
        };
        let (shortest, longest) = (tries(0.0), tries(1.0));
        for (index, (short, long)) in shortest.into_iter().zip(longest).enumerate() {
            assert_eq!(short * 2, long);
            assert_eq!(long, (BACK_OFF_FIRST * (1 << index)).min(BACK_OFF_MAX));
        }
        let mut back_off = BackOff(BACK_OFF_MAX);
        assert_eq!(back_off.pause(STABLE, 1.0), BACK_OFF_FIRST, "it held");
        assert_eq!(back_off.pause(Duration::ZERO, 1.0), BACK_OFF_FIRST * 2);
    }

    #[test]
    fn jitter_lies_between_0_and_1_and_differs() {
        let seen = [(); 8].map(|()| jitter());
        assert!(seen.iter().all(|jitter| (0.0..=1.0).contains(jitter)), "{seen:?}");
        assert!(seen.iter().any(|jitter| *jitter != seen[0]), "{seen:?}");
    }
}
