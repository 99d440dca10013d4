//! The best of some candidate actions in each state of a batch: where the actor is pulled to.
//!
//! The deterministic policy gradient climbs the hill that it stands on. What settings are worth
//! has several (a short window and a short queue where memory is short, long ones elsewhere), so
//! the critics are asked about actions from elsewhere too, as in Kalashnikov et al. 2018 (QT-Opt),
//! and the actor follows the answer as in behaviour cloning. Half of them are crossed with the best
//! so far: what a single option is worth shows where the others are right already, and a switch has no
//! slope to climb.

use super::Hyper;
use super::adam::narrow;
use super::agent::Critic;
use super::net::Tape;
use rand::RngExt;
use rand_pcg::Pcg32;

/// Share of a crossed candidate's values that come from elsewhere.
const CROSSED_SHARE: f64 = 0.3;

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
    /// `in_force` where there is one, and as many as [`Hyper::guide_candidates`] from `others`, every second
    /// one of which takes only some of its values from there.
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
        for number in 0..self.hyper.guide_candidates {
            others(rng, &mut candidates);
            if number % 2 == 1 {
                cross(&mut candidates, &best, rng);
            }
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

/// Gives most of the values of `candidates` those of `best`.
fn cross(candidates: &mut [f32], best: &[f32], rng: &mut Pcg32) {
    for (value, &best) in candidates.iter_mut().zip(best) {
        if !rng.random_bool(CROSSED_SHARE) {
            *value = best;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ddpg::adam::Adam;
    use crate::ddpg::net::Mlp;
    use rand::SeedableRng;

    const DIM: usize = 6;

    /// Values an action by how near all of it is to 0, in every state.
    fn critic() -> Critic {
        let mut net = Mlp::new(&[1 + DIM, 2 * DIM, 1], 1.0, false, &mut Pcg32::seed_from_u64(1));
        net.params.fill(0.0);
        for value in 0..DIM {
            // |x| is what two units pass of x and of -x.
            for (unit, sign) in [(2 * value, 1.0), (2 * value + 1, -1.0)] {
                net.params[unit * (1 + DIM) + 1 + value] = sign;
            }
        }
        let (weights, _) = net.spans(1);
        net.params[weights].fill(-1.0);
        let adam = Adam::new(net.params.len(), 1e-3, 0.0);
        Critic { target: net.clone(), net, adam }
    }

    /// Whole actions from elsewhere are hardly ever right in all else.
    #[test]
    fn one_wrong_value_is_mended_where_the_others_are_right() {
        let batch = 1000;
        let hyper = Hyper::twin();
        let critics = [critic()];
        let guide = Guide { critics: &critics, hyper: &hyper, state_dim: 1, action_dim: DIM };
        let mut own = vec![0.0; DIM * batch];
        let wrong = (DIM - 1) * batch;
        own[wrong..].fill(0.5);
        let mut rng = Pcg32::seed_from_u64(2);
        let elsewhere = |rng: &mut Pcg32, candidates: &mut [f32]| {
            candidates.iter_mut().for_each(|value| *value = rng.random_range(-1.0..=1.0));
        };
        let best = guide.best(&vec![0.0; batch], &own, None, elsewhere, &mut rng);
        let mended = (0..batch).filter(|index| {
            let rest = (0..DIM - 1).all(|row| best[row * batch + index] == 0.0);
            rest && best[wrong + index].abs() < 0.5
        });
        let count = mended.count();
        assert!(count > batch / 10, "{count} of {batch}");
    }
}
