//! That the agent learns: small problems with known answers, and the same bits for the same seed.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Agent, Hyper, Keep, NoiseKind, Transition, Trial};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

/// For small problems: the demo's options with smaller networks.
fn small() -> Hyper {
    Hyper { hidden: [24, 24], batch: 32, ..Hyper::demo() }
}

/// Two of the three features say what the two actions should be; reward 1 at best.
fn bandit_reward(state: &[f32], action: &[f32]) -> f32 {
    1.0 - (action[0] - 0.7 * state[0]).powi(2) - (action[1] + 0.5 * state[2]).powi(2)
}

fn random_state(rng: &mut Pcg32) -> Vec<f32> {
    (0..3).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Mean reward over 200 states of a policy trained on `steps` rewards times `sign`.
fn bandit(steps: usize, sign: f32, seed: u64) -> f32 {
    let mut agent = Agent::new(small(), 3, 2, seed).unwrap();
    let mut rng = Pcg32::seed_from_u64(seed + 100);
    for _ in 0..steps {
        let state = random_state(&mut rng);
        let action = agent.act_noisy(0, &state);
        let next_state = random_state(&mut rng);
        let reward = sign * bandit_reward(&state, &action) + rng.random_range(-0.1..0.1);
        let transition = Transition {
            lane: 0,
            state: &state,
            action: &action,
            reward,
            next_state: &next_state,
            done: true,
            truncated: false,
        };
        agent.observe(&transition).unwrap();
        for _ in 0..agent.hyper().updates_per_step {
            agent.update();
        }
    }
    let rewards = (0..200).map(|_| {
        let state = random_state(&mut rng);
        bandit_reward(&state, &agent.act(&state))
    });
    rewards.sum::<f32>() / 200.0
}

#[test]
fn solves_a_contextual_bandit_from_200_transitions() {
    for seed in [1, 2, 3] {
        let (untrained, trained) = (bandit(0, 1.0, seed), bandit(200, 1.0, seed));
        assert!(untrained < 0.85, "seed {seed}: the problem is too easy: {untrained}");
        assert!(trained > 0.95, "seed {seed}: {trained}");
    }
    let misled = bandit(200, -1.0, 1);
    assert!(misled < 0.0, "learning from the opposite reward gives {misled}");
}

/// One step of a mass on a rail: an action changes the position two steps later only.
fn rail(state: [f32; 2], action: f32) -> ([f32; 2], f32) {
    let [position, speed] = state;
    let next_speed = (speed + 0.4 * action).clamp(-1.0, 1.0);
    ([(position + 0.4 * speed).clamp(-2.0, 2.0), next_speed], -position.abs())
}

/// Mean reward over the second half of episodes from both ends of the rail.
fn rail_score(agent: &Agent) -> f32 {
    let mut sum = 0.0;
    for start in [-1.0, -0.5, 0.5, 1.0] {
        let mut state = [start, 0.0];
        for step in 0..40 {
            let (next, reward) = rail(state, agent.act(&state)[0]);
            sum += if step >= 20 { reward / 80.0 } else { 0.0 };
            state = next;
        }
    }
    sum
}

#[test]
fn brings_a_mass_to_rest_where_the_effect_comes_later() {
    let hyper = Hyper {
        gamma: 0.9,
        step_s: 1.0,
        updates_per_step: 4,
        warm_up_steps: 200,
        sigma_decay_steps: 800,
        preactivation_limit: 3.0,
        normalise_std_min: 0.01,
        ..small()
    };
    let mut agent = Agent::new(hyper, 2, 1, 4).unwrap();
    let untrained = rail_score(&agent);
    let mut rng = Pcg32::seed_from_u64(8);
    let mut state = [0.0; 2];
    for step in 0..1500 {
        if step % 25 == 0 {
            state = [rng.random_range(-1.0..1.0), 0.0];
        }
        let action = agent.act_noisy(0, &state);
        let (next, reward) = rail(state, action[0]);
        let transition = Transition {
            lane: 0,
            state: &state,
            action: &action,
            reward,
            next_state: &next,
            done: false,
            truncated: step % 25 == 24,
        };
        agent.observe(&transition).unwrap();
        state = next;
        for _ in 0..agent.hyper().updates_per_step {
            agent.update();
        }
    }
    let trained = rail_score(&agent);
    assert!(untrained < -0.3, "the problem is too easy: {untrained}");
    assert!(trained > -0.12, "{trained}");
}

/// Mean value after learning from a reward of 1 at every step.
fn value_of_constant_reward(done: bool) -> f32 {
    let hyper = Hyper { gamma: 0.5, step_s: 1.0, tau: 0.1, warm_up_steps: 1, ..small() };
    let mut agent = Agent::new(hyper, 1, 1, 2).unwrap();
    let mut value = 0.0;
    for step in 0..400u16 {
        let action = agent.act_noisy(0, &[0.0]);
        let state = [f32::from(step % 2)];
        let transition = Transition {
            lane: 0,
            state: &state,
            action: &action,
            reward: 1.0,
            next_state: &state,
            done,
            truncated: !done,
        };
        agent.observe(&transition).unwrap();
        for _ in 0..4 {
            value = agent.update().map_or(0.0, |losses| losses.q_mean);
        }
    }
    value
}

#[test]
fn an_end_ends_the_return_and_a_cut_does_not() {
    let (ended, cut) = (value_of_constant_reward(true), value_of_constant_reward(false));
    assert!((ended - 1.0).abs() < 0.1, "{ended}");
    assert!((cut - 2.0).abs() < 0.2, "{cut}");
}

/// Options that make every part of the state count.
fn everything() -> Hyper {
    Hyper {
        n_step: 3,
        noise: NoiseKind::OrnsteinUhlenbeck,
        warm_up_steps: 10,
        replay_capacity: 40,
        updates_per_step: 3,
        ..small()
    }
}

/// Runs steps `range` of a fixed little world, two lanes in turn; returns the actions taken.
fn advance(agent: &mut Agent, range: std::ops::Range<usize>) -> Vec<Vec<u32>> {
    let mut actions = Vec::new();
    for step in range {
        let wave = |shift: f32| (step as f32 * 0.37 + shift).sin();
        let (state, next_state) = ([wave(0.0), wave(1.0), f32::NAN], [wave(0.2), wave(1.2), 0.5]);
        let action = agent.act_noisy(step % 2, &state);
        let transition = Transition {
            lane: step % 2,
            state: &state,
            action: &action,
            reward: wave(2.0) * action[0],
            next_state: &next_state,
            done: step % 13 == 12,
            truncated: step % 17 == 16,
        };
        agent.observe(&transition).unwrap();
        for _ in 0..agent.hyper().updates_per_step {
            agent.update();
        }
        actions.push(action.iter().map(|value| value.to_bits()).collect());
    }
    actions
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let run = |seed| advance(&mut Agent::new(everything(), 3, 2, seed).unwrap(), 0..80);
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let guided = Hyper { guide: 1.0, guide_stay: 0.3, ..everything() };
    for hyper in [everything(), guided] {
        let mut whole = Agent::new(hyper, 3, 2, 5).unwrap();
        if whole.hyper().guide > 0.0 {
            let (states, action) = (vec![vec![0.5, 0.1, -0.3]; 2], vec![1.0, -1.0]);
            whole.teach(&[Trial { states, action, value: 2.0 }]).unwrap();
        }
        resumed_equals(whole);
    }
}

fn resumed_equals(mut whole: Agent) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.safetensors");
    advance(&mut whole, 0..61);
    whole.save(&path, Keep::Everything).unwrap();
    let mut resumed = Agent::load(&path).unwrap();
    assert_eq!((resumed.observed(), resumed.updates()), (whole.observed(), whole.updates()));
    assert_eq!(advance(&mut resumed, 61..120), advance(&mut whole, 61..120));
    let copy = folder.path().join("copy.safetensors");
    whole.save(&path, Keep::Everything).unwrap();
    resumed.save(&copy, Keep::Everything).unwrap();
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap(), "checkpoints differ");
}

