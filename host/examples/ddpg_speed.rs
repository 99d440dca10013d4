//! Updates per second of the DDPG agent: `cargo run --release --example ddpg_speed`.
//!
//! Actor 37-64-64-11, critic 48-64-64-1, batch 128, 20,000 random transitions; the medians of five
//! rounds, for plain DDPG and for the demo's options.

use brokertuner_host::ddpg::{Agent, DdpgError, Hyper, Transition};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use std::time::Instant;

const STATE_DIM: usize = 37;
const ACTION_DIM: usize = 11;
const UPDATES: u32 = 2_000;

fn main() -> Result<(), DdpgError> {
    let demo = Hyper { batch: 128, ..Hyper::demo() };
    for (name, hyper) in
        [("plain", Hyper::default()), ("demo, batch 128", demo), ("demo", Hyper::demo())]
    {
        let mut agent = filled(hyper)?;
        let mut rates: Vec<f64> = (0..5).map(|_| updates_per_s(&mut agent)).collect();
        rates.sort_by(f64::total_cmp);
        println!("{name}: {:.0} updates/s ({:.0} to {:.0})", rates[2], rates[0], rates[4]);
    }
    Ok(())
}

/// An agent whose buffer holds 20,000 random transitions.
fn filled(hyper: Hyper) -> Result<Agent, DdpgError> {
    let mut agent = Agent::new(hyper, STATE_DIM, ACTION_DIM, 1)?;
    let mut rng = Pcg32::seed_from_u64(2);
    for _ in 0..20_000 {
        let [state, next_state] = [0, 1].map(|_| uniform(STATE_DIM, &mut rng));
        let action = uniform(ACTION_DIM, &mut rng);
        agent.observe(&Transition {
            lane: 0,
            state: &state,
            action: &action,
            reward: rng.random_range(0.0..1.0),
            next_state: &next_state,
            done: false,
            truncated: false,
        })?;
    }
    Ok(agent)
}

fn uniform(count: usize, rng: &mut Pcg32) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn updates_per_s(agent: &mut Agent) -> f64 {
    let start = Instant::now();
    for _ in 0..UPDATES {
        std::hint::black_box(agent.update());
    }
    f64::from(UPDATES) / start.elapsed().as_secs_f64()
}
