//! What the files hold, read within limits and checked: they may come from anywhere.

use super::ReportError;
use super::find::{PROGRESS, VALIDATION};
use crate::calibrate::check::{CHECKED_VERSION, Checked, Fidelity};
use crate::evaluate::Record;
use crate::logs::{ProgressRow, ValidationRow};
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

const RESULT_BYTES_MAX: u64 = 256 << 20;
const LOG_BYTES_MAX: u64 = 64 << 20;
const CHECKED_BYTES_MAX: u64 = 16 << 20;
/// Of a name that a file gives.
const NAME_CHARS_MAX: usize = 200;
/// Of counts of messages: sums of many stay numbers.
const COUNT_MAX: u64 = 1 << 48;
/// Of seconds from the start of a score, and of steps of a training run.
const SECONDS_MAX: f64 = 1e7;
const STEPS_MAX: u64 = 1 << 48;
const CHANGES_MAX: usize = 10_000;
const PHASES_MAX: usize = 1_000;

const RESULT_REMEDY: &str =
    "move the file aside, or mend or remove the line (`host evaluate` writes such files)";
const LOG_REMEDY: &str =
    "move the folder aside, or mend or remove the line (`host train` writes such files)";
const CHECKED_REMEDY: &str = "move the file aside, or run `host calibrate --check` again";

/// A result file of `host evaluate`.
#[derive(Clone, Debug)]
pub struct Results {
    /// The file.
    pub path: PathBuf,
    /// Its measurements, without what a report does not show.
    pub records: Vec<Record>,
    /// Its last line was not finished: it may still be written.
    pub is_torn: bool,
}

impl Results {
    /// Reads it.
    ///
    /// # Errors
    /// [`ReportError`], by line.
    pub fn read(path: &Path) -> Result<Results, ReportError> {
        let text = text(path, RESULT_BYTES_MAX, RESULT_REMEDY)?;
        let (whole, is_torn) = finished(&text);
        let mut records = Vec::new();
        for (index, line) in whole.lines().enumerate() {
            let fault = |reason| fault(path, index as u64 + 1, reason, RESULT_REMEDY);
            let mut record: Record = serde_json::from_str(line)
                .map_err(|error| fault(format!("no result of host evaluate: {}", told(&error))))?;
            sound(&record).map_err(fault)?;
            slim(&mut record);
            records.push(record);
        }
        Ok(Results { path: path.to_owned(), records, is_torn })
    }
}

/// What the parser says of one line: it would call each of them the first.
fn told(error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    format!("{}, column {}", error.to_string().replace(&place, ""), error.column())
}

/// Whether its numbers are in their ranges.
fn sound(record: &Record) -> Result<(), String> {
    let outcome = &record.outcome;
    share("score", record.score)?;
    let tally = &outcome.load.tally;
    for (name, count) in [
        ("seconds", outcome.load.seconds),
        ("seconds_void", outcome.load.seconds_void),
        ("expected", tally.expected),
        ("in_time", tally.in_time),
        ("lost_late", tally.lost_late),
        ("lost_queue", tally.lost_queue),
        ("lost_outage", tally.lost_outage),
        ("lost_memory", tally.lost_memory),
    ] {
        if count > COUNT_MAX {
            return Err(format!("{name} {count} is more than anything can count"));
        }
    }
    if outcome.phases.len() > PHASES_MAX || outcome.timeline.len() > CHANGES_MAX {
        return Err(format!("more than {PHASES_MAX} phases or {CHANGES_MAX} changes of settings"));
    }
    let length_s: f64 = outcome.phases.iter().map(|phase| f64::from(phase.duration_s)).sum();
    let at_s: Vec<f64> = outcome.timeline.iter().map(|step| step.at_s).collect();
    // What is no number is not inside either.
    if !at_s.iter().chain([&length_s]).all(|at_s| at_s.abs() <= SECONDS_MAX) {
        return Err(format!("a time beyond {SECONDS_MAX} s"));
    }
    if !at_s.is_sorted() {
        return Err("changes of settings are not in order".to_owned());
    }
    for step in &outcome.timeline {
        brokertuner_core::render::parse(&step.settings_conf)
            .map_err(|error| format!("settings of the timeline: {error}"))?;
    }
    Ok(())
}

fn share(name: &str, value: Option<f64>) -> Result<(), String> {
    match value {
        Some(value) if !(0.0..=1.0).contains(&value) => {
            Err(format!("{name} {value} is not in 0..=1"))
        }
        _ => Ok(()),
    }
}

/// Drops what takes room and is not shown; makes names fit to be shown.
fn slim(record: &mut Record) {
    for name in [&mut record.scenario, &mut record.arm, &mut record.broker_version] {
        *name = label(name);
    }
    for phase in &mut record.outcome.phases {
        phase.name = label(&phase.name);
    }
    record.outcome.load.phases = Vec::new();
    record.outcome.agent = None;
}

