//! Running mean, deviation and range of the raw features.

use super::adam::narrow;
use super::net::vectorised;
use brokertuner_core::actor::INPUT_LIMIT;
use serde::{Deserialize, Serialize};

/// A feature that varies less than this is the same in all of training: the actor ignores it.
const CONSTANT_STD: f64 = 1e-6;

/// Statistics per feature (Welford); missing values do not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Normaliser {
    /// Off: mean 0, deviation 1.
    active: bool,
    std_min: f64,
    features: Vec<Feature>,
}

/// What is done to one raw feature before it enters the actor, as a model file has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputScale {
    /// Subtracted first.
    pub mean: f32,
    /// Multiplied then; 0 where the feature is ignored.
    pub inv_std: f32,
    /// Smallest and largest value seen.
    pub range: (f32, f32),
}

/// One feature's statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Feature {
    count: u64,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
    min: f32,
    max: f32,
}

impl Normaliser {
    pub(super) fn new(dim: usize, active: bool, std_min: f64) -> Self {
        Normaliser { active, std_min, features: vec![Feature::default(); dim] }
    }

    /// Statistics with which [`Normaliser::scale`] and [`Normaliser::range`] give these numbers.
    pub(super) fn of_scales(scales: &[InputScale]) -> Self {
        let feature = |scale: &InputScale| {
            let (mean, inv_std) = (f64::from(scale.mean), f64::from(scale.inv_std));
            let squares = if inv_std > 0.0 { inv_std.powi(2).recip() } else { 0.0 };
            Feature { count: 1, mean, squares, min: scale.range.0, max: scale.range.1 }
        };
        let features = scales.iter().map(feature).collect();
        Normaliser { active: true, std_min: CONSTANT_STD, features }
    }

    /// Features.
    pub(super) fn dim(&self) -> usize {
        self.features.len()
    }

    /// Takes in one state.
    pub(super) fn observe(&mut self, state: &[f32]) {
        for (feature, &value) in self.features.iter_mut().zip(state) {
            if !value.is_finite() {
                continue;
            }
            if feature.count == 0 {
                (feature.min, feature.max) = (value, value);
            }
            feature.min = feature.min.min(value);
            feature.max = feature.max.max(value);
            feature.count += 1;
            let value = f64::from(value);
            let distance = value - feature.mean;
            feature.mean += distance / feature.count as f64;
            feature.squares += distance * (value - feature.mean);
        }
    }

    /// Mean and reciprocal deviation of a feature, as the model file has them; 0 as the latter
    /// where the feature never varied.
    pub(super) fn scale(&self, index: usize) -> (f32, f32) {
        let feature = &self.features[index];
        if !self.active {
            return (0.0, 1.0);
        }
        let deviation = (feature.squares / feature.count.max(1) as f64).sqrt();
        let ignored = deviation < CONSTANT_STD;
        let inv_std = if ignored { 0.0 } else { deviation.max(self.std_min).recip() };
        (narrow(feature.mean), narrow(inv_std))
    }

    /// Smallest and largest value of a feature.
    pub(super) fn range(&self, index: usize) -> (f32, f32) {
        (self.features[index].min, self.features[index].max)
    }

    /// Normalises a batch of raw states in place, `features x batch`: clamped as in the actor, and
    /// 0 where a value is missing.
    pub(super) fn apply(&self, states: &mut [f32], batch: usize) {
        for (index, row) in states.chunks_exact_mut(batch).enumerate() {
            let (mean, inv_std) = self.scale(index);
            vectorised(
                #[inline(always)]
                || {
                    for value in row {
                        let scaled = ((*value - mean) * inv_std).clamp(-INPUT_LIMIT, INPUT_LIMIT);
                        *value = if scaled.is_nan() { 0.0 } else { scaled };
                    }
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_series() {
        let mut normaliser = Normaliser::new(3, true, 1e-2);
        for value in [1.0, 2.0, f32::NAN, 4.0, 5.0, f32::INFINITY] {
            normaliser.observe(&[value, 7.0, f32::NAN]);
        }
        let (mean, inv_std) = normaliser.scale(0);
        assert!((mean - 3.0).abs() < 1e-6 && (inv_std - 2.5f32.sqrt().recip()).abs() < 1e-6);
        assert_eq!(normaliser.range(0), (1.0, 5.0));
        assert_eq!(normaliser.scale(1), (7.0, 0.0), "a constant is ignored");
        assert_eq!(normaliser.scale(2), (0.0, 0.0), "so is one that is always missing");
        let mut states = [3.0, 1e9, f32::NAN, 9.0, 9.0, 9.0, 9.0, f32::INFINITY, 9.0];
        normaliser.apply(&mut states, 3);
        assert_eq!(states, [0.0, INPUT_LIMIT, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn small_deviations_are_not_blown_up() {
        let mut normaliser = Normaliser::new(1, true, 0.5);
        normaliser.observe(&[0.1]);
        normaliser.observe(&[0.2]);
        assert_eq!(normaliser.scale(0).1, 2.0);
        let off = Normaliser::new(1, false, 0.5);
        assert_eq!(off.scale(0), (0.0, 1.0));
    }
}
