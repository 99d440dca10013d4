//! Every hyperparameter, with its default and its limits.

use super::DdpgError;
use serde::{Deserialize, Serialize};

/// What one `gamma` spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum GammaUnit {
    /// One second, whatever the step is: the step's discount is `gamma ^ step_s`.
    #[default]
    Second,
    /// One step, as in the paper and in the seed program.
    Step,
}

/// Which noise is added to the policy's action while training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseKind {
    /// Independent at every step.
    #[default]
    Gaussian,
    /// Drifts from step to step (Ornstein-Uhlenbeck), as in the paper.
    OrnsteinUhlenbeck,
}

/// Distance from the action in force within which the charge of [`Hyper::inertia`] is quadratic.
pub(super) const INERTIA_WIDTH: f32 = 0.1;

/// Lengths of a step that a model file and a clock can hold.
const STEP_S: std::ops::RangeInclusive<f64> = 0.001..=3600.0;

/// Hyperparameters of a training run; stored in its checkpoints.
///
/// `Default` is the paper's setting with the seed program's values; [`Hyper::demo`] is for a few
/// hundred transitions from real brokers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyper {
    /// Adam's step size for the actor.
    pub actor_lr: f64,
    /// Adam's step size for the critics.
    pub critic_lr: f64,
    /// Transitions per update, drawn with replacement. 1 to 65536.
    pub batch: usize,
    /// Discount per [`Hyper::gamma_unit`]. 0 to 1, 1 excluded.
    pub gamma: f64,
    /// What `gamma` spans.
    pub gamma_unit: GammaUnit,
    /// Length of an environment step in seconds. 0.001 to 3600: the model file has milliseconds.
    pub step_s: f64,
    /// Share by which the targets move to the trained networks at each actor update. Above 0 to 1.
    pub tau: f64,
    /// Transitions kept; the oldest are overwritten.
    pub replay_capacity: usize,
    /// Transitions with uniformly random actions before the policy acts and updates begin.
    pub warm_up_steps: u64,
    /// Kind of exploration noise.
    pub noise: NoiseKind,
    /// Standard deviation of the noise after the warm-up; actions span -1 to 1.
    pub sigma_start: f64,
    /// Standard deviation of the noise in the end.
    pub sigma_end: f64,
    /// Transitions after the warm-up over which it goes from the one to the other, linearly.
    pub sigma_decay_steps: u64,
    /// How fast Ornstein-Uhlenbeck noise returns to 0, per step. Above 0 to 1.
    pub ou_theta: f64,
    /// Widths of the two hidden layers of the actor, and of the critics unless they have their own.
    /// 1 to 512.
    pub hidden: [usize; 2],
    /// Widths of the critics' hidden layers: they stay on the workstation, the actor does not. 1 to 512.
    pub critic_hidden: Option<[usize; 2]>,
    /// Updates that the training loop makes per environment step.
    pub updates_per_step: usize,
    /// Two critics, the smaller target counts (Fujimoto et al. 2018): against overestimation.
    pub clipped_double_q: bool,
    /// Rewards summed before the target network is asked. 1 is plain DDPG; at most 64.
    pub n_step: usize,
    /// Critic updates per update of the actor and the targets. 1 is plain DDPG.
    pub policy_delay: u64,
    /// Layer normalisation (no gain, no bias) before each ReLU of the critics: steadies many
    /// updates on few transitions.
    pub critic_layer_norm: bool,
    /// Decoupled weight decay of the critics, as a share of `critic_lr` per update.
    pub critic_weight_decay: f64,
    /// Magnitude of a pre-tanh value above which the actor is charged for it. 2 is an action of
    /// 0.96.
    pub preactivation_limit: f64,
    /// Charge for the squared excess over the limit: keeps the tanh from saturating, where its
    /// gradient dies. 0 turns it off.
    pub preactivation_penalty: f64,
    /// Charge for moving an action away from the one in force, per unit beyond 0.1: what
    /// does not matter stays as it is, so that nobody restarts a broker for it. Needs a state that
    /// ends with the action in force (schema `edge`); shorter states ignore it. 0 turns it off.
    pub inertia: f64,
    /// Pull of each action, per squared distance, towards the one of some candidates that the
    /// critics value most: the gradient alone only climbs the nearest hill. In units of the value;
    /// 0 turns it off.
    pub guide: f64,
    /// Candidates beside the policy's own action and the one in force, drawn from what was tried.
    /// 0 to 64.
    pub guide_candidates: usize,
    /// What another candidate must be worth beyond the action in force.
    pub guide_stay: f64,
    /// Standard deviation of noise on the actions of lessons; actions span -1 to 1. The critics
    /// learn what an action is worth with those around it, and the actor keeps away from the edge of
    /// what does well: the next machine's is elsewhere. 0 turns it off.
    pub lesson_noise: f64,
    /// Share of a batch that comes from lessons where there are transitions too. 0 to 1.
    pub lessons_share: f64,
    /// Half width of the uniform initial weights of the last layers. Larger ones make different
    /// seeds begin with different policies.
    pub final_init: f64,
    /// Normalise the state by its running mean and standard deviation.
    pub normalise: bool,
    /// Least standard deviation that a feature is divided by.
    pub normalise_std_min: f64,
}

