//! Laws over the whole table and every one of the 256 outputs, not samples.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use std::collections::HashSet;
use std::format;
use std::vec::Vec;

const RAWS: std::ops::RangeInclusive<i8> = i8::MIN..=i8::MAX;

#[test]
fn table_laws() {
    let mut keys = HashSet::new();
    for (row, spec) in KNOBS.iter().enumerate() {
        assert_eq!(spec.knob as usize, row, "{}: row out of order", spec.key);
        assert_eq!(Knob::ALL[row], spec.knob, "{}: ALL out of order", spec.key);
        assert_eq!(Knob::from_key(spec.key), Some(spec.knob));
        assert!(keys.insert(spec.key), "{}: twice", spec.key);
        assert!(spec.min <= spec.max, "{}: empty range", spec.key);
        assert!(!spec.why.is_empty() && !spec.source.is_empty(), "{}: say why, and cite", spec.key);
        assert_eq!(
            spec.zero == Zero::False,
            spec.scale == Scale::Switch,
            "{}: a switch has no limit to lift",
            spec.key
        );
        let default_is_choice = spec.value(spec.default).is_ok() || spec.zero == Zero::Unwritten;
        assert!(default_is_choice, "{}: the broker's default cannot be chosen", spec.key);
    }
}

#[test]
fn decode_is_monotone_and_stays_in_range() {
    for spec in &KNOBS {
        let orders: Vec<u64> =
            RAWS.map(|raw| spec.order(spec.decode(raw).map_or(0, KnobValue::get))).collect();
        assert!(orders.is_sorted(), "{}: {orders:?}", spec.key);
        for value in RAWS.filter_map(|raw| spec.decode(raw)) {
            assert_eq!(spec.value(value.get()), Ok(value), "{}", spec.key);
        }
        assert_eq!(spec.decode(i8::MIN), spec.decode(-127), "{}", spec.key);
        assert_eq!(spec.decode(-127).unwrap().get(), spec.min, "{}", spec.key);
    }
}

#[test]
fn range_ends_are_reached() {
    for spec in &KNOBS {
        let limits: Vec<u64> =
            RAWS.filter_map(|raw| spec.decode(raw)).map(KnobValue::get).collect();
        assert!(limits.contains(&spec.min) && limits.contains(&spec.max), "{}", spec.key);
    }
}

#[test]
fn log_scale_agrees_with_libm() {
    for spec in KNOBS.iter().filter(|spec| spec.scale == Scale::Log2) {
        let top = if spec.zero == Zero::Never { 127 } else { ZERO_FROM - 1 };
        let octaves = libm::log2(spec.max as f64 / spec.min as f64);
        for raw in -127..=top {
            let share = (f64::from(raw) + 127.0) / (f64::from(top) + 127.0);
            let exact = spec.min as f64 * libm::exp2(octaves * share);
            let value = spec.decode(raw).unwrap().get() as f64;
            assert!((value - exact).abs() <= 0.5 + exact * 1e-9, "{} {raw}", spec.key);
        }
    }
}

#[test]
fn encode_inverts_decode() {
    for spec in &KNOBS {
        for raw in RAWS {
            let value = spec.decode(raw);
            assert_eq!(spec.decode(spec.encode(value)), value, "{} {raw}", spec.key);
        }
    }
}

#[test]
fn encode_finds_the_nearest() {
    for spec in &KNOBS {
        for asked in [spec.min, spec.min + 1, spec.min * 3 + 1, spec.max / 7, spec.max - 1] {
            let Ok(value) = spec.value(asked) else { continue };
            let got = spec.decode(spec.encode(Some(value)));
            let gap =
                |v: Option<KnobValue>| spec.order(v.map_or(0, KnobValue::get)).abs_diff(asked);
            let best = RAWS.map(|raw| gap(spec.decode(raw))).min().unwrap();
            assert_eq!(gap(got), best, "{} {asked}", spec.key);
        }
    }
}

#[test]
fn refusals_say_the_range() {
    let text = format!("{}", Knob::QueuedMessagesMax.spec().value(0).unwrap_err());
    assert_eq!(text, "max_queued_messages 0 is outside 100 to 65536 messages");
    let text = format!("{}", Knob::QueuedBytesMax.spec().value(1).unwrap_err());
    assert_eq!(text, "max_queued_bytes 1 is outside 65536 to 67108864 bytes, or 0 for no limit");
}

#[test]
fn held_by_default_are_the_five_of_the_design() {
    let held: Vec<&str> = Knob::ALL
        .into_iter()
        .filter(|&knob| !KnobSet::tuned_by_default().contains(knob))
        .map(|knob| knob.spec().key)
        .collect();
    assert_eq!(
        held,
        [
            "queue_qos0_messages",
            "memory_limit",
            "persistence",
            "max_packet_size",
            "message_size_limit"
        ]
    );
}

#[test]
fn restart_only_are_the_measured_six_and_persistence() {
    let restart: Vec<&str> =
        KNOBS.iter().filter(|spec| spec.apply == Apply::Restart).map(|spec| spec.key).collect();
    assert_eq!(
        restart,
        [
            "max_inflight_messages",
            "max_inflight_bytes",
            "max_queued_messages",
            "max_queued_bytes",
            "persistence",
            "set_tcp_nodelay",
            "max_packet_size"
        ]
    );
}

#[test]
fn the_fingerprint_moves_with_the_table() {
    // Renew on purpose only: every exported model becomes unreadable.
    assert_eq!(FINGERPRINT, 2_032_935_564);
}
