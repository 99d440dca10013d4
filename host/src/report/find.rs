//! Which files a report is made of.

use super::{LeftOut, ReportError};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// Folders below the one that was given.
const DEPTH_MAX: usize = 12;
/// Files and folders that are looked at.
const ENTRIES_MAX: usize = 100_000;
/// Of a first line, to tell what a file is.
const FIRST_LINE_BYTES_MAX: u64 = 16 << 20;
/// How `host calibrate --check` ends the name of its pairs of scores, and of its measurements.
const CHECKED: &str = ".check.json";
const CHECKED_RECORDS: &str = ".check.jsonl";
/// The logs that make a folder one of `host train`.
pub(super) const PROGRESS: &str = "progress.csv";
pub(super) const VALIDATION: &str = "validation.csv";

/// The files of a report, each once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Result files of `host evaluate`.
    pub results: Vec<PathBuf>,
    /// Folders of `host train`.
    pub runs: Vec<PathBuf>,
    /// Files of `host calibrate --check`.
    pub checks: Vec<PathBuf>,
    /// Files that looked like one of these and are not.
    pub left_out: Vec<LeftOut>,
}

impl Found {
    /// Takes files by their names, and looks for such names in folders. In a folder, lines of
    /// JSON that are no results are passed over; a file that is named must be what its name says.
    ///
    /// # Errors
    /// [`ReportError`] where a path is not there or of no kind that fits, or a folder has too much.
    pub fn below(paths: &[PathBuf]) -> Result<Found, ReportError> {
        let mut found = Found::default();
        let mut entries_left = ENTRIES_MAX;
        for path in paths {
            let kind = fs::metadata(path).map_err(at(path))?;
            if kind.is_dir() {
                found.folder(path, DEPTH_MAX, &mut entries_left)?;
            } else if !(kind.is_file() && found.named(path)) {
                return Err(ReportError::Unknown { path: path.clone() });
            }
        }
        for list in [&mut found.results, &mut found.runs, &mut found.checks] {
            let mut seen = Vec::new();
            list.retain(|path| {
                let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
                let is_new = !seen.contains(&real);
                seen.push(real);
                is_new
            });
        }
        Ok(found)
    }

    /// Whether its name says what it is.
    fn named(&mut self, path: &Path) -> bool {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name.ends_with(CHECKED) {
            self.checks.push(path.to_owned());
        } else if [PROGRESS, VALIDATION].contains(&name) {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            self.runs.push(dir.unwrap_or(Path::new(".")).to_owned());
        } else if path.extension() == Some(OsStr::new("jsonl")) {
            self.results.push(path.to_owned());
        } else {
            return false;
        }
        true
    }

    fn folder(
        &mut self,
        dir: &Path,
        depth_left: usize,
        entries_left: &mut usize,
    ) -> Result<(), ReportError> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir).map_err(at(dir))? {
            let entry = entry.map_err(at(dir))?;
            let too_many = || ReportError::TooMany { what: super::shown(dir), limit: ENTRIES_MAX };
            *entries_left = entries_left.checked_sub(1).ok_or_else(too_many)?;
            // Of a link, not of what it leads to: no circles.
            entries.push((entry.path(), entry.file_type().map_err(at(dir))?));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, kind) in entries {
            if kind.is_dir() {
                if depth_left > 0 {
                    self.folder(&path, depth_left - 1, entries_left)?;
                }
            } else if fs::metadata(&path).is_ok_and(|kind| kind.is_file()) {
                self.in_folder(&path);
            }
        }
        Ok(())
    }

    fn in_folder(&mut self, path: &Path) {
        let name = path.to_string_lossy();
        if name.ends_with(CHECKED_RECORDS) || !self.named(path) {
            return;
        }
        if self.results.last().is_some_and(|last| last == path)
            && let Some(why) = no_results(path)
        {
            self.results.pop();
            self.left_out.push(LeftOut { what: super::shown(path), why: why.to_owned() });
        }
    }
}

/// The keys that a result has.
#[derive(Deserialize)]
struct Probe {
    #[serde(rename = "scenario")]
    _scenario: IgnoredAny,
    #[serde(rename = "arm")]
    _arm: IgnoredAny,
    #[serde(rename = "outcome")]
    _outcome: IgnoredAny,
}

/// Why that file holds no results of `host evaluate`.
fn no_results(path: &Path) -> Option<&'static str> {
    let mut line = Vec::new();
    let first = File::open(path).and_then(|file| {
        BufReader::new(file.take(FIRST_LINE_BYTES_MAX)).read_until(b'\n', &mut line)
    });
    match first {
        Ok(0) => Some("it is empty"),
        // Reading it whole will say what is wrong.
        Err(_) => None,
        Ok(_) => serde_json::from_slice::<Probe>(&line)
            .is_err()
            .then_some("its first line is no result of host evaluate"),
    }
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> ReportError {
    let path = path.to_owned();
    |source| ReportError::Read { path, source }
}
