//! One decision, from the sample to the verified change.

use std::fmt;

use brokertuner_core::controller::{Decision, Health, HoldReason, Inputs, Outcome};
use brokertuner_core::features::View;
use brokertuner_core::knobs::Apply;
use brokertuner_core::sample::{Metrics, Sample, Sys};
use brokertuner_core::trace::Record;
use brokertuner_core::{Duration, Envelope, Instant, Knob, Settings};

use super::Agent;
use super::knobs::ASKED_FOR;
use crate::apply::{Applied, ApplyError, Restored, unix_s};
use crate::clock;
use crate::journal::{Entry, Event, Shown};
use crate::orders::Restraint;
use crate::pid::ProcessId;
use crate::plan::Plan;
use crate::ready;
use crate::sampler::Link;
use crate::site::SiteError;
use crate::state::{How, STEP_S_MIN, State};

/// Messages in the store that are the agent's own: a probe on its way.
const OWN_STORED_MAX: u64 = 1;

/// A broker that sent nothing for so long is asked whether it serves: two probes of each kind.
const HEARD_MAX: Duration = Duration::from_secs(5);

/// How often the broker's other files are looked at, besides before every change.
const LOOK_AROUND_INTERVAL: Duration = Duration::from_secs(60);

/// Why a broker is restarted with the settings that it has.
const UNLOADING: &str = "the restart carried over what had waited for clean sessions, and the memory is above its limit with it: a second one is free of that";

/// Whether a decision is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Act,
    /// It is only told.
    Look,
}

/// What a tick came to.
#[derive(Debug)]
pub enum Verdict {
    /// No decision, and what stands in its way: no broker, no `$SYS`, another file.
    Blind(String),
    /// The drop-in is someone else's.
    HandsOff(String),
    /// Something keeps the agent from changing anything.
    Restrained(Restraint),
    /// No change, and why.
    Hold(HoldReason),
    /// No change for a reason that the controller does not know: the policy does not trust its own
    /// answer, or there is no option that may be changed.
    Barred(String),
    /// This would be changed ([`Mode::Look`]).
    Planned(Plan),
    /// This was changed.
    Changed(Plan, Applied),
    /// This was tried and did not go through.
    Failed(Plan, ApplyError),
}

impl Verdict {
    /// What it is called in a report.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Blind(_) => "blind",
            Self::HandsOff(_) => "hands_off",
            Self::Restrained(restraint) => restraint.kind(),
            Self::Hold(_) | Self::Barred(_) => "hold",
            Self::Planned(_) => "planned",
            Self::Changed(plan, _) if plan.is_roll_back => "rolled_back",
            Self::Changed(..) => "changed",
            Self::Failed(..) => "failed",
        }
    }

    /// The change, where there is one.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        match self {
            Self::Planned(plan) | Self::Changed(plan, _) | Self::Failed(plan, _) => Some(plan),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    /// The reason, or what a change answers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blind(why) | Self::HandsOff(why) | Self::Barred(why) => f.write_str(why),
            Self::Restrained(restraint) => restraint.fmt(f),
            Self::Hold(reason) => reason.fmt(f),
            Self::Planned(plan) | Self::Changed(plan, _) => f.write_str(&plan.why),
            Self::Failed(_, error) => error.fmt(f),
        }
    }
}

/// One decision and what it rests on.
#[derive(Debug)]
pub struct Tick {
    /// When.
    pub at: Instant,
    /// What was measured.
    pub metrics: Metrics,
    /// How the broker does.
    pub health: Health,
    /// All that it rests on, as a trace keeps it: before the decision.
    pub record: Record,
    /// What the policy wants; `None` where it was not asked.
    pub wanted: Option<Settings>,
    /// What came of it.
    pub verdict: Verdict,
}

