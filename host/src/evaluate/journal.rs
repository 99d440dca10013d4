//! The result file: one JSON object per line, appended and flushed as each trial ends.

use crate::trial::Outcome;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Name of the load.
    pub scenario: String,
    /// Name of the arm.
    pub arm: String,
    /// Which repeat, from 0.
    pub repeat: u32,
    /// Seed of the load.
    pub seed: u64,
    /// 0 to 1; `None` where no second counted.
    pub score: Option<f64>,
    /// The machine was too slow for the load: the score says nothing.
    pub is_void: bool,
    /// Version of the broker.
    pub broker_version: String,
    /// All that was measured.
    pub outcome: Outcome,
}

/// The records so far, and the file that they stand in.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the file before anything is measured; with `resume` its records count.
    ///
    /// A last line that a crash cut short is dropped.
    ///
    /// # Errors
    /// A file that cannot be opened, or, with `resume`, one that is not a result file; without it,
    /// one that holds results already.
    pub fn open(path: &Path, resume: bool) -> anyhow::Result<Journal> {
        let name = path.display();
        let mut text = String::new();
        if path.exists() {
            text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
            if !resume && !text.is_empty() {
                anyhow::bail!(
                    "{name} holds results already; give --resume to go on, or another --out"
                );
            }
        }
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let records = parse(&text[..whole]).with_context(|| format!("{name} is no result file"))?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write {name}; choose another --out"))?;
        file.set_len(whole as u64).with_context(|| format!("cannot mend {name}"))?;
        Ok(Journal { path: path.to_owned(), file, records })
    }

    /// Whether that measurement is there.
    #[must_use]
    pub fn has(&self, scenario: &str, arm: &str, repeat: u32) -> bool {
        self.find(scenario, arm, repeat).is_some()
    }

    /// That measurement.
    #[must_use]
    pub fn find(&self, scenario: &str, arm: &str, repeat: u32) -> Option<&Record> {
        let is_it = |r: &&Record| r.scenario == scenario && r.arm == arm && r.repeat == repeat;
        self.records.iter().find(is_it)
    }

    /// Appends a measurement.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn append(&mut self, record: Record) -> anyhow::Result<()> {
        let line = serde_json::to_string(&record)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.records.push(record);
        Ok(())
    }

    /// All measurements.
    #[must_use]
    pub fn into_records(self) -> Vec<Record> {
        self.records
    }
}

fn parse(text: &str) -> anyhow::Result<Vec<Record>> {
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line).with_context(|| format!("line {}", index + 1))
        })
        .collect()
}
