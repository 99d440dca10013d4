//! A program that owns one broker, prints its process id and its folder, and then ends as its
//! argument says: `panic` at once, `poll` when interrupted, `ignore` never by itself. With `trial`
//! it owns a trial, with a program in the place of `edge`, and prints nothing.

use std::error::Error;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use brokertuner_host::broker::{
    BrokerProcess, Mosquitto, SpawnConfig, install_signal_guard, interrupted,
};
use brokertuner_host::scenario::Scenario;
use brokertuner_host::trial::{Profile, Setter, Trial};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let end =
        arguments.next().ok_or("usage: broker-owner panic|poll|ignore MOSQUITTO [CPU_SHARE], or broker-owner trial MOSQUITTO EDGE MODEL")?;
    let path = arguments.next().ok_or("the broker's path is missing")?;
    install_signal_guard()?;
    let mosquitto = Mosquitto::find(Some(path.as_ref()))?;
    if end == "trial" {
        let edge = arguments.next().ok_or("the agent's path is missing")?.into();
        let model = arguments.next().ok_or("the model's path is missing")?.into();
        return run_trial(mosquitto, edge, model);
    }
    let cpu_share = arguments.next().and_then(|share| share.to_str()?.parse().ok());
    let config = SpawnConfig { cpu_share, supervised: true, ..SpawnConfig::default() };
    // Started by a thread that ends at once: the parent-death signal must not follow it.
    let broker = thread::spawn(move || BrokerProcess::spawn(&mosquitto, &config));
    let broker = broker.join().map_err(|_| "the thread panicked")??;
    let folder = broker.conf_path().parent().ok_or("no folder")?;
    println!("{} {}", broker.pid(), folder.display());
    stdout().flush()?;

    assert!(end != "panic", "as asked");
    while end == "ignore" || !interrupted() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn run_trial(mosquitto: Mosquitto, edge: PathBuf, model: PathBuf) -> Result<(), Box<dyn Error>> {
    let trial = Trial {
        mosquitto,
        scenario: Arc::new(Scenario::load("link-50ms")?),
        setter: Setter::Edge { edge, model },
        seed: 1,
        profile: Profile::judging()?,
        pin: false,
        capacity_msgs_per_s: None,
        allow_uncapped: false,
    };
    trial.run()?;
    Ok(())
}
