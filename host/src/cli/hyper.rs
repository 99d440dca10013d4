//! Every hyperparameter as an option over a preset.

use super::options::list;
use crate::ddpg::{GammaUnit, Hyper, NoiseKind};
use clap::ValueEnum;

/// Starting point of the hyperparameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// Lillicrap et al. 2015 with the seed's values; gamma per second, steps of 5 s.
    #[default]
    Default,
    /// The seed's timing: steps of 1 s ($SYS is often stale then) and gamma per step.
    Seed,
    /// For a few hundred steps on real brokers.
    Demo,
    /// For lessons and many steps in the twin.
    Twin,
    /// For a few hundred steps on real brokers after the twin.
    Finish,
}

impl Preset {
    /// Its values.
    #[must_use]
    pub(crate) fn hyper(self) -> Hyper {
        match self {
            Preset::Default => Hyper::default(),
            Preset::Seed => Hyper::seed(),
            Preset::Demo => Hyper::demo(),
            Preset::Twin => Hyper::twin(),
            Preset::Finish => Hyper::finish(),
        }
    }
}

macro_rules! hyper_args {
    ($( $(#[doc = $doc:literal])* $field:ident: $type:ty, )*) => {
        /// Hyperparameters that replace the preset's.
        #[derive(Clone, Debug, Default, clap::Args)]
        #[command(next_help_heading = "Hyperparameters (default: the preset's)")]
        pub(crate) struct HyperArgs {
            $( $(#[doc = $doc])* #[arg(long, value_name = "VALUE")] pub(crate) $field: Option<$type>, )*
            /// Widths of the two hidden layers of the actor, as in 64,64.
            #[arg(long, value_name = "N,N", value_parser = list::<usize, 2>)]
            pub(crate) hidden: Option<[usize; 2]>,
            /// Widths of the two hidden layers of the critics, where they are to have their own.
            #[arg(long, value_name = "N,N", value_parser = list::<usize, 2>)]
            pub(crate) critic_hidden: Option<[usize; 2]>,
        }

        impl HyperArgs {
            /// The preset with what was given replaced.
            #[must_use]
            pub(crate) fn over(&self, preset: Hyper) -> Hyper {
                let mut hyper = preset;
                $( if let Some(value) = self.$field { hyper.$field = value; } )*
                if let Some(hidden) = self.hidden {
                    hyper.hidden = hidden;
                }
                hyper.critic_hidden = self.critic_hidden.or(hyper.critic_hidden);
                hyper
            }
        }
    };
}

hyper_args! {
    /// Adam's step size for the actor.
    actor_lr: f64,
    /// Adam's step size for the critics.
    critic_lr: f64,
    /// Transitions per update.
    batch: usize,
    /// Discount per gamma-unit.
    gamma: f64,
    /// What gamma spans.
    gamma_unit: GammaUnit,
    /// Decision interval in seconds.
    step_s: f64,
    /// Share by which the targets move at each update.
    tau: f64,
    /// Transitions kept.
    replay_capacity: usize,
    /// Transitions with random actions before the policy acts.
    warm_up_steps: u64,
    /// Kind of exploration noise.
    noise: NoiseKind,
    /// Standard deviation of the noise after the warm-up.
    sigma_start: f64,
    /// Standard deviation of the noise in the end.
    sigma_end: f64,
    /// Transitions over which it goes from the one to the other.
    sigma_decay_steps: u64,
    /// How fast Ornstein-Uhlenbeck noise returns to 0.
    ou_theta: f64,
    /// Updates per environment step.
    updates_per_step: usize,
    /// Two critics, the smaller target counts.
    clipped_double_q: bool,
    /// Rewards summed before the target network is asked.
    n_step: usize,
    /// Critic updates per update of actor and targets.
    policy_delay: u64,
    /// Layer normalisation in the critics.
    critic_layer_norm: bool,
    /// Decoupled weight decay of the critics.
    critic_weight_decay: f64,
    /// Magnitude of a pre-tanh value above which the actor is charged.
    preactivation_limit: f64,
    /// Charge for the squared excess.
    preactivation_penalty: f64,
    /// Charge for moving an action away from the one in force.
    inertia: f64,
    /// Pull of the actor towards the best of some candidate actions.
    guide: f64,
    /// Candidates beside the policy's action and the one in force.
    guide_candidates: usize,
    /// What another candidate must be worth beyond the action in force.
    guide_stay: f64,
    /// Standard deviation of noise on the actions of lessons.
    lesson_noise: f64,
    /// Share of a batch that comes from lessons.
    lessons_share: f64,
    /// Half width of the initial weights of the last layers.
    final_init: f64,
    /// Normalise the state by its running mean and standard deviation.
    normalise: bool,
    /// Least standard deviation that a feature is divided by.
    normalise_std_min: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hyperparameter without an option would be found here: every field must move.
    #[test]
    fn every_hyperparameter_has_an_option() {
        let fields = serde_json::to_value(Hyper::default()).unwrap_or_default();
        let args = HyperArgs::default();
        let debug = format!("{args:?}");
        for name in fields.as_object().into_iter().flat_map(|map| map.keys()) {
            assert!(debug.contains(&format!("{name}: None")), "no option for {name}");
        }
    }

    #[test]
    fn what_is_given_replaces_the_preset() {
        let args = HyperArgs { gamma: Some(0.5), hidden: Some([32, 16]), ..HyperArgs::default() };
        let hyper = args.over(Preset::Demo.hyper());
        assert_eq!((hyper.gamma.to_bits(), hyper.hidden), (0.5_f64.to_bits(), [32, 16]));
        assert_eq!(hyper.batch, Hyper::demo().batch);
    }
}
