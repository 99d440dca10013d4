//! Settings over time beside the phases of a load.

use super::scores::Group;
use super::{Choice, LeftOut, ReportError};
use crate::evaluate::Record;
use crate::trial::PhaseSpan;
use brokertuner_core::knobs::{Scale, Unit, Zero};
use brokertuner_core::{Knob, Settings, render};
use serde::Serialize;
use std::collections::BTreeSet;

/// Plots that are drawn unless loads are named.
const PLOTS_MAX: usize = 6;

/// An option from one time on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Level {
    /// Seconds from the start of the score.
    pub at_s: f64,
    /// What is written; `None`: no line, so the main file's value or the default holds.
    pub value: Option<u64>,
}

/// An option that changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Track {
    /// Its name in mosquitto.conf.
    pub option: String,
    /// Its row in the table.
    #[serde(skip)]
    pub knob: Knob,
    /// From the start, an entry for each change.
    pub levels: Vec<Level>,
}

impl Track {
    /// The lowest and the highest value in force, for people.
    #[must_use]
    pub fn range(&self) -> String {
        let by_height = |a: &&Level, b: &&Level| {
            height(self.knob, a.value).total_cmp(&height(self.knob, b.value))
        };
        let ends = self.levels.iter().min_by(by_height).zip(self.levels.iter().max_by(by_height));
        let default = self.knob.spec().default;
        let text = |level: &Level| value_text(self.knob, level.value.or(Some(default)));
        ends.map_or_else(String::new, |(low, high)| match (text(low), text(high)) {
            (low, high) if low == high => low,
            (low, high) => format!("{low} to {high}"),
        })
    }
}

/// The settings of one measurement over time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timeline {
    /// Name of the load.
    pub scenario: String,
    /// Name of the arm.
    pub arm: String,
    /// Version of the broker; `twin` where it is simulated.
    pub broker_version: String,
    /// Seed of the actor, in the `untrained` arm.
    pub actor: Option<u64>,
    /// Which repeat, from 0.
    pub repeat: u32,
    /// Of the measurement.
    pub score: Option<f64>,
    /// Restarts of the broker.
    pub restarts: u32,
    /// The phases of the scored part.
    pub phases: Vec<PhaseSpan>,
    /// Seconds from the start of the score at which the settings are first known.
    pub from_s: f64,
    /// The options that changed, in the order of the table.
    pub tracks: Vec<Track>,
}

impl Timeline {
    /// Of a measurement in which something changed.
    fn of(record: &Record) -> Option<Timeline> {
        let steps: Vec<(f64, Settings)> = record
            .outcome
            .timeline
            .iter()
            .filter_map(|step| Some((step.at_s, render::parse(&step.settings_conf).ok()?)))
            .collect();
        let tracks: Vec<Track> =
            Knob::ALL.into_iter().filter_map(|knob| track(knob, &steps)).collect();
        (!tracks.is_empty()).then(|| Timeline {
            scenario: record.scenario.clone(),
            arm: record.arm.clone(),
            broker_version: record.broker_version.clone(),
            actor: record.actor,
            repeat: record.repeat,
            score: record.counted_score(),
            restarts: record.outcome.restarts,
            phases: record.outcome.phases.clone(),
            from_s: steps.first().map_or(0.0, |(at_s, _)| *at_s),
            tracks,
        })
    }

    /// What was measured, for people.
    #[must_use]
    pub fn name(&self) -> String {
        let actor = self.actor.map_or_else(String::new, |seed| format!(" (actor {seed})"));
        let Timeline { scenario, arm, repeat, .. } = self;
        let bench = super::scores::bench(&self.broker_version);
        format!("{scenario}, {arm}{actor}, repeat {repeat}, {bench}")
    }

    /// Seconds at which the scored part ends.
    #[must_use]
    pub fn until_s(&self) -> f64 {
        let length_s: f64 = self.phases.iter().map(|phase| f64::from(phase.duration_s)).sum();
        let levels = self.tracks.iter().flat_map(|track| &track.levels);
        levels.map(|level| level.at_s).fold(length_s, f64::max)
    }
}

fn track(knob: Knob, steps: &[(f64, Settings)]) -> Option<Track> {
    let mut levels: Vec<Level> = Vec::new();
    for (at_s, settings) in steps {
        let value = settings.get(knob).value();
        if levels.last().is_none_or(|last| last.value != value) {
            levels.push(Level { at_s: *at_s, value });
        }
    }
    (levels.len() > 1).then(|| Track { option: knob.to_string(), knob, levels })
}

