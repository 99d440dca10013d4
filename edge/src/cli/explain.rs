//! `edge explain`.

use std::process::ExitCode;

use brokertuner_edge::config::Config;
use brokertuner_edge::journal::{Entry, Event, Journal};

use super::{NO, print};

pub(super) fn explain(config: &Config, id: Option<u64>, json: bool) -> anyhow::Result<ExitCode> {
    let journal = Journal::in_dir(&config.agent.state_dir);
    let mut entries = journal.read()?;
    if let Some(id) = id {
        entries.retain(|entry| entry.id == id);
    }
    if json {
        print(&format!("{}\n", serde_json::to_string(&entries)?))?;
    } else {
        print(&text(&entries, id.is_some()))?;
    }
    if entries.is_empty() {
        let what = id.map_or("no decision".into(), |id| format!("no decision {id}"));
        eprintln!(
            "edge: {what} in {}; `edge explain` lists what there is",
            journal.path().display()
        );
        return Ok(ExitCode::from(NO));
    }
    Ok(ExitCode::SUCCESS)
}

/// One decision in full, or a line for each.
fn text(entries: &[Entry], is_full: bool) -> String {
    let line = |entry: &Entry| {
        let what = match entry.event {
            Event::Ordered
            | Event::Restarted
            | Event::Dropped
            | Event::HandsOff
            | Event::ModelReplaced
            | Event::ModelRefused => entry.why.clone(),
            _ => entry.diff.join(", "),
        };
        format!("{:>6}  {}  {}: {what}\n", entry.id, entry.at(), entry.event)
    };
    entries.iter().map(|entry| if is_full { entry.to_string() } else { line(entry) }).collect()
}
