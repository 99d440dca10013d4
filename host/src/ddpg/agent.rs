//! The agent: networks, replay, and the update.

use super::adam::{Adam, narrow, polyak};
use super::guide::Guide;
use super::hyper::INERTIA_WIDTH;
use super::lessons::{Lessons, Trial};
use super::net::{Mlp, Tape, row_sum, tanh, tanh_into};
use super::noise::{Noise, normal};
use super::normaliser::{InputScale, Normaliser};
use super::quantise::snap;
use super::replay::{Pending, Replay, Row, Transition, collect, cut};
use super::{DdpgError, Hyper};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

/// What an update found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Losses {
    /// Mean squared error of the critics against the target; the mean of both where there are two.
    pub critic: f32,
    /// Mean value that the first critic gave to the batch.
    pub q_mean: f32,
    /// What the actor's update saw, where it was its turn.
    pub actor: Option<ActorLosses>,
}

/// What an update of the actor found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActorLosses {
    /// Mean of the first critic's value of the policy's actions, negated, plus the charge for
    /// saturation.
    pub loss: f32,
    /// Share of the batch's actions whose pre-tanh value is beyond the limit.
    pub saturated_share: f32,
}

/// A critic, its target and its optimiser.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Critic {
    pub(super) net: Mlp,
    pub(super) target: Mlp,
    pub(super) adam: Adam,
}

/// A DDPG agent for states of `state_dim` raw features and actions of `action_dim` numbers in
/// -1 to 1.
#[derive(Clone, Debug)]
pub struct Agent {
    pub(super) hyper: Hyper,
    pub(super) state_dim: usize,
    pub(super) action_dim: usize,
    pub(super) seed: u64,
    /// f32 master weights.
    pub(super) actor: Mlp,
    /// The master weights on the int8 grid: what acts.
    pub(super) snapped: Mlp,
    pub(super) actor_target: Mlp,
    pub(super) actor_adam: Adam,
    pub(super) critics: Vec<Critic>,
    pub(super) normaliser: Normaliser,
    pub(super) replay: Replay,
    pub(super) lessons: Lessons,
    pub(super) pending: Vec<Pending>,
    pub(super) noise: Noise,
    /// Draws batches.
    pub(super) learn_rng: Pcg32,
    /// Draws exploration, so that it does not depend on the number of updates.
    pub(super) explore_rng: Pcg32,
    /// Transitions observed.
    pub(super) observed: u64,
    /// Critic updates made.
    pub(super) updates: u64,
    work: Work,
}

/// Buffers of an update; nothing in them outlives it.
#[derive(Clone, Debug)]
struct Work {
    actor: Tape,
    target_actor: Tape,
    critic: Tape,
    actions: Vec<f32>,
    /// Actions in force before the step, where the state ends with them.
    in_force: Vec<f32>,
    rewards: Vec<f32>,
    discounts: Vec<f32>,
    targets: Vec<f32>,
    grads: Vec<f32>,
}

