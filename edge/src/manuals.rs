//! `edge-manuals DIRECTORY`: writes what packages hold of `edge` besides the program: man pages, shell
//! completions, the default configuration.

#[expect(dead_code, reason = "only the description of the command line is wanted of it")]
mod cli;

use std::path::Path;
use std::{env, fs};

use anyhow::Context;
use brokertuner_edge::config::Config;
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

fn main() -> anyhow::Result<()> {
    let dir = env::args_os().nth(1).context("usage: edge-manuals DIRECTORY")?;
    let dir = Path::new(&dir);
    let pages = dir.join("man");
    fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
    clap_mangen::generate_to(cli::Arguments::command(), &pages)
        .with_context(|| format!("cannot write into {}", pages.display()))?;
    let config = dir.join("edge.toml");
    fs::write(&config, Config::default_file())
        .with_context(|| format!("cannot write {}", config.display()))?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut cli::Arguments::command(), "edge", dir)
            .with_context(|| format!("cannot write into {}", dir.display()))?;
    }
    Ok(())
}
