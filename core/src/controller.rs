//! Decides when a change is worth making: hold, reload, restart, roll back.
//!
//! Never reads a clock and never touches the broker: [`Controller::step`] takes the time and the
//! inputs and returns a [`Decision`]; the caller carries it out and reports with
//! [`Controller::applied`]. Three settings are kept apart: *written* to the file, *effective* in
//! the running broker, and *wanted* by the policy.

mod health;
mod load;
mod reason;
mod rules;
mod trend;
mod verify;
mod watch;

use crate::envelope::Envelope;
use crate::knobs::{Apply, KNOB_COUNT, Knob, KnobSet};
use crate::settings::{Setting, Settings};
use embassy_time::{Duration, Instant};

pub use health::Health;
use load::Load;
pub use reason::{HoldReason, RollBackReason};
pub use rules::Rules;
use trend::Trend;
pub use watch::Undoing;
use watch::{Growth, Watch};

/// Restarts that are remembered: bounds the budgets that can be configured.
pub const RESTARTS_REMEMBERED_MAX: usize = 64;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What one step weighs.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// What the policy wants, inside the envelope.
    pub wanted: Settings,
    /// The bounds in force: what is written lies inside them.
    pub envelope: Envelope,
    /// How the broker does now.
    pub health: Health,
    /// What the broker stores, by its own count, over the memory that the site permits.
    pub stored_share: Option<f32>,
    /// Whether a restart would lose offline sessions, queued or retained messages; unknown is
    /// true.
    pub state_at_risk: bool,
    /// Whether the site forbids restarts now.
    pub quiet_hours: bool,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Decision {
    /// Nothing.
    Hold(HoldReason),
    /// Write these settings, then reload or restart.
    Change {
        /// The file's new content.
        settings: Settings,
        /// How to make it effective.
        apply: Apply,
    },
    /// Write the last good settings, then reload or restart.
    RollBack {
        /// The file's new content.
        settings: Settings,
        /// How to make it effective.
        apply: Apply,
        /// Why.
        reason: RollBackReason,
    },
}

/// How carrying out a decision ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Outcome {
    /// In force: the broker was ready afterwards.
    Done,
    /// Failed, and the file and the broker are as before.
    Restored,
    /// As [`Outcome::Restored`], and the broker was not asked: no restart is spent.
    NotBegun,
    /// Of a roll-back that failed: the file has its settings, and the broker did not take them over.
    Dormant,
}

/// Keeps what is written and effective, and the history that the rules need.
#[derive(Clone, Debug)]
pub struct Controller {
    rules: Rules,
    written: Settings,
    effective: Settings,
    /// By row; those of reloadable options are not used.
    trends: [Trend; KNOB_COUNT],
    watch: Option<Watch>,
    growth: Growth,
    load: Load,
    /// At the last look.
    stored_share: Option<f32>,
    /// When each restart stops counting: a day after it.
    restarts: heapless::Deque<Instant, RESTARTS_REMEMBERED_MAX>,
    failures: u8,
    wait_until: Option<Instant>,
    is_paused: bool,
    /// Options that a person asked for and that wait for a restart.
    requested: Option<Settings>,
    verified: Option<Verified>,
}

/// What a change that stood its verification did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verified {
    /// How the broker did before it.
    pub before: Health,
    /// How it did in the second half of the verify window.
    pub after: Health,
}

impl Controller {
    /// A controller over a broker that runs with `written` in its drop-in.
    #[must_use]
    pub fn new(rules: Rules, written: Settings) -> Controller {
        Controller {
            rules,
            written,
            effective: written,
            trends: [Trend::NONE; KNOB_COUNT],
            watch: None,
            growth: Growth::default(),
            load: Load::default(),
            stored_share: None,
            restarts: heapless::Deque::new(),
            failures: 0,
            wait_until: None,
            is_paused: false,
            requested: None,
            verified: None,
        }
    }

    /// What stands in the file.
    #[must_use]
    pub const fn written(&self) -> &Settings {
        &self.written
    }

    /// What is in force in the running broker.
    #[must_use]
    pub const fn effective(&self) -> &Settings {
        &self.effective
    }

