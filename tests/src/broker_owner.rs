//! A program that owns one broker, prints its process id and its folder, and then ends as its
//! argument says: `panic` at once, `poll` when interrupted, `ignore` never by itself.

use std::error::Error;
use std::io::{Write, stdout};
use std::thread;
use std::time::Duration;

use brokertuner_host::broker::{
    BrokerProcess, Mosquitto, SpawnConfig, install_signal_guard, interrupted,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let end =
        arguments.next().ok_or("usage: broker-owner panic|poll|ignore MOSQUITTO [CPU_SHARE]")?;
    let path = arguments.next().ok_or("the broker's path is missing")?;
    let cpu_share = arguments.next().and_then(|share| share.to_str()?.parse().ok());

    install_signal_guard()?;
    let mosquitto = Mosquitto::find(Some(path.as_ref()))?;
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
