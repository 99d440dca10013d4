//! What an operator orders: pause, resume, roll back, off. One way to carry it out, whether the
//! agent is running or not.

use std::fmt;
use std::path::{Path, PathBuf};

use brokertuner_core::knobs::Apply;
use brokertuner_core::{Envelope, Knob, Settings};
use serde::{Deserialize, Serialize};

use crate::apply::{Applied, Applier, ApplyError};
use crate::fs::FileError;
use crate::journal::{Entry, Event, Journal};
use crate::plan::Plan;
use crate::state::{How, Scheduled, Standing, State};

/// Version of [`Answer`]'s shape.
const ANSWER_VERSION: u32 = 1;

/// An operator's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Change nothing until `edge resume`.
    Pause,
    /// Tune again, also after failures, a hand-edited drop-in, or options set over HTTP.
    Resume,
    /// Go back to the settings that were good before the present ones, and pause.
    Rollback {
        /// Also where the restart that it takes would lose state.
        allow_state_loss: bool,
    },
    /// Change nothing until `edge resume`, and say so.
    Off {
        /// Remove what was written, so that the site's own values hold again.
        restore: bool,
        /// Restart for that also where it would lose state.
        allow_state_loss: bool,
    },
}

impl Order {
    /// Whether it is about the drop-in and the broker, not only about what the agent may do.
    #[must_use]
    pub fn touches_broker(&self) -> bool {
        !matches!(self, Self::Pause | Self::Off { restore: false, .. })
    }

    /// What the drop-in is to say after it, where it says so itself; `None` within: no drop-in.
    #[must_use]
    pub fn target(&self, state: &State, envelope: &Envelope) -> Option<Option<Settings>> {
        match self {
            Self::Rollback { .. } => {
                let target = state.last_good()?;
                Some(target.map(|settings| envelope.confine(settings)))
            }
            Self::Off { restore: true, .. } => Some(None),
            Self::Pause | Self::Resume | Self::Off { .. } => None,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Rollback { .. } => "rollback",
            Self::Off { restore: false, .. } => "off",
            Self::Off { restore: true, .. } => "off --restore",
        })
    }
}

/// What came of an order: one documented, versioned object for `--json`, the socket and people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Version of this object's shape.
    pub report_version: u32,
    /// The order.
    pub order: String,
    /// Its number, for `edge explain`; `null` where nothing was tried.
    pub id: Option<u64>,
    /// It was carried out; else `said` tells why not, and what to do.
    pub done: bool,
    /// What happened.
    pub said: String,
    /// Options that changed in the drop-in, one line each.
    pub diff: Vec<String>,
    /// `reload` or `restart`, where the broker was asked for one.
    pub how: Option<String>,
}

impl Answer {
    /// The answer to `order`.
    #[must_use]
    pub fn new(order: &Order, done: bool, said: impl Into<String>) -> Self {
        let (order, said) = (order.to_string(), said.into());
        Self {
            report_version: ANSWER_VERSION,
            order,
            id: None,
            done,
            said,
            diff: Vec::new(),
            how: None,
        }
    }

    fn with(mut self, plan: &Plan) -> Self {
        (self.diff, self.how) = (plan.diff(), Some(plan.how.to_string()));
        self
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.order, self.said)?;
        self.diff.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// What keeps the agent from changing anything, whatever it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restraint {
    /// The kill-switch file exists, or can't be looked for.
    KillSwitch(PathBuf),
    /// The agent itself was started again and again without ending in good order.
    StartLoop(usize),
    /// `edge off`.
    Off,
    /// `edge pause` or `edge rollback`.
    Paused,
    /// A change could be neither finished nor taken back, and why.
    Unended(String),
}

impl Restraint {
    /// The restraint in one word, for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KillSwitch(_) => "kill_switch",
            Self::StartLoop(_) => "start_loop",
            Self::Off => "off",
            Self::Paused => "paused",
            Self::Unended(_) => "unended",
        }
    }

    /// What the operator said and the file says.
    #[must_use]
    pub fn of(state: &State, kill_switch: &Path) -> Option<Self> {
        if is_killed(kill_switch) {
            return Some(Self::KillSwitch(kill_switch.into()));
        }
        match state.standing {
            Standing::Tuning => None,
            Standing::Paused => Some(Self::Paused),
            Standing::Off => Some(Self::Off),
        }
    }
}

impl fmt::Display for Restraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillSwitch(path) => {
                write!(f, "{} exists: nothing is changed until it is removed", path.display())
            }
            Self::StartLoop(starts) => write!(
                f,
                "edge was started {starts} times within {} minutes without ending in good order: it only watches, until it has run for as long or `edge resume`",
                START_LOOP_S / 60
            ),
            Self::Off | Self::Paused => f.write_str("nothing is changed until `edge resume`"),
            Self::Unended(reason) => write!(
                f,
                "a change could be neither finished nor taken back: {reason}; nothing is changed until `edge resume`, which tries again"
            ),
        }
    }
}

/// Starts of the agent within this many seconds make a loop ...
pub const START_LOOP_S: u64 = 600;
/// ... when there are this many of them.
pub const START_LOOP_STARTS: usize = 5;

