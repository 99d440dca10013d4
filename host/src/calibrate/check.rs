//! `host calibrate --check`: the same settings under the same loads, on the real broker and in the
//! twin, score against score.

use crate::evaluate::{Arm, Record};
use brokertuner_core::{Envelope, KNOB_COUNT, Knob, KnobSet, Settings, quantise_action};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Points of the Sobol sequence that are tried beside the default and the search's best.
const POINTS: u32 = 12;
/// Real scores closer than this are not in any order.
const SCORE_GAP: f64 = 0.05;
/// What is asked of the twin: the median and the 90th percentile of the difference of scores, the
/// share of pairs in order, and what its best settings may lose on the real broker.
pub(crate) const MEDIAN_MAX: f64 = 0.05;
pub(crate) const P90_MAX: f64 = 0.15;
const ORDERED_MIN: f64 = 0.95;
const LOSS_MAX: f64 = 0.03;
/// Scores of the twin that are the same.
const TIE: f64 = 1e-9;

/// The points as arms.
#[must_use]
pub fn arms() -> Vec<Arm> {
    let points = (0..POINTS)
        .map(|index| Arm::Given { name: format!("sobol-{index}"), settings: settings(index) });
    [Arm::Default].into_iter().chain(points).collect()
}

/// Settings at a point of the sequence, scrambled by its dimension: even over the envelope from the
/// first few points on.
fn settings(index: u32) -> Settings {
    let tuned = KnobSet::tuned_by_default();
    let mut output = [0.0; KNOB_COUNT];
    let moved = Knob::ALL.into_iter().filter(|knob| tuned.contains(*knob));
    for (dimension, knob) in (0..).zip(moved) {
        output[knob as usize] = 2.0 * sobol_burley::sample(index, dimension, 0) - 1.0;
    }
    Settings::decode(&quantise_action(&output), &Envelope::default())
}

/// One pair of load and settings, measured in both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Name of the load.
    pub scenario: String,
    /// Name of the settings.
    pub settings: String,
    /// Mean score on the real broker, 0..=1.
    pub real: f64,
    /// The same in the twin.
    pub twin: f64,
}

/// What `host calibrate --check` leaves beside its measurements, version 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// [`CHECKED_VERSION`].
    pub version: u32,
    /// Version of the real broker.
    pub broker_version: String,
    /// Pairs that were not measured, or were void.
    #[serde(default)]
    pub missing: usize,
    /// By load.
    pub points: Vec<Point>,
}

/// Version of [`Checked`].
pub const CHECKED_VERSION: u32 = 1;

/// How well the twin tells what the real broker does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fidelity {
    /// Pairs of load and settings that were measured in both.
    pub count: usize,
    /// Of the absolute difference of the scores.
    pub difference_median: f64,
    /// The same.
    pub difference_p90: f64,
    /// Pairs of settings of one load whose real scores differ.
    pub pairs: usize,
    /// Of them those that the twin orders alike.
    pub ordered_share: f64,
    /// The most that the twin's best settings are below the real best found, over the loads.
    pub loss_max: f64,
    /// The load of that.
    pub loss_scenario: String,
}

impl Fidelity {
    /// Of what was measured in both; `None` where that is nothing.
    #[must_use]
    pub fn of(points: &[Point]) -> Option<Fidelity> {
        let mut pairs: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
        for point in points {
            pairs.entry(&point.scenario).or_default().push(point);
        }
        let mut differences: Vec<f64> =
            points.iter().map(|point| (point.real - point.twin).abs()).collect();
        differences.sort_by(f64::total_cmp);
        let at = |share: f64| {
            #[allow(clippy::cast_possible_truncation, reason = "an index of a list")]
            let index = (differences.len() as f64 * share).ceil() as usize;
            differences.get(index.saturating_sub(1)).copied()
        };
        let (ordered, compared) = pairs
            .values()
            .map(|arms| order(arms))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let losses = pairs.iter().map(|(scenario, arms)| (loss(arms), *scenario));
        let (loss_max, loss_scenario) = losses.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Fidelity {
            count: differences.len(),
            // Of an even number the mean of the two in the middle.
            difference_median: f64::midpoint(at(0.5)?, *differences.get(differences.len() / 2)?),
            difference_p90: at(0.9)?,
            pairs: compared,
            ordered_share: if compared == 0 { 1.0 } else { ordered as f64 / compared as f64 },
            loss_max,
            loss_scenario: loss_scenario.to_owned(),
        })
    }

    /// Whether it is good enough to train in.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.difference_median <= MEDIAN_MAX
            && self.difference_p90 <= P90_MAX
            && self.ordered_share >= ORDERED_MIN
            && self.loss_max <= LOSS_MAX
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "difference of scores: median {:.3} (at most {MEDIAN_MAX}), 90th percentile {:.3} (at most {P90_MAX}), {} measurements\n\
             settings ordered alike: {:.1} % of {} pairs (at least {:.0} %)\n\
             the twin's best is {:.3} below the real best at most (at most {LOSS_MAX}), on {}\n",
            self.difference_median,
            self.difference_p90,
            self.count,
            self.ordered_share * 100.0,
            self.pairs,
            ORDERED_MIN * 100.0,
            self.loss_max,
            self.loss_scenario,
        )
    }
}

