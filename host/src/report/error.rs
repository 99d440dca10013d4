//! Why there is no report.

use super::LeftOut;
use std::path::PathBuf;

/// Why there is no report; nothing was written then.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A path that is no kind of file that this program knows.
    #[error(
        "{}: not a file that a report is made of; give result files of `host evaluate` (.jsonl), \
         folders of `host train`, files of `host calibrate --check` (.check.json), or a folder \
         that has them",
        path.display()
    )]
    Unknown {
        /// What was given.
        path: PathBuf,
    },
    /// A file beyond what is read.
    #[error("{}: larger than {} MiB; give a smaller file", path.display(), limit_bytes >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// A line that cannot be used.
    #[error("{}: line {line}: {reason}; {remedy}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// More than a page can show.
    #[error("{what}: more than {limit}; give fewer files, or name them in place of their folder")]
    TooMany {
        /// Of what.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// An option that fits nothing in the files.
    #[error("{option} {name:?}: {reason}; there are: {known}")]
    NoSuch {
        /// The option.
        option: &'static str,
        /// Its value.
        name: String,
        /// Why it does not fit.
        reason: &'static str,
        /// What would.
        known: String,
    },
    /// Nothing to show.
    #[error(
        "nothing to report{}; run `host evaluate`, `host train` or `host calibrate --check` first, \
         or name their files",
        list(left_out)
    )]
    Nothing {
        /// What was seen, and why it is of no use.
        left_out: Vec<LeftOut>,
    },
    /// A plot could not be drawn.
    #[error("cannot draw {plot}: {reason}; this is a fault of the program, please report it")]
    Draw {
        /// Which plot.
        plot: String,
        /// What the library says.
        reason: String,
    },
}

fn list(left_out: &[LeftOut]) -> String {
    let shown: Vec<String> =
        left_out.iter().map(|LeftOut { what, why }| format!("{what}: {why}")).collect();
    if shown.is_empty() { String::new() } else { format!(" ({})", shown.join("; ")) }
}
