//! What a model makes of a view: features, actor, decoding, and whether training saw the like.

use super::{Model, ModelError, floats};
use crate::envelope::Envelope;
use crate::features::{self, Features, View};
use crate::knobs::{KNOB_COUNT, Knob, KnobSet};
use crate::settings::{Action, Settings};

/// How far beyond the range of training an input may lie: one octave for a count of clients or
/// messages, whose logarithms make the features.
pub const BEYOND_MARGIN: f32 = 1.0 / 16.0;

/// An input outside the range that training saw.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Beyond {
    /// Which feature of the schema.
    pub index: usize,
    /// Its value.
    pub found: f32,
    /// Smallest and largest value in training.
    pub seen: (f32, f32),
}

impl Beyond {
    fn distance(&self) -> f32 {
        (self.seen.0 - self.found).max(self.found - self.seen.1)
    }
}

/// A model's answer to a view.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The actor's input.
    pub features: Features,
    /// The actor's output.
    pub action: Action,
    /// What that means, inside the envelope; options that were not tuned in training are left out.
    pub settings: Settings,
    /// The input that lies farthest outside of what training saw, if one does: the answer is then a
    /// guess.
    pub beyond: Option<Beyond>,
}

impl Model<'_> {
    /// Answers `view`, confined to `envelope` and to the options that were tuned in training.
    ///
    /// # Errors
    /// [`ModelError::UnknownSchema`] or [`ModelError::IoLength`] for a model of other tables; never
    /// for one of [`Model::read`].
    pub fn answer(&self, view: &View<'_>, envelope: &Envelope) -> Result<Answer, ModelError> {
        let found = self.parts().schema_id;
        let schema = self.schema().ok_or(ModelError::UnknownSchema { found })?;
        let features = features::state(schema, view);
        let mut action = [0; KNOB_COUNT];
        self.infer(&features, &mut action)?;
        let tuned = KnobSet::from_bits(self.parts().bounds.tuned);
        let opted_in = Knob::ALL
            .into_iter()
            .filter(|&knob| envelope.opted_in.contains(knob) && tuned.contains(knob))
            .fold(KnobSet::EMPTY, KnobSet::with);
        let settings = Settings::decode(&action, &Envelope { opted_in, ..*envelope });
        let beyond = self.beyond_training(&features);
        Ok(Answer { features, action, settings, beyond })
    }

    /// The feature that lies farthest outside of the range of training, by more than
    /// [`BEYOND_MARGIN`]; those that the actor ignores do not count.
    #[must_use]
    pub fn beyond_training(&self, features: &[f32]) -> Option<Beyond> {
        let weighed = floats(self.parts().input.inv_std).map(|inv_std| inv_std > 0.0);
        let rows = features.iter().zip(self.observed_range()).zip(weighed).enumerate();
        rows.filter(|(_, (_, is_weighed))| *is_weighed)
            .map(|(index, ((&found, seen), _))| Beyond { index, found, seen })
            .filter(|beyond| beyond.distance() > BEYOND_MARGIN)
            .max_by(|a, b| a.distance().total_cmp(&b.distance()))
    }
}
