#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::knobs::KnobSet;
use crate::settings::Action;
use crate::{Envelope, Settings};
use proptest::prelude::*;
use std::vec::Vec;

fn full() -> Metrics {
    Metrics {
        clients_connected: Some(101.0),
        clients_others: Some(100.0),
        packets_received_per_s: Some(5000.0),
        packets_others_per_s: Some(5000.0),
        publish_received_per_s: Some(1000.0),
        publish_sent_per_s: Some(4000.0),
        publish_dropped_per_s: Some(1000.0),
        publish_bytes_received_per_s: Some(127_000.0),
        subscriptions: Some(10.0),
        bytes_sent_per_s: Some(600_000.0),
        backlog_messages: Some(0.0),
        store_bytes: Some(0.0),
        heap_bytes: Some(1e6),
        rss_bytes: Some(32.0 * 1_048_576.0),
        cpu_share: Some(0.5),
        context_switches: Some(250_000.0),
        ..Metrics::default()
    }
}

fn edge_of(metrics: &Metrics, effective: &Settings) -> Features {
    let (site, targets) = (SiteValues::default(), Targets::default());
    edge(&View { metrics, effective, site: &site, targets: &targets })
}

fn index(name: &str) -> usize {
    (0..Schema::Edge.len()).find(|&i| Schema::Edge.name(i) == Some(name)).unwrap()
}

#[test]
fn seed5_is_the_table_of_the_design() {
    let state = seed5(&full(), &Seed5Norms::default());
    assert_eq!(state.as_slice(), [0.101, 0.5, 50.0 / 400.0, 32.0 / 1024.0, 0.25]);
}

#[test]
fn names_are_unique_and_complete() {
    for schema in [Schema::Seed5, Schema::Edge] {
        let names: Vec<_> = (0..schema.len()).map(|i| schema.name(i).unwrap()).collect();
        assert_eq!(schema.name(schema.len()), None);
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        assert_eq!(Schema::from_id(schema.id()), Some(schema));
    }
    assert_ne!(Schema::Seed5.fingerprint(), Schema::Edge.fingerprint());
}

#[test]
fn edge_by_hand() {
    let state = edge_of(&full(), &Settings::UNWRITTEN);
    assert_eq!(state.len(), Schema::Edge.len());
    let close = |name, expected: f32| {
        let got = state[index(name)];
        // micromath's logarithm (`fast-math`) is good to 0.05 octaves, libm's to the last bit.
        let bound = if cfg!(feature = "fast-math") { 0.01 } else { 1e-5 };
        assert!((got - expected).abs() <= bound, "{name}: {got} {expected}");
    };
    close("publish_received_rate", libm::log2f(1001.0) / 16.0);
    close("fan_out", libm::log2f(5.0) / 8.0);
    close("dropped_share", 0.2);
    close("payload_bytes_mean", 7.0 / 16.0);
    close("acks_per_delivery", 1.0);
    close("rss_ratio", 0.5);
    close("sys_is_fresh", 1.0);
    close("probe_is_fresh", 0.0);
    close("set_tcp_nodelay", -1.0);
    close("max_queued_bytes", ZERO_POSITION);
}

/// Lowest output that means "no limit": where an unlimited default stands in the state.
const ZERO_POSITION: f32 = crate::knobs::ZERO_FROM as f32 / 127.0;

#[test]
fn missing_is_marked() {
    let state = edge_of(&Metrics::default(), &Settings::UNWRITTEN);
    for name in ["sys_is_fresh", "proc_is_fresh", "probe_is_fresh"] {
        assert_eq!(state[index(name)].to_bits(), 0, "{name}");
    }
}

/// One missing figure is not taken for a good zero.
#[test]
fn a_group_with_a_gap_is_not_fresh() {
    let all = Metrics {
        probe_latency_us_qos0: Some(100.0),
        probe_latency_us_qos1: Some(100.0),
        ..full()
    };
    let state = |metrics: &Metrics, name| edge_of(metrics, &Settings::UNWRITTEN)[index(name)] > 0.5;
    assert!(state(&all, "sys_is_fresh") && state(&all, "probe_is_fresh"));
    assert!(!state(&Metrics { probe_latency_us_qos1: None, ..all }, "probe_is_fresh"));
    assert!(!state(&Metrics { clients_others: None, ..all }, "sys_is_fresh"));
    assert!(!state(&Metrics { rss_bytes: None, ..all }, "proc_is_fresh"));
}

proptest! {
    /// Any metrics, NaN, infinity and negative numbers among them, and any settings give a state
    /// within bounds.
    #[test]
    fn states_are_bounded(values in proptest::array::uniform12(proptest::option::of(proptest::num::f32::ANY)), action in any::<Action>()) {
        let v = |i: usize| values[i];
        let metrics = Metrics {
            clients_others: v(0), clients_offline: v(1), publish_received_per_s: v(2),
            publish_sent_per_s: v(3), publish_dropped_per_s: v(4), backlog_messages: v(5),
            rss_bytes: v(6), cpu_share: v(7), probe_latency_us_qos1: v(8), heap_bytes: v(9),
            packets_others_per_s: v(10), publish_bytes_received_per_s: v(11),
            ..Metrics::default()
        };
        let envelope = Envelope { opted_in: KnobSet::all(), ..Envelope::default() };
        let state = edge_of(&metrics, &Settings::decode(&action, &envelope));
        for (i, value) in state.iter().enumerate() {
            prop_assert!(value.is_finite() && (-1.0..=2.0).contains(value), "{:?} {value}", Schema::Edge.name(i));
        }
    }
}

#[cfg(feature = "fast-math")]
#[test]
fn micromath_is_within_its_bound_of_libm() {
    for step in 0..20_000 {
        let x = libm::exp2f(step as f32 / 1000.0);
        assert!((log2(x) - libm::log2f(x)).abs() <= 0.05, "{x}");
    }
}
