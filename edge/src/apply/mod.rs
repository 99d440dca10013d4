//! Changing a live broker so that it, and whoever comes after a crash, always finds a whole file.
//!
//! One change is: note the intent; write the drop-in aside, sync, rename, sync the directory;
//! reload or restart; wait until ready; read back what CONNACK shows; forget the intent. Whatever
//! fails after the rename puts the previous drop-in back and asks the broker again. `recover` ends
//! what a crash cut short.

mod adopt;
mod compare;
mod database;
mod error;
mod recover;
mod roll_back;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use brokertuner_core::controller::{Health, Undoing};
use brokertuner_core::knobs::Apply;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, KnobSet, Settings, render};
use sha2::{Digest as _, Sha256};

pub(crate) use compare::interim;
use compare::{read_back, shown, started_with};
pub(crate) use database::set_aside;
pub use error::{ApplyError, Restored};
pub use recover::Recovery;

use crate::clock::Clocks;
use crate::control::{Broker, ControlError};
use crate::fs::{self, Digest, FileError, Files, MODE_CONF};
use crate::pid::ProcessId;
use crate::ready::{self, Missing, READY_TIMEOUT, Ready};
use crate::state::{
    Before, Effective, How, Intent, Standing, State, StateError, StateStore, WATCHED_MAX,
};

/// How long after a reload the broker is looked at again: 2.0 holds a signal back for up to 100 ms.
const SETTLE: Duration = Duration::from_millis(150);

/// Where an applier writes, and how patient it is.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The drop-in in the broker's include directory.
    pub drop_in: PathBuf,
    /// The directory of the agent's own records.
    pub state_dir: PathBuf,
    /// The broker's database file, where known: moved aside before persistence is switched on.
    pub database: Option<PathBuf>,
}

/// A change that went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// How it was made effective.
    pub how: How,
    /// The broker after it.
    pub ready: Ready,
    /// From the first byte written to the CONNACK.
    pub took: Duration,
}

