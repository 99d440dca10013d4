//! What becomes of the last change: it stands its verification, or it is undone.

use super::load::JUMP_FACTOR;
use super::watch::Watch;
use super::{Controller, Decision, Health, HoldReason, Inputs, RollBackReason, Verified};
use crate::Settings;
use crate::knobs::{Apply, Knob};
use embassy_time::Instant;

/// What is stored, and of which so much was stored before a restart, was carried over by it, and is no
/// fault of the settings.
const LADEN_SHARE_MIN: f32 = 0.5;

impl Controller {
    /// Watches the last change; `None` where it leaves room for a next one. A reload disconnects
    /// nobody, so it does not keep a restart waiting, and is judged together with it.
    pub(super) fn verify(&mut self, now: Instant, inputs: &Inputs) -> Option<Decision> {
        let watch = self.watch.as_mut()?;
        let disaster = watch.disaster(now, &inputs.health, &self.rules);
        let is_blamed = watch.undoing.failures > 0;
        let blame = is_blamed.then_some(watch.blame.unwrap_or(RollBackReason::Unended));
        if let Some(reason) = disaster.or(blame) {
            let watch = *watch;
            return Some(self.roll_back(now, inputs, &watch, reason));
        }
        let elapsed = now.saturating_duration_since(watch.since);
        if self.is_laden(now, inputs) {
            return Some(Decision::Change { settings: self.written, apply: Apply::Restart });
        }
        let watch = self.watch.as_mut()?;
        let seen = watch.seen(elapsed < self.rules.verify_window / 2, &inputs.health);
        let watch = *watch;
        let is_unseen = seen.is_serving && !seen.shows_all_of(&watch.before);
        let window = if is_unseen { self.rules.unseen_max } else { self.rules.verify_window };
        if elapsed < window.max(self.rules.verify_window) {
            let is_settled = watch.apply == Apply::Reload && seen.is_serving && !is_unseen;
            return (!is_settled).then_some(Decision::Hold(HoldReason::Verifying));
        }
        let comes_soon = |part| matches!(part, Ok(_) | Err(HoldReason::Settling));
        let is_late = elapsed >= self.rules.unseen_max;
        if watch.apply == Apply::Reload && !is_late && comes_soon(self.restart_part(now, inputs)) {
            return None;
        }
        let worse = self.worse(now, &watch, &seen).or(is_unseen.then_some(RollBackReason::Unseen));
        let Some(reason) = worse else {
            self.watch = None;
            self.failures = 0;
            self.verified = Some(Verified { before: watch.before, after: seen });
            return None;
        };
        Some(self.roll_back(now, inputs, &watch, reason))
    }

    /// Whether `decision` restarts with the settings that are in force: for what the restart before it
    /// carried over.
    #[must_use]
    pub fn unloads(&self, decision: &Decision) -> bool {
        let Decision::Change { settings, apply: Apply::Restart } = decision else { return false };
        self.watched() == Some(Apply::Restart)
            && *settings == self.written
            && *settings == self.effective
    }

    /// Whether the broker that was just restarted is above its memory limit by what it stores, and stored
    /// as much before: a save keeps what waits for clean sessions, the next start reads it,
    /// nobody gets it, and the start after that is free of it (measured: `tests/semantics.rs`).
    fn is_laden(&self, now: Instant, inputs: &Inputs) -> bool {
        let Some(watch) = self.watch.filter(|watch| watch.apply == Apply::Restart) else {
            return false;
        };
        let persists = self.effective.effective(Knob::Persistence, &inputs.envelope.site) != 0;
        let health = &inputs.health;
        let (Some(share), Some(stored), Some(stored_before)) =
            (health.memory_share, inputs.stored_share, watch.stored_share)
        else {
            return false;
        };
        persists
            && !watch.is_unladen
            && health.is_serving
            && self.written == self.effective
            && inputs.envelope.confine(self.written) == self.written
            && self.requested.is_none()
            && share > 1.0
            && share - stored <= 1.0
            && stored_before > stored * LADEN_SHARE_MIN
            && self.failures < self.rules.failures_max
            && self.wait_until.is_none_or(|until| now >= until)
            && self.restart_permit(now, inputs).is_ok()
    }

