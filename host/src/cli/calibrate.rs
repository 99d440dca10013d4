//! `host calibrate`.

use super::options::{self, BrokerOptions, create_parent};
use super::{Answer, print};
use crate::calibrate::check::{self, Checked, Fidelity};
use crate::calibrate::{Report, calibrate, refit};
use crate::evaluate::{Arm, Bench, Done, EvaluateConfig, Journal, evaluate, tell_apart};
use crate::trial::Profile;
use crate::twin::Calibration;
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Measure the real broker on this machine for the twin.
///
/// Runs small loads for about three minutes, then finds the costs with which the twin spends the
/// CPU time that the broker spent. Nothing else should run meanwhile.
///
/// With --check it measures how well the twin does with the calibration in --out: settings spread
/// over the envelope, the default, and those of --best, under each load, in both. That takes a
/// minute a measurement; each is appended to a file beside --out, and --resume goes on. The pairs
/// of scores are left beside it (.check.json) for `host report`. Exit status 1 where the twin is
/// not good enough, or not all has been measured, --best included.
#[derive(Debug, clap::Args)]
pub(crate) struct CalibrateArgs {
    /// The file for `--calibration` of other verbs.
    #[arg(long, value_name = "FILE", default_value = "runs/calibration.toml")]
    out: PathBuf,
    /// Find the costs anew from the measurements of the last run (the .json beside --out).
    #[arg(long, conflicts_with = "check")]
    refit: bool,
    /// Derive, instead of measuring, what the program carries for a core that has this share of
    /// that one's speed.
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["check", "refit"], value_parser = share)]
    cpu_share: Option<f64>,
    /// Compare scores instead: the twin with the calibration in --out against the real broker.
    #[arg(long)]
    check: bool,
    /// Loads of --check, by name or path; default: all that the program carries.
    #[arg(long = "scenario", value_name = "NAME|PATH", requires = "check")]
    scenarios: Vec<String>,
    /// The search's best for each load, from a folder of `host search --each`.
    #[arg(long, value_name = "DIR", requires = "check")]
    best: Option<PathBuf>,
    /// Start no new measurement of --check after this many seconds.
    #[arg(long, value_name = "S", requires = "check")]
    duration_s: Option<u64>,
    /// Go on with the measurements of an earlier --check.
    #[arg(long, requires = "check")]
    resume: bool,
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
        if self.check {
            return self.compare();
        }
        // Before the minutes that it takes.
        create_parent(&self.out)?;
        if let Some(share) = self.cpu_share {
            return self.derive(share);
        }
        let measured = self.out.with_extension("json");
        let report = if self.refit {
            let name = measured.display();
            let text = std::fs::read(&measured)
                .with_context(|| format!("cannot read {name}; calibrate without --refit first"))?;
            let before: Report = serde_json::from_slice(&text)
                .with_context(|| format!("{name} is no report; calibrate without --refit"))?;
            refit(&before)?
        } else {
            calibrate(&self.broker.find()?, !self.no_pin, self.seed)?
        };
        options::write(&measured, &serde_json::to_vec_pretty(&report)?)?;
        options::write(&self.out, toml::to_string(&report.calibration)?.as_bytes())?;
        print(&if self.json {
            serde_json::to_string_pretty(&report)? + "\n"
        } else {
            table(&report) + &format!("\n{}\n", self.out.display())
        })?;
        Ok(Answer::Yes)
    }
}

/// A share of a core's speed: 0.01 to 1, as that of a scenario.
fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.01..=1.0).contains(&share).then_some(share).ok_or_else(|| "not 0.01 to 1".to_owned())
}

/// The calibration that the program carries, on a core with that share of its speed, as a file that
/// says so.
fn derived(share: f64) -> Result<String> {
    let calibration = Calibration::default().slowed(share.recip());
    Ok(format!(
        "# Derived, not measured: a broker whose core has {share} of the speed of that in\n\
         # mosquitto-2.0.21.toml (`host calibrate --cpu-share {share}`).\n{}",
        toml::to_string(&calibration)?
    ))
}

impl CalibrateArgs {
    fn derive(&self, share: f64) -> Result<Answer> {
        options::write(&self.out, derived(share)?.as_bytes())?;
        print(&match self.json {
            true => serde_json::to_string_pretty(&Calibration::load(&self.out)?)? + "\n",
            false => format!("{}\n", self.out.display()),
        })?;
        Ok(Answer::Yes)
    }