/// A text of a file, fit to be shown: no control characters (XML has none, and those that turn
/// the direction of writing would make a page say something else), and not endless. It is escaped
/// where it is written.
#[must_use]
pub fn label(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            || matches!(c, '\u{fffe}' | '\u{ffff}')
    };
    let clean = text.chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c });
    let mut shown: String = clean.clone().take(NAME_CHARS_MAX).collect();
    if clean.count() > NAME_CHARS_MAX {
        shown.push('\u{2026}');
    }
    shown
}

/// A folder of `host train`.
#[derive(Clone, Debug)]
pub struct Run {
    /// The folder.
    pub dir: PathBuf,
    /// Rows of `progress.csv`.
    pub progress: Vec<ProgressRow>,
    /// Rows of `validation.csv`.
    pub validation: Vec<ValidationRow>,
}

impl Run {
    /// Reads the logs that are there.
    ///
    /// # Errors
    /// [`ReportError`], by line.
    pub fn read(dir: &Path) -> Result<Run, ReportError> {
        let progress: Vec<ProgressRow> = log(&dir.join(PROGRESS), |row: &ProgressRow| {
            (row.step, row.wall_s, row.episode_score_mean)
        })?;
        let validation = log(&dir.join(VALIDATION), |row: &ValidationRow| {
            (row.step, row.wall_s, Some(row.score))
        })?;
        Ok(Run { dir: dir.to_owned(), progress, validation })
    }
}

/// The finished rows of a log; none where there is no such file. `key` gives step, seconds and
/// score of a row.
fn log<T: DeserializeOwned>(
    path: &Path,
    key: impl Fn(&T) -> (u64, f64, Option<f64>),
) -> Result<Vec<T>, ReportError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = text(path, LOG_BYTES_MAX, LOG_REMEDY)?;
    let (whole, _) = finished(&text);
    let mut reader = csv::Reader::from_reader(whole.as_bytes());
    let mut rows = Vec::new();
    for row in reader.deserialize() {
        // The header is line 1.
        let line = rows.len() as u64 + 2;
        let fault = |reason| fault(path, line, reason, LOG_REMEDY);
        let row: T = row.map_err(|error| fault(format!("no row of host train: {error}")))?;
        let (step, wall_s, score) = key(&row);
        if step > STEPS_MAX || !wall_s.is_finite() {
            return Err(fault(format!("step {step} or wall_s {wall_s} is out of range")));
        }
        share("score", score).map_err(fault)?;
        rows.push(row);
    }
    Ok(rows)
}

/// What `host calibrate --check` left.
///
/// # Errors
/// [`ReportError`], by line.
pub fn checked(path: &Path) -> Result<(Checked, Fidelity), ReportError> {
    let text = text(path, CHECKED_BYTES_MAX, CHECKED_REMEDY)?;
    let fault = |line, reason| fault(path, line, reason, CHECKED_REMEDY);
    let mut checked: Checked = serde_json::from_str(&text)
        .map_err(|error| fault(error.line() as u64, format!("no comparison: {error}")))?;
    if checked.version != CHECKED_VERSION {
        return Err(fault(1, format!("version {} is not {CHECKED_VERSION}", checked.version)));
    }
    checked.broker_version = label(&checked.broker_version);
    for (index, point) in checked.points.iter_mut().enumerate() {
        point.scenario = label(&point.scenario);
        point.settings = label(&point.settings);
        for (name, score) in [("real", point.real), ("twin", point.twin)] {
            share(name, Some(score))
                .map_err(|why| fault(1, format!("point {}: {why}", index + 1)))?;
        }
    }
    let fidelity = Fidelity::of(&checked.points).ok_or_else(|| fault(1, "no points".to_owned()))?;
    Ok((checked, fidelity))
}

fn fault(path: &Path, line: u64, reason: String, remedy: &'static str) -> ReportError {
    // What a parser says may quote the file.
    ReportError::Line { path: path.to_owned(), line, reason: label(&reason), remedy }
}

/// The lines that end, and whether there is more.
fn finished(text: &str) -> (&str, bool) {
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    (&text[..end], end < text.len())
}

/// A file's text, not longer than `limit_bytes`.
fn text(path: &Path, limit_bytes: u64, remedy: &'static str) -> Result<String, ReportError> {
    let read = |source| ReportError::Read { path: path.to_owned(), source };
    // A pipe or device would block, or never end.
    if !fs::metadata(path).map_err(read)?.is_file() {
        return Err(ReportError::Unknown { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit_bytes + 1).read_to_end(&mut bytes))
        .map_err(read)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(ReportError::TooLarge { path: path.to_owned(), limit_bytes });
    }
    String::from_utf8(bytes).map_err(|error| {
        let sound = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = sound.iter().filter(|&&byte| byte == b'\n').count() as u64 + 1;
        fault(path, line, "not UTF-8".to_owned(), remedy)
    })
}
