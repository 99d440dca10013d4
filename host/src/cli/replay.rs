//! Traces of `edge record`: `host inspect` sums one up, `host replay` makes its decisions again.

use super::export::{lines, read_model};
use super::{Answer, print};
use anyhow::{Context as _, Result};
use brokertuner_core::controller::{Decision, Rules};
use brokertuner_core::model::Model;
use brokertuner_core::render;
use brokertuner_core::replay::Replay;
use brokertuner_core::sample::{Meter, Metrics};
use brokertuner_core::trace::{MAGIC, Trace, TraceError};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Largest trace that is read.
const TRACE_BYTES_MAX: u64 = 1 << 30;

/// What `host inspect --json` prints of a trace, version 1.
#[derive(Debug, Serialize)]
struct Summary {
    version: u32,
    file: PathBuf,
    records: usize,
    /// Why the rest could not be read; null where the trace is whole.
    cut_off: Option<String>,
    interval_ms: u32,
    deadline_ms: u32,
    rss_limit_mib: u32,
    duration_s: f64,
    /// Records in which the broker did not answer.
    down: usize,
    clients: Option<[f32; 2]>,
    publish_received_per_s: Option<[f32; 2]>,
    publish_sent_per_s: Option<[f32; 2]>,
    publish_dropped_per_s: Option<[f32; 2]>,
    backlog_messages: Option<[f32; 2]>,
    probe_latency_us_qos1: Option<[f32; 2]>,
    rss_bytes: Option<[f32; 2]>,
}

/// Prints what a trace holds.
///
/// # Errors
/// A file that is no trace for this program.
pub(super) fn inspect(file: &Path, json: bool) -> Result<Answer> {
    let bytes = read_trace(file)?;
    let summary =
        summary(file, &bytes).with_context(|| format!("{} cannot be used", file.display()))?;
    let found = serde_json::to_value(&summary)?;
    print(&if json { serde_json::to_string_pretty(&found)? + "\n" } else { lines(&found) })?;
    Ok(Answer::Yes)
}

/// Whether a file begins as a trace does.
pub(super) fn is_trace(path: &Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; MAGIC.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == MAGIC
}

/// Sums up the trace in `bytes`.
///
/// # Errors
/// Bytes that do not begin as a trace does.
fn summary(file: &Path, bytes: &[u8]) -> Result<Summary, TraceError> {
    let trace = Trace::read(bytes)?;
    let mut meter = Meter::default();
    let (mut records, mut seen, mut cut_off) = (Vec::new(), Vec::new(), None);
    for record in trace.records() {
        match record {
            Ok(record) => {
                seen.push(meter.measure(&record.sample));
                records.push(record);
            }
            Err(error) => cut_off = Some(error.to_string()),
        }
    }
    let span = records.first().zip(records.last()).map_or(0, |(first, last)| {
        last.sample.at.as_micros().saturating_sub(first.sample.at.as_micros())
    });
    let range = |value: fn(&Metrics) -> Option<f32>| range(seen.iter().filter_map(value));
    let head = trace.head();
    Ok(Summary {
        version: 1,
        file: file.into(),
        records: records.len(),
        cut_off,
        interval_ms: head.interval_ms,
        deadline_ms: head.targets.deadline_ms,
        rss_limit_mib: head.targets.rss_limit_mib,
        duration_s: span as f64 / 1e6,
        down: records.iter().filter(|record| !record.is_serving).count(),
        clients: range(|metrics| metrics.clients_others),
        publish_received_per_s: range(|metrics| metrics.publish_received_per_s),
        publish_sent_per_s: range(|metrics| metrics.publish_sent_per_s),
        publish_dropped_per_s: range(|metrics| metrics.publish_dropped_per_s),
        backlog_messages: range(|metrics| metrics.backlog_messages),
        probe_latency_us_qos1: range(|metrics| metrics.probe_latency_us_qos1),
        rss_bytes: range(|metrics| metrics.rss_bytes),
    })
}

/// Least and greatest.
fn range(mut values: impl Iterator<Item = f32>) -> Option<[f32; 2]> {
    let first = values.next()?;
    Some(values.fold([first; 2], |[low, high], value| [low.min(value), high.max(value)]))
}

/// Make the decisions of a recorded trace again, with a model.
///
/// Every change counts as carried out, with the default rules of the gateway: what a
/// microcontroller that replays the same trace must come to as well.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// A trace of `edge record`.
    trace: PathBuf,
    /// The model that decides.
    #[arg(long, value_name = "FILE", default_value = "model.btm")]
    model: PathBuf,
    /// As one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `host replay --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Replayed {
    version: u32,
    records: usize,
    /// Records for which the model was asked.
    asked: usize,
    /// Records with an input beyond what the model's training saw.
    beyond_training: usize,
    /// Why the rest could not be read; null where the trace is whole.
    cut_off: Option<String>,
    changes: Vec<Change>,
}

