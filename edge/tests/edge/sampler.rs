//! Sampling a real broker.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use brokertuner_core::Instant;
use brokertuner_core::sample::{Meter, Sys};
use brokertuner_edge::connack::Credentials;
use brokertuner_edge::control::Broker as _;
use brokertuner_edge::mqtt::ProtocolChoice;
use brokertuner_edge::sampler::{Link, Sampler, SamplerOptions, SysStatus};

use super::broker::{Broker, eventually};

fn sampler(broker: &Broker, credentials: Option<Credentials>) -> Sampler {
    sampler_by(broker, credentials, ProtocolChoice::Auto)
}

fn sampler_by(broker: &Broker, credentials: Option<Credentials>, mqtt: ProtocolChoice) -> Sampler {
    sampler_at(broker, broker.address, credentials, mqtt)
}

/// A sampler of `broker` that reaches it at another address.
pub(crate) fn sampler_at(
    broker: &Broker,
    address: SocketAddr,
    credentials: Option<Credentials>,
    mqtt: ProtocolChoice,
) -> Sampler {
    let options = SamplerOptions {
        address,
        client_id: "sampler".into(),
        credentials,
        tls: None,
        mqtt,
        probe_interval: Some(Duration::from_millis(250)),
        clock: Instant::now,
    };
    Sampler::start(options, broker.live().finder).unwrap()
}

#[test]
fn rates_gauges_process_and_probe_come_from_a_live_broker() {
    for mqtt in [ProtocolChoice::Auto, ProtocolChoice::V311] {
        look_at_all(mqtt);
    }
}

fn look_at_all(mqtt: ProtocolChoice) {
    let broker = Broker::start("");
    let mut sampler = sampler_by(&broker, None, mqtt);
    let mut meter = Meter::default();
    let metrics = eventually("two updates, a process and both probes", || {
        let sample = sampler.sample();
        let metrics = meter.measure(&sample);
        let is_whole = metrics.publish_sent_per_s.is_some() && metrics.cpu_share.is_some();
        let probe = sample.probe;
        let is_probed = probe.latency_us_qos0.is_some() && probe.latency_us_qos1.is_some();
        (is_whole && is_probed).then_some((metrics, sample))
    });
    let (metrics, sample) = metrics;
    assert_eq!(sampler.link(), Link::Up);
    assert_eq!(sampler.protocol(), Some(mqtt.first()));
    assert_eq!(sampler.sys_status(), SysStatus::Flowing);
    assert_eq!(sampler.is_probe_allowed(), Some(true));
    // As an agent that waits for `$SYS` looks, faster than probes go.
    for _ in 0..100 {
        let probe = sampler.sample().probe;
        assert!(probe.latency_us_qos0.is_some() && probe.latency_us_qos1.is_some(), "{probe:?}");
    }
    assert_eq!(metrics.clients_others, Some(0.0), "its own connection is left out");
    assert!(metrics.rss_bytes.unwrap() > 1e6);
    assert!(sampler.version().is_some());
    assert_eq!(sample.sys.get(Sys::ClientsConnected), Some(1));
    let period_s = metrics.sys_period_s.unwrap();
    assert!((0.5..4.0).contains(&period_s), "{period_s}: live updates only, no retained one");
    // What the broker retains is $SYS's own: no state of anyone's is at risk.
    let retained = sample.sys.get(Sys::RetainedMessages).unwrap();
    assert!(retained <= sampler.sys_retained(), "{retained} of {}", sampler.sys_retained());
}

#[test]
fn it_comes_back_after_a_restart() {
    let broker = Broker::start("");
    let mut sampler = sampler(&broker, None);
    eventually("a connection", || (sampler.link() == Link::Up).then_some(()));
    let before = eventually("a process", || sampler.find_process().ok());
    broker.live().restart().unwrap();
    eventually("another process and a connection to it", || {
        let found = sampler.find_process().ok()?;
        (found != before && sampler.sys_status() == SysStatus::Flowing).then_some(())
    });
}

#[test]
fn silence_is_said_with_its_two_possible_causes() {
    for (extra, mqtt) in [
        ("sys_interval 0\n", ProtocolChoice::Auto),
        ("acl_file ACL\n", ProtocolChoice::Auto),
        ("acl_file ACL\n", ProtocolChoice::V311),
    ] {
        let acl = tempfile::NamedTempFile::new().unwrap();
        fs::write(acl.path(), "topic readwrite brokertuner/#\n").unwrap();
        let broker = Broker::start(&extra.replace("ACL", acl.path().to_str().unwrap()));
        let sampler = sampler_by(&broker, None, mqtt);
        eventually("the silence to be noticed", || {
            (sampler.sys_status() == SysStatus::Silent).then_some(())
        });
        let said = sampler.sys_status().complaint().unwrap();
        assert!(said.contains("ACL") && said.contains("sys_interval is 0"), "{said}");
    }
}

/// The broker grants the subscription and delivers nothing: that is no latency.
#[test]
fn probes_that_an_acl_swallows_are_missing_not_slow() {
    let acl = tempfile::NamedTempFile::new().unwrap();
    fs::write(acl.path(), "topic read $SYS/#\n").unwrap();
    let broker = Broker::start(&format!("acl_file {}\n", acl.path().display()));
    let mut sampler = sampler(&broker, None);
    let started = std::time::Instant::now();
    // Long enough for the first ones to be overdue.
    eventually("two updates of $SYS", || {
        let probe = sampler.sample().probe;
        assert_eq!((probe.latency_us_qos0, probe.latency_us_qos1), (None, None));
        let is_seen = sampler.sys_status() == SysStatus::Flowing;
        (is_seen && started.elapsed() >= std::time::Duration::from_secs(3)).then_some(())
    });
}

#[test]
fn a_refused_login_is_said_in_those_words() {
    let broker = Broker::start("allow_anonymous true\n");
    let passwords = broker.path("passwords");
    fs::write(&passwords, "nobody:$7$101$AAAA$AAAA\n").unwrap();
    let main = fs::read_to_string(broker.path("mosquitto.conf")).unwrap();
    let main =
        main.replace("allow_anonymous true", &format!("password_file {}", passwords.display()));
    fs::write(broker.path("mosquitto.conf"), main).unwrap();
    broker.live().restart().unwrap();
    let login = Credentials { user: "tuner".into(), password: "wrong".into() };
    let sampler = sampler(&broker, Some(login));
    eventually("the refusal", || match sampler.link() {
        Link::Lost(reason) if reason.contains("refuses the login") => Some(()),
        _ => None,
    });
}

#[test]
fn no_broker_is_said_in_those_words() {
    let broker = Broker::start("");
    let options = SamplerOptions {
        // A port that was free a moment ago.
        address: std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        client_id: "sampler".into(),
        credentials: None,
        tls: None,
        mqtt: ProtocolChoice::Auto,
        probe_interval: None,
        clock: Instant::now,
    };
    let mut sampler = Sampler::start(options, broker.live().finder).unwrap();
    eventually("the refusal", || match sampler.link() {
        Link::Lost(reason) if reason.contains("no broker listens on") => Some(()),
        _ => None,
    });
    assert_eq!(sampler.sample().sys.at, None, "nothing is made up");
}