/// Applies settings to one broker; owns its drop-in and the agent's state.
pub struct Applier {
    files: Box<dyn Files>,
    broker: Box<dyn Broker>,
    paths: Paths,
    store: StateStore,
    state: State,
    /// The memory holds something that is to be stored with whatever is stored next.
    is_unstored: bool,
    /// Restarts that were asked for since it was opened.
    restarts_asked: u32,
    ready_timeout: Duration,
    settle: Duration,
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier")
            .field("paths", &self.paths)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Applier {
    /// Takes over a broker. Damaged state is returned beside the applier, which then starts from
    /// nothing but a pause: it may have held one, or `off`.
    ///
    /// # Errors
    /// [`StateError::Version`] and [`StateError::File`]; damage is no error.
    pub fn open(
        files: Box<dyn Files>,
        broker: Box<dyn Broker>,
        paths: Paths,
    ) -> Result<(Self, Option<StateError>), StateError> {
        let store = StateStore::in_dir(&paths.state_dir);
        let (state, damage) = match store.load(&*files) {
            Ok(state) => (state, None),
            Err(damage @ StateError::Corrupt { .. }) => {
                (State { standing: Standing::Paused, ..State::default() }, Some(damage))
            }
            Err(error) => return Err(error),
        };
        let mut applier = Self {
            files,
            broker,
            paths,
            store,
            state,
            is_unstored: damage.is_some(),
            restarts_asked: 0,
            ready_timeout: READY_TIMEOUT,
            settle: SETTLE,
        };
        applier.take_up_ours();
        Ok((applier, damage))
    }

    /// Takes up a drop-in of ours whose record was lost: else `off --restore` would leave it there.
    pub fn take_up_ours(&mut self) {
        if self.state.written_sha256.is_none()
            && self.state.intent.is_none()
            && let Ok(Some(settings)) = self.found_of_ours()
        {
            self.state.note_written(Some(settings));
            // Nobody watches it any more.
            self.state.good = Some(settings);
        }
    }

    /// The same with other patience: how long to wait for readiness, how long to settle after a
    /// reload.
    #[must_use]
    pub fn with_patience(mut self, ready_timeout: Duration, settle: Duration) -> Self {
        self.ready_timeout = ready_timeout;
        self.settle = settle;
        self
    }

    /// The same with another limit for readiness.
    #[must_use]
    pub fn with_ready_timeout(mut self, ready_timeout: Duration) -> Self {
        self.ready_timeout = ready_timeout;
        self
    }

    /// The agent's memory.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The broker.
    #[must_use]
    pub fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    /// The drop-in's path.
    #[must_use]
    pub fn drop_in(&self) -> &Path {
        &self.paths.drop_in
    }

    /// Changes the memory and stores it where it differs.
    ///
    /// # Errors
    /// [`FileError`]; the memory is changed all the same.
    pub fn remember(&mut self, change: impl FnOnce(&mut State)) -> Result<(), FileError> {
        let before = self.state.clone();
        change(&mut self.state);
        if self.state == before && !self.is_unstored {
            return Ok(());
        }
        // Where it fails, whatever is stored next stores this as well.
        self.is_unstored = true;
        self.store.save(&*self.files, &self.state)?;
        self.is_unstored = false;
        Ok(())
    }

    /// Dates the memory by the clock on the wall as it goes now; gives the seconds that it was stepped
    /// by since the memory was dated last.
    ///
    /// # Errors
    /// As [`Applier::remember`].
    pub fn follow_clock(&mut self) -> Result<i64, FileError> {
        let now = Clocks::now();
        let stepped_s = now.stepped_s(&self.state.clocks);
        self.remember(|state| state.follow_clock(now))?;
        Ok(stepped_s)
    }

    /// The next decision's number. Stored with whatever is stored next: a change does that before
    /// it begins.
    pub fn number_decision(&mut self) -> u64 {
        self.is_unstored = true;
        self.state.last_decision += 1;
        self.state.last_decision
    }

    /// A change that is about to be made; stored as [`Applier::number_decision`].
    pub fn note_watched(&mut self, id: u64) {
        self.is_unstored = true;
        let watched = &mut self.state.watched;
        if watched.len() >= WATCHED_MAX {
            watched.remove(0);
        }
        watched.push(id);
    }

    /// No decision gets a number up to `highest` again. Stored as [`Applier::number_decision`].
    pub fn number_after(&mut self, highest: u64) {
        if self.state.last_decision < highest {
            self.is_unstored = true;
            self.state.last_decision = highest;
        }
    }

    /// How the broker does before a change; stored as [`Applier::number_decision`].
    pub fn note_before(&mut self, health: Health) {
        self.is_unstored = true;
        let now = Clocks::now();
        self.state.follow_clock(now);
        self.state.before = Some(Before { at_unix_s: now.unix_s, health });
    }

    /// Restarts that were asked for since this applier was opened, those that failed too.
    #[must_use]
    pub fn restarts_asked(&self) -> u32 {
        self.restarts_asked
    }

    /// The directory of the agent's own records.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.paths.state_dir
    }

    /// Reads the memory again, for one who only looks on; answers whether it has changed.
    ///
    /// # Errors
    /// [`StateError`]; the memory is kept then.
    pub fn look_again(&mut self) -> Result<bool, StateError> {
        let before = std::mem::replace(&mut self.state, self.store.load(&*self.files)?);
        self.take_up_ours();
        Ok(self.state != before)
    }

    /// What the drop-in says now, whoever wrote it.
    ///
    /// # Errors
    /// [`ApplyError::EditedByHand`] where it is not as this agent left it; [`ApplyError::File`].
    pub fn check_ours(&self) -> Result<(), ApplyError> {
        let path = &self.paths.drop_in;
        let found = self.files.sha256(path).map_err(fs::at("read", path))?;
        match (found, self.state.written_sha256) {
            (None, None) => Ok(()),
            (Some(found), Some(ours)) if found == ours => Ok(()),
            // Word for word what this agent writes: its state was lost, not its file edited.
            (Some(_), None) if self.found_of_ours()?.is_some() => Ok(()),
            (None, Some(_)) => Err(ApplyError::Removed { path: path.clone() }),
            _ => Err(ApplyError::EditedByHand { path: path.clone() }),
        }
    }

    /// The settings of a drop-in that is word for word what this agent writes.
    fn found_of_ours(&self) -> Result<Option<Settings>, FileError> {
        let path = &self.paths.drop_in;
        let bytes = self.files.read(path).map_err(fs::at("read", path))?;
        Ok(bytes.as_deref().and_then(adopted))
    }

    /// What the drop-in says, as far as it is ours.
    ///
    /// # Errors
    /// As [`Applier::check_ours`].
    pub fn written(&self) -> Result<Option<Settings>, ApplyError> {
        self.check_ours()?;
        if self.state.written_sha256.is_some() {
            return Ok(self.state.written);
        }
        Ok(self.found_of_ours()?)
    }

