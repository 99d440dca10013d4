//! `edge`: the agent beside the broker.

mod cli;

use std::process::ExitCode;

use brokertuner_edge::error::told;

fn main() -> ExitCode {
    match cli::run() {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("edge: {}", told(error.as_ref()));
            ExitCode::from(2)
        }
    }
}