/// Score against score, a row for each load and settings.
#[must_use]
pub fn table(points: &[Point]) -> String {
    let mut out = String::new();
    for Point { scenario, settings, real, twin } in points {
        let mark = if (real - twin).abs() > P90_MAX { "  <" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{scenario:<20} {settings:<12} {real:>6.3} {twin:>6.3}{mark}");
    }
    out
}

/// What is in real records and in the twin's of the same loads and arms, by load.
#[must_use]
pub fn points(real: &[Record], twin: &[Record]) -> Vec<Point> {
    let mean = |records: &[Record], scenario: &str, arm: &str| {
        let of = records.iter().filter(|r| r.scenario == scenario && r.arm == arm);
        let scores: Vec<f64> = of.filter_map(Record::counted_score).collect();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    };
    let mut found: Vec<Point> = Vec::new();
    for Record { scenario, arm, .. } in real {
        if found.iter().any(|point| (&point.scenario, &point.settings) == (scenario, arm)) {
            continue;
        }
        let both = mean(real, scenario, arm).zip(mean(twin, scenario, arm));
        found.extend(both.map(|(real, twin)| Point {
            scenario: scenario.clone(),
            settings: arm.clone(),
            real,
            twin,
        }));
    }
    // Stable: the order of the arms stays.
    found.sort_by(|a, b| a.scenario.cmp(&b.scenario));
    found
}

/// Pairs that the twin orders alike, of those whose real scores differ.
fn order(arms: &[&Point]) -> (usize, usize) {
    let (mut alike, mut compared) = (0, 0);
    for (index, one) in arms.iter().enumerate() {
        for other in &arms[index + 1..] {
            if (one.real - other.real).abs() > SCORE_GAP {
                compared += 1;
                alike += usize::from((one.real - other.real) * (one.twin - other.twin) > 0.0);
            }
        }
    }
    (alike, compared)
}

/// What the twin's best settings lose on the real broker: of equals in the twin those that lose
/// most.
fn loss(arms: &[&Point]) -> f64 {
    let most = |scores: &dyn Fn(&Point) -> f64| {
        arms.iter().map(|point| scores(point)).fold(f64::NEG_INFINITY, f64::max)
    };
    let (real, twin) = (most(&|point| point.real), most(&|point| point.twin));
    let chosen = arms.iter().filter(|point| point.twin >= twin - TIE);
    real - chosen.map(|point| point.real).fold(real, f64::min)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn point(scenario: &str, settings: &str, real: f64, twin: f64) -> Point {
        Point { scenario: scenario.to_owned(), settings: settings.to_owned(), real, twin }
    }

    #[test]
    fn fidelity_by_hand() {
        let points = [
            point("a", "default", 0.10, 0.12),
            point("a", "x", 0.90, 0.50),
            point("a", "y", 0.80, 0.70),
            point("b", "default", 0.50, 0.50),
        ];
        let found = Fidelity::of(&points).unwrap();
        assert_eq!((found.count, found.pairs), (4, 3));
        // Of 0.00, 0.02, 0.10 and 0.40.
        assert!((found.difference_median - 0.06).abs() < 1e-12);
        assert!((found.difference_p90 - 0.40).abs() < 1e-12);
        // x is above y on the real broker, and below it in the twin.
        assert!((found.ordered_share - 2.0 / 3.0).abs() < 1e-12);
        assert!((found.loss_max - 0.10).abs() < 1e-12);
        assert_eq!(found.loss_scenario, "a");
        assert!(!found.is_good());
        assert_eq!(Fidelity::of(&[]), None);
        let tied = |real| point("a", "z", real, 0.70);
        let loss_with =
            |real| Fidelity::of(&[&points[..], &[tied(real)]].concat()).unwrap().loss_max;
        assert!(
            (loss_with(0.60) - 0.30).abs() < 1e-12,
            "of two that are best in the twin the worse"
        );
        assert!((loss_with(0.85) - 0.10).abs() < 1e-12);
        assert_eq!(table(&points).lines().filter(|line| line.ends_with('<')).count(), 1);
    }
}
