//! Adam (Kingma and Ba 2015) with decoupled weight decay, and the soft update of targets.

use super::net::vectorised;

/// Decay of the first moment.
const BETA1: f32 = 0.9;
/// Decay of the second moment.
const BETA2: f32 = 0.999;
/// Added to the root of the second moment.
const EPSILON: f64 = 1e-8;

/// The optimiser of one network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Adam {
    lr: f64,
    /// Decoupled decay, as a share of the learning rate.
    decay: f64,
    /// Steps made.
    pub(super) steps: u64,
    /// First moments.
    pub(super) first: Vec<f32>,
    /// Second moments.
    pub(super) second: Vec<f32>,
}

impl Adam {
    /// For `count` parameters.
    pub(super) fn new(count: usize, lr: f64, decay: f64) -> Self {
        Adam { lr, decay, steps: 0, first: vec![0.0; count], second: vec![0.0; count] }
    }

    /// One descent step.
    pub(super) fn step(&mut self, params: &mut [f32], grads: &[f32]) {
        self.steps += 1;
        // The bias corrections, in f64 and folded into two factors.
        let steps = self.steps as f64;
        let root = (1.0 - f64::from(BETA2).powf(steps)).sqrt();
        let rate = narrow(self.lr * root / (1.0 - f64::from(BETA1).powf(steps)));
        let epsilon = narrow(EPSILON * root);
        let keep = narrow(1.0 - self.lr * self.decay);
        let moments = self.first.iter_mut().zip(&mut self.second);
        vectorised(
            #[inline(always)]
            || {
                for ((param, grad), (first, second)) in params.iter_mut().zip(grads).zip(moments) {
                    *first = BETA1 * *first + (1.0 - BETA1) * grad;
                    *second = BETA2 * *second + (1.0 - BETA2) * grad * grad;
                    *param = *param * keep - rate * *first / (second.sqrt() + epsilon);
                }
            },
        );
    }
}

/// Moves `target` by the share `tau` towards `source`.
pub(super) fn polyak(target: &mut [f32], source: &[f32], tau: f32) {
    vectorised(
        #[inline(always)]
        || {
            for (target, source) in target.iter_mut().zip(source) {
                *target += tau * (source - *target);
            }
        },
    );
}

/// The f32 nearest to a hyperparameter.
#[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is what is wanted")]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook form in f64.
    #[test]
    fn steps_are_those_of_the_paper() {
        let (lr, decay) = (1e-2, 0.1);
        let mut adam = Adam::new(1, lr, decay);
        let mut params = [1.5f32];
        let (mut exact, mut first, mut second) = (1.5f64, 0.0f64, 0.0f64);
        for step in 1..=50 {
            let grad = (f64::from(step) * 0.7).sin() + 0.3;
            adam.step(&mut params, &[narrow(grad)]);
            first = 0.9 * first + 0.1 * grad;
            second = 0.999 * second + 0.001 * grad * grad;
            let corrected = second / (1.0 - 0.999f64.powi(step));
            exact -= lr * decay * exact;
            exact -= lr * first / (1.0 - 0.9f64.powi(step)) / (corrected.sqrt() + 1e-8);
            assert!((f64::from(params[0]) - exact).abs() < 1e-5, "step {step}");
        }
    }

    #[test]
    fn targets_move_by_tau() {
        let mut target = [1.0, -2.0];
        polyak(&mut target, &[2.0, -4.0], 0.25);
        assert_eq!(target, [1.25, -2.5]);
    }
}
