//! `edge status`.

use std::process::ExitCode;

use brokertuner_edge::agent::{Lock, StatusFile};
use brokertuner_edge::apply::unix_s;
use brokertuner_edge::config::Config;
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::state::StateStore;

use super::{NO, print, print_result};

/// A status is written at least once a minute, or after each decision where they are rarer.
const OLD_S: u64 = 120;

pub(super) fn status(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let file = StatusFile::in_dir(&config.agent.state_dir);
    let Some(mut report) = file.read()? else {
        if json {
            print("null\n")?;
        }
        eprintln!(
            "edge: no agent has run here yet ({} is not there); start one with `edge run`",
            file.path().display()
        );
        return Ok(ExitCode::from(NO));
    };
    let is_running = Lock::is_taken(&config.agent.state_dir);
    if !is_running && let Ok(state) = StateStore::in_dir(&config.agent.state_dir).load(&RealFiles) {
        // An order may have been given since.
        report.standing = state.standing;
    }
    print_result(&report, json)?;
    if !is_running {
        eprintln!("edge: the agent is not running; this is what it said last");
        return Ok(ExitCode::from(NO));
    }
    // A file on a full disk stays as it was.
    let age_s = unix_s().saturating_sub(report.at_unix_s);
    if age_s <= OLD_S + u64::from(config.decide.interval_ms / 1000) {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "edge: the agent runs, and this is what it said {age_s} s ago: it is at a long change, or {} can't be written; see its log",
        file.path().display()
    );
    Ok(ExitCode::from(NO))
}
