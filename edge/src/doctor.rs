//! `edge doctor`: what on this machine would keep the agent from its job, each with its remedy.
//!
//! Looks only: opens connections to the broker as a client does, writes nothing.

mod broker;
mod limits;
mod machine;

use std::fmt;

use serde::Serialize;

use crate::config::Config;
use crate::site::{Environment, Site};

/// Version of [`Diagnosis`]'s shape.
const DIAGNOSIS_VERSION: u32 = 1;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Wrong: the remedy says what to do.
    Wrong,
}

/// One line of the diagnosis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, as a stable word for programs.
    pub check: &'static str,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is.
    pub remedy: String,
}

impl Check {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Good, found: found.into(), remedy: String::new() }
    }

    fn note(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state: State::Note, found: found.into(), remedy: remedy.into() }
    }

    fn wrong(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state: State::Wrong, found: found.into(), remedy: remedy.into() }
    }

    /// An error of the library: it says what to do by itself.
    fn error(check: &'static str, error: &dyn std::error::Error) -> Self {
        Self::wrong(check, error.to_string(), "as it says")
    }
}

/// All checks: one documented, versioned object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Version of this object's shape.
    pub report_version: u32,
    /// Nothing is wrong.
    pub healthy: bool,
    /// Every check, in the order in which things are needed.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    fn of(checks: Vec<Check>) -> Self {
        let healthy = checks.iter().all(|check| check.state != State::Wrong);
        Self { report_version: DIAGNOSIS_VERSION, healthy, checks }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let mark = match check.state {
                State::Good => "good ",
                State::Note => "note ",
                State::Wrong => "WRONG",
            };
            writeln!(f, "{mark} {:<14} {}", check.check, check.found)?;
            if !check.remedy.is_empty() {
                writeln!(f, "{:20} -> {}", "", check.remedy)?;
            }
        }
        let wrong = self.checks.iter().filter(|check| check.state == State::Wrong).count();
        match wrong {
            0 => writeln!(f, "nothing is wrong"),
            1 => writeln!(f, "1 thing is wrong"),
            wrong => writeln!(f, "{wrong} things are wrong"),
        }
    }
}

/// Examines everything that the configuration names. Takes up to some ten seconds: it waits for
/// the broker's `$SYS`.
#[must_use]
pub fn examine(config: &Config) -> Diagnosis {
    let mut checks = vec![Check::good("configuration", "valid")];
    let environment = Environment::of_process();
    machine::own_files(config, &environment, &mut checks);
    machine::secrets(config, &environment, &mut checks);
    match Site::look(config, &environment) {
        Ok(site) => {
            machine::broker_files(&site, &mut checks);
            machine::ways(config, &site, &mut checks);
            broker::examine(&site, &mut checks);
        }
        Err(error) => checks.push(Check::error("site", &error)),
    }
    Diagnosis::of(checks)
}

/// The diagnosis of a configuration that can't be read.
#[must_use]
pub fn of_broken_configuration(error: &dyn std::error::Error) -> Diagnosis {
    Diagnosis::of(vec![Check::error("configuration", error)])
}
