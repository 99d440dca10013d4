//! What was changed and why, for people: a line of JSON per event, in two files of bounded size.
//!
//! Only events are written, never figures of every tick, and the newest file is synced to the disk
//! only after an event that calls for a person: a power cut costs the others at most their last
//! half minute, and an SD card wears by what is synced. Nothing that the agent does rests on it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use brokertuner_core::controller::Health;
use serde::{Deserialize, Serialize};

use crate::fs::{self as seam, FileError, Files, RealFiles};
use crate::state::How;

/// Largest size of each of the two files: some hundred changes.
const FILE_BYTES_MAX: u64 = 128 * 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The settings were changed.
    Changed,
    /// They were to be changed, and that did not go through.
    Failed,
    /// A change was undone.
    RolledBack,
    /// The broker was restarted once more with the settings of the change before, or that was tried.
    Restarted,
    /// A change stood its verification; the entry has the number of that change.
    Verified,
    /// An operator's order was carried out.
    Ordered,
    /// A person's request waits for a restart.
    Scheduled,
    /// A person's request is not made, or not by itself; the entry has the number of that request.
    Dropped,
    /// Someone else changed the drop-in.
    HandsOff,
    /// Another model is in use.
    ModelReplaced,
    /// A new model was refused; the one in use stays.
    ModelRefused,
}

impl Event {
    /// Whether a person should look, so that it must survive a power cut.
    fn calls_for_a_person(self) -> bool {
        matches!(self, Self::Failed | Self::RolledBack | Self::HandsOff | Self::ModelRefused)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changed => "changed",
            Self::Failed => "tried, and it did not go through",
            Self::RolledBack => "undone",
            Self::Restarted => "restarted once more",
            Self::Verified => "stood its verification",
            Self::Ordered => "ordered",
            Self::Scheduled => "waits for a restart",
            Self::Dropped => "waits no longer",
            Self::HandsOff => "hands off",
            Self::ModelReplaced => "another model is in use",
            Self::ModelRefused => "a new model was refused",
        })
    }
}

/// A group of inputs and how much it moved a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Influence {
    /// The group.
    pub inputs: String,
    /// Steps that the changed options move by together when the group alone is put back; 254 are
    /// one option's whole range.
    pub steps: u32,
    /// What was measured of it.
    pub figures: BTreeMap<String, f32>,
}

impl fmt::Display for Influence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} steps", self.inputs, self.steps)?;
        let mut before = " (";
        for (name, value) in &self.figures {
            write!(f, "{before}{name} {value:.1}")?;
            before = ", ";
        }
        if self.figures.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The number of the decision, for `edge explain`.
    pub id: u64,
    /// Unix time.
    pub at_unix_s: u64,
    /// What happened.
    pub event: Event,
    /// Why, or how it ended.
    pub why: String,
    /// Options that changed, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diff: Vec<String>,
    /// How it reached the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<How>,
    /// The inputs that weighed most, the heaviest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub influences: Vec<Influence>,
    /// What the change is for, and by what it is judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<String>,
    /// How the broker did before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Health>,
    /// How it did after, over the second half of the verify window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Health>,
    /// The decisions that this one undoes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undoes: Vec<u64>,
    /// Commands that undo it by hand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<String>,
}

