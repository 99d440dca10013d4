//! The command line: what the user said. Each verb's work stands in its own module.

mod calibrate;
mod evaluate;
mod export;
mod hyper;
mod keygen;
mod options;
mod replay;
mod report;
mod search;
mod sweep;
mod train;

use anyhow::Result;
use brokertuner_edge::error::told;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Trains, evaluates and exports policies that set Mosquitto for its load.
///
/// Results go to stdout (`--json` for machines), progress and logs to stderr (RUST_LOG sets the
/// level). Exit status: 0 done, 1 ran and the answer is no, 2 usage, configuration or environment.
#[derive(Debug, Parser)]
#[command(name = "host", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything at once: measure the defaults, train, export, tune a live broker, compare.
    Demo(crate::demo::DemoArgs),
    /// Train a policy, on real brokers or in their twin.
    Train(Box<train::TrainArgs>),
    /// Compare policies and fixed settings by score.
    Evaluate(evaluate::EvaluateArgs),
    /// Measure the real broker on this machine for the twin.
    Calibrate(calibrate::CalibrateArgs),
    /// Search for the best fixed settings.
    Search(search::SearchArgs),
    /// Make a page with plots of what other verbs measured.
    Report(report::ReportArgs),
    /// Quantise a checkpoint to a model file for the gateway.
    Export(export::ExportArgs),
    /// Make a pair of keys that models are signed with.
    Keygen(keygen::KeygenArgs),
    /// Say what a model file, or a trace of `edge record`, holds.
    Inspect(export::InspectArgs),
    /// Make the decisions of a recorded trace again, with a model.
    Replay(replay::ReplayArgs),
    /// Print the table of the 11 options.
    Knobs(KnobsArgs),
}

/// Print the table of the 11 options.
#[derive(Debug, clap::Args)]
struct KnobsArgs {
    /// As one JSON document.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// As the Markdown of core/KNOBS.md.
    #[arg(long)]
    markdown: bool,
}

/// What a verb found: exit status 0 or 1. Errors are status 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Yes,
    /// Ran, but the answer is no.
    No,
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// Usage, configuration and environment; the message says what to do.
    pub fn run(self) -> Result<Answer> {
        crate::broker::install_signal_guard()?;
        match self.command {
            Command::Demo(args) => crate::demo::run(&args),
            Command::Train(args) => args.run(),
            Command::Evaluate(args) => args.run(),
            Command::Calibrate(args) => args.run(),
            Command::Search(args) => args.run(),
            Command::Report(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Replay(args) => args.run(),
            Command::Keygen(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Knobs(args) => knobs(&args),
        }
    }
}

fn knobs(args: &KnobsArgs) -> Result<Answer> {
    let text = match (args.json, args.markdown) {
        (true, _) => crate::knob_table::json()?,
        (_, true) => crate::knob_table::markdown(),
        _ => crate::knob_table::text(),
    };
    print(&text)?;
    Ok(Answer::Yes)
}

/// Writes to stdout; a reader that went away (`host knobs | head`) is no error.
///
/// # Errors
/// Any other failure to write.
pub fn print(text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Logs to stderr, at `info` unless RUST_LOG says otherwise.
pub fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| crate::progress::Stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// Runs the program and gives its exit status.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    match cli.run() {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {}", told(error.as_ref()));
            // Nothing is wrong with what was asked for.
            ExitCode::from(if crate::broker::interrupted() { 1 } else { 2 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
