//! Another Debian suite's Mosquitto beside the system's own, by the script that the tests use.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::{BrokerError, io_error};
use super::find::Mosquitto;

const SCRIPT: &str = include_str!("../../../tests/fetch-broker");

/// Unpacks the Mosquitto of a Debian `suite` (`trixie`: 2.0.21) into `dir`, installing nothing.
///
/// Takes some seconds and 40 MB; returns at once where `dir` holds one already.
///
/// # Errors
/// [`BrokerError::Fetch`] with the script's own words: no apt, no network, no such suite, a
/// processor it has no rule for.
pub fn fetch(suite: &str, dir: &Path) -> Result<Mosquitto, BrokerError> {
    let mut script = tempfile::NamedTempFile::new().map_err(io_error("making a temporary file"))?;
    script.write_all(SCRIPT.as_bytes()).map_err(io_error("writing the fetch script"))?;
    let output = Command::new("sh")
        .arg(script.path())
        .arg(suite)
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(io_error("running sh"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(BrokerError::Fetch { status: output.status, message });
    }
    Mosquitto::find(Some(&dir.join("mosquitto")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    #[test]
    fn the_script_says_why_it_failed() {
        let dir = tempfile::tempdir().unwrap();
        let error = fetch("no such suite", dir.path()).unwrap_err();
        assert!(matches!(error, BrokerError::Fetch { .. }), "{error}");
        assert!(
            error.to_string().contains("'no such suite' is not the name of a Debian suite"),
            "{error}"
        );
    }
}
