//! What was evaluated: one JSON object a line, appended as it is found out.

use brokertuner_core::{Settings, render};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Name of the load.
    pub scenario: String,
    /// Digest of the load, and of the broker or calibration that it ran on.
    pub world: String,
    /// The settings as a drop-in.
    pub settings_conf: String,
    /// 0..=1.
    pub score: f64,
    /// The score less prices.
    pub worth: f64,
    /// The real broker's capacity that the load's rates were multiples of, if any are.
    #[serde(default)]
    pub capacity_msgs_per_s: Option<f64>,
}

/// Where settings are evaluated.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// Name of the load.
    pub scenario: &'a str,
    /// Of everything that a score depends on beside the settings.
    pub digest: &'a str,
    /// As in [`Evaluation`].
    pub capacity_msgs_per_s: Option<f64>,
}

/// A file of evaluations that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Reading or writing failed.
    #[error("{}: {source}; choose another --out", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// It holds something else.
    #[error("{}: line {line} is no evaluation: {source}; choose another --out", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It holds evaluations, and nobody said to go on with them.
    #[error("{} holds evaluations already; give --resume to go on, or another --out", path.display())]
    Used {
        /// The file.
        path: PathBuf,
    },
}

/// All evaluations so far, in memory and in the file.
#[derive(Debug)]
pub struct Evaluations {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    known: HashMap<(String, String), (f64, f64)>,
    capacity_msgs_per_s: Option<f64>,
}

impl Evaluations {
    /// Opens the file; with `resume` what it holds need not be found out again. A last line that a
    /// crash cut short is dropped.
    ///
    /// # Errors
    /// [`SearchError`], which names the file.
    pub fn open(path: &Path, resume: bool) -> Result<Evaluations, SearchError> {
        let at = |source| SearchError::File { path: path.to_owned(), source };
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.map_err(at)?,
        };
        if !resume && !text.is_empty() {
            return Err(SearchError::Used { path: path.to_owned() });
        }
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut known = HashMap::new();
        let mut capacity_msgs_per_s = None;
        for (index, line) in text[..whole].lines().enumerate() {
            let found: Evaluation = serde_json::from_str(line).map_err(|source| {
                SearchError::Line { path: path.to_owned(), line: index + 1, source }
            })?;
            capacity_msgs_per_s = capacity_msgs_per_s.or(found.capacity_msgs_per_s);
            known.insert((found.world, found.settings_conf), (found.score, found.worth));
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(at)?;
        file.set_len(whole as u64).map_err(at)?;
        Ok(Evaluations {
            path: path.to_owned(),
            inner: Mutex::new(Inner { file, known, capacity_msgs_per_s }),
        })
    }

    /// Score and worth of `settings` in `world`: from the file, or by `find`, and then into it.
    ///
    /// # Errors
    /// As `find`; or where the file cannot be written.
    pub fn get_or(
        &self,
        world: &World<'_>,
        settings: &Settings,
        find: impl FnOnce() -> anyhow::Result<(f64, f64)>,
    ) -> anyhow::Result<(f64, f64)> {
        let settings_conf = render::render(settings).as_str().to_owned();
        let key = (world.digest.to_owned(), settings_conf.clone());
        let known = self.lock().known.get(&key).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let (score, worth) = find()?;
        let World { scenario, digest, capacity_msgs_per_s } = *world;
        let (scenario, world) = (scenario.to_owned(), digest.to_owned());
        let evaluation =
            Evaluation { scenario, world, settings_conf, score, worth, capacity_msgs_per_s };
        let mut inner = self.lock();
        inner.capacity_msgs_per_s = inner.capacity_msgs_per_s.or(capacity_msgs_per_s);
        let line = serde_json::to_string(&evaluation)? + "\n";
        let at = |source| SearchError::File { path: self.path.clone(), source };
        inner.file.write_all(line.as_bytes()).map_err(at)?;
        inner.known.insert(key, (score, worth));
        Ok((score, worth))
    }

    /// The real broker's capacity that what was evaluated so far is in multiples of.
    #[must_use]
    pub fn capacity_msgs_per_s(&self) -> Option<f64> {
        self.lock().capacity_msgs_per_s
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
