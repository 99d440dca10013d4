//! What every decision carries: the inputs that weighed most, what is expected of it, what came.

use std::collections::BTreeMap;

use brokertuner_core::controller::Health;
use brokertuner_core::features::{self, View};
use brokertuner_core::weigh::Weight;
use brokertuner_core::{Knob, Settings};
use serde_json::Value;

use super::{Agent, Verdict};
use crate::apply::{ApplyError, Recovery};
use crate::journal::{Entry, Event, Influence, Shown};
use crate::model::ModelNews;
use crate::plan::{Plan, diff};
use crate::state::{How, Intent, State};
use crate::undo;

/// Groups of inputs that are named: more are no help.
const INFLUENCES_MAX: usize = 3;

/// A change that was cut short.
pub(super) struct CutShort {
    id: u64,
    intent: Intent,
    is_roll_back: bool,
    undoes: Vec<u64>,
    undoing_failures: u8,
}

impl CutShort {
    /// What the memory holds of it.
    pub(super) fn of(state: &State) -> Option<Self> {
        let (last, is_roll_back) = (state.last_decision, state.rolls_back);
        // What was asked for over HTTP was numbered then.
        let id = if is_roll_back { last } else { state.watched.last().copied().unwrap_or(last) };
        let undoes = if is_roll_back { state.watched.clone() } else { Vec::new() };
        let undoing_failures = state.undoing.failures;
        Some(Self { id, intent: state.intent?, is_roll_back, undoes, undoing_failures })
    }
}

impl Agent {
    /// The account of a change that is about to be made, with its number.
    pub(super) fn account_of(&mut self, plan: &Plan, health: Health) -> Entry {
        let event = match plan {
            Plan { is_roll_back: true, .. } => Event::RolledBack,
            Plan { is_unloading: true, .. } => Event::Restarted,
            _ => Event::Changed,
        };
        let id = match self.applier.state().scheduled {
            // It was numbered when it was asked for.
            Some(scheduled) if plan.is_asked_for && plan.how == How::Restart => scheduled.id,
            _ => self.applier.number_decision(),
        };
        let mut entry = Entry {
            diff: plan.diff(),
            how: Some(plan.how),
            before: Some(health),
            undo: if plan.is_unloading { Vec::new() } else { undo::commands(&self.site, plan) },
            ..Entry::new(id, event, plan.why.clone())
        };
        if plan.is_roll_back {
            entry.undoes.clone_from(&self.applier.state().watched);
        } else {
            if event == Event::Changed {
                self.applier.note_watched(id);
            }
            if !plan.is_asked_for {
                entry.influences = self.influences(plan);
            }
            entry.expected = self.expected(plan, &health);
        }
        entry
    }

    /// The heaviest inputs: a dozen inferences, so only for a change.
    fn influences(&mut self, plan: &Plan) -> Vec<Influence> {
        let effective = *self.controller.effective();
        let view = View {
            metrics: &self.metrics,
            effective: &effective,
            site: &self.site.envelope.site,
            targets: &self.site.targets,
        };
        let knobs = plan.from.differing(&plan.to);
        let weights = self.policy.weigh(&view, self.reference.as_ref(), knobs);
        self.reference = Some(features::state(self.site.schema, &view));
        let measured = serde_json::to_value(self.metrics).unwrap_or(Value::Null);
        weights.iter().take(INFLUENCES_MAX).map(|weight| influence(weight, &measured)).collect()
    }

    /// What each changed option is for, what a restart may gain at most, and by what the change is
    /// judged. The model says what it wants, not what it is worth: there is no other figure to give.
    fn expected(&self, plan: &Plan, health: &Health) -> Vec<String> {
        let rules = &self.site.rules;
        let purpose = |knob: Knob| format!("{knob}: {}", knob.spec().why);
        let mut expected: Vec<String> = plan.from.differing(&plan.to).iter().map(purpose).collect();
        let is_ours = plan.how == How::Restart && !plan.is_asked_for;
        let gain_max = self.controller.gain_max(health).filter(|_| is_ours);
        expected.extend(gain_max.map(|gain| {
            match gain {
                gain if gain < 1.0 => {
                    format!("at most {:.1} % more deliveries: what is dropped now", gain * 100.0)
                }
                _ => {
                    "more deliveries in time: the probe is slow, memory is short, or all is dropped"
                        .into()
                }
            }
        }));
        expected.push(format!(
            "kept if, over {} s, the probe stays below {:.0} ms or {:.0} times what it was, drops rise by at most {:.0} %, {:.0} % of the clients come back, and memory stays within the limit",
            rules.verify_window.as_secs(),
            rules.worse_latency_us_min / 1000.0,
            rules.worse_latency_factor,
            rules.worse_dropped_share * 100.0,
            rules.clients_back_share_min * 100.0,
        ));
        expected
    }

