//! `host report`.

use super::{Answer, options, print};
use crate::report::find::Found;
use crate::report::{Choice, LeftOut, Plot, Report};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;

/// The page.
const PAGE: &str = "index.html";

/// Make a page with plots of what other verbs measured.
///
/// One HTML file that needs nothing else, and each plot as an SVG file beside it: scores per load
/// and arm with their 95 % intervals, means and headroom; learning curves over seeds; settings over
/// time beside the phases of a load; the twin against the real broker. A section whose files are
/// not there is left out, and said to be.
///
/// PATHS are result files of `host evaluate` (.jsonl), folders of `host train` (progress.csv,
/// validation.csv), files of `host calibrate --check` (.check.json), or folders in which such files
/// are looked for by name. Training folders whose names differ only in the number at their end
/// (big-1, big-2) are drawn as seeds of one run. Results of another profile, Mosquitto, pinning or
/// version of this program get a table of their own.
#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// Files, and folders to look in.
    #[arg(value_name = "PATHS", default_value = "runs")]
    paths: Vec<PathBuf>,
    /// Folder of the page and the plots. What it holds under the same names is replaced.
    #[arg(long, value_name = "DIR", default_value = "runs/report")]
    out: PathBuf,
    /// The arm that headroom is measured by: (arm - default) / (this arm - default), of the means.
    /// Default: of the arms of `host evaluate --per-site` the one with the highest mean.
    #[arg(long, value_name = "ARM")]
    best: Option<String>,
    /// Draw the settings over time of this load; may be repeated. Default: six measurements at the
    /// most, those with the most phases first.
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// Paths and figures as one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `host report --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    page: PathBuf,
    plots: Vec<PathBuf>,
    #[serde(flatten)]
    report: &'a Report,
}

impl ReportArgs {
    /// Makes the report and says what is in it.
    ///
    /// # Errors
    /// A file that cannot be used, by name and line, or one that cannot be written.
    pub(crate) fn run(&self) -> Result<Answer> {
        print(&self.make()?)?;
        Ok(Answer::Yes)
    }

    /// Reads everything, then writes: the page last, and no file is ever half there.
    fn make(&self) -> Result<String> {
        let choice = Choice { best: self.best.clone(), scenarios: self.scenarios.clone() };
        let report = Report::read(Found::below(&self.paths)?, &choice)?;
        let plots = report.plots()?;
        let html = report.page(&plots);
        std::fs::create_dir_all(&self.out).with_context(|| {
            format!("cannot create {}; choose another --out", self.out.display())
        })?;
        for plot in &plots {
            options::write(&self.out.join(&plot.file), plot.svg.as_bytes())?;
        }
        let page = self.out.join(PAGE);
        options::write(&page, html.as_bytes())?;
        if !self.json {
            return Ok(self.text(&report, &plots));
        }
        let plots = plots.iter().map(|plot| self.out.join(&plot.file)).collect();
        let document = Document { version: 1, page, plots, report: &report };
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }

    fn text(&self, report: &Report, plots: &[Plot]) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        for scores in &report.scores {
            let files: Vec<String> =
                scores.files.iter().map(|file| file.display().to_string()).collect();
            let (bench, common) = (scores.bench(), scores.common());
            let _ = writeln!(out, "means {bench} {common} ({}):", files.join(", "));
            for mean in &scores.means {
                let score = mean.mean.map_or_else(|| "-".to_owned(), |mean| format!("{mean:.3}"));
                let headroom = mean
                    .headroom
                    .map_or_else(String::new, |share| format!("  headroom {:.0} %", 100.0 * share));
                let _ = writeln!(out, "  {:<20} {score:>6}{headroom}", mean.arm);
            }
        }
        for against in &report.twin {
            out += &against.fidelity.text();
        }
        for LeftOut { what, why } in &report.left_out {
            let _ = writeln!(out, "left out: {what}: {why}");
        }
        for plot in plots {
            let _ = writeln!(out, "{}", self.out.join(&plot.file).display());
        }
        let _ = writeln!(out, "{}", self.out.join(PAGE).display());
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;
    use std::path::Path;

    const CHECKED: &str = r#"{"version":1,"broker_version":"2.0.21","points":[
        {"scenario":"a","settings":"default","real":0.5,"twin":0.52},
        {"scenario":"a","settings":"sobol-0","real":0.9,"twin":0.7}]}"#;

    fn make(dir: &Path, more: &[&str]) -> Result<String> {
        let out = dir.join("out").display().to_string();
        let args = ["host", "report", "--out", &out].into_iter().chain(more.iter().copied());
        let Command::Report(args) = Cli::try_parse_from(args).unwrap().command else {
            panic!("another verb")
        };
        args.make()
    }

    #[test]
    fn a_folder_becomes_a_page_with_its_plots_and_says_what_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        std::fs::create_dir(&runs).unwrap();
        std::fs::write(runs.join("calibration.check.json"), CHECKED).unwrap();
        let text = make(dir.path(), &[&runs.display().to_string()]).unwrap();
        for words in [
            "difference of scores: median 0.110 (at most 0.05), 90th percentile 0.200",
            "left out: scores: no result file",
            "left out: learning curves: no folder",
            "out/twin-against-real.svg\n",
            "out/index.html\n",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        let mut files: Vec<_> = std::fs::read_dir(dir.path().join("out"))
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["index.html", "twin-against-real.svg"]);
        let json = make(dir.path(), &["--json", &runs.display().to_string()]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["version"], 1);
        assert!(json["page"].as_str().unwrap().ends_with("out/index.html"));
        assert_eq!(json["plots"].as_array().unwrap().len(), 1);
        let median = json["twin"][0]["fidelity"]["difference_median"].as_f64().unwrap();
        assert!((median - 0.11).abs() < 1e-9);
    }

    #[test]
    fn nothing_is_written_where_a_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("a.check.json"), dir.path().join("b.jsonl"));
        std::fs::write(&good, CHECKED).unwrap();
        std::fs::write(&bad, "{}\n").unwrap();
        let [good, bad] = [good, bad].map(|path| path.display().to_string());
        let message = make(dir.path(), &[&good, &bad]).unwrap_err().to_string();
        assert!(message.contains("b.jsonl: line 1: "), "{message}");
        let message = make(dir.path(), &["/nonexistent/runs"]).unwrap_err().to_string();
        assert!(message.contains("cannot read /nonexistent/runs"), "{message}");
        assert!(!dir.path().join("out").exists());
    }
}
