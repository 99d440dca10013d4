//! The `untrained` arm: what a policy would do if it had learnt nothing.
//!
//! Five actors with random weights (seeds 1 to 5), each in every repeat. Where a model is compared,
//! they have its schema, layer widths, options and input normalisation, so that the only difference
//! is what was learnt. Else they have the defaults, and features go in as they are.

use crate::ddpg::{Agent, Hyper, InputScale};
use crate::export::{About, export};
use anyhow::{Context as _, Result};
use brokertuner_core::features::Schema;
use brokertuner_core::model::Model;
use brokertuner_core::{KNOB_COUNT, KnobSet};
use std::path::{Path, PathBuf};

/// Seeds of the actors.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=5;

/// What actors have in common with the one that they are compared with.
#[derive(Clone, Debug)]
pub struct Architecture {
    schema: Schema,
    hyper: Hyper,
    tuned: KnobSet,
    /// `None`: features go in as they are.
    inputs: Option<Vec<InputScale>>,
}

impl Default for Architecture {
    /// That of `host train` without options. An agent that has observed nothing has no deviation
    /// to divide by, and its actor would ignore every feature: so nothing is normalised.
    fn default() -> Self {
        let hyper = Hyper { normalise: false, ..Hyper::default() };
        let (schema, tuned) = (Schema::Edge, crate::env::trained());
        Architecture { schema, hyper, tuned, inputs: None }
    }
}

impl Architecture {
    /// That of an exported model.
    ///
    /// # Errors
    /// A file that cannot be read or is no model of this program.
    pub fn of_model(path: &Path) -> Result<Architecture> {
        let name = path.display();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        let model = Model::read(&bytes).with_context(|| format!("{name} cannot be used"))?;
        let parts = model.parts();
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|float| f32::from_le_bytes(*float)).collect()
        };
        let (mean, inv_std) = (floats(parts.input.mean), floats(parts.input.inv_std));
        let scales = mean.into_iter().zip(inv_std).zip(model.observed_range());
        let inputs = scales.map(|((mean, inv_std), range)| InputScale { mean, inv_std, range });
        let [_, hidden1, hidden2, _] = parts.shape.map(usize::from);
        Ok(Architecture {
            schema: model.schema().with_context(|| format!("{name}: unknown schema"))?,
            hyper: Hyper {
                hidden: [hidden1, hidden2],
                step_s: f64::from(parts.step_ms) / 1000.0,
                ..Hyper::default()
            },
            tuned: KnobSet::from_bits(parts.bounds.tuned),
            inputs: Some(inputs.collect()),
        })
    }

    /// An actor of it with random weights.
    ///
    /// # Errors
    /// Where the architecture is none that can be trained.
    pub fn untrained(&self, seed: u64) -> Result<Agent> {
        let mut agent = Agent::new(self.hyper.clone(), self.schema.len(), KNOB_COUNT, seed)?;
        if let Some(inputs) = &self.inputs {
            agent.set_input_scales(inputs)?;
        }
        Ok(agent)
    }

    /// Writes the model files of all untrained actors to `dir`; seeds and paths.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn write_untrained(&self, dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
        let about = About {
            schema: self.schema,
            tuned: self.tuned,
            scenarios: String::new(),
            broker_versions: String::new(),
            scores: "untrained".to_owned(),
        };
        SEEDS
            .map(|seed| {
                let path = dir.join(format!("untrained-{seed}.btm"));
                export(&self.untrained(seed)?, &about, &path)?;
                Ok((seed, path))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::ddpg::Transition;

    /// Whether the models' actions depend on their features.
    fn sees_its_input(path: &Path) -> bool {
        let bytes = std::fs::read(path).unwrap();
        let model = Model::read(&bytes).unwrap();
        let act = |value: f32| {
            let mut action = [0; KNOB_COUNT];
            model.infer(&vec![value; model.inputs()], &mut action).unwrap();
            action
        };
        act(-3.0) != act(3.0)
    }

    #[test]
    fn untrained_actors_see_their_input_and_differ() {
        let dir = tempfile::tempdir().unwrap();
        let actors = Architecture::default().write_untrained(dir.path()).unwrap();
        assert_eq!(actors.iter().map(|(seed, _)| *seed).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let mut files: Vec<Vec<u8>> =
            actors.iter().map(|(_, path)| std::fs::read(path).unwrap()).collect();
        files.dedup();
        assert_eq!(files.len(), 5);
        // The last layer begins small, so that not every seed moves an output by a whole step.
        assert!(actors.iter().any(|(_, path)| sees_its_input(path)));
    }

    #[test]
    fn untrained_actors_are_those_of_the_compared_model_but_for_the_weights() {
        let dir = tempfile::tempdir().unwrap();
        let hyper = Hyper { hidden: [24, 16], step_s: 1.0, ..Hyper::default() };
        let mut agent = Agent::new(hyper, Schema::Seed5.len(), KNOB_COUNT, 9).unwrap();
        for value in [0.1_f32, 0.5, 0.7] {
            let state = [value, value * 2.0, 3.0, f32::NAN, -value];
            let action = [0.0; KNOB_COUNT];
            let transition = Transition {
                lane: 0,
                state: &state,
                action: &action,
                reward: 0.0,
                next_state: &state,
                done: false,
                truncated: false,
            };
            agent.observe(&transition).unwrap();
        }
        let tuned = KnobSet::from_bits(0b101);
        let about = About { tuned, ..About::new(Schema::Seed5) };
        let compared = dir.path().join("compared.btm");
        export(&agent, &about, &compared).unwrap();
        let actors = Architecture::of_model(&compared).unwrap();
        let actors = actors.write_untrained(dir.path()).unwrap();
        let compared = std::fs::read(&compared).unwrap();
        let compared = Model::read(&compared).unwrap();
        for (seed, path) in actors {
            let bytes = std::fs::read(path).unwrap();
            let model = Model::read(&bytes).unwrap();
            let (ours, theirs) = (model.parts(), compared.parts());
            assert_eq!((ours.shape, ours.schema_id), (theirs.shape, theirs.schema_id));
            assert_eq!((ours.input, ours.step_ms), (theirs.input, theirs.step_ms));
            assert_eq!(ours.bounds.tuned, theirs.bounds.tuned);
            assert_eq!((ours.card.seed, ours.card.steps), (seed, 0));
            assert_ne!(ours.layers[0].weights, theirs.layers[0].weights);
        }
    }
}