    /// Makes the drop-in say `wanted` (`None`: makes it absent) and the broker take it over by
    /// `how`.
    ///
    /// Blocks for at most five times the ready timeout (the change, and what it takes to undo it)
    /// and the reload and restart commands.
    /// A reloadable option that is given up is set to its value in `site` first: removing the line
    /// alone leaves `memory_limit` as it was.
    ///
    /// # Errors
    /// [`ApplyError`]. The drop-in is then what it was before, or the error says that it is not.
    pub fn apply(
        &mut self,
        wanted: Option<Settings>,
        how: How,
        site: &SiteValues,
    ) -> Result<Applied, ApplyError> {
        self.change(wanted, how, site, false)
    }

    fn change(
        &mut self,
        wanted: Option<Settings>,
        how: How,
        site: &SiteValues,
        is_roll_back: bool,
    ) -> Result<Applied, ApplyError> {
        let started = Instant::now();
        self.broker.begin();
        let from = self.written()?;
        let running = self.broker.process();
        let wanted = match (how, &running) {
            (How::Reload, Ok(process)) => self.keeping_persistence(*process, from, wanted, site),
            _ => wanted,
        };
        if how == How::Restart {
            let running = running.as_ref().ok().copied();
            self.guard_database(from, wanted, running, site, is_roll_back)
                .map_err(|error| error.with_restored(Restored::Kept))?;
        }
        // A broker that is down can be restarted, though not reloaded.
        let last = self.state.effective.map(|effective| effective.process);
        let before = match (running, last) {
            (Ok(process), _) => process,
            (Err(_), Some(last)) if how == How::Restart => last,
            (Err(error), _) => return Err(ApplyError::NoProcess(error)),
        };
        let interim = interim(from, wanted, site);
        let to = wanted;
        let interim_back = compare::interim(interim.or(to), from, site);
        let intent = Intent { from, to, interim, interim_back, how, before, back: false };
        let rolls_back = is_roll_back && self.is_doubtful(&intent);
        match self.remember(|state| (state.intent, state.rolls_back) = (Some(intent), rolls_back)) {
            // The broker's own files may lie on another disk, with room: what made things worse is undone.
            Err(error) if is_roll_back => {
                tracing::warn!(%error, "The change is undone, though the memory can't be stored.");
            }
            noted => noted.map_err(|error| self.not_begun(error))?,
        }
        let ready = match self.advance(&intent) {
            Ok(ready) => {
                self.finish(&intent, ready);
                ready
            }
            Err(failure) if rolls_back => self.fall_back(&intent, failure)?,
            Err(failure) => return Err(self.undo(&intent, failure)),
        };
        Ok(Applied { how, ready, took: started.elapsed() })
    }

    /// A reload takes `persistence` over too, and with it the wrong database: what is written for a
    /// reload says what `process` runs with.
    fn keeping_persistence(
        &self,
        process: ProcessId,
        from: Option<Settings>,
        wanted: Option<Settings>,
        site: &SiteValues,
    ) -> Option<Settings> {
        let knob = Knob::Persistence;
        let known = self.state.effective.filter(|known| known.process == process);
        let running = known.map_or(from.unwrap_or_default(), |known| known.settings);
        let target = wanted.unwrap_or_default();
        if running.effective(knob, site) == target.effective(knob, site) {
            return wanted;
        }
        let kept = target.with_that_of(knob, &running);
        (wanted.is_some() || kept != Settings::UNWRITTEN).then_some(kept)
    }

    /// The settings that stood their verification become those to fall back to.
    ///
    /// # Errors
    /// [`FileError`] where it can't be stored.
    pub fn mark_good(&mut self) -> Result<(), FileError> {
        self.remember(|state| {
            state.watched.clear();
            state.undoing = Undoing::default();
            if state.good != state.written {
                (state.good_before, state.good) = (state.good, state.written);
            }
        })
    }

    /// Notes what the running broker shows: a restart by others makes effective what is written, and
    /// CONNACK shows the window and the packet size in force. Where one of `ours` (options that no other
    /// file sets) is another than was written, the broker did not read the drop-in, and nothing of it is in
    /// force.
    ///
    /// # Errors
    /// [`FileError`] where it can't be stored.
    pub fn observe(&mut self, ready: Ready, ours: KnobSet) -> Result<(), FileError> {
        let written = self.state.written.unwrap_or_default();
        self.remember(|state| {
            let known = state.effective.filter(|known| known.process == ready.process);
            let settings = match known {
                Some(known) => shown(known.settings, written, &ready.connack),
                None => started_with(written, ours, &ready.connack),
            };
            state.effective = Some(Effective { process: ready.process, settings });
        })
    }

