//! The two CSV logs of a training run. Columns are pinned by a golden test and documented in
//! `host/README.md`; a row is flushed when it is written, so a crash costs one step.

use brokertuner_core::{KNOBS, Settings, settings::SiteValues};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// In the column `applied`: the broker ended in the step, and the next state is a new world's.
pub const LOST: &str = "lost";

/// A log that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Creating or writing the file failed.
    #[error("{path}: {source}; free some space or choose another --out")]
    Csv {
        /// The log.
        path: PathBuf,
        /// What went wrong.
        source: csv::Error,
    },
    /// Opening or flushing the file failed.
    #[error("{path}: {source}; check the folder's permissions or choose another --out")]
    Io {
        /// The log.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Going on would mix two formats, or numbers that do not go on.
    #[error("{path}: {reason}; move the file aside, or begin anew with another --out")]
    Mismatch {
        /// The log.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// How far the logs of an earlier run reach.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reached {
    /// Environment steps.
    pub steps: u64,
    /// Seconds that the run took.
    pub wall_s: f64,
    /// Episodes begun.
    pub episodes_begun: u64,
    /// Episodes finished.
    pub episodes: u64,
}

/// `progress.csv`: one row per finished episode and one at the end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProgressRow {
    /// Environment steps so far, of all environments together.
    pub step: u64,
    /// Seconds since the start of the run.
    pub wall_s: f64,
    /// Finished episodes so far.
    pub episode: u64,
    /// Environment that finished it; empty on the last row.
    pub env: Option<usize>,
    /// Its scenario.
    pub scenario: String,
    /// Steps of the episode.
    pub episode_steps: u64,
    /// Sum of its rewards.
    pub episode_return: f64,
    /// Mean score of its steps that have one, 0..1.
    pub episode_score_mean: Option<f64>,
    /// Mean critic loss since the last row.
    pub critic_loss: f64,
    /// Mean actor loss (minus the mean Q) since the last row.
    pub actor_loss: f64,
    /// Mean Q of the sampled batches since the last row.
    pub q_mean: f64,
    /// Standard deviation of the exploration noise.
    pub noise_sigma: f64,
    /// Transitions in the replay buffer.
    pub replay_count: usize,
    /// Gradient steps so far.
    pub updates: u64,
}

/// The columns of `action_throughput_log.csv` that are not options; one row per environment step.
#[derive(Clone, Debug, Default)]
pub struct ActionRow {
    /// Seconds since the start of the run.
    pub wall_s: f64,
    /// Environment steps so far, of all environments together.
    pub step: u64,
    /// Which environment.
    pub env: usize,
    /// Its episode.
    pub episode: u64,
    /// Its scenario.
    pub scenario: String,
    /// What was done: `none`, `reload`, `restart`, `refused`, [`LOST`] or `load-restarted`.
    pub applied: &'static str,
    /// Milliseconds until the broker was ready; 0 where nothing was done.
    pub ready_ms: u64,
    /// In-time deliveries over expected, of the messages whose deadline expired in the step.
    pub score: Option<f64>,
    /// The reward; `None` where nothing was learnt of the step.
    pub reward: Option<f64>,
    /// Deliveries a second.
    pub delivered_per_s: f64,
    /// Largest delivery latency of the step.
    pub latency_us_max: Option<u64>,
    /// From `$SYS`: deliveries dropped a second.
    pub dropped_per_s: Option<f32>,
    /// Of one core.
    pub cpu_share: Option<f32>,
    /// Resident memory of the broker.
    pub rss_bytes: Option<f32>,
    /// The settings that are written.
    pub settings: Settings,
    /// What holds for the others: the main file of the environment's broker.
    pub site: SiteValues,
}