    /// The settings that, wanted, change nothing.
    #[must_use]
    pub fn standing(&self) -> Settings {
        self.written.with_those_of(&self.effective, Apply::Restart)
    }

    /// Options whose written value waits for a restart.
    #[must_use]
    pub fn dormant(&self) -> KnobSet {
        self.written.differing(&self.effective)
    }

    /// Failures since the last change that held.
    #[must_use]
    pub const fn failures(&self) -> u8 {
        self.failures
    }

    /// Restarts within the hour before `now`.
    #[must_use]
    pub fn restarts_in_hour(&self, now: Instant) -> usize {
        self.restarts.iter().filter(|&&until| now + (DAY - HOUR) < until).count()
    }

    /// Restarts within the 24 hours before `now`.
    #[must_use]
    pub fn restarts_in_day(&self, now: Instant) -> usize {
        self.restarts.iter().filter(|&&until| now < until).count()
    }

    /// What the last change that stood its verification did; told once.
    pub fn take_verified(&mut self) -> Option<Verified> {
        self.verified.take()
    }

    /// Asks for a restart with the options that `settings` states, as soon as the site's budget,
    /// quiet hours and state permit it; no dwell, no dead band. Options that it leaves out stay.
    pub fn request(&mut self, settings: Settings) {
        self.requested = Some(settings);
    }

    /// What waits for a restart that a person asked for.
    #[must_use]
    pub const fn requested(&self) -> Option<&Settings> {
        self.requested.as_ref()
    }

    /// Forgets what a person asked for.
    pub fn drop_request(&mut self) {
        self.requested = None;
    }

    /// Whether a change has yet to stand its verification.
    #[must_use]
    pub const fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// How the change took effect that has yet to stand its verification.
    #[must_use]
    pub fn watched(&self) -> Option<Apply> {
        self.watch.map(|watch| watch.apply)
    }

    /// What that change would be taken back to, and how the broker did before it.
    #[must_use]
    pub fn before_watched(&self) -> Option<(Settings, Health)> {
        self.watch.map(|watch| (watch.last_good, watch.before))
    }

    /// Decides. Call once per decision interval, and carry the decision out before the next call.
    ///
    /// `now` must not run backwards; where it does, windows last longer, never shorter.
    pub fn step(&mut self, now: Instant, inputs: &Inputs) -> Decision {
        if self.is_paused {
            return Decision::Hold(HoldReason::Paused);
        }
        let has_jumped = self.observe_load(now, inputs.health.received_per_s);
        self.observe_wanted(now, inputs);
        self.growth.observe(now, inputs.health.memory_share);
        let verified = self.verify(now, inputs);
        self.stored_share = inputs.stored_share;
        if let Some(decision) = verified {
            return decision;
        }
        if !inputs.health.is_serving {
            return Decision::Hold(HoldReason::NotServing);
        }
        if self.failures >= self.rules.failures_max {
            return Decision::Hold(HoldReason::Failed);
        }
        if self.wait_until.is_some_and(|until| now < until) {
            return Decision::Hold(HoldReason::BackingOff);
        }
        self.drop_idle_request(inputs);
        let reason = match self.requested_part(now, inputs) {
            Some(Err(reason)) => Err(reason),
            Some(Ok(settings)) => Ok(settings),
            None => self.restart_part(now, inputs),
        };
        let reason = match reason {
            Ok(settings) => return Decision::Change { settings, apply: Apply::Restart },
            Err(reason) => reason,
        };
        match self.reload_part(inputs).filter(|_| self.watch.is_none()) {
            // Figures of two loads at once are no measure of what a change does.
            Some(_) if has_jumped => Decision::Hold(HoldReason::Settling),
            Some(settings) => Decision::Change { settings, apply: Apply::Reload },
            None => Decision::Hold(reason),
        }
    }