    /// Score against score. Answers no where the twin is not good enough, or not all was measured.
    fn compare(&self) -> Result<Answer> {
        let calibration = Calibration::load(&self.out)?;
        let scenarios = options::loads(&self.scenarios, 0)?;
        let mut arms = check::arms();
        if let Some(dir) = &self.best {
            arms.push(Arm::per_site(dir, &scenarios)?);
        }
        tell_apart(&mut arms)?;
        let mosquitto = self.broker.find()?;
        let mut journal = Journal::open(&self.out.with_extension("check.jsonl"), self.resume)?;
        let mut real = EvaluateConfig {
            broker_version: mosquitto.version().to_string(),
            bench: Bench::Broker {
                mosquitto: mosquitto.clone(),
                edge: None,
                allow_uncapped: self.broker.allow_uncapped,
                pin: !self.no_pin,
            },
            scenarios,
            arms,
            repeats: 1,
            seed: self.seed,
            random_count: 0,
            duration: self.duration_s.map(Duration::from_secs),
            profile: Profile::judging()?,
            capacity_msgs_per_s: journal.capacity_msgs_per_s(),
        };
        // Before the capacity, which takes a minute.
        real.check(&journal)?;
        if real.capacity_msgs_per_s.is_none() {
            real.capacity_msgs_per_s = options::capacity(&mosquitto, &real.scenarios, self.seed)?;
        }
        // First, since who interrupts the hours on the broker wants to see them compared.
        let twin = played(&real, calibration)?;
        let done = evaluate(&real, &mut journal);
        let points = check::points(journal.records(), twin.records());
        let Some(fidelity) = Fidelity::of(&points) else {
            done?;
            bail!(
                "nothing was measured that counts: end what else runs here, and go on with --resume"
            );
        };
        let checked = Checked {
            version: check::CHECKED_VERSION,
            broker_version: real.broker_version.clone(),
            missing: (real.scenarios.len() * real.arms.len()).saturating_sub(points.len()),
            points,
        };
        self.show(&checked, &fidelity)?;
        let is_whole = done? == Done::All && checked.missing == 0 && self.best.is_some();
        Ok(if is_whole && fidelity.is_good() { Answer::Yes } else { Answer::No })
    }

    /// Leaves the pairs for `host report`, and prints them.
    fn show(&self, checked: &Checked, fidelity: &Fidelity) -> Result<()> {
        let compared = self.out.with_extension("check.json");
        options::write(&compared, &serde_json::to_vec_pretty(checked)?)?;
        if self.json {
            return print(&(serde_json::to_string_pretty(fidelity)? + "\n"));
        }
        let mut text =
            format!("{:<20} {:<12} {:>6} {:>6}\n", "scenario", "settings", "real", "twin");
        text += &(check::table(&checked.points) + "\n" + &fidelity.text());
        if checked.missing > 0 {
            text += &format!(
                "{} were not measured, or were void; go on with --resume\n",
                checked.missing
            );
        }
        if self.best.is_none() {
            text += "The best settings are not among them: give --best, a folder of `host search --each`\n";
        }
        print(&text)
    }
}

/// The same in the twin.
fn played(real: &EvaluateConfig, calibration: Calibration) -> Result<Journal> {
    let twin = EvaluateConfig {
        broker_version: "twin".to_owned(),
        bench: Bench::Twin { calibration },
        duration: None,
        capacity_msgs_per_s: options::twin_capacity(&calibration, &real.scenarios)?,
        ..real.clone()
    };
    let file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let mut played = Journal::open(file.path(), false)?;
    evaluate(&twin, &mut played)?;
    Ok(played)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_raspberry_pi_is_derived_from_what_was_measured() {
        let shipped = include_str!("../../calibrations/raspberry-pi.toml");
        assert_eq!(derived(0.25).unwrap(), shipped);
    }

    #[test]
    fn a_share_is_a_hundredth_to_all_of_a_core() {
        for good in ["0.01", "0.25", "1"] {
            assert!(share(good).is_ok(), "{good}");
        }
        for bad in ["0", "-1", "1.5", "nan", "a quarter", ""] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
