//! The update against a second implementation: f64, naive loops, gradients by finite differences.

use super::agent::Agent;
use super::net::{Mlp, Tape, tanh};
use super::normaliser::Normaliser;
use super::quantise::snap;
use super::{Hyper, Transition};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

/// A network in f64: its shape is that of the tested one, its arithmetic is not.
#[derive(Clone)]
struct Net {
    dims: Vec<usize>,
    layer_norm: bool,
    params: Vec<f64>,
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

impl Net {
    fn of(net: &Mlp, layer_norm: bool) -> Self {
        Net { dims: net.dims().to_vec(), layer_norm, params: wide(&net.params) }
    }

    fn forward(&self, input: &[f64]) -> Vec<f64> {
        let mut values = input.to_vec();
        let mut start = 0;
        for (layer, pair) in self.dims.windows(2).enumerate() {
            let (inputs, outputs) = (pair[0], pair[1]);
            let biases = start + inputs * outputs;
            let mut next: Vec<f64> = (0..outputs)
                .map(|row| {
                    let weights = &self.params[start + row * inputs..][..inputs];
                    let dot: f64 = weights.iter().zip(&values).map(|(w, x)| w * x).sum();
                    dot + self.params[biases + row]
                })
                .collect();
            if layer + 2 < self.dims.len() {
                if self.layer_norm {
                    let mean = next.iter().sum::<f64>() / outputs as f64;
                    let squares = next.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                    let root = (squares / outputs as f64 + 1e-5).sqrt();
                    next.iter_mut().for_each(|x| *x = (*x - mean) / root);
                }
                next.iter_mut().for_each(|x| *x = x.max(0.0));
            }
            values = next;
            start = biases + outputs;
        }
        values
    }

    /// Gradient of `loss` by every parameter, by central differences.
    fn gradient(&self, loss: impl Fn(&Net) -> f64) -> Vec<f64> {
        let mut net = self.clone();
        let step = 1e-6;
        (0..self.params.len())
            .map(|index| {
                let mut at = |shift: f64| {
                    net.params[index] = self.params[index] + shift;
                    let value = loss(&net);
                    net.params[index] = self.params[index];
                    value
                };
                (at(step) - at(-step)) / (2.0 * step)
            })
            .collect()
    }
}

/// Adam as printed in its paper, with the decoupled decay.
struct Adam {
    lr: f64,
    decay: f64,
    epsilon: f64,
    moments: Vec<(f64, f64)>,
    steps: i32,
}

impl Adam {
    fn new(net: &Net, lr: f64, decay: f64, epsilon: f64) -> Self {
        Adam { lr, decay, epsilon, moments: vec![(0.0, 0.0); net.params.len()], steps: 0 }
    }

    fn step(&mut self, params: &mut [f64], grads: &[f64]) {
        self.steps += 1;
        for ((param, grad), (m, v)) in params.iter_mut().zip(grads).zip(&mut self.moments) {
            *m = 0.9 * *m + 0.1 * grad;
            *v = 0.999 * *v + 0.001 * grad * grad;
            let m_hat = *m / (1.0 - 0.9f64.powi(self.steps));
            let v_hat = *v / (1.0 - 0.999f64.powi(self.steps));
            *param -=
                self.lr * self.decay * *param + self.lr * m_hat / (v_hat.sqrt() + self.epsilon);
        }
    }
}

/// Mistakes that the comparison must notice.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    Tau,
    Gamma,
    Epsilon,
    DoneIgnored,
    ActorFirst,
    ActorDownhill,
}

struct Row {
    state: Vec<f64>,
    action: Vec<f64>,
    reward: f64,
    next_state: Vec<f64>,
    discount: f64,
}

/// DDPG in f64, begun from an agent's networks.
struct Reference {
    mistake: Mistake,
    hyper: Hyper,
    actor: Net,
    actor_target: Net,
    actor_adam: Adam,
    critics: Vec<(Net, Net, Adam)>,
    updates: u64,
}