/// Column names of `action_throughput_log.csv`: those of [`ActionRow`], then one per option.
#[must_use]
pub fn action_columns() -> Vec<&'static str> {
    let mut columns = vec![
        "wall_s",
        "step",
        "env",
        "episode",
        "scenario",
        "applied",
        "ready_ms",
        "score",
        "reward",
        "delivered_per_s",
        "latency_us_max",
        "dropped_per_s",
        "cpu_share",
        "rss_bytes",
    ];
    columns.extend(KNOBS.iter().map(|spec| spec.key));
    columns
}

impl ActionRow {
    fn fields(&self) -> Vec<String> {
        fn or_empty<T: ToString>(value: Option<T>) -> String {
            value.map_or_else(String::new, |value| value.to_string())
        }
        let mut fields = vec![
            format!("{:.3}", self.wall_s),
            self.step.to_string(),
            self.env.to_string(),
            self.episode.to_string(),
            self.scenario.clone(),
            self.applied.to_string(),
            self.ready_ms.to_string(),
            or_empty(self.score.map(|score| format!("{score:.4}"))),
            or_empty(self.reward.map(|reward| format!("{reward:.4}"))),
            format!("{:.1}", self.delivered_per_s),
            or_empty(self.latency_us_max),
            or_empty(self.dropped_per_s),
            or_empty(self.cpu_share),
            or_empty(self.rss_bytes),
        ];
        fields.extend(
            KNOBS.iter().map(|spec| self.settings.effective(spec.knob, &self.site).to_string()),
        );
        fields
    }
}

/// A CSV file that is created before the work begins and flushed after every row.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    writer: csv::Writer<File>,
}

impl Log {
    /// Opens for appending where `resume`, else starts over. Answers the rows that are there.
    fn open(
        path: &Path,
        columns: &[&str],
        resume: bool,
    ) -> Result<(Log, Vec<csv::StringRecord>), LogError> {
        let io = |source| LogError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.create(true).read(true).write(true).truncate(!resume);
        let mut file = options.open(path).map_err(io)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        // A row that a crash cut short would spoil the next one.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let writer = csv::WriterBuilder::new().has_headers(false).from_writer(file);
        let mut log = Log { path: path.to_owned(), writer };
        let mut reader = csv::Reader::from_reader(&text.as_bytes()[..whole]);
        if whole == 0 {
            log.record(columns)?;
        } else if reader.headers().map_err(|source| log.csv(source))? != columns {
            let reason = "its columns are those of another version of this program";
            return Err(LogError::Mismatch { path: path.to_owned(), reason });
        }
        let rows = reader.records().collect::<Result<_, _>>().map_err(|source| log.csv(source))?;
        Ok((log, rows))
    }

    /// A field of a row that was written by an earlier run.
    fn number<T: FromStr>(
        &self,
        row: &csv::StringRecord,
        columns: &[&str],
        name: &str,
    ) -> Result<T, LogError> {
        let column = columns.iter().position(|column| *column == name);
        let field = column.and_then(|column| row.get(column)?.parse().ok());
        let reason = "a row of it is damaged";
        field.ok_or_else(|| LogError::Mismatch { path: self.path.clone(), reason })
    }

    fn csv(&self, source: csv::Error) -> LogError {
        LogError::Csv { path: self.path.clone(), source }
    }

    fn record<I, T>(&mut self, fields: I) -> Result<(), LogError>
    where
        I: IntoIterator<Item = T>,
        T: AsRef<[u8]>,
    {
        self.writer.write_record(fields).map_err(|source| self.csv(source))?;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), LogError> {
        self.writer.flush().map_err(|source| LogError::Io { path: self.path.clone(), source })
    }
}

/// Both logs of a run.
#[derive(Debug)]
pub struct TrainLogs {
    progress: Log,
    actions: Log,
    /// Opened by the first validation, if there is one.
    validation: Option<Log>,
    dir: PathBuf,
    resume: bool,
}

/// `validation.csv`: one row per judgement of the policy on loads that it does not learn from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRow {
    /// Environment steps so far.
    pub step: u64,
    /// Seconds since the start of the run.
    pub wall_s: f64,
    /// Mean score, 0..1.
    pub score: f64,
}

