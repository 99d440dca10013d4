//! The best of some candidate actions in each state of a batch: where the actor is pulled to.
//!
//! The deterministic policy gradient climbs the hill that it stands on. What settings are worth
//! has several (a short window and a short queue where memory is short, long ones elsewhere), so
//! the critics are asked about actions from elsewhere too, as in Kalashnikov et al. 2018 (QT-Opt),
//! and the actor follows the answer as in behaviour cloning.

use super::Hyper;
use super::adam::narrow;
use super::agent::Critic;
use super::net::Tape;
use rand_pcg::Pcg32;

/// What candidates are judged by.
pub(super) struct Guide<'a> {
    pub(super) critics: &'a [Critic],
    pub(super) hyper: &'a Hyper,
    pub(super) state_dim: usize,
    pub(super) action_dim: usize,
}

impl Guide<'_> {
    /// For each state of the batch in `states` (`features x batch`, normalised) the candidate that
    /// the smaller critic values most; `actions x batch`. Candidates are `own` (the policy's),
    /// `in_force` where there is one, and as many as [`Hyper::guide_candidates`] from `others`.
    pub(super) fn best(
        &self,
        states: &[f32],
        own: &[f32],
        in_force: Option<&[f32]>,
        mut others: impl FnMut(&mut Pcg32, &mut [f32]),
        rng: &mut Pcg32,
    ) -> Vec<f32> {
        let batch = states.len() / self.state_dim;
        let mut tape = Tape::new(&self.critics[0].net, batch);
        tape.input()[..states.len()].copy_from_slice(states);
        let mut best = own.to_vec();
        let mut values = self.values(&mut tape, own);
        let stay = narrow(self.hyper.guide_stay);
        if let Some(in_force) = in_force {
            let found = self.values(&mut tape, in_force);
            let found: Vec<f32> = found.into_iter().map(|value| value + stay).collect();
            take_better(&mut best, &mut values, in_force, &found);
        }
        let mut candidates = vec![0.0; self.action_dim * batch];
        for _ in 0..self.hyper.guide_candidates {
            others(rng, &mut candidates);
            let found = self.values(&mut tape, &candidates);
            take_better(&mut best, &mut values, &candidates, &found);
        }
        best
    }

    /// The smaller critic's value of an action in each state of the tape.
    fn values(&self, tape: &mut Tape, actions: &[f32]) -> Vec<f32> {
        let start = tape.input().len() - actions.len();
        let mut values = vec![f32::INFINITY; actions.len() / self.action_dim];
        for critic in self.critics {
            tape.input()[start..].copy_from_slice(actions);
            critic.net.forward(tape);
            for (value, &found) in values.iter_mut().zip(tape.output()) {
                *value = value.min(found);
            }
        }
        values
    }
}

/// Puts each column of `actions` that is worth more into `best`.
fn take_better(best: &mut [f32], values: &mut [f32], actions: &[f32], found: &[f32]) {
    let batch = values.len();
    for index in 0..batch {
        if found[index] > values[index] {
            values[index] = found[index];
            let column = actions.iter().skip(index).step_by(batch);
            best.iter_mut()
                .skip(index)
                .step_by(batch)
                .zip(column)
                .for_each(|(to, &from)| *to = from);
        }
    }
}
