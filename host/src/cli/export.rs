//! `host export` and `host inspect`.

use super::{Answer, print};
use crate::ddpg::Agent;
use crate::export::{About, model_bytes, replace, schema_of, signed};
use crate::train::Origin;
use anyhow::{Context as _, Result};
use brokertuner_core::KnobSet;
use brokertuner_core::features::Schema;
use brokertuner_core::model::Model;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Largest file that is read as a model.
const MODEL_BYTES_MAX: u64 = 16 << 20;
/// Largest deviation of the int8 policy that is accepted, in steps of 1/127.
const DEVIATION_STEPS_MAX: f64 = 2.0;

/// Quantise a checkpoint to a model file for the gateway.
///
/// Prints how far the int8 policy is from the f32 one. Exit status 1 where that is more than 2/127.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// A checkpoint of `host train` (checkpoint-*.safetensors).
    checkpoint: PathBuf,
    /// The model file to write.
    #[arg(long, value_name = "FILE", default_value = "model.btm")]
    out: PathBuf,
    /// Scenarios that it was trained on, for the card. Default: what run.json beside it says.
    #[arg(long)]
    scenarios: Option<String>,
    /// Broker versions that it was trained on, for the card. Default: as for --scenarios.
    #[arg(long)]
    broker_versions: Option<String>,
    /// Scores, for the card. Default: for best.safetensors, as for --scenarios; else none.
    #[arg(long)]
    scores: Option<String>,
    /// Sign the model with this secret key of `host keygen`.
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Release counter of the signed model: a gateway takes none that is lower than the last one.
    /// Default: the seconds since 1970.
    #[arg(long, value_name = "N", requires = "sign")]
    counter: Option<u64>,
    /// The result as JSON.
    #[arg(long)]
    json: bool,
}

/// What `host export --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Exported {
    version: u32,
    model: PathBuf,
    deviation_steps_max: f64,
    deviation_steps_mean: f64,
    states: usize,
    /// Of the signed model; null where it is not signed.
    counter: Option<u64>,
}

impl ExportArgs {
    /// Exports.
    ///
    /// # Errors
    /// A checkpoint that cannot be used, or a file that cannot be written.
    pub(crate) fn run(&self) -> Result<Answer> {
        // Before the minutes of work: a wrong path costs nothing then.
        let key = self.sign.as_deref().map(super::keygen::secret_key).transpose()?;
        let agent = Agent::load(&self.checkpoint)?;
        let schema = schema_of(agent.state_dim())
            .with_context(|| format!("{} cannot be exported", self.checkpoint.display()))?;
        let about = self.about(schema)?;
        let (mut bytes, deviation) = model_bytes(&agent, &about)?;
        let counter = key.as_ref().map(|_| self.counter.unwrap_or_else(unix_s));
        if let (Some(key), Some(counter)) = (&key, counter) {
            bytes = signed(&bytes, key, counter)?;
        }
        let out = self.out.display();
        replace(&self.out, &bytes).with_context(|| format!("cannot write {out}"))?;
        let exported = Exported {
            version: 1,
            model: self.out.clone(),
            deviation_steps_max: deviation.max_steps,
            deviation_steps_mean: deviation.mean_steps,
            states: deviation.states,
            counter,
        };
        print(&if self.json {
            serde_json::to_string_pretty(&exported)? + "\n"
        } else {
            format!(
                "{}{}: int8 against f32 on {} states: largest deviation {:.3}/127, mean {:.3}/127\n",
                exported.model.display(),
                counter.map_or(String::new(), |counter| format!(" (signed, counter {counter})")),
                exported.states,
                exported.deviation_steps_max,
                exported.deviation_steps_mean
            )
        })?;
        let is_close = exported.deviation_steps_max <= DEVIATION_STEPS_MAX;
        Ok(if is_close { Answer::Yes } else { Answer::No })
    }
}

impl ExportArgs {
    /// The card: what was given, else what the run has left beside its checkpoints.
    fn about(&self, schema: Schema) -> Result<About> {
        let origin = self.checkpoint.parent().map(Origin::read).transpose()?.flatten();
        let (loads, broker, best) = origin
            .map(|origin| (origin.loads, origin.broker, origin.best.unwrap_or_default()))
            .unwrap_or_default();
        let is_best = self.checkpoint.file_stem().is_some_and(|stem| stem == "best");
        let scores = if is_best { best } else { String::new() };
        Ok(About {
            schema,
            tuned: crate::env::trained(),
            scenarios: self.scenarios.clone().unwrap_or(loads),
            broker_versions: self.broker_versions.clone().unwrap_or(broker),
            scores: self.scores.clone().unwrap_or(scores),
        })
    }
}

/// Seconds since 1970: they grow from one release to the next without any book-keeping.
fn unix_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// The bytes of a model file, if it is not too long for one.
///
/// # Errors
/// Where it cannot be read.
pub(super) fn read_model(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {name}"))?.len();
    anyhow::ensure!(size <= MODEL_BYTES_MAX, "{name}: {size} bytes are too many for a model");
    std::fs::read(path).with_context(|| format!("cannot read {name}"))
}

/// Say what a model file, or a trace of `edge record`, holds.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    model: PathBuf,
    /// As one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `host inspect --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Inspected {
    version: u32,
    file: PathBuf,
    bytes: usize,
    schema: Schema,
    layers: Vec<[u16; 2]>,
    step_ms: u32,
    tuned: Vec<&'static str>,
    is_signed: bool,
    counter: u64,
    seed: u64,
    steps: u64,
    scenarios: String,
    broker_versions: String,
    scores: String,
}

impl InspectArgs {
    /// Reads and prints.
    ///
    /// # Errors
    /// A file that is no model; the message says what does not fit.
    pub(crate) fn run(&self) -> Result<Answer> {
        if super::replay::is_trace(&self.model) {
            return super::replay::inspect(&self.model, self.json);
        }
        let name = self.model.display();
        let bytes = read_model(&self.model)?;
        let model = Model::read(&bytes).with_context(|| format!("{name} cannot be used"))?;
        let parts = model.parts();
        let card = &parts.card;
        let schema = model.schema().context("the model's schema is not one of this program")?;
        let inspected = Inspected {
            version: 1,
            file: self.model.clone(),
            bytes: bytes.len(),
            schema,
            layers: parts.shape.windows(2).map(|pair| [pair[0], pair[1]]).collect(),
            step_ms: parts.step_ms,
            tuned: KnobSet::from_bits(parts.bounds.tuned)
                .iter()
                .map(|knob| knob.spec().key)
                .collect(),
            is_signed: parts.signed,
            counter: parts.counter,
            seed: card.seed,
            steps: card.steps,
            scenarios: card.scenarios.to_owned(),
            broker_versions: card.broker_versions.to_owned(),
            scores: card.scores.to_owned(),
        };
        let json = serde_json::to_value(&inspected)?;
        print(&if self.json { serde_json::to_string_pretty(&json)? + "\n" } else { lines(&json) })?;
        Ok(Answer::Yes)
    }
}

pub(super) fn lines(json: &serde_json::Value) -> String {
    let fields = json.as_object().into_iter().flatten().filter(|(key, _)| *key != "version");
    fields
        .map(|(key, value)| match value {
            serde_json::Value::String(text) => format!("{key:<16} {text}\n"),
            other => format!("{key:<16} {other}\n"),
        })
        .collect()
}