impl Reference {
    fn of(agent: &Agent, mistake: Mistake) -> Self {
        let hyper = agent.hyper().clone();
        let epsilon = if mistake == Mistake::Epsilon { 1e-5 } else { 1e-8 };
        let actor = Net::of(&agent.actor, false);
        let critics = agent.critics.iter().map(|critic| {
            let net = Net::of(&critic.net, hyper.critic_layer_norm);
            let adam = Adam::new(&net, hyper.critic_lr, hyper.critic_weight_decay, epsilon);
            (net.clone(), net, adam)
        });
        Reference {
            mistake,
            critics: critics.collect(),
            actor_target: actor.clone(),
            actor_adam: Adam::new(&actor, hyper.actor_lr, 0.0, epsilon),
            actor,
            updates: 0,
            hyper,
        }
    }

    /// One update on `rows`: the critics' loss and the actor's.
    fn update(&mut self, rows: &[Row]) -> (f64, f64) {
        let mut actor = 0.0;
        if self.mistake == Mistake::ActorFirst {
            actor = self.update_actor(rows);
        }
        let critic = self.update_critics(rows);
        self.updates += 1;
        if self.updates.is_multiple_of(self.hyper.policy_delay) {
            if self.mistake != Mistake::ActorFirst {
                actor = self.update_actor(rows);
            }
            self.update_targets();
        }
        (critic, actor)
    }

    fn update_critics(&mut self, rows: &[Row]) -> f64 {
        let target = |row: &Row| {
            let action = self.actor_target.forward(&row.next_state).into_iter().map(f64::tanh);
            let input: Vec<f64> = row.next_state.iter().copied().chain(action).collect();
            let values = self.critics.iter().map(|(_, target, _)| target.forward(&input)[0]);
            let discount = match self.mistake {
                Mistake::DoneIgnored if row.discount == 0.0 => self.hyper.gamma_step(),
                Mistake::Gamma => row.discount * 0.98 / 0.99,
                _ => row.discount,
            };
            row.reward + discount * values.fold(f64::INFINITY, f64::min)
        };
        let targets: Vec<f64> = rows.iter().map(target).collect();
        let mut sum = 0.0;
        for (net, _, adam) in &mut self.critics {
            let loss = |net: &Net| {
                let errors = rows.iter().zip(&targets).map(|(row, target)| {
                    let input: Vec<f64> = row.state.iter().chain(&row.action).copied().collect();
                    (net.forward(&input)[0] - target).powi(2)
                });
                errors.sum::<f64>() / rows.len() as f64
            };
            sum += loss(net);
            let grads = net.gradient(loss);
            adam.step(&mut net.params, &grads);
        }
        sum / self.critics.len() as f64
    }

    fn update_actor(&mut self, rows: &[Row]) -> f64 {
        let hyper = &self.hyper;
        let critic = &self.critics[0].0;
        let loss = |net: &Net| {
            let losses = rows.iter().map(|row| {
                let values = net.forward(&row.state);
                let actions = values.iter().map(|value| value.tanh());
                let input: Vec<f64> = row.state.iter().copied().chain(actions).collect();
                let excess = values.iter().map(|v| (v.abs() - hyper.preactivation_limit).max(0.0));
                let charge = excess.map(|x| hyper.preactivation_penalty * x * x).sum::<f64>();
                charge - critic.forward(&input)[0]
            });
            losses.sum::<f64>() / rows.len() as f64
        };
        // Straight through: the gradient at the snapped weights moves the master weights.
        let snapped = snapped(&self.actor);
        let mut grads = snapped.gradient(loss);
        if self.mistake == Mistake::ActorDownhill {
            grads.iter_mut().for_each(|grad| *grad = -*grad);
        }
        self.actor_adam.step(&mut self.actor.params, &grads);
        loss(&snapped)
    }

    fn update_targets(&mut self) {
        let tau = if self.mistake == Mistake::Tau { 2.0 * self.hyper.tau } else { self.hyper.tau };
        let soft = |target: &mut Net, net: &Net| {
            for (target, param) in target.params.iter_mut().zip(&net.params) {
                *target = (1.0 - tau) * *target + tau * param;
            }
        };
        soft(&mut self.actor_target, &self.actor);
        for (net, target, _) in &mut self.critics {
            soft(target, net);
        }
    }
}

