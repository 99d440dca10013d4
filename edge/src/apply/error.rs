//! What applying can end in, in words that say what to do.

use std::fmt;
use std::path::PathBuf;

use brokertuner_core::Knob;
use brokertuner_core::render::ParseError;

use crate::control::ControlError;
use crate::fs::FileError;
use crate::pid::PidError;
use crate::ready::Missing;
use crate::state::How;

/// What became of the settings of before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restored {
    /// Nothing was changed.
    Kept,
    /// Not known here: who undoes the change says it.
    NotTold,
    /// They are in force again.
    Yes,
    /// They are not, and why.
    No(String),
    /// Of a roll-back: the drop-in has the last good settings, and the broker runs with those that
    /// were to be undone.
    Dormant,
    /// Of a roll-back: the broker can't be given the last good settings either, and runs without any.
    Bare,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => f.write_str("; nothing was changed"),
            Self::NotTold => Ok(()),
            Self::Yes => f.write_str("; the previous settings are back"),
            Self::Dormant => f.write_str(
                "; the last good settings stand in the drop-in, and hold when the broker next starts",
            ),
            Self::Bare => f.write_str(
                "; the last good settings could not be put in force either, and the broker runs with the site's own",
            ),
            Self::No(reason) => write!(
                f,
                "; putting the previous settings back failed as well ({reason}); start the broker by hand, then edge"
            ),
        }
    }
}

/// Why a change did not go through.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Someone else changed our file.
    #[error("{}: edited by hand since edge wrote it, so edge leaves it alone, until `edge resume`", path.display())]
    EditedByHand {
        /// The drop-in.
        path: PathBuf,
    },
    /// Someone removed our file.
    #[error("{}: removed by hand since edge wrote it, so edge leaves it alone, until `edge resume`", path.display())]
    Removed {
        /// The drop-in.
        path: PathBuf,
    },
    /// Someone put more into our file than we could write.
    #[error("{}: {error}: edge would overwrite it; move what is not BrokerTuner's to a file of its own beside it, then `edge resume` again", path.display())]
    Foreign {
        /// The drop-in.
        path: PathBuf,
        /// The first line that is not ours.
        error: ParseError,
    },
    /// A file could not be written; the broker was not asked for anything.
    #[error("{0}; nothing was changed")]
    File(#[from] FileError),
    /// The new drop-in got into place and could not be taken back.
    #[error(
        "{error}; then the drop-in could not be put back ({again}): it would take effect when the broker next starts; edge puts it back at its next start"
    )]
    Stuck {
        /// What went wrong first.
        error: FileError,
        /// What went wrong then.
        again: String,
    },
    /// The broker took the change over, but the drop-in could not be completed.
    #[error("{error}{restored}")]
    Unfinished {
        /// What went wrong.
        error: FileError,
        /// What became of the settings of before.
        restored: Restored,
    },
    /// The broker's process is not known.
    #[error("the broker's process is not known: {0}")]
    NoProcess(PidError),
    /// Persistence can't be switched on without knowing where the database is.
    #[error(
        "persistence was not switched on: a database of before would be read; set broker.database to its path"
    )]
    NoDatabase,
    /// The broker could not be reloaded or restarted.
    #[error("{source}{restored}")]
    Control {
        /// Why.
        source: ControlError,
        /// What became of the settings of before.
        restored: Restored,
    },
    /// The broker did not become ready.
    #[error("the broker was not ready within {timeout_s} s after a {how}: {missing}{restored}")]
    NotReady {
        /// What was asked of it.
        how: How,
        /// How long was waited.
        timeout_s: u64,
        /// What was last seen.
        missing: Missing,
        /// What became of the settings of before.
        restored: Restored,
    },
    /// The broker runs, but with another value.
    #[error(
        "{knob} is {found} in the broker that was just restarted, not {wanted} as written: another file of its configuration overrides the drop-in{restored}"
    )]
    NotEffective {
        /// The option.
        knob: Knob,
        /// What was written.
        wanted: u64,
        /// What CONNACK shows.
        found: u64,
        /// What became of the settings of before.
        restored: Restored,
    },
}

impl From<ControlError> for ApplyError {
    fn from(source: ControlError) -> Self {
        Self::Control { source, restored: Restored::NotTold }
    }
}

impl ApplyError {
    /// The settings of before are in force, as far as is known.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        match self.restored() {
            Some(restored) => !matches!(restored, Restored::No(_) | Restored::NotTold),
            None => !matches!(self, Self::Stuck { .. }),
        }
    }

    /// What became of the settings of before, where that is known.
    #[must_use]
    pub fn restored(&self) -> Option<&Restored> {
        match self {
            Self::Control { restored, .. }
            | Self::Unfinished { restored, .. }
            | Self::NotReady { restored, .. }
            | Self::NotEffective { restored, .. } => Some(restored),
            _ => None,
        }
    }

    /// A file could not be written, with the broker being asked or about to be.
    pub(super) fn of_file(error: FileError) -> Self {
        Self::Unfinished { error, restored: Restored::NotTold }
    }

    /// The error with what became of the settings of before.
    pub(super) fn with_restored(mut self, outcome: Restored) -> Self {
        if let Self::Control { restored, .. }
        | Self::Unfinished { restored, .. }
        | Self::NotReady { restored, .. }
        | Self::NotEffective { restored, .. } = &mut self
        {
            *restored = outcome;
        }
        self
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            How::Reload => "reload",
            How::Restart => "restart",
        })
    }
}
