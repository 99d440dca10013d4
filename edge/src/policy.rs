//! What turns a view of the broker into wanted settings: a model file, or anything a trainer
//! brings.

use std::path::{Path, PathBuf};

use brokertuner_core::features::{self, Features, Schema, View};
use brokertuner_core::model::{Answer, Beyond, Model, ModelError};
use brokertuner_core::weigh::{Weights, weigh};
use brokertuner_core::{Envelope, KnobSet, Settings};

use crate::fs::{self, FileError, Files, RealFiles};
use crate::keys::KeyError;
use crate::model::{ModelNews, ModelReport};

/// Wants settings for what is seen; always inside the envelope.
pub trait Policy: Send {
    /// The settings for `view`, confined to `envelope`.
    fn want(&mut self, view: &View<'_>, envelope: &Envelope) -> Settings;

    /// Why the last answer is not to be followed, in words; then nothing is changed.
    fn doubt(&self) -> Option<String> {
        None
    }

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

    /// Takes over what changed since the last decision; called before each one that acts. Says
    /// what that was, where a person should know.
    fn refresh(&mut self) -> Option<ModelNews> {
        None
    }

    /// What is to be told of the model.
    fn model(&self) -> Option<&ModelReport> {
        None
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
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not there.
    #[error("{}: no such file; make one with `host train` and `host export`, or correct model.path", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// Its content.
    #[error("{}: {source}; `host export` makes another one", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelError,
    },
    /// Made for another state vector than the configuration asks for.
    #[error("{}: made for schema {found:?}, but model.schema is {expected:?}; set model.schema, or export another model", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: Schema,
        /// The configuration's.
        expected: Schema,
    },
    /// A key that it may be signed with.
    #[error("model.public_keys: {0}")]
    Key(#[from] KeyError),
    /// Keys are configured, and it has no signature.
    #[error("{}: not signed, but model.public_keys asks for it; `host export --sign KEY` makes a signed model", path.display())]
    Unsigned {
        /// The file.
        path: PathBuf,
    },
    /// None of the configured keys has signed it.
    #[error("{}: signed by none of model.public_keys, or changed since; fetch it again, or add its key", path.display())]
    Signature {
        /// The file.
        path: PathBuf,
    },
    /// The copy of the accepted one can't be understood.
    #[error("{}: {source}; so it is not known which counter was accepted last; remove it to accept any", path.display())]
    Kept {
        /// The copy.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelError,
    },
    /// Older than what was accepted before.
    #[error("{}: its counter is {found}, but {highest} was accepted before; export it again to get a higher one, or remove {} to go back", path.display(), kept.display())]
    RolledBack {
        /// The file.
        path: PathBuf,
        /// Its counter.
        found: u64,
        /// The highest that was accepted.
        highest: u64,
        /// Where that is remembered.
        kept: PathBuf,
    },
}

/// What a model file decides; [`crate::model::LivePolicy`] follows it.
#[derive(Debug)]
pub struct ModelPolicy {
    bytes: Vec<u8>,
    schema: Schema,
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
        Ok(Self { bytes, schema })
    }

    /// The model's answer.
    ///
    /// # Errors
    /// Never: the same bytes passed the same checks before.
    pub fn answer(&self, view: &View<'_>, envelope: &Envelope) -> Result<Answer, ModelError> {
        // Checked again rather than kept beside its bytes: some 20 us in a decision interval.
        Model::read(&self.bytes)?.answer(view, envelope)
    }

    /// Which inputs of `view` moved `knobs`; see [`Policy::weigh`].
    #[must_use]
    pub fn weigh(&self, view: &View<'_>, reference: Option<&Features>, knobs: KnobSet) -> Weights {
        let features = features::state(self.schema, view);
        let model = Model::read(&self.bytes);
        let weights =
            model.and_then(|model| weigh(&model, self.schema, &features, reference, knobs));
        // Never missing, as above; and an account may lack what a decision must not.
        weights.unwrap_or_default()
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// An input beyond training, in words.
    #[must_use]
    pub fn words(&self, beyond: &Beyond) -> String {
        let name = self.schema.name(beyond.index).unwrap_or("an input");
        let (low, high) = beyond.seen;
        let remedy = match name {
            "sys_period" => "set the broker's sys_interval to that of the training",
            "deadline" | "rss_limit" => {
                "set [targets] to those of the training, or train for these"
            }
            _ => "train for such a load",
        };
        format!(
            "the model was not trained for this: {name} is {:.2}, training saw {low:.2} to {high:.2}; nothing is changed ({remedy}, or set model.hold_beyond_training = false)",
            beyond.found
        )
    }
}
