//! What the demo found, as Markdown and JSON.

use super::TUNED_SCORE_MIN;
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

/// `report.json`, version 1.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: u32,
    pub(super) seed: u64,
    pub(super) broker_version: String,
    pub(super) parallel: u8,
    pub(super) train_s: u64,
    pub(super) train_steps: u64,
    pub(super) train_score_mean_last_quarter: f64,
    pub(super) deviation_steps_max: f64,
    pub(super) deviation_steps_mean: f64,
    pub(super) wall_s: f64,
    pub(super) measured: Vec<Measured>,
}

impl Report {
    /// Writes `report.md` and `report.json`.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        for (name, text) in [("report.md", self.markdown()), ("report.json", self.json()?)] {
            let path = dir.join(name);
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    pub(super) fn markdown(&self) -> String {
        let mut out = format!(
            "# BrokerTuner demo\n\nMosquitto {}, seed {}. Trained for {} s on {} real brokers at once ({} steps).\n\
             Scores are the share of deliveries within their deadline, 0 to 1, measured on live brokers under a\n\
             load with another seed than the training's; `tuned` and `untrained` were set by `edge` as a process.\n\n\
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
    let void = if outcome.load.is_void { " (void: the machine was too slow)" } else { "" };
    let score = outcome.load.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.3}"));
    format!("{score}{void}")
}
