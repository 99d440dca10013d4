//! `run.json`: what the checkpoints in its folder were trained on.

use crate::export::replace;
use crate::reward::RewardKind;
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Name of the file in a run's folder.
const NAME: &str = "run.json";
/// Version of the format.
const VERSION: u32 = 1;

/// What a run learns from, for those who go on with it and for a model's card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    version: u32,
    /// Names of the loads, or which sites.
    pub loads: String,
    /// Mosquitto's version, or `twin`.
    pub broker: String,
    /// What a step is worth, with its prices or weights.
    pub reward: RewardKind,
    /// Randomised sites that the best agent is chosen by.
    pub validation_sites: u32,
    /// Score of the best agent by validation, once there is one.
    pub best: Option<String>,
}

impl Origin {
    /// A run on `loads` with `broker`, before anything was learnt.
    #[must_use]
    pub fn new(loads: String, broker: String, reward: RewardKind, validation_sites: u32) -> Origin {
        Origin { version: VERSION, loads, broker, reward, validation_sites, best: None }
    }

    /// That of the run in `dir`; `None` where it left none.
    ///
    /// # Errors
    /// A file that cannot be read, or that is not of this version.
    pub fn read(dir: &Path) -> Result<Option<Origin>> {
        let path = path_in(dir);
        if !path.exists() {
            return Ok(None);
        }
        let remedy = || format!("{} cannot be used; move it aside to go on", path.display());
        let text = std::fs::read_to_string(&path).with_context(remedy)?;
        let origin: Origin = serde_json::from_str(&text).with_context(remedy)?;
        if origin.version != VERSION {
            bail!("{}: version {} is not {VERSION}", remedy(), origin.version);
        }
        Ok(Some(origin))
    }

    /// Writes it into `dir`, whole or not at all.
    ///
    /// # Errors
    /// A folder that cannot be made or written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = path_in(dir);
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::create_dir_all(dir)
            .and_then(|()| replace(&path, text.as_bytes()))
            .with_context(|| format!("cannot write {}; choose another --out", path.display()))
    }

    /// Holds a run that goes on against what it was before.
    ///
    /// # Errors
    /// Other loads, another broker, reward or validation: one log would show two runs as one.
    pub fn refuse_other(&self, before: &Origin, dir: &Path) -> Result<()> {
        let parts = |origin: &Origin| {
            anyhow::Ok([
                ("on the loads", origin.loads.clone()),
                ("with Mosquitto", origin.broker.clone()),
                ("with the reward", serde_json::to_string(&origin.reward)?),
                ("with --validate-sites", origin.validation_sites.to_string()),
            ])
        };
        for ((what, was), (_, is)) in parts(before)?.into_iter().zip(parts(self)?) {
            if was != is {
                bail!(
                    "the run in {} was trained {what} {was}, not {is}; give the same to go on \
                     with it, or begin from its checkpoint with --from and another --out",
                    dir.display()
                );
            }
        }
        Ok(())
    }
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::reward::DeadlinePrices;

    #[test]
    fn a_run_goes_on_with_its_own_loads_only() {
        let dir = tempfile::tempdir().unwrap();
        let reward = RewardKind::Deadline(DeadlinePrices::default());
        let origin = |loads: &str| Origin::new(loads.to_owned(), "2.0.21".to_owned(), reward, 40);
        assert_eq!(Origin::read(dir.path()).unwrap(), None);
        origin("link-50ms").write(dir.path()).unwrap();
        let before = Origin::read(dir.path()).unwrap().unwrap();
        assert!(origin("link-50ms").refuse_other(&before, dir.path()).is_ok());
        let error = origin("wan-uplink").refuse_other(&before, dir.path()).unwrap_err();
        for word in ["link-50ms, not wan-uplink", "--from", &*dir.path().display().to_string()] {
            assert!(error.to_string().contains(word), "{error}");
        }
        let free = DeadlinePrices { cpu: 0.0, ..DeadlinePrices::default() };
        let other = Origin { reward: RewardKind::Deadline(free), ..origin("link-50ms") };
        let error = other.refuse_other(&before, dir.path()).unwrap_err().to_string();
        assert!(error.contains("with the reward"), "{error}");
    }

    #[test]
    fn what_is_no_run_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{}", r#"{"version": 2, "loads": "", "broker": "", "best": null}"#] {
            std::fs::write(path_in(dir.path()), text).unwrap();
            let error = format!("{:#}", Origin::read(dir.path()).unwrap_err());
            assert!(error.contains("run.json") && error.contains("move it aside"), "{error}");
        }
    }
}
