#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::settings::Action;
use proptest::prelude::*;
use std::format;
use std::string::ToString;

fn any_bounds(knob: Knob) -> impl Strategy<Value = Bounds> {
    let table = Bounds::of(knob);
    (table.min..=table.max, table.min..=table.max, any::<bool>())
        .prop_map(move |(a, b, open)| Bounds::narrowed(knob, a.min(b), a.max(b), open).unwrap())
}

prop_compose! {
    fn any_envelope()(
        bits in any::<u16>(),
        bounds in Knob::ALL.map(any_bounds),
        site in proptest::array::uniform11(prop_oneof![Just(0_u64), 1..70_000_u64]),
        heap_bytes_max in proptest::option::of(any::<u64>().prop_map(|b| b >> 24)),
        packet_bytes_max in proptest::option::of(any::<u64>().prop_map(|b| b >> 30)),
    ) -> Envelope {
        Envelope {
            opted_in: KnobSet::from_bits(bits),
            bounds,
            site: SiteValues(site),
            heap_bytes_max,
            packet_bytes_max,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn nothing_decoded_leaves_the_envelope(envelope in any_envelope(), action in any::<Action>()) {
        let settings = Settings::decode(&action, &envelope);
        let found = envelope.check(&settings);
        prop_assert!(found.is_empty(), "{settings:?}\n{found:?}");
    }

    #[test]
    fn confining_twice_changes_nothing(envelope in any_envelope(), action in any::<Action>()) {
        let once = Settings::decode(&action, &envelope);
        prop_assert_eq!(envelope.confine(once), once);
    }

    #[test]
    fn what_is_inside_is_left_alone(envelope in any_envelope(), action in any::<Action>()) {
        let free = Settings::decode(&action, &Envelope { opted_in: KnobSet::all(), ..envelope });
        if envelope.check(&free).is_empty() {
            prop_assert_eq!(envelope.confine(free), free);
        }
    }

    #[test]
    fn encoding_is_kept_by_a_second_pass(action in any::<Action>()) {
        let envelope = Envelope::default();
        let settings = Settings::decode(&action, &envelope);
        let again = Settings::decode(&settings.encode(&envelope.site), &envelope);
        prop_assert!(again.differing(&settings).without(Knob::QueuedMessagesMax).is_empty());
        // The queue may have been lifted off the grid by the window rule, never by much.
        let queue = |s: &Settings| s.get(Knob::QueuedMessagesMax).value().unwrap();
        prop_assert!(queue(&again).abs_diff(queue(&settings)) * 20 <= queue(&settings));
    }
}

/// Every pair of window and queue outputs: the rule that keeps control packets alive.
#[test]
fn queue_is_never_below_twice_the_window() {
    let envelope = Envelope::default();
    for window in i8::MIN..=i8::MAX {
        for queue in i8::MIN..=i8::MAX {
            let mut action = [0; KNOB_COUNT];
            action[Knob::InflightMessagesMax as usize] = window;
            action[Knob::QueuedMessagesMax as usize] = queue;
            let settings = Settings::decode(&action, &envelope);
            let value = |knob| settings.get(knob).value().unwrap();
            let (window, queue) =
                (value(Knob::InflightMessagesMax), value(Knob::QueuedMessagesMax));
            assert!(queue >= 100 && queue >= 2 * window && window > 0, "{window} {queue}");
        }
    }
}

#[test]
fn held_options_are_not_written() {
    let settings = Settings::decode(&[127; KNOB_COUNT], &Envelope::default());
    let held = KnobSet::all().iter().filter(|&knob| !KnobSet::tuned_by_default().contains(knob));
    for knob in held {
        assert_eq!(settings.get(knob), Setting::Unwritten, "{knob}");
    }
}

#[test]
fn memory_limit_needs_a_known_heap() {
    let opted_in = KnobSet::all();
    let mut action = [-127; KNOB_COUNT];
    action[Knob::QueueQos0 as usize] = 127;
    let blind = Settings::decode(&action, &Envelope { opted_in, ..Envelope::default() });
    assert_eq!(blind.get(Knob::MemoryLimit).value(), Some(0));
    assert_eq!(blind.get(Knob::QueueQos0).value(), Some(0), "unbounded queueing");

    let heap_bytes_max = Some(40 << 20);
    let seeing = Envelope { opted_in, heap_bytes_max, ..Envelope::default() };
    let settings = Settings::decode(&action, &seeing);
    assert_eq!(settings.get(Knob::MemoryLimit).value(), Some(80 << 20));
    assert_eq!(settings.get(Knob::QueueQos0).value(), Some(1));
}

#[test]
fn size_limits_need_a_seen_packet() {
    let opted_in = KnobSet::all();
    let action = [-127; KNOB_COUNT];
    let blind = Settings::decode(&action, &Envelope { opted_in, ..Envelope::default() });
    assert_eq!(blind.get(Knob::PacketSizeMax), Setting::Unwritten);
    assert_eq!(blind.get(Knob::MessageSizeMax).value(), Some(0));
    let packet_bytes_max = Some(1 << 20);
    let seeing = Envelope { opted_in, packet_bytes_max, ..Envelope::default() };
    let settings = Settings::decode(&action, &seeing);
    assert_eq!(settings.get(Knob::PacketSizeMax).value(), Some(4 << 20));
    assert_eq!(settings.get(Knob::MessageSizeMax).value(), Some(4 << 20));
}

#[test]
fn each_refused_option_has_one_reason() {
    let mut settings = Settings::UNWRITTEN;
    for (knob, value) in [
        (Knob::InflightMessagesMax, 1000),
        (Knob::QueuedMessagesMax, 150),
        (Knob::QueueQos0, 1),
        (Knob::MemoryLimit, 0),
        (Knob::Persistence, 1),
    ] {
        settings.set(knob, value).unwrap();
    }
    let envelope =
        Envelope { opted_in: KnobSet::all().without(Knob::Persistence), ..Envelope::default() };
    let texts: std::vec::Vec<_> =
        envelope.check(&settings).iter().map(|v| format!("{}: {v}", v.knob())).collect();
    assert_eq!(
        texts,
        [
            "max_queued_messages: max_queued_messages 150 is below 2 times max_inflight_messages 1000: control packets would be lost",
            "queue_qos0_messages: queue_qos0_messages true is bounded by no queue limit; set memory_limit as well",
            "persistence: persistence is held at the site's value; opt in to have it changed",
        ]
    );
}

#[test]
fn operator_bounds_are_refused_outside_the_table() {
    let error = Bounds::narrowed(Knob::QueuedMessagesMax, 10, 500, false).unwrap_err();
    assert_eq!(error.to_string(), "max_queued_messages 10 is outside 100 to 65536 messages");
    assert!(Bounds::narrowed(Knob::QueuedMessagesMax, 500, 200, false).is_err());
}
