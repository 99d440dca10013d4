//! Scores of the public scenarios in the twin.
use brokertuner_core::render;
use brokertuner_host::scenario::Scenario;
use brokertuner_host::twin::{Costs, play};

fn main() {
    let confs = [
        "",
        "max_inflight_messages 100\nmax_queued_messages 200\n",
        "max_inflight_messages 1000\nmax_queued_messages 2000\n",
        "max_inflight_messages 1000\nmax_queued_messages 10000\nset_tcp_nodelay true\n",
    ];
    for name in Scenario::names() {
        let scenario = Scenario::load(name).unwrap();
        print!("{name:20}");
        for conf in confs {
            let begun = std::time::Instant::now();
            let outcome = play(&scenario, &render::parse(conf).unwrap(), &Costs::default(), 1000, None);
            let ratio = scenario.duration().as_secs_f64() / begun.elapsed().as_secs_f64();
            print!(" {:.3} ({:.2} cpu, {ratio:.0}x)", outcome.score.unwrap_or(f64::NAN), outcome.cpu_share);
        }
        println!();
    }
}
