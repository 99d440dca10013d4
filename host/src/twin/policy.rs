//! A model file's policy as `edge` follows it, but that nobody replaces the file meanwhile.

use brokertuner_core::features::View;
use brokertuner_core::model::Beyond;
use brokertuner_core::{Envelope, Settings};
use brokertuner_edge::policy::{ModelPolicy, Policy};

/// Follows a model where it was trained for what it sees.
#[derive(Debug)]
pub struct FilePolicy {
    model: ModelPolicy,
    /// Of the last answer: an input beyond training.
    beyond: Option<Beyond>,
}

impl From<ModelPolicy> for FilePolicy {
    fn from(model: ModelPolicy) -> FilePolicy {
        FilePolicy { model, beyond: None }
    }
}

impl Policy for FilePolicy {
    fn want(&mut self, view: &View<'_>, envelope: &Envelope) -> Settings {
        self.beyond = None;
        match self.model.answer(view, envelope) {
            Ok(answer) => {
                self.beyond = answer.beyond;
                answer.settings
            }
            // Never seen: the same bytes passed the same checks before.
            Err(_) => envelope.confine(*view.effective),
        }
    }

    fn doubt(&self) -> Option<String> {
        self.beyond.as_ref().map(|beyond| self.model.words(beyond))
    }
}
