//! What the demo found, as Markdown and JSON.

use super::TUNED_SCORE_MIN;
use crate::export::replace;
use crate::trial::Outcome;
use anyhow::{Context as _, Result};
use brokertuner_core::render;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// The three arms on one load.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) scenario: String,
    pub(super) default: Outcome,
    pub(super) untrained: Outcome,
    pub(super) tuned: Outcome,
}

impl Measured {
    fn has_void(&self) -> bool {
        [&self.default, &self.untrained, &self.tuned].iter().any(|arm| arm.load.seconds_void > 0)
    }
}

/// `report.json`, version 1.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: u32,
    pub(super) seed: u64,
    pub(super) broker_version: String,
    pub(super) parallel: u8,
    /// Seconds of training in all.
    pub(super) train_s: u64,
    /// Those among them that came after a first policy that did not do well.
    pub(super) train_more_s: u64,
    pub(super) train_steps: u64,
    pub(super) train_score_mean_last_quarter: f64,
    pub(super) deviation_steps_max: f64,
    pub(super) deviation_steps_mean: f64,
    pub(super) wall_s: f64,
    pub(super) measured: Vec<Measured>,
}

impl Report {
    /// Whether the tuned brokers do well on every load, as far as this machine could tell: a second
    /// in which the generator lagged says nothing about the broker.
    pub(super) fn is_good(&self) -> bool {
        self.measured.iter().all(|row| {
            let is_high = row.tuned.load.score.is_some_and(|score| score >= TUNED_SCORE_MIN);
            is_high && row.tuned.load.is_telling() && row.default.load.is_telling()
        })
    }

    /// Writes `report.md` and `report.json`, each whole or not at all.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        for (name, text) in [("report.md", self.markdown()), ("report.json", self.json()?)] {
            let path = dir.join(name);
            replace(&path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    pub(super) fn markdown(&self) -> String {
        let more = match self.train_more_s {
            0 => String::new(),
            more_s => {
                format!("; {more_s} s of it since the policy was below {TUNED_SCORE_MIN} before")
            }
        };
        let mut out = format!(
            "# BrokerTuner demo\n\nMosquitto {}, seed {}. Trained for {} s on {} real brokers at once ({} steps{more}).\n\
             Scores are the share of deliveries within their deadline, 0 to 1, measured on live brokers under a\n\
             load with another seed than the training's; `tuned` and `untrained` were set by `edge` as a process.\n\
             The loads were measured at once, one column after the other: the runs shared this machine and were not\n\
             pinned to cores; where the machine was too slow for half the seconds, the run was made again,\n\
             alone and pinned, up to three times.\n\
             `host evaluate` measures one run at a time, pinned.\n\n\
             | load | default | untrained actor | tuned by edge |\n|---|---|---|---|\n",
            self.broker_version, self.seed, self.train_s, self.parallel, self.train_steps
        );
        for row in &self.measured {
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                row.scenario,
                cell(&row.default),
                cell(&row.untrained),
                cell(&row.tuned)
            );
        }
        if self.measured.iter().any(Measured::has_void) {
            out.push_str(
                "\nIn a void second the load generator itself was late: it says nothing about the broker and is left\n\
                 out. Where more than half are void, run the demo again with less beside it.\n",
            );
        }
        for row in &self.measured {
            self.settings(&mut out, row);
        }
        let _ = write!(
            out,
            "\n## Training\n\nMean score of the last quarter of the steps: {:.3}. Exported int8 model against the f32\n\
             policy: largest deviation {:.2}/127, mean {:.2}/127. The whole demo took {:.0} s.\n\
             Logs: `train/progress.csv`, `train/action_throughput_log.csv`. Model: `model.btm` (`host inspect`).\n",
            self.train_score_mean_last_quarter,
            self.deviation_steps_max,
            self.deviation_steps_mean,
            self.wall_s
        );
        out
    }

    fn settings(&self, out: &mut String, row: &Measured) {
        let _ = write!(
            out,
            "\n## Settings that edge chose for {}\n\nRestarts of the broker: {}.\n\n",
            row.scenario, row.tuned.restarts
        );
        match render::parse(&row.tuned.settings_conf) {
            Ok(settings) if !settings.written().is_empty() => {
                out.push_str(
                    "| option | value | broker's default | why it matters |\n|---|---|---|---|\n",
                );
                for (knob, setting) in settings.iter() {
                    if let Some(value) = setting.value() {
                        let spec = knob.spec();
                        let _ = writeln!(
                            out,
                            "| `{knob}` | {value} | {} | {} |",
                            spec.default, spec.why
                        );
                    }
                }
            }
            _ => out.push_str("None: the defaults were left alone.\n"),
        }
        if row.tuned.load.score.is_none_or(|score| score < TUNED_SCORE_MIN) {
            let _ = writeln!(
                out,
                "\nThe tuned score is below {TUNED_SCORE_MIN}: train longer (`--train-s`), or see the logs."
            );
        }
    }
}