    /// Reports how the last decision ended. `health` is what was seen before it was carried out.
    pub fn applied(&mut self, now: Instant, decision: &Decision, outcome: Outcome, health: Health) {
        let (settings, apply, is_roll_back) = match *decision {
            Decision::Hold(_) => return,
            Decision::Change { settings, apply } => (settings, apply, false),
            Decision::RollBack { settings, apply, .. } => (settings, apply, true),
        };
        if apply == Apply::Restart {
            if outcome != Outcome::NotBegun {
                self.note_restart(now + DAY);
            }
            // Part of it, or not worth a second try: a person learns how it ended.
            self.requested = None;
        }
        if apply == Apply::Restart || outcome != Outcome::Done {
            self.trends = [Trend::NONE; KNOB_COUNT];
        }
        let is_unladen = self.unloads(decision)
            || self.watch.is_some_and(|watch| watch.is_unladen && apply == Apply::Reload);
        if outcome != Outcome::Done {
            if outcome == Outcome::Dormant {
                self.written = settings;
            }
            if let Some(watch) = &mut self.watch {
                watch.is_unladen = is_unladen;
            }
            if let (Decision::RollBack { reason, .. }, Some(watch)) = (decision, &mut self.watch) {
                watch.blame = Some(*reason);
                watch.undoing.failures = watch.undoing.failures.saturating_add(1);
                watch.undoing.is_in_file |= outcome == Outcome::Dormant;
            }
            self.fail(now);
            return;
        }
        // Where a change follows one that has not stood its verification yet, what was good before
        // the first of them is what to fall back to, and a restart's clients are waited for.
        let (last_good, health) = self.before_watched().unwrap_or((self.written, health));
        let growth = self.watch.map(|watch| watch.growth()).filter(Growth::is_known);
        let stored_share = self.watch.map_or(self.stored_share, |watch| watch.stored_share);
        let is_restart = apply == Apply::Restart || self.watched() == Some(Apply::Restart);
        let watched = if is_restart { Apply::Restart } else { Apply::Reload };
        self.written = settings;
        self.effective = match apply {
            Apply::Restart => settings,
            Apply::Reload => self.effective.with_those_of(&settings, Apply::Reload),
        };
        self.watch = if is_roll_back {
            self.fail(now);
            None
        } else {
            Some(
                Watch::new(now, watched, health, last_good)
                    .with_growth(growth.unwrap_or(self.growth))
                    .with_stored(stored_share)
                    .unladen(is_unladen),
            )
        };
    }

    /// Counts one more restart than decisions asked for: a failed one takes another to undo it.
    pub fn count_restart(&mut self, now: Instant) {
        self.note_restart(now + DAY);
    }

    /// Takes up the verification of a change that an earlier run of the agent did not see to its
    /// end. `before`: how the broker did before the change; figures that it lacks are not judged.
    pub fn watch_again(&mut self, now: Instant, last_good: Settings, before: Health) {
        let apply = self.apply_of(&last_good);
        self.watch = Some(Watch::new(now, apply, before, last_good));
    }

    /// What became of undoing the watched change, where that failed.
    #[must_use]
    pub fn undoing(&self) -> Undoing {
        self.watch.map_or_else(Undoing::default, |watch| watch.undoing)
    }

    /// Takes up, after [`Controller::watch_again`], that undoing the change has failed before.
    pub fn undo_again(&mut self, undoing: Undoing) {
        if let Some(watch) = &mut self.watch {
            watch.undoing = undoing;
        }
    }

    /// The broker was restarted by someone else, or ended by itself: what was written is in force.
    pub fn broker_restarted(&mut self) {
        self.effective = self.written;
        if self.undoing().is_in_file {
            self.watch = None;
        }
        if let Some(watch) = &mut self.watch {
            watch.crashes = watch.crashes.saturating_add(1);
        }
    }

    /// The broker ended at the reload that was made last, and was started again: all that is written is in
    /// force, and its clients have to come back.
    pub fn restarted_at_reload(&mut self) {
        self.effective = self.written;
        if let Some(watch) = &mut self.watch {
            watch.apply = Apply::Restart;
        }
    }

    /// The broker was found to hold other values than thought (read back, or a drop-in by hand).
    pub fn found(&mut self, written: Settings, effective: Settings) {
        self.written = written;
        self.effective = effective;
        self.trends = [Trend::NONE; KNOB_COUNT];
    }

    /// Holds until [`Controller::resume`].
    pub fn pause(&mut self) {
        self.is_paused = true;
    }

