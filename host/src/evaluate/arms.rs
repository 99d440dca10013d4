//! Who is compared: fixed settings, chosen settings, policies.

use crate::env::broker::site_values;
use crate::scenario::Scenario;
use brokertuner_core::render::{self, ParseError};
use brokertuner_core::{Action, Envelope, Settings};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// An arm of a comparison.
#[derive(Clone, Debug)]
pub enum Arm {
    /// Mosquitto's own defaults.
    Default,
    /// Settings from a file in the drop-in's syntax.
    Fixed {
        /// The name in tables and result files.
        name: String,
        /// The file.
        path: PathBuf,
        /// What it says.
        settings: Settings,
    },
    /// Settings of no file.
    Given {
        /// The name in tables and result files.
        name: String,
        /// What they are.
        settings: Settings,
    },
    /// The rule of thumb: fixed settings for each load, by hand.
    Rule,
    /// Settings from a folder that has a file for each load.
    PerSite {
        /// The name in tables and result files.
        name: String,
        /// The folder.
        dir: PathBuf,
    },
    /// The exported model through `edge`.
    Model {
        /// The name in tables and result files.
        name: String,
        /// The model file.
        path: PathBuf,
    },
    /// Actors that were never trained, through `edge`.
    Untrained {
        /// Seed and model file of each.
        actors: Vec<(u64, PathBuf)>,
    },
    /// The best of some random settings in the envelope.
    Random,
}

/// Files that cannot be the arms of a comparison.
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
    /// Two arms with one name.
    #[error(
        "{} and {} would both be the arm {name:?}; give each file once, and rename or copy one",
        first.display(),
        second.display()
    )]
    Twice {
        /// The one file.
        first: PathBuf,
        /// The other one.
        second: PathBuf,
        /// The name.
        name: String,
    },
    /// The name of an arm that is no file.
    #[error(
        "{} would be the arm {name:?}, which `host evaluate` has itself; rename or copy the file",
        path.display()
    )]
    Reserved {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

impl Arm {
    /// The name in tables and result files.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Arm::Default => DEFAULT.to_owned(),
            Arm::Rule => RULE.to_owned(),
            Arm::Fixed { name, .. }
            | Arm::Given { name, .. }
            | Arm::PerSite { name, .. }
            | Arm::Model { name, .. } => name.clone(),
            Arm::Untrained { .. } => UNTRAINED.to_owned(),
            Arm::Random => RANDOM.to_owned(),
        }
    }

    /// Reads settings from a file in the drop-in's syntax.
    ///
    /// # Errors
    /// [`ArmError`], which names the file and the line or option.
    pub fn fixed(path: &Path) -> Result<Arm, ArmError> {
        let settings = settings_of(path)?;
        Ok(Arm::Fixed { name: tail(path, 1), path: path.to_owned(), settings })
    }

    /// Settings from a folder that has a file for each of the loads.
    ///
    /// # Errors
    /// [`ArmError`] for the first file that cannot be used.
    pub fn per_site(dir: &Path, scenarios: &[Arc<Scenario>]) -> Result<Arm, ArmError> {
        for scenario in scenarios {
            settings_of(&dir.join(format!("{}.conf", scenario.name)))?;
        }
        Ok(Arm::PerSite { name: tail(dir, 1), dir: dir.to_owned() })
    }

    /// The exported model in that file.
    #[must_use]
    pub fn model(path: &Path) -> Arm {
        Arm::Model { name: tail(path, 1), path: path.to_owned() }
    }

    /// The file that it is made of.
    fn file(&mut self) -> Option<(&mut String, &Path)> {
        match self {
            Arm::Fixed { name, path, .. } | Arm::Model { name, path } => Some((name, path)),
            Arm::PerSite { name, dir } => Some((name, dir)),
            Arm::Default | Arm::Given { .. } | Arm::Rule | Arm::Untrained { .. } | Arm::Random => {
                None
            }
        }
    }
}

/// Reads settings from a file in the drop-in's syntax.
///
/// # Errors
/// [`ArmError`], which names the file and the line or option.
pub(super) fn settings_of(path: &Path) -> Result<Settings, ArmError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ArmError::Read { path: path.to_owned(), source })?;
    let settings =
        render::parse(&text).map_err(|source| ArmError::Parse { path: path.to_owned(), source })?;
    if let Some(violation) = Envelope::default().check(&settings).first() {
        let reason = violation.to_string();
        return Err(ArmError::Outside { path: path.to_owned(), reason });
    }
    Ok(settings)
}

/// The bounds of settings for that load.
#[must_use]
pub(super) fn envelope_of(scenario: &Scenario) -> Envelope {
    Envelope { site: site_values(scenario), ..Envelope::default() }
}

const DEFAULT: &str = "default";
const RULE: &str = "rule";
const UNTRAINED: &str = "untrained";
pub(super) const RANDOM: &str = "random";
/// Before the number of one of the settings that the `random` arm chooses from.
const TRY: &str = "random-";

