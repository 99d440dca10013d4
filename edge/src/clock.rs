//! The one clock of the agent: monotonic, of the `embassy-time` driver for std. The clock on the wall
//! only dates what has to outlast the agent.

use brokertuner_core::Instant;
use procfs::Current as _;
use serde::{Deserialize, Serialize};

use crate::apply::unix_s;

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

    #[test]
    fn this_machine_shows_its_boot() {
        let (then, now) = (Clocks::now(), Clocks::now());
        assert!(then.boot.is_some());
        assert_eq!(then.boot.map(|boot| boot.id), now.boot.map(|boot| boot.id));
        assert!(now.stepped_s(&then).abs() <= 1);
    }
}
