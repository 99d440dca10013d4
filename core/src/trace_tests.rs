#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::sample::Sys;
use crate::{Duration, KNOBS};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const GOLDEN: &[u8] = include_bytes!("../../models/golden/trace-v2.btt");

fn head() -> Head {
    let mut envelope = Envelope::default();
    envelope.bounds[Knob::InflightMessagesMax as usize] =
        Bounds::narrowed(Knob::InflightMessagesMax, 10, 500, false).unwrap();
    envelope.site.0[Knob::Persistence as usize] = 1;
    Head { interval_ms: 10_000, targets: Targets { deadline_ms: 100, rss_limit_mib: 32 }, envelope }
}

fn records() -> [Record; 2] {
    let mut values = [None; SYS_COUNT];
    values[Sys::UptimeS as usize] = Some(4242);
    values[Sys::PublishSent as usize] = Some(1_000_000);
    let mut written = Settings::UNWRITTEN;
    written.set(Knob::InflightMessagesMax, 100).unwrap();
    let at = Instant::from_secs(77);
    let first = Record {
        sample: Sample {
            at,
            sys: SysFrame::new(values, Some(at - Duration::from_millis(1500))),
            proc: Some(ProcSample {
                pid: 321,
                start_ticks: 99_999,
                rss_bytes: 8 << 20,
                cpu_us: 1_234_567,
                context_switches: 4321,
            }),
            probe: ProbeSample { latency_us_qos0: Some(250), latency_us_qos1: None },
            own: OwnTraffic {
                connections: 1,
                subscriptions: 2,
                publish_sent: 30,
                publish_received: 600,
                publish_bytes_sent: 270,
                packets_sent: 45,
                bytes_sent: 1500,
                bytes_received: 25_000,
            },
        },
        written,
        effective: Settings::UNWRITTEN,
        is_serving: true,
        state_at_risk: false,
        quiet_hours: true,
    };
    let blind = Sample {
        at: at + Duration::from_secs(10),
        sys: SysFrame::default(),
        proc: None,
        probe: ProbeSample::default(),
        own: OwnTraffic::default(),
    };
    [first, Record { sample: blind, is_serving: false, state_at_risk: true, ..first }]
}

fn bytes() -> Vec<u8> {
    let mut buffer = [0; FRAME_BYTES_MAX];
    let mut out = Vec::new();
    let length = head().write(&mut buffer).unwrap();
    out.extend_from_slice(&buffer[..length]);
    for record in records() {
        let length = record.write(&mut buffer).unwrap();
        out.extend_from_slice(&buffer[..length]);
    }
    out
}

#[test]
fn the_golden_trace_is_what_the_writer_writes_and_reads_back() {
    assert_eq!(bytes(), GOLDEN, "a change of the format is a new version");
    let trace = Trace::read(GOLDEN).unwrap();
    assert_eq!(*trace.head(), head());
    let read: Result<Vec<_>, _> = trace.records().collect();
    assert_eq!(read.unwrap(), records());
}

#[test]
fn the_largest_head_and_record_fit_their_buffer() {
    let mut buffer = [0; FRAME_BYTES_MAX];
    let mut widest = head();
    widest.interval_ms = u32::MAX;
    widest.targets = Targets { deadline_ms: u32::MAX, rss_limit_mib: u32::MAX };
    widest.envelope.site = SiteValues([u64::MAX; KNOB_COUNT]);
    assert!(widest.write(&mut buffer).unwrap() <= FRAME_BYTES_MAX);
    let mut most = Settings::UNWRITTEN;
    for spec in &KNOBS {
        most.set(spec.knob, spec.max).unwrap();
    }
    let at = Instant::from_micros(AT_US_MAX);
    let sample = Sample {
        at,
        sys: SysFrame::new([Some(u64::MAX); SYS_COUNT], Some(at)),
        proc: Some(ProcSample {
            pid: u32::MAX,
            start_ticks: u64::MAX,
            rss_bytes: u64::MAX,
            cpu_us: u64::MAX,
            context_switches: u64::MAX,
        }),
        probe: ProbeSample { latency_us_qos0: Some(u32::MAX), latency_us_qos1: Some(u32::MAX) },
        own: OwnTraffic {
            connections: u32::MAX,
            subscriptions: u32::MAX,
            publish_sent: u64::MAX,
            publish_received: u64::MAX,
            publish_bytes_sent: u64::MAX,
            packets_sent: u64::MAX,
            bytes_sent: u64::MAX,
            bytes_received: u64::MAX,
        },
    };
    let record = Record { sample, written: most, effective: most, ..records()[0] };
    let length = record.write(&mut buffer).unwrap();
    assert!(record.write(&mut buffer[..length]).is_ok());
    assert_eq!(record.write(&mut buffer[..length - 1]), Err(TraceError::BufferTooSmall));
    let late = Sample { at: Instant::from_micros(AT_US_MAX + 1), ..sample };
    let late = Record { sample: late, ..record };
    assert_eq!(late.write(&mut buffer), Err(TraceError::Value { field: "at_us" }));
}

