//! That the int8 actor is the f32 one.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::adam::narrow;
use super::net::Mlp;
use super::noise::normal;
use super::quantise::snap;
use super::{About, Agent, DdpgError, Hyper, QuantisedActor, Transition, deviation};
use brokertuner_core::KNOB_COUNT;
use brokertuner_core::features::Schema;
use brokertuner_core::model::{Model, ModelError};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

/// Mean and deviation of feature `index` in [`random_state`].
fn scale(index: usize) -> (f32, f32) {
    let number = index as f32;
    (number * 0.1 - 1.0, 0.05 + 0.02 * number)
}

/// A raw state whose features have all sorts of means and deviations; `spread` widens them.
fn random_state(dim: usize, spread: f32, rng: &mut Pcg32) -> Vec<f32> {
    let feature = |index| {
        let (mean, deviation) = scale(index);
        mean + spread * deviation * narrow(normal(rng))
    };
    (0..dim).map(feature).collect()
}

/// An agent that has seen 500 random states and not learned.
fn agent(dim: usize, final_init: f64, seed: u64) -> Agent {
    let hyper = Hyper { final_init, normalise_std_min: 1e-2, ..Hyper::default() };
    let mut agent = Agent::new(hyper, dim, KNOB_COUNT, seed).unwrap();
    let mut rng = Pcg32::seed_from_u64(seed);
    for _ in 0..500 {
        let state = random_state(dim, 1.0, &mut rng);
        let transition = Transition {
            lane: 0,
            state: &state,
            action: &[0.0; KNOB_COUNT],
            reward: 0.0,
            next_state: &state,
            done: false,
            truncated: false,
        };
        agent.observe(&transition).unwrap();
    }
    agent
}

/// Multiplies the weights of the layers: trained networks have larger ones than fresh ones.
fn amplify(agent: &mut Agent, factors: [f32; 3]) {
    for (layer, factor) in factors.into_iter().enumerate() {
        let (weights, biases) = agent.actor.spans(layer);
        agent.actor.params[weights.start..biases.end].iter_mut().for_each(|x| *x *= factor);
    }
    snap(&agent.actor, &mut agent.snapped);
}

/// 5,000 states as in training and 5,000 three times as wide.
fn ten_thousand_states(dim: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut rng = Pcg32::seed_from_u64(seed ^ 77);
    (0..10_000).map(|index| random_state(dim, [1.0, 3.0][index % 2], &mut rng)).collect()
}

#[test]
fn deviation_stays_within_two_steps() {
    for (name, final_init, factors) in [
        ("fresh", 3e-3, [1.0; 3]),
        ("random", 0.5, [1.0; 3]),
        ("trained", 0.3, [1.5, 1.5, 1.5]),
        ("steep", 0.3, [2.0, 2.0, 3.0]),
    ] {
        for seed in 1..=4 {
            let mut agent = agent(37, final_init, seed);
            amplify(&mut agent, factors);
            let quantised = agent.quantise(&agent.states_seen(400)).unwrap();
            let found = deviation(&agent, &quantised, &ten_thousand_states(37, seed)).unwrap();
            println!("{name} {seed}: {found:?}");
            assert!(found.max_steps <= 2.0, "{name}, seed {seed}: {found:?}");
            assert!(found.mean_steps <= 0.3, "{name}, seed {seed}: {found:?}");
        }
    }
}

#[test]
fn a_trained_actor_deviates_by_two_steps_at_most() {
    for seed in [1, 2] {
        let hyper = Hyper { hidden: [32, 32], ..Hyper::demo() };
        let mut agent = Agent::new(hyper, 8, KNOB_COUNT, seed).unwrap();
        let mut rng = Pcg32::seed_from_u64(seed);
        for _ in 0..120 {
            let state = random_state(8, 1.0, &mut rng);
            let action = agent.act_noisy(0, &state);
            let wanted = |index: usize| (state[index % 8] * 3.0).sin();
            let errors = action.iter().enumerate().map(|(index, a)| (a - wanted(index)).powi(2));
            let transition = Transition {
                lane: 0,
                state: &state,
                action: &action,
                reward: -errors.sum::<f32>() / 11.0,
                next_state: &state,
                done: true,
                truncated: false,
            };
            agent.observe(&transition).unwrap();
            for _ in 0..20 {
                agent.update();
            }
        }
        let quantised = agent.quantise(&agent.states_seen(400)).unwrap();
        let found = deviation(&agent, &quantised, &ten_thousand_states(8, seed)).unwrap();
        println!("trained {seed}: {found:?}");
        assert!(found.max_steps <= 2.0 && found.mean_steps <= 0.3, "{found:?}");
    }
}

