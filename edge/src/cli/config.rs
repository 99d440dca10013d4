//! `edge check-config`.

use std::path::Path;
use std::process::ExitCode;

use brokertuner_edge::config::{Config, ConfigError};
use serde_json::json;

use super::print;

pub(super) fn check(file: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let found = Config::load(file);
    if !as_json {
        found?;
        print(&format!("{}: valid\n", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let faults = match &found {
        Ok(_) => Vec::new(),
        Err(ConfigError::Faults { faults, .. }) => faults
            .iter()
            .map(|fault| json!({"line": fault.line, "option": fault.key, "what": fault.what}))
            .collect(),
        Err(error) => vec![json!({"line": null, "option": "", "what": error.to_string()})],
    };
    let result = json!({
        "report_version": 1,
        "file": file.display().to_string(),
        "valid": found.is_ok(),
        "faults": faults,
    });
    print(&format!("{result}\n"))?;
    Ok(if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