fn cell(outcome: &Outcome) -> String {
    let (seconds, void) = (outcome.load.seconds, outcome.load.seconds_void);
    let void = match void {
        0 => String::new(),
        _ => format!(" ({void} of {seconds} s void)"),
    };
    let score = outcome.load.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.3}"));
    format!("{score}{void}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::load::LoadResult;

    fn outcome(score: f64, seconds_void: u64) -> Outcome {
        let tally = serde_json::json!({
            "expected": 1, "in_time": 1, "lost_late": 0, "lost_queue": 0, "lost_outage": 0, "lost_memory": 0
        });
        let load = serde_json::json!({
            "version": 1, "scenario": "t", "seed": 1, "score": score, "is_void": seconds_void > 1,
            "is_complete": true, "seconds": 30, "seconds_void": seconds_void, "capacity_msgs_per_s": null,
            "tally": tally, "delivered_per_s": 1.0, "duplicates": 0, "unexpected": 0,
            "discarded_by_publishers": 0, "resent": 0, "connections_lost": 0, "malformed_packets": 0,
            "rss_bytes_max": null, "rss_seconds_over": 0, "generator_lag_us_p99": 1,
            "generator_lag_us_max": 1, "generator_turn_us_max": 1, "phases": []
        });
        Outcome {
            load: serde_json::from_value::<LoadResult>(load).unwrap(),
            agent: None,
            settings_conf: "max_inflight_messages 1000\n".to_owned(),
            restarts: 1,
            is_uncapped: false,
            cpu_share: None,
            rss_bytes_end: None,
            phases: Vec::new(),
            timeline: Vec::new(),
        }
    }

    fn report(default: Outcome, tuned: Outcome) -> Report {
        let untrained = outcome(0.5, 0);
        let row = Measured { scenario: "t".to_owned(), default, untrained, tuned };
        Report {
            version: 1,
            seed: 1,
            broker_version: "2.0.21".to_owned(),
            parallel: 4,
            train_s: 240,
            train_more_s: 0,
            train_steps: 100,
            train_score_mean_last_quarter: 0.9,
            deviation_steps_max: 1.0,
            deviation_steps_mean: 0.1,
            wall_s: 400.0,
            measured: vec![row],
        }
    }

    #[test]
    fn a_run_of_void_seconds_is_no_success() {
        assert!(report(outcome(0.0, 0), outcome(0.95, 0)).is_good());
        assert!(report(outcome(0.0, 15), outcome(0.95, 15)).is_good());
        assert!(!report(outcome(0.0, 0), outcome(0.89, 0)).is_good());
        assert!(!report(outcome(0.0, 0), outcome(0.95, 16)).is_good());
        assert!(!report(outcome(0.0, 16), outcome(0.95, 0)).is_good());
    }

    #[test]
    fn a_run_that_says_too_little_is_made_again_until_one_says_enough() {
        let voids_kept = |first: u64, others: &[u64]| {
            let mut others = others.iter();
            let again = || Ok(others.next().map(|void| outcome(0.0, *void)));
            let mut kept = outcome(0.0, first);
            super::super::telling(&mut kept, again).unwrap();
            (kept.load.seconds_void, others.len())
        };
        assert_eq!(voids_kept(15, &[0]), (15, 1), "half is enough");
        assert_eq!(voids_kept(30, &[21, 25, 12, 0]), (12, 1));
        assert_eq!(voids_kept(20, &[30, 30, 30, 0]), (20, 1), "three at most");
        assert_eq!(voids_kept(20, &[]), (20, 0), "no time");
    }

    #[test]
    fn the_report_says_how_it_was_measured_and_what_is_void() {
        let text = report(outcome(0.0, 0), outcome(0.95, 0)).markdown();
        assert!(text.contains("shared this machine and were not\npinned"), "{text}");
        assert!(!text.contains("void"), "{text}");
        let text = report(outcome(0.0, 0), outcome(0.95, 3)).markdown();
        assert!(text.contains("| 0.950 (3 of 30 s void) |"), "{text}");
        assert!(text.contains("it says nothing about the broker"), "{text}");
    }

    #[test]
    fn a_policy_that_had_to_be_trained_further_is_told_of() {
        let mut report = report(outcome(0.0, 0), outcome(0.95, 0));
        assert!(!report.markdown().contains("since the policy"), "{}", report.markdown());
        report.train_more_s = 96;
        assert!(report.markdown().contains("; 96 s of it since the policy was below 0.9"));
        let is_lacking = |score, void| super::super::is_lacking(&outcome(score, void));
        assert!(is_lacking(0.89, 0) && !is_lacking(0.9, 0));
        assert!(!is_lacking(0.0, 30), "measured again, not trained further");
    }

    #[test]
    fn a_report_is_replaced_whole_and_nothing_stays_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("report.md"), "old").unwrap();
        // What reads the old one keeps it to the end: the new one is another file.
        let mut old = std::fs::File::open(dir.path().join("report.md")).unwrap();
        let report = report(outcome(0.0, 0), outcome(0.95, 0));
        report.write(dir.path()).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut old, &mut text).unwrap();
        assert_eq!(text, "old");
        let new = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
        assert_eq!(new, report.markdown());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
