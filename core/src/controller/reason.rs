//! Why nothing is done, and why a change is undone: each in a sentence for the log.

use core::fmt;

/// Why nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum HoldReason {
    /// Wanted and written agree within the dead band.
    Satisfied,
    /// The broker does not answer.
    NotServing,
    /// The effect of the last change is being watched.
    Verifying,
    /// The wanted settings have not been alike for long enough.
    Settling,
    /// The hour's restarts are used up.
    RestartBudget,
    /// The day's restarts are used up.
    DailyRestartBudget,
    /// The site forbids restarts now.
    QuietHours,
    /// A restart would lose state; a person must allow it.
    StateAtRisk,
    /// What can be gained is not worth the outage.
    NotWorthIt,
    /// Waiting after a failure.
    BackingOff,
    /// Too many failures: until told to resume.
    Failed,
    /// Paused by the operator, or the file is someone else's.
    Paused,
}

impl fmt::Display for HoldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HoldReason::Satisfied => "the settings fit",
            HoldReason::NotServing => "the broker does not answer",
            HoldReason::Verifying => "watching the effect of the last change",
            HoldReason::Settling => "the wanted settings have not been stable for long enough",
            HoldReason::RestartBudget => "the restart budget of this hour is used up",
            HoldReason::DailyRestartBudget => "the restart budget of these 24 hours is used up",
            HoldReason::QuietHours => "quiet hours: no restart now",
            HoldReason::StateAtRisk => {
                "a restart would lose sessions or messages; allow_state_loss permits it"
            }
            HoldReason::NotWorthIt => "too little is lost to be worth a restart",
            HoldReason::BackingOff => "waiting after a failed change",
            HoldReason::Failed => "too many failed changes: watching only, until a person resumes",
            HoldReason::Paused => "paused, until a person resumes",
        })
    }
}

/// Why a change is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RollBackReason {
    /// The broker stopped answering.
    NotServing,
    /// The broker ended again and again.
    Crashed,
    /// The probe's latency is worse than before.
    Latency,
    /// More deliveries are dropped than before.
    Dropped,
    /// Clients did not come back.
    ClientsLost,
    /// The broker takes more memory than the site permits, and did not before.
    Memory,
    /// Figures that were there before have been missing since.
    Unseen,
    /// Undoing it was decided, and failed, in an earlier run of the agent.
    Unended,
}

impl fmt::Display for RollBackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RollBackReason::NotServing => "the broker stopped answering after the change",
            RollBackReason::Crashed => "the broker ended again and again after the change",
            RollBackReason::Latency => "the probe's latency got worse after the change",
            RollBackReason::Dropped => "more deliveries are dropped since the change",
            RollBackReason::ClientsLost => "clients did not come back after the restart",
            RollBackReason::Memory => {
                "the broker takes more memory than permitted since the change"
            }
            RollBackReason::Unseen => "the broker's figures have been missing since the change",
            RollBackReason::Unended => "undoing the change has failed before",
        })
    }
}
