//! What a step is worth. A new reward is one function of [`StepView`] and a row in [`RewardKind`].

use brokertuner_core::features::Seed5Norms;
use brokertuner_core::sample::Metrics;
use serde::{Deserialize, Serialize};

/// Everything a reward may look at after one step.
#[derive(Clone, Copy, Debug)]
pub struct StepView<'a> {
    /// Score (0..1) of the messages whose deadline expired in the step; `None` where none did.
    pub score: Option<f64>,
    /// What the agent sampled at the end of the step.
    pub metrics: &'a Metrics,
    /// Memory that the broker may take.
    pub rss_limit_bytes: f64,
    /// Options that changed in the step, as a share of all.
    pub changed_share: f64,
    /// Whether the broker refused the settings or did not come back.
    pub is_failed: bool,
}

/// Prices of the `deadline` reward: small against the score, which lies in 0..1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadlinePrices {
    /// For a whole core.
    pub cpu: f64,
    /// For all of the memory limit.
    pub memory: f64,
    /// For changing every option.
    pub change: f64,
}

impl Default for DeadlinePrices {
    fn default() -> Self {
        DeadlinePrices { cpu: 0.02, memory: 0.02, change: 0.01 }
    }
}

/// Weights of the `seed` reward, on the normalised terms of the `seed5` state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SeedWeights {
    /// Of connected clients.
    pub alpha: f64,
    /// Of the rate of received messages.
    pub beta: f64,
    /// Of CPU, subtracted.
    pub gamma: f64,
    /// Of memory, subtracted.
    pub delta: f64,
}

impl Default for SeedWeights {
    fn default() -> Self {
        SeedWeights { alpha: 1.0, beta: 1.0, gamma: 1.0, delta: 1.0 }
    }
}

/// Largest magnitude of a price or weight: rewards are single precision in the nets, and anything
/// near this drowns the score.
pub const WEIGHT_MAX: f64 = 1e6;

/// A price or weight that would spoil every reward.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}; give a number from {min} to {WEIGHT_MAX}")]
pub struct WeightError {
    /// Which one.
    pub name: &'static str,
    /// What it is.
    pub value: f64,
    /// The least that it may be.
    pub min: f64,
}

/// Which reward, with its weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RewardKind {
    /// The score of the interval, less small prices.
    Deadline(DeadlinePrices),
    /// alpha clients + beta rate - gamma cpu - delta memory.
    Seed(SeedWeights),
}

impl RewardKind {
    /// The reward of a step; a failed step gets the worst, [`RewardKind::worst`]. `None` where the
    /// step says nothing about the settings: nothing must be learnt of it.
    #[must_use]
    pub fn of(&self, view: &StepView<'_>) -> Option<f64> {
        if view.is_failed {
            return Some(self.worst());
        }
        match self {
            RewardKind::Deadline(prices) => deadline(view, prices),
            RewardKind::Seed(weights) => Some(seed(view, weights)),
        }
    }

    /// Checks every price or weight. Prices are not negative: the broker would be paid for what
    /// it takes.
    ///
    /// # Errors
    /// [`WeightError`] for the first that is out of range.
    pub fn validate(&self) -> Result<(), WeightError> {
        let (named, min) = match self {
            RewardKind::Deadline(DeadlinePrices { cpu, memory, change }) => {
                (vec![("cpu", *cpu), ("memory", *memory), ("change", *change)], 0.0)
            }
            RewardKind::Seed(SeedWeights { alpha, beta, gamma, delta }) => (
                vec![("alpha", *alpha), ("beta", *beta), ("gamma", *gamma), ("delta", *delta)],
                -WEIGHT_MAX,
            ),
        };
        let wrong = named.into_iter().find(|(_, value)| !(min..=WEIGHT_MAX).contains(value));
        wrong.map_or(Ok(()), |(name, value)| Err(WeightError { name, value, min }))
    }

    /// What a step gets in which the broker refused its settings: below all that can be earned.
    #[must_use]
    pub fn worst(&self) -> f64 {
        match self {
            RewardKind::Deadline(prices) => -(prices.cpu + prices.memory + prices.change),
            RewardKind::Seed(weights) => -(weights.gamma + weights.delta),
        }
    }
}

