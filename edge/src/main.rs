//! `edge`: the agent beside the broker.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("edge: {error:#}");
            ExitCode::from(2)
        }
    }
}
