//! What the weights of a decision say, on models whose answer is known by construction.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]
#![allow(dead_code, reason = "the helpers serve model.rs too")]

mod common;

use brokertuner_core::features::{Features, Schema};
use brokertuner_core::model::Model;
use brokertuner_core::weigh::{Weights, weigh};
use brokertuner_core::{KNOB_COUNT, Knob, KnobSet};
use common::{OwnedLayer, OwnedModel};
use proptest::prelude::*;

const INPUTS: usize = Schema::Edge.len();
/// `probe_latency_qos1` and `publish_sent_rate`.
const LATENCY: usize = 18;
const SENT: usize = 4;

/// Knob 0 follows the latency, knob 1 the sent messages at half the strength, the rest nothing.
fn known() -> OwnedModel {
    let through = |weights: Vec<i8>, outputs: usize| {
        OwnedLayer::new(weights, vec![0; outputs], vec![1 << 30; outputs], vec![36; outputs])
    };
    let mut first = vec![0; 2 * INPUTS];
    (first[LATENCY], first[INPUTS + SENT]) = (64, 32);
    let mut third = vec![0; 2 * KNOB_COUNT];
    (third[0], third[3]) = (64, 64);
    let layers = [through(first, 2), through(vec![64, 0, 0, 64], 2), through(third, KNOB_COUNT)];
    OwnedModel::new([36, 2, 2, 11], vec![0.0; INPUTS], vec![1.0; INPUTS], layers)
}

fn features(values: &[(usize, f32)]) -> Features {
    let mut features: Features = std::iter::repeat_n(0.0, INPUTS).collect();
    for &(index, value) in values {
        features[index] = value;
    }
    features
}

fn weights_of(now: &Features, then: Option<&Features>, knobs: &[Knob]) -> Weights {
    let owned = known();
    let model = Model::new(owned.parts()).unwrap();
    let knobs = knobs.iter().fold(KnobSet::EMPTY, |set, &knob| set.with(knob));
    weigh(&model, Schema::Edge, now, then, knobs).unwrap()
}

fn names(weights: &Weights) -> Vec<&'static str> {
    weights.iter().map(|weight| weight.group.name).collect()
}

#[test]
fn the_group_that_moved_the_knob_is_named_first() {
    let now = features(&[(LATENCY, 0.5), (SENT, 0.5), (0, 2.0)]);
    let both = [Knob::InflightMessagesMax, Knob::InflightBytesMax];
    let weights = weights_of(&now, None, &both);
    assert_eq!(names(&weights), ["latency", "traffic"], "clients weigh nothing");
    assert!(weights[0].steps > weights[1].steps, "{weights:?}");
    assert_eq!(names(&weights_of(&now, None, &both[1..])), ["traffic"], "on one knob alone");
    assert!(weights_of(&now, None, &[Knob::Persistence]).is_empty());
}

#[test]
fn what_is_as_at_the_last_decision_weighs_nothing() {
    let now = features(&[(LATENCY, 0.5), (SENT, 0.5)]);
    let then = features(&[(LATENCY, 0.5), (SENT, 0.1)]);
    let both = [Knob::InflightMessagesMax, Knob::InflightBytesMax];
    assert_eq!(names(&weights_of(&now, Some(&then), &both)), ["traffic"]);
    assert!(weights_of(&now, Some(&now), &both).is_empty());
}

proptest! {
    /// A group's weight is what the network itself answers without it.
    #[test]
    fn weights_are_differences_of_actions(seed in any::<u64>(), values in prop::array::uniform32(-2.0f32..2.0)) {
        let owned = OwnedModel::random([36, 8, 8, 11], seed);
        let model = Model::new(owned.parts()).unwrap();
        let now = values.into_iter().chain([0.5; 4]).collect::<Features>();
        let weights = weigh(&model, Schema::Edge, &now, None, KnobSet::all()).unwrap();
        let mean = model.input_mean();
        for weight in &weights {
            let (from, to) = weight.group.features;
            let mut without = now.clone();
            without[from..to].copy_from_slice(&mean[from..to]);
            let (a, b) = (owned.reference(&now), owned.reference(&without));
            let steps: u32 = a.iter().zip(&b).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
            prop_assert_eq!(weight.steps, steps, "{}", weight.group.name);
        }
        prop_assert!(weights.is_sorted_by_key(|weight| std::cmp::Reverse(weight.steps)));
    }
}
