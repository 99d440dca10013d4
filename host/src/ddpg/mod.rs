//! Deep deterministic policy gradient (DDPG), its checkpoints and the int8 export.
//!
//! [`Hyper`] holds every hyperparameter, [`Agent`] learns, [`QuantisedActor`] is what leaves the
//! workstation. One thread, no autodiff: the same seed gives the same bits on the same machine.
//!
//! # Differences from Lillicrap et al. 2015
//!
//! * **Int8 in training.** The actor acts, and is updated, with its weights snapped to the int8
//!   grid of the model file; gradients go straight through to the f32 weights. Export then changes
//!   no weight. The target actor keeps its f32 weights.
//! * **Input** is normalised by its running mean and deviation and clamped to ±8, in place of batch
//!   normalisation. Missing features become the mean; features that never varied are ignored.
//! * **Networks** of 64-64 in place of 400-300; the critic takes the action at its first layer, not
//!   its second. The last layer's biases begin as its weights do, within ±`final_init`.
//! * **Discount** per second of the environment's time, so that it does not depend on the step; per
//!   step in [`Hyper::seed`].
//! * **Critic's learning rate** 1e-4 in place of 1e-3, as in the seed program. Weight decay is
//!   decoupled (AdamW) and off, in place of 1e-2 in the loss.
//! * **Exploration** is Gaussian noise with a schedule after a warm-up of uniformly random actions;
//!   Ornstein-Uhlenbeck is an option, and its deviation is `sigma` itself.
//! * **Pre-tanh charge**: the actor pays for pre-tanh values beyond a limit, so that it does not
//!   saturate where its gradient dies.
//! * **Options, off by default:** the smaller of two critics' targets and a delay of the actor's
//!   updates (Fujimoto et al. 2018, without smoothing the target's action), n-step returns without
//!   correction for the older policy, layer normalisation in the critics.
//! * **Lessons**, where there are any: the critics also learn what fixed actions were worth for good
//!   on many sites, with the targets known instead of bootstrapped, and the actor is pulled towards
//!   the best of some candidate actions.
//! * Transitions are drawn with replacement. Time limits (`truncated`) do not end the return.

mod adam;
mod agent;
mod checkpoint;
mod guide;
mod hyper;
mod lessons;
mod net;
mod noise;
mod normaliser;
mod quantise;
mod replay;

#[cfg(test)]
mod learning_tests;
#[cfg(test)]
mod quantise_tests;
#[cfg(test)]
mod reference_tests;

pub use agent::{ActorLosses, Agent, Losses};
pub use checkpoint::Keep;
pub use hyper::{GammaUnit, Hyper, NoiseKind};
pub use lessons::Trial;
pub use normaliser::InputScale;
pub use quantise::{About, Deviation, QuantisedActor, deviation};
pub use replay::Transition;

use brokertuner_core::model::ModelError;
use std::path::PathBuf;

/// What can go wrong in training, checkpoints and export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DdpgError {
    /// Hyperparameters outside their limits.
    #[error("hyperparameters out of range:\n{faults}")]
    Hyper {
        /// All of them, one a line.
        faults: String,
    },
    /// A vector of another length than the agent works with.
    #[error("{what}: {found} given, {expected} expected")]
    Length {
        /// Which vector.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it must have.
        expected: usize,
    },
    /// Weights that mean something else with the wanted hyperparameters.
    #[error("critic_layer_norm or normalise is not what the networks were trained with")]
    OtherNetworks,
    /// A reward or an action that is not a number would spread into every weight.
    #[error("{what} is not a finite number")]
    NotFinite {
        /// Which value.
        what: &'static str,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint that is cut off, damaged or of another kind.
    #[error("{}: not a usable checkpoint: {reason}; take an older one or begin anew", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The network cannot be written as a model.
    #[error("the actor cannot be exported: {0}")]
    Export(#[from] ModelError),
}

impl DdpgError {
    /// An error unless `found` is `expected`.
    fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), DdpgError> {
        if found == expected {
            return Ok(());
        }
        Err(DdpgError::Length { what, found, expected })
    }
}
