//! Exploration noise, and normally distributed numbers.

use super::hyper::NoiseKind;
use rand::RngExt;
use rand_pcg::Pcg32;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The noise process of every lane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Noise {
    /// Ornstein-Uhlenbeck state per lane and action, in standard deviations.
    drift: BTreeMap<usize, Vec<f64>>,
}

impl Noise {
    /// The next noise of a lane, one number per action, with standard deviation `sigma`.
    pub(super) fn next(
        &mut self,
        kind: NoiseKind,
        theta: f64,
        sigma: f64,
        (lane, count): (usize, usize),
        rng: &mut Pcg32,
    ) -> Vec<f64> {
        let mut fresh: Vec<f64> = (0..count).map(|_| normal(rng)).collect();
        if kind == NoiseKind::OrnsteinUhlenbeck {
            let drift = self.drift.entry(lane).or_insert_with(|| fresh.clone());
            // Keeps the variance at 1: (1 - theta)^2 + (2 theta - theta^2).
            let inflow = (theta * (2.0 - theta)).sqrt();
            for (state, fresh) in drift.iter_mut().zip(&fresh) {
                *state = (1.0 - theta) * *state + inflow * fresh;
            }
            fresh.clone_from(drift);
        }
        fresh.iter_mut().for_each(|value| *value *= sigma);
        fresh
    }

    /// Begins anew in a lane, at the start of an episode.
    pub(super) fn reset(&mut self, lane: usize) {
        self.drift.remove(&lane);
    }
}

/// A standard normal number (Box and Muller).
pub(super) fn normal(rng: &mut Pcg32) -> f64 {
    // 1 - u is above 0, so the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// Mean, deviation and correlation of neighbours of 20,000 numbers with sigma 0.5.
    fn statistics(kind: NoiseKind) -> (f64, f64, f64) {
        let mut noise = Noise::default();
        let mut rng = Pcg32::seed_from_u64(7);
        let count = 20_000;
        let series: Vec<f64> =
            (0..count).map(|_| noise.next(kind, 0.15, 0.5, (2, 1), &mut rng)[0]).collect();
        let mean = series.iter().sum::<f64>() / f64::from(count);
        let variance = series.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(count);
        let products = series.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean));
        let correlation = products.sum::<f64>() / f64::from(count) / variance;
        (mean, variance.sqrt(), correlation)
    }

    #[test]
    fn gaussian_noise_is_independent() {
        let (mean, deviation, correlation) = statistics(NoiseKind::Gaussian);
        assert!(mean.abs() < 0.02 && (deviation - 0.5).abs() < 0.02, "{mean} {deviation}");
        assert!(correlation.abs() < 0.03, "{correlation}");
    }

    #[test]
    fn ornstein_uhlenbeck_noise_drifts_with_the_same_deviation() {
        let (mean, deviation, correlation) = statistics(NoiseKind::OrnsteinUhlenbeck);
        assert!(mean.abs() < 0.06 && (deviation - 0.5).abs() < 0.04, "{mean} {deviation}");
        assert!((correlation - 0.85).abs() < 0.02, "{correlation}");
    }
}
