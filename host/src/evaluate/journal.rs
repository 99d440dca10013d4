//! The result file: one JSON object per line, appended and flushed as each trial ends.

use super::arms;
use super::identity::{Differs, Identity};
use crate::trial::Outcome;
use anyhow::Context as _;
use brokertuner_core::{Settings, render};
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
    /// Seed of the actor, in the `untrained` arm.
    pub actor: Option<u64>,
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
    /// Digests of what was measured.
    pub identity: Identity,
    /// All that was measured.
    pub outcome: Outcome,
}

impl Record {
    /// The score, where it says something.
    #[must_use]
    pub fn counted_score(&self) -> Option<f64> {
        self.score.filter(|_| !self.is_void)
    }
}

/// Which measurement: no two records have the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) scenario: String,
    pub(super) arm: String,
    pub(super) actor: Option<u64>,
    pub(super) repeat: u32,
    pub(super) seed: u64,
}

impl Key {
    fn is_of(&self, record: &Record) -> bool {
        (&self.scenario, &self.arm) == (&record.scenario, &record.arm)
            && (self.actor, self.repeat) == (record.actor, record.repeat)
    }
}

/// The records so far, and the file that they stand in.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the file before anything is measured; with `resume` its records count, but for those
    /// in which the machine was too slow: they are measured again.
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
        let mut records = parse(&text[..whole]).with_context(|| {
            format!("{name} is no result file of this version; give another --out")
        })?;
        records.retain(|record| !record.is_void);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write {name}; choose another --out"))?;
        file.set_len(whole as u64).with_context(|| format!("cannot mend {name}"))?;
        Ok(Journal { path: path.to_owned(), file, records })
    }

    /// That measurement.
    pub(super) fn find(&self, key: &Key) -> Option<&Record> {
        self.records.iter().find(|record| key.is_of(record))
    }

    /// The settings that the `random` arm was measured with on that load.
    ///
    /// # Errors
    /// A record whose settings are none.
    pub(super) fn chosen_at_random(&self, scenario: &str) -> anyhow::Result<Option<Settings>> {
        let is_it = |record: &&Record| record.scenario == scenario && record.arm == arms::RANDOM;
        let Some(record) = self.records.iter().find(is_it) else { return Ok(None) };
        let settings = render::parse(&record.outcome.settings_conf)
            .with_context(|| format!("{}: {} on {scenario}", self.path.display(), arms::RANDOM))?;
        Ok(Some(settings))
    }

    /// Holds what is to be measured now against what was measured before.
    ///
    /// # Errors
    /// [`Differs`] where one table would show the two as one.
    pub(super) fn check(
        &self,
        key: &Key,
        identity: &Identity,
        file: Option<&Path>,
    ) -> Result<(), Differs> {
        let differs = |record: &Record| {
            let is_repeat = key.is_of(record);
            let is_comparable = !identity.is_per_load || key.scenario == record.scenario;
            let is_arm = (&key.arm, key.actor) == (&record.arm, record.actor) && is_comparable;
            let what = if record.identity.rules != identity.rules {
                "profile, Mosquitto, pinning, calibration or build of this program".to_owned()
            } else if key.scenario == record.scenario
                && record.identity.scenario != identity.scenario
            {
                "text of the scenario, or with other --quick, --stretch or --sys-interval-s"
                    .to_owned()
            } else if is_arm && record.identity.setter != identity.setter {
                match (file, key.actor) {
                    (Some(file), _) => {
                        format!("content of {} (or edge, for a model)", file.display())
                    }
                    (None, Some(_)) => {
                        "edge, or --model, which the untrained actors are like".to_owned()
                    }
                    (None, None) if identity.is_per_load => "rule of thumb".to_owned(),
                    (None, None) => "--random-n or --seed".to_owned(),
                }
            } else if is_repeat && record.seed != key.seed {
                format!("--seed ({} in this repeat, now {})", record.seed, key.seed)
            } else {
                return None;
            };
            let (arm, scenario) = (record.arm.clone(), record.scenario.clone());
            Some(Differs { out: self.path.clone(), arm, scenario, what })
        };
        self.records.iter().find_map(differs).map_or(Ok(()), Err)
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

    /// All measurements so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The broker's capacity that these measurements are multiples of: one table has one rate.
    #[must_use]
    pub fn capacity_msgs_per_s(&self) -> Option<f64> {
        self.records.iter().find_map(|record| record.outcome.load.capacity_msgs_per_s)
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
