//! The command line. Results on stdout, logs on stderr.

mod config;
mod decide;
mod run;
mod status;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use brokertuner_edge::config::Config;
use brokertuner_edge::model::{LivePolicy, ModelSource};
use brokertuner_edge::site::{Environment, Site};

/// Where the configuration lies unless another file is named.
const CONFIG_DEFAULT: &str = "/etc/brokertuner/edge.toml";
/// The command ran, and the answer is no.
const NO: u8 = 1;

/// Tunes the Mosquitto broker on this machine: samples it, decides with a trained model, changes
/// its settings, verifies the effect and takes back what did not help.
///
/// Exit status: 0 done; 1 ran, and the answer is no; 2 usage, configuration or environment.
#[derive(Debug, Parser)]
#[command(name = "edge", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Watches the broker and tunes it until SIGTERM or SIGINT.
    Run,
    /// Decides once, applies that, verifies it and ends.
    ///
    /// Does not wait for the wanted settings to be stable; every other rule holds. Exit status 1
    /// where nothing was changed.
    Once {
        /// Only show the changes that would be made.
        #[arg(long)]
        dry_run: bool,
    },
    /// Tells what it would do and why; changes nothing.
    Advise,
    /// Shows what the running agent last decided, and every option's values.
    ///
    /// Exit status 1 where no agent is running.
    Status,
    /// Verifies a model file as the agent would: format, tables, signature, counter.
    ///
    /// Without a configuration file the default one counts. Exit status 1 where it is refused.
    VerifyModel {
        /// The model file.
        file: PathBuf,
    },
    /// Checks a configuration file and reports every fault; touches nothing.
    CheckConfig {
        /// The file to check.
        file: PathBuf,
    },
    /// Prints the default configuration, with a comment for every option.
    DefaultConfig,
}

/// Carries out what the command line asks for.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let json = arguments.json;
    match arguments.verb {
        Verb::Run => run::run(&load(&arguments.config)?, json),
        Verb::Once { dry_run } => decide::once(&load(&arguments.config)?, dry_run, json),
        Verb::Advise => decide::advise(&load(&arguments.config)?, json),
        Verb::Status => status::status(&load(&arguments.config)?, json),
        Verb::VerifyModel { file } => verify::verify(&file, &arguments.config, json),
        Verb::CheckConfig { file } => config::check(&file, json),
        Verb::DefaultConfig => {
            print(&Config::default_file())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Reads the configuration and starts to log as it says.
fn load(path: &std::path::Path) -> anyhow::Result<Config> {
    let config = Config::load(path)?;
    // Not the filter that most use: its regular expressions are a sixth of a small binary.
    let wish = std::env::var("RUST_LOG").ok().and_then(|text| Targets::from_str(&text).ok());
    let configured = || Targets::from_str(&config.agent.log_level).context("agent.log_level");
    let filter = wish.map_or_else(configured, Ok)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    Ok(config)
}

/// The machine as the configuration says, and the policy of its model.
fn prepare(config: &Config) -> anyhow::Result<(Site, LivePolicy)> {
    let site = Site::look(config, &Environment::of_process())?;
    let policy = ModelSource::of(&site)?.open()?;
    for line in &site.elsewhere.lines {
        tracing::info!(%line, "An option is set elsewhere.");
    }
    Ok((site, policy))
}

/// An event loop for this thread.
fn event_loop() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// Prints a result; a reader that has gone is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}

/// Prints a result as text, or as one line of JSON.
fn print_result(
    result: &(impl std::fmt::Display + serde::Serialize),
    json: bool,
) -> anyhow::Result<()> {
    if json {
        print(&format!("{}\n", serde_json::to_string(result)?))
    } else {
        print(&result.to_string())
    }
}
