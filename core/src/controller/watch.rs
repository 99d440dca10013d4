//! The watch over the last change, until it has stood its verification.

use super::{Health, RollBackReason, Rules};
use crate::knobs::Apply;
use crate::settings::Settings;
use embassy_time::{Duration, Instant};

/// Restarts by others within a verify window that make a crash loop: the first may be a person.
const CRASHES_MIN: u8 = 2;

/// Memory that grows by no more than so many times of what it did before a change grows as before.
const GROWTH_FACTOR: f32 = 1.25;

/// A change that has yet to stand its verification.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    pub(super) since: Instant,
    pub(super) apply: Apply,
    pub(super) before: Health,
    pub(super) last_good: Settings,
    /// Where the memory's share of the limit was, and how fast it grew.
    growth: Growth,
    /// What the broker stored before it, over the limit.
    pub(super) stored_share: Option<f32>,
    latency_us: Mean,
    dropped_share: Mean,
    /// The most that were connected at a look since.
    clients: Option<f32>,
    /// Since when it has answered nobody.
    down_since: Option<Instant>,
    /// Processes that took over without us.
    pub(super) crashes: u8,
    /// A second restart was tried, for what the first one carried over.
    pub(super) is_unladen: bool,
    /// What became of undoing it, where that failed.
    pub(super) undoing: Undoing,
    /// Why it was to be undone then: that stays decided, whatever is seen later.
    pub(super) blame: Option<RollBackReason>,
}

/// Roll-backs of one change that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Undoing {
    /// How many.
    pub failures: u8,
    /// The file no longer has the change: whoever restarts the broker undoes it.
    pub is_in_file: bool,
}

impl Watch {
    pub(super) fn new(since: Instant, apply: Apply, before: Health, last_good: Settings) -> Watch {
        let growth = Growth::default();
        let (latency_us, dropped_share) = (Mean::default(), Mean::default());
        let (clients, down_since, crashes) = (None, None, 0);
        let (undoing, blame) = (Undoing::default(), None);
        Watch {
            since,
            apply,
            before,
            last_good,
            growth,
            stored_share: None,
            latency_us,
            dropped_share,
            clients,
            down_since,
            crashes,
            is_unladen: false,
            undoing,
            blame,
        }
    }

    /// The same, over memory that grew so before the change.
    pub(super) fn with_growth(self, growth: Growth) -> Watch {
        Watch { growth, ..self }
    }

    /// The same, over a broker that stored so much before the change.
    pub(super) fn with_stored(self, stored_share: Option<f32>) -> Watch {
        Watch { stored_share, ..self }
    }

    /// The same, where the second restart was tried.
    pub(super) fn unladen(self, is_unladen: bool) -> Watch {
        Watch { is_unladen, ..self }
    }

    pub(super) fn growth(&self) -> Growth {
        self.growth
    }

    /// What can't wait for the end of the window: every second of it is an outage.
    pub(super) fn disaster(
        &mut self,
        now: Instant,
        health: &Health,
        rules: &Rules,
    ) -> Option<RollBackReason> {
        if self.crashes >= CRASHES_MIN {
            return Some(RollBackReason::Crashed);
        }
        if health.is_serving || !self.before.is_serving {
            self.down_since = None;
            return None;
        }
        let since = *self.down_since.get_or_insert(now);
        let is_down = now.saturating_duration_since(since) >= rules.down_max;
        is_down.then_some(RollBackReason::NotServing)
    }

    /// What was seen over the window: means of what flickers, the last of what stands, and the most
    /// clients, for those who came back and left later have their own reasons.
    ///
    /// The first half belongs to the change itself: clients come back, probes wait for them.
    pub(super) fn seen(&mut self, is_first_half: bool, now: &Health) -> Health {
        self.clients = match (self.clients, now.clients) {
            (Some(most), Some(clients)) => Some(most.max(clients)),
            (most, clients) => most.or(clients),
        };
        if is_first_half {
            return *now;
        }
        Health {
            clients: now.clients.and(self.clients),
            probe_latency_us: self.latency_us.with(now.probe_latency_us),
            dropped_share: self.dropped_share.with(now.dropped_share),
            ..*now
        }
    }
}

/// How the memory's share of the limit grows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    last: Option<(Instant, f32)>,
    /// Between the last three looks, where there were as many.
    per_s: [f32; 2],
}

impl Default for Growth {
    fn default() -> Self {
        Growth { last: None, per_s: [f32::INFINITY; 2] }
    }
}

impl Growth {
    /// Takes in a look.
    pub(super) fn observe(&mut self, now: Instant, share: Option<f32>) {
        let Some(share) = share.filter(|share| share.is_finite()) else { return };
        if let Some((at, before)) = self.last {
            let elapsed_s = seconds(now.saturating_duration_since(at));
            if elapsed_s <= 0.0 {
                return;
            }
            self.per_s = [self.per_s[1], (share - before) / elapsed_s];
        }
        self.last = Some((now, share));
    }

    /// Whether there were two looks.
    pub(super) fn is_known(&self) -> bool {
        self.slower().is_finite()
    }

    /// What it would not be beyond at `now` had nothing been changed: it goes on as it last did
    /// twice running, and a little more.
    pub(super) fn expected_max(&self, now: Instant) -> Option<f32> {
        let (at, share) = self.last?;
        let per_s = if self.is_known() { self.slower().max(0.0) } else { 0.0 };
        let grown = per_s * seconds(now.saturating_duration_since(at));
        Some(share + grown * GROWTH_FACTOR)
    }

    fn slower(&self) -> f32 {
        self.per_s[0].min(self.per_s[1])
    }
}

fn seconds(duration: Duration) -> f32 {
    duration.as_millis() as f32 / 1000.0
}

/// A running mean.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f32,
    count: f32,
}

impl Mean {
    /// The mean with one more value; `None` where there was never one.
    fn with(&mut self, value: Option<f32>) -> Option<f32> {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.sum += value;
            self.count += 1.0;
        }
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}