/// A value with its unit, for people.
#[must_use]
pub fn value_text(knob: Knob, value: Option<u64>) -> String {
    let spec = knob.spec();
    let Some(value) = value else { return "no line".to_owned() };
    match spec.unit {
        _ if value == 0 && spec.zero == Zero::Unlimited => "no limit".to_owned(),
        Unit::Switch => if value == 0 { "off" } else { "on" }.to_owned(),
        Unit::Seconds => format!("{value} s"),
        Unit::Messages => value.to_string(),
        Unit::Bytes => bytes_text(value),
    }
}

fn bytes_text(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = units.iter().find(|(shift, _)| bytes >> shift > 0);
    match fits {
        Some((shift, unit)) => {
            format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64).replace(".0 ", " ")
        }
        None => format!("{bytes} B"),
    }
}

/// How high a value stands in its plot: by effect, in the scale of the table. A setting that is
/// not written stands where the broker's default does.
#[must_use]
pub fn height(knob: Knob, value: Option<u64>) -> f64 {
    let spec = knob.spec();
    let order = spec.order(value.unwrap_or(spec.default));
    match spec.scale {
        Scale::Switch => order.min(1) as f64,
        // "No limit" stands one doubling above the largest limit.
        Scale::Log2 if order == u64::MAX => (2.0 * spec.max as f64).log2(),
        Scale::Log2 => (order.max(1) as f64).log2(),
    }
}

/// The measurements that are drawn: of each load and arm the first that counts and in which a
/// setting changed.
///
/// # Errors
/// A load that was asked for and has none.
pub fn choose(
    groups: &[Group],
    choice: &Choice,
    left_out: &mut Vec<LeftOut>,
) -> Result<Vec<Timeline>, ReportError> {
    let mut found: Vec<Timeline> = Vec::new();
    for group in groups {
        let mut seen = BTreeSet::new();
        let counted = group.records.iter().filter(|record| record.counted_score().is_some());
        for record in counted {
            let is_new = !seen.contains(&(&record.scenario, &record.arm));
            if let Some(timeline) = is_new.then(|| Timeline::of(record)).flatten() {
                seen.insert((&record.scenario, &record.arm));
                found.push(timeline);
            }
        }
    }
    let known: BTreeSet<&str> = found.iter().map(|timeline| timeline.scenario.as_str()).collect();
    for name in &choice.scenarios {
        if !known.contains(name.as_str()) {
            return Err(ReportError::NoSuch {
                option: "--scenario",
                name: name.clone(),
                reason: "no load in whose results a setting changed",
                known: known.into_iter().collect::<Vec<_>>().join(", "),
            });
        }
    }
    let note = |why: String| LeftOut { what: "settings over time".to_owned(), why };
    if !choice.scenarios.is_empty() {
        found.retain(|timeline| choice.scenarios.contains(&timeline.scenario));
        return Ok(found);
    }
    if found.is_empty() && !groups.is_empty() {
        let is_old = groups.iter().all(|g| g.records.iter().all(|r| r.outcome.timeline.is_empty()));
        left_out.push(note(
            if is_old {
                "the results are of an earlier version, which did not record them"
            } else {
                "no setting changed in any measurement that counts"
            }
            .to_owned(),
        ));
    }
    // The day with its shifts says more than a load that stays as it is.
    found.sort_by_key(|timeline| std::cmp::Reverse(timeline.phases.len()));
    if found.len() > PLOTS_MAX {
        let count = found.len() - PLOTS_MAX;
        left_out.push(note(format!("{count} more measurements; draw a load's with --scenario")));
        found.truncate(PLOTS_MAX);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_units() {
        for (knob, value, text) in [
            (Knob::InflightMessagesMax, Some(1000), "1000"),
            (Knob::InflightBytesMax, Some(0), "no limit"),
            (Knob::InflightBytesMax, Some(64 << 10), "64 KiB"),
            (Knob::InflightBytesMax, Some(3_456_789), "3.3 MiB"),
            (Knob::InflightBytesMax, Some(1000), "1000 B"),
            (Knob::AutosaveInterval, Some(1800), "1800 s"),
            (Knob::Persistence, Some(1), "on"),
            (Knob::Persistence, None, "no line"),
        ] {
            assert_eq!(value_text(knob, value), text);
        }
    }

    #[test]
    fn no_limit_stands_above_every_limit() {
        for knob in Knob::ALL {
            let spec = knob.spec();
            assert!(height(knob, Some(spec.max)) >= height(knob, Some(spec.min)), "{knob}");
            if spec.zero == Zero::Unlimited {
                assert!(height(knob, Some(0)) > height(knob, Some(spec.max)), "{knob}");
            }
        }
    }
}
