//! A bar on stderr for verbs that take long; a line in the log now and then where nobody sees it.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Least time between two lines in the log.
const SAID_EVERY: Duration = Duration::from_secs(30);

/// Bar, share, time left, and what is going on.
const TEMPLATE: &str = "[{bar:30}] {percent:>3} % ETA {eta} {msg}";

/// All bars of the program: whoever writes to stderr has to wipe them first.
fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Shows no bars from now on: for machines that read the result.
pub(crate) fn hide() {
    bars().set_draw_target(ProgressDrawTarget::hidden());
}

/// How far a run is; the bar goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    /// When the log last told of it.
    said: Mutex<Instant>,
}

impl Progress {
    /// A bar that is full at `length`.
    #[must_use]
    pub(crate) fn new(length: u64) -> Progress {
        let style = ProgressStyle::with_template(TEMPLATE)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = bars().add(ProgressBar::new(length).with_style(style));
        Progress { bar, said: Mutex::new(Instant::now()) }
    }

    /// Moves it to `position` and says what is going on.
    pub(crate) fn set(&self, position: u64, message: String) {
        if self.bar.is_hidden() && self.is_due() {
            let length = self.bar.length().unwrap_or(position);
            tracing::info!("{message}: {position} of {length}");
        }
        self.bar.set_message(message);
        self.bar.set_position(position);
    }

    /// Whether the log was told long ago; it counts as told now.
    fn is_due(&self) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = said.elapsed() >= SAID_EVERY;
        if is_due {
            *said = Instant::now();
        }
        is_due
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        bars().remove(&self.bar);
    }
}

/// Stderr for the log, whose lines stand above the bars.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bars().suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_sound() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn a_bar_that_nobody_sees_can_be_moved() {
        hide();
        let progress = Progress::new(10);
        progress.set(5, "half".to_owned());
        assert_eq!((progress.bar.position(), progress.bar.is_hidden()), (5, true));
    }
}
