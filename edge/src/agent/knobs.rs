//! Options that a person sets over HTTP: by the same checks, the same apply and the same
//! verification as the policy's own, and then left alone by the policy.

use brokertuner_core::controller::Decision;
use brokertuner_core::knobs::Apply;
use brokertuner_core::{Envelope, Knob, KnobSet, Setting, Settings};

use super::{Agent, Verdict};
use crate::journal::{Entry, Event};
use crate::knobs_request::{KnobsAnswer, KnobsRequest, Refusal};
use crate::plan::Plan;
use crate::ready;
use crate::state::{How, Scheduled};

/// Why such a change is made.
pub(super) const ASKED_FOR: &str = "asked for over HTTP";

impl Agent {
    /// Checks and carries out what was asked for. Blocks as an apply does.
    pub fn set_knobs(&mut self, request: KnobsRequest) -> KnobsAnswer {
        let envelope =
            self.sample.as_ref().map_or(self.site.envelope, |sample| self.envelope(sample));
        let (asked, skipped) = split(&request, envelope.opted_in);
        let (written, effective) = (*self.controller.written(), *self.controller.effective());
        let target = written.with_stated(&asked);
        // What waits for its restart counts: the two would be in force together.
        let waiting = self.controller.requested().copied().unwrap_or_default();
        let mut refused = request.refused;
        refused.extend(violations(
            &envelope,
            &asked,
            &written.with_stated(&waiting.with_stated(&asked)),
        ));
        if !refused.is_empty() {
            return KnobsAnswer::Refused(refused);
        }
        if let Some(reason) = self.is_held() {
            return KnobsAnswer::Held(reason);
        }
        // Only what was asked for: another option may lie dormant in the file.
        let value = |settings: &Settings, knob| settings.effective(knob, &envelope.site);
        let takes_restart = |knob: Knob| {
            let is_new = value(&effective, knob) != value(&target, knob);
            knob.spec().apply == Apply::Restart && is_new
        };
        if asked.written().iter().any(takes_restart) {
            return self.schedule(asked, skipped);
        }
        let target = envelope.confine(target).with_that_of(Knob::Persistence, &effective);
        if target == written {
            self.pin(&asked, &target);
            self.take_back(&asked);
            return KnobsAnswer::Applied(skipped);
        }
        let plan = Plan {
            from: written,
            to: target,
            how: How::Reload,
            why: ASKED_FOR.into(),
            is_roll_back: false,
            is_asked_for: true,
            is_unloading: false,
        };
        let decision = Decision::Change { settings: target, apply: Apply::Reload };
        match self.carry_out(plan, &decision, self.health()) {
            Verdict::Changed(..) => {
                self.pin(&asked, &target);
                self.take_back(&asked);
                KnobsAnswer::Applied(skipped)
            }
            Verdict::Failed(_, error) => KnobsAnswer::Failed(error.to_string()),
            Verdict::Blind(reason) => KnobsAnswer::Held(reason),
            other => KnobsAnswer::Failed(format!("{other:?}")),
        }
    }

