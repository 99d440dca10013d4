#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::envelope::Envelope;
use proptest::prelude::*;
use std::format;
use std::string::String;

fn ms(at: u64) -> Instant {
    Instant::from_millis(at)
}

fn publish(tree: &mut SysTree, at: u64, values: &[(Sys, u64)]) {
    for &(sys, value) in values {
        let (_, topic) = SYS_TOPICS[sys as usize];
        let text =
            if sys == Sys::UptimeS { format!("{value} seconds") } else { format!("{value}") };
        tree.update(&format!("{SYS_PREFIX}{topic}"), text.as_bytes(), ms(at)).unwrap();
    }
}

fn sample(tree: &mut SysTree, at: u64, proc: Option<ProcSample>) -> Sample {
    Sample {
        at: ms(at),
        sys: tree.frame(ms(at)),
        proc,
        probe: ProbeSample::default(),
        own: OwnTraffic::default(),
    }
}

#[test]
fn topics_stand_in_order_and_once() {
    for (row, (sys, topic)) in SYS_TOPICS.iter().enumerate() {
        assert_eq!(*sys as usize, row, "{topic}");
        assert_eq!(SYS_TOPICS.iter().filter(|(_, other)| other == topic).count(), 1);
    }
}

#[test]
fn rates_are_over_the_real_time_between_updates() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    publish(&mut tree, 1000, &[(Sys::UptimeS, 10), (Sys::PublishSent, 100)]);
    assert_eq!(meter.measure(&sample(&mut tree, 1500, None)).publish_sent_per_s, None);
    publish(&mut tree, 3500, &[(Sys::UptimeS, 12), (Sys::PublishSent, 600)]);
    let metrics = meter.measure(&sample(&mut tree, 4000, None));
    assert_eq!(metrics.publish_sent_per_s, Some(200.0), "500 in 2.5 s");
    assert_eq!(metrics.sys_period_s, Some(2.5));
    // Sampled more often than $SYS moves: the rate holds.
    let again = meter.measure(&sample(&mut tree, 4500, None));
    assert_eq!(again.publish_sent_per_s, Some(200.0));
}

#[test]
fn silence_of_a_counter_means_unchanged() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    publish(&mut tree, 0, &[(Sys::UptimeS, 10), (Sys::PublishDropped, 7)]);
    meter.measure(&sample(&mut tree, 500, None));
    publish(&mut tree, 2000, &[(Sys::UptimeS, 12)]);
    let metrics = meter.measure(&sample(&mut tree, 2500, None));
    assert_eq!(metrics.publish_dropped_per_s, Some(0.0));
    assert_eq!(metrics.publish_sent_per_s, None, "never published is missing, not zero");
}

/// 2.0.11 forgets a value a minute after it last changed; who subscribes then never gets it.
#[test]
fn a_count_of_drops_that_never_comes_has_not_changed() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    publish(&mut tree, 0, &[(Sys::UptimeS, 500), (Sys::PublishSent, 100)]);
    assert_eq!(meter.measure(&sample(&mut tree, 500, None)).publish_dropped_per_s, None);
    publish(&mut tree, 2000, &[(Sys::UptimeS, 502), (Sys::PublishSent, 300)]);
    let metrics = meter.measure(&sample(&mut tree, 2500, None));
    assert_eq!(metrics.publish_dropped_per_s, Some(0.0));
    // Its first value may stand for an hour of drops.
    publish(&mut tree, 4000, &[(Sys::UptimeS, 504), (Sys::PublishDropped, 900)]);
    assert_eq!(meter.measure(&sample(&mut tree, 4500, None)).publish_dropped_per_s, None);
    // Nor is anything known of a broker that tells nothing of its deliveries.
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    for at in [0, 2000] {
        publish(&mut tree, at, &[(Sys::UptimeS, 500 + at / 1000)]);
        meter.measure(&sample(&mut tree, at + 500, None));
    }
    assert_eq!(meter.measure(&sample(&mut tree, 3000, None)).publish_dropped_per_s, None);
}

