//! A replay as text: one line a decision, the same on every processor.

use core::fmt::Write as _;

use brokertuner_core::controller::{Decision, Rules};
use brokertuner_core::knobs::Apply;
use brokertuner_core::model::{Model, ModelError};
use brokertuner_core::render;
use brokertuner_core::replay::{Replay, Step};
use brokertuner_core::trace::{Record, Trace, TraceError};

use crate::{MODEL, TRACE, vectors};

/// Holds the longest line: a decision's reason, eleven actions and the drop-in.
pub type Line = heapless::String<768>;

/// Why there is nothing to print.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The model in flash.
    Model(ModelError),
    /// The trace in flash.
    Trace(TraceError),
}

impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Self {
        Fault::Model(error)
    }
}

impl From<TraceError> for Fault {
    fn from(error: TraceError) -> Self {
        Fault::Trace(error)
    }
}

/// The trace in flash and its replay with the model in flash.
pub struct Player {
    trace: Trace<'static>,
    replay: Replay<'static>,
    count: u32,
}

impl Player {
    /// Reads both.
    ///
    /// # Errors
    /// [`Fault`] where one of them is not for this program.
    pub fn new() -> Result<Self, Fault> {
        let model = Model::read(MODEL)?;
        let trace = Trace::read(TRACE)?;
        let replay = Replay::new(model, *trace.head(), Rules::default());
        Ok(Player { trace, replay, count: 0 })
    }

    /// Time between two decisions when it was recorded, in milliseconds.
    pub fn interval_ms(&self) -> u32 {
        self.trace.head().interval_ms
    }

    /// The records of the trace.
    pub fn records(&self) -> impl Iterator<Item = Result<Record, TraceError>> + use<> {
        self.trace.records()
    }

    /// Decides on `record`, and tells of it.
    ///
    /// # Errors
    /// [`Fault::Model`], never for a model that [`Player::new`] took.
    pub fn step(&mut self, record: &Record) -> Result<Line, Fault> {
        let step = self.replay.step(record)?;
        self.count += 1;
        Ok(told(self.count, record, &step))
    }
}

/// `7 at 60000000 us: restart; action 7f81...; max_inflight_messages 100; ...`
fn told(number: u32, record: &Record, step: &Step) -> Line {
    let mut line = Line::new();
    // None of these fails: the line holds them all.
    let _ = write!(line, "{number} at {} us: ", record.sample.at.as_micros());
    let _ = match &step.decision {
        Decision::Hold(reason) => write!(line, "hold, {reason}"),
        Decision::Change { apply: Apply::Reload, .. } => write!(line, "reload"),
        Decision::Change { apply: Apply::Restart, .. } => write!(line, "restart"),
        Decision::RollBack { reason, .. } => write!(line, "roll back, {reason}"),
    };
    let _ = write!(line, "; action ");
    for action in step.answer.iter().flat_map(|answer| answer.action) {
        let _ = write!(line, "{action:02x}");
    }
    for setting in render::render(&step.written).lines().skip(1) {
        let _ = write!(line, "; {setting}");
    }
    line
}

/// The last line: the digest of [`vectors`].
///
/// # Errors
/// [`Fault::Model`] where the model in flash is not for this program.
pub fn digest() -> Result<Line, Fault> {
    let digest = vectors::digest(&Model::read(MODEL)?)?;
    let mut line = Line::new();
    let _ = write!(line, "digest of {} vectors: {digest:016x}", vectors::COUNT);
    Ok(line)
}
