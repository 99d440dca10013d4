//! Undoing a change that made things worse: what is undone never gets into the file again.
//!
//! Where the last good settings can't be made effective, they stay in the file all the same; where
//! the broker does not start with them either, it is started without any.

use brokertuner_core::controller::Undoing;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, Settings};

use super::compare::read_back;
use super::recover::Found;
use super::{Applied, Applier, ApplyError, Failure, Recovery, Restored};
use crate::fs::FileError;
use crate::ready::{self, Missing, Ready};
use crate::state::{How, Intent};

impl Applier {
    /// As [`Applier::apply`], to undo what has yet to stand its verification: where it fails, the
    /// drop-in does not go back to that. A broker that hangs is restarted though it saves nothing.
    ///
    /// # Errors
    /// [`ApplyError`]; what stands in the drop-in then, [`Applier::state`] has.
    pub fn roll_back(
        &mut self,
        wanted: Option<Settings>,
        how: How,
        site: &SiteValues,
    ) -> Result<Applied, ApplyError> {
        self.change(wanted, how, site, true)
    }

    /// Whether what a roll-back comes from is nothing to go back to.
    pub(super) fn is_doubtful(&self, intent: &Intent) -> bool {
        self.state.good != intent.from || intent.from == intent.to
    }

    /// It runs, and nobody is answered.
    pub(super) fn answers_nobody(&self) -> bool {
        matches!(
            ready::look(&*self.broker, None),
            Err(Missing::Answer(_) | Missing::Unavailable(_))
        )
    }

    /// Settings to start with where those of a roll-back are no good: none, but for persistence,
    /// which without a line might find no database, or another.
    pub(super) fn fallback(&self, intent: &Intent) -> Option<Settings> {
        let to = intent.to.filter(|_| self.state.rolls_back)?;
        let bare = Settings::UNWRITTEN.with_that_of(Knob::Persistence, &to);
        (bare != Settings::UNWRITTEN).then_some(bare)
    }

    /// Makes the best of a roll-back that failed. Answers the broker where it was undone after all.
    pub(super) fn fall_back(
        &mut self,
        intent: &Intent,
        failure: Failure,
    ) -> Result<Ready, ApplyError> {
        let stated = intent.interim.or(intent.to);
        let error = match failure {
            Failure::Broker(error) => error,
            Failure::AfterBroker(error) => {
                // The broker has it; a file that still states the site's values is as good.
                let in_place = [intent.to, stated].into_iter().find(|&it| self.is_in_place(it));
                let Some(to) = in_place else {
                    return Err(ApplyError::Stuck { error, again: "it can't be read".into() });
                };
                let Ok(ready) = ready::look(&*self.broker, None) else {
                    return Err(self.left_dormant(ApplyError::of_file(error), to));
                };
                self.finish(&Intent { to, interim: None, ..*intent }, ready);
                return Ok(ready);
            }
            Failure::Write(error) if self.is_in_place(stated) => {
                return Err(self.left_dormant(ApplyError::of_file(error), stated));
            }
            Failure::Write(error) if self.is_in_place(intent.from) => {
                return Err(self.remove_instead(intent, error));
            }
            Failure::Write(error) => {
                return Err(ApplyError::Stuck { error, again: "it can't be read".into() });
            }
        };
        match ready::look(&*self.broker, None) {
            // It has read the file at its start; what it shows instead is another file's doing.
            Ok(ready) if ready.process != intent.before => {
                tracing::warn!(%error, "Undone, though not as expected.");
                self.finish(&Intent { to: stated, interim: None, ..*intent }, ready);
                Ok(ready)
            }
            Ok(_) => Err(self.left_dormant(error, stated)),
            Err(_) => self.start_without(intent, error, stated),
        }
    }

    /// Where the drop-in of before can't be written, as on a full disk, to remove this one still undoes it.
    fn remove_instead(&mut self, intent: &Intent, error: FileError) -> ApplyError {
        if self.fallback(intent).is_some() {
            self.forget_intent(intent.from);
            return ApplyError::File(error);
        }
        let removed = self.put(None);
        if removed.is_err() && self.is_in_place(intent.from) {
            self.forget_intent(intent.from);
            return ApplyError::File(error);
        }
        // Where not even that can be seen, the next start looks.
        if let Err(again) = removed
            && !self.is_in_place(None)
        {
            return ApplyError::Stuck { error, again: again.to_string() };
        }
        let error = ApplyError::of_file(error);
        let how = how_to_bare(intent);
        match self.ask(how, intent.before) {
            Ok(ready) => {
                self.finish(&Intent { to: None, interim: None, how, ..*intent }, ready);
                error.with_restored(Restored::Bare)
            }
            Err(_) => self.left_dormant(error, None),
        }
    }