impl Agent {
    /// Samples, decides and, in [`Mode::Act`], applies. Call once per decision interval.
    ///
    /// Takes some milliseconds, and for a change at most what [`crate::apply::Applier::apply`]
    /// takes.
    pub fn tick(&mut self, mode: Mode) -> Tick {
        match mode {
            Mode::Look => self.follow(),
            Mode::Act => {
                if let Some(news) = self.policy.refresh() {
                    self.note_model(news);
                }
                self.end_half_done();
            }
        }
        let sample = self.sampler.sample();
        self.metrics = self.meter.measure(&sample);
        self.sample = Some(sample);
        self.notice_process(mode);
        self.look_around();
        if mode == Mode::Act {
            self.look_at_clock();
        }
        let health = self.health();
        let record = self.record(sample, health);
        let verdict = self.decide(mode, &record, health);
        Tick { at: sample.at, metrics: self.metrics, health, record, wanted: self.wanted, verdict }
    }

    fn decide(&mut self, mode: Mode, record: &Record, health: Health) -> Verdict {
        let sample = &record.sample;
        // What was left half done is not someone else's edit.
        let is_half_done = self.applier.state().intent.is_some();
        match if is_half_done { Ok(()) } else { self.applier.check_ours() } {
            Ok(()) => {}
            Err(error @ (ApplyError::EditedByHand { .. } | ApplyError::Removed { .. })) => {
                return Verdict::HandsOff(self.take_hands_off(&error));
            }
            // It may be readable again the next time.
            Err(error) => return Verdict::Blind(error.to_string()),
        }
        if mode == Mode::Act
            && let Some(verdict) = self.restrained(sample)
        {
            return verdict;
        }
        let missing = self.blindness();
        let was_watching = self.controller.is_watching();
        if let Some(missing) = &missing
            && !was_watching
        {
            return Verdict::Blind(missing.clone());
        }
        let envelope = self.envelope(sample);
        // After a change, missing figures are judged as well: they may be its effect.
        let asked = if missing.is_none() { Some(self.ask_policy(&envelope)) } else { None };
        let doubt = asked.and(self.policy.doubt());
        let wanted = match (asked, &doubt) {
            (Some(wanted), None) => wanted,
            _ => self.controller.standing(),
        };
        let inputs = Inputs {
            wanted,
            envelope,
            health,
            stored_share: self.metrics.store_bytes.map(|b| self.site.targets.memory_share(b)),
            state_at_risk: self.is_state_at_risk(sample, &self.restart_targets(wanted)),
            quiet_hours: record.quiet_hours,
        };
        let decision = self.controller.step(sample.at, &inputs);
        if mode == Mode::Act && was_watching && !self.controller.is_watching() {
            let verified = self.applier.state().watched.clone();
            self.note_good();
            self.note_verified(&verified);
        }
        if mode == Mode::Act {
            self.note_idle_request();
        }
        match self.plan(&decision) {
            Err(HoldReason::Satisfied) => match doubt.or_else(|| self.site.barred()) {
                Some(why) => Verdict::Barred(why),
                None => Verdict::Hold(HoldReason::Satisfied),
            },
            Err(reason) => Verdict::Hold(reason),
            Ok(plan) if !plan.is_roll_back && self.sampler.hidden().is_some() => {
                Verdict::Barred(self.hidden_process().unwrap_or_default())
            }
            Ok(plan) if mode == Mode::Look => Verdict::Planned(plan),
            Ok(plan) => self.carry_out(plan, &decision, health),
        }
    }

    /// The bounds with what was measured.
    pub(super) fn envelope(&self, sample: &Sample) -> Envelope {
        self.site.envelope.measured(sample, &self.meter)
    }

    /// Ends what was left half done, as soon as that is permitted, and once.
    fn end_half_done(&mut self) {
        if self.applier.state().intent.is_some() && self.restraint().is_none() {
            // A failure is told, and is a restraint from now on.
            let _ = self.recover();
        }
    }

    /// Where nothing may be changed, the policy is asked all the same, for what it would do.
    fn restrained(&mut self, sample: &Sample) -> Option<Verdict> {
        if let Some(restraint) = self.restraint() {
            if self.blindness().is_none() {
                self.ask_policy(&self.envelope(sample));
            }
            self.was_restrained = true;
            return Some(Verdict::Restrained(restraint));
        }
        if std::mem::take(&mut self.was_restrained) {
            // What was seen before it may be days old.
            self.recall();
        }
        None
    }