impl Agent {
    /// A fresh agent; all that is random about it follows from `seed`.
    ///
    /// # Errors
    /// [`DdpgError::Hyper`], or [`DdpgError::Length`] for a dimension of 0.
    pub fn new(
        hyper: Hyper,
        state_dim: usize,
        action_dim: usize,
        seed: u64,
    ) -> Result<Self, DdpgError> {
        hyper.validate()?;
        for (what, found) in [("features of a state", state_dim), ("actions", action_dim)] {
            DdpgError::check_length(what, found, found.max(1))?;
        }
        let mut learn_rng = Pcg32::seed_from_u64(seed);
        let explore_rng = Pcg32::seed_from_u64(seed ^ 0x6578_706c_6f72_6521);
        let [hidden1, hidden2] = hyper.hidden;
        let final_init = narrow(hyper.final_init);
        let actor_dims = [state_dim, hidden1, hidden2, action_dim];
        let actor = Mlp::new(&actor_dims, final_init, false, &mut learn_rng);
        let [critic1, critic2] = hyper.critic_widths();
        let critic_dims = [state_dim + action_dim, critic1, critic2, 1];
        let critic = |_| {
            let norm = hyper.critic_layer_norm;
            let net = Mlp::new(&critic_dims, final_init, norm, &mut learn_rng);
            let adam = Adam::new(net.params.len(), hyper.critic_lr, hyper.critic_weight_decay);
            Critic { target: net.clone(), adam, net }
        };
        let critics: Vec<Critic> =
            (0..1 + usize::from(hyper.clipped_double_q)).map(critic).collect();
        let mut snapped = actor.clone();
        snap(&actor, &mut snapped);
        Ok(Agent {
            state_dim,
            action_dim,
            seed,
            actor_target: actor.clone(),
            actor_adam: Adam::new(actor.params.len(), hyper.actor_lr, 0.0),
            work: Work::new(&actor, &critics[0].net, hyper.batch),
            actor,
            snapped,
            critics,
            normaliser: Normaliser::new(state_dim, hyper.normalise, hyper.normalise_std_min),
            replay: Replay::new(state_dim, action_dim, hyper.replay_capacity),
            lessons: Lessons::new(state_dim, action_dim),
            pending: Vec::new(),
            noise: Noise::default(),
            learn_rng,
            explore_rng,
            observed: 0,
            updates: 0,
            hyper,
        })
    }

    /// Replaces what it knows of its features, for an agent that is to act before it has observed
    /// anything: it would ignore every feature otherwise.
    ///
    /// # Errors
    /// [`DdpgError::Length`]; nothing has changed then.
    pub fn set_input_scales(&mut self, scales: &[InputScale]) -> Result<(), DdpgError> {
        DdpgError::check_length("input scales", scales.len(), self.state_dim)?;
        self.normaliser = Normaliser::of_scales(scales);
        Ok(())
    }

    /// Its hyperparameters.
    #[must_use]
    pub fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    /// Features of a state.
    #[must_use]
    pub fn state_dim(&self) -> usize {
        self.state_dim
    }

    /// Transitions in the replay buffer.
    #[must_use]
    pub fn replay_count(&self) -> usize {
        self.replay.len()
    }

    /// The seed it was made from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Transitions observed so far.
    #[must_use]
    pub fn observed(&self) -> u64 {
        self.observed
    }

    /// Updates made so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Raw states that it learnt from, those of its lessons first; at most `count`, evenly spread.
    /// For [`Agent::quantise`].
    #[must_use]
    pub fn states_seen(&self, count: usize) -> Vec<Vec<f32>> {
        let taught = self.lessons.state_count();
        let stored = taught + self.replay.len();
        let count = count.min(stored);
        let state = |number: usize| match number.checked_sub(taught) {
            None => self.lessons.state(number),
            Some(row) => self.replay.row(row).state,
        };
        (0..count).map(|number| state(number * stored / count).to_vec()).collect()
    }

    /// Reward of each transition in the replay buffer, and whether nothing after it counts.
    #[cfg(test)]
    pub(crate) fn replay_outcomes(&self) -> impl Iterator<Item = (f32, bool)> {
        let rows = (0..self.replay.len()).map(|index| self.replay.row(index));
        rows.map(|row| (row.reward, row.discount == 0.0))
    }

    /// The policy's action for raw features, each in -1 to 1; missing features are not-a-number.
    /// A `state` that is too short is filled up with missing features.
    #[must_use]
    pub fn act(&self, state: &[f32]) -> Vec<f32> {
        let state: Vec<f32> =
            (0..self.state_dim).map(|index| *state.get(index).unwrap_or(&f32::NAN)).collect();
        self.act_batch(&state, 1)
    }

    /// The policy's actions for `features x batch` raw states; `actions x batch`.
    pub(super) fn act_batch(&self, states: &[f32], batch: usize) -> Vec<f32> {
        let mut tape = Tape::new(&self.snapped, batch);
        tape.input().copy_from_slice(states);
        self.normaliser.apply(tape.input(), batch);
        self.snapped.forward(&mut tape);
        tape.output().iter().map(|&value| tanh(value)).collect()
    }

