//! The table of the 11 Mosquitto options: everything about an option derives from its row here.

use crate::fingerprint::Fnv;
use core::fmt;

/// Number of options, of actor outputs and of rows in [`KNOBS`].
pub const KNOB_COUNT: usize = 11;

/// One of the options. The discriminant is the row in [`KNOBS`] and the actor's output index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Knob {
    /// `max_inflight_messages`
    InflightMessagesMax = 0,
    /// `max_inflight_bytes`
    InflightBytesMax,
    /// `max_queued_messages`
    QueuedMessagesMax,
    /// `max_queued_bytes`
    QueuedBytesMax,
    /// `queue_qos0_messages`
    QueueQos0,
    /// `memory_limit`
    MemoryLimit,
    /// `persistence`
    Persistence,
    /// `autosave_interval`
    AutosaveInterval,
    /// `set_tcp_nodelay`
    TcpNodelay,
    /// `max_packet_size`
    PacketSizeMax,
    /// `message_size_limit`
    MessageSizeMax,
}

impl Knob {
    /// All options in the order of [`KNOBS`].
    pub const ALL: [Knob; KNOB_COUNT] = [
        Knob::InflightMessagesMax,
        Knob::InflightBytesMax,
        Knob::QueuedMessagesMax,
        Knob::QueuedBytesMax,
        Knob::QueueQos0,
        Knob::MemoryLimit,
        Knob::Persistence,
        Knob::AutosaveInterval,
        Knob::TcpNodelay,
        Knob::PacketSizeMax,
        Knob::MessageSizeMax,
    ];

    /// The option's row.
    #[must_use]
    pub fn spec(self) -> &'static KnobSpec {
        &KNOBS[self as usize]
    }

    /// The option of that name in `mosquitto.conf`, exact and case-sensitive.
    #[must_use]
    pub fn from_key(key: &str) -> Option<Knob> {
        Knob::ALL.into_iter().find(|knob| knob.spec().key == key)
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec().key)
    }
}

/// What a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Unit {
    /// Messages per client.
    Messages,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// `true` or `false`.
    Switch,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::Messages => "messages",
            Unit::Bytes => "bytes",
            Unit::Seconds => "s",
            Unit::Switch => "true/false",
        })
    }
}

/// How the actor's output spreads over the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Scale {
    /// Equal steps of output multiply the value: the effect goes with the logarithm.
    Log2,
    /// Output above 0 means `true`.
    Switch,
}

/// What the special value 0 means to the broker, and whether it may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Zero {
    /// 0 lifts the limit; the top of the actor's range ([`ZERO_FROM`] and above) means it.
    Unlimited,
    /// "No limit" cannot be written: the top of the range leaves the option out.
    Unwritten,
    /// 0 is legal for the broker and never chosen; the row's `why` says the reason.
    Never,
    /// A switch: 0 is `false`.
    False,
}

/// What it takes to make a written value effective, as measured, not as the man page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Apply {
    /// SIGHUP, for connected clients too.
    Reload,
    /// A restart, which disconnects every client.
    Restart,
}

/// Whether the gateway's agent may move the option without being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Tuned {
    /// Moved by default.
    ByDefault,
    /// Held at the site's value until the operator opts in.
    OptIn,
}

/// One option: range, scale, special value, effect, and why.
#[derive(Debug)]
pub struct KnobSpec {
    /// Which option.
    pub knob: Knob,
    /// Its name in `mosquitto.conf`.
    pub key: &'static str,
    /// What its value counts.
    pub unit: Unit,
    /// Smallest value ever written, besides 0 where [`Zero`] permits it.
    pub min: u64,
    /// Largest value ever written.
    pub max: u64,
    /// The broker's own default where no line is written (2.0.x).
    pub default: u64,
    /// Spread of the actor's output over the range.
    pub scale: Scale,
    /// Meaning of 0.
    pub zero: Zero,
    /// Effect of a change.
    pub apply: Apply,
    /// Whether the agent moves it by default.
    pub tuned: Tuned,
    /// What turning it does, for people.
    pub why: &'static str,
    /// Where the facts of the row come from.
    pub source: &'static str,
}

/// Actor outputs of this value and above mean "no limit" where the row's [`Zero`] has one.
///
/// An eighth of the range: wide enough to be found by exploration, narrow enough to leave the
/// limits 223 steps.
pub const ZERO_FROM: i8 = 96;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const MEASURED: &str = "mosquitto.conf(5); not reloaded by SIGHUP on 2.0.11, 2.0.21 and 2.1.2 (measured: tests/semantics)";
const RELOADED: &str =
    "mosquitto.conf(5); reloaded by SIGHUP on 2.0.11, 2.0.21 and 2.1.2 (measured: tests/semantics)";