impl Entry {
    /// An entry of now that says no more than this.
    #[must_use]
    pub fn new(id: u64, event: Event, why: impl Into<String>) -> Self {
        Self {
            id,
            at_unix_s: crate::apply::unix_s(),
            event,
            why: why.into(),
            diff: Vec::new(),
            how: None,
            influences: Vec::new(),
            expected: Vec::new(),
            before: None,
            after: None,
            undoes: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// When, in UTC.
    #[must_use]
    pub fn at(&self) -> String {
        utc(self.at_unix_s)
    }
}

/// A Unix time in UTC, for people.
pub(crate) fn utc(unix_s: u64) -> String {
    let at_s = i64::try_from(unix_s).unwrap_or(i64::MAX);
    let Ok(at) = tz::UtcDateTime::from_timespec(at_s, 0) else { return at_s.to_string() };
    let (year, month, day) = (at.year(), at.month(), at.month_day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A broker's health for people.
pub(crate) struct Shown<'h>(pub(crate) &'h Health);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Health {
            is_serving,
            received_per_s,
            probe_latency_us,
            dropped_share,
            clients,
            memory_share,
        } = self.0;
        f.write_str(if *is_serving { "serving" } else { "answering nobody" })?;
        let percent = |share: Option<f32>| share.map(|share| share * 100.0);
        for (name, value, unit) in [
            ("received", *received_per_s, " messages/s"),
            ("probe", *probe_latency_us, " us"),
            ("dropped", percent(*dropped_share), " %"),
            ("clients", *clients, ""),
            ("memory", percent(*memory_share), " % of the limit"),
        ] {
            match value {
                Some(value) => write!(f, ", {name} {value:.0}{unit}")?,
                None => write!(f, ", {name} unknown")?,
            }
        }
        Ok(())
    }
}

fn rows(f: &mut fmt::Formatter<'_>, title: &str, lines: &[String]) -> fmt::Result {
    for (index, line) in lines.iter().enumerate() {
        writeln!(f, "{:<10}{line}", if index == 0 { title } else { "" })?;
    }
    Ok(())
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "decision {} at {}: {}", self.id, self.at(), self.event)?;
        if let Some(how) = self.how {
            write!(f, ", by a {how}")?;
        }
        let mut before = ", which undoes decision ";
        for undone in &self.undoes {
            write!(f, "{before}{undone}")?;
            before = " and ";
        }
        writeln!(f)?;
        rows(f, "what", &self.diff)?;
        rows(f, "why", std::slice::from_ref(&self.why))?;
        let influences: Vec<_> = self.influences.iter().map(ToString::to_string).collect();
        rows(f, "inputs", &influences)?;
        rows(f, "expected", &self.expected)?;
        for (title, health) in [("before", &self.before), ("after", &self.after)] {
            if let Some(health) = health {
                writeln!(f, "{title:<10}{}", Shown(health))?;
            }
        }
        rows(f, "to undo", &self.undo)
    }
}

/// The journal of a state directory.
#[derive(Debug, Clone)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    /// The journal of a state directory; touches nothing.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("journal.jsonl") }
    }

    /// The newer file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn older(&self) -> PathBuf {
        self.path.with_extension("jsonl.1")
    }

    /// Appends an entry, and sets the older file aside for good where the newer one is full.
    ///
    /// # Errors
    /// [`FileError`]; the journal may lack the entry or have a part of it.
    pub fn append(&self, entry: &Entry) -> Result<(), FileError> {
        let mut line = serde_json::to_vec(entry)
            .map_err(io::Error::from)
            .map_err(seam::at("write", &self.path))?;
        line.push(b'\n');
        let size = fs::metadata(&self.path).map_or(0, |found| found.len());
        if size + line.len() as u64 > FILE_BYTES_MAX && size > 0 {
            let older = self.older();
            RealFiles.rename(&self.path, &older).map_err(seam::at("replace", &older))?;
        }
        self.write(&line, entry.event.calls_for_a_person()).map_err(seam::at("write", &self.path))
    }

    fn write(&self, line: &[u8], is_synced: bool) -> io::Result<()> {
        let mut file = seam::open_own(&self.path)?;
        if !ends_a_line(&mut file)? {
            // A power cut took the rest of the last one.
            file.write_all(b"\n")?;
        }
        file.write_all(line)?;
        if is_synced { file.sync_data() } else { Ok(()) }
    }

    /// Every entry that can be read, the oldest first. A line that a power cut tore is passed over.
    ///
    /// # Errors
    /// [`FileError`] where a file is there and can't be read.
    pub fn read(&self) -> Result<Vec<Entry>, FileError> {
        let mut entries = Vec::new();
        for path in [self.older(), self.path.clone()] {
            let bytes = RealFiles.read(&path).map_err(seam::at("read", &path))?.unwrap_or_default();
            let lines = bytes.split(|&byte| byte == b'\n');
            entries.extend(lines.filter_map(|line| serde_json::from_slice::<Entry>(line).ok()));
        }
        Ok(entries)
    }

    /// The highest number of a decision; 0 where there is none.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.read().ok().and_then(|read| read.iter().map(|entry| entry.id).max()).unwrap_or(0)
    }

    /// The last change or attempt, with what was seen of it since; `None` where there was none.
    #[must_use]
    pub fn last(&self) -> Option<Entry> {
        let entries = self.read().ok()?;
        let is_change = |entry: &&Entry| {
            matches!(entry.event, Event::Changed | Event::Failed | Event::RolledBack)
        };
        let mut last = entries.iter().rfind(is_change)?.clone();
        let is_its = |entry: &&Entry| entry.event == Event::Verified && entry.id == last.id;
        last.after = entries.iter().rfind(is_its).and_then(|entry| entry.after).or(last.after);
        Some(last)
    }
}

