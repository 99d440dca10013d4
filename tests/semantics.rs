//! The broker's behaviour that the design rests on, on every version that we name.
//!
//! A test that fails here on a new version says which assumption of `core` and `edge` no longer
//! holds.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use brokertuner_host::broker::{BrokerError, BrokerProcess, Phase, SpawnConfig, rss_bytes};

use crate::support::mqtt::{Client, Level, Limits, limits_at};
use crate::support::{VERSIONS, broker, broker_with, wait_for};

const PUBLISH: u8 = 0x30;

/// Replaces the drop-in and reloads; returns when the broker has read it.
fn reload(broker: &BrokerProcess, dropin: &str) {
    fs::write(broker.dropin_path(), dropin).unwrap();
    reload_as_is(broker);
}

fn reload_as_is(broker: &BrokerProcess) {
    let count = |log: &str| log.matches("Reloading config.").count();
    let read = || fs::read_to_string(broker.log_path()).unwrap();
    let before = count(&read());
    broker.reload().unwrap();
    wait_for("the reload in the log", || (count(&read()) > before).then_some(()));
    // The line comes before the reading; the broker answers nobody in between.
    assert!(Client::connect(broker.addr(), Level::V311, "after-reload").is_open());
}

/// QoS 1 messages that a subscriber without acknowledgements is sent out of `offered`.
fn unacked(broker: &BrokerProcess, offered: u16) -> usize {
    let mut subscriber = Client::connect(broker.addr(), Level::V311, "silent");
    subscriber.subscribe("t", 1);
    let mut publisher = Client::connect(broker.addr(), Level::V311, "publisher");
    publisher.publish_acked("t", b"x", offered);
    let packets = subscriber.receive_until_ping();
    packets.iter().filter(|(kind, _)| kind & 0xf0 == PUBLISH).count()
}

/// QoS `qos` messages of `payload` that wait for an offline session out of `offered`.
fn queued(broker: &BrokerProcess, id: &str, qos: u8, payload: &[u8], offered: u16) -> usize {
    let mut session = Client::connect_durable(broker.addr(), id);
    session.subscribe(id, 1);
    session.leave();
    let mut publisher = Client::connect(broker.addr(), Level::V311, "publisher");
    if qos == 0 {
        (0..offered).for_each(|_| publisher.publish(id, payload, 0, 0));
        assert!(publisher.is_open());
    } else {
        publisher.publish_acked(id, payload, offered);
    }
    let mut session = Client::connect_durable(broker.addr(), id);
    assert!(session.session_present);
    let mut count = 0;
    loop {
        let packets = session.receive_until_ping();
        let publishes = packets.iter().filter(|(kind, _)| kind & 0xf0 == PUBLISH);
        let before = count;
        for (kind, body) in publishes {
            count += 1;
            if kind & 0x06 != 0 {
                let at = 2 + id.len();
                session.acknowledge([body[at], body[at + 1]]);
            }
        }
        if count == before {
            return count;
        }
    }
}

#[test]
fn the_inflight_window_changes_with_a_restart_only() {
    for version in VERSIONS {
        let broker = broker(version, "max_inflight_messages 5\n");
        assert_eq!((limits_at(broker.addr()).receive_maximum, unacked(&broker, 15)), (Some(5), 5));
        reload(&broker, "max_inflight_messages 10\n");
        let after_reload = (limits_at(broker.addr()).receive_maximum, unacked(&broker, 15));
        assert_eq!(after_reload, (Some(5), 5), "{version}");
        broker.restart().unwrap();
        let after_restart = (limits_at(broker.addr()).receive_maximum, unacked(&broker, 15));
        assert_eq!(after_restart, (Some(10), 10), "{version}");
    }
}

#[test]
fn an_unlimited_window_is_not_announced() {
    for version in VERSIONS {
        let broker = broker(version, "max_inflight_messages 0\n");
        assert_eq!(limits_at(broker.addr()), Limits::default(), "{version}");
        assert_eq!(unacked(&broker, 100), 100, "{version}");
    }
}

#[test]
fn the_packet_limit_changes_with_a_restart_only() {
    for version in VERSIONS {
        let broker = broker(version, "max_packet_size 1000\n");
        reload(&broker, "max_packet_size 2000\n");
        assert_eq!(limits_at(broker.addr()).packet_bytes_max, Some(1_000), "{version}");
        let mut client = Client::connect(broker.addr(), Level::V311, "large");
        client.publish("t", &[0; 1_500], 0, 0);
        assert!(!client.is_open(), "{version}: an oversize packet closes the connection");
        broker.restart().unwrap();
        assert_eq!(limits_at(broker.addr()).packet_bytes_max, Some(2_000), "{version}");
        let mut client = Client::connect(broker.addr(), Level::V311, "large");
        client.publish("t", &[0; 1_500], 0, 0);
        assert!(client.is_open(), "{version}");
    }
}