/// Two hills over the action: a broad one, and a higher one that few actions are on.
fn two_hills(action: f32) -> f32 {
    let hill = |at: f32, width: f32| (-((action - at) / width).powi(2)).exp();
    0.7 * hill(0.5, 0.7) + hill(-0.75, 0.22)
}

/// A rise that ends at a cliff.
fn cliff(action: f32) -> f32 {
    if action < 0.4 { 0.9 + 0.1 * action } else { 0.0 }
}

/// The action of a policy that was taught what 40 actions are worth on each of 20 sites.
fn taught(worth: fn(f32) -> f32, hyper: Hyper, seed: u64) -> f32 {
    let hyper = Hyper { batch: 64, critic_lr: 3e-3, actor_lr: 1e-3, ..hyper };
    let mut agent = Agent::new(Hyper { hidden: [32, 32], ..hyper }, 3, 2, seed).unwrap();
    let mut rng = Pcg32::seed_from_u64(seed);
    for _ in 0..20 {
        let trial = |_| {
            let action: Vec<f32> = (0..2).map(|_| rng.random_range(-1.0..=1.0)).collect();
            let value = 7.0 * worth(action[0]);
            Trial { states: vec![random_state(&mut rng)], action, value }
        };
        agent.teach(&(0..40).map(trial).collect::<Vec<_>>()).unwrap();
    }
    for _ in 0..2500 {
        agent.update().unwrap();
    }
    agent.act(&[0.1, -0.1, 0.2])[0]
}