    /// Starts again after a pause or too many failures. A verification that the pause cut short
    /// begins anew: what was seen before it may be days old.
    pub fn resume(&mut self, now: Instant) {
        self.is_paused = false;
        self.failures = 0;
        self.wait_until = None;
        self.trends = [Trend::NONE; KNOB_COUNT];
        if let Some(watch) = self.watch {
            let before = Health { is_serving: true, ..Health::default() };
            self.watch_again(now, watch.last_good, before);
        }
    }

    /// Takes over what an earlier run of the agent did: restarts by age, and failures.
    pub fn recall(&mut self, now: Instant, restart_ages: &[Duration], failures: u8) {
        for &age in restart_ages.iter().rev().take(RESTARTS_REMEMBERED_MAX).rev() {
            if let Some(left) = DAY.checked_sub(age) {
                self.note_restart(now + left);
            }
        }
        self.failures = failures;
        if failures > 0 {
            self.wait_until = Some(now + self.back_off());
        }
    }

    fn note_restart(&mut self, until: Instant) {
        if self.restarts.is_full() {
            self.restarts.pop_front();
        }
        // Room was made above.
        let _ = self.restarts.push_back(until);
    }

    fn fail(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.wait_until = Some(now + self.back_off());
    }

    fn back_off(&self) -> Duration {
        let doublings = u32::from(self.failures.saturating_sub(1)).min(8);
        self.rules.back_off * (1 << doublings)
    }

    /// How `settings` become effective.
    fn apply_of(&self, settings: &Settings) -> Apply {
        let differing = settings.differing(&self.effective);
        let is_restart = |knob: Knob| knob.spec().apply == Apply::Restart;
        if differing.iter().any(is_restart) { Apply::Restart } else { Apply::Reload }
    }

    /// Whether a steady load has just become another one: what was wanted before says nothing of it.
    fn observe_load(&mut self, now: Instant, received_per_s: Option<f32>) -> bool {
        if self.watch.is_some() {
            self.load.skip(received_per_s);
            return false;
        }
        let has_jumped = self.load.observe(now, received_per_s, &self.rules);
        if has_jumped {
            self.trends = [Trend::NONE; KNOB_COUNT];
        }
        has_jumped
    }

    /// Follows where each restart-only option is wanted.
    fn observe_wanted(&mut self, now: Instant, inputs: &Inputs) {
        let site = &inputs.envelope.site;
        let (wanted, effective) = (inputs.wanted.encode(site), self.effective.encode(site));
        let moved = self.moved(&self.effective, inputs, Apply::Restart);
        for (index, knob) in Knob::ALL.into_iter().enumerate() {
            let side = i32::from(wanted[index]) - i32::from(effective[index]);
            let side = if moved.contains(knob) { side.signum() } else { 0 };
            self.trends[index].observe(now, side, wanted[index], self.rules.alike_steps);
        }
    }

    /// Options of `apply` that are wanted beyond the dead band around `from`.
    fn moved(&self, from: &Settings, inputs: &Inputs, apply: Apply) -> KnobSet {
        let site = &inputs.envelope.site;
        let (a, b) = (from.encode(site), inputs.wanted.encode(site));
        let moved =
            |&knob: &Knob| a[knob as usize].abs_diff(b[knob as usize]) > self.rules.dead_band_steps;
        from.differing(&inputs.wanted)
            .iter()
            .filter(|&knob| knob.spec().apply == apply)
            .filter(moved)
            .fold(KnobSet::EMPTY, KnobSet::with)
    }

    /// The file with the reloadable options as wanted, where one of them matters.
    fn reload_part(&self, inputs: &Inputs) -> Option<Settings> {
        if !self.rules.can_reload {
            return None;
        }
        let moved = self.moved(&self.written, inputs, Apply::Reload);
        let (given_up, unstated) = (self.given_up(inputs), self.unstated(inputs));
        let disowned = self.disowned(inputs);
        if [moved, given_up, unstated, disowned].into_iter().all(KnobSet::is_empty) {
            return None;
        }
        let mut settings = self.written.with_those_of(&inputs.wanted, Apply::Reload);
        for knob in unstated.iter() {
            settings = settings.with_that_of(knob, &self.effective);
        }
        settings = self.for_reload(settings, &inputs.envelope);
        for knob in given_up.iter() {
            // A value that the table cannot express is left to the main file's own line.
            let site = knob.spec().value(inputs.envelope.site.get(knob));
            settings = settings.with(knob, site.map_or(Setting::Unwritten, Setting::Value));
        }
        if !disowned.is_empty() {
            settings = Self::without(settings, disowned, &inputs.envelope);
        }
        (settings != self.written).then_some(settings)
    }

