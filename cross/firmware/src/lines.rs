//! A replay as text: one line a decision, the same on every processor.
//!
//! What is never inlined gives its frame back: in one function these would take 9 KiB of stack.

use core::fmt::Write as _;

use brokertuner_core::controller::{Decision, Rules};
use brokertuner_core::knobs::Apply;
use brokertuner_core::model::{Model, ModelError};
use brokertuner_core::render;
use brokertuner_core::replay::{Replay, Step};
use brokertuner_core::trace::{Record, Records, Trace, TraceError};

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
    /// No decision of the replay restarts the broker.
    NoRestart,
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
#[derive(Default)]
pub struct Player {
    state: Option<(Records<'static>, Replay<'static>)>,
    count: u32,
}

impl Player {
    /// Reads both, and returns the time between two decisions when it was recorded, in milliseconds.
    ///
    /// # Errors
    /// [`Fault`] where one of them is not for this program.
    #[inline(never)]
    pub fn begin(&mut self) -> Result<u32, Fault> {
        let model = Model::read(MODEL)?;
        let trace = Trace::read(TRACE)?;
        let replay = Replay::new(model, *trace.head(), Rules::default());
        self.state = Some((trace.records(), replay));
        Ok(trace.head().interval_ms)
    }

    /// Decides on the next record, and tells of it; `None` at the end of the trace.
    #[inline(never)]
    pub fn next(&mut self, line: &mut Line) -> Option<Result<(), Fault>> {
        let record = match self.record()? {
            Ok(record) => record,
            Err(error) => return Some(Err(error.into())),
        };
        self.count += 1;
        let (_, replay) = self.state.as_mut()?;
        Some(match replay.step(&record) {
            Ok(step) => {
                tell(line, self.count, &record, &step);
                Ok(())
            }
            Err(error) => Err(error.into()),
        })
    }

    #[inline(never)]
    fn record(&mut self) -> Option<Result<Record, TraceError>> {
        self.state.as_mut()?.0.next()
    }
}

/// `7 at 60000000 us: restart; action 7f81...; max_inflight_messages 100; ...`
#[inline(never)]
fn tell(line: &mut Line, number: u32, record: &Record, step: &Step) {
    line.clear();
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
}

/// The last line: the digest of [`vectors`].
///
/// # Errors
/// [`Fault::Model`] where the model in flash is not for this program.
#[inline(never)]
pub fn digest(line: &mut Line) -> Result<(), Fault> {
    let digest = vectors::digest(&Model::read(MODEL)?)?;
    line.clear();
    let _ = write!(line, "digest of {} vectors: {digest:016x}", vectors::COUNT);
    Ok(())
}