#[test]
fn the_queue_limits_change_with_a_restart_only() {
    for version in VERSIONS {
        let broker = broker(version, "max_queued_messages 5\n");
        assert_eq!(queued(&broker, "a", 1, b"x", 20), 5, "{version}");
        reload(&broker, "max_queued_messages 12\n");
        assert_eq!(queued(&broker, "b", 1, b"x", 20), 5, "{version}: after a reload");
        broker.restart().unwrap();
        assert_eq!(queued(&broker, "c", 1, b"x", 20), 12, "{version}: after a restart");

        fs::write(broker.dropin_path(), "max_queued_bytes 500\n").unwrap();
        broker.restart().unwrap();
        let by_bytes = queued(&broker, "d", 1, &[0; 100], 20);
        assert!((4..=6).contains(&by_bytes), "{version}: {by_bytes} of 100 bytes within 500");
        reload(&broker, "max_queued_bytes 0\n");
        assert_eq!(queued(&broker, "e", 1, &[0; 100], 20), by_bytes, "{version}: after a reload");
    }
}

#[test]
fn the_inflight_bytes_change_with_a_restart_only() {
    for version in VERSIONS {
        let broker = broker(version, "max_inflight_bytes 3\n");
        let before = unacked(&broker, 15);
        assert!(before < 15, "{version}: {before} unacknowledged within 3 bytes");
        reload(&broker, "max_inflight_bytes 0\n");
        assert_eq!(unacked(&broker, 15), before, "{version}: after a reload");
        broker.restart().unwrap();
        assert_eq!(unacked(&broker, 15), 15, "{version}: after a restart");
    }
}

#[test]
fn the_payload_limit_is_live_and_returns_to_its_default() {
    for version in VERSIONS {
        let broker = broker(version, "");
        let mut subscriber = Client::connect(broker.addr(), Level::V311, "subscriber");
        subscriber.subscribe("t", 0);
        let mut publisher = Client::connect(broker.addr(), Level::V311, "publisher");
        let mut passes = |id: u16| {
            publisher.publish("t", &[0; 200], 1, id);
            publisher.receive_kind(0x40);
            subscriber.receive_until_ping().len()
        };
        assert_eq!(passes(1), 1, "{version}");
        reload(&broker, "message_size_limit 100\n");
        assert_eq!(passes(2), 0, "{version}: discarded, although acknowledged");
        fs::remove_file(broker.dropin_path()).unwrap();
        reload_as_is(&broker);
        assert_eq!(passes(3), 1, "{version}: the default is back");
    }
}

#[test]
fn the_qos_0_queue_is_live() {
    for version in VERSIONS {
        let broker = broker(version, "queue_qos0_messages false\nmax_queued_messages 10\n");
        assert_eq!(queued(&broker, "a", 0, b"x", 50), 0, "{version}");
        reload(&broker, "queue_qos0_messages true\n");
        assert_eq!(queued(&broker, "b", 0, b"x", 50), 50, "{version}: no queue limit bounds it");
    }
}

/// A limit 300 kB above what the broker holds is met by a burst of retained messages.
#[test]
fn the_memory_limit_stays_when_its_line_goes() {
    let limit = 6_000_000;
    for version in VERSIONS {
        let broker = broker(version, "");
        reload(&broker, &format!("memory_limit {limit}\n"));
        fs::remove_file(broker.dropin_path()).unwrap();
        reload_as_is(&broker);
        assert!(!takes_megabytes(&broker, 8), "{version}: without its line the limit stays");
        reload(&broker, "memory_limit 0\n");
        assert!(takes_megabytes(&broker, 8), "{version}: an explicit 0 lifts it");
    }
}

/// Whether the broker takes `count` retained messages of one megabyte, and forgets them again.
fn takes_megabytes(broker: &BrokerProcess, count: u8) -> bool {
    let payload = vec![0; 1_000_000];
    let fill = (0..count).all(|number| {
        let Ok(mut client) = Client::open(broker.addr(), Level::V311, "filler", true) else {
            return false;
        };
        client.publish_retained(&format!("retained/{number}"), &payload);
        client.is_open()
    });
    for number in 0..count {
        let mut client = Client::connect(broker.addr(), Level::V311, "filler");
        client.publish_retained(&format!("retained/{number}"), b"");
        assert!(client.is_open());
    }
    fill
}

