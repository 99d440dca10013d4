//! The honest rivals of a policy: the best fixed settings that a search finds, for one load or for
//! several, in the twin or on a real broker; and a rule of thumb.
//!
//! CMA-ES comes from the library `cmaes`; random search is the floor under it. Both are
//! deterministic for a seed, so that a search that was interrupted goes on by being begun anew:
//! what was evaluated before stands in its file and costs nothing.

mod file;
pub mod rule;

pub use file::{Evaluation, Evaluations, SearchError, World};

use crate::scenario::Scenario;
use brokertuner_core::{
    Action, Envelope, KNOB_COUNT, Knob, KnobSet, Settings, quantise_action, render,
};
use cmaes::{CMAESOptions, DVector, Mode};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// First step of the search, in units of the actor's range of -1 to 1.
const STEP: f64 = 0.6;
/// What leaving that range costs, per squared unit.
const OUTSIDE_PRICE: f64 = 0.1;

/// How settings are proposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Covariance matrix adaptation (Hansen and Ostermeier 2001).
    #[default]
    Cma,
    /// Uniform on the actor's grid.
    Random,
}

/// What a set of settings came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The settings.
    pub settings: Settings,
    /// Mean score over the loads, 0..=1.
    pub score: f64,
    /// The score less small prices for CPU and memory: what is maximised, so that among equals the
    /// lightest wins.
    pub worth: f64,
}

/// Whoever can say what settings are worth under a load.
pub trait Evaluator: Sync {
    /// Score and worth.
    ///
    /// # Errors
    /// Whatever keeps it from being found out; ends the search.
    fn evaluate(&self, scenario: &Arc<Scenario>, settings: &Settings)
    -> anyhow::Result<(f64, f64)>;
}

/// A search for one set of settings.
#[derive(Clone, Debug)]
pub struct Search {
    /// The loads; the mean over them counts.
    pub scenarios: Vec<Arc<Scenario>>,
    /// The bounds.
    pub envelope: Envelope,
    /// Options that are moved.
    pub tuned: KnobSet,
    /// How settings are proposed.
    pub method: Method,
    /// Proposals, at the least one.
    pub count: usize,
    /// Seed of all random choices.
    pub seed: u64,
}

