//! Plays a scenario against a broker and prints the result as JSON.
//!
//! `cargo run --release -p brokertuner-host --example load -- SCENARIO ADDR [--seconds N] [--pid
//! BROKER] [--core N]` `--seconds` shortens each phase; `--pid` samples the broker's memory; `ADDR
//! capacity` as scenario measures capacity.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use brokertuner_host::load::{self, LoadConfig, LoadGenerator};
use brokertuner_host::scenario::Scenario;

fn main() -> anyhow::Result<()> {
    let mut positional = Vec::new();
    let (mut seconds, mut pid, mut core) = (None, None, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let target = match arg.as_str() {
            "--seconds" => &mut seconds,
            "--pid" => &mut pid,
            "--core" => &mut core,
            _ => {
                positional.push(arg);
                continue;
            }
        };
        *target =
            Some(args.next().with_context(|| format!("{arg} needs a number"))?.parse::<u32>()?);
    }
    let [name, addr] = positional.as_slice() else {
        bail!("usage: load SCENARIO ADDR [--seconds N] [--pid N] [--core N]")
    };
    let addr =
        addr.parse().with_context(|| format!("{addr}: not an address like 127.0.0.1:1883"))?;
    let pin_cores = core.map(|core| vec![core as usize]);
    if name == "capacity" {
        println!("{:.0}", load::capacity(addr, 1, pin_cores)?);
        return Ok(());
    }
    let mut scenario = Scenario::load(name)?;
    if let Some(seconds) = seconds {
        scenario
            .phases
            .iter_mut()
            .for_each(|phase| phase.duration_s = phase.duration_s.min(seconds));
    }
    let generator =
        LoadGenerator::start(LoadConfig { pin_cores, ..LoadConfig::new(scenario, addr) })?;
    let mut next_window = Instant::now();
    while generator.is_alive() {
        if let Some(pid) = pid {
            let process = procfs::process::Process::new(i32::try_from(pid)?)?;
            generator.rss_sample(Instant::now(), process.stat()?.rss * procfs::page_size());
        }
        if Instant::now() >= next_window {
            next_window += Duration::from_secs(5);
            eprintln!("{:?} {:?}", generator.stage(), generator.window());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut result = generator.join()?;
    result
        .phases
        .iter_mut()
        .flat_map(|phase| &mut phase.groups)
        .for_each(|group| group.seconds.clear());
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}