#[test]
fn an_invalid_line_is_harmless_at_a_reload_and_fatal_at_a_start() {
    for version in VERSIONS {
        let broker = broker(version, "message_size_limit 100\n");
        let mut client = Client::connect(broker.addr(), Level::V311, "steady");
        client.subscribe("t", 0);
        reload(&broker, "message_size_limit 0\nno_such_option 1\n");
        client.publish("t", &[0; 200], 1, 1);
        client.receive_kind(0x40);
        assert!(client.receive_until_ping().is_empty(), "{version}: the old limit stays");
        let log = fs::read_to_string(broker.log_path()).unwrap();
        assert!(log.contains("no_such_option"), "{version}: {log}");

        let error = broker.restart().unwrap_err();
        let BrokerError::Exited { status, log } = error else { panic!("{version}: {error}") };
        assert_eq!(status.code(), Some(3), "{version}");
        assert!(log.contains("zz-brokertuner.conf:2"), "{version}: {log}");
        assert_eq!(broker.phase(), Phase::Stopped);
    }
}

#[test]
fn the_last_line_wins_in_the_order_of_the_names() {
    // Compared in upper case: digits, letters, `_`, `~`; a dotfile comes first and is loaded.
    let order =
        [".hidden.conf", "10-x.conf", "9-x.conf", "Ab.conf", "b.conf", "_z.conf", "~t.conf"];
    for version in VERSIONS {
        let broker = broker(version, "");
        fs::remove_file(broker.dropin_path()).unwrap();
        let folder = broker.dropin_path().parent().unwrap().to_path_buf();
        for ignored in ["x.conf.tmp", "x.conf.bak", "x.CONF", ".conf"] {
            fs::write(folder.join(ignored), "no_such_option 1\n").unwrap();
        }
        let mut window = 30;
        for name in order {
            window += 1;
            fs::write(folder.join(name), format!("max_inflight_messages {window}\n")).unwrap();
            broker.restart().unwrap();
            assert_eq!(limits_at(broker.addr()).receive_maximum, Some(window), "{version}: {name}");
        }
    }
}

#[test]
fn a_line_after_the_include_directory_beats_every_drop_in() {
    for version in VERSIONS {
        let config = SpawnConfig {
            main_conf_lines: vec!["max_inflight_messages 30".to_owned()],
            dropin: Some("max_inflight_messages 31\n".to_owned()),
            ..SpawnConfig::default()
        };
        let broker = broker_with(version, &config);
        assert_eq!(limits_at(broker.addr()).receive_maximum, Some(31), "{version}");
        let main = fs::read_to_string(broker.conf_path()).unwrap();
        fs::write(broker.conf_path(), main + "max_inflight_messages 32\n").unwrap();
        broker.restart().unwrap();
        assert_eq!(limits_at(broker.addr()).receive_maximum, Some(32), "{version}");
    }
}

/// A directory stands for what cannot be read: root reads every file.
#[test]
fn an_unreadable_drop_in_keeps_the_old_values() {
    for version in VERSIONS {
        let broker = broker(version, "message_size_limit 100\n");
        let other = broker.dropin_path().with_file_name("other.conf");
        fs::create_dir(&other).unwrap();
        reload(&broker, "message_size_limit 0\n");
        let mut client = Client::connect(broker.addr(), Level::V311, "client");
        client.subscribe("t", 0);
        client.publish("t", &[0; 200], 1, 1);
        client.receive_kind(0x40);
        assert!(client.receive_until_ping().is_empty(), "{version}: the old limit stays");
        fs::remove_dir(&other).unwrap();
        if !nix::unistd::geteuid().is_root() {
            fs::set_permissions(broker.dropin_path(), fs::Permissions::from_mode(0o000)).unwrap();
            assert!(matches!(broker.restart(), Err(BrokerError::Exited { .. })), "{version}");
        }
    }
}

#[test]
fn state_survives_a_restart_with_persistence_only() {
    for version in VERSIONS {
        for persistence in [true, false] {
            let broker =
                broker_with(version, &SpawnConfig { persistence, ..SpawnConfig::default() });
            Client::connect_durable(broker.addr(), "session").subscribe("t", 1);
            broker.restart().unwrap();
            let session = Client::connect_durable(broker.addr(), "session");
            assert_eq!(session.session_present, persistence, "{version}");
            assert_eq!(broker.data_dir().join("mosquitto.db").exists(), persistence, "{version}");
        }
    }
}