/// Whether the kill switch is on. Where that can't be seen, it is: doubt changes nothing.
#[must_use]
pub fn is_killed(kill_switch: &Path) -> bool {
    kill_switch.try_exists().unwrap_or(true)
}

/// What is known of the broker when an order is carried out.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'f> {
    /// The bounds now.
    pub envelope: &'f Envelope,
    /// A restart into what is ordered would lose sessions or messages, or may.
    pub state_at_risk: bool,
    /// While it exists, nothing is changed.
    pub kill_switch: &'f Path,
}

/// Carries an order out on the drop-in, the broker and the agent's memory.
///
/// Blocks as [`Applier::apply`] does. Never fails: the answer says what did not go.
pub fn carry_out(applier: &mut Applier, facts: &Facts<'_>, order: &Order) -> Answer {
    let waiting = applier.state().scheduled;
    let answer = carry_out_alone(applier, facts, order);
    if applier.state().scheduled.is_none() {
        note_dropped(applier.state_dir(), waiting, order);
    }
    answer
}

/// Notes that what waited for a restart is not made, because of an order.
pub fn note_dropped(state_dir: &Path, waiting: Option<Scheduled>, order: &Order) {
    if let Some(waiting) = waiting {
        let why = format!("edge {order} came before the restart that it waited for");
        append(state_dir, &Entry::new(waiting.id, Event::Dropped, why));
    }
}

fn carry_out_alone(applier: &mut Applier, facts: &Facts<'_>, order: &Order) -> Answer {
    if !order.touches_broker() {
        let mut state = applier.state().clone();
        let answer = stand(&mut state, order);
        let id = state.last_decision;
        if let Err(error) = applier.remember(|kept| *kept = state) {
            return Answer::new(order, false, error.to_string());
        }
        note(applier.state_dir(), &answer, id);
        return answer;
    }
    let id = applier.number_decision();
    let answer = match order {
        _ if is_killed(facts.kill_switch) && *order != Order::Resume => {
            let restraint = Restraint::KillSwitch(facts.kill_switch.into());
            Ok(Answer::new(order, false, restraint.to_string()))
        }
        Order::Rollback { allow_state_loss } => roll_back(applier, facts, order, *allow_state_loss),
        Order::Off { allow_state_loss, .. } => restore(applier, facts, order, *allow_state_loss),
        Order::Resume | Order::Pause => resume(applier, facts, order),
    };
    let was_tried = answer.as_ref().map_or(true, |answer| answer.done);
    let mut answer = answer.unwrap_or_else(|error| Answer::new(order, false, error.to_string()));
    if was_tried {
        answer.id = Some(id);
        note(applier.state_dir(), &answer, id);
    }
    answer
}

/// Carries out an order that is only about what the agent may do, on its memory alone: it must work
/// where the broker and its files are broken. Answers what happened, with its number.
#[must_use]
pub fn stand(state: &mut State, order: &Order) -> Answer {
    let is_off = matches!(order, Order::Off { .. }) || state.standing == Standing::Off;
    // Off is more than paused: a pause does not take it back.
    state.standing = if is_off { Standing::Off } else { Standing::Paused };
    state.scheduled = None;
    state.last_decision += 1;
    let said = format!("{}; the broker keeps its settings until `edge resume`", state.standing);
    Answer { id: Some(state.last_decision), ..Answer::new(order, true, said) }
}

/// Keeps an order in the journal of a state directory.
pub fn note(state_dir: &Path, answer: &Answer, id: u64) {
    let event = if answer.done { Event::Ordered } else { Event::Failed };
    let why = format!("edge {}: {}", answer.order, answer.said);
    append(state_dir, &Entry { diff: answer.diff.clone(), ..Entry::new(id, event, why) });
}

fn append(state_dir: &Path, entry: &Entry) {
    if let Err(error) = Journal::in_dir(state_dir).append(entry) {
        tracing::warn!(%error, "The journal lacks an order.");
    }
}

fn resume(applier: &mut Applier, facts: &Facts<'_>, order: &Order) -> Result<Answer, ApplyError> {
    let mut said = "the broker is tuned again".to_owned();
    let is_killed = is_killed(facts.kill_switch);
    match applier.check_ours() {
        Ok(()) => {}
        Err(ApplyError::EditedByHand { .. } | ApplyError::Removed { .. }) if is_killed => {
            let restraint = Restraint::KillSwitch(facts.kill_switch.into());
            return Ok(Answer::new(order, false, restraint.to_string()));
        }
        Err(ApplyError::EditedByHand { .. } | ApplyError::Removed { .. }) => {
            let taken = applier.adopt(facts.envelope)?;
            said.push_str(match taken {
                Some(_) => ", from the values that were written by hand into the drop-in",
                None => ", from the site's own values: the drop-in was removed by hand",
            });
        }
        Err(error) => return Err(error),
    }
    if let Some(pinned) = applier.state().pinned {
        let names: Vec<_> = pinned.written().iter().map(|knob| knob.to_string()).collect();
        said.push_str(&format!("; also what was set over HTTP: {}", names.join(", ")));
    }
    applier.remember(|state| {
        state.standing = Standing::Tuning;
        (state.pinned, state.scheduled) = (None, None);
        state.failures = 0;
        state.starts_unix_s.clear();
    })?;
    if is_killed {
        let restraint = Restraint::KillSwitch(facts.kill_switch.into());
        said.push_str(&format!(", but {restraint}"));
    }
    Ok(Answer::new(order, !is_killed, said))
}