impl Default for Hyper {
    fn default() -> Self {
        Hyper {
            actor_lr: 1e-4,
            critic_lr: 1e-4,
            batch: 128,
            gamma: 0.99,
            gamma_unit: GammaUnit::Second,
            step_s: 5.0,
            tau: 0.005,
            replay_capacity: 100_000,
            warm_up_steps: 1_000,
            noise: NoiseKind::Gaussian,
            sigma_start: 0.3,
            sigma_end: 0.05,
            sigma_decay_steps: 50_000,
            ou_theta: 0.15,
            hidden: [64, 64],
            critic_hidden: None,
            updates_per_step: 1,
            clipped_double_q: false,
            n_step: 1,
            policy_delay: 1,
            critic_layer_norm: false,
            critic_weight_decay: 0.0,
            preactivation_limit: 2.0,
            preactivation_penalty: 0.01,
            inertia: 0.0,
            guide: 0.0,
            guide_candidates: 12,
            guide_stay: 0.0,
            lesson_noise: 0.0,
            lessons_share: 0.5,
            final_init: 3e-3,
            normalise: true,
            normalise_std_min: 1e-2,
        }
    }
}

impl Hyper {
    /// The seed program's timing: steps of 1 s and `gamma` per step.
    #[must_use]
    pub fn seed() -> Self {
        Hyper { gamma_unit: GammaUnit::Step, step_s: 1.0, ..Self::default() }
    }

    /// For a few hundred transitions in all, each followed by many updates, where an action shows
    /// most of its effect within its own step.
    #[must_use]
    pub fn demo() -> Self {
        Hyper {
            actor_lr: 1e-3,
            critic_lr: 3e-3,
            batch: 64,
            gamma: 0.5,
            tau: 0.02,
            warm_up_steps: 40,
            sigma_start: 0.5,
            sigma_end: 0.2,
            sigma_decay_steps: 120,
            updates_per_step: 30,
            clipped_double_q: true,
            policy_delay: 2,
            critic_layer_norm: true,
            critic_weight_decay: 1e-2,
            preactivation_penalty: 0.05,
            normalise_std_min: 0.1,
            // With 0.04, 27 of 250 trainings left a window at the least that seemed to do; 12 with this.
            inertia: 0.01,
            ..Self::default()
        }
    }

    /// For lessons from many sites of the twin, and then hundreds of thousands of its steps.
    #[must_use]
    pub fn twin() -> Self {
        Hyper {
            actor_lr: 3e-4,
            critic_lr: 1e-3,
            batch: 256,
            gamma: 0.97,
            // Of what the lessons leave, the average is kept.
            tau: 0.002,
            replay_capacity: 400_000,
            // Two of 64 miss narrow settings more often: host/README.md.
            hidden: [128, 64],
            critic_hidden: Some([128, 128]),
            sigma_start: 0.1,
            clipped_double_q: true,
            policy_delay: 2,
            critic_layer_norm: true,
            critic_weight_decay: 1e-3,
            preactivation_penalty: 0.05,
            guide: 7.0,
            guide_stay: 0.07,
            lesson_noise: 0.12,
            ..Self::default()
        }
    }

    /// For a few hundred steps on real brokers after [`Hyper::twin`]: small steps, little noise, and
    /// half of each batch are the lessons of the twin.
    #[must_use]
    pub fn finish() -> Self {
        Hyper {
            actor_lr: 1e-4,
            critic_lr: 3e-4,
            warm_up_steps: 0,
            sigma_start: 0.05,
            updates_per_step: 20,
            ..Self::twin()
        }
    }

    /// Widths of the critics' hidden layers.
    #[must_use]
    pub fn critic_widths(&self) -> [usize; 2] {
        self.critic_hidden.unwrap_or(self.hidden)
    }

    /// What a reward of `rate` at every step is worth in the long run.
    #[must_use]
    pub fn value_of(&self, rate: f64) -> f64 {
        rate / (1.0 - self.gamma_step())
    }

    /// Discount of one environment step.
    #[must_use]
    pub fn gamma_step(&self) -> f64 {
        match self.gamma_unit {
            GammaUnit::Second => self.gamma.powf(self.step_s),
            GammaUnit::Step => self.gamma,
        }
    }