    /// Writes and asks, up to the CONNACK; nothing is undone here.
    fn advance(&mut self, intent: &Intent) -> Result<Ready, Failure> {
        self.put(intent.interim.or(intent.to)).map_err(Failure::Write)?;
        let ready = self.ask(intent.how, intent.before).map_err(Failure::Broker)?;
        read_back(intent, &ready.connack).map_err(Failure::Broker)?;
        if intent.interim.is_some() {
            // The broker has the site's values now; the lines go, and it need not be asked again.
            self.put(intent.to).map_err(Failure::AfterBroker)?;
        }
        Ok(ready)
    }

    /// Replaces the drop-in.
    fn put(&self, settings: Option<Settings>) -> Result<(), FileError> {
        let text = settings.map(|settings| render::render(&settings));
        let bytes = text.as_ref().map(|text| text.as_bytes());
        fs::replace(&*self.files, &self.paths.drop_in, bytes, MODE_CONF)
    }

    /// Reloads or restarts the broker and waits until it is ready.
    fn ask(&mut self, how: How, before: ProcessId) -> Result<Ready, ApplyError> {
        let not = match how {
            How::Reload => {
                self.broker.reload(before)?;
                None
            }
            How::Restart if self.broker.process().is_err() => return self.ask_restart(before),
            How::Restart => {
                self.restart()?;
                Some(before)
            }
        };
        let late = |missing| self.late(how, missing);
        let ready = ready::wait(&*self.broker, not, self.ready_timeout).map_err(late)?;
        if how == How::Restart || self.settle.is_zero() {
            return Ok(ready);
        }
        // The first answer may have come before the signal was looked at.
        thread::sleep(self.settle);
        ready::wait(&*self.broker, None, self.ready_timeout).map_err(late)
    }

    /// Asks for a restart. It counts against the budget before it is made, and if it fails.
    fn restart(&mut self) -> Result<(), ControlError> {
        self.restarts_asked += 1;
        if let Err(error) = self.remember(|state| state.note_restart(Clocks::now())) {
            tracing::warn!(%error, "A restart could not be noted.");
        }
        self.broker.restart()
    }

    fn finish(&mut self, intent: &Intent, ready: Ready) {
        let to = intent.to.unwrap_or_default();
        let from = intent.from.unwrap_or_default();
        let known = self.state.effective.filter(|known| known.process == ready.process);
        let settings = match (intent.how, ready.process == intent.before) {
            // Only what is reloadable was taken over; the rest lies dormant in the file.
            (How::Reload, true) => {
                known.map_or(from, |known| known.settings).with_those_of(&to, Apply::Reload)
            }
            _ => to,
        };
        let settings = shown(settings, to, &ready.connack);
        let stored = self.remember(|state| {
            state.note_written(intent.to);
            state.effective = Some(Effective { process: ready.process, settings });
            if state.rolls_back {
                state.undoing = Undoing::default();
            }
            state.end_intent();
        });
        if let Err(error) = stored {
            // The file and the broker are right; the intent on disk makes the next start find that
            // out.
            tracing::warn!(%error, "The change went through but could not be noted.");
        }
    }

    /// Takes a failed change back and completes the error with how that went.
    fn undo(&mut self, intent: &Intent, failure: Failure) -> ApplyError {
        let error = match failure {
            Failure::Write(error) => {
                // Nobody was asked to read it: putting the old file back is all there is to do.
                let again = self.put(intent.from).err();
                if self.is_in_place(intent.from) {
                    self.forget_intent(intent.from);
                    return ApplyError::File(error);
                }
                let again = again.map_or_else(|| "it can't be read".into(), |e| e.to_string());
                return ApplyError::Stuck { error, again };
            }
            Failure::AfterBroker(error) => ApplyError::of_file(error),
            Failure::Broker(error) => error,
        };
        let restored = match self.take_back(intent) {
            Ok(ready) => {
                tracing::warn!(pid = ready.process.pid, %error, "The previous settings are back.");
                Restored::Yes
            }
            Err(again) if again.to_string() == error.to_string() => {
                Restored::No("for the same reason".into())
            }
            Err(again) => Restored::No(again.to_string()),
        };
        error.with_restored(restored)
    }