    /// Notices what someone set in another of the broker's files since.
    fn look_around(&mut self) {
        let now = clock::now();
        if now.saturating_duration_since(self.looked_around) < LOOK_AROUND_INTERVAL {
            return;
        }
        self.looked_around = now;
        if let Err(error) = self.look_elsewhere() {
            // It may be readable again the next time.
            tracing::debug!(%error, "The broker's other files could not be looked at.");
        }
    }

    /// Looks at the broker's other files, and says what is new in them.
    fn look_elsewhere(&mut self) -> Result<(), SiteError> {
        let before = self.site.elsewhere.lines.clone();
        self.site.look_again()?;
        for line in self.site.elsewhere.lines.iter().filter(|line| !before.contains(line)) {
            tracing::warn!(%line, "An option is set elsewhere; edge lets go of it.");
        }
        Ok(())
    }

    /// Says that the clock on the wall was stepped, for it dates what lies in journal and memory. The
    /// loop goes by another one.
    fn look_at_clock(&mut self) {
        let ahead_s = clock::wall_ahead_s();
        if ahead_s.abs_diff(self.wall_ahead_s) <= STEP_S_MIN {
            return;
        }
        self.wall_ahead_s = ahead_s;
        match self.applier.follow_clock() {
            // A machine that slept: the loop's clock stood still, the wall's is right.
            Ok(stepped_s) if stepped_s.unsigned_abs() <= STEP_S_MIN => {}
            Ok(stepped_s) => {
                tracing::warn!(
                    stepped_s,
                    "The clock on the wall was stepped; budgets and waits go on."
                );
            }
            Err(error) => tracing::warn!(%error, "A step of the clock could not be noted."),
        }
    }

    /// Takes over what the agent that is at work has done since.
    fn follow(&mut self) {
        match self.applier.look_again() {
            Ok(false) => {}
            Ok(true) => self.recall(),
            Err(error) => tracing::debug!(%error, "The agent's memory could not be read again."),
        }
    }

    /// Someone changed the drop-in: it is theirs.
    fn take_hands_off(&mut self, error: &ApplyError) -> String {
        self.controller.pause();
        let said = error.to_string();
        if self.hands_off.as_ref() != Some(&said) {
            tracing::warn!(reason = %said, "Hands off.");
            self.note_hands_off(error);
            self.hands_off = Some(said.clone());
        }
        said
    }

    /// A new process has taken over whatever was written.
    fn notice_process(&mut self, mode: Mode) {
        let Some(process) = self.sampler.process() else { return };
        if self.process == Some(process) {
            return;
        }
        let Ok(ready) = ready::look(self.applier.broker(), None) else { return };
        let known = self.applier.state().effective.map(|effective| effective.process);
        self.process = Some(ready.process);
        if known.is_some_and(|known| known != ready.process) {
            tracing::info!(pid = ready.process.pid, "The broker was restarted by someone else.");
            let was_watching = self.controller.is_watching();
            self.controller.broker_restarted();
            if mode == Mode::Act && was_watching && !self.controller.is_watching() {
                tracing::info!("So it runs with the last good settings: the change is undone.");
                self.note_good();
            }
        }
        if mode == Mode::Act
            && let Err(error) = self.applier.observe(ready, self.site.envelope.opted_in)
        {
            tracing::warn!(%error, "What the broker runs with could not be noted.");
        }
        self.notice_unread(ready.process);
    }

    /// Where the broker shows other settings than are thought to be in force, they are not.
    fn notice_unread(&mut self, process: ProcessId) {
        let noted = self.applier.state().effective.filter(|noted| noted.process == process);
        let Some(noted) = noted.filter(|noted| noted.settings != *self.controller.effective())
        else {
            return;
        };
        let knobs = noted.settings.differing(self.controller.written());
        let knobs: Vec<&str> = knobs.iter().map(|knob| knob.spec().key).collect();
        tracing::warn!(
            pid = process.pid,
            not_in_force = knobs.join(", "),
            "The broker was started without the drop-in, or with another."
        );
        self.controller.found(*self.controller.written(), noted.settings);
    }

    fn record(&self, sample: Sample, health: Health) -> Record {
        Record {
            sample,
            written: *self.controller.written(),
            effective: *self.controller.effective(),
            is_serving: health.is_serving,
            state_at_risk: self.is_state_at_risk(&sample, &[*self.controller.written()]),
            quiet_hours: self.site.quiet_hours.contains(unix_s()),
        }
    }

