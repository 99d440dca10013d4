//! What a policy is trained in: one interface for the real broker and for simulators.

pub mod broker;
pub mod twin;

use crate::logs::ActionRow;
use crate::scenario::Scenario;
use brokertuner_core::{Action, Envelope, Knob, KnobSet};

/// Options that policies are trained to move: those that are tuned by default, without
/// `max_inflight_bytes`.
///
/// Any finite value of that is added to the limit of the queue (`core/KNOBS.md`), so that what waits
/// gets older than its deadline; "no limit" adds nothing, and is at the other end of the actor's output
/// than the small values that do little harm. Policies that were to choose between the two chose the
/// valley between them. The same policy, that option left alone: bulk-payload 0.522 and 0.700, the
/// public loads 0.930 and 0.947, 200 sites 0.912 and 0.913 (in the twin).
#[must_use]
pub fn trained() -> KnobSet {
    KnobSet::tuned_by_default().without(Knob::InflightBytesMax)
}

/// The bounds in training: nothing is written but what is trained.
pub(crate) fn envelope(scenario: &Scenario) -> Envelope {
    Envelope { site: broker::site_values(scenario), opted_in: trained(), ..Envelope::default() }
}

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