#[test]
fn a_half_arrived_update_is_not_used() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    publish(&mut tree, 0, &[(Sys::UptimeS, 10), (Sys::PublishSent, 100)]);
    meter.measure(&sample(&mut tree, 500, None));
    publish(&mut tree, 2000, &[(Sys::UptimeS, 12)]);
    // 10 ms later the rest is still on its way.
    assert_eq!(tree.frame(ms(2010)).at, Some(ms(0)));
    publish(&mut tree, 2020, &[(Sys::PublishSent, 300)]);
    let metrics = meter.measure(&sample(&mut tree, 2500, None));
    assert_eq!(metrics.publish_sent_per_s, Some(100.0));
}

#[test]
fn counters_restart_with_the_broker() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    publish(&mut tree, 0, &[(Sys::UptimeS, 500), (Sys::PublishSent, 1_000_000)]);
    meter.measure(&sample(&mut tree, 500, None));
    publish(&mut tree, 10_000, &[(Sys::UptimeS, 4), (Sys::PublishSent, 400)]);
    let metrics = meter.measure(&sample(&mut tree, 10_500, None));
    assert_eq!(metrics.publish_sent_per_s, Some(100.0), "400 in the 4 s since the restart");
}

#[test]
fn stale_values_are_missing() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    publish(&mut tree, 0, &[(Sys::UptimeS, 10), (Sys::ClientsConnected, 5)]);
    meter.measure(&sample(&mut tree, 500, None));
    publish(&mut tree, 2000, &[(Sys::UptimeS, 12)]);
    let fresh = sample(&mut tree, 8000, None);
    assert!(meter.measure(&fresh).clients_connected.is_some());
    assert_eq!(meter.stale_for(&fresh), None);
    let stale = sample(&mut tree, 8001, None);
    assert_eq!(meter.measure(&stale).clients_connected, None);
    assert_eq!(meter.stale_for(&stale), Some(Duration::from_millis(6001)));
    // What never came is absent, not stale.
    let none = sample(&mut SysTree::default(), 9000, None);
    meter.measure(&none);
    assert_eq!(meter.stale_for(&none), None);
}

#[test]
fn packets_are_bounded_by_what_came_and_by_what_is_stored() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    publish(&mut tree, 0, &[(Sys::UptimeS, 10), (Sys::BytesReceived, 1000)]);
    meter.measure(&sample(&mut tree, 500, None));
    assert_eq!(meter.packet_bytes_bound(), None, "nothing is known of one update");
    publish(&mut tree, 2000, &[(Sys::UptimeS, 12), (Sys::BytesReceived, 51_000)]);
    let frame = sample(&mut tree, 2500, None);
    meter.measure(&frame);
    let bound = meter.packet_bytes_bound().unwrap();
    assert!((50_000..=50_010).contains(&bound), "{bound}");
    let envelope = Envelope::default().measured(&frame, &meter);
    assert_eq!(envelope.packet_bytes_max, Some(bound));
    publish(&mut tree, 4000, &[(Sys::UptimeS, 14), (Sys::StoreBytes, 90_000)]);
    meter.measure(&sample(&mut tree, 4500, None));
    assert!(meter.packet_bytes_bound() > Some(90_000), "a retained message may be as large");
    // Less since, and another broker: what was seen was seen.
    publish(&mut tree, 6000, &[(Sys::UptimeS, 1), (Sys::StoreBytes, 0)]);
    meter.measure(&sample(&mut tree, 6500, None));
    assert!(meter.packet_bytes_bound() > Some(90_000));
}

#[test]
fn a_lost_connection_starts_over() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    publish(&mut tree, 0, &[(Sys::UptimeS, 10), (Sys::PublishSent, 5)]);
    meter.measure(&sample(&mut tree, 500, None));
    tree.clear();
    assert_eq!(meter.measure(&sample(&mut tree, 600, None)).publish_sent_per_s, None);
    publish(&mut tree, 1000, &[(Sys::UptimeS, 11), (Sys::PublishSent, 9)]);
    assert_eq!(meter.measure(&sample(&mut tree, 1500, None)).publish_sent_per_s, None);
}