    pub(super) fn health(&self) -> Health {
        // The connection of the sampler outlives a broker that hangs by a keep-alive or two: after a
        // change that is too long. A CONNECT shows in the broker's figures, so not at each tick.
        let is_up =
            self.sampler.link() == Link::Up && (!self.controller.is_watching() || self.is_heard());
        let is_serving = is_up || ready::look(self.applier.broker(), None).is_ok();
        Health::of(&self.metrics, &self.site.targets, is_serving)
    }

    /// Whether the broker sent something just now.
    pub(super) fn is_heard(&self) -> bool {
        self.sampler.link() == Link::Up && self.sampler.has_heard_within(HEARD_MAX)
    }

    /// What is missing to decide on, in words; `None` where there is enough.
    fn blindness(&self) -> Option<String> {
        if let Link::Lost(reason) = self.sampler.link() {
            return Some(reason);
        }
        if let Some(complaint) = self.sampler.sys_status().complaint() {
            return Some(complaint.to_owned());
        }
        if let Some(age) = self.stale_for() {
            return Some(format!(
                "$SYS has stopped: its last update is {} s old, and its figures are not believed; look at sys_interval and at the broker",
                age.as_secs()
            ));
        }
        if self.metrics.publish_sent_per_s.is_none() {
            return Some(
                "waiting for two updates of $SYS (sys_interval and a second, each)".into(),
            );
        }
        None
    }

    /// How old the figures of `$SYS` are, where they are too old.
    fn stale_for(&self) -> Option<Duration> {
        self.sample.as_ref().and_then(|sample| self.meter.stale_for(sample))
    }

    pub(super) fn ask_policy(&mut self, envelope: &Envelope) -> Settings {
        let effective = *self.controller.effective();
        let view = View {
            metrics: &self.metrics,
            effective: &effective,
            site: &self.site.envelope.site,
            targets: &self.site.targets,
        };
        let mut wanted = self.policy.want(&view, envelope);
        if let Some(pinned) = &self.applier.state().pinned {
            wanted = envelope.confine(wanted.with_stated(pinned));
        }
        self.wanted = Some(wanted);
        wanted
    }

    /// Whether a restart would lose sessions or messages; what is not known counts as yes.
    ///
    /// Persistence keeps them where it is on before and in each of `targets`, and where the database
    /// is known, so that the applier can see to a save.
    pub(super) fn is_state_at_risk(&self, sample: &Sample, targets: &[Settings]) -> bool {
        let site = &self.site.envelope.site;
        let is_on = |settings: &Settings| settings.effective(Knob::Persistence, site) != 0;
        let is_kept = is_on(self.controller.effective()) && targets.iter().all(is_on);
        if is_kept && self.site.paths.database.is_some() {
            return false;
        }
        if self.meter.stale_for(sample).is_some() {
            return true;
        }
        let frame = &sample.sys;
        let counts = [Sys::ClientsDisconnected, Sys::StoreMessages, Sys::RetainedMessages];
        let [Some(offline), Some(stored), Some(retained)] = counts.map(|sys| frame.get(sys)) else {
            return true;
        };
        offline > 0
            || stored > retained.saturating_add(OWN_STORED_MAX)
            || retained > self.sampler.sys_retained()
    }

    /// What a restart may be for: what a person asked for, else what is wanted, and the way back.
    fn restart_targets(&self, wanted: Settings) -> [Settings; 2] {
        let asked = self.controller.requested();
        let target = asked.map_or(wanted, |asked| self.controller.written().with_stated(asked));
        let back = self.controller.before_watched().map(|(last_good, _)| last_good);
        [target, back.unwrap_or(target)]
    }

