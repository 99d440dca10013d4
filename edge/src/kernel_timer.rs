//! A timer of the kernel's, which wakes its thread once per expiry.
//!
//! The event loop's own timers wake it two or three times for one of some seconds: they lie in a
//! wheel that is looked at whenever a coarser slot ends.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::task::{Context, Poll, ready};
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

/// Expiries that nobody waited for count as one.
pub(crate) struct KernelTimer(AsyncFd<Timer>);

impl KernelTimer {
    /// A timer that does not run yet.
    ///
    /// # Errors
    /// Where the system gives none; outside of an event loop.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        // SAFETY: the timer owns its descriptor, which is valid and stays the same until it is
        // dropped; nothing but this struct reaches it.
        #[allow(unsafe_code, reason = "tokio has no safe way to wait for a descriptor")]
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) };
        Ok(Self(timer?))
    }

    /// Lets it expire at once, and then once per interval.
    ///
    /// # Errors
    /// The system's answer.
    pub(crate) fn every(&self, interval: Duration) -> io::Result<()> {
        let interval = TimeSpec::from_duration(interval.max(Duration::from_millis(1)));
        let expiration = Expiration::IntervalDelayed(at_least_1_ns(Duration::ZERO), interval);
        Ok(self.0.get_ref().0.set(expiration, TimerSetTimeFlags::empty())?)
    }

    /// Lets it expire once, so much later; never where that is `None`.
    ///
    /// # Errors
    /// The system's answer.
    pub(crate) fn once(&self, after: Option<Duration>) -> io::Result<()> {
        let timer = &self.0.get_ref().0;
        let Some(after) = after else { return Ok(timer.unset()?) };
        let expiration = Expiration::OneShot(at_least_1_ns(after));
        Ok(timer.set(expiration, TimerSetTimeFlags::empty())?)
    }

    /// Ready where it has expired since the last time that it was.
    ///
    /// # Errors
    /// The system's answer.
    pub(crate) fn poll_expired(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            // Not ready after all: waited for once more.
            if let Ok(done) = ready.try_io(|timer| Ok(timer.get_ref().0.wait()?)) {
                return Poll::Ready(done);
            }
        }
    }

    /// Waits for the next expiry.
    ///
    /// # Errors
    /// The system's answer.
    pub(crate) async fn expired(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_expired(context)).await
    }
}

/// Zero would switch a timer off.
fn at_least_1_ns(after: Duration) -> TimeSpec {
    TimeSpec::from_duration(after.max(Duration::from_nanos(1)))
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
            let timer = KernelTimer::new().unwrap();
            timer.every(Duration::from_millis(50)).unwrap();
            timer.expired().await.unwrap();
            timer.expired().await.unwrap();
            timer.expired().await.unwrap();
            // Those that a busy machine missed count as one: at least, not at most.
            assert!(began.elapsed() >= Duration::from_millis(99), "{:?}", began.elapsed());
        });
    }
}
