//! Which inputs a decision rests on: each group of features put back, one at a time, to what it was.
//!
//! This is occlusion, honest for any network and cheap for a small one: an inference per group. What
//! it says is conditional on the other inputs as they are, so the weights of two groups that say
//! the same do not add up.

use crate::features::{FEATURES_MAX, Features, Schema};
use crate::knobs::{KNOB_COUNT, KnobSet};
use crate::model::{Model, ModelError};
use core::cmp::Reverse;

/// Features that are measured together and mean one thing to a person.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// Its features in the state vector: from the first to before the last.
    pub features: (usize, usize),
    /// The fields of [`crate::sample::Metrics`] that it is made from.
    pub metrics: &'static [&'static str],
}

/// Most groups of any schema.
pub const GROUPS_MAX: usize = 12;

const fn group(
    name: &'static str,
    features: (usize, usize),
    metrics: &'static [&'static str],
) -> Group {
    Group { name, features, metrics }
}

static SEED5: [Group; 5] = [
    group("clients", (0, 1), &["clients_connected"]),
    group("traffic", (1, 2), &["packets_received_per_s"]),
    group("cpu", (2, 3), &["cpu_share"]),
    group("memory", (3, 4), &["rss_bytes"]),
    group("context switches", (4, 5), &["context_switches"]),
];

static EDGE: [Group; 12] = [
    group("clients", (0, 3), &["clients_others", "clients_offline", "subscriptions"]),
    group("traffic", (3, 6), &["publish_received_per_s", "publish_sent_per_s"]),
    group("drops", (6, 8), &["publish_dropped_per_s"]),
    group("bytes", (8, 10), &["publish_bytes_received_per_s", "bytes_sent_per_s"]),
    group("acknowledgements", (10, 11), &["packets_others_per_s"]),
    group("backlog", (11, 13), &["backlog_messages", "store_bytes"]),
    group("memory", (13, 15), &["heap_bytes", "rss_bytes"]),
    group("cpu", (15, 17), &["cpu_share", "context_switches_per_s"]),
    group("latency", (17, 19), &["probe_latency_us_qos0", "probe_latency_us_qos1"]),
    group("targets", (19, 21), &[]),
    group("freshness", (21, 25), &["sys_period_s"]),
    group("settings in force", (25, 25 + KNOB_COUNT), &[]),
];

const _: () = assert!(EDGE.len() <= GROUPS_MAX && SEED5.len() <= GROUPS_MAX);

impl Schema {
    /// The groups of its features, in their order; every feature is in one.
    #[must_use]
    pub fn groups(self) -> &'static [Group] {
        match self {
            Schema::Seed5 => &SEED5,
            Schema::Edge => &EDGE,
        }
    }
}

/// What one group did to a decision.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// The group.
    pub group: &'static Group,
    /// Steps of the actor's grid (254 are a knob's whole range), summed over the knobs asked about,
    /// that the action moves by when the group is put back.
    pub steps: u32,
}

/// The weights that are not 0, the largest first.
pub type Weights = heapless::Vec<Weight, GROUPS_MAX>;

/// Weighs the inputs of the action that `model` gives for `features`, on `knobs` alone.
///
/// `reference`: what each group is put back to, as at an earlier decision; `None`: the mean of what
/// was seen in training. At most [`GROUPS_MAX`] + 1 inferences, no heap: for decisions that change
/// something, not for every tick.
///
/// # Errors
/// As [`Model::infer`], for features of another schema than the model's.
pub fn weigh(
    model: &Model<'_>,
    schema: Schema,
    features: &Features,
    reference: Option<&Features>,
    knobs: KnobSet,
) -> Result<Weights, ModelError> {
    let mean = model.input_mean();
    let reference = reference.unwrap_or(&mean);
    let action = infer(model, features)?;
    let mut weights = Weights::new();
    for group in schema.groups() {
        let mut put_back = features.clone();
        for index in group.features.0..group.features.1 {
            if let (Some(now), Some(then)) = (put_back.get_mut(index), reference.get(index)) {
                *now = *then;
            }
        }
        let without = infer(model, &put_back)?;
        let steps = knobs
            .iter()
            .map(|knob| u32::from(action[knob as usize].abs_diff(without[knob as usize])))
            .sum();
        if steps > 0 {
            // Fits: one per group, asserted above.
            let _ = weights.push(Weight { group, steps });
        }
    }
    weights.sort_unstable_by_key(|weight| Reverse(weight.steps));
    Ok(weights)
}

fn infer(model: &Model<'_>, features: &Features) -> Result<[i8; KNOB_COUNT], ModelError> {
    let mut action = [0; KNOB_COUNT];
    model.infer(features, &mut action)?;
    Ok(action)
}

impl Model<'_> {
    /// The mean of each input in training, for as many as a state vector has.
    #[must_use]
    pub fn input_mean(&self) -> Features {
        let mean = self.parts().input.mean.chunks_exact(4);
        let read = |bytes: &[u8]| bytes.try_into().map_or(0.0, f32::from_le_bytes);
        mean.take(FEATURES_MAX).map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_in_one_group() {
        for schema in [Schema::Seed5, Schema::Edge] {
            let mut next = 0;
            for group in schema.groups() {
                assert_eq!(group.features.0, next, "{}", group.name);
                assert!(group.features.1 > next, "{}", group.name);
                next = group.features.1;
            }
            assert_eq!(next, schema.len());
        }
    }

    #[test]
    fn the_groups_begin_where_they_say() {
        for (name, first) in [
            ("clients", "clients_others"),
            ("traffic", "publish_received_rate"),
            ("drops", "publish_dropped_rate"),
            ("bytes", "payload_bytes_mean"),
            ("acknowledgements", "acks_per_delivery"),
            ("backlog", "backlog_messages"),
            ("memory", "heap_ratio"),
            ("cpu", "cpu_share"),
            ("latency", "probe_latency_qos0"),
            ("targets", "deadline"),
            ("freshness", "sys_period"),
            ("settings in force", "max_inflight_messages"),
        ] {
            let group = EDGE.iter().find(|group| group.name == name);
            let group = group.expect("a group of that name");
            assert_eq!(Schema::Edge.name(group.features.0), Some(first), "{name}");
        }
    }
}
