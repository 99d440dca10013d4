//! Makes the decisions of a trace again: the same on a gateway, a workstation and a microcontroller.

use crate::controller::{Controller, Decision, HoldReason, Inputs, Outcome, Rules};
use crate::features::View;
use crate::model::{Answer, Model, ModelError};
use crate::sample::{Meter, Metrics};
use crate::settings::Settings;
use crate::trace::{Head, Record};

/// Replays one trace with one model.
///
/// Every decision counts as carried out, so that from the first change on the settings in force are
/// those of the replay and not those that were recorded.
#[derive(Clone, Debug)]
pub struct Replay<'m> {
    model: Model<'m>,
    head: Head,
    rules: Rules,
    meter: Meter,
    controller: Option<Controller>,
}

/// What a record came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What was measured.
    pub metrics: Metrics,
    /// The model's answer; `None` where too little was known to ask it.
    pub answer: Option<Answer>,
    /// What the controller made of it.
    pub decision: Decision,
    /// What stands in the drop-in afterwards.
    pub written: Settings,
}

impl<'m> Replay<'m> {
    /// A replay from the beginning; `rules` are the agent's, which a trace does not hold.
    #[must_use]
    pub fn new(model: Model<'m>, head: Head, rules: Rules) -> Self {
        Replay { model, head, rules, meter: Meter::default(), controller: None }
    }

    /// Takes the next record; the first one gives the settings to begin with.
    ///
    /// # Errors
    /// As [`Model::answer`]; never for a model of [`Model::read`].
    pub fn step(&mut self, record: &Record) -> Result<Step, ModelError> {
        let rules = self.rules;
        let controller = self.controller.get_or_insert_with(|| {
            let mut controller = Controller::new(rules, record.written);
            controller.found(record.written, record.effective);
            controller
        });
        let sample = &record.sample;
        let metrics = self.meter.measure(sample);
        let health = record.health(&metrics, &self.head.targets);
        let envelope = self.head.envelope.measured(sample, &self.meter);
        let is_blind = !record.is_serving || metrics.publish_sent_per_s.is_none();
        if is_blind && !controller.is_watching() {
            let decision = Decision::Hold(HoldReason::NotServing);
            return Ok(Step { metrics, answer: None, decision, written: *controller.written() });
        }
        let effective = *controller.effective();
        let view = View {
            metrics: &metrics,
            effective: &effective,
            site: &envelope.site,
            targets: &self.head.targets,
        };
        let answer = if is_blind { None } else { Some(self.model.answer(&view, &envelope)?) };
        let known = answer.as_ref().filter(|answer| answer.beyond.is_none());
        let inputs = Inputs {
            wanted: known.map_or(controller.standing(), |answer| answer.settings),
            envelope,
            health,
            stored_share: metrics.store_bytes.map(|bytes| self.head.targets.memory_share(bytes)),
            state_at_risk: record.state_at_risk,
            quiet_hours: record.quiet_hours,
        };
        let decision = controller.step(sample.at, &inputs);
        controller.applied(sample.at, &decision, Outcome::Done, health);
        Ok(Step { metrics, answer, decision, written: *controller.written() })
    }
}
