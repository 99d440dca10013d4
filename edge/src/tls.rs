//! TLS to the broker: its certificate is always verified, against a CA file of the site.
//!
//! Without the cargo feature `tls` the types are the same and every configuration of TLS is refused.

use std::fmt;
use std::path::PathBuf;

use crate::fs::FileError;

/// The files of a TLS connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates (PEM) that the broker's must be signed by.
    pub ca: PathBuf,
    /// The agent's own certificate and key (PEM), where the broker demands one.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name in the broker's certificate; `None`: the host that is connected to.
    pub name: Option<String>,
}

/// Why TLS can't be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Built without it.
    #[error(
        "broker.ca_file: this edge was built without TLS; use one built with the feature `tls`, or the broker's plain port"
    )]
    NotBuilt,
    /// A file of it.
    #[error("{key}: {source}")]
    File {
        /// The option.
        key: &'static str,
        /// What is wrong with the file.
        source: FileError,
    },
    /// A file that holds something else.
    #[error("{key}: {}: {what}; use PEM, as `openssl` writes it", path.display())]
    Content {
        /// The option.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The name to expect.
    #[error("{key}: {name}: no host name and no address")]
    Name {
        /// The option.
        key: &'static str,
        /// What was found.
        name: String,
    },
}

#[cfg(feature = "tls")]
mod with;
#[cfg(feature = "tls")]
pub use with::Tls;

/// A byte stream to the broker, encrypted or not.
pub trait Stream: std::io::Read + std::io::Write {}
impl<S: std::io::Read + std::io::Write> Stream for S {}

/// TLS that was not built in: never made.
#[cfg(not(feature = "tls"))]
#[derive(Debug, Clone)]
pub enum Tls {}

#[cfg(not(feature = "tls"))]
impl Tls {
    /// Refuses.
    ///
    /// # Errors
    /// [`TlsError::NotBuilt`].
    pub fn load(_: &TlsFiles, _: &str) -> Result<Self, TlsError> {
        Err(TlsError::NotBuilt)
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub fn wrap(&self, _: impl Stream + 'static) -> std::io::Result<Box<dyn Stream>> {
        match *self {}
    }

    /// Never called.
    #[must_use]
    pub fn transport(&self) -> rumqttc::Transport {
        match *self {}
    }
}

/// What to do about a failed handshake, where `error` or what caused it is one.
#[must_use]
pub fn remedy(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    #[cfg(feature = "tls")]
    return with::remedy(error);
    #[cfg(not(feature = "tls"))]
    {
        let _ = error;
        None
    }
}

impl fmt::Display for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS, CA {}", self.ca.display())
    }
}
