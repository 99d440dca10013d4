//! A trace (`.btt`): what an agent saw at each decision, to be replayed elsewhere.
//!
//! ```text
//! "BTT1" | format version u16 | frame of the head | frame of a record | ...
//! frame: payload length u16 | payload | CRC-32 u32 of both
//! ```
//! All integers little-endian; payloads are postcard. Every record stands alone, so that a trace
//! may be cut anywhere between two of them. `models/TRACE.md` is the specification.
//!
//! Reading borrows the trace and allocates nothing: it may lie in flash. What was read was checked:
//! settings and bounds are those that the knob table permits.

use crate::controller::Health;
use crate::envelope::{Bounds, Envelope};
use crate::features::Targets;
use crate::fingerprint::Fnv;
use crate::knobs::{self, KNOB_COUNT, Knob, KnobSet};
use crate::model::checksum;
use crate::sample::{
    Metrics, OwnTraffic, ProbeSample, ProcSample, SYS_COUNT, SYS_TOPICS, Sample, SysFrame,
};
use crate::settings::{Settings, SiteValues};
use core::fmt;
use embassy_time::Instant;
use serde::{Deserialize, Serialize};

/// First bytes of every trace.
pub const MAGIC: [u8; 4] = *b"BTT1";
/// The format version that this program reads and writes.
pub const FORMAT_VERSION: u16 = 2;
/// A buffer of this size holds the magic, the version and the head, or any one record.
pub const FRAME_BYTES_MAX: usize = 1024;
/// Largest time of a sample, some 285 years, so that no deadline reckoned from it overflows.
pub const AT_US_MAX: u64 = 1 << 53;

const PREFIX_BYTES: usize = MAGIC.len() + 2;
const LENGTH_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 4;

/// What holds for a whole trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Time between decisions.
    pub interval_ms: u32,
    /// What the site asked for.
    pub targets: Targets,
    /// The bounds in force, with what holds for options without a line; what is measured
    /// (`heap_bytes_max`, `packet_bytes_max`) is not part of it and reads as `None`.
    pub envelope: Envelope,
}

/// One decision's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What was seen.
    pub sample: Sample,
    /// What stood in the drop-in.
    pub written: Settings,
    /// What was in force in the running broker.
    pub effective: Settings,
    /// Whether the broker answered at all.
    pub is_serving: bool,
    /// Whether a restart would have lost sessions or messages.
    pub state_at_risk: bool,
    /// Whether the site forbade restarts then.
    pub quiet_hours: bool,
}

/// Why a trace is refused, or where it ends to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum TraceError {
    /// Not a trace.
    Magic,
    /// A format version that this program does not read.
    Version {
        /// Version in the file.
        found: u16,
    },
    /// The trace ends within a frame: the recorder was cut short.
    Truncated,
    /// The bytes of a frame are not those that were written.
    Checksum,
    /// A payload that does not follow the encoding.
    Encoding,
    /// Recorded with another knob table or other `$SYS` topics.
    Tables {
        /// Fingerprint in the file.
        found: u32,
        /// Fingerprint of this program's tables.
        expected: u32,
    },
    /// A value that no recorder writes.
    Value {
        /// Where it stands.
        field: &'static str,
    },
    /// The output buffer is too small; see [`FRAME_BYTES_MAX`].
    BufferTooSmall,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            TraceError::Magic => f.write_str("not a trace: it does not begin with \"BTT1\""),
            TraceError::Version { found } => write!(
                f,
                "trace format version {found}, this program reads version {FORMAT_VERSION}: \
                 record it again"
            ),
            TraceError::Truncated => f.write_str("the trace is cut off within a record"),
            TraceError::Checksum => f.write_str("the trace is damaged: a checksum does not fit"),
            TraceError::Encoding => f.write_str("the trace does not decode"),
            TraceError::Tables { found, expected } => write!(
                f,
                "the trace was recorded with tables {found:08x}, this program has {expected:08x}: \
                 use the same version for both"
            ),
            TraceError::Value { field } => write!(f, "the trace holds an impossible `{field}`"),
            TraceError::BufferTooSmall => {
                write!(f, "a record needs a buffer of {FRAME_BYTES_MAX} bytes")
            }
        }
    }
}

impl core::error::Error for TraceError {}

/// Identifies the tables that a trace's rows refer to.
#[must_use]
pub fn fingerprint() -> u32 {
    SYS_TOPICS
        .iter()
        .fold(Fnv::new().number(u64::from(knobs::FINGERPRINT)), |hash, (_, topic)| hash.text(topic))
        .finish()
}

/// The head on the wire.
#[derive(Serialize, Deserialize)]
struct WireHead {
    #[serde(with = "postcard::fixint::le")]
    tables: u32,
    interval_ms: u32,
    deadline_ms: u32,
    rss_limit_mib: u32,
    opted_in: u16,
    /// Lowest and highest value, and whether "no limit" is permitted.
    bounds: [(u64, u64, bool); KNOB_COUNT],
    site: [u64; KNOB_COUNT],
}