    /// `settings` without the lines that are no longer ours.
    fn without(settings: Settings, disowned: KnobSet, envelope: &Envelope) -> Settings {
        let gone = |settings: Settings, knob| settings.with(knob, Setting::Unwritten);
        let settings = disowned.iter().fold(settings, gone);
        // A queue and a window belong together, also where one of them is the site's now.
        let confined = envelope.confine(settings);
        let settings = settings.with_that_of(Knob::InflightMessagesMax, &confined);
        settings.with_that_of(Knob::QueuedMessagesMax, &confined)
    }

    /// `settings` inside the envelope, as a reload may write them. What only a restart takes over, and
    /// is in force as it stands, stays until one is made; persistence stays as the broker runs with
    /// it, for a reload would take it over as well, with the wrong database.
    fn for_reload(&self, settings: Settings, envelope: &Envelope) -> Settings {
        let mut settings = envelope.confine(settings);
        for knob in Knob::ALL.into_iter().filter(|knob| knob.spec().apply == Apply::Restart) {
            let in_force = self.effective.get(knob);
            if knob == Knob::Persistence || self.written.get(knob) == in_force {
                settings = settings.with(knob, in_force);
            }
        }
        settings
    }

    /// Restart-only options that are in force as they are wanted, though the file says otherwise: it
    /// only has to say so, or the next restart would undo them. Persistence is left out, because a
    /// reload would take it over.
    fn unstated(&self, inputs: &Inputs) -> KnobSet {
        self.dormant()
            .iter()
            .filter(|&knob| inputs.envelope.opted_in.contains(knob))
            .filter(|&knob| knob.spec().apply == Apply::Restart && knob != Knob::Persistence)
            .filter(|&knob| self.trends[knob as usize].side == 0)
            .filter(|&knob| self.effective.get(knob) != Setting::Unwritten)
            .fold(KnobSet::EMPTY, KnobSet::with)
    }

    /// Reloadable options that we wrote and no longer want: a deleted line does not undo them all
    /// (`memory_limit` keeps its last value), so the site's value is written once.
    fn given_up(&self, inputs: &Inputs) -> KnobSet {
        Knob::ALL
            .into_iter()
            .filter(|knob| knob.spec().apply == Apply::Reload)
            .filter(|&knob| inputs.envelope.opted_in.contains(knob))
            .filter(|&knob| inputs.wanted.get(knob) == Setting::Unwritten)
            .filter(|&knob| {
                let ours = self.written.get(knob).value();
                ours.is_some_and(|value| value != inputs.envelope.site.get(knob))
            })
            .fold(KnobSet::EMPTY, KnobSet::with)
    }

    /// Options of ours that are no longer ours to set: locked since, or set by the administrator in
    /// another file. Our line would be read after theirs for ever, so it goes. What only a restart takes
    /// over stays in force until one is made, by whomever.
    ///
    /// Persistence is left out: without its line a reload would take the site's value over, with the
    /// wrong database.
    fn disowned(&self, inputs: &Inputs) -> KnobSet {
        self.written
            .written()
            .iter()
            .filter(|&knob| knob != Knob::Persistence)
            .filter(|&knob| !inputs.envelope.opted_in.contains(knob))
            .fold(KnobSet::EMPTY, KnobSet::with)
    }

