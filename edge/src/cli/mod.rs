//! The command line. Results on stdout, logs on stderr.

mod config;
mod decide;
mod doctor;
mod explain;
mod helper;
mod orders;
mod record;
mod rights;
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
use brokertuner_edge::orders::Order;
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
pub(crate) struct Arguments {
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
    /// Records what the agent sees into a trace, for `host inspect` and `host replay`; changes
    /// nothing, needs no model.
    ///
    /// Ends by --duration-s, --bytes-max, SIGTERM or SIGINT. Exit status 1 where nothing was
    /// recorded.
    Record {
        /// The trace to write; an existing file is not overwritten.
        file: PathBuf,
        #[command(flatten)]
        limits: record::Limits,
    },
    /// Shows what the running agent last decided, and every option's values.
    ///
    /// Exit status 1 where no agent is running.
    Status,
    /// Tells what a decision was, why it was made, what came of it, and how to undo it by hand.
    ///
    /// Without ID: a line for each decision that is still known. Exit status 1 where there is none.
    Explain {
        /// The number of the decision, as the log, `status` and the orders show it.
        id: Option<u64>,
    },
    /// Stops changing things until `edge resume`; the broker keeps its settings.
    ///
    /// This and the other orders are carried out by the running agent, else on the spot; they
    /// outlast a restart of agent and machine. Exit status 1 where an order was not carried out.
    Pause,
    /// Tunes again: after `pause`, `rollback`, `off`, too many failures, or a change of the drop-in
    /// by hand, whose values are taken over.
    Resume,
    /// Goes back to the settings that were good before the present ones, and pauses.
    Rollback {
        /// Also where the restart that it takes would lose sessions or messages.
        #[arg(long)]
        allow_state_loss: bool,
    },
    /// Stops changing things for good, until `edge resume`.
    Off {
        /// Also remove what was written, so that the site's own values hold again.
        #[arg(long)]
        restore: bool,
        /// Restart for that also where it would lose sessions or messages.
        #[arg(long, requires = "restore")]
        allow_state_loss: bool,
    },
    /// Examines this machine: files and rights, the broker and its version, $SYS, process, limits.
    ///
    /// Changes nothing. What is wrong has its remedy beside it. Exit status 1 where something
    /// is wrong.
    Doctor,
    /// Does what needs rights for an agent without them: a few fixed requests over a socket.
    ///
    /// Started by brokertuner-helper.socket for one request on stdin; elsewhere with --listen.
    Helper {
        /// Listen here and serve until the end of time.
        #[arg(long, value_name = "SOCKET")]
        listen: Option<PathBuf>,
    },
    /// Verifies a model file as the agent would: format, tables, signature, counter.
    ///
    /// Without a configuration file the default one counts. Exit status 1 where it is refused.
    VerifyModel {
        /// The model file.
        file: PathBuf,
    },
    /// Checks a configuration file and reports every fault; touches nothing.
    CheckConfig {
        /// The file to check; without it, that of --config.
        file: Option<PathBuf>,
    },
    /// Prints the default configuration, with a comment for every option.
    DefaultConfig,
}

/// Carries out what the command line asks for.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let json = arguments.json;
    match arguments.verb {
        Verb::Run => run::run(&load_as_agent(&arguments.config)?, json),
        Verb::Once { dry_run } => decide::once(&load_as_agent(&arguments.config)?, dry_run, json),
        Verb::Advise => decide::advise(&load(&arguments.config)?, json),
        Verb::Record { file, limits } => {
            record::record(&load(&arguments.config)?, &file, limits, json)
        }
        Verb::Status => status::status(&load(&arguments.config)?, json),
        Verb::Explain { id } => explain::explain(&load(&arguments.config)?, id, json),
        Verb::Pause => orders::give(&load_as_agent(&arguments.config)?, &Order::Pause, json),
        Verb::Resume => orders::give(&load_as_agent(&arguments.config)?, &Order::Resume, json),
        Verb::Rollback { allow_state_loss } => {
            let order = Order::Rollback { allow_state_loss };
            orders::give(&load_as_agent(&arguments.config)?, &order, json)
        }
        Verb::Off { restore, allow_state_loss } => {
            let order = Order::Off { restore, allow_state_loss };
            orders::give(&load_as_agent(&arguments.config)?, &order, json)
        }
        Verb::Doctor => doctor::examine(&arguments.config, json),
        Verb::Helper { listen } => {
            helper::helper(&arguments.config, &load(&arguments.config)?, listen.as_deref())
        }
        Verb::VerifyModel { file } => verify::verify(&file, &arguments.config, json),
        Verb::CheckConfig { file } => {
            config::check(file.as_ref().unwrap_or(&arguments.config), json)
        }
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

/// The same for a command that writes into the state directory.
fn load_as_agent(path: &std::path::Path) -> anyhow::Result<Config> {
    let config = load(path)?;
    rights::drop_to_agent(&config)?;
    Ok(config)
}

/// The machine as the configuration says, and the policy of its model.
fn prepare(config: &Config) -> anyhow::Result<(Site, LivePolicy)> {
    let site = Site::look(config, &Environment::of_process())?;
    let policy = ModelSource::of(config)?.open().context("model.path")?;
    for warning in site.warnings() {
        tracing::warn!("{warning}");
    }
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