/// A record on the wire.
#[derive(Serialize, Deserialize)]
struct WireRecord {
    at_us: u64,
    sys_at_us: Option<u64>,
    sys: [Option<u64>; SYS_COUNT],
    /// Pid, start ticks, resident bytes, CPU microseconds, context switches.
    proc: Option<(u32, u64, u64, u64, u64)>,
    probe_us: [Option<u32>; 2],
    #[serde(with = "WireOwn")]
    own: OwnTraffic,
    written: [Option<u64>; KNOB_COUNT],
    effective: [Option<u64>; KNOB_COUNT],
    /// Bit 0: serving; 1: state at risk; 2: quiet hours.
    flags: u8,
}

/// The layout of [`OwnTraffic`]: the fields in this order.
#[derive(Serialize, Deserialize)]
#[serde(remote = "OwnTraffic")]
struct WireOwn {
    connections: u32,
    subscriptions: u32,
    publish_sent: u64,
    publish_received: u64,
    publish_bytes_sent: u64,
    packets_sent: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

impl Head {
    /// Writes the beginning of a trace into `out` and returns its length.
    ///
    /// # Errors
    /// [`TraceError::BufferTooSmall`].
    pub fn write(&self, out: &mut [u8]) -> Result<usize, TraceError> {
        let envelope = &self.envelope;
        let wire = WireHead {
            tables: fingerprint(),
            interval_ms: self.interval_ms,
            deadline_ms: self.targets.deadline_ms,
            rss_limit_mib: self.targets.rss_limit_mib,
            opted_in: envelope.opted_in.bits(),
            bounds: envelope.bounds.map(|b| (b.min(), b.max(), b.unlimited())),
            site: envelope.site.0,
        };
        let (prefix, rest) =
            out.split_at_mut_checked(PREFIX_BYTES).ok_or(TraceError::BufferTooSmall)?;
        prefix[..MAGIC.len()].copy_from_slice(&MAGIC);
        prefix[MAGIC.len()..].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        Ok(PREFIX_BYTES + write_frame(&wire, rest)?)
    }

    fn of_wire(wire: &WireHead) -> Result<Head, TraceError> {
        let (found, expected) = (wire.tables, fingerprint());
        if found != expected {
            return Err(TraceError::Tables { found, expected });
        }
        let mut bounds = Knob::ALL.map(Bounds::of);
        for (knob, (min, max, unlimited)) in Knob::ALL.into_iter().zip(wire.bounds) {
            bounds[knob as usize] = Bounds::narrowed(knob, min, max, unlimited)
                .map_err(|_| TraceError::Value { field: "bounds" })?;
        }
        let opted_in = KnobSet::from_bits(wire.opted_in);
        if opted_in.bits() != wire.opted_in {
            return Err(TraceError::Value { field: "opted_in" });
        }
        let site = SiteValues(wire.site);
        Ok(Head {
            interval_ms: wire.interval_ms,
            targets: Targets { deadline_ms: wire.deadline_ms, rss_limit_mib: wire.rss_limit_mib },
            envelope: Envelope { opted_in, bounds, site, ..Envelope::default() },
        })
    }
}

impl Record {
    /// Writes the record into `out` and returns its length.
    ///
    /// # Errors
    /// [`TraceError::BufferTooSmall`]; [`TraceError::Value`] for a time above [`AT_US_MAX`].
    pub fn write(&self, out: &mut [u8]) -> Result<usize, TraceError> {
        let sample = &self.sample;
        if sample.at.as_micros() > AT_US_MAX {
            return Err(TraceError::Value { field: "at_us" });
        }
        let bit = |is_set: bool, bit: u8| u8::from(is_set) << bit;
        let wire = WireRecord {
            at_us: sample.at.as_micros(),
            sys_at_us: sample.sys.at.map(|at| at.as_micros()),
            sys: *sample.sys.values(),
            proc: sample.proc.map(|proc| {
                let ProcSample { pid, start_ticks, rss_bytes, cpu_us, context_switches } = proc;
                (pid, start_ticks, rss_bytes, cpu_us, context_switches)
            }),
            probe_us: [sample.probe.latency_us_qos0, sample.probe.latency_us_qos1],
            own: sample.own,
            written: Knob::ALL.map(|knob| self.written.get(knob).value()),
            effective: Knob::ALL.map(|knob| self.effective.get(knob).value()),
            flags: bit(self.is_serving, 0) | bit(self.state_at_risk, 1) | bit(self.quiet_hours, 2),
        };
        write_frame(&wire, out)
    }