/// Weights on the grid of 127 steps per output channel.
fn snapped(net: &Net) -> Net {
    let mut out = net.clone();
    let mut start = 0;
    for pair in net.dims.windows(2) {
        for row in 0..pair[1] {
            let row = &mut out.params[start + row * pair[0]..][..pair[0]];
            let scale = row.iter().fold(0.0f64, |most, weight| most.max(weight.abs())) / 127.0;
            row.iter_mut().for_each(|weight| *weight = (*weight / scale).round() * scale);
        }
        start += (pair[0] + 1) * pair[1];
    }
    out
}

/// An agent of tiny networks whose buffer holds 40 random transitions, some of them final.
fn agent(hyper: Hyper) -> Agent {
    let hyper = Hyper {
        batch: 16,
        hidden: [6, 5],
        warm_up_steps: 1,
        actor_lr: 3e-3,
        critic_lr: 1e-2,
        tau: 0.05,
        gamma: 0.99,
        step_s: 1.0,
        final_init: 0.5,
        normalise: false,
        ..hyper
    };
    let mut agent = Agent::new(hyper, 2, 2, 11).expect("valid hyperparameters");
    let mut rng = Pcg32::seed_from_u64(5);
    for number in 0..40 {
        let [mut state, mut action, mut next_state] = [[0.0f32; 2]; 3];
        for slot in state.iter_mut().chain(&mut action).chain(&mut next_state) {
            *slot = rng.random_range(-1.0..=1.0);
        }
        let transition = Transition {
            lane: 0,
            state: &state,
            action: &action,
            reward: 2.0 * state[0] - action[1] + action[0] * state[1],
            next_state: &next_state,
            done: number % 4 == 0,
            truncated: false,
        };
        agent.observe(&transition).expect("a fitting transition");
    }
    agent
}

/// The rows that the agent's next update will draw.
fn next_batch(agent: &Agent) -> Vec<Row> {
    let mut rng = agent.learn_rng.clone();
    let draw = |_| {
        let row = agent.replay.sample(&mut rng);
        Row {
            state: wide(row.state),
            action: wide(row.action),
            reward: row.reward.into(),
            next_state: wide(row.next_state),
            discount: row.discount.into(),
        }
    };
    (0..agent.hyper().batch).map(draw).collect()
}

/// Largest difference of any loss over 60 updates, relative to 1 + the loss.
fn largest_difference(hyper: Hyper, mistake: Mistake) -> f64 {
    let mut agent = agent(hyper);
    let mut reference = Reference::of(&agent, mistake);
    let mut largest = 0.0f64;
    for _ in 0..60 {
        let rows = next_batch(&agent);
        let found = agent.update().expect("the warm-up is over");
        let (critic, actor) = reference.update(&rows);
        let mut compare = |found: f32, expected: f64| {
            largest = largest.max((f64::from(found) - expected).abs() / (1.0 + expected.abs()));
        };
        compare(found.critic, critic);
        if let Some(losses) = found.actor {
            compare(losses.loss, actor);
        }
    }
    largest
}

/// f32 against f64 differs by 3e-7; every planted mistake by more than 2e-3.
const TOLERANCE: f64 = 5e-5;

#[test]
fn updates_match_the_reference() {
    let all = Hyper {
        clipped_double_q: true,
        policy_delay: 2,
        critic_layer_norm: true,
        critic_weight_decay: 0.1,
        preactivation_limit: 0.2,
        preactivation_penalty: 0.3,
        n_step: 3,
        ..Hyper::default()
    };
    for hyper in [Hyper::default(), all] {
        let difference = largest_difference(hyper, Mistake::None);
        assert!(difference < TOLERANCE, "{difference}");
    }
}

