//! A trace replayed: the agent's decisions, made again from bytes alone.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]

#[allow(dead_code, reason = "the reference arithmetic is for tests/model.rs")]
mod common;

use brokertuner_core::controller::{Decision, HoldReason, Rules};
use brokertuner_core::features::{Schema, Targets};
use brokertuner_core::knobs::Apply;
use brokertuner_core::model::{BEYOND_MARGIN, Model, ModelError, ModelParts};
use brokertuner_core::replay::{Replay, Step};
use brokertuner_core::sample::{OwnTraffic, ProbeSample, SYS_COUNT, Sample, Sys, SysFrame};
use brokertuner_core::settings::SiteValues;
use brokertuner_core::trace::{FRAME_BYTES_MAX, Head, Record, Trace};
use brokertuner_core::{Duration, Envelope, Instant, KNOB_COUNT, Knob, Settings};
use common::{OwnedLayer, OwnedModel};

const INTERVAL_S: u64 = 10;

/// A model that always wants a window of 100 and a queue of 10,000, and weighs every input.
fn model() -> OwnedModel {
    let mut wanted = Settings::UNWRITTEN;
    wanted.set(Knob::InflightMessagesMax, 100).unwrap();
    wanted.set(Knob::QueuedMessagesMax, 10_000).unwrap();
    let bias = wanted.encode(&SiteValues::default()).map(|raw| {
        let target = (f64::from(raw) / 127.0).clamp(-0.9999, 0.9999);
        (target.atanh() * 4096.0 * 2.0).round() as i32
    });
    let inputs = Schema::Edge.len();
    let layers = [
        OwnedLayer::new(vec![0; inputs], vec![0], vec![1], vec![1]),
        OwnedLayer::new(vec![0], vec![0], vec![1], vec![1]),
        OwnedLayer::new(
            vec![0; KNOB_COUNT],
            bias.to_vec(),
            vec![1; KNOB_COUNT],
            vec![1; KNOB_COUNT],
        ),
    ];
    let shape = [inputs as u16, 1, 1, KNOB_COUNT as u16];
    OwnedModel::new(shape, vec![0.0; inputs], vec![1.0; inputs], layers)
}

/// The model's parts for this program's tables, with `highest` as the largest value in training.
fn parts<'m>(model: &'m OwnedModel, highest: &'m [u8]) -> ModelParts<'m> {
    let mut parts = model.parts();
    parts.schema_id = Schema::Edge.id();
    parts.schema_fingerprint = Schema::Edge.fingerprint();
    parts.bounds.tuned = 0x7ff;
    parts.input.observed_max = highest;
    parts
}

fn highest(value: f32) -> Vec<u8> {
    value.to_le_bytes().repeat(Schema::Edge.len())
}

fn head() -> Head {
    Head {
        interval_ms: (INTERVAL_S * 1000) as u32,
        targets: Targets::default(),
        envelope: Envelope::default(),
    }
}

fn record(step: u64, sent_per_s: u64) -> Record {
    let at = Instant::from_secs(100 + step * INTERVAL_S);
    let mut values = [None; SYS_COUNT];
    for (sys, value) in [
        (Sys::UptimeS, 50 + step * INTERVAL_S),
        (Sys::PublishReceived, step * 500),
        (Sys::PublishSent, step * INTERVAL_S * sent_per_s),
        (Sys::PublishDropped, 0),
        (Sys::ClientsConnected, 11),
    ] {
        values[sys as usize] = Some(value);
    }
    let sample = Sample {
        at,
        sys: SysFrame::new(values, Some(at - Duration::from_millis(100))),
        proc: None,
        probe: ProbeSample { latency_us_qos0: Some(300), latency_us_qos1: Some(500) },
        own: OwnTraffic { connections: 1, ..OwnTraffic::default() },
    };
    Record {
        sample,
        written: Settings::UNWRITTEN,
        effective: Settings::UNWRITTEN,
        is_serving: true,
        state_at_risk: false,
        quiet_hours: false,
    }
}

fn trace(records: &[Record]) -> Vec<u8> {
    let mut buffer = [0; FRAME_BYTES_MAX];
    let length = head().write(&mut buffer).unwrap();
    let mut bytes = buffer[..length].to_vec();
    for record in records {
        let length = record.write(&mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..length]);
    }
    bytes
}

fn replay(bytes: &[u8], highest: &[u8]) -> Vec<Step> {
    let owned = model();
    let trace = Trace::read(bytes).unwrap();
    let model = Model::new(parts(&owned, highest)).unwrap();
    let mut replay = Replay::new(model, *trace.head(), Rules::default());
    trace.records().map(|record| replay.step(&record.unwrap()).unwrap()).collect()
}

fn changes(steps: &[Step]) -> Vec<(usize, Apply)> {
    let change = |(index, step): (usize, &Step)| match step.decision {
        Decision::Change { apply, .. } => Some((index, apply)),
        _ => None,
    };
    steps.iter().enumerate().filter_map(change).collect()
}

#[test]
fn the_decisions_of_a_steady_load_are_made_again() {
    let records: Vec<_> = (0..12).map(|step| record(step, 100)).collect();
    let steps = replay(&trace(&records), &highest(2.5));
    assert!(steps[0].answer.is_none(), "there is no rate yet");
    // Wanted from step 1 on; the dwell of 60 s is over at step 7.
    assert_eq!(changes(&steps), [(7, Apply::Restart)]);
    let queue = steps[7].written.get(Knob::QueuedMessagesMax).value().unwrap();
    assert!((9_000..=11_000).contains(&queue), "{queue}: the actor's grid is coarse");
    assert_eq!(steps[11].decision, Decision::Hold(HoldReason::Satisfied));
    assert_eq!(steps[11].written, steps[7].written);
    // The settings in force are part of the next answer's input.
    let features = |step: usize| steps[step].answer.as_ref().unwrap().features.clone();
    assert_ne!(features(7), features(8));
}

#[test]
fn nothing_is_changed_beyond_what_training_saw() {
    let records: Vec<_> = (0..12).map(|step| record(step, 1_000_000)).collect();
    let bytes = trace(&records);
    assert_eq!(changes(&replay(&bytes, &highest(2.5))), [(7, Apply::Restart)]);
    let held = replay(&bytes, &highest(0.99));
    assert_eq!(changes(&held), []);
    let beyond = held[3].answer.as_ref().unwrap().beyond.unwrap();
    assert!(beyond.found > beyond.seen.1 + BEYOND_MARGIN, "{beyond:?}");
    assert_eq!(Schema::Edge.name(beyond.index), Some("fan_out"), "the farthest of them");
}

#[test]
fn an_input_that_the_actor_ignores_is_not_beyond() {
    let owned = model();
    let zeros = highest(0.0);
    let mut parts = parts(&owned, &zeros);
    let features = [2.0; 36];
    let beyond = |parts| Model::new(parts).unwrap().beyond_training(&features).map(|b| b.index);
    assert!(beyond(parts).is_some());
    parts.input.inv_std = &zeros;
    assert_eq!(beyond(parts), None);
}

#[test]
fn a_model_of_another_shape_is_an_error_not_a_panic() {
    let owned = OwnedModel::random([2, 3, 2, 2], 1);
    let mut parts = owned.parts();
    parts.schema_id = Schema::Edge.id();
    parts.bounds.tuned = 0;
    let mut replay = Replay::new(Model::new(parts).unwrap(), head(), Rules::default());
    assert!(replay.step(&record(0, 1)).is_ok(), "the model is not asked yet");
    assert!(matches!(replay.step(&record(1, 1)), Err(ModelError::IoLength { .. })));
}