    /// The action to take in training in environment `lane`: uniformly random during the warm-up,
    /// then the policy's with noise, clamped to -1 to 1.
    pub fn act_noisy(&mut self, lane: usize, state: &[f32]) -> Vec<f32> {
        if self.observed < self.hyper.warm_up_steps {
            let random = |_| self.explore_rng.random_range(-1.0..=1.0);
            return (0..self.action_dim).map(random).collect();
        }
        let mut action = self.act(state);
        let noise = self.noise.next(
            self.hyper.noise,
            self.hyper.ou_theta,
            self.hyper.sigma(self.observed),
            (lane, self.action_dim),
            &mut self.explore_rng,
        );
        for (action, noise) in action.iter_mut().zip(noise) {
            *action = (*action + narrow(noise)).clamp(-1.0, 1.0);
        }
        action
    }

    /// Takes in a transition: into the statistics of the features and into the replay buffer.
    ///
    /// # Errors
    /// [`DdpgError::Length`] or [`DdpgError::NotFinite`]; nothing has changed then.
    pub fn observe(&mut self, transition: &Transition<'_>) -> Result<(), DdpgError> {
        let lengths = [
            ("features of a state", transition.state.len(), self.state_dim),
            ("features of a next state", transition.next_state.len(), self.state_dim),
            ("actions", transition.action.len(), self.action_dim),
        ];
        for (what, found, expected) in lengths {
            DdpgError::check_length(what, found, expected)?;
        }
        if !transition.reward.is_finite() {
            return Err(DdpgError::NotFinite { what: "the reward" });
        }
        if !transition.action.iter().all(|action| action.is_finite()) {
            return Err(DdpgError::NotFinite { what: "an action" });
        }
        self.normaliser.observe(transition.state);
        let gamma = narrow(self.hyper.gamma_step());
        collect(&mut self.pending, &mut self.replay, transition, gamma, self.hyper.n_step);
        if transition.done || transition.truncated {
            self.noise.reset(transition.lane);
        }
        self.observed += 1;
        Ok(())
    }

    /// Takes in what fixed actions were worth on one site: into the statistics of the features and
    /// among the lessons.
    ///
    /// # Errors
    /// [`DdpgError::Length`] or [`DdpgError::NotFinite`]; nothing has changed then.
    pub fn teach(&mut self, trials: &[Trial]) -> Result<(), DdpgError> {
        self.lessons.add(trials)?;
        for state in trials.iter().flat_map(|trial| &trial.states) {
            self.normaliser.observe(state);
        }
        Ok(())
    }

    /// The same policy and critics for a run with other hyperparameters; its transitions are gone,
    /// its lessons stay.
    ///
    /// # Errors
    /// [`DdpgError::Hyper`]; or [`DdpgError::Length`] and [`DdpgError::OtherNetworks`] where the
    /// networks would change.
    pub fn continued(self, hyper: Hyper, seed: u64) -> Result<Self, DdpgError> {
        let mut agent = Agent::new(hyper, self.state_dim, self.action_dim, seed)?;
        let (actor, critic) = (agent.hyper.hidden, agent.hyper.critic_widths());
        let (actor_before, critic_before) = (self.hyper.hidden, self.hyper.critic_widths());
        for (what, found, expected) in [
            ("neurons of the actor's first hidden layer", actor[0], actor_before[0]),
            ("neurons of the actor's second hidden layer", actor[1], actor_before[1]),
            ("neurons of the critics' first hidden layer", critic[0], critic_before[0]),
            ("neurons of the critics' second hidden layer", critic[1], critic_before[1]),
            ("critics", agent.critics.len(), self.critics.len()),
        ] {
            DdpgError::check_length(what, found, expected)?;
        }
        let kinds = |hyper: &Hyper| (hyper.critic_layer_norm, hyper.normalise);
        if kinds(&agent.hyper) != kinds(&self.hyper) {
            return Err(DdpgError::OtherNetworks);
        }
        for (new, old) in agent.critics.iter_mut().zip(self.critics) {
            (new.net, new.target) = (old.net, old.target);
        }
        (agent.actor, agent.actor_target) = (self.actor, self.actor_target);
        agent.snapped = self.snapped;
        (agent.normaliser, agent.lessons) = (self.normaliser, self.lessons);
        Ok(agent)
    }