    /// Puts the drop-in of before back and makes the broker take it over.
    fn take_back(&mut self, intent: &Intent) -> Result<Ready, ApplyError> {
        let running = self.broker.process().unwrap_or(intent.before);
        let back = Intent { before: running, back: true, ..*intent };
        // Where even this can't be stored, the intent on disk still leads to the same end.
        let _ = self.remember(|state| state.intent = Some(back));
        let target = back.interim_back.or(back.from);
        self.put(target).or_else(|error| {
            // Only the last sync failed: whoever reads the file now finds the old settings.
            if self.is_in_place(target) { Ok(()) } else { Err(error) }
        })?;
        let ready = self.ask_back(intent, running)?;
        if back.interim_back.is_some() {
            self.put(back.from)?;
        }
        let settings = intent.from.unwrap_or_default();
        self.remember(|state| {
            state.note_written(intent.from);
            state.effective = Some(Effective { process: ready.process, settings });
            state.end_intent();
        })?;
        Ok(ready)
    }

    /// Makes the broker take the old drop-in over again, as gently as still helps.
    ///
    /// Nobody permitted a restart for what was to be a reload, and a broker that does not answer
    /// may be no more than full or slow. Only where `memory_limit` may have disabled it for good, or
    /// it has ended, it is started again.
    fn ask_back(&mut self, intent: &Intent, running: ProcessId) -> Result<Ready, ApplyError> {
        let gentle = match intent.how {
            How::Reload => self.ask(How::Reload, running),
            // Where the old process never ended, it still runs with the old settings.
            How::Restart if !intent.back && running == intent.before => {
                ready::look(&*self.broker, None).map_err(|missing| self.late(intent.how, missing))
            }
            How::Restart => return self.ask_restart(running),
        };
        let error =
            match gentle.or_else(|error| ready::look(&*self.broker, None).map_err(|_| error)) {
                Ok(ready) => return Ok(ready),
                Err(error) => error,
            };
        let is_gone = || self.broker.process().is_err_and(|error| error.is_gone());
        if intent.how == How::Restart || intent.moves_memory_limit() || is_gone() {
            return self.ask_restart(running);
        }
        Err(error)
    }

    /// As [`Applier::ask`], but a supervisor that starts the broker by itself is as good as our
    /// command.
    fn ask_restart(&mut self, running: ProcessId) -> Result<Ready, ApplyError> {
        let asked = self.restart();
        ready::wait(&*self.broker, Some(running), self.ready_timeout).map_err(|missing| match asked
        {
            Err(error) => error.into(),
            Ok(()) => self.late(How::Restart, missing),
        })
    }

    fn late(&self, how: How, missing: Missing) -> ApplyError {
        let (timeout_s, restored) = (self.ready_timeout.as_secs(), Restored::NotTold);
        ApplyError::NotReady { how, timeout_s, missing, restored }
    }

    fn forget_intent(&mut self, written: Option<Settings>) {
        let stored = self.remember(|state| {
            state.note_written(written);
            state.end_intent();
        });
        if let Err(error) = stored {
            tracing::warn!(%error, "That the change was given up could not be noted.");
        }
    }

    fn is_in_place(&self, settings: Option<Settings>) -> bool {
        let found = self.files.sha256(&self.paths.drop_in);
        found.is_ok_and(|found| found == digest(settings))
    }

    /// The state could not be stored before anything was begun: in memory too, nothing was begun.
    fn not_begun(&mut self, error: FileError) -> ApplyError {
        self.state.end_intent();
        ApplyError::File(error)
    }
}

/// Where in a change it failed.
enum Failure {
    /// Before the broker was asked.
    Write(FileError),
    /// The broker.
    Broker(ApplyError),
    /// After the broker was asked.
    AfterBroker(FileError),
}

impl State {
    fn note_written(&mut self, written: Option<Settings>) {
        self.written = written;
        self.written_sha256 = digest(written);
    }
}

/// The settings of a drop-in that is word for word what this agent writes.
fn adopted(bytes: &[u8]) -> Option<Settings> {
    let settings = render::parse(std::str::from_utf8(bytes).ok()?).ok()?;
    (render::render(&settings).as_bytes() == bytes).then_some(settings)
}

fn digest(settings: Option<Settings>) -> Option<Digest> {
    settings.map(|settings| sha256(render::render(&settings).as_bytes()))
}

fn sha256(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// Wall-clock seconds; 0 on a clock before 1970.
#[must_use]
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod roll_back_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