    /// The broker answers nobody: it is started with the last good settings, where it has not been
    /// yet, and else without any.
    fn start_without(
        &mut self,
        intent: &Intent,
        error: ApplyError,
        stated: Option<Settings>,
    ) -> Result<Ready, ApplyError> {
        let is_same = |applier: &Self| applier.broker.process().is_ok_and(|it| it == intent.before);
        let was_asked = match intent.how {
            // A command that failed may have waited for a save that never comes.
            How::Restart => !is_same(self) || !matches!(error, ApplyError::Control { .. }),
            How::Reload => is_same(self) && !intent.moves_memory_limit(),
        };
        if !was_asked && let Ok(ready) = self.ask_restart(intent.before) {
            self.finish(&Intent { to: stated, interim: None, how: How::Restart, ..*intent }, ready);
            return Ok(ready);
        }
        if is_same(self) {
            return Err(self.left_dormant(error, stated));
        }
        let bare = self.fallback(intent);
        if bare == stated || (self.put(bare).is_err() && !self.is_in_place(bare)) {
            // Where not even that can be seen, the next start looks.
            if self.is_in_place(stated) {
                self.forget_intent(stated);
            }
            return Err(error.with_restored(Restored::No("it does not start".into())));
        }
        let running = self.broker.process().unwrap_or(intent.before);
        match self.ask_restart(running) {
            Ok(ready) => {
                let how = How::Restart;
                self.finish(&Intent { to: bare, interim: None, how, ..*intent }, ready);
                Err(error.with_restored(Restored::Bare))
            }
            Err(again) => {
                self.forget_intent(bare);
                Err(error.with_restored(Restored::No(again.to_string())))
            }
        }
    }

    fn left_dormant(&mut self, error: ApplyError, stated: Option<Settings>) -> ApplyError {
        self.forget_intent(stated);
        error.with_restored(Restored::Dormant)
    }

    /// Ends a roll-back that was cut short: to its end, for it was for safety.
    pub(super) fn resume_roll_back(
        &mut self,
        intent: Intent,
        found: Found,
    ) -> Result<Recovery, ApplyError> {
        match found {
            Found::Foreign => {
                self.remember(|state| state.end_intent())?;
                return Ok(Recovery::EditedByHand);
            }
            Found::From if intent.from != intent.to => {
                self.forget_intent(intent.from);
                return Ok(Recovery::NothingDone);
            }
            Found::From | Found::To => {}
        }
        let bare = self.fallback(&intent);
        let is_bare = intent.from != bare && self.is_in_place(bare);
        let to = if is_bare { bare } else { intent.to };
        let now = ready::wait(&*self.broker, None, self.ready_timeout);
        if let Ok(ready) = now
            && ready.process != intent.before
            && read_back(&Intent { to, ..intent }, &ready.connack).is_ok()
        {
            self.put(to)?;
            self.finish(&Intent { to, how: How::Restart, ..intent }, ready);
            return Ok(Recovery::Finished(to));
        }
        let before = now.map_or(intent.before, |ready| ready.process);
        let interim = intent.interim.filter(|_| !is_bare);
        let how = if is_bare { how_to_bare(&intent) } else { intent.how };
        let intent = Intent { to, interim, how, before, ..intent };
        match self.advance(&intent) {
            Ok(ready) => self.finish(&intent, ready),
            Err(failure) => match self.fall_back(&intent, failure) {
                Err(error) if self.state.intent.is_some() => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "A roll-back that was cut short failed.");
                    self.remember(|state| {
                        let failures = state.undoing.failures.saturating_add(1);
                        state.undoing = Undoing { failures, is_in_file: true };
                    })?;
                }
                Ok(_) => {}
            },
        }
        Ok(Recovery::TakenBack(self.state.written))
    }
}

/// A reload leaves `memory_limit` as it is where its line is only missing.
fn how_to_bare(intent: &Intent) -> How {
    if intent.moves_memory_limit() { How::Restart } else { intent.how }
}
