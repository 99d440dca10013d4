//! `host report`: one page and its plots, from files that other verbs left.
//!
//! Files are found ([`find`]), read within limits and checked ([`data`]), made into figures
//! ([`scores`], [`curves`], [`settings`]), drawn (`plots`) and set on a page (`page`). What a
//! file says is never trusted: texts are escaped where they are written, numbers are checked where
//! they are read.

pub mod curves;
pub mod data;
mod error;
pub mod find;
mod page;
mod plots;
pub mod scores;
pub mod settings;
#[cfg(test)]
mod tests;

pub use error::ReportError;
pub use plots::Plot;

use crate::calibrate::check::{Checked, Fidelity};
use curves::Curves;
use data::{Results, Run};
use find::Found;
use scores::Scores;
use serde::Serialize;
use settings::Timeline;
use std::path::{Path, PathBuf};

/// What was chosen beside the files.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// The per-site arm that headroom is measured by; `None`: the one with the highest mean.
    pub best: Option<String>,
    /// Loads whose settings are drawn over time; none: those with more than one phase.
    pub scenarios: Vec<String>,
}

/// A section that is not on the page, or a file that is in none, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Section or file.
    pub what: String,
    /// Why.
    pub why: String,
}

/// The twin against the real broker, of one file.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// The file.
    pub file: PathBuf,
    /// What it holds.
    pub checked: Checked,
    /// Medians and shares of it.
    pub fidelity: Fidelity,
}

/// All that the page shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// A table and its plots for all results that may stand in one table.
    pub scores: Vec<Scores>,
    /// Learning over environment steps.
    pub curves: Option<Curves>,
    /// Settings over time.
    pub timelines: Vec<Timeline>,
    /// The twin against the real broker.
    pub twin: Vec<Against>,
    /// What is not on the page.
    pub left_out: Vec<LeftOut>,
}

impl Report {
    /// Reads the files and works out the figures.
    ///
    /// # Errors
    /// [`ReportError`], by file and line.
    pub fn read(found: Found, choice: &Choice) -> Result<Report, ReportError> {
        let results: Vec<Results> =
            found.results.iter().map(|path| Results::read(path)).collect::<Result<_, _>>()?;
        let runs: Vec<Run> =
            found.runs.iter().map(|dir| Run::read(dir)).collect::<Result<_, _>>()?;
        let mut left_out = found.left_out;
        left_out.extend(results.iter().filter(|results| results.is_torn).map(|results| {
            let why = "its last line is not finished; that measurement is not shown";
            LeftOut { what: results.path.display().to_string(), why: why.to_owned() }
        }));
        let mut report = Report { curves: Curves::of(&runs), left_out, ..Report::default() };
        for path in &found.checks {
            let (checked, fidelity) = data::checked(path)?;
            report.twin.push(Against { file: path.clone(), checked, fidelity });
        }
        let groups = scores::group(results);
        report.timelines = settings::choose(&groups, choice, &mut report.left_out)?;
        if let Some(best) = &choice.best {
            scores::check_best(&groups, best)?;
        }
        for group in &groups {
            report.scores.push(Scores::of(group, choice.best.as_deref())?);
        }
        report.note_missing_sections();
        if report.scores.is_empty() && report.curves.is_none() && report.twin.is_empty() {
            return Err(ReportError::Nothing { left_out: report.left_out });
        }
        Ok(report)
    }

    fn note_missing_sections(&mut self) {
        let is_drawn = !self.timelines.is_empty();
        let missing = [
            (self.scores.is_empty(), "scores", "no result file of host evaluate was given"),
            (
                self.scores.is_empty() && !is_drawn,
                "settings over time",
                "no result file of host evaluate was given",
            ),
            (self.curves.is_none(), "learning curves", "no folder of host train was given"),
            (
                self.twin.is_empty(),
                "twin against real",
                "no file of host calibrate --check was given",
            ),
        ];
        for (is_missing, what, why) in missing {
            if is_missing {
                self.left_out.push(LeftOut { what: what.to_owned(), why: why.to_owned() });
            }
        }
    }

    /// Every plot, in the order of the page.
    ///
    /// # Errors
    /// [`ReportError::Draw`]: a bug of this program.
    pub fn plots(&self) -> Result<Vec<Plot>, ReportError> {
        plots::all(self)
    }

    /// The page with these plots in it.
    #[must_use]
    pub fn page(&self, plots: &[Plot]) -> String {
        page::html(self, plots)
    }
}

/// A path for people.
fn shown(path: &Path) -> String {
    data::label(&path.display().to_string())
}
