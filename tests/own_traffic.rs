//! What `$SYS` counts of the agent itself, on every version: a broker that nobody else uses has no
//! traffic.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use brokertuner_core::Instant;
use brokertuner_core::sample::{Meter, OwnTraffic, Sample, Sys};
use brokertuner_edge::mqtt::ProtocolChoice;
use brokertuner_edge::pid::PidFinder;
use brokertuner_edge::sampler::{Sampler, SamplerOptions};

use crate::support::{VERSIONS, broker, wait_for};

/// Updates of `$SYS` from the first sample to the last.
const UPDATES: usize = 6;
/// A probe round, and what is published after the counters in an update, may fall on either side.
const SLACK: Slack = Slack { packets: 3, bytes: 200 };

struct Slack {
    packets: i64,
    bytes: i64,
}

/// The counters that the agent has a part in, with that part.
fn counters(sample: &Sample) -> [(Sys, i64, i64); 6] {
    let own: &OwnTraffic = &sample.own;
    [
        (Sys::MessagesReceived, own.packets_sent, SLACK.packets),
        (Sys::PublishReceived, own.publish_sent, SLACK.packets),
        (Sys::PublishSent, own.publish_received, SLACK.packets),
        (Sys::PublishBytesReceived, own.publish_bytes_sent, SLACK.bytes),
        (Sys::BytesReceived, own.bytes_sent, SLACK.bytes),
        (Sys::BytesSent, own.bytes_received, SLACK.bytes),
    ]
    .map(|(sys, ours, slack)| {
        let all = sample.sys.get(sys).unwrap_or(0);
        (sys, i64::try_from(all).unwrap() - i64::try_from(ours).unwrap(), slack)
    })
}

fn sampler(broker: &brokertuner_host::broker::BrokerProcess, mqtt: ProtocolChoice) -> Sampler {
    let options = SamplerOptions {
        address: broker.addr(),
        client_id: "sampler".into(),
        credentials: None,
        tls: None,
        mqtt,
        probe_interval: Some(Duration::from_millis(100)),
        clock: Instant::now,
    };
    Sampler::start(options, PidFinder::listener(broker.addr())).unwrap()
}

fn look(version: &str, mqtt: ProtocolChoice) {
    let broker = broker(version, "");
    let mut sampler = sampler(&broker, mqtt);
    let mut meter = Meter::default();
    let mut seen = BTreeMap::new();
    wait_for("updates of $SYS", || {
        let sample = sampler.sample();
        let metrics = meter.measure(&sample);
        seen.entry(sample.sys.at?).or_insert((sample, metrics));
        (seen.len() > UPDATES).then_some(())
    });
    let context = format!("{version} by {:?}", sampler.protocol());
    let (first, _) = seen.first_key_value().unwrap().1;
    let (last, metrics) = seen.last_key_value().unwrap().1;
    for ((sys, before, slack), (_, after, _)) in counters(first).into_iter().zip(counters(last)) {
        let moved = last.sys.get(sys).unwrap_or(0) - first.sys.get(sys).unwrap_or(0);
        println!("{context}: {sys:?} +{moved}, {} of others", after - before);
        assert!((after - before).abs() <= slack, "{context}: {sys:?}: {before} to {after}");
        assert!(moved > 10, "{context}: {sys:?}: {moved}: there was nothing to leave out");
    }
    assert_eq!(last.sys.get(Sys::Subscriptions), Some(2), "{context}");
    assert_eq!(metrics.subscriptions, Some(0.0), "{context}");
}

#[test]
fn a_broker_beside_an_agent_alone_has_no_traffic() {
    let by = [ProtocolChoice::V5, ProtocolChoice::V311];
    let sites = [VERSIONS[0], VERSIONS[1], "2.1"].map(|version| by.map(|mqtt| (version, mqtt)));
    thread::scope(|scope| {
        for (version, mqtt) in sites.into_iter().flatten() {
            scope.spawn(move || look(version, mqtt));
        }
    });
}
