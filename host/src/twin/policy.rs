//! A model file's policy as `edge` follows it, but that nobody replaces the file meanwhile; and the
//! policy that it was quantised from.

use crate::ddpg::Agent;
use crate::export::{About, policy_bytes};
use brokertuner_core::features::{Schema, View};
use brokertuner_core::model::Beyond;
use brokertuner_core::{Envelope, KNOB_COUNT, Knob, KnobSet, Settings, quantise_action};
use brokertuner_edge::policy::{ModelPolicy, Policy};
use std::path::Path;

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

/// Decides with an agent's own numbers: what a model loses by its eight bits is the difference.
#[derive(Debug)]
pub struct AgentPolicy {
    agent: Agent,
    /// Its model, which says what training has seen.
    model: ModelPolicy,
    beyond: Option<Beyond>,
}

impl AgentPolicy {
    /// The policy of `agent`, of states of `schema`; `path` is for messages.
    ///
    /// # Errors
    /// An agent that has diverged.
    pub fn new(agent: Agent, schema: Schema, path: &Path) -> anyhow::Result<AgentPolicy> {
        let bytes = policy_bytes(&agent, &About::new(schema))?;
        let model = ModelPolicy::of_bytes(bytes, schema, path)?;
        Ok(AgentPolicy { agent, model, beyond: None })
    }
}

impl Policy for AgentPolicy {
    fn want(&mut self, view: &View<'_>, envelope: &Envelope) -> Settings {
        self.beyond = None;
        let Ok(answer) = self.model.answer(view, envelope) else {
            return envelope.confine(*view.effective);
        };
        self.beyond = answer.beyond;
        let mut output = [0.0; KNOB_COUNT];
        output.copy_from_slice(&self.agent.act(&answer.features));
        let tuned = crate::env::trained();
        let opted_in = Knob::ALL
            .into_iter()
            .filter(|&knob| envelope.opted_in.contains(knob) && tuned.contains(knob))
            .fold(KnobSet::EMPTY, KnobSet::with);
        Settings::decode(&quantise_action(&output), &Envelope { opted_in, ..*envelope })
    }

    fn doubt(&self) -> Option<String> {
        self.beyond.as_ref().map(|beyond| self.model.words(beyond))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::ddpg::Hyper;
    use crate::scenario::Scenario;
    use crate::trial::Profile;
    use crate::twin::{Calibration, Play};
    use std::sync::Arc;

    #[test]
    fn an_agent_is_worth_what_its_model_is() {
        let agent = Agent::new(Hyper::twin(), Schema::Edge.len(), KNOB_COUNT, 4).unwrap();
        let bytes = policy_bytes(&agent, &About::new(Schema::Edge)).unwrap();
        let path = Path::new("untrained");
        let model = ModelPolicy::of_bytes(bytes, Schema::Edge, path).unwrap();
        let play = Play {
            scenario: Arc::new(Scenario::load("link-50ms").unwrap()),
            calibration: Calibration::default(),
            capacity_msgs_per_s: None,
            profile: Profile::judging().unwrap(),
            seed: 1,
        };
        let eight_bits = play.tuned(&mut FilePolicy::from(model));
        let floats = play.tuned(&mut AgentPolicy::new(agent, Schema::Edge, path).unwrap());
        assert!(!floats.timeline.is_empty() && floats.timeline.len() == eight_bits.timeline.len());
        assert!((floats.score.unwrap() - eight_bits.score.unwrap()).abs() < 0.02);
    }
}
