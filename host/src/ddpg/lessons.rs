//! What fixed actions were worth on many sites, for the critics to learn before the first step.
//!
//! On one site every action that was tried is an answer to every state that was seen there,
//! whichever action it was seen under: n trials make n x n lessons. None of them is of one step:
//! the value is what the action is worth for good, and nothing follows.

use super::DdpgError;
use rand::RngExt;
use rand_pcg::Pcg32;
use std::ops::Range;

/// Share of lessons whose state is of a site's first trial: an agent enters there, and may not get far
/// beyond it.
const ENTRY_SHARE: f64 = 0.3;
/// Share whose state is of a site's best trial: where an agent shall be, and stay.
const BEST_SHARE: f64 = 0.3;

/// One action, tried on a site.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// States seen under it, at least one; raw features.
    pub states: Vec<Vec<f32>>,
    /// In -1 to 1.
    pub action: Vec<f32>,
    /// What the action is worth in the long run: see [`super::Hyper::value_of`].
    pub value: f32,
}

/// A state, an action and what that is worth there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Lesson<'a> {
    pub(super) state: &'a [f32],
    pub(super) action: &'a [f32],
    pub(super) value: f32,
}

/// Trials by site, in flat arrays.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Lessons {
    pub(super) state_dim: usize,
    pub(super) action_dim: usize,
    /// All states, trial by trial.
    pub(super) states: Vec<f32>,
    /// Per trial its value, then its action.
    pub(super) trials: Vec<f32>,
    /// Per trial the number of the state after its last.
    pub(super) state_ends: Vec<usize>,
    /// Per site the number of the trial after its last.
    pub(super) trial_ends: Vec<usize>,
}

impl Lessons {
    pub(super) fn new(state_dim: usize, action_dim: usize) -> Self {
        Lessons { state_dim, action_dim, ..Lessons::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trial_ends.is_empty()
    }

    /// Adds a site's trials; a site without any adds nothing.
    pub(super) fn add(&mut self, trials: &[Trial]) -> Result<(), DdpgError> {
        for trial in trials {
            self.check(trial)?;
        }
        for trial in trials {
            self.states.extend(trial.states.iter().flatten());
            self.state_ends.push(self.states.len() / self.state_dim);
            self.trials.push(trial.value);
            self.trials.extend(&trial.action);
        }
        if !trials.is_empty() {
            self.trial_ends.push(self.state_ends.len());
        }
        Ok(())
    }

    fn check(&self, trial: &Trial) -> Result<(), DdpgError> {
        DdpgError::check_length("actions", trial.action.len(), self.action_dim)?;
        DdpgError::check_length(
            "states of a trial",
            trial.states.len(),
            trial.states.len().max(1),
        )?;
        for state in &trial.states {
            DdpgError::check_length("features of a state", state.len(), self.state_dim)?;
        }
        if !trial.value.is_finite() {
            return Err(DdpgError::NotFinite { what: "the value of a trial" });
        }
        if !trial.action.iter().all(|action| action.is_finite()) {
            return Err(DdpgError::NotFinite { what: "an action" });
        }
        Ok(())
    }

    /// A random lesson: each site is as likely as any other, and so is each of its actions; states
    /// are drawn with regard to where an agent will be. There must be one.
    pub(super) fn draw(&self, rng: &mut Pcg32) -> Lesson<'_> {
        let site = rng.random_range(0..self.trial_ends.len());
        let trials = start_of(&self.trial_ends, site)..self.trial_ends[site];
        let dice = rng.random_range(0.0..1.0);
        let seen = if dice < ENTRY_SHARE {
            trials.start
        } else if dice < ENTRY_SHARE + BEST_SHARE {
            self.best_of(trials.clone())
        } else {
            rng.random_range(trials.clone())
        };
        let tried = rng.random_range(trials);
        let states = start_of(&self.state_ends, seen)..self.state_ends[seen];
        let (value, action) = self.trial(tried);
        Lesson { state: self.state(rng.random_range(states)), action, value }
    }

    /// A random action of those that were tried. There must be one.
    pub(super) fn draw_action(&self, rng: &mut Pcg32) -> &[f32] {
        self.trial(rng.random_range(0..self.state_ends.len())).1
    }

