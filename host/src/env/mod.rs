//! What a policy is trained in: one interface for the real broker and for simulators.

pub mod broker;
pub mod twin;

use crate::logs::ActionRow;
use brokertuner_core::Action;

/// What one step brought.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// The next state, of the schema's length.
    pub state: Vec<f32>,
    /// What the step was worth; `None` where it says nothing about the settings, so that nothing
    /// must be learnt of it.
    pub reward: Option<f64>,
    /// In-time deliveries over expected; `None` where no deadline expired.
    pub score: Option<f64>,
    /// The episode's world was lost and has been built anew: `state` does not follow from the
    /// action.
    pub is_cut: bool,
    /// For `action_throughput_log.csv`; step numbers and times are the trainer's.
    pub row: ActionRow,
}

/// A world in which settings have consequences.
pub trait Environment: Send {
    /// Builds the world of `episode` anew on default settings and gives the first state.
    ///
    /// # Errors
    /// Whatever keeps the world from being built; the message says what to do.
    fn reset(&mut self, episode: u64) -> anyhow::Result<Vec<f32>>;

    /// Applies `action`, lets one decision interval pass and looks.
    ///
    /// Settings that the broker refuses are no error: they get the worst reward.
    ///
    /// # Errors
    /// Whatever ends the run: no broker to start, no load to generate, an interrupt.
    fn step(&mut self, action: &Action) -> anyhow::Result<StepOutcome>;

    /// Name of the load of the current episode.
    fn scenario(&self) -> &str;
}