#[test]
fn lessons_teach_before_the_first_step_and_the_guide_finds_the_higher_hill() {
    let reached = |guide| {
        let hyper = Hyper { guide, ..Hyper::twin() };
        [1, 2, 3].map(|seed| two_hills(taught(two_hills, hyper.clone(), seed)))
    };
    let (alone, guided) = (reached(0.0), reached(7.0));
    assert!(guided.iter().all(|height| *height > 0.9), "{guided:?}");
    assert!(alone.iter().any(|height| *height < 0.75), "the problem is too easy: {alone:?}");
}

#[test]
fn noise_on_lessons_keeps_the_policy_away_from_a_cliff() {
    let margins = |lesson_noise| {
        let hyper = Hyper { lesson_noise, ..Hyper::twin() };
        [1, 2, 3].map(|seed| 0.4 - taught(cliff, hyper.clone(), seed))
    };
    let (without, with) = (margins(0.0), margins(0.2));
    assert!(without.iter().zip(&with).all(|(a, b)| a < b), "{without:?} {with:?}");
    assert!(with.iter().all(|margin| *margin > 0.1), "{with:?}");
}

#[test]
fn lessons_survive_a_checkpoint_and_another_run_goes_on_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.safetensors");
    let mut agent = Agent::new(everything(), 3, 2, 5).unwrap();
    let (states, action) = (vec![vec![0.5, 0.1, -0.3]; 2], vec![1.0, -1.0]);
    agent.teach(&[Trial { states, action, value: 2.0 }]).unwrap();
    agent.update().unwrap();
    agent.save(&path, Keep::Lessons).unwrap();
    let mut loaded = Agent::load(&path).unwrap();
    assert_eq!(agent.update(), loaded.update());
    let hyper = Hyper { actor_lr: 1e-5, sigma_start: 0.01, ..everything() };
    let state = [0.3, -0.2, 0.9];
    let action = loaded.act(&state);
    let mut continued = loaded.clone().continued(hyper, 9).unwrap();
    assert_eq!((continued.act(&state), continued.seed(), continued.updates()), (action, 9, 0));
    assert!(continued.update().is_some(), "its lessons are still there");
    let linear = Hyper { critic_layer_norm: !loaded.hyper().critic_layer_norm, ..everything() };
    let error = loaded.clone().continued(linear, 9).unwrap_err().to_string();
    assert!(error.contains("critic_layer_norm"), "{error}");
    let wider = Hyper { hidden: [24, 25], critic_hidden: Some([24, 24]), ..everything() };
    let error = loaded.clone().continued(wider, 9).unwrap_err().to_string();
    assert!(error.contains("actor's second hidden layer"), "{error}");
    let wider = Hyper { critic_hidden: Some([25, 24]), ..everything() };
    let error = loaded.continued(wider, 9).unwrap_err().to_string();
    assert!(error.contains("critics' first hidden layer"), "{error}");
}

