//! The judging profile: the rules under which policies are compared.

use crate::env::broker::targets;
use crate::scenario::Scenario;
use anyhow::Context as _;
use brokertuner_core::controller::{RESTARTS_REMEMBERED_MAX, Rules};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Text of `tests/judging-profile.toml`, printed with every result.
pub const JUDGING: &str = include_str!("../../../tests/judging-profile.toml");

/// Restarts an hour that a controller can count.
#[allow(clippy::cast_possible_truncation, reason = "32")]
const RESTARTS_MAX: u8 = RESTARTS_REMEMBERED_MAX as u8;

/// Rules of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Decision interval of the agent.
    pub decision_interval_ms: u32,
    /// Wanted settings must have been alike for this long before a restart.
    pub dwell_ms: u32,
    /// How long a change is watched.
    pub verify_window_ms: u32,
    /// Restarts beyond one per phase.
    pub restarts_beyond_phases: u8,
    /// Restarts an hour, whatever the phases; the judging profile has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts_per_hour_max: Option<u8>,
    /// Shortest part before the score.
    pub lead_in_s: u32,
    /// Effective `$SYS` periods that the lead-in covers at the least.
    pub lead_in_sys_periods: u32,
}

impl Profile {
    /// The profile of the tree.
    ///
    /// # Errors
    /// Where `tests/judging-profile.toml` was edited into something else.
    pub fn judging() -> anyhow::Result<Profile> {
        toml::from_str(JUDGING).context("tests/judging-profile.toml")
    }

    /// The rules that a gateway has without a line in its configuration, with the judging
    /// profile's lead-in.
    ///
    /// # Errors
    /// As [`Profile::judging`].
    pub fn gateway() -> anyhow::Result<Profile> {
        let decide = brokertuner_edge::config::Config::default().decide;
        Ok(Profile {
            decision_interval_ms: decide.interval_ms,
            dwell_ms: decide.dwell_s.saturating_mul(1000),
            verify_window_ms: decide.verify_window_s.saturating_mul(1000),
            restarts_per_hour_max: Some(decide.restarts_per_hour_max),
            ..Profile::judging()?
        })
    }

    /// As the agent's controller has them for a scenario.
    #[must_use]
    pub fn rules(&self, scenario: &Scenario) -> Rules {
        let targets = targets(scenario);
        let phases = u8::try_from(scenario.phases.len()).unwrap_or(u8::MAX);
        let by_phases = phases.saturating_add(self.restarts_beyond_phases);
        let restarts = self.restarts_per_hour_max.unwrap_or(by_phases);
        Rules {
            dwell: brokertuner_core::Duration::from_millis(self.dwell_ms.into()),
            verify_window: brokertuner_core::Duration::from_millis(self.verify_window_ms.into()),
            restarts_per_hour_max: restarts.min(RESTARTS_MAX),
            ..Rules::for_deadline(targets.deadline_ms)
        }
    }

    /// Length of the part before the score: the effective period is `sys_interval` plus one second.
    #[must_use]
    pub fn lead_in(&self, sys_interval_s: u32) -> Duration {
        let periods = self.lead_in_sys_periods.saturating_mul(sys_interval_s.saturating_add(1));
        Duration::from_secs(u64::from(self.lead_in_s.max(periods)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn the_file_in_the_tree_is_the_profile() {
        let profile = Profile::judging().unwrap();
        assert_eq!(
            (profile.decision_interval_ms, profile.dwell_ms, profile.verify_window_ms),
            (5000, 10_000, 10_000)
        );
        assert_eq!(profile.lead_in(1), Duration::from_secs(20));
        assert_eq!(profile.lead_in(10), Duration::from_secs(66));
    }

    #[test]
    fn a_gateway_restarts_four_times_an_hour() {
        let scenario = Scenario::load("mixed-day").unwrap();
        let rules = Profile::gateway().unwrap().rules(&scenario);
        assert_eq!((rules.restarts_per_hour_max, rules.dwell.as_secs()), (4, 60));
        let judged = Profile::judging().unwrap().rules(&scenario);
        assert_eq!(usize::from(judged.restarts_per_hour_max), scenario.phases.len() + 1);
    }
}
