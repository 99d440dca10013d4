//! Who is compared: fixed settings, chosen settings, policies.

use crate::env::broker::site_values;
use crate::scenario::Scenario;
use brokertuner_core::render::{self, ParseError};
use brokertuner_core::{Action, Envelope, Settings};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use std::path::{Path, PathBuf};

/// An arm of a comparison.
#[derive(Clone, Debug)]
pub enum Arm {
    /// Mosquitto's own defaults.
    Default,
    /// Settings from a file in the drop-in's syntax.
    Fixed {
        /// The file's name without its extension.
        name: String,
        /// What it says.
        settings: Settings,
    },
    /// The exported model through `edge`.
    Model {
        /// The file's name without its extension.
        name: String,
        /// The model file.
        path: PathBuf,
    },
    /// Actors of the same architecture that were never trained, through `edge`.
    Untrained {
        /// One model file per seed.
        models: Vec<PathBuf>,
    },
    /// The best of some random settings in the envelope.
    Random,
}

/// A file of fixed settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// Reading failed.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Not the drop-in's syntax.
    #[error("{}: {source}; `host knobs` lists the options and their ranges", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: ParseError,
    },
    /// Outside the envelope.
    #[error("{}: {reason}", path.display())]
    Outside {
        /// The file.
        path: PathBuf,
        /// The first reason.
        reason: String,
    },
}

impl Arm {
    /// The name in tables and result files.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Arm::Default => "default".to_owned(),
            Arm::Fixed { name, .. } | Arm::Model { name, .. } => name.clone(),
            Arm::Untrained { .. } => "untrained".to_owned(),
            Arm::Random => "random".to_owned(),
        }
    }

    /// Reads settings from a file in the drop-in's syntax.
    ///
    /// # Errors
    /// [`ArmError`], which names the file and the line or option.
    pub fn fixed(path: &Path) -> Result<Arm, ArmError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ArmError::Read { path: path.to_owned(), source })?;
        let settings = render::parse(&text)
            .map_err(|source| ArmError::Parse { path: path.to_owned(), source })?;
        if let Some(violation) = Envelope::default().check(&settings).first() {
            let reason = violation.to_string();
            return Err(ArmError::Outside { path: path.to_owned(), reason });
        }
        Ok(Arm::Fixed { name: stem(path), settings })
    }

    /// The exported model in that file.
    #[must_use]
    pub fn model(path: &Path) -> Arm {
        Arm::Model { name: stem(path), path: path.to_owned() }
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// `count` random settings inside the envelope of the scenario's site: uniform on the actor's grid.
#[must_use]
pub(super) fn random_settings(count: u32, seed: u64, scenario: &Scenario) -> Vec<Settings> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let envelope = Envelope { site: site_values(scenario), ..Envelope::default() };
    (0..count)
        .map(|_| {
            let action: Action = std::array::from_fn(|_| rng.random_range(-127..=127));
            Settings::decode(&action, &envelope)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn fixed(text: &str) -> Result<Arm, ArmError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.conf");
        std::fs::write(&path, text).unwrap();
        Arm::fixed(&path)
    }

    #[test]
    fn a_file_of_settings_is_an_arm() {
        let arm = fixed("max_inflight_messages 1000\nmax_queued_messages 2000\n").unwrap();
        assert_eq!(arm.name(), "mine");
    }

    #[test]
    fn faults_name_file_and_line() {
        for (text, expected) in [
            ("max_queued_messages ten", "mine.conf: line 1: max_queued_messages must be a plain"),
            ("memory_limit 0", "mine.conf: memory_limit is held at the site's value"),
            ("max_inflight_messages 1000", "mine.conf: max_queued_messages 1000 is below 2 times"),
        ] {
            let message = fixed(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn random_settings_are_inside_and_repeat_for_a_seed() {
        let scenario = Scenario::load("wan-uplink").unwrap();
        let some = random_settings(32, 7, &scenario);
        assert_eq!(some, random_settings(32, 7, &scenario));
        assert_ne!(some, random_settings(32, 8, &scenario));
        let envelope = Envelope { site: site_values(&scenario), ..Envelope::default() };
        assert!(some.iter().all(|settings| envelope.check(settings).is_empty()));
    }
}