    /// Undoes the watched change, as soon as that costs no more than it saves.
    fn roll_back(
        &self,
        now: Instant,
        inputs: &Inputs,
        watch: &Watch,
        reason: RollBackReason,
    ) -> Decision {
        let last_good = watch.last_good;
        let apply = self.apply_of_undoing(watch, &inputs.envelope.confine(last_good));
        if let Err(reason) = self.roll_back_permit(now, inputs, watch, apply, reason) {
            return Decision::Hold(reason);
        }
        // The heap may have grown since: a limit that was good may lie below it by now.
        let settings = match apply {
            Apply::Restart => inputs.envelope.confine(last_good),
            Apply::Reload => self.for_reload(last_good, &inputs.envelope),
        };
        Decision::RollBack { settings, apply, reason }
    }

    /// How a change is undone, to `target`. What a reload did, a reload undoes, though other options of the
    /// file have lain dormant since before.
    fn apply_of_undoing(&self, watch: &Watch, target: &Settings) -> Apply {
        let differing = match watch.apply {
            Apply::Reload => target.differing(&self.written),
            Apply::Restart => target.differing(&self.effective),
        };
        let is_restart = |knob: Knob| knob.spec().apply == Apply::Restart;
        if differing.iter().any(is_restart) { Apply::Restart } else { Apply::Reload }
    }

    /// What keeps from undoing a change.
    ///
    /// The first try is for safety: budget and earlier failures do not hold it, though it counts in the
    /// budget. Quiet hours do, while the broker serves: in them there are no restarts. After one that
    /// failed each next one costs what any change does, and a person is called after as many as for any
    /// change.
    fn roll_back_permit(
        &self,
        now: Instant,
        inputs: &Inputs,
        watch: &Watch,
        apply: Apply,
        reason: RollBackReason,
    ) -> Result<(), HoldReason> {
        let is_again = watch.undoing.failures > 0;
        if is_again && self.failures >= self.rules.failures_max {
            return Err(HoldReason::Failed);
        }
        if is_again && self.wait_until.is_some_and(|until| now < until) {
            return Err(HoldReason::BackingOff);
        }
        if apply == Apply::Reload {
            return Ok(());
        }
        if is_again {
            return if inputs.health.is_serving {
                self.restart_permit(now, inputs)
            } else {
                Ok(())
            };
        }
        let is_down = matches!(reason, RollBackReason::NotServing | RollBackReason::Crashed);
        if is_down {
            return Ok(());
        }
        if inputs.quiet_hours {
            return Err(HoldReason::QuietHours);
        }
        if inputs.state_at_risk && !self.rules.allow_state_loss {
            return Err(HoldReason::StateAtRisk);
        }
        Ok(())
    }

    fn worse(&self, at: Instant, watch: &Watch, now: &Health) -> Option<RollBackReason> {
        let (rules, before) = (&self.rules, &watch.before);
        // What grew before the change would have grown without it, and grows on when it is undone.
        let would_be = watch.growth().expected_max(at).unwrap_or(0.0);
        if !now.is_serving {
            return before.is_serving.then_some(RollBackReason::NotServing);
        }
        let is_worse = |a: Option<f32>, b: Option<f32>, worse: &dyn Fn(f32, f32) -> bool| {
            a.zip(b).is_some_and(|(before, now)| worse(before, now))
        };
        if is_worse(before.clients, now.clients, &|b, n| n < b * rules.clients_back_share_min - 1.0)
            && watch.apply == Apply::Restart
        {
            Some(RollBackReason::ClientsLost)
        } else if is_worse(before.memory_share, now.memory_share, &|b, n| {
            n > 1.0 && b <= 1.0 && n > would_be
        }) {
            Some(RollBackReason::Memory)
        } else if is_worse(before.received_per_s, now.received_per_s, &|b, n| n > b * JUMP_FACTOR) {
            // Drops and latency may have come with the load: no evidence against the settings.
            None
        } else if is_worse(before.dropped_share, now.dropped_share, &|b, n| {
            n > b + rules.worse_dropped_share
        }) {
            Some(RollBackReason::Dropped)
        } else if is_worse(before.probe_latency_us, now.probe_latency_us, &|b, n| {
            n > rules.worse_latency_us_min && n > b * rules.worse_latency_factor
        }) {
            Some(RollBackReason::Latency)
        } else {
            None
        }
    }
}