#[test]
fn planted_mistakes_are_noticed() {
    for mistake in [
        Mistake::Tau,
        Mistake::Gamma,
        Mistake::Epsilon,
        Mistake::DoneIgnored,
        Mistake::ActorFirst,
        Mistake::ActorDownhill,
    ] {
        let difference = largest_difference(Hyper::default(), mistake);
        assert!(difference > 20.0 * TOLERANCE, "{mistake:?}: {difference} goes unnoticed");
    }
}

/// Every gradient of a larger network with layer normalisation, and that by its input.
#[test]
fn gradients_match_finite_differences() {
    for layer_norm in [false, true] {
        let mut rng = Pcg32::seed_from_u64(3);
        let net = Mlp::new(&[5, 9, 7, 2], 0.5, layer_norm, &mut rng);
        let batch = 4;
        let mut tape = Tape::new(&net, batch);
        tape.input().fill_with(|| rng.random_range(-2.0..2.0));
        let input = wide(tape.input());
        // The loss is a weighted sum of the outputs.
        let weights: Vec<f32> = (0..2 * batch).map(|_| rng.random_range(-1.0..1.0)).collect();
        net.forward(&mut tape);
        tape.output_grad().copy_from_slice(&weights);
        let mut grads = vec![0.0; net.params.len()];
        net.backward(&mut tape, Some(&mut grads), 1..4);

        let reference = Net::of(&net, layer_norm);
        let loss_of = |net: &Net, input: &[f64]| -> f64 {
            let sample = |index| -> f64 {
                let column: Vec<f64> = input.iter().skip(index).step_by(batch).copied().collect();
                let out = net.forward(&column);
                let terms = out.iter().zip(weights.iter().skip(index).step_by(batch));
                terms.map(|(value, weight)| value * f64::from(*weight)).sum()
            };
            (0..batch).map(sample).sum()
        };
        let expected = reference.gradient(|net| loss_of(net, &input));
        for (index, (found, expected)) in grads.iter().zip(expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{index}: {found} {expected}");
        }
        for index in batch..4 * batch {
            let at = |shift: f64| {
                let mut moved = input.clone();
                moved[index] += shift;
                loss_of(&reference, &moved)
            };
            let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
            let found = f64::from(tape.input_grad()[index]);
            assert!((found - expected).abs() < 1e-4, "input {index}: {found} {expected}");
        }
    }
}

#[test]
fn snapping_reaches_the_nearest_grid_step() {
    let mut rng = Pcg32::seed_from_u64(9);
    let net = Mlp::new(&[7, 5, 4, 3], 0.5, false, &mut rng);
    let mut found = net.clone();
    snap(&net, &mut found);
    let expected = snapped(&Net::of(&net, false));
    for (found, expected) in found.params.iter().zip(expected.params) {
        assert!((f64::from(*found) - expected).abs() < 1e-6);
    }
}

#[test]
fn fast_tanh_is_close_odd_and_bounded() {
    for step in -100_000..=100_000 {
        let value = step as f32 * 1e-4;
        let error = (f64::from(tanh(value)) - f64::from(value).tanh()).abs();
        assert!(error < 1e-6 && tanh(value).abs() <= 1.0, "{value}: {error}");
        assert_eq!(tanh(-value), -tanh(value));
    }
    assert!(tanh(f32::INFINITY) > 1.0 - 1e-6 && tanh(-1e30) < -1.0 + 1e-6);
}

/// The normalised input is that of the model file, so that the f32 and the int8 actor see the same.
#[test]
fn normalisation_is_that_of_the_model() {
    let mut normaliser = Normaliser::new(1, true, 1e-2);
    [0.3, 0.9, 2.5].iter().for_each(|&value| normaliser.observe(&[value]));
    let (mean, inv_std) = normaliser.scale(0);
    for value in [0.0, 1.0, -7.5, 90.0, f32::NAN] {
        let mut state = [value];
        normaliser.apply(&mut state, 1);
        let integer = brokertuner_core::actor::quantise_input(value, mean, inv_std);
        assert!((state[0] * 4096.0 - f32::from(integer)).abs() <= 1.0, "{value}");
    }
}