    fn plan(&self, decision: &Decision) -> Result<Plan, HoldReason> {
        let (settings, apply) = match *decision {
            Decision::Hold(reason) => return Err(reason),
            Decision::Change { settings, apply } | Decision::RollBack { settings, apply, .. } => {
                (settings, apply)
            }
        };
        let how = match apply {
            Apply::Reload => How::Reload,
            Apply::Restart => How::Restart,
        };
        let is_roll_back = matches!(decision, Decision::RollBack { .. });
        // Reloads of the policy's go on while a person's request waits for a restart.
        let is_asked_for =
            !is_roll_back && apply == Apply::Restart && self.controller.requested().is_some();
        let why = match decision {
            Decision::RollBack { reason, .. } => reason.to_string(),
            _ if is_asked_for => ASKED_FOR.to_owned(),
            _ if self.controller.unloads(decision) => UNLOADING.to_owned(),
            _ => self.load(),
        };
        let from = *self.controller.written();
        let is_unloading = self.controller.unloads(decision);
        Ok(Plan { from, to: settings, how, why, is_roll_back, is_asked_for, is_unloading })
    }

    /// That every change waits for the broker's process to be known, in words: without it nobody
    /// can tell whether a reload reached it, a restart was one, or memory grew.
    pub(super) fn hidden_process(&self) -> Option<String> {
        let why = self.sampler.hidden()?;
        Some(format!("only $SYS is watched, and nothing is changed: {why}"))
    }

    /// The load that a change answers, in figures.
    fn load(&self) -> String {
        let metrics = &self.metrics;
        let figures = [
            ("clients", metrics.clients_others),
            ("received/s", metrics.publish_received_per_s),
            ("sent/s", metrics.publish_sent_per_s),
            ("dropped/s", metrics.publish_dropped_per_s),
            ("queued", metrics.backlog_messages),
            ("probe us", metrics.probe_latency_us_qos1),
        ];
        let shown =
            figures.iter().filter_map(|(name, value)| Some(format!("{name} {:.0}", (*value)?)));
        format!("the policy's answer to: {}", shown.collect::<Vec<_>>().join(", "))
    }

