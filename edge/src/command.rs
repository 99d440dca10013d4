//! Other programs, with an end: none outlives its deadline.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};

/// Most of a program's output that is kept.
const OUTPUT_BYTES_MAX: u64 = 4096;
const POLL: Duration = Duration::from_millis(10);
/// A reader keeps a buffer on its stack, and no more.
const STACK_BYTES: usize = 128 * 1024;

/// Why a program did not do its job.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot start `{program}`: {source}; install it, or correct the configured command")]
    Start {
        /// The program.
        program: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It ended with a failure.
    #[error("`{program}` failed ({status}): {said}")]
    Failed {
        /// The program.
        program: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Start of its standard error.
        said: String,
    },
    /// It did not end.
    #[error("`{program}` did not end within {timeout_s} s and was ended")]
    Late {
        /// The program.
        program: String,
        /// How long was waited.
        timeout_s: u64,
    },
}

/// Whether `program` can be started: a path, or a name that `PATH` knows.
#[must_use]
pub fn is_there(program: &str) -> bool {
    let may = |path: &Path| access(path, AccessFlags::X_OK).is_ok();
    if program.contains('/') {
        return may(Path::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| may(&dir.join(program)))
}

/// Runs a program to its end and returns the start of its standard output.
///
/// # Errors
/// [`CommandError`] where it can't start, fails, or takes longer than `timeout`.
pub fn output(command: Command, timeout: Duration) -> Result<String, CommandError> {
    run_with(command, Stdio::piped(), timeout)
}

/// Runs a program to its end. A daemon that it leaves behind is not waited for.
///
/// # Errors
/// As [`output`].
pub fn run(command: Command, timeout: Duration) -> Result<(), CommandError> {
    run_with(command, Stdio::null(), timeout).map(drop)
}

fn run_with(
    mut command: Command,
    stdout: Stdio,
    timeout: Duration,
) -> Result<String, CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    let mut child = command
        // A group of its own, so that what it starts ends with it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| CommandError::Start { program: program.clone(), source })?;
    let said = child.stdout.take().and_then(reader);
    let complained = child.stderr.take().and_then(reader);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < timeout => thread::sleep(POLL),
            // The readers end with the pipes, which a daemon may still hold: they are not waited
            // for.
            _ => {
                if let Ok(group) = i32::try_from(child.id()) {
                    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
                }
                let _ = child.wait();
                return Err(CommandError::Late { program, timeout_s: timeout.as_secs() });
            }
        }
    };
    if status.success() {
        return Ok(collect(said, started + timeout));
    }
    let said = collect(complained, started + timeout).trim().to_owned();
    Err(CommandError::Failed { program, status, said })
}

/// Reads a pipe, so that it never gets full; `None` where there is no thread for that. It ends with
/// the last process that holds the pipe: the daemon of a restart, at the next one.
fn reader(pipe: impl Read + Send + 'static) -> Option<thread::JoinHandle<String>> {
    let thread = thread::Builder::new().name("reader".into()).stack_size(STACK_BYTES);
    thread.spawn(move || drain(pipe)).ok()
}

fn drain(mut pipe: impl Read) -> String {
    let mut kept = Vec::new();
    let _ = pipe.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut kept);
    // Read on, so that a talkative program is not stopped by a full pipe.
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

/// The text of a reader thread; empty where a daemon left behind keeps the pipe open past
/// `deadline`.
fn collect(reader: Option<thread::JoinHandle<String>>, deadline: Instant) -> String {
    let Some(reader) = reader else { return String::new() };
    while !reader.is_finished() {
        if Instant::now() >= deadline {
            return String::new();
        }
        thread::sleep(Duration::from_millis(1));
    }
    reader.join().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_is_absent_is_told() {
        let absent = output(Command::new("/nonexistent/systemctl"), Duration::from_secs(10));
        assert!(matches!(absent, Err(CommandError::Start { .. })));
    }

    #[test]
    fn output_failure_and_lateness_are_told_apart() {
        let long = Duration::from_secs(10);
        assert_eq!(output(sh("echo 12"), long).unwrap(), "12\n");
        let error = output(sh("echo no such unit >&2; exit 5"), long).unwrap_err().to_string();
        assert!(error.contains("no such unit") && error.contains('5'), "{error}");
        let started = Instant::now();
        let late = output(sh("exec sleep 60"), Duration::from_millis(50));
        assert!(matches!(late, Err(CommandError::Late { .. })));
        assert!(started.elapsed() < long);
        let marked = tempfile::tempdir().unwrap();
        let mark = marked.path().join("mark");
        let script = format!("(sleep 0.3; touch {}) & wait", mark.display());
        let late = output(sh(&script), Duration::from_millis(50));
        assert!(matches!(late, Err(CommandError::Late { .. })));
        thread::sleep(Duration::from_millis(500));
        assert!(!mark.exists(), "what the command started outlived it");
    }

    /// As a restart command that starts the broker itself.
    #[test]
    fn a_daemon_left_behind_is_not_waited_for() {
        let started = Instant::now();
        run(sh("sleep 30 & exit 0"), Duration::from_secs(20)).unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }

    #[test]
    fn a_talkative_program_is_read_to_its_end_but_not_kept() {
        let said = output(sh("yes | head -c 300000"), Duration::from_secs(20)).unwrap();
        assert_eq!(said.len() as u64, OUTPUT_BYTES_MAX);
    }
}
