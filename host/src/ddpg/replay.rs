//! The replay buffer: one flat array, the oldest rows overwritten.

use rand::RngExt;
use rand_pcg::Pcg32;

/// What one step of an environment showed. States are raw features, actions in -1 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition<'a> {
    /// Which of the environments that run side by side; 0 where there is one.
    pub lane: usize,
    /// State before the action. Not-a-number marks a missing feature.
    pub state: &'a [f32],
    /// The action taken.
    pub action: &'a [f32],
    /// Its reward.
    pub reward: f32,
    /// State after the step.
    pub next_state: &'a [f32],
    /// The episode ended for good: nothing after it counts.
    pub done: bool,
    /// The episode was cut off here, but the world goes on: the target network values what
    /// follows.
    pub truncated: bool,
}

/// A transition that still collects rewards (n-step returns).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pending {
    pub(super) lane: usize,
    pub(super) state: Vec<f32>,
    pub(super) action: Vec<f32>,
    /// Discounted sum so far.
    pub(super) reward: f32,
    /// Discount of what comes next.
    pub(super) discount: f32,
    /// Rewards in the sum.
    pub(super) steps: usize,
}

/// Rows of state, action, reward, next state and discount.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Replay {
    state_dim: usize,
    action_dim: usize,
    capacity: usize,
    /// Row after the newest.
    pub(super) cursor: usize,
    /// Row by row.
    pub(super) rows: Vec<f32>,
}

/// One row of the buffer.
pub(super) struct Row<'a> {
    pub(super) state: &'a [f32],
    pub(super) action: &'a [f32],
    pub(super) reward: f32,
    pub(super) next_state: &'a [f32],
    /// Factor of the target's value: gamma to the number of rewards summed, or 0 at an end.
    pub(super) discount: f32,
}

impl Replay {
    /// An empty buffer; it takes memory as it fills.
    pub(super) fn new(state_dim: usize, action_dim: usize, capacity: usize) -> Self {
        Replay { state_dim, action_dim, capacity, cursor: 0, rows: Vec::new() }
    }

    /// Floats in a row.
    pub(super) fn stride(&self) -> usize {
        2 * self.state_dim + self.action_dim + 2
    }

    /// Rows stored.
    pub(super) fn len(&self) -> usize {
        self.rows.len() / self.stride()
    }

    /// Stores a row, over the oldest one where the buffer is full.
    pub(super) fn push(&mut self, row: &Row<'_>) {
        let (stride, scalars) = (self.stride(), [row.reward, row.discount]);
        let parts = [row.state, row.action, row.next_state, &scalars];
        if self.len() < self.capacity {
            parts.iter().for_each(|part| self.rows.extend_from_slice(part));
        } else {
            let mut start = self.cursor * stride;
            for part in parts {
                self.rows[start..start + part.len()].copy_from_slice(part);
                start += part.len();
            }
        }
        self.cursor = (self.cursor + 1) % self.capacity;
    }

    /// The row at `index`, which must be below [`Replay::len`].
    pub(super) fn row(&self, index: usize) -> Row<'_> {
        let stride = self.stride();
        let row = &self.rows[index * stride..(index + 1) * stride];
        let (state, rest) = row.split_at(self.state_dim);
        let (action, rest) = rest.split_at(self.action_dim);
        let (next_state, scalars) = rest.split_at(self.state_dim);
        Row { state, action, next_state, reward: scalars[0], discount: scalars[1] }
    }

    /// A uniformly random row of a buffer that is not empty.
    pub(super) fn sample(&self, rng: &mut Pcg32) -> Row<'_> {
        self.row(rng.random_range(0..self.len()))
    }
}

/// Adds a transition to the pending ones and moves those that are complete into the buffer.
pub(super) fn collect(
    pending: &mut Vec<Pending>,
    replay: &mut Replay,
    transition: &Transition<'_>,
    gamma: f32,
    n_step: usize,
) {
    pending.push(Pending {
        lane: transition.lane,
        state: transition.state.to_vec(),
        action: transition.action.to_vec(),
        reward: 0.0,
        discount: 1.0,
        steps: 0,
    });
    pending.retain_mut(|item| {
        if item.lane != transition.lane {
            return true;
        }
        item.reward += item.discount * transition.reward;
        item.discount *= gamma;
        item.steps += 1;
        if item.steps < n_step && !transition.done && !transition.truncated {
            return true;
        }
        replay.push(&Row {
            state: &item.state,
            action: &item.action,
            reward: item.reward,
            next_state: transition.next_state,
            discount: if transition.done { 0.0 } else { item.discount },
        });
        false
    });
}

