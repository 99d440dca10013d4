//! Means and spreads of an evaluation, as numbers and as a table.

use super::Record;
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
    /// Mean of the scores.
    pub score_mean: f64,
    /// Their standard deviation (n - 1); 0 for a single one.
    pub score_sd: f64,
}

/// Mean and standard deviation per scenario and arm, in order of first appearance of the arms.
/// The single tries of the `random` arm (`random-0` ...) are left out.
#[must_use]
pub fn summarise(records: &[Record]) -> Vec<Summary> {
    let mut groups: BTreeMap<(&str, usize), Vec<&Record>> = BTreeMap::new();
    let mut arms: Vec<&str> = Vec::new();
    for record in records.iter().filter(|record| !is_try(&record.arm)) {
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

fn is_try(arm: &str) -> bool {
    arm.strip_prefix("random-").is_some_and(|index| index.parse::<u32>().is_ok())
}

fn summary(scenario: &str, arm: &str, group: &[&Record]) -> Summary {
    let scores: Vec<f64> = group.iter().filter(|r| !r.is_void).filter_map(|r| r.score).collect();
    let (score_mean, score_sd) = mean_and_sd(&scores);
    Summary {
        scenario: scenario.to_owned(),
        arm: arm.to_owned(),
        repeats: scores.len(),
        void: group.len() - scores.len(),
        score_mean,
        score_sd,
    }
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
    let mut out = format!("{:<20}", "scenario");
    for arm in &arms {
        let _ = write!(out, " {arm:>20}");
    }
    out.push('\n');
    for scenario in scenarios {
        let _ = write!(out, "{scenario:<20}");
        for arm in &arms {
            let found = summaries.iter().find(|s| s.scenario == scenario && s.arm == *arm);
            let cell = found.map_or_else(|| "-".to_owned(), cell);
            let _ = write!(out, " {cell:>20}");
        }
        out.push('\n');
    }
    out
}

fn cell(summary: &Summary) -> String {
    let void = if summary.void > 0 { format!(", {} void", summary.void) } else { String::new() };
    if summary.repeats == 0 {
        return format!("void ({})", summary.void);
    }
    format!("{:.3} +- {:.3} ({}{void})", summary.score_mean, summary.score_sd, summary.repeats)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(scenario: &str, arm: &str, score_mean: f64) -> Summary {
        Summary {
            scenario: scenario.into(),
            arm: arm.into(),
            repeats: 3,
            void: 0,
            score_mean,
            score_sd: 0.01,
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
    fn single_tries_are_left_out() {
        assert!(is_try("random-3") && !is_try("random") && !is_try("random-best"));
    }
}
