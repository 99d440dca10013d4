//! The hard bounds that no model, file or call can leave.
//!
//! Sources of the rules: the measured facts about the broker (queue against window, memory limit
//! against heap, size limits against packets), each also an experiment in `tests/semantics`.

use crate::knobs::{KNOB_COUNT, Knob, KnobSet, OutOfRange, Zero};
use crate::sample::{Meter, Sample, Sys};
use crate::settings::{Setting, Settings, SiteValues};
use core::fmt;

/// A queue holds at least this many windows: below one, the send buffer swallows control packets.
pub const QUEUE_WINDOWS_MIN: u64 = 2;
/// `memory_limit` stays above this multiple of the largest heap seen.
pub const MEMORY_HEADROOM_FACTOR: u64 = 2;
/// Size limits stay above this multiple of the largest packet seen.
pub const PACKET_HEADROOM_FACTOR: u64 = 4;
/// `max_inflight_messages 0` means this window to MQTT.
const WINDOW_UNLIMITED: u64 = 65_535;

/// Lowest and highest value that the operator permits for one option, besides "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Bounds {
    min: u64,
    max: u64,
    unlimited: bool,
}

impl Bounds {
    /// The table's own range of `knob`.
    #[must_use]
    pub fn of(knob: Knob) -> Bounds {
        let spec = knob.spec();
        let unlimited = matches!(spec.zero, Zero::Unlimited | Zero::Unwritten);
        Bounds { min: spec.min, max: spec.max, unlimited }
    }

    /// An operator's narrower range; "no limit" only where `unlimited` and the table permit it.
    ///
    /// # Errors
    /// [`OutOfRange`] with the first end that lies outside the table's range, or with `max` where
    /// it lies below `min`.
    pub fn narrowed(knob: Knob, min: u64, max: u64, unlimited: bool) -> Result<Bounds, OutOfRange> {
        let table = Bounds::of(knob);
        for value in [min, max] {
            if !(table.min..=table.max).contains(&value) {
                return Err(OutOfRange { knob, value });
            }
        }
        if max < min {
            return Err(OutOfRange { knob, value: max });
        }
        Ok(Bounds { min, max, unlimited: unlimited && table.unlimited })
    }

    /// Lowest permitted limit.
    #[must_use]
    pub const fn min(self) -> u64 {
        self.min
    }

    /// Highest permitted limit.
    #[must_use]
    pub const fn max(self) -> u64 {
        self.max
    }

    /// Whether "no limit" is permitted.
    #[must_use]
    pub const fn unlimited(self) -> bool {
        self.unlimited
    }
}

/// Why settings are outside the envelope, one per option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Violation {
    /// The option is held at the site's value until the operator opts in.
    Held(Knob),
    /// Outside the operator's bounds.
    OutOfBounds(Knob, Bounds),
    /// The queue is shorter than twice the inflight window.
    QueueBelowWindow {
        /// The written one of the two; the queue where both are.
        knob: Knob,
        /// The queue in force.
        queued_messages: u64,
        /// The window in force.
        inflight_messages: u64,
    },
    /// QoS 0 would be queued without any bound: no `memory_limit` is in force.
    Qos0WithoutMemoryLimit,
    /// `memory_limit 0` would lift the only bound on queued QoS 0.
    LimitBoundsQos0,
    /// `memory_limit` is not well above the heap, or the heap is not known.
    MemoryLimitTooLow {
        /// What is needed at the least, if the heap is known.
        bytes_min: Option<u64>,
    },
    /// A size limit is not well above the largest packet seen, or none was seen yet.
    SizeLimitTooLow {
        /// Which limit.
        knob: Knob,
        /// What is needed at the least, if a packet was seen.
        bytes_min: Option<u64>,
    },
}

