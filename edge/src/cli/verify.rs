//! `edge verify-model`.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use brokertuner_core::KnobSet;
use brokertuner_core::model::Model;
use brokertuner_edge::config::{Config, ConfigError};
use brokertuner_edge::model::{ModelSource, Verified};
use brokertuner_edge::policy::PolicyError;
use serde::Serialize;

use super::{NO, print_result};

/// What `edge verify-model --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Result {
    report_version: u32,
    file: String,
    accepted: bool,
    /// Why not; `null` where it is accepted.
    refused: Option<String>,
    counter: Option<u64>,
    /// The file of the key; `null` where none is configured.
    signed_by: Option<String>,
    step_ms: Option<u32>,
    tuned: Vec<&'static str>,
    scenarios: Option<String>,
}

impl fmt::Display for Result {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = &self.refused {
            return writeln!(f, "refused: {reason}");
        }
        let counter = self.counter.unwrap_or_default();
        match &self.signed_by {
            Some(key) => {
                writeln!(f, "{}: accepted, counter {counter}, signed by {key}", self.file)?
            }
            None => writeln!(
                f,
                "{}: accepted, counter {counter}; no signature was asked for (model.public_keys)",
                self.file
            )?,
        }
        let step_s = f64::from(self.step_ms.unwrap_or_default()) / 1000.0;
        writeln!(
            f,
            "trained on {} with a step of {step_s} s",
            self.scenarios.as_deref().unwrap_or("-")
        )?;
        writeln!(f, "tunes {}", self.tuned.join(", "))
    }
}

pub(super) fn verify(file: &Path, config: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let config = match Config::load(config) {
        Err(ConfigError::Absent { .. }) if config == Path::new(super::CONFIG_DEFAULT) => {
            Config::default()
        }
        found => found?,
    };
    let (result, code) = match ModelSource::of(&config)?.verify(file) {
        Ok(verified) => (accepted(file, &verified)?, ExitCode::SUCCESS),
        Err(error @ (PolicyError::File(_) | PolicyError::Absent { .. })) => {
            return Err(error.into());
        }
        Err(error) => (refused(file, error.to_string()), ExitCode::from(NO)),
    };
    print_result(&result, json)?;
    Ok(code)
}

fn refused(file: &Path, reason: String) -> Result {
    Result {
        report_version: 1,
        file: file.display().to_string(),
        accepted: false,
        refused: Some(reason),
        counter: None,
        signed_by: None,
        step_ms: None,
        tuned: Vec::new(),
        scenarios: None,
    }
}

fn accepted(file: &Path, verified: &Verified) -> anyhow::Result<Result> {
    let model = Model::read(verified.policy().bytes())?;
    let parts = model.parts();
    let tuned = KnobSet::from_bits(parts.bounds.tuned);
    Ok(Result {
        report_version: 1,
        file: file.display().to_string(),
        accepted: true,
        refused: None,
        counter: Some(verified.counter),
        signed_by: verified.signed_by.as_ref().map(|path| path.display().to_string()),
        step_ms: Some(parts.step_ms),
        tuned: tuned.iter().map(|knob| knob.spec().key).collect(),
        scenarios: Some(parts.card.scenarios.to_owned()),
    })
}