    /// The same agent with the running average of its policy (the target actor: over the last
    /// `1 / tau` updates of the actor, about) in place of the latest one.
    #[must_use]
    pub fn averaged(&self) -> Self {
        let mut averaged = self.clone();
        averaged.actor.params.clone_from(&self.actor_target.params);
        snap(&averaged.actor, &mut averaged.snapped);
        averaged
    }

    /// Ends the returns that environment `lane` still collects, as a truncation in `state` would:
    /// what follows there is not part of them.
    ///
    /// # Errors
    /// [`DdpgError::Length`]; nothing has changed then.
    pub fn cut(&mut self, lane: usize, state: &[f32]) -> Result<(), DdpgError> {
        DdpgError::check_length("features of a state", state.len(), self.state_dim)?;
        cut(&mut self.pending, &mut self.replay, lane, state);
        self.noise.reset(lane);
        Ok(())
    }

    /// Forgets the returns that are still being collected and where the noise had drifted to: the
    /// worlds that they belong to are gone.
    pub fn begin_anew(&mut self) {
        self.pending.clear();
        self.noise = Noise::default();
    }

    /// One gradient step on a random batch; `None` until the warm-up is over, but for what there is
    /// of lessons.
    ///
    /// In the order of the paper's algorithm: targets, critics, actor, soft update.
    pub fn update(&mut self) -> Option<Losses> {
        let is_warm = self.observed >= self.hyper.warm_up_steps.max(1) && self.replay.len() > 0;
        if !is_warm && self.lessons.is_empty() {
            return None;
        }
        self.draw_batch(is_warm);
        self.compute_targets();
        let (critic, q_mean) = self.update_critics();
        self.updates += 1;
        let actors_turn = self.updates.is_multiple_of(self.hyper.policy_delay);
        let actor = actors_turn.then(|| {
            let losses = self.update_actor();
            self.update_targets();
            losses
        });
        Some(Losses { critic, q_mean, actor })
    }

    /// Fills the work buffers with random rows and lessons, transposed and normalised.
    fn draw_batch(&mut self, is_warm: bool) {
        let batch = self.hyper.batch;
        let lessons_share = match (self.lessons.is_empty(), is_warm) {
            (true, _) => 0.0,
            (false, true) => self.hyper.lessons_share,
            (false, false) => 1.0,
        };
        let work = &mut self.work;
        for index in 0..batch {
            let is_lesson = lessons_share > 0.0
                && (lessons_share >= 1.0 || self.learn_rng.random_bool(lessons_share));
            let row = if is_lesson {
                let lesson = self.lessons.draw(&mut self.learn_rng);
                Row {
                    state: lesson.state,
                    action: lesson.action,
                    reward: lesson.value,
                    next_state: lesson.state,
                    discount: 0.0,
                }
            } else {
                self.replay.sample(&mut self.learn_rng)
            };
            scatter(row.state, work.actor.input(), index, batch);
            scatter(row.next_state, work.target_actor.input(), index, batch);
            scatter(row.action, &mut work.actions, index, batch);
            if is_lesson && self.hyper.lesson_noise > 0.0 {
                for action in work.actions.iter_mut().skip(index).step_by(batch) {
                    let noise = self.hyper.lesson_noise * normal(&mut self.learn_rng);
                    *action = (*action + narrow(noise)).clamp(-1.0, 1.0);
                }
            }
            let in_force = self.state_dim.checked_sub(self.action_dim);
            if let Some(start) = in_force {
                scatter(&row.state[start..], &mut work.in_force, index, batch);
            }
            work.rewards[index] = row.reward;
            work.discounts[index] = row.discount;
        }
        self.normaliser.apply(work.actor.input(), batch);
        self.normaliser.apply(work.target_actor.input(), batch);
    }

