//! What a measurement was of, so that no other one is taken for it.

use crate::scenario::Scenario;
use crate::trial::Profile;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Bytes of a digest that are kept: enough against chance, and nobody forges their own results.
const DIGEST_BYTES: usize = 8;

/// Digests of the parts of a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Of the load, with all its defaults filled in.
    pub scenario: String,
    /// Of the settings, or of the model and the agent.
    pub setter: String,
    /// The arm has other settings for each load, so that the setter's digest is of this one's.
    #[serde(default)]
    pub is_per_load: bool,
    /// Of the profile, the broker's version and the pinning, or the calibration and this program,
    /// and its version.
    pub rules: String,
}

/// The result file holds a measurement of something else under the same name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}: {arm} on {scenario} was measured with another {what}; give another --out, or move the \
     file aside",
    out.display()
)]
pub struct Differs {
    /// The result file.
    pub out: PathBuf,
    /// The arm in it.
    pub arm: String,
    /// The load in it.
    pub scenario: String,
    /// What is not as it was.
    pub what: String,
}

/// The digest of some bytes.
#[must_use]
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..DIGEST_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of a program's file; empty where it cannot be read.
fn of_program(path: &Path) -> String {
    std::fs::read(path).map(|bytes| digest(&bytes)).unwrap_or_default()
}

/// The digest of the running program, which is the twin.
#[must_use]
pub(crate) fn of_this_program() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| std::env::current_exe().map(|path| of_program(&path)).unwrap_or_default())
}

/// The digest of a model with the agent that decides by it, a program of its own on a real broker.
#[must_use]
pub(super) fn of_policy(model: &[u8], agent: Option<&Path>) -> String {
    let agent = agent.map(of_program).unwrap_or_default();
    digest(&[model, agent.as_bytes()].concat())
}

/// The digest of a load: its value, not its file, so that comments may change.
#[must_use]
pub(super) fn of_scenario(scenario: &Scenario) -> String {
    digest(format!("{scenario:?}").as_bytes())
}

/// The digest of the rules of a comparison.
#[must_use]
pub(super) fn of_rules(profile: &Profile, bench: &str) -> String {
    let program = env!("CARGO_PKG_VERSION");
    digest(format!("{profile:?} {bench} {program}").as_bytes())
}