/// THE table. Row order is actor output order and part of the model format.
pub static KNOBS: [KnobSpec; KNOB_COUNT] = [
    KnobSpec {
        knob: Knob::InflightMessagesMax,
        key: "max_inflight_messages",
        unit: Unit::Messages,
        min: 8,
        max: 4096,
        default: 20,
        scale: Scale::Log2,
        zero: Zero::Never,
        apply: Apply::Restart,
        tuned: Tuned::ByDefault,
        why: "a wider window hides the link's round trip; under saturation it only ages messages; 0 would be unbounded",
        source: MEASURED,
    },
    KnobSpec {
        knob: Knob::InflightBytesMax,
        key: "max_inflight_bytes",
        unit: Unit::Bytes,
        min: 16 * KIB,
        max: 16 * MIB,
        default: 0,
        scale: Scale::Log2,
        zero: Zero::Unlimited,
        apply: Apply::Restart,
        tuned: Tuned::ByDefault,
        why: "bounds the window by payload, so that large messages do not fill memory; barely enforced on 2.0.11",
        source: MEASURED,
    },
    KnobSpec {
        knob: Knob::QueuedMessagesMax,
        key: "max_queued_messages",
        unit: Unit::Messages,
        min: 100,
        max: 65_536,
        default: 1000,
        scale: Scale::Log2,
        zero: Zero::Never,
        apply: Apply::Restart,
        tuned: Tuned::ByDefault,
        why: "a longer queue survives bursts and outages and makes overload late; it also caps the send buffer, where a small value swallows control packets; 0 disconnects publishers before 2.0.22",
        source: MEASURED,
    },
    KnobSpec {
        knob: Knob::QueuedBytesMax,
        key: "max_queued_bytes",
        unit: Unit::Bytes,
        min: 64 * KIB,
        max: 64 * MIB,
        default: 0,
        scale: Scale::Log2,
        zero: Zero::Unlimited,
        apply: Apply::Restart,
        tuned: Tuned::ByDefault,
        why: "bounds the queue by payload: memory where messages are large",
        source: MEASURED,
    },
    KnobSpec {
        knob: Knob::QueueQos0,
        key: "queue_qos0_messages",
        unit: Unit::Switch,
        min: 0,
        max: 1,
        default: 0,
        scale: Scale::Switch,
        zero: Zero::False,
        apply: Apply::Reload,
        tuned: Tuned::OptIn,
        why: "keeps QoS 0 for offline sessions, bounded by neither queue limit: only with a memory_limit",
        source: RELOADED,
    },
    KnobSpec {
        knob: Knob::MemoryLimit,
        key: "memory_limit",
        unit: Unit::Bytes,
        min: 16 * MIB,
        max: 2048 * MIB,
        default: 0,
        scale: Scale::Log2,
        zero: Zero::Unlimited,
        apply: Apply::Reload,
        tuned: Tuned::OptIn,
        why: "refuses allocations above it; below the current heap it disables the broker, so it stays well above; deleting the line does not lift it, writing 0 does",
        source: RELOADED,
    },
    KnobSpec {
        knob: Knob::Persistence,
        key: "persistence",
        unit: Unit::Switch,
        min: 0,
        max: 1,
        default: 0,
        scale: Scale::Switch,
        zero: Zero::False,
        apply: Apply::Restart,
        tuned: Tuned::OptIn,
        why: "keeps sessions and queues on disk; the broker would reload it, and lose or resurrect state, so it is only ever changed together with a restart",
        source: RELOADED,
    },
    KnobSpec {
        knob: Knob::AutosaveInterval,
        key: "autosave_interval",
        unit: Unit::Seconds,
        min: 60,
        max: 14_400,
        default: 1800,
        scale: Scale::Log2,
        zero: Zero::Never,
        apply: Apply::Reload,
        tuned: Tuned::ByDefault,
        why: "each save stalls the only thread, some 4 ms per MB; a rare one loses more in a crash, 0 all of it",
        source: RELOADED,
    },
    KnobSpec {
        knob: Knob::TcpNodelay,
        key: "set_tcp_nodelay",
        unit: Unit::Switch,
        min: 0,
        max: 1,
        default: 0,
        scale: Scale::Switch,
        zero: Zero::False,
        apply: Apply::Restart,
        tuned: Tuned::ByDefault,
        why: "off, Nagle's algorithm and delayed acknowledgements add some 40 ms to messages that share an instant; on, more packets cost CPU",
        source: MEASURED,
    },
    KnobSpec {
        knob: Knob::PacketSizeMax,
        key: "max_packet_size",
        unit: Unit::Bytes,
        min: 64 * KIB,
        max: 256 * MIB,
        default: 0,
        scale: Scale::Log2,
        zero: Zero::Unwritten,
        apply: Apply::Restart,
        tuned: Tuned::OptIn,
        why: "closes the connection of whoever sends more; \"no limit\" cannot be written",
        source: MEASURED,
    },
    KnobSpec {
        knob: Knob::MessageSizeMax,
        key: "message_size_limit",
        unit: Unit::Bytes,
        min: 64 * KIB,
        max: 268_435_455,
        default: 0,
        scale: Scale::Log2,
        zero: Zero::Unlimited,
        apply: Apply::Reload,
        tuned: Tuned::OptIn,
        why: "silently discards larger payloads of MQTT 3.1.1 publishers while acknowledging them",
        source: RELOADED,
    },
];