/// Moves the pending transitions of `lane` into the buffer with the rewards that they have;
/// `state` is the one that they led to.
pub(super) fn cut(pending: &mut Vec<Pending>, replay: &mut Replay, lane: usize, state: &[f32]) {
    pending.retain(|item| {
        if item.lane == lane {
            replay.push(&Row {
                state: &item.state,
                action: &item.action,
                reward: item.reward,
                next_state: state,
                discount: item.discount,
            });
        }
        item.lane != lane
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn step(lane: usize, number: f32, done: bool, truncated: bool) -> Transition<'static> {
        // Leaked on purpose: a handful of floats, so that the table below reads well.
        let state = vec![number].leak();
        let next_state = vec![number + 1.0].leak();
        Transition { lane, state, action: &[0.5], reward: number, next_state, done, truncated }
    }

    /// State, summed reward, next state, discount of every row.
    fn rows(replay: &Replay) -> Vec<[f32; 4]> {
        let rows = (0..replay.len()).map(|index| replay.row(index));
        rows.map(|row| [row.state[0], row.reward, row.next_state[0], row.discount]).collect()
    }

    fn collected(steps: &[Transition<'_>], n_step: usize) -> (Vec<[f32; 4]>, usize) {
        let (mut pending, mut replay) = (Vec::new(), Replay::new(1, 1, 100));
        for transition in steps {
            collect(&mut pending, &mut replay, transition, 0.5, n_step);
        }
        (rows(&replay), pending.len())
    }

    #[test]
    fn one_step_returns() {
        let steps = [step(0, 1.0, false, false), step(0, 2.0, true, false)];
        assert_eq!(collected(&steps, 1), (vec![[1.0, 1.0, 2.0, 0.5], [2.0, 2.0, 3.0, 0.0]], 0));
    }

    #[test]
    fn three_step_returns_end_with_the_episode() {
        let running = [1.0, 2.0, 4.0, 8.0].map(|number| step(0, number, false, false));
        // 1 + 2/2 + 4/4; 2 + 4/2 + 8/4; two are waiting.
        let full = vec![[1.0, 3.0, 5.0, 0.125], [2.0, 6.0, 9.0, 0.125]];
        assert_eq!(collected(&running, 3), (full.clone(), 2));
        for (done, discounts) in [(true, [0.0, 0.0, 0.0]), (false, [0.125, 0.25, 0.5])] {
            let mut steps = running.to_vec();
            steps[3] = step(0, 8.0, done, !done);
            let expected = vec![
                full[0],
                [2.0, 6.0, 9.0, discounts[0]],
                [4.0, 8.0, 9.0, discounts[1]],
                [8.0, 8.0, 9.0, discounts[2]],
            ];
            assert_eq!(collected(&steps, 3), (expected, 0));
        }
    }

    #[test]
    fn lanes_do_not_mix() {
        let steps = [
            step(0, 1.0, false, false),
            step(1, 10.0, false, false),
            step(0, 2.0, false, false),
            step(1, 20.0, true, false),
        ];
        let expected =
            vec![[1.0, 2.0, 3.0, 0.25], [10.0, 20.0, 21.0, 0.0], [20.0, 20.0, 21.0, 0.0]];
        assert_eq!(collected(&steps, 2), (expected, 1));
    }

    #[test]
    fn a_cut_ends_the_returns_of_its_lane() {
        let (mut pending, mut replay) = (Vec::new(), Replay::new(1, 1, 100));
        for transition in [step(0, 1.0, false, false), step(1, 9.0, false, false)] {
            collect(&mut pending, &mut replay, &transition, 0.5, 3);
        }
        collect(&mut pending, &mut replay, &step(0, 2.0, false, false), 0.5, 3);
        cut(&mut pending, &mut replay, 0, &[3.0]);
        assert_eq!(rows(&replay), vec![[1.0, 2.0, 3.0, 0.25], [2.0, 2.0, 3.0, 0.5]]);
        assert_eq!(pending.len(), 1, "the other lane goes on");
    }

    #[test]
    fn the_oldest_row_is_overwritten_and_all_are_sampled() {
        let (mut pending, mut replay) = (Vec::new(), Replay::new(1, 1, 3));
        for number in [1.0, 2.0, 3.0, 4.0] {
            collect(&mut pending, &mut replay, &step(0, number, false, false), 0.5, 1);
        }
        let states: Vec<f32> = rows(&replay).iter().map(|row| row[0]).collect();
        assert_eq!(states, [4.0, 2.0, 3.0]);
        let mut rng = Pcg32::seed_from_u64(1);
        let drawn: Vec<f32> = (0..300).map(|_| replay.sample(&mut rng).state[0]).collect();
        for state in [2.0, 3.0, 4.0] {
            let count = drawn.iter().filter(|drawn| **drawn == state).count();
            assert!(count > 50, "{state}: {count}");
        }
    }
}
