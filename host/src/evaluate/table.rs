//! Means and spreads of an evaluation, as numbers and as a table.

use super::{Record, arms};
use crate::load::score::Tally;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One arm on one scenario.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the load.
    pub scenario: String,
    /// Name of the arm.
    pub arm: String,
    /// Measurements that count.
    pub repeats: usize,
    /// Measurements in which the machine was too slow.
    pub void: usize,
    /// What is independent among them: in the `untrained` arm the actors, elsewhere the
    /// measurements.
    pub independent: usize,
    /// Mean of the scores; `None` where no measurement counts.
    pub score_mean: Option<f64>,
    /// Standard deviation (n - 1) of what is independent; 0 for a single one.
    pub score_sd: Option<f64>,
    /// Of the measurements that count, those without the CPU quota that the load asks for: they
    /// say nothing about a small gateway.
    pub uncapped: usize,
    /// Seconds measured, those of void measurements among them.
    pub seconds: u64,
    /// Of them left out because the generator lagged.
    pub seconds_void: u64,
    /// The broker's capacity that the load's rates were multiples of.
    pub capacity_msgs_per_s: Option<f64>,
    /// What became of the messages of the measurements that count.
    pub tally: Tally,
}

/// Mean and standard deviation per scenario and arm, in order of first appearance of the arms.
/// The single tries of the `random` arm (`random-0` ...) are left out.
#[must_use]
pub fn summarise(records: &[Record]) -> Vec<Summary> {
    let mut groups: BTreeMap<(&str, usize), Vec<&Record>> = BTreeMap::new();
    let mut arms: Vec<&str> = Vec::new();
    for record in records.iter().filter(|record| !arms::is_try(&record.arm)) {
        let arm = arms.iter().position(|arm| *arm == record.arm).unwrap_or_else(|| {
            arms.push(&record.arm);
            arms.len() - 1
        });
        groups.entry((&record.scenario, arm)).or_default().push(record);
    }
    groups
        .into_iter()
        .map(|((scenario, arm), group)| summary(scenario, arms[arm], &group))
        .collect()
}

fn summary(scenario: &str, arm: &str, group: &[&Record]) -> Summary {
    let counted: Vec<&Record> =
        group.iter().copied().filter(|record| record.counted_score().is_some()).collect();
    let scores: Vec<f64> = counted.iter().filter_map(|record| record.counted_score()).collect();
    let (score_mean, _) = mean_and_sd(&scores);
    let independent = by_policy(&counted);
    let (_, score_sd) = mean_and_sd(&independent);
    let loads = || counted.iter().map(|record| &record.outcome.load);
    Summary {
        scenario: scenario.to_owned(),
        arm: arm.to_owned(),
        repeats: scores.len(),
        independent: independent.len(),
        void: group.len() - scores.len(),
        score_mean: (!scores.is_empty()).then_some(score_mean),
        score_sd: (!scores.is_empty()).then_some(score_sd),
        uncapped: counted.iter().filter(|record| record.outcome.is_uncapped).count(),
        seconds: group.iter().map(|record| record.outcome.load.seconds).sum(),
        seconds_void: group.iter().map(|record| record.outcome.load.seconds_void).sum(),
        capacity_msgs_per_s: group.iter().find_map(|r| r.outcome.load.capacity_msgs_per_s),
        tally: loads().map(|load| load.tally).sum(),
    }
}

/// Scores that are independent of each other: repeats of one policy among several are no new
/// policies, so that of each its mean stands.
fn by_policy(counted: &[&Record]) -> Vec<f64> {
    let mut scores: BTreeMap<(u64, u32), Vec<f64>> = BTreeMap::new();
    for record in counted {
        let key = record.actor.map_or((u64::MAX, record.repeat), |actor| (actor, 0));
        scores.entry(key).or_default().extend(record.counted_score());
    }
    scores.values().map(|scores| mean_and_sd(scores).0).collect()
}

/// Mean and sample standard deviation; 0 where there are too few values for one.
#[must_use]
pub fn mean_and_sd(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 })
}

/// The summaries as a table: a row per scenario, a column per arm, `mean +- sd (n)`.
#[must_use]
pub fn text(summaries: &[Summary]) -> String {
    let mut arms: Vec<&str> = Vec::new();
    let mut scenarios: Vec<&str> = Vec::new();
    for summary in summaries {
        if !arms.contains(&summary.arm.as_str()) {
            arms.push(&summary.arm);
        }
        if !scenarios.contains(&summary.scenario.as_str()) {
            scenarios.push(&summary.scenario);
        }
    }
    let cell = |scenario: &str, arm: &str| {
        let found = summaries.iter().find(|s| s.scenario == scenario && s.arm == arm);
        found.map_or_else(|| "-".to_owned(), cell)
    };
    let widths: Vec<usize> = arms
        .iter()
        .map(|arm| {
            let cells = scenarios.iter().map(|scenario| cell(scenario, arm).len());
            cells.chain([arm.len(), COLUMN]).max().unwrap_or(COLUMN)
        })
        .collect();
    let mut out = format!("{:<COLUMN$}", "scenario");
    for (arm, width) in arms.iter().zip(&widths) {
        let _ = write!(out, " {arm:>width$}");
    }
    out.push('\n');
    for scenario in scenarios {
        let _ = write!(out, "{scenario:<COLUMN$}");
        for (arm, width) in arms.iter().zip(&widths) {
            let _ = write!(out, " {:>width$}", cell(scenario, arm));
        }
        out.push('\n');
    }
    out
}