/// Identifies the table: a model file for another one is refused.
pub const FINGERPRINT: u32 = fingerprint();

const fn fingerprint() -> u32 {
    let mut hash = Fnv::new().number(ZERO_FROM as u64);
    let mut row = 0;
    while row < KNOB_COUNT {
        let spec = &KNOBS[row];
        hash = hash
            .text(spec.key)
            .number(spec.min)
            .number(spec.max)
            .number(spec.scale as u64)
            .number(spec.zero as u64)
            .number(spec.apply as u64);
        row += 1;
    }
    hash.finish()
}

/// A value that its option's row permits; built by [`KnobSpec`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct KnobValue(u64);

impl KnobValue {
    /// The value in the row's unit; 0 is the broker's special value, a switch is 0 or 1.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Why a value was refused: the row says what would be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OutOfRange {
    /// The option.
    pub knob: Knob,
    /// What was asked for.
    pub value: u64,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spec = self.knob.spec();
        let zero = match spec.zero {
            Zero::Unlimited => ", or 0 for no limit",
            Zero::Unwritten => "; for no limit leave the line out",
            Zero::Never | Zero::False => "",
        };
        write!(
            f,
            "{} {} is outside {} to {} {}{zero}",
            spec.key, self.value, spec.min, spec.max, spec.unit
        )
    }
}

impl core::error::Error for OutOfRange {}

impl KnobSpec {
    /// The value, if the row permits it: `min..=max`, and 0 where [`Zero::Unlimited`].
    ///
    /// # Errors
    /// [`OutOfRange`], which prints the accepted range.
    pub fn value(&self, value: u64) -> Result<KnobValue, OutOfRange> {
        let zero_allowed = matches!(self.zero, Zero::Unlimited);
        if (self.min..=self.max).contains(&value) || (value == 0 && zero_allowed) {
            Ok(KnobValue(value))
        } else {
            Err(OutOfRange { knob: self.knob, value })
        }
    }

    /// The value of an actor output, monotone in `raw` when "no limit" counts as the largest.
    ///
    /// `None` means that the option is left out ([`Zero::Unwritten`]). -128 reads as -127.
    #[must_use]
    pub fn decode(&self, raw: i8) -> Option<KnobValue> {
        let value = u64::from(DECODE[self.knob as usize][raw_index(raw)]);
        match (value, self.zero) {
            (0, Zero::Unwritten) => None,
            _ => Some(KnobValue(value)),
        }
    }

    /// The actor output whose value lies nearest to `value` (nearest by difference, the lower one
    /// of two); the inverse of [`KnobSpec::decode`] on its image. `None`: the option left out.
    #[must_use]
    pub fn encode(&self, value: Option<KnobValue>) -> i8 {
        let wanted = self.order(value.map_or(0, KnobValue::get));
        let row = &DECODE[self.knob as usize][1..];
        let at = row.partition_point(|&entry| self.order(u64::from(entry)) < wanted);
        let index = match (at.checked_sub(1).map(|below| (below, row[below])), row.get(at)) {
            (None, _) => 0,
            (Some((below, _)), None) => self.first_of(row, below),
            (Some((below, low)), Some(&high)) => {
                let low_gap = wanted - self.order(u64::from(low));
                let high_gap = self.order(u64::from(high)) - wanted;
                if high_gap < low_gap { at } else { self.first_of(row, below) }
            }
        };
        i8::try_from(i32::try_from(index).unwrap_or(0) - 127).unwrap_or(i8::MAX)
    }

    /// Lowest index with the value at `index`: one raw stands for each value.
    fn first_of(&self, row: &[u32], index: usize) -> usize {
        let wanted = self.order(u64::from(row[index]));
        row.partition_point(|&entry| self.order(u64::from(entry)) < wanted)
    }

    /// Orders values by effect: "no limit" above every limit.
    #[must_use]
    pub fn order(&self, value: u64) -> u64 {
        match self.zero {
            Zero::Unlimited | Zero::Unwritten if value == 0 => u64::MAX,
            _ => value,
        }
    }
}

