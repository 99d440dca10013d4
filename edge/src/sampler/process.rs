//! What `/proc` says of one process.
//!
//! The agent asks at each decision, so this reads into buffers on the stack and takes only the lines
//! that count: procfs makes a map of all of them, some 150 allocations a time.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};

use brokertuner_core::sample::ProcSample;

use crate::pid::ProcessId;

const KIB: u64 = 1024;
const US_PER_S: u64 = 1_000_000;

/// Longest `stat`: a name of 64 bytes and 51 numbers of at most 20 digits.
const STAT_BYTES_MAX: usize = 2048;
/// What of `status` is looked at in one piece; longer lines (a user's groups) are passed over.
const STATUS_CHUNK_BYTES: usize = 2048;
/// `/proc/4194304/status`, and room.
const PATH_BYTES_MAX: usize = 40;

/// Memory, CPU time and context switches of `process`.
///
/// # Errors
/// Where it has gone (also where its pid now belongs to another), or `/proc` hides it.
pub fn read(process: ProcessId) -> io::Result<ProcSample> {
    with_stat(process.pid, |stat| {
        if stat.start_ticks != process.start_ticks {
            return Err(ErrorKind::NotFound.into());
        }
        figures(&stat, open(process.pid, "status")?)
    })
}

/// What of `/proc/PID/stat` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'t> {
    /// Process id.
    pub pid: i32,
    /// The kernel's name for it, which need not be UTF-8.
    pub name: &'t [u8],
    /// Its state, as in `S`.
    pub state: u8,
    /// Its parent's process id.
    pub parent: i32,
    /// User and system time, in clock ticks.
    pub cpu_ticks: u64,
    /// Start time, in clock ticks after boot.
    pub start_ticks: u64,
}

impl<'t> Stat<'t> {
    /// Reads the text of `stat`; `None` where a field is missing or no number.
    #[must_use]
    pub fn parse(text: &'t [u8]) -> Option<Self> {
        // The name may hold anything, parentheses and blanks among it: it ends at the last one.
        let (open, close) = (
            text.iter().position(|&byte| byte == b'(')?,
            text.iter().rposition(|&byte| byte == b')')?,
        );
        let name = text.get(open + 1..close)?;
        let pid = number(text[..open].strip_suffix(b" ")?)?;
        let rest = text[close + 1..].strip_prefix(b" ")?;
        let mut fields = rest.split(u8::is_ascii_whitespace);
        let &[state] = fields.next()? else { return None };
        let parent = number(fields.next()?)?;
        // Fields 14 and 15 of proc(5), and 22: what is skipped lies between.
        let (user, system): (u64, u64) = (number(fields.nth(9)?)?, number(fields.next()?)?);
        let start_ticks = number(fields.nth(6)?)?;
        // Another follows: else this one may have been cut short.
        fields.next()?;
        let cpu_ticks = user.saturating_add(system);
        Some(Self { pid, name, state, parent, cpu_ticks, start_ticks })
    }