    /// States stored.
    pub(super) fn state_count(&self) -> usize {
        self.states.len() / self.state_dim.max(1)
    }

    /// The state of that number, below [`Lessons::state_count`].
    pub(super) fn state(&self, number: usize) -> &[f32] {
        &self.states[number * self.state_dim..(number + 1) * self.state_dim]
    }

    fn best_of(&self, trials: Range<usize>) -> usize {
        let first = trials.start;
        trials.max_by(|&a, &b| self.trial(a).0.total_cmp(&self.trial(b).0)).unwrap_or(first)
    }

    fn trial(&self, number: usize) -> (f32, &[f32]) {
        let stride = 1 + self.action_dim;
        let trial = &self.trials[number * stride..(number + 1) * stride];
        (trial[0], &trial[1..])
    }

    /// Whether the parts fit together, as after reading them from a file.
    pub(super) fn is_sound(&self) -> bool {
        let grows = |ends: &[usize], total: usize| {
            let starts = std::iter::once(&0).chain(ends);
            starts.zip(ends).all(|(start, end)| start < end) && ends.last().unwrap_or(&0) == &total
        };
        self.states.len() == self.state_count() * self.state_dim
            && self.trials.len() == self.state_ends.len() * (1 + self.action_dim)
            && grows(&self.state_ends, self.state_count())
            && grows(&self.trial_ends, self.state_ends.len())
    }
}

/// Where the part of that number begins, by where parts end.
fn start_of(ends: &[usize], number: usize) -> usize {
    number.checked_sub(1).map_or(0, |before| ends[before])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rand::SeedableRng;

    /// `state` and `action` say which site they are of.
    fn trial(site: f32, number: f32) -> Trial {
        Trial { states: vec![vec![site, number]; 2], action: vec![site], value: number }
    }

    #[test]
    fn lessons_pair_states_and_actions_of_one_site_only() {
        let mut lessons = Lessons::new(2, 1);
        lessons.add(&[trial(1.0, 10.0), trial(1.0, 11.0)]).unwrap();
        lessons.add(&[]).unwrap();
        lessons.add(&[trial(2.0, 20.0)]).unwrap();
        assert!(lessons.is_sound());
        let mut rng = Pcg32::seed_from_u64(1);
        let mut crossed = false;
        let mut of_second = 0;
        for _ in 0..1000 {
            let lesson = lessons.draw(&mut rng);
            assert_eq!(lesson.state[0], lesson.action[0]);
            crossed |= lesson.state[1] != lesson.value;
            of_second += usize::from(lesson.action[0] == 2.0);
        }
        assert!(crossed, "a state seen under one action teaches of the others");
        assert!((400..600).contains(&of_second), "{of_second} of 1000 from one of two sites");
    }

    #[test]
    fn where_an_agent_enters_and_where_it_shall_be_is_seen_more_often() {
        let mut lessons = Lessons::new(2, 1);
        let trials: Vec<Trial> =
            [1.0, 9.0, 2.0, 3.0, 4.0].into_iter().map(|value| trial(1.0, value)).collect();
        lessons.add(&trials).unwrap();
        let mut rng = Pcg32::seed_from_u64(1);
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 9")]
            let value = lessons.draw(&mut rng).state[1] as usize;
            seen[value] += 1;
        }
        for (value, share) in [(1, 0.38), (9, 0.38), (2, 0.08), (3, 0.08), (4, 0.08)] {
            let found = f64::from(seen[value]) / 10_000.0;
            assert!((found - share).abs() < 0.02, "{value}: {found}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mut lessons = Lessons::new(2, 1);
        let good = trial(1.0, 1.0);
        for bad in [
            Trial { states: vec![], ..good.clone() },
            Trial { states: vec![vec![0.0]], ..good.clone() },
            Trial { action: vec![0.0, 0.0], ..good.clone() },
            Trial { action: vec![f32::NAN], ..good.clone() },
            Trial { value: f32::INFINITY, ..good.clone() },
        ] {
            assert!(lessons.add(&[good.clone(), bad.clone()]).is_err(), "{bad:?}");
            assert_eq!(lessons, Lessons::new(2, 1));
        }
    }
}