    /// Standard deviation of the exploration noise after `observed` transitions.
    #[must_use]
    pub fn sigma(&self, observed: u64) -> f64 {
        let after = observed.saturating_sub(self.warm_up_steps) as f64;
        let share = (after / (self.sigma_decay_steps.max(1) as f64)).min(1.0);
        self.sigma_start + (self.sigma_end - self.sigma_start) * share
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`DdpgError::Hyper`] with all faults, one a line.
    pub fn validate(&self) -> Result<(), DdpgError> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let share = |value: f64| value > 0.0 && value <= 1.0;
        let is_width = |width: &usize| (1..=512).contains(width);
        let checks = [
            ("actor_lr", positive(self.actor_lr), "above 0"),
            ("critic_lr", positive(self.critic_lr), "above 0"),
            ("batch", (1..=65_536).contains(&self.batch), "1 to 65536"),
            ("gamma", (0.0..1.0).contains(&self.gamma), "0 to 1, without 1"),
            ("step_s", STEP_S.contains(&self.step_s), "0.001 to 3600"),
            ("tau", share(self.tau), "above 0, at most 1"),
            ("replay_capacity", self.replay_capacity >= self.batch, "at least batch"),
            ("sigma_start", not_negative(self.sigma_start), "0 or more"),
            ("sigma_end", not_negative(self.sigma_end), "0 or more"),
            ("ou_theta", share(self.ou_theta), "above 0, at most 1"),
            ("hidden", self.hidden.iter().all(is_width), "1 to 512"),
            ("critic_hidden", self.critic_widths().iter().all(is_width), "1 to 512"),
            ("updates_per_step", self.updates_per_step >= 1, "at least 1"),
            ("n_step", (1..=64).contains(&self.n_step), "1 to 64"),
            ("policy_delay", self.policy_delay >= 1, "at least 1"),
            ("critic_weight_decay", not_negative(self.critic_weight_decay), "0 or more"),
            ("preactivation_limit", not_negative(self.preactivation_limit), "0 or more"),
            ("preactivation_penalty", not_negative(self.preactivation_penalty), "0 or more"),
            ("inertia", not_negative(self.inertia), "0 or more"),
            ("guide", not_negative(self.guide), "0 or more"),
            ("guide_candidates", self.guide_candidates <= 64, "0 to 64"),
            ("guide_stay", not_negative(self.guide_stay), "0 or more"),
            ("lesson_noise", (0.0..=1.0).contains(&self.lesson_noise), "0 to 1"),
            ("lessons_share", (0.0..=1.0).contains(&self.lessons_share), "0 to 1"),
            ("final_init", positive(self.final_init), "above 0"),
            ("normalise_std_min", positive(self.normalise_std_min), "above 0"),
        ];
        let wrong = checks.iter().filter(|(_, right, _)| !right);
        let faults: Vec<String> =
            wrong.map(|(name, _, expected)| format!("{name}: must be {expected}")).collect();
        if faults.is_empty() {
            return Ok(());
        }
        Err(DdpgError::Hyper { faults: faults.join("\n") })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn gamma_spans_seconds_or_steps() {
        let per_second = Hyper { gamma: 0.99, step_s: 5.0, ..Hyper::default() };
        assert!((per_second.gamma_step() - 0.99f64.powi(5)).abs() < 1e-12);
        assert_eq!(Hyper { step_s: 5.0, ..Hyper::seed() }.gamma_step(), 0.99);
    }

    #[test]
    fn sigma_falls_linearly_after_the_warm_up() {
        let hyper = Hyper {
            warm_up_steps: 10,
            sigma_start: 0.5,
            sigma_end: 0.1,
            sigma_decay_steps: 100,
            ..Hyper::default()
        };
        for (observed, sigma) in [(0, 0.5), (10, 0.5), (60, 0.3), (110, 0.1), (u64::MAX, 0.1)] {
            assert!((hyper.sigma(observed) - sigma).abs() < 1e-12, "{observed}");
        }
    }

    #[test]
    fn presets_are_valid_and_survive_json() {
        for hyper in
            [Hyper::default(), Hyper::seed(), Hyper::demo(), Hyper::twin(), Hyper::finish()]
        {
            hyper.validate().unwrap();
            let text = serde_json::to_string(&hyper).unwrap();
            assert_eq!(serde_json::from_str::<Hyper>(&text).unwrap(), hyper);
        }
        assert!(serde_json::from_str::<Hyper>(r#"{"actor_lrr": 1}"#).is_err());
    }

    #[test]
    fn a_step_is_a_millisecond_to_an_hour() {
        let valid = |step_s| Hyper { step_s, ..Hyper::default() }.validate();
        for step_s in [1e20, 3600.1, 0.0001, 0.0, -1.0, f64::NAN, f64::INFINITY] {
            let message = valid(step_s).unwrap_err().to_string();
            assert!(message.contains("step_s: must be 0.001 to 3600"), "{step_s}: {message}");
        }
        valid(0.001).and(valid(3600.0)).unwrap();
    }

    #[test]
    fn every_fault_is_named() {
        let wrong = Hyper { batch: 0, gamma: 1.0, tau: f64::NAN, n_step: 0, ..Hyper::default() };
        let message = wrong.validate().unwrap_err().to_string();
        for name in ["batch", "gamma", "tau", "n_step"] {
            assert!(message.contains(name), "{message}");
        }
        assert!(!message.contains("sigma"), "{message}");
    }
}
