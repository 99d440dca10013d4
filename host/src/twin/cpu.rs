//! The broker's one thread: which packets it reads in which order, and what that costs.
//!
//! Mosquitto 2.0 reads one packet of each readable socket a round (`loop_handle_reads_writes`), so
//! ten readers that acknowledge take as many turns as ten publishers, however many
//! acknowledgements wait.

use super::link::Work;
use serde::{Deserialize, Serialize};

/// CPU time of the broker's single steps in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Waking up for a packet that finds the broker asleep.
    pub wake_us: f64,
    /// One round of the event loop.
    pub round_us: f64,
    /// Reading a PUBLISH, and its PUBACK.
    pub publish_us: f64,
    /// The same for each KiB of payload.
    pub publish_us_per_kib: f64,
    /// Putting a message before one subscriber.
    pub route_us: f64,
    /// Writing a packet to a socket.
    pub write_us: f64,
    /// The same for each KiB of payload.
    pub write_us_per_kib: f64,
    /// Sending a segment.
    pub segment_us: f64,
    /// Reading an acknowledgement.
    pub acknowledge_us: f64,
}

impl Default for Costs {
    fn default() -> Self {
        Costs {
            wake_us: 15.0,
            round_us: 1.0,
            publish_us: 4.0,
            publish_us_per_kib: 0.3,
            route_us: 0.3,
            write_us: 1.2,
            write_us_per_kib: 0.3,
            segment_us: 2.0,
            acknowledge_us: 1.2,
        }
    }
}

impl Costs {
    /// Other costs, each made of one of these.
    #[must_use]
    pub fn map(self, mut of: impl FnMut(f64) -> f64) -> Costs {
        Costs {
            wake_us: of(self.wake_us),
            round_us: of(self.round_us),
            publish_us: of(self.publish_us),
            publish_us_per_kib: of(self.publish_us_per_kib),
            route_us: of(self.route_us),
            write_us: of(self.write_us),
            write_us_per_kib: of(self.write_us_per_kib),
            segment_us: of(self.segment_us),
            acknowledge_us: of(self.acknowledge_us),
        }
    }

    /// Of what `members` connections did alike.
    pub(super) fn of_work(&self, work: &Work, members: u32) -> f64 {
        let kib = work.bytes as f64 / 1024.0;
        let one = f64::from(work.writes) * self.write_us
            + kib * self.write_us_per_kib
            + f64::from(work.segments) * self.segment_us;
        one * f64::from(members)
    }

    /// Of reading publishes with `bytes` of payload each.
    pub(super) fn of_publishes(&self, count: u32, bytes: u32) -> f64 {
        let kib = f64::from(bytes) / 1024.0;
        f64::from(count) * (self.publish_us + kib * self.publish_us_per_kib)
    }
}

/// Slices over which the broker's load is averaged.
const LOAD_SLICES: f64 = 50.0;

/// The time that the broker's core has for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    slice_us: f64,
    per_slice_us: f64,
    left_us: f64,
    used_us: f64,
    /// The same at the end of the last slice.
    used_before_us: f64,
    /// Share of the time that the broker was awake, of late.
    load: f64,
    /// How often it was woken.
    wakes: f64,
    /// The last round of the loop, where more waits behind it.
    pub(super) round_us: f64,
}

impl Budget {
    pub(super) fn new(slice_us: u32, cpu_share: Option<f64>) -> Budget {
        let per_slice_us = f64::from(slice_us) * cpu_share.unwrap_or(1.0);
        Budget {
            slice_us: f64::from(slice_us),
            per_slice_us,
            left_us: 0.0,
            used_us: 0.0,
            used_before_us: 0.0,
            load: 0.0,
            wakes: 0.0,
            round_us: 0.0,
        }
    }

    /// A new slice; time that was not used is gone, time that was overdrawn is missing.
    pub(super) fn refill(&mut self) {
        let used = (self.used_us - self.used_before_us) / self.per_slice_us.max(f64::MIN_POSITIVE);
        self.used_before_us = self.used_us;
        self.load += (used.min(1.0) - self.load) / LOAD_SLICES;
        self.left_us = self.left_us.min(0.0) + self.per_slice_us;
    }

    pub(super) fn is_left(&self) -> bool {
        self.left_us > 0.0
    }

    pub(super) fn left_us(&self) -> f64 {
        self.left_us
    }

    pub(super) fn spend(&mut self, us: f64) {
        self.left_us -= us;
        self.used_us += us;
    }

    /// `packets` arrive, each by itself: those that find the broker asleep wake it.
    pub(super) fn wake(&mut self, packets: u32, wake_us: f64) {
        let wakes = f64::from(packets) * (1.0 - self.load);
        self.wakes += wakes;
        self.spend(wakes * wake_us);
    }

    /// Packets since the start that woke the broker.
    pub(super) fn wakes(&self) -> f64 {
        self.wakes
    }

    /// What a packet waits before the broker reads it: what is overdrawn (a save, a herd of
    /// connections), and a round of the loop where that never rests.
    pub(super) fn wait_us(&self) -> f64 {
        (self.round_us - self.left_us.min(0.0)) / self.per_slice_us.max(1.0) * self.slice_us
    }

    /// CPU time since the start.
    pub(super) fn used_us(&self) -> f64 {
        self.used_us
    }
}