impl Violation {
    /// The option that the reason belongs to.
    #[must_use]
    pub const fn knob(&self) -> Knob {
        match self {
            Violation::Held(knob)
            | Violation::OutOfBounds(knob, _)
            | Violation::QueueBelowWindow { knob, .. }
            | Violation::SizeLimitTooLow { knob, .. } => *knob,
            Violation::Qos0WithoutMemoryLimit => Knob::QueueQos0,
            Violation::MemoryLimitTooLow { .. } | Violation::LimitBoundsQos0 => Knob::MemoryLimit,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Violation::Held(knob) => {
                write!(f, "{knob} is held at the site's value; opt in to have it changed")
            }
            Violation::OutOfBounds(knob, bounds) => {
                write!(f, "{knob} must be {} to {}", bounds.min, bounds.max)?;
                if bounds.unlimited { f.write_str(" or unlimited") } else { Ok(()) }
            }
            Violation::QueueBelowWindow { queued_messages, inflight_messages, .. } => write!(
                f,
                "max_queued_messages {queued_messages} is below {QUEUE_WINDOWS_MIN} times max_inflight_messages {inflight_messages}: control packets would be lost"
            ),
            Violation::Qos0WithoutMemoryLimit => f.write_str(
                "queue_qos0_messages true is bounded by no queue limit; set memory_limit as well",
            ),
            Violation::LimitBoundsQos0 => f.write_str(
                "memory_limit 0 would leave queue_qos0_messages true without any bound; switch that off as well",
            ),
            Violation::MemoryLimitTooLow { bytes_min: Some(bytes) } => {
                write!(f, "memory_limit must be 0 or at least {bytes}, well above the heap")
            }
            Violation::MemoryLimitTooLow { bytes_min: None } => {
                f.write_str("memory_limit must be 0 while $SYS/broker/heap/maximum is not known")
            }
            Violation::SizeLimitTooLow { knob, bytes_min: Some(bytes) } => {
                write!(f, "{knob} must be at least {bytes}, well above the largest packet seen")
            }
            Violation::SizeLimitTooLow { knob, bytes_min: None } => {
                write!(f, "{knob} must stay unlimited while no packet was seen")
            }
        }
    }
}

/// One reason per option at the most.
pub type Violations = heapless::Vec<Violation, KNOB_COUNT>;

/// The bounds in force at one site at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Envelope {
    /// Options that may be written at all.
    pub opted_in: KnobSet,
    /// The operator's bounds by row.
    pub bounds: [Bounds; KNOB_COUNT],
    /// What holds for options without a line.
    pub site: SiteValues,
    /// `$SYS/broker/heap/maximum`; `None` while unknown.
    pub heap_bytes_max: Option<u64>,
    /// Largest packet seen; `None` while unknown.
    pub packet_bytes_max: Option<u64>,
}

impl Default for Envelope {
    /// The table's ranges for the options tuned by default, over an empty `mosquitto.conf`.
    fn default() -> Self {
        Envelope {
            opted_in: KnobSet::tuned_by_default(),
            bounds: Knob::ALL.map(Bounds::of),
            site: SiteValues::default(),
            heap_bytes_max: None,
            packet_bytes_max: None,
        }
    }
}

impl Envelope {
    /// These bounds with what was measured of the broker's heap and packets.
    #[must_use]
    pub fn measured(&self, sample: &Sample, meter: &Meter) -> Envelope {
        Envelope {
            heap_bytes_max: sample.sys.get(Sys::HeapBytesMax),
            packet_bytes_max: meter.packet_bytes_bound(),
            ..*self
        }
    }

    /// The settings inside the envelope that lie nearest; those inside already are left alone.
    ///
    /// Where no permitted value satisfies a rule, the option is left out. For every input
    /// `check(confine(x))` finds nothing.
    #[must_use]
    pub fn confine(&self, settings: Settings) -> Settings {
        let mut inside = settings;
        for knob in Knob::ALL {
            inside = inside.with(knob, self.confine_alone(knob, settings.get(knob)));
        }
        self.keep_limit(self.confine_qos0(self.confine_window(inside)))
    }

