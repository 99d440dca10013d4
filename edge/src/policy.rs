//! What turns a view of the broker into wanted settings: a model file, or anything a trainer brings.

use std::path::Path;

use brokertuner_core::features::{Schema, View};
use brokertuner_core::{Envelope, Settings};

/// Wants settings for what is seen; always inside the envelope.
pub trait Policy: Send {
    /// The settings for `view`, confined to `envelope`.
    fn want(&mut self, view: &View<'_>, envelope: &Envelope) -> Settings;
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