#[test]
fn a_trace_may_be_cut_between_records_and_says_where_it_is_not() {
    let whole = bytes();
    let head_bytes = head().write(&mut [0; FRAME_BYTES_MAX]).unwrap();
    let first_end = head_bytes + records()[0].write(&mut [0; FRAME_BYTES_MAX]).unwrap();
    for cut in head_bytes..=whole.len() {
        let trace = Trace::read(&whole[..cut]).unwrap();
        let is_whole = [head_bytes, first_end, whole.len()].contains(&cut);
        let last = trace.records().last();
        assert_eq!(last == Some(Err(TraceError::Truncated)), !is_whole, "cut at {cut}");
        let count = trace.records().filter(Result::is_ok).count();
        assert_eq!(count, usize::from(cut >= first_end) + usize::from(cut == whole.len()));
    }
    for cut in 0..head_bytes {
        assert!(Trace::read(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let whole = bytes();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let is_sound = |trace: Trace<'_>| trace.records().all(|record| record.is_ok());
        assert!(!Trace::read(&bytes).is_ok_and(is_sound), "bit {bit}");
    }
}

/// The record's payload with its checksum made right, for what a checksum does not catch.
fn framed(wire: &WireRecord) -> Result<Record, TraceError> {
    let mut buffer = [0; FRAME_BYTES_MAX];
    let length = write_frame(wire, &mut buffer)?;
    Records { rest: &buffer[..length] }.next().unwrap()
}

fn wire() -> WireRecord {
    WireRecord {
        at_us: 1,
        sys_at_us: None,
        sys: [None; SYS_COUNT],
        proc: None,
        probe_us: [None; 2],
        own: OwnTraffic::default(),
        written: [None; KNOB_COUNT],
        effective: [None; KNOB_COUNT],
        flags: 0,
    }
}

#[test]
fn values_that_no_recorder_writes_are_refused() {
    assert!(framed(&wire()).is_ok());
    let field = |wire: WireRecord| match framed(&wire) {
        Err(TraceError::Value { field }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(WireRecord { at_us: AT_US_MAX + 1, ..wire() }), "at_us");
    assert_eq!(field(WireRecord { sys_at_us: Some(u64::MAX), ..wire() }), "sys_at_us");
    assert_eq!(field(WireRecord { flags: 8, ..wire() }), "flags");
    let mut settings = [None; KNOB_COUNT];
    settings[Knob::QueuedMessagesMax as usize] = Some(1);
    assert_eq!(field(WireRecord { written: settings, ..wire() }), "written");
    assert_eq!(field(WireRecord { effective: settings, ..wire() }), "effective");
}

#[test]
fn another_version_or_table_is_refused_by_name() {
    let mut bytes = bytes();
    bytes[4] = 1;
    assert_eq!(Trace::read(&bytes), Err(TraceError::Version { found: 1 }));
    bytes[0] = b'X';
    assert_eq!(Trace::read(&bytes), Err(TraceError::Magic));
    let found = 7;
    let head = WireHead {
        tables: found,
        interval_ms: 1,
        deadline_ms: 1,
        rss_limit_mib: 1,
        opted_in: 0,
        bounds: Knob::ALL.map(|knob| (knob.spec().min, knob.spec().max, false)),
        site: [0; KNOB_COUNT],
    };
    assert_eq!(Head::of_wire(&head), Err(TraceError::Tables { found, expected: fingerprint() }));
    let sound = WireHead { tables: fingerprint(), ..head };
    assert!(Head::of_wire(&sound).is_ok());
    let wrong = Head::of_wire(&WireHead { opted_in: u16::MAX, ..sound });
    assert_eq!(wrong, Err(TraceError::Value { field: "opted_in" }));
}

proptest! {
    #[test]
    fn no_bytes_panic(tail in prop::collection::vec(any::<u8>(), 0..300), keep in 0usize..400) {
        let mut bytes = vec![0; 0];
        bytes.extend_from_slice(&GOLDEN[..keep.min(GOLDEN.len())]);
        bytes.extend_from_slice(&tail);
        if let Ok(trace) = Trace::read(&bytes) {
            let _ = trace.records().count();
        }
    }
}

#[test]
#[ignore = "writes models/golden: by hand, and only with a new format version or other tables"]
fn renew_golden_trace() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/golden/trace-v2.btt");
    std::fs::write(path, bytes()).unwrap();
}