    fn restart_part(&self, now: Instant, inputs: &Inputs) -> Result<Settings, HoldReason> {
        let mut moving = self.trends.iter().filter(|trend| trend.side != 0).peekable();
        if moving.peek().is_none() {
            return Err(HoldReason::Satisfied);
        }
        if !moving.any(|trend| now.saturating_duration_since(trend.since) >= self.rules.dwell) {
            return Err(HoldReason::Settling);
        }
        let gain_max = self.gain_max(&inputs.health);
        if gain_max.is_some_and(|gain| gain < self.rules.restart_gain_min) {
            return Err(HoldReason::NotWorthIt);
        }
        self.restart_permit(now, inputs)?;
        Ok(self.with_trends(now, inputs))
    }

    /// The most that a restart may gain in score, 0 to 1; its outage costs some of it. `None` where that is
    /// not known: on settings of nobody's choice, where a window too small for a link and Nagle's delay
    /// are seen in no figure, and the first restart gains most. What settings of ours still lose is seen.
    ///
    /// (In the twin, 4,000 sites: a first restart gains 0.23 in the next 45 s; a later one 0.15, but 0.006
    /// where this is below 0.01, and 39 % of those cost more than they gain.)
    #[must_use]
    pub fn gain_max(&self, health: &Health) -> Option<f32> {
        let is_ours = |knob: Knob| {
            knob.spec().apply == Apply::Restart && self.effective.get(knob) != Setting::Unwritten
        };
        if Knob::ALL.into_iter().any(is_ours) { health.gain_max(&self.rules) } else { None }
    }

    /// What keeps from a restart, whoever wants it.
    fn restart_permit(&self, now: Instant, inputs: &Inputs) -> Result<(), HoldReason> {
        if inputs.quiet_hours {
            return Err(HoldReason::QuietHours);
        }
        if self.restarts_in_hour(now) >= usize::from(self.rules.restarts_per_hour_max) {
            return Err(HoldReason::RestartBudget);
        }
        if self.restarts_in_day(now) >= usize::from(self.rules.restarts_per_day_max) {
            return Err(HoldReason::DailyRestartBudget);
        }
        if inputs.state_at_risk && !self.rules.allow_state_loss {
            return Err(HoldReason::StateAtRisk);
        }
        Ok(())
    }

    /// Forgets what a person asked for where a restart would change nothing of it.
    fn drop_idle_request(&mut self, inputs: &Inputs) {
        let Some(requested) = &self.requested else { return };
        let settings = inputs.envelope.confine(self.written.with_stated(requested));
        let is_waiting = |knob: Knob| {
            let value = |settings: &Settings| settings.effective(knob, &inputs.envelope.site);
            let is_new = value(&settings) != value(&self.effective);
            is_new
                && settings.get(knob) != Setting::Unwritten
                && knob.spec().apply == Apply::Restart
        };
        if !requested.written().iter().any(is_waiting) {
            self.requested = None;
        }
    }

    /// The file with what a person asked for, where that waits; or what it waits for.
    fn requested_part(
        &self,
        now: Instant,
        inputs: &Inputs,
    ) -> Option<Result<Settings, HoldReason>> {
        let requested = self.requested.as_ref()?;
        let settings = self.written.with_stated(requested);
        let permit = self.restart_permit(now, inputs);
        Some(permit.map(|()| inputs.envelope.confine(settings)))
    }

    /// The file with every moving option at the mean of where it was wanted, if it was for at least
    /// half the dwell: those that are late spare a restart of their own. All others keep their
    /// values.
    fn with_trends(&self, now: Instant, inputs: &Inputs) -> Settings {
        let mut settings = self.reload_part(inputs).unwrap_or(self.written);
        let wanted = inputs.wanted.encode(&inputs.envelope.site);
        for (index, knob) in Knob::ALL.into_iter().enumerate() {
            let trend = &self.trends[index];
            let is_late = now.saturating_duration_since(trend.since) < self.rules.dwell / 2;
            if trend.side == 0 || is_late {
                continue;
            }
            let setting = match inputs.wanted.get(knob) {
                Setting::Value(_) if trend.mean() != wanted[index] => {
                    knob.spec().decode(trend.mean()).map_or(Setting::Unwritten, Setting::Value)
                }
                // No line, or a steady value, which may lie between the grid's points.
                setting => setting,
            };
            settings = settings.with(knob, setting);
        }
        inputs.envelope.confine(settings)
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
