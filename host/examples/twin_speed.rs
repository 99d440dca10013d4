//! How many times faster than real time the twin is, on one core: the median of several runs of
//! each public scenario with the defaults, beside the floor where one is asked for.
//!
//! `cargo run --release --example twin_speed`; exits with 1 where a floor is missed.

use brokertuner_core::Settings;
use brokertuner_host::scenario::Scenario;
use brokertuner_host::trial::Profile;
use brokertuner_host::twin::{Calibration, Play, capacity_msgs_per_s};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Runs of each scenario.
const RUNS: usize = 5;
/// Times real time that the twin must reach.
const FLOORS: [(&str, f64); 2] = [("wan-uplink", 1000.0), ("fanout-saturation", 200.0)];

fn main() -> anyhow::Result<ExitCode> {
    let calibration = Calibration::default();
    let mut is_slow = false;
    println!("{:20} {:>14} {:>8}", "scenario", "x real time", "floor");
    for name in Scenario::names() {
        let play = Play {
            scenario: Arc::new(Scenario::load(name)?),
            calibration,
            capacity_msgs_per_s: capacity_msgs_per_s(&calibration),
            profile: Profile::judging()?,
            seed: 1,
        };
        let lead_in = play.profile.lead_in(play.scenario.broker.sys_interval_s);
        let seconds = (lead_in + play.scenario.duration()).as_secs_f64();
        let mut ratios: Vec<f64> = (0..RUNS)
            .map(|_| {
                let begun = Instant::now();
                let _ = play.fixed(&Settings::UNWRITTEN);
                seconds / begun.elapsed().as_secs_f64()
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios[RUNS / 2];
        let floor = FLOORS.iter().find(|(of, _)| *of == name).map(|(_, floor)| *floor);
        is_slow |= floor.is_some_and(|floor| ratio < floor);
        let floor = floor.map_or_else(String::new, |floor| format!("{floor:.0}"));
        println!("{name:20} {ratio:14.0} {floor:>8}");
    }
    Ok(if is_slow { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