/// The comparison notices an actor that is not the agent's.
#[test]
fn another_actor_is_far_away() {
    let (one, other) = (agent(37, 0.5, 1), agent(37, 0.5, 2));
    let quantised = other.quantise(&[]).unwrap();
    let found = deviation(&one, &quantised, &ten_thousand_states(37, 1)).unwrap();
    assert!(found.max_steps > 20.0, "{found:?}");
}

fn about(bounds: &[(u64, u64)]) -> About<'_> {
    About {
        counter: 3,
        schema: Schema::Seed5,
        step_ms: 5000,
        bounds,
        tuned: 0b101,
        scenarios: "wan-uplink,alarm-burst",
        broker_versions: "2.0.21",
        scores: "0.98",
    }
}

fn exported() -> (Agent, QuantisedActor) {
    let agent = agent(Schema::Seed5.len(), 0.5, 6);
    let quantised = agent.quantise(&agent.states_seen(100)).unwrap();
    (agent, quantised)
}

#[test]
fn exported_bytes_are_a_model_with_the_same_actions() {
    let (agent, quantised) = exported();
    let bytes = quantised.to_bytes(&about(&[(1, 9); KNOB_COUNT])).unwrap();
    let model = Model::read(&bytes).unwrap();
    assert_eq!((model.parts().card.seed, model.parts().card.steps), (6, 500));
    assert_eq!(model.parts().card.scenarios, "wan-uplink,alarm-burst");
    assert_eq!(model.bounds().next(), Some((1, 9, true)));
    let actor = model.actor::<5, 64, 64, KNOB_COUNT>().unwrap();
    let states = ten_thousand_states(5, 9);
    for (state, expected) in states.iter().zip(quantised.act(&states).unwrap()) {
        let features: [f32; 5] = state.as_slice().try_into().unwrap();
        assert_eq!(actor.infer(&actor.quantise(&features)).to_vec(), expected);
    }
    for ((min, max), index) in model.observed_range().zip(0..) {
        let seen = agent.states_seen(500).iter().map(|state| state[index]).collect::<Vec<_>>();
        assert_eq!(min, seen.iter().copied().fold(f32::INFINITY, f32::min));
        assert_eq!(max, seen.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    }
}

#[test]
fn what_does_not_fit_the_network_is_refused() {
    let (agent, quantised) = exported();
    let refused = quantised.to_bytes(&about(&[(1, 9); 3])).unwrap_err();
    assert!(matches!(refused, DdpgError::Export(ModelError::PartBytes { .. })), "{refused}");
    assert!(agent.quantise(&[vec![0.0; 4]]).is_err());
    assert!(deviation(&agent, &quantised, &[]).is_err());
    let mut diverged = agent;
    diverged.snapped.params[7] = f32::NAN;
    assert!(matches!(diverged.quantise(&[]), Err(DdpgError::NotFinite { .. })));
}

/// Rows of zeros, huge biases over tiny weights, and silent layers.
#[test]
fn degenerate_networks_are_exported_faithfully() {
    let change: [&dyn Fn(&mut Mlp); 4] = [
        &|net| net.params.fill(0.0),
        &|net| {
            let (weights, biases) = net.spans(2);
            net.params[weights].fill(0.0);
            net.params[biases].fill(0.75);
        },
        &|net| {
            let (weights, biases) = net.spans(0);
            net.params[weights].iter_mut().for_each(|weight| *weight *= 1e-12);
            net.params[biases].fill(3.0);
        },
        &|net| {
            let (_, biases) = net.spans(0);
            net.params[biases].fill(-1e3);
        },
    ];
    for (number, change) in change.iter().enumerate() {
        let mut agent = agent(37, 0.3, 5);
        change(&mut agent.actor);
        snap(&agent.actor, &mut agent.snapped);
        let quantised = agent.quantise(&agent.states_seen(100)).unwrap();
        let found = deviation(&agent, &quantised, &ten_thousand_states(37, 5)).unwrap();
        assert!(found.max_steps <= 2.0, "case {number}: {found:?}");
    }
}

#[test]
fn random_networks_of_any_shape_are_exported() {
    let mut rng = Pcg32::seed_from_u64(21);
    for _ in 0..12 {
        let dim = rng.random_range(1..60);
        let hyper = Hyper {
            hidden: [rng.random_range(1..40), rng.random_range(1..40)],
            final_init: 10f64.powf(rng.random_range(-6.0..0.0)),
            normalise: rng.random(),
            ..Hyper::default()
        };
        let agent = Agent::new(hyper.clone(), dim, KNOB_COUNT, rng.random()).unwrap();
        let quantised = agent.quantise(&[]).unwrap();
        let found = deviation(&agent, &quantised, &ten_thousand_states(dim, 3)).unwrap();
        assert!(found.max_steps <= 2.0, "{dim} {hyper:?}: {found:?}");
    }
}