    /// `reward + discount * (smallest) target critic of (next state, target actor's action)`.
    fn compute_targets(&mut self) {
        let states = self.state_dim * self.hyper.batch;
        let work = &mut self.work;
        self.actor_target.forward(&mut work.target_actor);
        work.targets.fill(f32::INFINITY);
        for critic in &self.critics {
            let input = work.critic.input();
            input[..states].copy_from_slice(work.target_actor.input());
            tanh_into(&mut input[states..], work.target_actor.output());
            critic.target.forward(&mut work.critic);
            for (target, &value) in work.targets.iter_mut().zip(work.critic.output()) {
                *target = target.min(value);
            }
        }
        let terms = work.rewards.iter().zip(&work.discounts);
        for (target, (reward, discount)) in work.targets.iter_mut().zip(terms) {
            *target = reward + discount * *target;
        }
    }

    /// One step of each critic towards the targets; mean squared error and mean value.
    fn update_critics(&mut self) -> (f32, f32) {
        let batch = self.hyper.batch;
        let share = (batch as f32).recip();
        let states = self.state_dim * batch;
        let work = &mut self.work;
        let (mut loss, mut q_mean) = (0.0, 0.0);
        for (index, critic) in self.critics.iter_mut().enumerate() {
            let input = work.critic.input();
            input[..states].copy_from_slice(work.actor.input());
            input[states..].copy_from_slice(&work.actions);
            critic.net.forward(&mut work.critic);
            if index == 0 {
                q_mean = row_sum(work.critic.output()) * share;
            }
            let errors: Vec<f32> = work
                .critic
                .output()
                .iter()
                .zip(&work.targets)
                .map(|(q, target)| q - target)
                .collect();
            for (grad, error) in work.critic.output_grad().iter_mut().zip(&errors) {
                *grad = 2.0 * error * share;
            }
            loss += errors.iter().map(|error| error * error).sum::<f32>() * share;
            let grads = &mut work.grads[..critic.net.params.len()];
            critic.net.backward(&mut work.critic, Some(&mut *grads), 0..0);
            critic.adam.step(&mut critic.net.params, grads);
        }
        (loss / self.critics.len() as f32, q_mean)
    }

    /// One step of the actor up the first critic's value.
    fn update_actor(&mut self) -> ActorLosses {
        let losses = self.actor_gradient();
        let grads = &self.work.grads[..self.actor.params.len()];
        self.actor_adam.step(&mut self.actor.params, grads);
        snap(&self.actor, &mut self.snapped);
        losses
    }

    /// For each state of the batch, and the policy's actions in the critic's input, where the actor
    /// is pulled to.
    fn guides(&mut self) -> Vec<f32> {
        let (batch, states) = (self.hyper.batch, self.state_dim * self.hyper.batch);
        let own = &self.work.critic.values(0)[states..];
        if self.hyper.guide == 0.0 {
            return own.to_vec();
        }
        let guide = Guide {
            critics: &self.critics,
            hyper: &self.hyper,
            state_dim: self.state_dim,
            action_dim: self.action_dim,
        };
        let has_in_force = self.state_dim >= self.action_dim;
        let others = |rng: &mut Pcg32, candidates: &mut [f32]| {
            for index in 0..batch {
                let action = match self.lessons.is_empty() {
                    true => self.replay.sample(rng).action,
                    false => self.lessons.draw_action(rng),
                };
                scatter(action, candidates, index, batch);
            }
        };
        let in_force = has_in_force.then_some(self.work.in_force.as_slice());
        let states = &self.work.critic.values(0)[..states];
        guide.best(states, own, in_force, others, &mut self.learn_rng)
    }