impl Search {
    /// Evaluates as many proposals as there may be, and answers with all of them, the best first.
    /// `starts` are tried before anything else.
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`].
    pub fn run(
        &self,
        starts: &[Settings],
        evaluator: &dyn Evaluator,
    ) -> anyhow::Result<Vec<Candidate>> {
        let mut found = starts
            .par_iter()
            .map(|settings| self.evaluate(evaluator, settings))
            .collect::<anyhow::Result<Vec<_>>>()?;
        found.extend(match self.method {
            Method::Random => self.random(evaluator)?,
            Method::Cma => self.adapt(evaluator)?,
        });
        Ok(ranked(found))
    }

    /// As [`Search::run`], never two at once: for a broker that wants the machine for itself.
    ///
    /// # Errors
    /// As [`Search::run`]; or where no pool of one thread can be made.
    pub fn run_one_by_one(
        &self,
        starts: &[Settings],
        evaluator: &dyn Evaluator,
    ) -> anyhow::Result<Vec<Candidate>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        pool.install(|| self.run(starts, evaluator))
    }

    /// Evaluates these settings one by one, and answers with them, the best first.
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`].
    pub fn measure(
        &self,
        settings: &[Settings],
        evaluator: &dyn Evaluator,
    ) -> anyhow::Result<Vec<Candidate>> {
        let found = settings.iter().map(|settings| self.evaluate(evaluator, settings));
        Ok(ranked(found.collect::<anyhow::Result<_>>()?))
    }

    fn evaluate(
        &self,
        evaluator: &dyn Evaluator,
        settings: &Settings,
    ) -> anyhow::Result<Candidate> {
        let (mut score, mut worth) = (0.0, 0.0);
        for scenario in &self.scenarios {
            let (one_score, one_worth) = evaluator.evaluate(scenario, settings)?;
            score += one_score;
            worth += one_worth;
        }
        let count = self.scenarios.len().max(1) as f64;
        Ok(Candidate { settings: *settings, score: score / count, worth: worth / count })
    }

    /// Settings at a point of the search space: one number for each option that is moved.
    fn decode(&self, point: &[f64]) -> Settings {
        let mut output = [0.0; KNOB_COUNT];
        #[allow(clippy::cast_possible_truncation, reason = "numbers from -1 to 1")]
        for (knob, value) in self.moved().zip(point) {
            output[knob as usize] = value.clamp(-1.0, 1.0) as f32;
        }
        let action: Action = quantise_action(&output);
        Settings::decode(&action, &self.envelope)
    }

    fn moved(&self) -> impl Iterator<Item = Knob> + '_ {
        Knob::ALL.into_iter().filter(|knob| self.tuned.contains(*knob))
    }

    fn random(&self, evaluator: &dyn Evaluator) -> anyhow::Result<Vec<Candidate>> {
        let mut rng = Pcg64Mcg::seed_from_u64(self.seed);
        let dimensions = self.moved().count();
        let points: Vec<Vec<f64>> = (0..self.count)
            .map(|_| (0..dimensions).map(|_| rng.random_range(-1.0..=1.0)).collect())
            .collect();
        points.par_iter().map(|point| self.evaluate(evaluator, &self.decode(point))).collect()
    }

    fn adapt(&self, evaluator: &dyn Evaluator) -> anyhow::Result<Vec<Candidate>> {
        let found = std::sync::Mutex::new((Vec::new(), None));
        let has_failed = AtomicBool::new(false);
        let worth = |point: &DVector<f64>| {
            if has_failed.load(Ordering::Relaxed) {
                return f64::NEG_INFINITY;
            }
            let outside: f64 = point.iter().map(|x| (x.abs() - 1.0).max(0.0).powi(2)).sum();
            let result = self.evaluate(evaluator, &self.decode(point.as_slice()));
            let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match result {
                Ok(candidate) => {
                    let worth = candidate.worth - OUTSIDE_PRICE * outside;
                    found.0.push(candidate);
                    worth
                }
                Err(error) => {
                    has_failed.store(true, Ordering::Relaxed);
                    found.1.get_or_insert(error);
                    f64::NEG_INFINITY
                }
            }
        };
        let dimensions = self.moved().count();
        let mut seed = self.seed;
        // A run that has converged leaves room for another from elsewhere.
        while found.lock().map_or(0, |found| found.0.len()) < self.count
            && !has_failed.load(Ordering::Relaxed)
        {
            let left = self.count - found.lock().map_or(0, |found| found.0.len());
            let start = DVector::from_fn(dimensions, |_, _| 0.0);
            let options = CMAESOptions::new(start, STEP)
                .mode(Mode::Maximize)
                .seed(seed)
                .max_function_evals(left);
            let mut run = options
                .build(&worth)
                .map_err(|error| anyhow::anyhow!("the search cannot be set up: {error:?}"))?;
            let mut is_done = false;
            while !is_done && !has_failed.load(Ordering::Relaxed) {
                is_done = run.next_parallel().is_some();
            }
            seed = seed.wrapping_add(1);
        }
        let (found, error) = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        error.map_or(Ok(found), Err)
    }
}

/// What tells worlds apart in a file of evaluations.
#[must_use]
pub fn digest(world: &impl std::fmt::Debug) -> String {
    let digest = Sha256::digest(format!("{world:?}").as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The best first, each settings once; among equals the order does not depend on who came first.
fn ranked(mut found: Vec<Candidate>) -> Vec<Candidate> {
    let text = |candidate: &Candidate| render::render(&candidate.settings).as_str().to_owned();
    found.sort_by(|a, b| b.worth.total_cmp(&a.worth).then_with(|| text(a).cmp(&text(b))));
    found.dedup_by(|a, b| a.settings == b.settings);
    found
}