/// Column names of `validation.csv`.
pub const VALIDATION_COLUMNS: [&str; 3] = ["step", "wall_s", "score"];

/// Column names of `progress.csv`.
pub const PROGRESS_COLUMNS: [&str; 14] = [
    "step",
    "wall_s",
    "episode",
    "env",
    "scenario",
    "episode_steps",
    "episode_return",
    "episode_score_mean",
    "critic_loss",
    "actor_loss",
    "q_mean",
    "noise_sigma",
    "replay_count",
    "updates",
];

impl TrainLogs {
    /// Creates (or, with `resume`, goes on with) both files in `dir`. Answers how far they reach.
    ///
    /// # Errors
    /// [`LogError`] where a file cannot be made or cannot be gone on with.
    pub fn open(dir: &Path, resume: bool) -> Result<(TrainLogs, Reached), LogError> {
        let columns = PROGRESS_COLUMNS;
        let (progress, rows) = Log::open(&dir.join("progress.csv"), &columns, resume)?;
        let mut reached = Reached::default();
        if let Some(row) = rows.last() {
            reached.steps = progress.number(row, &columns, "step")?;
            reached.wall_s = progress.number(row, &columns, "wall_s")?;
            reached.episodes = progress.number(row, &columns, "episode")?;
            reached.episodes_begun = reached.episodes;
        }
        let columns = action_columns();
        let path = dir.join("action_throughput_log.csv");
        let (actions, rows) = Log::open(&path, &columns, resume)?;
        if let Some(row) = rows.last() {
            let (steps, wall_s) =
                (actions.number(row, &columns, "step")?, actions.number(row, &columns, "wall_s")?);
            reached.steps = reached.steps.max(steps);
            reached.wall_s = reached.wall_s.max(wall_s);
        }
        // Environments that run side by side do not begin their episodes in order.
        for row in &rows {
            let episode: u64 = actions.number(row, &columns, "episode")?;
            reached.episodes_begun = reached.episodes_begun.max(episode + 1);
        }
        let dir = dir.to_owned();
        Ok((TrainLogs { progress, actions, validation: None, dir, resume }, reached))
    }

    /// Appends to `progress.csv`.
    ///
    /// # Errors
    /// [`LogError`] where the file cannot be written.
    pub fn progress(&mut self, row: &ProgressRow) -> Result<(), LogError> {
        self.progress.writer.serialize(row).map_err(|source| self.progress.csv(source))?;
        self.progress.flush()
    }

    /// Appends to `validation.csv`.
    ///
    /// # Errors
    /// [`LogError`] where the file cannot be made or written, or cannot be gone on with.
    pub fn validation(&mut self, row: &ValidationRow) -> Result<(), LogError> {
        let log = match &mut self.validation {
            Some(log) => log,
            none => {
                let path = self.dir.join("validation.csv");
                let resume = self.resume && path.exists();
                none.insert(Log::open(&path, &VALIDATION_COLUMNS, resume)?.0)
            }
        };
        log.writer.serialize(row).map_err(|source| log.csv(source))?;
        log.flush()
    }

    /// The row of `validation.csv` with the highest score, of the runs that this one goes on with.
    ///
    /// # Errors
    /// [`LogError`] where the file cannot be read or is damaged.
    pub fn best_validation(&self) -> Result<Option<ValidationRow>, LogError> {
        let path = self.dir.join("validation.csv");
        if !self.resume || !path.exists() {
            return Ok(None);
        }
        let csv = |source| LogError::Csv { path: path.clone(), source };
        let rows = csv::Reader::from_path(&path).map_err(csv)?.into_deserialize();
        let rows = rows.collect::<Result<Vec<ValidationRow>, _>>().map_err(csv)?;
        // Of equals the first: the later one was not kept.
        Ok(rows.into_iter().rev().max_by(|a, b| a.score.total_cmp(&b.score)))
    }