/// The name under which one of the `random` arm's settings is tried.
#[must_use]
pub(super) fn try_name(index: usize) -> String {
    format!("{TRY}{index}")
}

/// Whether that is the name of such a try.
#[must_use]
pub(super) fn is_try(name: &str) -> bool {
    name.strip_prefix(TRY).is_some_and(|index| index.parse::<u64>().is_ok())
}

fn is_reserved(name: &str) -> bool {
    [DEFAULT, RULE, UNTRAINED, RANDOM].contains(&name) || is_try(name)
}

/// Names arms after their files, by as much of the path as tells them apart from each other and
/// from the arms that are no files: `host train` calls every model `model.btm`.
///
/// # Errors
/// [`ArmError::Twice`] or [`ArmError::Reserved`] where the whole path does not.
pub fn tell_apart(arms: &mut [Arm]) -> Result<(), ArmError> {
    let mut files: Vec<(&mut String, &Path)> = arms.iter_mut().filter_map(Arm::file).collect();
    let paths: Vec<PathBuf> = files.iter().map(|(_, path)| (*path).to_owned()).collect();
    let depth_max = paths.iter().map(|path| plain(path).count()).max().unwrap_or(1);
    for (index, (name, path)) in files.iter_mut().enumerate() {
        let others = || paths.iter().enumerate().filter(|(other, _)| *other != index);
        let is_own = |depth: &usize| {
            let name = tail(path, *depth);
            !is_reserved(&name) && others().all(|(_, other)| tail(other, *depth) != name)
        };
        if let Some(depth) = (1..=depth_max).find(is_own) {
            **name = tail(path, depth);
            continue;
        }
        let whole = tail(path, depth_max);
        let same = others().find(|(_, other)| plain(other).eq(plain(path)));
        if let Some((_, other)) = same {
            let (first, second) = (other.clone(), path.to_path_buf());
            return Err(ArmError::Twice { first, second, name: whole });
        }
        if is_reserved(&whole) {
            return Err(ArmError::Reserved { path: path.to_path_buf(), name: whole });
        }
        // Alike but for the extension: a file of settings beside a model.
        **name = path.display().to_string();
    }
    Ok(())
}

/// The parts of a path that name something.
fn plain(path: &Path) -> impl Iterator<Item = Component<'_>> {
    path.components().filter(|part| *part != Component::CurDir)
}

/// The last `depth` parts of a path, the last one without its extension.
fn tail(path: &Path, depth: usize) -> String {
    let stem = path.with_extension("");
    let parts: Vec<String> =
        plain(&stem).map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    parts[parts.len().saturating_sub(depth)..].join("/")
}

/// `count` random settings inside the envelope of the scenario's site: uniform on the actor's grid.
#[must_use]
pub(super) fn random_settings(count: u32, seed: u64, scenario: &Scenario) -> Vec<Settings> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let envelope = envelope_of(scenario);
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

    /// Names of the arms of these files, or why there are none.
    fn names(paths: &[&str]) -> Result<Vec<String>, String> {
        let mut arms: Vec<Arm> = paths
            .iter()
            .map(|path| match path.strip_suffix(".conf") {
                Some(_) => Arm::Fixed {
                    name: String::new(),
                    path: path.into(),
                    settings: Settings::UNWRITTEN,
                },
                None => Arm::model(Path::new(path)),
            })
            .collect();
        tell_apart(&mut arms).map_err(|error| error.to_string())?;
        Ok(arms.iter().map(Arm::name).collect())
    }

    #[test]
    fn arms_are_named_by_what_tells_their_files_apart() {
        for (paths, expected) in [
            (&["runs/a/model.btm"][..], &["model"][..]),
            (&["runs/a/model.btm", "runs/b/model.btm"], &["a/model", "b/model"]),
            (&["model.btm", "b/model.btm"], &["model", "b/model"]),
            (&["x/a/m.btm", "y/a/m.btm", "n.btm"], &["x/a/m", "y/a/m", "n"]),
            (&["a/m.btm", "a/m.conf"], &["a/m.btm", "a/m.conf"]),
            (&["demo-report/untrained.btm"], &["demo-report/untrained"]),
        ] {
            assert_eq!(names(paths).unwrap(), expected, "{paths:?}");
        }
    }

    #[test]
    fn files_that_cannot_be_told_apart_are_refused_by_name() {
        for (paths, words) in [
            (&["m.btm", "./m.btm"][..], &["./m.btm and m.btm would both", "\"m\"", "rename"][..]),
            (&["/a/m.btm", "/a/m.btm"], &["/a/m.btm and /a/m.btm"]),
            (&["default.conf"], &["default.conf would be the arm \"default\"", "rename or copy"]),
            (&["untrained.btm"], &["untrained.btm"]),
            (&["random.btm"], &["random.btm"]),
            (&["random-12.btm"], &["\"random-12\""]),
        ] {
            let message = names(paths).unwrap_err();
            for word in words {
                assert!(message.contains(word), "{message}");
            }
        }
        assert_eq!(names(&["random-best.btm"]).unwrap(), ["random-best"]);
    }
}
