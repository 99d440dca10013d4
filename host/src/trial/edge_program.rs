//! Finding the `edge` program that belongs to this `host`.

use anyhow::{Context as _, bail};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What lies in a target folder of cargo's: the first is written only by whoever makes the folder,
/// the second by every build into it.
const MARKS: [&str; 2] = ["CACHEDIR.TAG", ".rustc_info.json"];

/// The `edge` program beside this one. In cargo's target folder it is built first: what lies there
/// may be older than the sources, and cargo takes a moment where it is not.
///
/// # Errors
/// Where there is none and it cannot be built; the message says how to.
pub fn edge_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let beside = own.with_file_name("edge");
    let Some(build) = Build::of(&own, &manifests(&own)) else {
        if beside.is_file() {
            return Ok(beside);
        }
        bail!("{} is missing: install edge beside host", beside.display());
    };
    if !beside.is_file() {
        eprintln!("Building edge beside host ...");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    match build.run(&cargo) {
        Ok(true) if beside.is_file() => Ok(beside),
        Ok(_) => bail!("cannot build edge; try `cargo build --release --bin edge`"),
        Err(error) if beside.is_file() => {
            tracing::warn!(
                "cannot run cargo ({error}): {} is used as it is, which may be out of date",
                beside.display()
            );
            Ok(beside)
        }
        Err(error) => Err(error).context("cannot run cargo to build edge"),
    }
}

/// Where this program's workspace may be: where it was built, then around where it lies.
fn manifests(own: &Path) -> Vec<PathBuf> {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    built_in.into_iter().chain(own.ancestors()).map(|dir| dir.join("Cargo.toml")).collect()
}

/// How to build `edge` as this program was built.
#[derive(Debug, PartialEq, Eq)]
struct Build {
    arguments: Vec<OsString>,
}

impl Build {
    /// `None` outside cargo's target folder, or where none of the workspaces is there any more.
    fn of(own: &Path, manifests: &[PathBuf]) -> Option<Build> {
        let dir = own.parent()?;
        let is_target = |dir: &&Path| MARKS.iter().any(|mark| dir.join(mark).is_file());
        let target = dir.ancestors().find(is_target)?;
        let below: Vec<&OsStr> = dir.strip_prefix(target).ok()?.iter().collect();
        let (triple, profile) = match below[..] {
            [profile] => (None, profile),
            // A test's program: nothing is ever built beside it.
            [_, profile] if profile == "deps" => return None,
            [triple, profile] => (Some(triple), profile),
            _ => return None,
        };
        let manifest = manifests.iter().find(|manifest| manifest.is_file())?;
        let mut arguments: Vec<OsString> =
            ["build", "--quiet", "--bin", "edge", "--manifest-path"].map(OsString::from).into();
        arguments.extend([manifest.into(), "--target-dir".into(), target.into()]);
        arguments.extend(["--profile".into(), profile_name(profile).into()]);
        if let Some(triple) = triple {
            arguments.extend(["--target".into(), triple.into()]);
        }
        Some(Build { arguments })
    }

    /// Whether cargo built it, or found it fresh.
    fn run(&self, cargo: &OsStr) -> std::io::Result<bool> {
        let mut command = Command::new(cargo);
        // What cargo tells the program that it runs is not for another cargo: a build script that
        // looks at it (ring's) would be run anew, and all that rests on it be built anew.
        for (name, _) in std::env::vars_os() {
            let name_shown = name.to_string_lossy();
            if ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|start| name_shown.starts_with(start)) {
                command.env_remove(&name);
            }
        }
        // stdout is this program's, for its results.
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command.status()?.success())
    }
}

/// The profile whose output lies in a folder of that name.
fn profile_name(folder: &OsStr) -> &OsStr {
    if folder == "debug" { OsStr::new("dev") } else { folder }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// A folder with a workspace, a target folder and an `edge` of unknown age at `place`.
    fn workspace(place: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("Cargo.toml");
        std::fs::write(&manifest, "[workspace]\n").unwrap();
        let target = dir.path().join("target");
        std::fs::create_dir_all(target.join(place)).unwrap();
        std::fs::write(target.join(MARKS[1]), "{}").unwrap();
        std::fs::write(target.join(place).join("edge"), "stale").unwrap();
        let own = target.join(place).join("host");
        (dir, manifest, own)
    }

    fn arguments(place: &str) -> Option<String> {
        let (dir, manifest, own) = workspace(place);
        let build = Build::of(&own, &[dir.path().join("gone/Cargo.toml"), manifest])?;
        let words: Vec<_> = build.arguments.iter().map(|word| word.to_string_lossy()).collect();
        Some(words.join(" ").replace(&*dir.path().to_string_lossy(), "DIR"))
    }

    #[test]
    fn in_a_target_folder_edge_is_built_as_host_was_even_where_one_lies_there() {
        let build = "build --quiet --bin edge --manifest-path DIR/Cargo.toml \
                     --target-dir DIR/target --profile";
        for (place, rest) in [
            ("debug", "dev"),
            ("release", "release"),
            ("release-small", "release-small"),
            ("x86_64-unknown-linux-musl/release", "release --target x86_64-unknown-linux-musl"),
        ] {
            assert_eq!(arguments(place).unwrap(), format!("{build} {rest}"));
        }
        assert_eq!(arguments("debug/deps"), None);
    }

    #[test]
    fn elsewhere_what_lies_beside_is_taken_as_it_is() {
        let (dir, manifest, own) = workspace("debug");
        std::fs::remove_file(dir.path().join("target").join(MARKS[1])).unwrap();
        assert_eq!(Build::of(&own, &[manifest]), None);
        let (_dir, manifest, own) = workspace("debug");
        assert_eq!(Build::of(&own, &[manifest.with_file_name("Gone.toml")]), None);
    }
}
