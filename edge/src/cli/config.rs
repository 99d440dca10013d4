//! `edge check-config`.

use std::path::Path;
use std::process::ExitCode;

use brokertuner_edge::config::{Config, ConfigError};
use brokertuner_edge::site::{Environment, Site, drop_in_path};
use serde_json::json;

use super::print;

pub(super) fn check(file: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let found = Config::load(file);
    let notes = found.as_ref().map(notes).unwrap_or_default();
    if !as_json {
        found?;
        let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
        print(&format!("{}: valid\n{notes}", file.display()))?;
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
    // For the scripts of packages: where the agent's records and settings are.
    let config = found.as_ref().ok();
    let environment = Environment::of_process();
    let drop_in = config.and_then(|c| drop_in_path(&c.broker.drop_in, &environment).ok());
    let result = json!({
        "report_version": 1,
        "file": file.display().to_string(),
        "valid": found.is_ok(),
        "faults": faults,
        "notes": notes,
        "state_dir": config.map(|config| &config.agent.state_dir),
        "drop_in": drop_in,
    });
    print(&format!("{result}\n"))?;
    Ok(if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// What a valid configuration says that does not fit the broker's own, where that lies here too.
fn notes(config: &Config) -> Vec<String> {
    if !config.broker.main_conf.exists() {
        return Vec::new();
    }
    match Site::look(config, &Environment::of_process()) {
        Ok(site) => site.other_broker().map(|flaw| flaw.to_string()).into_iter().collect(),
        Err(error) => vec![error.to_string()],
    }
}
