//! The one clock of the agent: monotonic, of the `embassy-time` driver for std.

use brokertuner_core::Instant;

/// Now; never runs backwards, whatever happens to the wall clock.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}