/// Least width of a column of names or scores.
const COLUMN: usize = 20;

fn cell(summary: &Summary) -> String {
    let Some((mean, sd)) = summary.score_mean.zip(summary.score_sd) else {
        return format!("void ({})", summary.void);
    };
    let mut out = format!("{mean:.3} +- {sd:.3} ({}", summary.repeats);
    if summary.void > 0 {
        let _ = write!(out, ", {} void", summary.void);
    }
    if summary.uncapped > 0 {
        let _ = write!(out, ", {} uncapped", summary.uncapped);
    }
    out + ")"
}

/// What became of the messages, in % of those expected, with what the figures stand on.
#[must_use]
pub fn losses(summaries: &[Summary]) -> String {
    let width = summaries.iter().map(|s| s.arm.len()).chain([COLUMN]).max().unwrap_or(COLUMN);
    let mut out = format!(
        "{:<COLUMN$} {:<width$} {:>7} {:>7} {:>7} {:>7} {:>7} {:>11} {:>10}\n",
        "scenario", "arm", "in time", "late", "queue", "outage", "memory", "void s", "capacity/s"
    );
    for summary in summaries {
        let Tally { expected, in_time, lost_late, lost_queue, lost_outage, lost_memory } =
            summary.tally;
        let _ = write!(out, "{:<COLUMN$} {:<width$}", summary.scenario, summary.arm);
        for count in [in_time, lost_late, lost_queue, lost_outage, lost_memory] {
            let _ = write!(out, " {:>7.2}", 100.0 * count as f64 / expected.max(1) as f64);
        }
        let void = format!("{} of {}", summary.seconds_void, summary.seconds);
        let capacity = summary
            .capacity_msgs_per_s
            .map_or_else(|| "-".to_owned(), |capacity| format!("{capacity:.0}"));
        let _ = writeln!(out, " {void:>11} {capacity:>10}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(scenario: &str, arm: &str, score_mean: f64) -> Summary {
        Summary {
            scenario: scenario.into(),
            arm: arm.into(),
            repeats: 3,
            independent: 3,
            void: 0,
            score_mean: Some(score_mean),
            score_sd: Some(0.01),
            uncapped: 0,
            seconds: 60,
            seconds_void: 0,
            capacity_msgs_per_s: None,
            tally: Tally::default(),
        }
    }

    #[test]
    fn mean_and_sd_by_hand() {
        let (mean, sd) = mean_and_sd(&[0.2, 0.4, 0.6]);
        assert!((mean - 0.4).abs() < 1e-12 && (sd - 0.2).abs() < 1e-12);
        assert_eq!(mean_and_sd(&[]), (0.0, 0.0));
        assert_eq!(mean_and_sd(&[0.5]).1.to_bits(), 0);
    }

    #[test]
    fn where_nothing_counts_there_is_no_mean() {
        let void = Summary {
            repeats: 0,
            independent: 0,
            void: 2,
            score_mean: None,
            score_sd: None,
            ..summary("a", "m", 0.0)
        };
        assert!(text(std::slice::from_ref(&void)).contains("void (2)"));
        assert!(
            serde_json::to_string(&void).is_ok_and(|text| text.contains("\"score_mean\":null"))
        );
        assert_eq!(super::summary("a", "m", &[]).score_mean, None);
    }

    #[test]
    fn golden_table() {
        let table = text(&[
            summary("a", "default", 0.0),
            summary("a", "model", 0.98),
            summary("b", "default", 0.5),
        ]);
        assert_eq!(
            table,
            "scenario                          default                model\n\
             a                      0.000 +- 0.010 (3)   0.980 +- 0.010 (3)\n\
             b                      0.500 +- 0.010 (3)                    -\n"
        );
    }

    #[test]
    fn what_spoils_a_result_is_marked() {
        let marked = Summary { void: 1, uncapped: 2, ..summary("a", "m", 0.5) };
        assert!(text(&[marked]).contains("0.500 +- 0.010 (3, 1 void, 2 uncapped)"));
    }

    #[test]
    fn golden_losses() {
        let tally = Tally {
            expected: 1000,
            in_time: 900,
            lost_late: 50,
            lost_queue: 30,
            lost_outage: 15,
            lost_memory: 5,
        };
        let capacity_msgs_per_s = Some(81_234.5);
        let of = Summary { tally, capacity_msgs_per_s, seconds_void: 1, ..summary("a", "m", 0.9) };
        assert_eq!(
            losses(&[of]),
            "scenario             arm                  in time    late   queue  outage  memory      void s capacity/s\n\
             a                    m                      90.00    5.00    3.00    1.50    0.50     1 of 60      81234\n"
        );
    }

    #[test]
    fn single_tries_are_left_out() {
        assert!(arms::is_try("random-3"));
        assert!(!arms::is_try("random") && !arms::is_try("random-best"));
    }
}