/// The score of the interval, less small prices for CPU, memory and change. Missing inputs cost
/// nothing. `None` where no deadline expired or the generator was too slow: that is no total loss.
fn deadline(view: &StepView<'_>, prices: &DeadlinePrices) -> Option<f64> {
    let score = view.score?;
    let cpu = f64::from(view.metrics.cpu_share.unwrap_or(0.0)).clamp(0.0, 1.0);
    let rss = f64::from(view.metrics.rss_bytes.unwrap_or(0.0));
    let memory = (rss / view.rss_limit_bytes.max(1.0)).clamp(0.0, 1.0);
    let price = prices.cpu * cpu + prices.memory * memory + prices.change * view.changed_share;
    Some(score - price)
}

/// The seed program's reward on the terms of the `seed5` state.
fn seed(view: &StepView<'_>, weights: &SeedWeights) -> f64 {
    let state = brokertuner_core::features::seed5(view.metrics, &Seed5Norms::default());
    let [clients, rate, cpu, memory] = [0, 1, 2, 3].map(|i| f64::from(state[i]));
    weights.alpha * clients + weights.beta * rate - weights.gamma * cpu - weights.delta * memory
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn metrics() -> Metrics {
        Metrics {
            clients_connected: Some(500.0),
            packets_received_per_s: Some(2000.0),
            cpu_share: Some(0.5),
            rss_bytes: Some(256.0 * 1_048_576.0),
            ..Metrics::default()
        }
    }

    fn view(metrics: &Metrics) -> StepView<'_> {
        StepView {
            score: Some(0.8),
            metrics,
            rss_limit_bytes: 512.0 * 1_048_576.0,
            changed_share: 1.0,
            is_failed: false,
        }
    }

    #[test]
    fn deadline_by_hand() {
        let kind = RewardKind::Deadline(DeadlinePrices::default());
        let got = kind.of(&view(&metrics())).unwrap();
        assert!((got - (0.8 - 0.01 - 0.01 - 0.01)).abs() < 1e-9, "{got}");
    }

    #[test]
    fn seed_by_hand() {
        let kind = RewardKind::Seed(SeedWeights { beta: 2.0, ..SeedWeights::default() });
        let got = kind.of(&view(&metrics())).unwrap();
        // 500/1000 + 2 * 2000/10000 - 50/400 - 256/1024
        assert!((got - (0.5 + 0.4 - 0.125 - 0.25)).abs() < 1e-6, "{got}");
    }

    #[test]
    fn nothing_earned_is_below_a_refusal() {
        let metrics = metrics();
        for kind in [
            RewardKind::Deadline(DeadlinePrices::default()),
            RewardKind::Seed(SeedWeights::default()),
        ] {
            let failed = kind.of(&StepView { is_failed: true, ..view(&metrics) }).unwrap();
            let poor = kind.of(&StepView { score: Some(0.0), ..view(&metrics) }).unwrap();
            assert!(failed <= poor, "{failed} {poor}");
        }
    }

    #[test]
    fn prices_and_weights_are_checked_by_name() {
        let deadline =
            |cpu| RewardKind::Deadline(DeadlinePrices { cpu, ..DeadlinePrices::default() });
        let seed = |delta| RewardKind::Seed(SeedWeights { delta, ..SeedWeights::default() });
        for kind in [deadline(0.0), deadline(2.0), seed(-3.0)] {
            kind.validate().unwrap();
        }
        for (kind, words) in [
            (deadline(f64::NAN), "cpu is NaN"),
            (deadline(f64::INFINITY), "cpu is inf"),
            (deadline(-0.1), "cpu is -0.1; give a number from 0 to 1000000"),
            (seed(1e300), "delta is 1000"),
        ] {
            let message = kind.validate().unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn no_score_is_no_deadline_reward() {
        let metrics = metrics();
        let unscored = StepView { score: None, ..view(&metrics) };
        let [deadline, seed] = [
            RewardKind::Deadline(DeadlinePrices::default()),
            RewardKind::Seed(SeedWeights::default()),
        ];
        assert_eq!(deadline.of(&unscored), None);
        assert_eq!(seed.of(&unscored), seed.of(&view(&metrics)), "it does not look at the score");
        let refused = StepView { is_failed: true, ..unscored };
        assert_eq!(deadline.of(&refused), Some(deadline.worst()));
    }
}