    /// Why `settings` are outside, one reason per option; empty when they are inside.
    #[must_use]
    pub fn check(&self, settings: &Settings) -> Violations {
        let mut found = Violations::new();
        for (knob, setting) in settings.iter() {
            let Some(value) = setting.value() else { continue };
            let violation =
                self.check_alone(knob, value).or_else(|| self.check_together(knob, settings));
            if let Some(violation) = violation {
                // One per option: the capacity is the number of options.
                let _ = found.push(violation);
            }
        }
        found
    }

    fn check_alone(&self, knob: Knob, value: u64) -> Option<Violation> {
        if !self.opted_in.contains(knob) {
            return Some(Violation::Held(knob));
        }
        let (bounds, order) = (self.bounds[knob as usize], knob.spec().order(value));
        let unlimited = order == u64::MAX;
        if unlimited && bounds.unlimited {
            return None;
        }
        if unlimited || !(bounds.min..=bounds.max).contains(&value) {
            return Some(Violation::OutOfBounds(knob, bounds));
        }
        let bytes_min = self.floor_bytes(knob)?;
        match bytes_min {
            Some(floor) if value >= floor => None,
            bytes_min if knob == Knob::MemoryLimit => {
                Some(Violation::MemoryLimitTooLow { bytes_min })
            }
            bytes_min => Some(Violation::SizeLimitTooLow { knob, bytes_min }),
        }
    }

    fn check_together(&self, knob: Knob, settings: &Settings) -> Option<Violation> {
        let queue_is_written = settings.get(Knob::QueuedMessagesMax) != Setting::Unwritten;
        match knob {
            Knob::InflightMessagesMax if queue_is_written => None,
            Knob::InflightMessagesMax | Knob::QueuedMessagesMax => {
                let (queued_messages, inflight_messages) = self.queue_and_window(settings);
                (queued_messages < QUEUE_WINDOWS_MIN * inflight_messages).then_some(
                    Violation::QueueBelowWindow { knob, queued_messages, inflight_messages },
                )
            }
            Knob::QueueQos0 => {
                self.queues_unbounded(settings).then_some(Violation::Qos0WithoutMemoryLimit)
            }
            // Lifting the limit is ours; a site without one is not.
            Knob::MemoryLimit if self.site.get(Knob::MemoryLimit) != 0 => {
                self.queues_unbounded(settings).then_some(Violation::LimitBoundsQos0)
            }
            _ => None,
        }
    }

    /// QoS 0 is queued for offline sessions, and nothing bounds it.
    fn queues_unbounded(&self, settings: &Settings) -> bool {
        settings.effective(Knob::QueueQos0, &self.site) != 0
            && settings.effective(Knob::MemoryLimit, &self.site) == 0
    }

    /// Queue and window in force, "no limit" as its largest meaning.
    fn queue_and_window(&self, settings: &Settings) -> (u64, u64) {
        let unlimited = |value: u64, largest: u64| if value == 0 { largest } else { value };
        (
            unlimited(settings.effective(Knob::QueuedMessagesMax, &self.site), u64::MAX),
            unlimited(settings.effective(Knob::InflightMessagesMax, &self.site), WINDOW_UNLIMITED),
        )
    }

    /// Smallest safe limit of the options that have one: `Some(None)` while it is not known.
    fn floor_bytes(&self, knob: Knob) -> Option<Option<u64>> {
        match knob {
            Knob::MemoryLimit => {
                Some(self.heap_bytes_max.map(|heap| heap.saturating_mul(MEMORY_HEADROOM_FACTOR)))
            }
            Knob::PacketSizeMax | Knob::MessageSizeMax => {
                Some(self.packet_bytes_max.map(|size| size.saturating_mul(PACKET_HEADROOM_FACTOR)))
            }
            _ => None,
        }
    }