    pub(super) fn carry_out(&mut self, plan: Plan, decision: &Decision, health: Health) -> Verdict {
        if !plan.is_roll_back
            && let Some(refusal) = self.overridden_since(&plan)
        {
            return Verdict::Blind(refusal);
        }
        let account = self.account_of(&plan, health);
        let inputs: Vec<_> = account.influences.iter().map(ToString::to_string).collect();
        let (before, expected) = (Shown(&health), account.expected.join("; "));
        tracing::info!(id = account.id, what = plan.what(), how = %plan.how, why = %plan.why, inputs = inputs.join(", "), %before, expected, "Changing the broker's settings.");
        let to = (plan.to != Settings::UNWRITTEN || self.applier.state().written.is_some())
            .then_some(plan.to);
        if !plan.is_roll_back && self.controller.before_watched().is_none() {
            self.applier.note_before(health);
        }
        let asked = self.controller.requested().copied();
        let restarts = self.applier.restarts_asked();
        let site = &self.site.envelope.site;
        let applied = if plan.is_roll_back {
            self.applier.roll_back(to, plan.how, site)
        } else {
            self.applier.apply(to, plan.how, site)
        };
        // A broker that went away just then is nobody's failure, and nothing was begun.
        let is_away = matches!(applied, Err(ApplyError::NoProcess(_)));
        let outcome = if is_away {
            Outcome::Restored
        } else {
            let is_begun = plan.how == How::Reload || self.applier.restarts_asked() > restarts;
            self.report_to_controller(&plan, decision, (applied.as_ref(), is_begun), health)
        };
        // The decision counts as one.
        let counted = restarts + u32::from(plan.how == How::Restart);
        for _ in counted..self.applier.restarts_asked() {
            self.controller.count_restart(clock::now());
        }
        if plan.is_roll_back && outcome == Outcome::Done {
            self.note_good();
        }
        self.note_failures();
        self.end_scheduled(&plan);
        let verdict = match applied {
            Ok(applied) => {
                let before = self.process.replace(applied.ready.process);
                self.note_ended_by_reload(&plan, before, &applied);
                let took_ms = u64::try_from(applied.took.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(pid = applied.ready.process.pid, took_ms, "Changed.");
                if let Some(asked) = asked.filter(|_| !plan.is_roll_back)
                    && self.controller.requested().is_none()
                {
                    self.pin(&asked, &plan.to);
                }
                Verdict::Changed(plan, applied)
            }
            Err(error) => {
                tracing::error!(%error, "The change did not go through.");
                if !error.is_restored() && self.applier.state().intent.is_some() {
                    // Neither file nor broker are known to be right: a person must look.
                    self.unended = Some(error.to_string());
                    self.controller.pause();
                }
                Verdict::Failed(plan, error)
            }
        };
        self.conclude(account, &verdict);
        verdict
    }

    /// A broker that ended at a reload, or just then, and was started again has taken over all that is
    /// written, and nobody keeps to the clients' patience: the change is judged as a restart.
    fn note_ended_by_reload(&mut self, plan: &Plan, before: Option<ProcessId>, applied: &Applied) {
        let process = applied.ready.process;
        if plan.how == How::Restart || before.is_none_or(|before| before == process) {
            return;
        }
        tracing::warn!(pid = process.pid, "The broker was restarted during the reload.");
        self.controller.restarted_at_reload();
    }

    /// Tells the controller how a decision ended: a roll-back that failed may still have taken what it
    /// was to undo out of the file, or out of the broker.
    fn report_to_controller(
        &mut self,
        plan: &Plan,
        decision: &Decision,
        (applied, is_begun): (Result<&Applied, &ApplyError>, bool),
        health: Health,
    ) -> Outcome {
        let written = self.applier.state().written.unwrap_or_default();
        let restored = applied.err().and_then(ApplyError::restored);
        let outcome = match (applied, restored) {
            (Ok(_), _) | (_, Some(Restored::Bare)) => Outcome::Done,
            (_, Some(restored)) if plan.is_roll_back && *restored != Restored::Kept => {
                if *restored == Restored::Yes { Outcome::Restored } else { Outcome::Dormant }
            }
            _ if is_begun => Outcome::Restored,
            _ => Outcome::NotBegun,
        };
        let mut ended = *decision;
        if let Decision::RollBack { settings, .. } = &mut ended {
            *settings = written;
        }
        self.controller.applied(clock::now(), &ended, outcome, health);
        outcome
    }

    /// What was asked for is done, was tried, or gave way to `plan`.
    fn end_scheduled(&mut self, plan: &Plan) {
        if let Some(scheduled) = self.applier.state().scheduled
            && self.controller.requested().is_none()
            && !plan.is_asked_for
        {
            let why = format!("a restart came before it: {}", plan.why);
            self.note(&Entry::new(scheduled.id, Event::Dropped, why));
        }
        self.forget_scheduled();
    }

    /// Where nothing waits any more.
    pub(super) fn forget_scheduled(&mut self) {
        if self.controller.requested().is_none()
            && let Err(error) = self.applier.remember(|state| state.scheduled = None)
        {
            tracing::warn!(%error, "That a request is dealt with could not be noted.");
        }
    }

    /// Looks whether someone set an option elsewhere in the meantime; says so once, then it is left
    /// alone.
    fn overridden_since(&mut self, plan: &Plan) -> Option<String> {
        if let Err(error) = self.look_elsewhere() {
            return Some(error.to_string());
        }
        let (opted_in, site) = (self.site.envelope.opted_in, &self.site.envelope.site);
        let changing = plan.from.differing(&plan.to);
        let line = self.site.elsewhere.lines.iter().find(|line| {
            // To write what the site says anyway is to let go of it.
            let value = plan.to.get(line.knob).value();
            let is_written = value.is_some_and(|value| value != site.get(line.knob));
            changing.contains(line.knob) && is_written && !opted_in.contains(line.knob)
        })?;
        Some(format!("{line}: edge leaves this option alone"))
    }

    /// A change that stood its verification is what to fall back to.
    fn note_good(&mut self) {
        if let Err(error) = self.applier.mark_good() {
            tracing::warn!(%error, "That the settings stood the test could not be noted.");
        }
        self.note_failures();
    }

    fn note_failures(&mut self) {
        let (failures, undoing) =
            (u32::from(self.controller.failures()), self.controller.undoing());
        let noted = |state: &mut State| (state.failures, state.undoing) = (failures, undoing);
        if let Err(error) = self.applier.remember(noted) {
            tracing::warn!(%error, "The count of failures could not be noted.");
        }
    }
}
