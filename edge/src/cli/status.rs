//! `edge status`.

use std::process::ExitCode;

use brokertuner_edge::agent::{Lock, StatusFile};
use brokertuner_edge::config::Config;
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::state::StateStore;

use super::{NO, print, print_result};

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
    if is_running {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("edge: the agent is not running; this is what it said last");
    Ok(ExitCode::from(NO))
}