const fn raw_index(raw: i8) -> usize {
    // -128..=127 to 0..=255; the table's first two entries are alike.
    (raw as u8 ^ 0x80) as usize
}

/// Values of the 256 actor outputs of every option, index `raw + 128`.
///
/// u32 holds every `max` of [`KNOBS`] (asserted below) at half the flash of u64.
static DECODE: [[u32; 256]; KNOB_COUNT] = decode_tables();

const fn decode_tables() -> [[u32; 256]; KNOB_COUNT] {
    let mut tables = [[0; 256]; KNOB_COUNT];
    let mut row = 0;
    while row < KNOB_COUNT {
        tables[row] = decode_table(&KNOBS[row]);
        row += 1;
    }
    tables
}

const fn decode_table(spec: &KnobSpec) -> [u32; 256] {
    assert!(spec.max <= u32::MAX as u64 && spec.min <= spec.max);
    let has_zero_zone = matches!(spec.zero, Zero::Unlimited | Zero::Unwritten);
    let top = if has_zero_zone { ZERO_FROM as i32 - 1 } else { 127 };
    let mut table = [0; 256];
    let mut raw: i32 = -128;
    while raw <= 127 {
        let step = if raw == -128 { 0 } else { raw + 127 };
        table[(raw + 128) as usize] = match spec.scale {
            Scale::Switch => (raw > 0) as u32,
            Scale::Log2 if raw > top => 0,
            Scale::Log2 => geometric(spec.min, spec.max, step, top + 127),
        };
        raw += 1;
    }
    table
}

/// `min * (max / min)^(step / steps)`, rounded; evaluated at compile time only.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the result lies between min and max, which fit u32 (asserted by the caller)"
)]
const fn geometric(min: u64, max: u64, step: i32, steps: i32) -> u32 {
    if step == steps {
        return max as u32;
    }
    let octaves = log2_const(max as f64 / min as f64);
    let value = min as f64 * exp2_const(octaves * step as f64 / steps as f64);
    (value + 0.5) as u32
}

/// Base-2 logarithm of `x >= 1` by repeated squaring, 40 bits.
const fn log2_const(mut x: f64) -> f64 {
    let mut whole = 0.0;
    while x >= 2.0 {
        x /= 2.0;
        whole += 1.0;
    }
    let (mut fraction, mut bit, mut round) = (0.0, 0.5, 0);
    while round < 40 {
        x *= x;
        if x >= 2.0 {
            x /= 2.0;
            fraction += bit;
        }
        bit /= 2.0;
        round += 1;
    }
    whole + fraction
}

/// `2^x` for `x >= 0` by the series of the exponential on the fraction.
const fn exp2_const(x: f64) -> f64 {
    let mut whole = x;
    let mut factor = 1.0;
    while whole >= 1.0 {
        whole -= 1.0;
        factor *= 2.0;
    }
    let y = whole * core::f64::consts::LN_2;
    let (mut sum, mut term, mut n) = (1.0, 1.0, 1.0);
    while n < 20.0 {
        term *= y / n;
        sum += term;
        n += 1.0;
    }
    factor * sum
}

/// A set of options, one bit each, bit 0 for the first row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct KnobSet(u16);

impl KnobSet {
    /// No option.
    pub const EMPTY: KnobSet = KnobSet(0);

    /// The options that the agent moves without being told ([`Tuned::ByDefault`]).
    #[must_use]
    pub fn tuned_by_default() -> KnobSet {
        KNOBS
            .iter()
            .filter(|spec| spec.tuned == Tuned::ByDefault)
            .fold(KnobSet::EMPTY, |set, spec| set.with(spec.knob))
    }

    /// All options.
    #[must_use]
    pub fn all() -> KnobSet {
        Knob::ALL.into_iter().fold(KnobSet::EMPTY, KnobSet::with)
    }

    /// The set and `knob`.
    #[must_use]
    pub const fn with(self, knob: Knob) -> KnobSet {
        KnobSet(self.0 | 1 << knob as u8)
    }

    /// The set without `knob`.
    #[must_use]
    pub const fn without(self, knob: Knob) -> KnobSet {
        KnobSet(self.0 & !(1 << knob as u8))
    }

    /// Whether `knob` is in the set.
    #[must_use]
    pub const fn contains(self, knob: Knob) -> bool {
        self.0 & (1 << knob as u8) != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bits, as stored in model files.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The set of `bits`; bits beyond the table are dropped.
    #[must_use]
    pub fn from_bits(bits: u16) -> KnobSet {
        KnobSet(bits & KnobSet::all().0)
    }

    /// The members in table order.
    pub fn iter(self) -> impl Iterator<Item = Knob> {
        Knob::ALL.into_iter().filter(move |&knob| self.contains(knob))
    }
}

#[cfg(test)]
#[path = "knobs_tests.rs"]
mod tests;