    /// Gradient of the actor's loss on the batch, left in `work.grads`.
    fn actor_gradient(&mut self) -> ActorLosses {
        let batch = self.hyper.batch;
        let share = (batch as f32).recip();
        let states = self.state_dim * batch;
        let work = &mut self.work;
        self.snapped.forward(&mut work.actor);
        let input = work.critic.input();
        input[..states].copy_from_slice(work.actor.input());
        tanh_into(&mut input[states..], work.actor.output());
        let critic = &self.critics[0].net;
        critic.forward(&mut work.critic);
        let q_mean = row_sum(work.critic.output()) * share;
        work.critic.output_grad().fill(-share);
        let rows = self.state_dim..self.state_dim + self.action_dim;
        critic.backward(&mut work.critic, None, rows);
        let guides = self.guides();
        let work = &mut self.work;

        let limit = narrow(self.hyper.preactivation_limit);
        let price = narrow(self.hyper.preactivation_penalty);
        let values = work.actor.output().to_vec();
        let by_action = &work.critic.input_grad()[states..];
        let actions = &work.critic.values(0)[states..];
        let has_in_force = self.state_dim >= self.action_dim;
        let inertia = if has_in_force { narrow(self.hyper.inertia) } else { 0.0 };
        let guide = narrow(self.hyper.guide);
        let (mut charge, mut saturated) = (0.0, 0usize);
        let terms = values.iter().zip(actions).zip(by_action).zip(&work.in_force).zip(&guides);
        for (grad, ((((value, action), by_action), in_force), goal)) in
            work.actor.output_grad().iter_mut().zip(terms)
        {
            let excess = value.abs() - limit;
            let (moved, pull) = huber(action - in_force);
            let distance = action - goal;
            let by_action = by_action + (inertia * pull + guide * 2.0 * distance) * share;
            *grad = by_action * (1.0 - action * action);
            charge += (inertia * moved + guide * distance * distance) * share;
            if excess > 0.0 {
                *grad += 2.0 * price * excess * value.signum() * share;
                charge += price * excess * excess * share;
                saturated += 1;
            }
        }
        let grads = &mut work.grads[..self.snapped.params.len()];
        self.snapped.backward(&mut work.actor, Some(grads), 0..0);
        let saturated_share = saturated as f32 / values.len() as f32;
        ActorLosses { loss: charge - q_mean, saturated_share }
    }

    /// Moves all targets towards the trained networks.
    fn update_targets(&mut self) {
        let tau = narrow(self.hyper.tau);
        polyak(&mut self.actor_target.params, &self.actor.params, tau);
        for critic in &mut self.critics {
            polyak(&mut critic.target.params, &critic.net.params, tau);
        }
    }
}

impl Work {
    fn new(actor: &Mlp, critic: &Mlp, batch: usize) -> Self {
        let actions = actor.dims().last().map_or(0, |dim| dim * batch);
        Work {
            actor: Tape::new(actor, batch),
            target_actor: Tape::new(actor, batch),
            critic: Tape::new(critic, batch),
            actions: vec![0.0; actions],
            in_force: vec![0.0; actions],
            rewards: vec![0.0; batch],
            discounts: vec![0.0; batch],
            targets: vec![0.0; batch],
            grads: vec![0.0; actor.params.len().max(critic.params.len())],
        }
    }
}

/// Huber's loss of width [`INERTIA_WIDTH`] and slope 1, and its derivative; not-a-number costs
/// nothing.
fn huber(distance: f32) -> (f32, f32) {
    if distance.abs() < INERTIA_WIDTH {
        (distance * distance / (2.0 * INERTIA_WIDTH), distance / INERTIA_WIDTH)
    } else if distance.is_nan() {
        (0.0, 0.0)
    } else {
        (distance.abs() - INERTIA_WIDTH / 2.0, distance.signum())
    }
}

/// Writes `values` as column `index` of a matrix with `batch` columns.
fn scatter(values: &[f32], matrix: &mut [f32], index: usize, batch: usize) {
    for (slot, value) in matrix.iter_mut().skip(index).step_by(batch).zip(values) {
        *slot = *value;
    }
}
