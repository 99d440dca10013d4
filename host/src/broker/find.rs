//! Finding a Mosquitto and telling its version.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::{BrokerError, io_error};

/// Searched after `PATH`, which for ordinary users often lacks them.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// A Mosquitto executable that was seen to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mosquitto {
    path: PathBuf,
    version: Version,
}

/// A broker's version, such as 2.0.21.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes with incompatible behaviour.
    pub major: u16,
    /// Changes with new behaviour.
    pub minor: u16,
    /// Changes with repairs.
    pub patch: u16,
}

impl Mosquitto {
    /// Takes the executable at `path`, else the first `mosquitto` of `PATH`, `/usr/sbin` and
    /// `/usr/local/sbin`.
    ///
    /// # Errors
    /// [`BrokerError::NotFound`] with the install command; [`BrokerError::Io`] and
    /// [`BrokerError::NotMosquitto`] where what is there cannot be run or is something else.
    pub fn find(path: Option<&Path>) -> Result<Self, BrokerError> {
        let path = match path {
            Some(path) => path.to_path_buf(),
            None => search()?,
        };
        let version = version_of(&path)?;
        Ok(Self { path, version })
    }

    /// The executable.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it calls itself.
    pub fn version(&self) -> Version {
        self.version
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

fn search() -> Result<PathBuf, BrokerError> {
    let in_path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        env::split_paths(&in_path).chain(FOLDERS.map(PathBuf::from)).collect();
    folders.iter().map(|folder| folder.join("mosquitto")).find(|file| file.is_file()).ok_or_else(
        || {
            let looked: Vec<String> =
                folders.iter().map(|folder| folder.display().to_string()).collect();
            BrokerError::NotFound { looked: looked.join(", ") }
        },
    )
}

/// `-h` is the one option that prints the version and starts nothing; its exit status differs by
/// version.
fn version_of(path: &Path) -> Result<Version, BrokerError> {
    let output = Command::new(path)
        .arg("-h")
        .stdin(Stdio::null())
        .output()
        .map_err(io_error(format!("running {} -h", path.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find_map(parse_version).ok_or_else(|| BrokerError::NotMosquitto {
        path: path.to_path_buf(),
        output: text.lines().next().unwrap_or_default().to_owned(),
    })
}

/// Reads `mosquitto version 2.0.21`; anything after the third number (`-rc1`, `+dfsg`) is left out.
fn parse_version(line: &str) -> Option<Version> {
    let mut parts = line.strip_prefix("mosquitto version ")?.splitn(3, '.');
    let mut next = || {
        let part = parts.next()?;
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    };
    Some(Version { major: next()?, minor: next()?, patch: next()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let read = |text: &str| parse_version(&format!("mosquitto version {text}"));
        assert_eq!(read("2.0.21").unwrap().to_string(), "2.0.21");
        assert_eq!(read("2.1.0-rc1"), read("2.1.0"));
        assert!(read("2.0.9").unwrap() < read("2.0.21").unwrap());
        for text in ["", "2", "2.1", "x.1.2", "2..1", "99999.0.0"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn another_program_is_refused_by_name() {
        let error = Mosquitto::find(Some(Path::new("/bin/true"))).unwrap_err();
        assert!(matches!(error, BrokerError::NotMosquitto { .. }), "{error}");
        assert!(error.to_string().contains("/bin/true"), "{error}");
        let error = Mosquitto::find(Some(Path::new("/nonexistent/mosquitto"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/mosquitto"), "{error}");
    }
}