    fn confine_alone(&self, knob: Knob, setting: Setting) -> Setting {
        let Setting::Value(value) = setting else { return Setting::Unwritten };
        if !self.opted_in.contains(knob) {
            return Setting::Unwritten;
        }
        let (spec, bounds) = (knob.spec(), self.bounds[knob as usize]);
        if spec.order(value.get()) == u64::MAX && bounds.unlimited {
            return setting;
        }
        let floor = match self.floor_bytes(knob) {
            None => bounds.min,
            Some(Some(floor)) => bounds.min.max(floor),
            Some(None) => u64::MAX,
        };
        let limit = spec.order(value.get()).min(bounds.max).max(floor);
        let inside = if limit <= bounds.max { spec.value(limit).ok() } else { None };
        let unlimited = || bounds.unlimited.then(|| spec.value(0).ok()).flatten();
        inside.or_else(unlimited).map_or(Setting::Unwritten, Setting::Value)
    }

    /// Raises the queue to the window; where it cannot be, lowers the window to the queue.
    fn confine_window(&self, settings: Settings) -> Settings {
        let is_inside = |s: &Settings| {
            let (queue, window) = self.queue_and_window(s);
            queue >= QUEUE_WINDOWS_MIN * window
        };
        let pair = [Knob::InflightMessagesMax, Knob::QueuedMessagesMax];
        let is_the_sites = pair.iter().all(|&knob| settings.get(knob) == Setting::Unwritten);
        // What the site sets by itself is its own affair.
        if is_the_sites || is_inside(&settings) {
            return settings;
        }
        let (_, window) = self.queue_and_window(&settings);
        let raised = self.limit_within(settings, Knob::QueuedMessagesMax, |bounds| {
            (QUEUE_WINDOWS_MIN * window).clamp(bounds.min, bounds.max)
        });
        if is_inside(&raised) {
            return raised;
        }
        let (queue, _) = self.queue_and_window(&raised);
        let lowered = self.limit_within(raised, Knob::InflightMessagesMax, |bounds| {
            (queue / QUEUE_WINDOWS_MIN).clamp(bounds.min, bounds.max)
        });
        if is_inside(&lowered) {
            return lowered;
        }
        // The site's own values leave no room: neither is ours to write.
        settings
            .with(Knob::InflightMessagesMax, Setting::Unwritten)
            .with(Knob::QueuedMessagesMax, Setting::Unwritten)
    }

    /// Writes `knob` if it is opted in, as `value` of its bounds.
    fn limit_within(
        &self,
        settings: Settings,
        knob: Knob,
        value: impl Fn(Bounds) -> u64,
    ) -> Settings {
        if !self.opted_in.contains(knob) {
            return settings;
        }
        let value = knob.spec().value(value(self.bounds[knob as usize])).ok();
        settings.with(knob, value.map_or(Setting::Unwritten, Setting::Value))
    }

    /// Switches queueing of QoS 0 off where nothing bounds it. Where the site itself queues it
    /// without a limit, that is the site's will: not ours to write, nor to mend.
    fn confine_qos0(&self, settings: Settings) -> Settings {
        let is_ours = settings.get(Knob::QueueQos0) != Setting::Unwritten;
        if !is_ours || self.check_together(Knob::QueueQos0, &settings).is_none() {
            return settings;
        }
        match self.bounds[Knob::QueueQos0 as usize].min {
            0 => self.limit_within(settings, Knob::QueueQos0, |bounds| bounds.min),
            _ => settings.with(Knob::QueueQos0, Setting::Unwritten),
        }
    }

    /// Leaves the site's `memory_limit` alone where lifting it would leave queued QoS 0 without a
    /// bound.
    fn keep_limit(&self, settings: Settings) -> Settings {
        let is_ours = settings.get(Knob::MemoryLimit) != Setting::Unwritten;
        if is_ours && self.check_together(Knob::MemoryLimit, &settings).is_some() {
            return settings.with(Knob::MemoryLimit, Setting::Unwritten);
        }
        settings
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
