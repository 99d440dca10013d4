//! What `/proc` says of one process.

use std::io::Read as _;

use brokertuner_core::sample::ProcSample;
use procfs::process::{Process, Stat, Status};
use procfs::{FromRead, ProcError, ProcResult};

use crate::pid::ProcessId;

const KIB: u64 = 1024;
const US_PER_S: u64 = 1_000_000;

/// Memory, CPU time and context switches of `process`.
///
/// # Errors
/// Where it has gone (also where its pid now belongs to another), or `/proc` hides it.
pub fn read(process: ProcessId) -> ProcResult<ProcSample> {
    let entry = Process::new(process.pid)?;
    let stat = stat_of(&entry)?;
    if stat.starttime != process.start_ticks {
        return Err(ProcError::NotFound(None));
    }
    Ok(figures(&stat, &entry.status()?))
}

/// `stat` of a process.
pub(crate) fn stat_of(process: &Process) -> ProcResult<Stat> {
    let mut text = Vec::new();
    process.open_relative("stat")?.read_to_end(&mut text)?;
    parse_stat(&text)
}

/// `stat` from its text. procfs takes the parentheses around the name and the blanks beside them for
/// granted, and panics where text that was cut short lacks them.
///
/// # Errors
/// Where a field is missing or no number.
pub fn parse_stat(text: &[u8]) -> ProcResult<Stat> {
    let text = String::from_utf8_lossy(text);
    let line = text.trim();
    let (open, close) = (line.find('('), line.rfind(')'));
    let is_whole = open.zip(close).is_some_and(|(open, close)| {
        open < close && line[..open].ends_with(' ') && line[close + 1..].starts_with(' ')
    });
    if is_whole { Stat::from_read(line.as_bytes()) } else { Err(ProcError::Incomplete(None)) }
}

/// The figures of a process from its `stat` and `status`.
#[must_use]
pub fn figures(stat: &Stat, status: &Status) -> ProcSample {
    let ticks = stat.utime.saturating_add(stat.stime);
    let switches = [status.voluntary_ctxt_switches, status.nonvoluntary_ctxt_switches];
    ProcSample {
        pid: stat.pid.unsigned_abs(),
        start_ticks: stat.starttime,
        // A process that is ending has none left.
        rss_bytes: status.vmrss.unwrap_or(0).saturating_mul(KIB),
        cpu_us: ticks.saturating_mul(US_PER_S / procfs::ticks_per_second().max(1)),
        context_switches: switches.into_iter().flatten().fold(0, u64::saturating_add),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::pid;

    #[test]
    fn a_stat_that_was_cut_short_is_an_error() {
        let whole = std::fs::read("/proc/self/stat").unwrap();
        assert!(parse_stat(&whole).is_ok());
        for length in 0..60 {
            assert!(parse_stat(&whole[..length]).is_err(), "{length}");
        }
        for text in ["(a) S", " (a)", "1 (a)", "1 )a( S", "1 (a)\u{e9} S", "1 (a) b"] {
            assert!(parse_stat(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn this_very_process_has_memory_and_a_past() {
        let process = pid::alive(i32::try_from(std::process::id()).unwrap()).unwrap().unwrap();
        let sample = read(process).unwrap();
        assert!(sample.rss_bytes > 100 * KIB, "{sample:?}");
        assert_eq!(sample.start_ticks, process.start_ticks);
        let other = ProcessId { start_ticks: process.start_ticks + 1, ..process };
        assert!(read(other).is_err(), "another process with the same pid");
    }
}
