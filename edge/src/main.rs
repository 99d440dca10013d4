//! `edge`: the agent beside the broker.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("edge: {}", told(&error));
            ExitCode::from(2)
        }
    }
}

/// The error and its causes, each once: most messages of the library state their cause themselves.
fn told(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |told, cause| {
        if told.contains(&cause) { told } else { format!("{told}: {cause}") }
    })
}