fn ends_a_line(file: &mut fs::File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn entry(id: u64) -> Entry {
        let health = Health { is_serving: true, clients: Some(12.0), ..Health::default() };
        Entry {
            at_unix_s: 1_763_720_000,
            diff: vec!["max_inflight_messages 20 -> 1000".into()],
            how: Some(How::Restart),
            influences: vec![Influence {
                inputs: "latency".into(),
                steps: 61,
                figures: BTreeMap::from([("probe_latency_us_qos1".into(), 52_000.0)]),
            }],
            expected: vec!["max_inflight_messages: hides the link".into()],
            before: Some(health),
            undo: vec!["edge rollback".into()],
            ..Entry::new(id, Event::Changed, "the policy's answer")
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_shown() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::in_dir(dir.path());
        assert_eq!(journal.read().unwrap(), []);
        assert_eq!(journal.last(), None);
        journal.append(&entry(7)).unwrap();
        let after = Health { is_serving: true, ..Health::default() };
        let seen = Entry { after: Some(after), ..Entry::new(7, Event::Verified, "") };
        journal.append(&seen).unwrap();
        journal.append(&Entry::new(8, Event::Ordered, "pause")).unwrap();
        let entries = journal.read().unwrap();
        assert_eq!((entries.len(), &entries[0]), (3, &entry(7)));
        assert_eq!(journal.last(), Some(Entry { after: Some(after), ..entry(7) }));
        let shown = "decision 7 at 2025-11-21T10:13:20Z: changed, by a restart\n\
                     what      max_inflight_messages 20 -> 1000\n\
                     why       the policy's answer\n\
                     inputs    latency 61 steps (probe_latency_us_qos1 52000.0)\n\
                     expected  max_inflight_messages: hides the link\n\
                     before    serving, received unknown, probe unknown, dropped unknown, clients 12, memory unknown\n\
                     to undo   edge rollback\n";
        assert_eq!(entry(7).to_string(), shown);
    }

    #[test]
    fn two_files_bound_it_and_the_newest_entries_stay() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::in_dir(dir.path());
        let count = 2000;
        (0..count).for_each(|id| journal.append(&entry(id)).unwrap());
        let sizes: Vec<u64> = fs::read_dir(dir.path())
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|&size| size <= FILE_BYTES_MAX), "{sizes:?}");
        let ids: Vec<u64> = journal.read().unwrap().iter().map(|entry| entry.id).collect();
        assert!(ids.len() > 200 && ids.is_sorted() && ids.last() == Some(&(count - 1)));
    }

    #[test]
    fn a_torn_line_costs_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::in_dir(dir.path());
        journal.append(&entry(1)).unwrap();
        journal.append(&entry(2)).unwrap();
        let length = fs::metadata(journal.path()).unwrap().len();
        fs::OpenOptions::new()
            .write(true)
            .open(journal.path())
            .unwrap()
            .set_len(length - 40)
            .unwrap();
        journal.append(&entry(3)).unwrap();
        let ids: Vec<u64> = journal.read().unwrap().iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [1, 3]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_and_no_panic() {
        let error = Journal::in_dir(Path::new("/nonexistent")).append(&entry(1)).unwrap_err();
        assert!(error.to_string().contains("journal.jsonl"), "{error}");
    }
}