#[test]
fn without_the_replay_buffer_the_policy_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.safetensors");
    let mut agent = Agent::new(everything(), 3, 2, 5).unwrap();
    advance(&mut agent, 0..50);
    agent.save(&path, Keep::Networks).unwrap();
    let mut loaded = Agent::load(&path).unwrap();
    assert_eq!(loaded.act(&[0.3, -0.2, 0.9]), agent.act(&[0.3, -0.2, 0.9]));
    assert!(loaded.states_seen(9).is_empty() && loaded.update().is_none());
}

#[test]
fn damaged_checkpoints_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.safetensors");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Agent::load(&path).expect_err("a damaged checkpoint").to_string()
    };
    let mut agent = Agent::new(everything(), 3, 2, 5).unwrap();
    advance(&mut agent, 0..20);
    agent.save(&path, Keep::Everything).unwrap();
    let good = std::fs::read(&path).unwrap();
    for length in (0..good.len()).step_by(211).chain([good.len() - 1]) {
        let message = refused(&good[..length]);
        assert!(message.contains("agent.safetensors: not a usable checkpoint"), "{message}");
    }
    for position in (0..good.len()).step_by(97) {
        let mut bytes = good.clone();
        bytes[position] ^= 0x10;
        refused(&bytes);
    }
    let mut bytes = good.clone();
    *bytes.last_mut().unwrap() ^= 1;
    assert!(refused(&bytes).contains("CRC-32"));
    let missing = Agent::load(&folder.path().join("none")).expect_err("no file").to_string();
    assert!(missing.contains("none"), "{missing}");
    // A sound safetensors file without our metadata.
    assert!(refused(b"\x02\0\0\0\0\0\0\0{}").contains("another program"));
}

#[test]
fn a_failed_save_leaves_the_old_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::new(everything(), 3, 2, 5).unwrap();
    let path = folder.path().join("agent.safetensors");
    agent.save(&path, Keep::Everything).unwrap();
    // A folder in the way: the rename fails after the file was written.
    let occupied = folder.path().join("occupied");
    std::fs::create_dir_all(occupied.join("inside")).unwrap();
    assert!(agent.save(&occupied, Keep::Everything).is_err());
    assert!(agent.save(&folder.path().join("absent/agent"), Keep::Everything).is_err());
    let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 2, "no temporary file stays behind");
    Agent::load(&path).unwrap();
}

#[test]
fn misfits_are_refused_and_change_nothing() {
    let mut agent = Agent::new(everything(), 3, 2, 5).unwrap();
    let good = Transition {
        lane: 0,
        state: &[0.0; 3],
        action: &[0.0; 2],
        reward: 0.0,
        next_state: &[0.0; 3],
        done: false,
        truncated: false,
    };
    for wrong in [
        Transition { state: &[0.0; 2], ..good },
        Transition { next_state: &[0.0; 4], ..good },
        Transition { action: &[0.0; 3], ..good },
        Transition { action: &[f32::NAN, 0.0], ..good },
        Transition { reward: f32::INFINITY, ..good },
    ] {
        agent.observe(&wrong).unwrap_err();
    }
    assert_eq!(agent.observed(), 0);
    assert!(Agent::new(everything(), 0, 2, 5).is_err());
    assert_eq!(agent.act(&[0.5]), agent.act(&[0.5, f32::NAN, f32::NAN]));
}
