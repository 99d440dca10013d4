//! `edge doctor`.

use std::path::Path;
use std::process::ExitCode;

use brokertuner_edge::config::{Config, ConfigError};
use brokertuner_edge::doctor;

use super::{NO, load_as_agent, print_result};

pub(super) fn examine(file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let diagnosis = match Config::load(file) {
        Ok(_) => doctor::examine(&load_as_agent(file)?),
        Err(error @ (ConfigError::Faults { .. } | ConfigError::Absent { .. })) => {
            doctor::of_broken_configuration(&error)
        }
        Err(error) => return Err(error.into()),
    };
    print_result(&diagnosis, json)?;
    Ok(if diagnosis.healthy { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}
