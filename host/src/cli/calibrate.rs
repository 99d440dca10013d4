//! `host calibrate`.

use super::options::{self, BrokerOptions, create_parent};
use super::{Answer, print};
use crate::calibrate::{Report, calibrate};
use anyhow::Result;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Measure the real broker on this machine for the twin.
///
/// Runs small loads for about three minutes, then finds the costs with which the twin spends the
/// CPU time that the broker spent. Nothing else should run meanwhile.
#[derive(Debug, clap::Args)]
pub(crate) struct CalibrateArgs {
    /// The file for `--calibration` of other verbs.
    #[arg(long, value_name = "FILE", default_value = "runs/calibration.toml")]
    out: PathBuf,
    /// Seed of the loads' random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave broker and load unpinned.
    #[arg(long)]
    no_pin: bool,
    /// The calibration and the comparison as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerOptions,
}

impl CalibrateArgs {
    /// Measures, fits and writes.
    ///
    /// # Errors
    /// A broker that cannot be found or measured, a file that cannot be written.
    pub(crate) fn run(&self) -> Result<Answer> {
        if self.json {
            crate::progress::hide();
        }
        let mosquitto = self.broker.find()?;
        // Before the minutes that it takes.
        create_parent(&self.out)?;
        let report = calibrate(&mosquitto, !self.no_pin, self.seed)?;
        let about = format!(
            "# Mosquitto {} on the machine that it was measured on, by `host calibrate`.\n",
            mosquitto.version()
        );
        let text = about + &toml::to_string(&report.calibration)?;
        options::write(&self.out, text.as_bytes())?;
        print(&if self.json {
            serde_json::to_string_pretty(&report)? + "\n"
        } else {
            table(&report) + &format!("\n{}\n", self.out.display())
        })?;
        Ok(Answer::Yes)
    }
}

fn table(report: &Report) -> String {
    let mut out =
        format!("{:<32} {:>12} {:>12} {:>7}\n", "us per delivery", "real", "twin", "ratio");
    for row in &report.rows {
        let ratio = row.twin_us / row.real_us;
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<32} {:>12.2} {:>12.2} {ratio:>7.2}",
            row.name, row.real_us, row.twin_us
        );
    }
    out
}