    /// It has ended, and its parent has yet to hear of it.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Reads the `stat` of a process and hands it on.
///
/// # Errors
/// Where there is no such process, `/proc` hides it, or the text is not what the kernel writes.
pub(crate) fn with_stat<T>(
    pid: i32,
    use_it: impl FnOnce(Stat<'_>) -> io::Result<T>,
) -> io::Result<T> {
    let mut file = open(pid, "stat")?;
    let (mut text, mut length) = ([0; STAT_BYTES_MAX], 0);
    loop {
        match file.read(&mut text[length..])? {
            0 => break,
            read => length += read,
        }
    }
    let stat = Stat::parse(&text[..length]).ok_or(ErrorKind::InvalidData)?;
    use_it(stat)
}

/// The figures of a process from its `stat` and the text of its `status`.
///
/// # Errors
/// Where `status` can't be read.
pub fn figures(stat: &Stat<'_>, mut status: impl io::Read) -> io::Result<ProcSample> {
    // A process that is ending has no memory left.
    let (mut rss_kib, mut context_switches) = (0, 0_u64);
    let mut take = |line: &[u8]| {
        if let Some(value) = figure(line, b"VmRSS:") {
            rss_kib = value;
        }
        for name in [&b"voluntary_ctxt_switches:"[..], b"nonvoluntary_ctxt_switches:"] {
            let switches = figure(line, name).unwrap_or(0);
            context_switches = context_switches.saturating_add(switches);
        }
    };
    let (mut chunk, mut length) = ([0; STATUS_CHUNK_BYTES], 0);
    loop {
        let read = status.read(&mut chunk[length..])?;
        length += read;
        let end = chunk[..length].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        chunk[..end].split(|&byte| byte == b'\n').for_each(&mut take);
        if read == 0 {
            take(&chunk[end..length]);
            break;
        }
        chunk.copy_within(end..length, 0);
        length -= end;
        if length == chunk.len() {
            // A line that counts is short.
            length = 0;
        }
    }
    Ok(ProcSample {
        pid: stat.pid.unsigned_abs(),
        start_ticks: stat.start_ticks,
        rss_bytes: rss_kib.saturating_mul(KIB),
        cpu_us: stat.cpu_ticks.saturating_mul(US_PER_S / procfs::ticks_per_second().max(1)),
        context_switches,
    })
}

/// A file of a process.
fn open(pid: i32, name: &str) -> io::Result<File> {
    let mut path = [0; PATH_BYTES_MAX];
    let mut rest = &mut path[..];
    write!(rest, "/proc/{pid}/{name}")?;
    let left = rest.len();
    let path = std::str::from_utf8(&path[..PATH_BYTES_MAX - left]);
    File::open(path.map_err(|_| ErrorKind::InvalidInput)?)
}

/// The number behind a word at the beginning of a line.
fn figure(line: &[u8], name: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(name)?.trim_ascii_start();
    number(rest.split(u8::is_ascii_whitespace).next()?)
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::pid;
    use procfs::process::Process;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    const STAT: &[u8] =
        b"812 (mosq) (x) S 1 812 812 0 -1 4194560 900 0 2 0 33 21 0 0 20 0 1 0 1234 24051\n";

    #[test]
    fn a_stat_that_was_cut_short_is_an_error() {
        let stat = Stat::parse(STAT).unwrap();
        assert_eq!(
            (stat.pid, stat.name, stat.state, stat.parent),
            (812, &b"mosq) (x"[..], b'S', 1)
        );
        assert_eq!((stat.cpu_ticks, stat.start_ticks), (54, 1234));
        let numbers = STAT.len() - b" 24051\n".len();
        for length in 0..=numbers {
            assert_eq!(Stat::parse(&STAT[..length]), None, "{length}");
        }
        for text in ["(a) S", " (a)", "1 (a)", "1 )a( S", "1 (a)\u{e9} S", "1 (a) b", "1 (a) SS 1"]
        {
            assert_eq!(Stat::parse(text.as_bytes()), None, "{text}");
        }
    }

    /// procfs reads the same files by itself. Not this very process: an emulator makes up some of
    /// its files.
    #[test]
    fn a_process_has_memory_and_a_past() {
        let mut cat =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // From here on it only waits.
        cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let own = Process::new(i32::try_from(cat.id()).unwrap()).unwrap();
        let process = pid::alive(own.pid).unwrap().unwrap();
        let sample = read(process).unwrap();
        assert!(sample.rss_bytes > 100 * KIB, "{sample:?}");
        let (stat, status) = (own.stat().unwrap(), own.status().unwrap());
        assert_eq!(sample.start_ticks, stat.starttime);
        let named = with_stat(own.pid, |stat| Ok((stat.name.to_vec(), stat.parent))).unwrap();
        assert_eq!(named, (stat.comm.into_bytes(), stat.ppid));
        let theirs = status.vmrss.unwrap() * KIB;
        assert!(sample.rss_bytes.abs_diff(theirs) < theirs / 2, "{sample:?}, {theirs}");
        let switches = status.voluntary_ctxt_switches.unwrap();
        assert!(sample.context_switches <= switches + status.nonvoluntary_ctxt_switches.unwrap());
        let other = ProcessId { start_ticks: process.start_ticks + 1, ..process };
        assert!(read(other).is_err(), "another process with the same pid");
        drop(cat.stdin.take());
        cat.wait().unwrap();
    }

    /// A reader that gives its text in pieces of one size.
    struct Pieces<'t>(&'t [u8], usize);

    impl io::Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(into.len());
            into[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    /// However it comes, also behind a line that is longer than what is read at once.
    #[test]
    fn figures_are_found_wherever_they_stand() {
        let stat = Stat::parse(STAT).unwrap();
        for groups in [0, 3, 700, STATUS_CHUNK_BYTES, 10_000] {
            let text = format!(
                "Name:\tVmRSS:\nGroups:\t{}\nVmRSS:\t    4321 kB\nThreads:\t1\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n",
                "1000 ".repeat(groups)
            );
            for piece in [1, 7, 1000, 100_000] {
                let found = figures(&stat, Pieces(text.as_bytes(), piece)).unwrap();
                let switches = found.context_switches;
                assert_eq!((found.rss_bytes, switches), (4321 * KIB, 42), "{groups}, {piece}");
            }
        }
        assert_eq!(figures(&stat, &b""[..]).unwrap().rss_bytes, 0, "it is ending");
    }
}