/// One change.
#[derive(Debug, Serialize)]
struct Change {
    /// Index of the record.
    record: usize,
    /// Since the first record.
    at_s: f64,
    /// `Change` or `RollBack`.
    kind: &'static str,
    /// `Reload` or `Restart`.
    apply: String,
    /// The drop-in afterwards.
    drop_in: String,
}

impl ReplayArgs {
    /// Replays and prints.
    ///
    /// # Errors
    /// A trace or a model that cannot be used.
    pub(crate) fn run(&self) -> Result<Answer> {
        let trace_bytes = read_trace(&self.trace)?;
        let name = self.trace.display();
        let trace = Trace::read(&trace_bytes).with_context(|| format!("{name} cannot be used"))?;
        let bytes = read_model(&self.model)?;
        let name = self.model.display();
        let model = Model::read(&bytes).with_context(|| format!("{name} cannot be used"))?;
        let replayed = replay(&trace, model)?;
        print(&if self.json {
            serde_json::to_string_pretty(&replayed)? + "\n"
        } else {
            text(&replayed)
        })?;
        Ok(Answer::Yes)
    }
}

fn replay(trace: &Trace<'_>, model: Model<'_>) -> Result<Replayed> {
    let mut replay = Replay::new(model, *trace.head(), Rules::default());
    let mut out = Replayed {
        version: 1,
        records: 0,
        asked: 0,
        beyond_training: 0,
        cut_off: None,
        changes: Vec::new(),
    };
    let mut first = None;
    for record in trace.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                out.cut_off = Some(error.to_string());
                break;
            }
        };
        let step = replay.step(&record)?;
        let at_us = record.sample.at.as_micros();
        let since_us = at_us.saturating_sub(*first.get_or_insert(at_us));
        out.asked += usize::from(step.answer.is_some());
        out.beyond_training +=
            usize::from(step.answer.as_ref().is_some_and(|answer| answer.beyond.is_some()));
        let (kind, apply) = match step.decision {
            Decision::Hold(_) => ("", None),
            Decision::Change { apply, .. } => ("Change", Some(apply)),
            Decision::RollBack { apply, .. } => ("RollBack", Some(apply)),
        };
        if let Some(apply) = apply {
            out.changes.push(Change {
                record: out.records,
                at_s: since_us as f64 / 1e6,
                kind,
                apply: format!("{apply:?}"),
                drop_in: render::render(&step.written).to_string(),
            });
        }
        out.records += 1;
    }
    Ok(out)
}

fn text(replayed: &Replayed) -> String {
    let mut text = format!(
        "{} records, the model asked for {}, beyond its training in {}\n",
        replayed.records, replayed.asked, replayed.beyond_training
    );
    if let Some(reason) = &replayed.cut_off {
        text += &format!("the rest could not be read: {reason}\n");
    }
    for change in &replayed.changes {
        let Change { record, at_s, kind, apply, drop_in } = change;
        text += &format!("\nrecord {record}, {at_s:.1} s: {kind} by {apply}\n{drop_in}");
    }
    text
}

/// The bytes of a trace.
///
/// # Errors
/// Where it cannot be read.
fn read_trace(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {name}"))?.len();
    anyhow::ensure!(size <= TRACE_BYTES_MAX, "{name}: {size} bytes are too many for a trace");
    std::fs::read(path).with_context(|| format!("cannot read {name}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::ddpg::{Agent, Hyper};
    use crate::export::{About, model_bytes};
    use brokertuner_core::features::Schema;

    fn golden() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/golden/trace-v2.btt"))
    }

    #[test]
    fn a_trace_is_told_from_a_model_and_summed_up() {
        let models = golden().with_file_name("v1.btm");
        assert!(is_trace(golden()) && !is_trace(&models) && !is_trace(Path::new("/nonexistent")));
        let bytes = std::fs::read(golden()).unwrap();
        let whole = summary(golden(), &bytes).unwrap();
        assert_eq!((whole.records, whole.down, whole.cut_off), (2, 1, None));
        assert_eq!((whole.duration_s, whole.rss_bytes), (10.0, Some([8_388_608.0; 2])));
        let cut = summary(golden(), &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(cut.records, 1);
        assert!(cut.cut_off.unwrap().contains("cut off"));
    }

    #[test]
    fn a_replay_says_what_was_asked_and_what_could_not_be_read() {
        let agent = Agent::new(Hyper::default(), Schema::Edge.len(), 11, 1).unwrap();
        let about = About::new(Schema::Edge);
        let (model, _) = model_bytes(&agent, &about).unwrap();
        let bytes = std::fs::read(golden()).unwrap();
        let model = Model::read(&model).unwrap();
        let replayed = replay(&Trace::read(&bytes).unwrap(), model).unwrap();
        assert_eq!((replayed.records, replayed.asked, replayed.changes.len()), (2, 0, 0));
        assert!(text(&replayed).starts_with("2 records, the model asked for 0"));
        let cut = Trace::read(&bytes[..bytes.len() - 1]).unwrap();
        assert!(replay(&cut, model).unwrap().cut_off.is_some());
    }
}