/// A save writes every message that somebody waits for. At the next start those of clean sessions
/// belong to nobody, and are kept until the start after that.
#[test]
fn messages_of_clean_sessions_weigh_on_the_broker_after_a_restart_with_persistence() {
    const PAYLOAD_BYTES: usize = 10_000;
    const COUNT: u16 = 800;
    for version in VERSIONS {
        for persistence in [true, false] {
            let broker =
                broker_with(version, &SpawnConfig { persistence, ..SpawnConfig::default() });
            let rss = || rss_bytes(broker.pid()).unwrap();
            let before = rss();
            let mut subscriber = Client::connect(broker.addr(), Level::V311, "silent");
            subscriber.subscribe("t", 1);
            let mut publisher = Client::connect(broker.addr(), Level::V311, "publisher");
            publisher.publish_acked("t", &[b'x'; PAYLOAD_BYTES], COUNT);
            let held = u64::from(COUNT) * PAYLOAD_BYTES as u64;
            assert!(rss() > before + held * 9 / 10, "{version}: {} of {held}", rss() - before);
            broker.restart().unwrap();
            let mut heir = Client::connect(broker.addr(), Level::V311, "silent");
            heir.subscribe("t", 1);
            assert!(heir.receive_until_ping().is_empty(), "{version}: nobody gets them");
            let orphans = rss().saturating_sub(before);
            println!("{version} persistence {persistence}: {orphans} bytes more than at first");
            assert_eq!(orphans > held * 9 / 10, persistence, "{version}: {orphans} bytes");
            let stored = stored_bytes(&broker);
            assert_eq!(stored > held * 9 / 10, persistence, "{version}: {stored} bytes stored");
            broker.restart().unwrap();
            let left = rss().saturating_sub(before);
            assert!(left < held / 4, "{version}: {left} bytes after a second restart");
        }
    }
}

/// What the broker stores, by its own count, at its first update after a start.
fn stored_bytes(broker: &BrokerProcess) -> u64 {
    let mut client = Client::connect(broker.addr(), Level::V311, "reader");
    client.subscribe("$SYS/broker/store/messages/bytes", 0);
    let (_, body) = client.receive_kind(PUBLISH);
    let topic_bytes = usize::from(u16::from_be_bytes([body[0], body[1]]));
    std::str::from_utf8(&body[2 + topic_bytes..]).unwrap().parse().unwrap()
}

/// Messages that a connected subscriber gets in the end out of `offered`, if it acknowledges none
/// before all are published.
fn kept_while_connected(broker: &BrokerProcess, payload: &[u8], offered: u16) -> usize {
    let mut subscriber = Client::connect(broker.addr(), Level::V311, "slow");
    subscriber.subscribe("t", 1);
    let mut publisher = Client::connect(broker.addr(), Level::V311, "publisher");
    publisher.publish_acked("t", payload, offered);
    let mut count = 0;
    loop {
        let packets = subscriber.receive_until_ping();
        let ids = packets.iter().filter(|(kind, _)| kind & 0xf0 == PUBLISH).map(|(_, body)| {
            let topic_bytes = usize::from(u16::from_be_bytes([body[0], body[1]]));
            [body[2 + topic_bytes], body[3 + topic_bytes]]
        });
        let ids: Vec<[u8; 2]> = ids.collect();
        if ids.is_empty() {
            return count;
        }
        count += ids.len();
        ids.into_iter().for_each(|id| subscriber.acknowledge(id));
    }
}

/// While a subscriber is connected, the limits of its window are added to those of its queue; a
/// window without a limit adds nothing. On 2.0.11 what is in flight counts as queued too.
#[test]
fn the_window_s_limits_lengthen_a_connected_subscriber_s_queue() {
    const PAYLOAD: [u8; 10_000] = [b'x'; 10_000];
    for (version, inflight_bytes, queued, queued_bytes, kept) in [
        // 20 in flight, and beside them what the queue takes.
        ("2.0.21", 0, 1000, 100_000, 20 + 10),
        ("2.0.21", 50_000, 1000, 100_000, 5 + 15),
        ("2.0.21", 400_000, 1000, 100_000, 20 + 50),
        ("2.0.21", 0, 100, 0, 20 + 120),
        ("2.0.11", 0, 1000, 100_000, 20),
        ("2.0.11", 50_000, 1000, 100_000, 15),
        ("2.0.11", 400_000, 1000, 100_000, 50),
        ("2.0.11", 0, 100, 0, 120),
    ] {
        let dropin = format!(
            "max_inflight_messages 20\nmax_inflight_bytes {inflight_bytes}\n\
             max_queued_messages {queued}\nmax_queued_bytes {queued_bytes}\n"
        );
        let broker = broker(version, &dropin);
        assert_eq!(kept_while_connected(&broker, &PAYLOAD, 300), kept, "{version}: {dropin}");
    }
}
