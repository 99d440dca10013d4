//! Where an option has been wanted of late: a restart waits until that is steady.

use embassy_time::Instant;

/// Where one option is wanted, on the actor's grid, since it was last wanted on this side of its
/// value in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trend {
    /// -1, 0 (within the dead band) or 1.
    pub(super) side: i32,
    pub(super) since: Instant,
    sum: i32,
    count: i32,
}

impl Trend {
    pub(super) const NONE: Trend = Trend { side: 0, since: Instant::MIN, sum: 0, count: 0 };
    /// Decisions after which older ones begin to weigh less.
    const COUNT_MAX: i32 = 64;

    /// Takes in that `raw` is wanted on `side`.
    pub(super) fn observe(&mut self, now: Instant, side: i32, raw: i8, alike_steps: u8) {
        let goes_on =
            side == self.side && self.count > 0 && self.mean().abs_diff(raw) <= alike_steps;
        if !goes_on {
            *self = Trend { side, since: now, sum: 0, count: 0 };
        } else if self.count >= Trend::COUNT_MAX {
            (self.sum, self.count) = (self.sum / 2, self.count / 2);
        }
        self.sum += i32::from(raw);
        self.count += 1;
    }

    /// The mean of what was wanted.
    pub(super) fn mean(&self) -> i8 {
        // A mean of values of i8 is one.
        i8::try_from(self.sum / self.count.max(1)).unwrap_or(0)
    }
}
