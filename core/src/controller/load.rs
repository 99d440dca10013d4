//! Whether the load is still the one that wishes were made for.

use super::Rules;
use embassy_time::Instant;

/// A load that is so many times what it was is another one, and may be to blame in a change's place.
pub(super) const JUMP_FACTOR: f32 = 1.5;
/// Dwells without a jump that make a load a steady one: one that comes in bursts jumps at every look,
/// and is no other load at each.
const STEADY_DWELLS: u32 = 3;

/// The load, as the last looks saw it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    received_per_s: Option<f32>,
    jumped: Option<Instant>,
}

impl Load {
    /// Takes in a look; answers whether a steady load has become another one.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        received_per_s: Option<f32>,
        rules: &Rules,
    ) -> bool {
        let before = self.received_per_s;
        self.received_per_s = received_per_s.or(before);
        let is_jump = before.zip(received_per_s).is_some_and(|(before, now)| {
            let (less, more) = (before.min(now) + 1.0, before.max(now) + 1.0);
            more > less * JUMP_FACTOR
        });
        if !is_jump {
            return false;
        }
        let jumped = self.jumped.replace(now);
        let steady = rules.dwell * STEADY_DWELLS;
        jumped.is_none_or(|at| now.saturating_duration_since(at) >= steady)
    }

    /// Takes in a look that says nothing of the load: clients are still coming back.
    pub(super) fn skip(&mut self, received_per_s: Option<f32>) {
        self.received_per_s = received_per_s.or(self.received_per_s);
    }
}
