//! What was in force when, in seconds from the start of the score.

use crate::scenario::Scenario;
use brokertuner_core::{Settings, render};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// A phase of the scored part; the first one begins at 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseSpan {
    /// Its name.
    pub name: String,
    /// Its length.
    pub duration_s: u32,
}

/// Settings and when they came into force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InForce {
    /// Seconds from the start of the score, negative in the lead-in. Of a real agent to the second
    /// below: its reports have no finer clock.
    pub at_s: f64,
    /// The drop-in, as far as the running broker has taken it up.
    pub settings_conf: String,
}

/// The phases of a scenario.
#[must_use]
pub fn phases(scenario: &Scenario) -> Vec<PhaseSpan> {
    let span = |phase: &crate::scenario::Phase| PhaseSpan {
        name: phase.name.clone(),
        duration_s: phase.duration_s,
    };
    scenario.phases.iter().map(span).collect()
}

/// What was in force when, without the entries that change nothing.
#[must_use]
pub fn steps(seen: impl IntoIterator<Item = (f64, Settings)>) -> Vec<InForce> {
    let mut last = None;
    let mut steps = Vec::new();
    for (at_s, settings) in seen {
        if last.replace(settings) != Some(settings) {
            let settings_conf = render::render(&settings).as_str().to_owned();
            steps.push(InForce { at_s, settings_conf });
        }
    }
    steps
}

/// Seconds from `begin` until `at`, negative where it lies before.
pub(super) fn since(begin: SystemTime, at: SystemTime) -> f64 {
    match at.duration_since(begin) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use brokertuner_core::Knob;
    use std::time::Duration;

    #[test]
    fn only_changes_are_steps() {
        let mut wide = Settings::UNWRITTEN;
        wide.set(Knob::InflightMessagesMax, 1000).unwrap();
        let none = Settings::UNWRITTEN;
        let steps = steps([(-20.0, none), (-15.0, none), (3.0, wide), (8.0, wide), (9.0, none)]);
        let at: Vec<f64> = steps.iter().map(|step| step.at_s).collect();
        assert_eq!(at, [-20.0, 3.0, 9.0]);
        assert_eq!(render::parse(&steps[1].settings_conf).unwrap(), wide);
        assert_eq!(render::parse(&steps[2].settings_conf).unwrap(), none);
    }

    #[test]
    fn what_lies_before_the_score_is_negative() {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert!((since(begin, begin + Duration::from_secs(3)) - 3.0).abs() < 1e-9);
        assert!((since(begin, begin - Duration::from_secs(3)) + 3.0).abs() < 1e-9);
    }
}
