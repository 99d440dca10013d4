//! What turns a view of the broker into wanted settings: a model file, or anything a trainer
//! brings.

use std::path::{Path, PathBuf};

use brokertuner_core::features::{self, Features, Schema, View};
use brokertuner_core::model::{Model, ModelError};
use brokertuner_core::weigh::{Weights, weigh};
use brokertuner_core::{Envelope, KNOB_COUNT, Knob, KnobSet, Settings};

use crate::fs::{self, FileError, Files, RealFiles};

/// Wants settings for what is seen; always inside the envelope.
pub trait Policy: Send {
    /// The settings for `view`, confined to `envelope`.
    fn want(&mut self, view: &View<'_>, envelope: &Envelope) -> Settings;

    /// Which inputs of `view` moved `knobs`, against those of an earlier decision or, without one,
    /// of training. None where the policy can't tell.
    fn weigh(
        &mut self,
        _view: &View<'_>,
        _reference: Option<&Features>,
        _knobs: KnobSet,
    ) -> Weights {
        Weights::new()
    }
}

impl<F> Policy for F
where
    F: FnMut(&View<'_>, &Envelope) -> Settings + Send,
{
    /// A function's settings are confined whatever it returns.
    fn want(&mut self, view: &View<'_>, envelope: &Envelope) -> Settings {
        envelope.confine(self(view, envelope))
    }
}

/// Why a model file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It can't be read.
    #[error("model.path: {0}")]
    File(#[from] FileError),
    /// It is not there.
    #[error("model.path: {}: no such file; make one with `host train` and `host export`, or correct the path", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// Its content.
    #[error("model.path: {}: {source}; `host export` makes another one", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelError,
    },
    /// Made for another state vector than the configuration asks for.
    #[error("model.path: {}: made for schema {found:?}, but model.schema is {expected:?}; set model.schema, or export another model", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: Schema,
        /// The configuration's.
        expected: Schema,
    },
}

/// The policy of a model file.
#[derive(Debug)]
pub struct ModelPolicy {
    bytes: Vec<u8>,
    schema: Schema,
    tuned: KnobSet,
}

impl ModelPolicy {
    /// Reads and checks a model file for `schema`.
    ///
    /// # Errors
    /// [`PolicyError`], naming the file and what is wrong with it.
    pub fn load(path: &Path, schema: Schema) -> Result<Self, PolicyError> {
        let bytes = RealFiles.read(path).map_err(fs::at("read", path))?;
        let bytes = bytes.ok_or_else(|| PolicyError::Absent { path: path.into() })?;
        Self::of_bytes(bytes, schema, path)
    }

    /// As [`ModelPolicy::load`], of a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelPolicy::load`].
    pub fn of_bytes(bytes: Vec<u8>, schema: Schema, path: &Path) -> Result<Self, PolicyError> {
        let wrong = |source| PolicyError::Model { path: path.into(), source };
        let model = Model::read(&bytes).map_err(wrong)?;
        let found = model
            .schema()
            .ok_or_else(|| wrong(ModelError::UnknownSchema { found: model.parts().schema_id }))?;
        if found != schema {
            return Err(PolicyError::Schema { path: path.into(), found, expected: schema });
        }
        let tuned = KnobSet::from_bits(model.parts().bounds.tuned);
        Ok(Self { bytes, schema, tuned })
    }

    /// The options that were tuned in training: of others the model knows nothing.
    #[must_use]
    pub fn tuned(&self) -> KnobSet {
        self.tuned
    }

    fn act(&self, view: &View<'_>) -> Result<[i8; KNOB_COUNT], ModelError> {
        let mut action = [0; KNOB_COUNT];
        // Checked again rather than kept beside its bytes: some 20 us in a decision interval.
        Model::read(&self.bytes)?.infer(&features::state(self.schema, view), &mut action)?;
        Ok(action)
    }
}

impl Policy for ModelPolicy {
    fn want(&mut self, view: &View<'_>, envelope: &Envelope) -> Settings {
        let opted_in = Knob::ALL
            .into_iter()
            .filter(|&knob| envelope.opted_in.contains(knob) && self.tuned.contains(knob))
            .fold(KnobSet::EMPTY, KnobSet::with);
        match self.act(view) {
            Ok(action) => Settings::decode(&action, &Envelope { opted_in, ..*envelope }),
            Err(error) => {
                // The same bytes passed the same checks before, so this is never seen: what is in
                // force stays.
                tracing::error!(%error, "The model can't be evaluated.");
                envelope.confine(*view.effective)
            }
        }
    }

    fn weigh(&mut self, view: &View<'_>, reference: Option<&Features>, knobs: KnobSet) -> Weights {
        let features = features::state(self.schema, view);
        let model = Model::read(&self.bytes);
        let weights =
            model.and_then(|model| weigh(&model, self.schema, &features, reference, knobs));
        // As above, the same bytes passed before; an account may lack what a decision must not.
        weights.unwrap_or_default()
    }
}