    /// What keeps from changing anything now, in words.
    fn is_held(&self) -> Option<String> {
        if let Some(restraint) = self.restraint() {
            return Some(restraint.to_string());
        }
        if self.applier.state().intent.is_some() {
            return Some("a change that was cut short is being ended; try again".into());
        }
        if let Some(reason) = self.is_away() {
            return Some(reason);
        }
        if self.controller.failures() >= self.site.rules.failures_max {
            return Some("too many failed changes; see why, then `edge resume`".into());
        }
        match self.applier.check_ours() {
            Ok(()) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// Why nothing reaches the broker now. To try all the same would say nothing of the settings, and
    /// be no failure of theirs.
    fn is_away(&self) -> Option<String> {
        let hidden = self.hidden_process();
        if hidden.is_some() {
            return hidden;
        }
        let away = |why: String| Some(format!("the broker can't be asked now: {why}; try again"));
        if let Err(error) = self.applier.broker().process() {
            return away(error.to_string());
        }
        // One that is full serves those whom it has, and the agent among them.
        if self.is_heard() {
            return None;
        }
        ready::look(self.applier.broker(), None).err().and_then(|missing| away(missing.to_string()))
    }

    /// Takes options that were set now out of what waits for a restart: the later word holds.
    fn take_back(&mut self, set: &Settings) {
        let Some(scheduled) = self.applier.state().scheduled else { return };
        let mut left = Settings::UNWRITTEN;
        for knob in scheduled.settings.written().iter() {
            if set.get(knob) == Setting::Unwritten {
                left = left.with_that_of(knob, &scheduled.settings);
            }
        }
        if left == scheduled.settings {
            return;
        }
        let waiting = Scheduled { settings: left, ..scheduled };
        let waiting = (left != Settings::UNWRITTEN).then_some(waiting);
        if let Err(error) = self.applier.remember(|state| state.scheduled = waiting) {
            tracing::warn!(%error, "The state could not be stored.");
        }
        self.controller.drop_request();
        if waiting.is_some() {
            self.controller.request(left);
            return;
        }
        let why = "what was set later holds";
        tracing::info!(scheduled.id, why, "Asked for over HTTP.");
        self.note(&Entry::new(scheduled.id, Event::Dropped, why));
    }

    fn schedule(&mut self, asked: Settings, skipped: KnobSet) -> KnobsAnswer {
        let id = self.applier.number_decision();
        let earlier = self.controller.requested().copied().unwrap_or_default();
        let settings = earlier.with_stated(&asked);
        let superseded = self.applier.state().scheduled;
        let scheduled = Some(Scheduled { id, settings });
        if let Err(error) = self.applier.remember(|state| state.scheduled = scheduled) {
            return KnobsAnswer::Failed(error.to_string());
        }
        self.controller.request(settings);
        let diff = Plan {
            from: *self.controller.written(),
            to: self.controller.written().with_stated(&settings),
            how: How::Restart,
            why: String::new(),
            is_roll_back: false,
            is_asked_for: true,
            is_unloading: false,
        }
        .diff();
        tracing::info!(id, what = diff.join(", "), "Asked for over HTTP; waits for a restart.");
        let why = "asked for over HTTP; made as soon as budget, quiet hours and the broker's state permit a restart";
        if let Some(superseded) = superseded {
            let why = format!(
                "taken into decision {id}, which was asked for later: where both state an option, the later one holds"
            );
            self.note(&Entry::new(superseded.id, Event::Dropped, why));
        }
        self.note(&Entry { diff, ..Entry::new(id, Event::Scheduled, why) });
        KnobsAnswer::Scheduled { id, skipped }
    }
}

/// What is asked for, and the held options that are left alone.
fn split(request: &KnobsRequest, opted_in: KnobSet) -> (Settings, KnobSet) {
    let mut asked = Settings::UNWRITTEN;
    let mut skipped = KnobSet::EMPTY;
    for knob in request.settings.written().iter() {
        if request.skips_locked && !opted_in.contains(knob) {
            skipped = skipped.with(knob);
        } else {
            asked = asked.with_that_of(knob, &request.settings);
        }
    }
    (asked, skipped)
}

/// Why the envelope refuses `asked`, one reason per key.
fn violations(envelope: &Envelope, asked: &Settings, target: &Settings) -> Vec<Refusal> {
    let is_asked = |knob: Knob| asked.get(knob) != Setting::Unwritten;
    let found = envelope.check(target);
    found
        .iter()
        .filter_map(|violation| {
            let knob = violation.knob();
            // Window and queue are judged together: the reason belongs to the one asked about.
            let pair = [knob, Knob::InflightMessagesMax, Knob::QueuedMessagesMax];
            let is_pair = pair[1..].contains(&knob);
            let candidates = if is_pair { &pair[..] } else { &pair[..1] };
            let knob = candidates.iter().copied().find(|&knob| is_asked(knob))?;
            Some(Refusal::of(knob, violation.to_string()))
        })
        .collect()
}