    /// Completes the account of a change by how it ended, and keeps it.
    pub(super) fn conclude(&mut self, mut entry: Entry, verdict: &Verdict) {
        if entry.event == Event::Restarted {
            // It belongs to the change before it, which is still what is watched and told.
            if let Verdict::Failed(_, error) = verdict {
                entry.why = format!("{}; {error}", entry.why);
            }
            self.note(&entry);
            return;
        }
        if let Verdict::Failed(_, error) = verdict {
            entry.event = Event::Failed;
            entry.why = format!("{}; {error}", entry.why);
            entry.undo.clear();
            self.forget_watched(entry.id);
        }
        let undone = verdict.plan().filter(|plan| plan.is_roll_back);
        let written = self.applier.state().written.unwrap_or_default();
        if undone.is_some_and(|plan| written != plan.from) {
            self.unpin(&written);
        }
        self.note(&entry);
        self.last = Some(entry);
    }

    /// What a person asked for is in force, as `written` has it: the policy leaves it alone.
    pub(super) fn pin(&mut self, asked: &Settings, written: &Settings) {
        let pinned = self.applier.state().pinned.unwrap_or_default();
        let asked = asked.written().iter();
        let pinned = asked.fold(pinned, |pinned, knob| pinned.with_that_of(knob, written));
        if let Err(error) = self.applier.remember(|state| state.pinned = Some(pinned)) {
            tracing::warn!(%error, "What was set over HTTP could not be noted.");
        }
    }

    /// What a person set is undone where `written` says otherwise: it made things worse, and is not
    /// set again. All else that they set stays theirs.
    fn unpin(&mut self, written: &Settings) {
        let Some(pinned) = self.applier.state().pinned else { return };
        let stays = |knob: &Knob| pinned.get(*knob) == written.get(*knob);
        let kept = pinned.written().iter().filter(stays);
        let kept = kept.fold(Settings::UNWRITTEN, |kept, knob| kept.with_that_of(knob, &pinned));
        if kept == pinned {
            return;
        }
        let undone: Vec<_> = pinned.differing(&kept).iter().map(|knob| knob.to_string()).collect();
        let undone = undone.join(", ");
        tracing::warn!(undone, "What was set over HTTP is the policy's again.");
        let kept = (kept != Settings::UNWRITTEN).then_some(kept);
        if let Err(error) = self.applier.remember(|state| state.pinned = kept) {
            tracing::warn!(%error, "That could not be noted.");
        }
    }

    /// A change stood its verification.
    pub(super) fn note_verified(&mut self, ids: &[u64]) {
        let Some(verified) = self.controller.take_verified() else { return };
        let after = Some(verified.after);
        let why = "nothing got worse over the verify window";
        let (before, seen) = (Shown(&verified.before), Shown(&verified.after));
        for &id in ids {
            tracing::info!(id, %before, after = %seen, "The change stood its verification.");
            self.note(&Entry { after, ..Entry::new(id, Event::Verified, why) });
            if let Some(last) = self.last.as_mut().filter(|last| last.id == id) {
                last.after = after;
            }
        }
    }

    /// A change that was cut short has its number and its account all the same.
    pub(super) fn note_cut_short(&mut self, cut: &CutShort, ended: &Result<Recovery, ApplyError>) {
        let is_still_bad = self.applier.state().undoing.failures > cut.undoing_failures;
        let (event, how_it_ended) = match ended {
            Ok(Recovery::Clean) => return,
            Ok(_) if is_still_bad => (Event::Failed, "it could not be undone yet".to_owned()),
            Ok(Recovery::NothingDone) => (Event::Failed, "nothing was changed".to_owned()),
            Ok(Recovery::Finished(_)) if cut.is_roll_back => {
                (Event::RolledBack, "it was brought to its end".into())
            }
            Ok(Recovery::Finished(_)) => (Event::Changed, "it was brought to its end".into()),
            Ok(Recovery::TakenBack(_)) if cut.is_roll_back => {
                (Event::RolledBack, "it was brought to its end".into())
            }
            Ok(Recovery::TakenBack(_)) => (Event::Failed, "the settings of before are back".into()),
            Ok(Recovery::EditedByHand) => {
                (Event::HandsOff, "someone edited the drop-in since".into())
            }
            Err(error) => (Event::Failed, error.to_string()),
        };
        let why = format!("it was cut short, as by a power cut; {how_it_ended}");
        let (from, to) = (cut.intent.from.unwrap_or_default(), cut.intent.to.unwrap_or_default());
        let entry = Entry {
            diff: diff(&from, &to),
            how: Some(cut.intent.how),
            undoes: cut.undoes.clone(),
            ..Entry::new(cut.id, event, why)
        };
        if event != Event::Changed {
            self.forget_watched(cut.id);
        }
        self.note(&entry);
        if self.journal.is_some() && event != Event::HandsOff {
            self.last = Some(entry);
        }
    }

