//! Scores of the public scenarios in the twin.
use brokertuner_core::knobs::Apply;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, render};
use brokertuner_host::scenario::Scenario;
use brokertuner_host::twin::{Calibration, Config, World};
use std::sync::Arc;

fn main() {
    let confs = [
        "",
        "max_inflight_messages 100\nmax_queued_messages 200\n",
        "max_inflight_messages 1000\nmax_queued_messages 2000\n",
        "max_inflight_messages 1000\nmax_queued_messages 10000\nset_tcp_nodelay true\n",
    ];
    for name in Scenario::names() {
        let scenario = Arc::new(Scenario::load(name).unwrap());
        print!("{name:20}");
        for conf in confs {
            let begun = std::time::Instant::now();
            let mut site = SiteValues::default();
            site.0[Knob::Persistence as usize] = u64::from(scenario.broker.persistence);
            let mut world = World::new(Config {
                scenario: Arc::clone(&scenario),
                calibration: Calibration::default(),
                site,
                capacity_msgs_per_s: None,
                lead_in_s: 20,
                repeat: false,
                slice_us: 1000,
            });
            if !conf.is_empty() {
                world.apply(&render::parse(conf).unwrap(), Apply::Restart);
            }
            world.finish();
            let ratio = (20.0 + scenario.duration().as_secs_f64()) / begun.elapsed().as_secs_f64();
            print!(
                " {:.3} ({:.2} cpu, {:3} MB, {ratio:.0}x)",
                world.score().unwrap_or(f64::NAN),
                world.cpu_share(),
                world.rss_bytes_max() >> 20
            );
        }
        println!();
    }
}