#[test]
fn own_traffic_is_left_out() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    let mut own = OwnTraffic { connections: 1, subscriptions: 2, ..OwnTraffic::default() };
    publish(&mut tree, 0, &[(Sys::UptimeS, 1), (Sys::ClientsConnected, 3)]);
    let counters = [
        (Sys::MessagesReceived, 1013),
        (Sys::PublishReceived, 507),
        (Sys::PublishSent, 140),
        (Sys::PublishBytesReceived, 5090),
        (Sys::BytesReceived, 8200),
        (Sys::BytesSent, 9500),
    ];
    publish(&mut tree, 0, &counters.map(|(sys, _)| (sys, 0)));
    publish(&mut tree, 0, &[(Sys::Subscriptions, 7)]);
    meter.measure(&Sample { own, ..sample(&mut tree, 500, None) });
    publish(&mut tree, 1000, &[(Sys::UptimeS, 2)]);
    publish(&mut tree, 1000, &counters);
    own.publish_sent = 7;
    own.publish_received = 40;
    own.publish_bytes_sent = 90;
    own.packets_sent = 13;
    own.bytes_sent = 200;
    own.bytes_received = 1500;
    let metrics = meter.measure(&Sample { own, ..sample(&mut tree, 1500, None) });
    assert_eq!((metrics.clients_connected, metrics.clients_others), (Some(3.0), Some(2.0)));
    assert_eq!(metrics.subscriptions, Some(5.0));
    // As the seed program had them: all.
    assert_eq!(metrics.packets_received_per_s, Some(1013.0));
    assert_eq!(metrics.packets_others_per_s, Some(1000.0));
    assert_eq!(metrics.publish_received_per_s, Some(500.0));
    assert_eq!(metrics.publish_sent_per_s, Some(100.0));
    assert_eq!(metrics.publish_bytes_received_per_s, Some(5000.0));
    assert_eq!(metrics.bytes_received_per_s, Some(8000.0));
    assert_eq!(metrics.bytes_sent_per_s, Some(8000.0));
}

#[test]
fn cpu_is_of_the_same_process_only() {
    let (mut tree, mut meter) = (SysTree::default(), Meter::default());
    let proc = |pid, cpu_us| ProcSample {
        pid,
        start_ticks: 7,
        rss_bytes: 4096,
        cpu_us,
        context_switches: 10,
    };
    assert_eq!(meter.measure(&sample(&mut tree, 0, Some(proc(1, 0)))).cpu_share, None);
    let busy = meter.measure(&sample(&mut tree, 2000, Some(proc(1, 500_000))));
    assert_eq!(busy.cpu_share, Some(0.25));
    let other = meter.measure(&sample(&mut tree, 4000, Some(proc(2, 900_000))));
    assert_eq!(other.cpu_share, None, "a new process has no past");
}

#[test]
fn versions() {
    assert_eq!(Version::parse("mosquitto version 2.0.21"), Some(Version(2, 0, 21)));
    for text in ["", "mosquitto version 2.0", "2.0.x", "2.0.1.1", "2.0.300"] {
        assert_eq!(Version::parse(text), None, "{text:?}");
    }
}

proptest! {
    #[test]
    fn no_payload_panics(
        row in 0..SYS_COUNT,
        payload in proptest::collection::vec(any::<u8>(), 0..24),
        topic in ".{0,12}",
    ) {
        let mut tree = SysTree::default();
        let known = String::from(SYS_PREFIX) + SYS_TOPICS[row].1;
        let _ = tree.update(&known, &payload, ms(0));
        let _ = tree.update(&(String::from(SYS_PREFIX) + &topic), &payload, ms(1));
    }

    /// Whatever the counters do, rates are finite and never negative.
    #[test]
    fn rates_are_finite(steps in proptest::collection::vec((0..5000_u64, any::<u64>(), any::<u64>()), 1..20)) {
        let (mut tree, mut meter, mut now) = (SysTree::default(), Meter::default(), 0);
        for (wait, uptime, sent) in steps {
            publish(&mut tree, now, &[(Sys::UptimeS, uptime), (Sys::PublishSent, sent)]);
            now += wait;
            let metrics = meter.measure(&sample(&mut tree, now, None));
            if let Some(rate) = metrics.publish_sent_per_s {
                prop_assert!(rate.is_finite() && rate >= 0.0, "{rate}");
            }
        }
    }
}