    fn of_wire(wire: &WireRecord) -> Result<Record, TraceError> {
        let sys_at = wire.sys_at_us.map(|at_us| instant(at_us, "sys_at_us")).transpose()?;
        if wire.flags >> 3 != 0 {
            return Err(TraceError::Value { field: "flags" });
        }
        let flag = |bit: u8| wire.flags >> bit & 1 == 1;
        let [latency_us_qos0, latency_us_qos1] = wire.probe_us;
        let sample = Sample {
            at: instant(wire.at_us, "at_us")?,
            sys: SysFrame::new(wire.sys, sys_at),
            proc: wire.proc.map(|(pid, start_ticks, rss_bytes, cpu_us, context_switches)| {
                ProcSample { pid, start_ticks, rss_bytes, cpu_us, context_switches }
            }),
            probe: ProbeSample { latency_us_qos0, latency_us_qos1 },
            own: wire.own,
        };
        Ok(Record {
            sample,
            written: settings(&wire.written, "written")?,
            effective: settings(&wire.effective, "effective")?,
            is_serving: flag(0),
            state_at_risk: flag(1),
            quiet_hours: flag(2),
        })
    }

    /// How the broker did, as the controller weighs it.
    #[must_use]
    pub fn health(&self, metrics: &Metrics, targets: &Targets) -> Health {
        Health::of(metrics, targets, self.is_serving)
    }
}

fn instant(at_us: u64, field: &'static str) -> Result<Instant, TraceError> {
    if at_us <= AT_US_MAX {
        Ok(Instant::from_micros(at_us))
    } else {
        Err(TraceError::Value { field })
    }
}

fn settings(
    values: &[Option<u64>; KNOB_COUNT],
    field: &'static str,
) -> Result<Settings, TraceError> {
    let mut settings = Settings::UNWRITTEN;
    for (knob, value) in Knob::ALL.into_iter().zip(values) {
        if let Some(value) = *value {
            settings.set(knob, value).map_err(|_| TraceError::Value { field })?;
        }
    }
    Ok(settings)
}

fn write_frame(payload: &impl Serialize, out: &mut [u8]) -> Result<usize, TraceError> {
    const SMALL: TraceError = TraceError::BufferTooSmall;
    let room = out.get_mut(LENGTH_BYTES..).ok_or(SMALL)?;
    let bytes = postcard::to_slice(payload, room).map_err(|_| SMALL)?.len();
    let length = u16::try_from(bytes).map_err(|_| SMALL)?;
    out[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    let end = LENGTH_BYTES + bytes;
    let crc = checksum(&out[..end]).to_le_bytes();
    out.get_mut(end..end + CHECKSUM_BYTES).ok_or(SMALL)?.copy_from_slice(&crc);
    Ok(end + CHECKSUM_BYTES)
}

/// The first frame's payload, and what follows the frame.
fn read_frame<'t, T: Deserialize<'t>>(bytes: &'t [u8]) -> Result<(T, &'t [u8]), TraceError> {
    let (length, _) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or(TraceError::Truncated)?;
    let end = LENGTH_BYTES + usize::from(u16::from_le_bytes(*length));
    let (checked, rest) = bytes.split_at_checked(end).ok_or(TraceError::Truncated)?;
    let (crc, rest) = rest.split_first_chunk::<CHECKSUM_BYTES>().ok_or(TraceError::Truncated)?;
    if checksum(checked) != u32::from_le_bytes(*crc) {
        return Err(TraceError::Checksum);
    }
    match postcard::take_from_bytes(&checked[LENGTH_BYTES..]) {
        Ok((payload, [])) => Ok((payload, rest)),
        _ => Err(TraceError::Encoding),
    }
}

/// A trace with a sound head, borrowing its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace<'t> {
    head: Head,
    records: &'t [u8],
}

impl<'t> Trace<'t> {
    /// Reads the head; the records are checked one by one as they are read. Never panics.
    ///
    /// # Errors
    /// [`TraceError`] where the bytes do not begin as a trace of this program's tables does.
    pub fn read(bytes: &'t [u8]) -> Result<Self, TraceError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(TraceError::Magic)?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(TraceError::Truncated)?;
        let found = u16::from_le_bytes(*version);
        if found != FORMAT_VERSION {
            return Err(TraceError::Version { found });
        }
        let (wire, records) = read_frame(rest)?;
        Ok(Trace { head: Head::of_wire(&wire)?, records })
    }

    /// What holds for the whole trace.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The records in their order; ends after the first that is not whole.
    #[must_use]
    pub const fn records(&self) -> Records<'t> {
        Records { rest: self.records }
    }
}

/// Reads the records of a [`Trace`].
#[derive(Clone, Debug)]
pub struct Records<'t> {
    rest: &'t [u8],
}

impl Iterator for Records<'_> {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = read_frame(self.rest).and_then(|(wire, rest)| {
            self.rest = rest;
            Record::of_wire(&wire)
        });
        if read.is_err() {
            self.rest = &[];
        }
        Some(read)
    }
}

impl core::iter::FusedIterator for Records<'_> {}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
