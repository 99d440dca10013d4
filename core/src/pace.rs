//! The control loop, the same on a gateway and on a microcontroller: tick, wait, tick.
//!
//! It has no clock and does no I/O: the world that it runs in brings the time, waits, and decides.

use core::ops::ControlFlow;

use embassy_time::{Duration, Instant};

/// What a control loop runs in.
///
/// Nothing of it needs another thread: the future of [`drive`] is for the executor that made it.
#[allow(async_fn_in_trait, reason = "no caller needs the future to be Send")]
pub trait World {
    /// Now; never runs backwards.
    fn now(&self) -> Instant;

    /// One decision, from sample to end; then how long after its beginning the next is due.
    /// `Break` ends the loop.
    fn tick(&mut self) -> ControlFlow<(), Duration>;

    /// Returns at `due`, or earlier where something calls for a tick at once. `Break` ends the loop.
    async fn wait(&mut self, due: Instant) -> ControlFlow<()>;
}

/// Ticks until the world ends it, the first time at once.
///
/// A tick that took longer than its interval is followed by the next at once, never by a burst that
/// makes up for those that were missed.
pub async fn drive(world: &mut impl World) {
    loop {
        let began = world.now();
        let ControlFlow::Continue(interval) = world.tick() else { return };
        // An interval beyond the end of time is none: the wait then ends with the world.
        let due = began.checked_add(interval).unwrap_or(Instant::MAX);
        if world.wait(due).await.is_break() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};
    use std::vec::Vec;

    /// A world whose ticks take `tick_ms` each, and whose waits end when they should.
    struct Scripted {
        now_ms: u64,
        tick_ms: u64,
        interval_ms: u64,
        ticks_max: usize,
        waits_max: usize,
        ticks: Vec<u64>,
        waits: Vec<u64>,
    }

    impl Scripted {
        fn new(tick_ms: u64, interval_ms: u64) -> Self {
            let (ticks, waits) = (Vec::new(), Vec::new());
            let max = usize::MAX;
            Self { now_ms: 5, tick_ms, interval_ms, ticks_max: max, waits_max: max, ticks, waits }
        }
    }

    impl World for Scripted {
        fn now(&self) -> Instant {
            Instant::from_millis(self.now_ms)
        }

        fn tick(&mut self) -> ControlFlow<(), Duration> {
            self.ticks.push(self.now_ms);
            self.now_ms += self.tick_ms;
            if self.ticks.len() >= self.ticks_max {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(Duration::from_millis(self.interval_ms))
        }

        async fn wait(&mut self, due: Instant) -> ControlFlow<()> {
            self.waits.push(due.as_millis());
            self.now_ms = self.now_ms.max(due.as_millis());
            if self.waits.len() >= self.waits_max {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        }
    }

    fn run(world: &mut Scripted) {
        let mut future = pin!(drive(world));
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Ready(()));
    }

    #[test]
    fn the_interval_counts_from_the_beginning_of_a_tick() {
        let mut world = Scripted { ticks_max: 3, ..Scripted::new(30, 100) };
        run(&mut world);
        assert_eq!((world.ticks, world.waits), (std::vec![5, 105, 205], std::vec![105, 205]));
    }

    #[test]
    fn a_slow_tick_is_followed_by_one_and_not_by_a_burst() {
        let mut world = Scripted { ticks_max: 3, ..Scripted::new(350, 100) };
        run(&mut world);
        assert_eq!(world.ticks, [5, 355, 705]);
    }

    #[test]
    fn a_wait_may_end_it_and_an_endless_interval_does_not_overflow() {
        let mut world = Scripted { waits_max: 1, ..Scripted::new(1, u64::MAX / 1000) };
        run(&mut world);
        assert_eq!(world.ticks, [5]);
    }
}
