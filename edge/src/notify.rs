//! What the service manager is told: readiness, a line of status, and the watchdog.
//!
//! Without `NOTIFY_SOCKET` in the environment all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The agent is at work: whether there is a broker yet or not.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A step of a change begins, which may take some minutes: each feeds the watchdog, and has its own
/// time limit.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// The agent is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "The service manager could not be told.");
    }
}

/// Feeds the watchdog twice per its period, where there is one. To be spawned on the event loop that
/// decides: one that hangs feeds nobody.
pub async fn feed_watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((period / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}
