//! The costs with which the twin spends what the broker spent.

use super::loads::{LOADS, Load};
use crate::twin::{Calibration, Costs, Play};
use cmaes::{CMAESOptions, DVector};
use rayon::prelude::*;
use std::sync::Arc;

/// First step, in octaves of a cost.
const STEP: f64 = 1.0;
/// Evaluations of the search.
const EVALUATIONS: usize = 700;
const SEED: u64 = 1;
/// What a cost is held by that no load shows: per squared octave away from where it began.
const PRIOR: f64 = 0.001;

/// CPU time per delivery under `load` in a twin with `calibration`.
pub(super) fn twin_us(load: &Load, calibration: &Calibration) -> anyhow::Result<f64> {
    let play = Play {
        scenario: Arc::new(load.scenario()?),
        calibration: *calibration,
        capacity_msgs_per_s: None,
        profile: super::profile()?,
        seed: 0,
    };
    let played = play.fixed(&super::parsed(load.conf)?);
    let delivered = (played.tally.in_time + played.tally.lost_late) as f64;
    let scored_s = play.scenario.duration().as_secs_f64();
    Ok(played.cpu_share * 1e6 * scored_s / delivered.max(1.0))
}

/// `before` with the costs that fit `measured_us`, one for each of [`LOADS`].
pub(super) fn fit(before: &Calibration, measured_us: &[f64]) -> anyhow::Result<Calibration> {
    let with = |octaves: &DVector<f64>| Calibration {
        costs: scaled(&before.costs, octaves.as_slice()),
        ..*before
    };
    let error = |octaves: &DVector<f64>| -> f64 {
        let calibration = with(octaves);
        let misfits = LOADS.par_iter().zip(measured_us).map(|(load, measured_us)| {
            let twin_us = twin_us(load, &calibration).unwrap_or(f64::INFINITY);
            (twin_us / measured_us).log2().powi(2)
        });
        let misfit: f64 = misfits.sum();
        misfit / LOADS.len() as f64 + PRIOR * octaves.norm_squared()
    };
    let start = DVector::zeros(COSTS);
    let mut search = CMAESOptions::new(start, STEP)
        .seed(SEED)
        .max_function_evals(EVALUATIONS)
        .build(&error)
        .map_err(|error| anyhow::anyhow!("the costs cannot be searched for: {error:?}"))?;
    while !crate::broker::interrupted() && search.next().is_none() {}
    anyhow::ensure!(!crate::broker::interrupted(), "interrupted");
    let best = search.overall_best_individual().map(|best| best.point.clone());
    Ok(best.map_or(*before, |octaves| with(&octaves)))
}

const COSTS: usize = 9;

/// Every cost times two to the power of its octaves.
fn scaled(costs: &Costs, octaves: &[f64]) -> Costs {
    let mut costs = *costs;
    let all: [&mut f64; COSTS] = [
        &mut costs.wake_us,
        &mut costs.round_us,
        &mut costs.publish_us,
        &mut costs.publish_us_per_kib,
        &mut costs.route_us,
        &mut costs.write_us,
        &mut costs.write_us_per_kib,
        &mut costs.segment_us,
        &mut costs.acknowledge_us,
    ];
    for (cost, octaves) in all.into_iter().zip(octaves) {
        *cost *= octaves.exp2();
    }
    costs
}