    /// Appends to `action_throughput_log.csv`.
    ///
    /// # Errors
    /// [`LogError`] where the file cannot be written.
    pub fn action(&mut self, row: &ActionRow) -> Result<(), LogError> {
        self.actions.record(row.fields())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use brokertuner_core::Knob;

    fn write_both(dir: &Path, resume: bool) {
        let (mut logs, _) = TrainLogs::open(dir, resume).unwrap();
        let scenario = "wan-uplink".to_owned();
        logs.progress(&ProgressRow {
            step: 7,
            env: Some(1),
            scenario: scenario.clone(),
            episode_score_mean: Some(0.0),
            ..ProgressRow::default()
        })
        .unwrap();
        // As the environments' brokers are started.
        let mut site = SiteValues::default();
        site.0[Knob::Persistence as usize] = 1;
        let row = ActionRow {
            step: 7,
            score: Some(0.5),
            reward: Some(0.0),
            scenario,
            applied: "restart",
            site,
            ..Default::default()
        };
        logs.action(&row).unwrap();
    }

    /// Pins the columns: people read these files with their own tools.
    #[test]
    fn golden() {
        let dir = tempfile::tempdir().unwrap();
        write_both(dir.path(), false);
        write_both(dir.path(), true);
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let row = "7,0.0,0,1,wan-uplink,0,0.0,0.0,0.0,0.0,0.0,0.0,0,0\n";
        let header = "step,wall_s,episode,env,scenario,episode_steps,episode_return,episode_score_mean,critic_loss,actor_loss,q_mean,noise_sigma,replay_count,updates\n";
        assert_eq!(read("progress.csv"), format!("{header}{row}{row}"));
        let row =
            "0.000,7,0,0,wan-uplink,restart,0,0.5000,0.0000,0.0,,,,,20,0,1000,0,0,0,1,1800,0,0,0\n";
        let header = "wall_s,step,env,episode,scenario,applied,ready_ms,score,reward,delivered_per_s,latency_us_max,dropped_per_s,cpu_share,rss_bytes,max_inflight_messages,max_inflight_bytes,max_queued_messages,max_queued_bytes,queue_qos0_messages,memory_limit,persistence,autosave_interval,set_tcp_nodelay,max_packet_size,message_size_limit\n";
        assert_eq!(read("action_throughput_log.csv"), format!("{header}{row}{row}"));
    }

    #[test]
    fn a_resumed_run_goes_on_where_the_rows_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut logs, reached) = TrainLogs::open(dir.path(), false).unwrap();
        assert_eq!(reached, Reached::default());
        let row = |step, wall_s, episode| ActionRow { step, wall_s, episode, ..Default::default() };
        for row in [row(1, 5.0, 0), row(2, 5.5, 1), row(3, 10.0, 0)] {
            logs.action(&row).unwrap();
        }
        let row = ProgressRow { step: 3, wall_s: 10.1, episode: 1, ..ProgressRow::default() };
        logs.progress(&row).unwrap();
        let actions = dir.path().join("action_throughput_log.csv");
        let whole = std::fs::read_to_string(&actions).unwrap();
        std::fs::write(&actions, format!("{whole}15.000,4,0")).unwrap();
        let (_, reached) = TrainLogs::open(dir.path(), true).unwrap();
        let expected = Reached { steps: 3, wall_s: 10.1, episodes_begun: 2, episodes: 1 };
        assert_eq!(reached, expected);
        assert_eq!(std::fs::read_to_string(&actions).unwrap(), whole, "the torn row is gone");

        std::fs::write(&actions, "wall_s,step\n1,2\n").unwrap();
        let error = TrainLogs::open(dir.path(), true).unwrap_err().to_string();
        assert!(error.contains("action_throughput_log.csv: its columns are"), "{error}");
    }

    #[test]
    fn an_unwritable_folder_is_named() {
        let error = TrainLogs::open(Path::new("/nonexistent/run"), false).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/run/progress.csv: "), "{error}");
    }
}
