//! Ending what a crash or a power cut left half done.
//!
//! The intent says what was going on, the drop-in's hash how far it got, the broker's process
//! whether it was restarted since.

use brokertuner_core::Settings;

use super::compare::{read_back, shows_new};
use super::{Applier, ApplyError, digest, sha256};
use crate::fs;
use crate::ready;
use crate::state::{How, Intent};

/// What was found at the start, and done about it.
#[derive(Debug)]
pub enum Recovery {
    /// Nothing was under way.
    Clean,
    /// A change was begun, but its drop-in never got into place.
    NothingDone,
    /// The change was brought to its end.
    Finished(Option<Settings>),
    /// The change was taken back.
    TakenBack(Option<Settings>),
    /// The drop-in was changed by someone in the meantime: it is theirs.
    EditedByHand,
}

/// How far a change had got.
#[derive(PartialEq, Eq)]
pub(super) enum Found {
    From,
    To,
    Foreign,
}

impl Applier {
    /// Ends what was cut short. To be called once, before anything else.
    ///
    /// Waits for the broker where a change was under way; at most four times the ready timeout.
    ///
    /// # Errors
    /// [`ApplyError`]; the drop-in is then the last known good one and the intent is kept, so that
    /// the next start tries again.
    pub fn recover(&mut self) -> Result<Recovery, ApplyError> {
        self.broker.begin();
        // A crash while writing leaves this; the broker does not load it.
        let aside = fs::aside(&self.paths.drop_in);
        self.files.remove(&aside).map_err(fs::at("remove", &aside))?;
        let Some(intent) = self.state.intent else { return Ok(Recovery::Clean) };
        match (self.found(&intent)?, intent.back) {
            (found, _) if self.state.rolls_back => self.resume_roll_back(intent, found),
            (Found::Foreign, _) => {
                self.remember(|state| state.end_intent())?;
                Ok(Recovery::EditedByHand)
            }
            (Found::From, false) if self.may_run_with_new(&intent) => self.give_back(intent),
            (Found::From, false) => {
                self.forget_intent(intent.from);
                Ok(Recovery::NothingDone)
            }
            (Found::To, false) => self.resume(intent),
            (_, true) => self.resume_back(intent),
        }
    }

    fn found(&self, intent: &Intent) -> Result<Found, ApplyError> {
        let path = &self.paths.drop_in;
        let bytes = self.files.read(path).map_err(fs::at("read", path))?;
        let now = bytes.as_deref().map(sha256);
        let between = [intent.interim, intent.interim_back].into_iter().flatten();
        let is_between = between.map(|settings| digest(Some(settings))).any(|it| it == now);
        let is_fallback = self.state.rolls_back && now == digest(self.fallback(intent));
        Ok(if now == digest(intent.from) {
            Found::From
        } else if now == digest(intent.to) || is_between || is_fallback {
            Found::To
        } else {
            Found::Foreign
        })
    }

    /// The new drop-in is in place; whether the broker was asked is not known.
    fn resume(&mut self, intent: Intent) -> Result<Recovery, ApplyError> {
        if intent.how == How::Reload {
            // Asking twice does no harm.
            let before = ready::wait(&*self.broker, None, self.ready_timeout);
            let before = before.map_or(intent.before, |ready| ready.process);
            let intent = Intent { before, ..intent };
            return match self.advance(&intent) {
                Ok(ready) => {
                    self.finish(&intent, ready);
                    Ok(Recovery::Finished(intent.to))
                }
                Err(_) => self.give_back(intent),
            };
        }
        match ready::wait(&*self.broker, None, self.ready_timeout) {
            Ok(ready) if ready.process == intent.before => {
                // Never restarted. The clients were spared until now: a restart takes a fresh
                // decision.
                self.put(intent.from)?;
                if self.broker.process().ok() != Some(intent.before) {
                    // The restart was on its way after all, and may have met either file.
                    return self.give_back(intent);
                }
                self.forget_intent(intent.from);
                Ok(Recovery::TakenBack(intent.from))
            }
            Ok(ready) if read_back(&intent, &ready.connack).is_ok() => {
                if intent.interim.is_some() {
                    self.put(intent.to)?;
                }
                self.finish(&intent, ready);
                Ok(Recovery::Finished(intent.to))
            }
            _ => self.give_back(intent),
        }
    }

    /// The change had failed and was being taken back.
    fn resume_back(&mut self, intent: Intent) -> Result<Recovery, ApplyError> {
        if intent.how == How::Restart
            && self.is_in_place(intent.from)
            && let Ok(ready) = ready::look(&*self.broker, None)
            && ready.process != intent.before
            && !shows_new(&intent, &ready.connack)
        {
            // It restarted after the intent was noted, and the old file is in place.
            self.finish(&Intent { to: intent.from, ..intent }, ready);
            return Ok(Recovery::TakenBack(intent.from));
        }
        self.give_back(intent)
    }

    /// The old drop-in is in place; it may have been put back while the broker had the new one.
    fn may_run_with_new(&self, intent: &Intent) -> bool {
        // A broker that is just starting may have read the new one.
        let ready = ready::wait(&*self.broker, None, self.ready_timeout);
        ready.is_ok_and(|ready| match intent.how {
            // It can't be seen, but one more reload does no harm.
            How::Reload => true,
            How::Restart => ready.process != intent.before && shows_new(intent, &ready.connack),
        })
    }

    fn give_back(&mut self, intent: Intent) -> Result<Recovery, ApplyError> {
        self.take_back(&intent)?;
        Ok(Recovery::TakenBack(intent.from))
    }
}
