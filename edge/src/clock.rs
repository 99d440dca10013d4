//! The one clock of the agent: monotonic, and what its timers expire by. The clock on the wall only
//! dates what has to outlast the agent.
//!
//! This is `embassy-time`'s driver on a gateway. The one that embassy-time brings for std has a thread
//! that waits, and that is woken up to four times for each timer: with a tick in ten seconds, 0.4
//! wake-ups of the 2 in a second that the agent may have.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant as StdInstant};

use brokertuner_core::Instant;
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;
use procfs::Current as _;
use serde::{Deserialize, Serialize};

use crate::apply::unix_s;
use crate::kernel_timer::KernelTimer;

/// The driver: microseconds since the first look, and who waits for which.
struct Timers {
    zero: OnceLock<StdInstant>,
    queue: Mutex<Queue>,
}

embassy_time_driver::time_driver_impl!(static TIMERS: Timers = Timers {
    zero: OnceLock::new(),
    queue: Mutex::new(Queue::new()),
});

impl Driver for Timers {
    fn now(&self) -> u64 {
        let since = self.zero.get_or_init(StdInstant::now).elapsed();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // `with_timers` looks at the queue after each poll.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).schedule_wake(at, waker);
    }
}

impl Timers {
    /// Wakes those whose time has come; how long until the next one's, `None` where nobody waits.
    fn expire(&self) -> Option<Duration> {
        let now = self.now();
        let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).next_expiration(now);
        (next != u64::MAX).then(|| Duration::from_micros(next - now))
    }
}

/// Runs `work`, in which the timers of `embassy-time` expire; elsewhere they never do.
///
/// # Errors
/// Where the system gives no timer; outside of an event loop.
pub(crate) async fn with_timers<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let (timer, mut work) = (KernelTimer::new()?, pin!(work));
    poll_fn(|context| {
        loop {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            if let Err(error) = timer.once(TIMERS.expire()) {
                return Poll::Ready(Err(error));
            }
            match timer.poll_expired(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    })
    .await
}

/// Now; never runs backwards, whatever happens to the wall clock.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// By how many seconds the clock on the wall is ahead of [`now`].
#[must_use]
pub fn wall_ahead_s() -> i64 {
    i64::try_from(unix_s()).unwrap_or(i64::MAX).saturating_sub_unsigned(now().as_secs())
}

/// Both clocks at one moment: they tell later by how much the one on the wall was stepped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// The clock on the wall, in Unix seconds.
    pub unix_s: u64,
    /// The clock of this boot; `None` where the machine does not show it.
    pub boot: Option<Boot>,
}

/// A moment of one boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Which one: the kernel's random number for it.
    pub id: u128,
    /// Seconds since, sleep included.
    pub since_s: u64,
}

impl Clocks {
    /// Both now.
    #[must_use]
    pub fn now() -> Self {
        Self { unix_s: unix_s(), boot: boot() }
    }

    /// When the machine booted, by the clock on the wall as it goes now.
    #[must_use]
    pub fn booted_unix_s(&self) -> Option<u64> {
        Some(self.unix_s.saturating_sub(self.boot?.since_s))
    }

    /// By how many seconds the clock on the wall was stepped since `then`, forwards counted positive; 0
    /// where nobody can tell.
    #[must_use]
    pub fn stepped_s(&self, then: &Clocks) -> i64 {
        let (Some(now), Some(before)) = (self.boot, then.boot) else { return 0 };
        if now.id != before.id || now.since_s < before.since_s {
            return 0;
        }
        let expected = then.unix_s.saturating_add(now.since_s - before.since_s);
        let stepped = i128::from(self.unix_s) - i128::from(expected);
        i64::try_from(stepped).unwrap_or(0)
    }
}

fn boot() -> Option<Boot> {
    let id = procfs::sys::kernel::random::boot_id().ok()?;
    let id = u128::from_str_radix(&id.trim().replace('-', ""), 16).ok()?;
    let uptime_s = procfs::Uptime::current().ok()?.uptime;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let since_s = uptime_s as u64;
    Some(Boot { id, since_s })
}

#[cfg(test)]
mod tests {
    use super::*;
    use embassy_time::Timer;

    fn on_an_event_loop<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime
            .and_then(|runtime| runtime.block_on(with_timers(work)))
            .expect("the system has timers")
    }

    #[test]
    fn timers_expire_in_their_order_and_not_before_their_time() {
        let began = now();
        let at = |ms: u64| began + embassy_time::Duration::from_millis(ms);
        let order = Mutex::new(Vec::new());
        let wait = async |ms: u64| {
            Timer::at(at(ms)).await;
            order.lock().expect("nobody panicked").push((ms, now() >= at(ms)));
        };
        on_an_event_loop(async { tokio::join!(wait(30), wait(10), wait(0), wait(20)) });
        let order = order.into_inner().expect("nobody panicked");
        assert_eq!(order, [(0, true), (10, true), (20, true), (30, true)]);
    }

    #[test]
    fn a_timer_that_is_given_up_holds_nobody_up() {
        on_an_event_loop(async {
            for _ in 0..3 {
                let mut long = pin!(Timer::after_secs(3600));
                tokio::select! {
                    biased;
                    () = &mut long => panic!("an hour has not gone"),
                    () = Timer::after_millis(5) => {}
                }
            }
        });
    }

    #[test]
    fn work_that_waits_for_nothing_ends_at_once() {
        assert_eq!(on_an_event_loop(async { 7 }), 7);
    }

    #[test]
    fn this_machine_shows_its_boot() {
        let (then, now) = (Clocks::now(), Clocks::now());
        assert!(then.boot.is_some());
        assert_eq!(then.boot.map(|boot| boot.id), now.boot.map(|boot| boot.id));
        assert!(now.stepped_s(&then).abs() <= 1);
    }
}
