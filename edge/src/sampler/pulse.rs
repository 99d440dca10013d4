//! A timer that wakes the thread once per expiry.
//!
//! The event loop's own timers wake it two or three times for one of some seconds: they lie in a
//! wheel that is looked at whenever a coarser slot ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's timer; a thin coat, for the event loop asks for another trait.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Expires at once, and then once per interval; expiries that nobody waited for count as one.
pub(super) struct Pulse(AsyncFd<Timer>);

impl Pulse {
    /// A timer that runs from now on.
    ///
    /// # Errors
    /// Where the system gives none; outside of an event loop.
    pub(super) fn every(interval: Duration) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        // Zero would switch it off.
        let at_once = TimeSpec::from_duration(Duration::from_nanos(1));
        let interval = TimeSpec::from_duration(interval.max(Duration::from_millis(1)));
        let expiration = Expiration::IntervalDelayed(at_once, interval);
        timer.set(expiration, TimerSetTimeFlags::empty())?;
        // SAFETY: the timer owns its descriptor, which is valid and stays the same until it is
        // dropped; nothing but this struct reaches it.
        #[allow(unsafe_code, reason = "tokio has no safe way to wait for a descriptor")]
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) };
        Ok(Self(timer?))
    }

    /// Waits for the next expiry.
    ///
    /// # Errors
    /// The system's answer.
    pub(super) async fn tick(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            // Not ready after all: waited for once more.
            if let Ok(done) = ready.try_io(|timer| Ok(timer.get_ref().0.wait()?)) {
                return done;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_first_is_at_once_and_the_next_an_interval_later() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let began = Instant::now();
            let pulse = Pulse::every(Duration::from_millis(50)).unwrap();
            pulse.tick().await.unwrap();
            pulse.tick().await.unwrap();
            pulse.tick().await.unwrap();
            // Those that a busy machine missed count as one: at least, not at most.
            assert!(began.elapsed() >= Duration::from_millis(99), "{:?}", began.elapsed());
        });
    }
}