    /// A change that did not come about has nothing to stand.
    fn forget_watched(&mut self, id: u64) {
        if let Err(error) = self.applier.remember(|state| state.watched.retain(|&it| it != id)) {
            tracing::warn!(%error, "That a change did not come about could not be noted.");
        }
    }

    /// What a person asked for waits no longer, and no change was made for it.
    pub(super) fn note_idle_request(&mut self) {
        let Some(scheduled) = self.applier.state().scheduled else { return };
        if self.controller.requested().is_some() {
            return;
        }
        let why = "nothing of it is left to change: it is in force, or may no longer be set";
        tracing::info!(scheduled.id, why, "Asked for over HTTP.");
        self.note(&Entry::new(scheduled.id, Event::Dropped, why));
        self.forget_scheduled();
    }

    /// Someone else changed the drop-in.
    pub(super) fn note_hands_off(&mut self, error: &ApplyError) {
        if self.journal.is_some() {
            let id = self.number_news();
            self.note(&Entry::new(id, Event::HandsOff, error.to_string()));
        }
    }

    /// The number of what is no change: stored now, for no change follows that would.
    fn number_news(&mut self) -> u64 {
        let id = self.applier.number_decision();
        if let Err(error) = self.applier.remember(|_| {}) {
            tracing::warn!(%error, "The number of a decision could not be noted.");
        }
        id
    }

    /// What became of the model file.
    pub(super) fn note_model(&mut self, news: ModelNews) {
        if self.journal.is_some() {
            let id = self.number_news();
            let (event, why) = match news {
                ModelNews::Replaced(why) => (Event::ModelReplaced, why),
                ModelNews::Refused(why) => (Event::ModelRefused, why),
            };
            self.note(&Entry::new(id, event, why));
        }
    }

    /// A model that was refused before this agent started is told once.
    pub(super) fn note_refused_model(&mut self) {
        let Some(refused) = self.policy.model().and_then(|model| model.refused.clone()) else {
            return;
        };
        let read = self.journal.as_ref().and_then(|journal| journal.read().ok());
        let is_of_model =
            |entry: &&Entry| matches!(entry.event, Event::ModelRefused | Event::ModelReplaced);
        let last = read.as_deref().and_then(|entries| entries.iter().rfind(is_of_model));
        if last.is_none_or(|last| last.event != Event::ModelRefused || last.why != refused) {
            self.note_model(ModelNews::Refused(refused));
        }
    }

    /// Writes to the journal, where this agent keeps one; says once where that fails.
    pub(super) fn note(&mut self, entry: &Entry) {
        let Some(journal) = &self.journal else { return };
        match journal.append(entry) {
            Ok(()) => self.is_journal_broken = false,
            Err(error) if !self.is_journal_broken => {
                tracing::warn!(%error, "The journal lacks an entry; nothing else rests on it.");
                self.is_journal_broken = true;
            }
            Err(_) => {}
        }
    }
}

fn influence(weight: &Weight, measured: &Value) -> Influence {
    let figure = |name: &&str| {
        let value = measured.get(name)?.as_f64()?;
        #[allow(clippy::cast_possible_truncation, reason = "it was an f32")]
        let value = value as f32;
        Some(((*name).to_owned(), value))
    };
    let figures: BTreeMap<_, _> = weight.group.metrics.iter().filter_map(figure).collect();
    Influence { inputs: weight.group.name.into(), steps: weight.steps, figures }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use brokertuner_core::features::Schema;
    use brokertuner_core::sample::Metrics;

    /// The groups name what they are made from: each name is a figure that is measured.
    #[test]
    fn every_figure_of_a_group_is_measured() {
        let measured = serde_json::to_value(Metrics::default()).unwrap();
        for schema in [Schema::Seed5, Schema::Edge] {
            for name in schema.groups().iter().flat_map(|group| group.metrics) {
                assert!(measured.get(name).is_some(), "{name}");
            }
        }
    }
}