fn roll_back(
    applier: &mut Applier,
    facts: &Facts<'_>,
    order: &Order,
    allow_state_loss: bool,
) -> Result<Answer, ApplyError> {
    applier.check_ours()?;
    let Some(target) = order.target(applier.state(), facts.envelope) else {
        let said = "nothing to go back to: edge has changed nothing here";
        return Ok(Answer::new(order, false, said));
    };
    let plan = plan_to(applier, target, "the operator's rollback");
    if plan.how == How::Restart && facts.state_at_risk && !allow_state_loss {
        let said = "it takes a restart that would lose sessions or messages, or may; `edge rollback --allow-state-loss` does it all the same";
        return Ok(Answer::new(order, false, said).with(&plan));
    }
    // First: whatever becomes of the change, it is not made again. What can't be stored now is with
    // what is stored last.
    let _ = applier.remember(|state| {
        state.standing = Standing::Paused;
        (state.pinned, state.scheduled) = (None, None);
    });
    let applied = applier.roll_back(target, plan.how, &facts.envelope.site)?;
    let noted = applier.mark_good();
    let said = format!(
        "the settings of before are back, {}; paused until `edge resume`{}",
        by(&plan, &applied),
        unless_noted(&noted)
    );
    Ok(Answer::new(order, true, said).with(&plan))
}

fn restore(
    applier: &mut Applier,
    facts: &Facts<'_>,
    order: &Order,
    allow_state_loss: bool,
) -> Result<Answer, ApplyError> {
    let standing = applier.remember(|state| {
        state.standing = Standing::Off;
        (state.pinned, state.scheduled) = (None, None);
    });
    applier.check_ours()?;
    applier.take_up_ours();
    let mut plan = plan_to(applier, None, "the operator's `off --restore`");
    if plan.diff().is_empty() && plan.how == How::Reload && applier.state().written.is_none() {
        standing?;
        let said = "off; there is nothing of edge's in the broker's configuration";
        return Ok(Answer::new(order, true, said));
    }
    let is_kept_back = plan.how == How::Restart && facts.state_at_risk && !allow_state_loss;
    if is_kept_back {
        plan.how = How::Reload;
    }
    let applied = applier.roll_back(None, plan.how, &facts.envelope.site)?;
    let noted = applier.mark_good();
    // A reload leaves persistence as it is, and says so in the drop-in.
    let left = applier.state().written;
    plan.to = left.unwrap_or_default();
    let said = if is_kept_back {
        let waiting = dormant(applier.state()).into_iter();
        let waiting: Vec<_> = waiting.chain(plan.to.written().iter().map(named)).collect();
        let is_removed = if left.is_none() { "is removed" } else { "keeps only persistence" };
        format!(
            "off; the drop-in {is_removed}, {}, but {} keep their values until the broker is restarted, which would lose sessions or messages, or may; `edge off --restore --allow-state-loss` restarts it all the same",
            by(&plan, &applied),
            waiting.join(", ")
        )
    } else {
        format!(
            "off; the drop-in is removed and the site's own values hold, {}",
            by(&plan, &applied)
        )
    };
    let said = said + &unless_noted(&noted);
    Ok(Answer::new(order, !is_kept_back, said).with(&plan))
}

/// What is ordered is done though the disk is full: what came of it must be known.
fn unless_noted(noted: &Result<(), FileError>) -> String {
    let Err(error) = noted else { return String::new() };
    format!(
        ", but a restart of the agent forgets that: {error}; make room, then give the order again"
    )
}

fn by(plan: &Plan, applied: &Applied) -> String {
    format!("by a {} that took {} ms", plan.how, applied.took.as_millis())
}

/// The way from what is written to `target`.
fn plan_to(applier: &Applier, target: Option<Settings>, why: &str) -> Plan {
    let (state, to) = (applier.state(), target.unwrap_or_default());
    let from = state.written.unwrap_or_default();
    let effective = state.effective.map_or(from, |effective| effective.settings);
    let takes_restart = |knob: Knob| knob.spec().apply == Apply::Restart;
    let is_restart = effective.differing(&to).iter().any(takes_restart);
    let how = if is_restart { How::Restart } else { How::Reload };
    Plan {
        from,
        to,
        how,
        why: why.into(),
        is_roll_back: true,
        is_asked_for: false,
        is_unloading: false,
    }
}

/// Options that run with another value than is written.
fn dormant(state: &State) -> Vec<String> {
    let written = state.written.unwrap_or_default();
    let effective = state.effective.map_or(written, |effective| effective.settings);
    written.differing(&effective).iter().map(named).collect()
}

fn named(knob: Knob) -> String {
    knob.to_string()
}
