//! `host keygen`: the keys that models are signed with.

use super::{Answer, print};
use anyhow::{Context as _, Result, bail, ensure};
use brokertuner_edge::keys::SigningKey;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

const MODE_SECRET: u32 = 0o600;
const MODE_PUBLIC: u32 = 0o644;

/// Make a pair of keys that models are signed with.
///
/// NAME.key is the secret half, for `host export --sign`: it stays on the workstation, readable by
/// you only. NAME.pub goes to every gateway, into model.public_keys. Existing files are never
/// overwritten.
#[derive(Debug, clap::Args)]
pub(crate) struct KeygenArgs {
    /// Name of both files, without their ending.
    #[arg(value_name = "NAME", default_value = "brokertuner-model")]
    name: PathBuf,
    /// The result as JSON.
    #[arg(long)]
    json: bool,
}

/// What `host keygen --json` prints, version 1.
#[derive(Debug, Serialize)]
struct Generated {
    version: u32,
    secret_key: PathBuf,
    public_key: PathBuf,
}

impl KeygenArgs {
    /// Writes both files.
    ///
    /// # Errors
    /// Where one of them exists or cannot be written; then neither is left behind.
    pub(crate) fn run(&self) -> Result<Answer> {
        let (secret, public) = (with_ending(&self.name, ".key"), with_ending(&self.name, ".pub"));
        let key = SigningKey::of_seed(rand::random());
        write_new(&secret, &key.secret_line(), MODE_SECRET)?;
        if let Err(error) = write_new(&public, &key.public_line(), MODE_PUBLIC) {
            // Made a moment ago: nobody has signed anything with it.
            let _ = std::fs::remove_file(&secret);
            return Err(error);
        }
        let generated = Generated { version: 1, secret_key: secret, public_key: public };
        print(&if self.json {
            serde_json::to_string_pretty(&generated)? + "\n"
        } else {
            format!(
                "{}: keep it secret; host export --sign {0}\n{}: for the gateways, in model.public_keys\n",
                generated.secret_key.display(),
                generated.public_key.display()
            )
        })?;
        Ok(Answer::Yes)
    }
}

fn with_ending(name: &Path, ending: &str) -> PathBuf {
    let mut path = name.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match open {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} exists: keys are never overwritten; choose another name", path.display())
        }
        open => open.with_context(|| format!("cannot create {}", path.display()))?,
    };
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a secret key that nobody else may read.
///
/// # Errors
/// A file that is no secret key, or that others may read.
pub(super) fn secret_key(path: &Path) -> Result<SigningKey> {
    if let Ok(found) = File::open(path).and_then(|file| file.metadata()) {
        let mode = found.permissions().mode() & 0o777;
        ensure!(
            mode & 0o077 == 0,
            "{}: others may read it (mode {mode:03o}); `chmod 600` it, or make a new pair if they did",
            path.display()
        );
    }
    Ok(SigningKey::load(path)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::ddpg::{Agent, Hyper};
    use crate::export::{About, model_bytes, signed};
    use brokertuner_core::features::Schema;
    use brokertuner_core::model::Model;
    use brokertuner_edge::keys::{TrustedKey, signer};

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_secret_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let args = KeygenArgs { name: dir.path().join("site"), json: true };
        assert_eq!(args.run().unwrap(), Answer::Yes);
        let (secret, public) = (dir.path().join("site.key"), dir.path().join("site.pub"));
        assert_eq!((mode(&secret), mode(&public)), (0o600, 0o644));
        let before = std::fs::read(&secret).unwrap();
        let error = args.run().unwrap_err().to_string();
        assert!(error.contains("site.key exists"), "{error}");
        std::fs::remove_file(&secret).unwrap();
        let error = args.run().unwrap_err().to_string();
        assert!(error.contains("site.pub exists"), "{error}");
        assert!(!secret.exists(), "no half of a pair is left");
        std::fs::write(&secret, before).unwrap();
        let error = secret_key(&secret).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_export_signs_edge_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("site");
        KeygenArgs { name: name.clone(), json: true }.run().unwrap();
        let key = secret_key(&with_ending(&name, ".key")).unwrap();
        let agent = Agent::new(Hyper::default(), Schema::Edge.len(), 11, 1).unwrap();
        let about = About::new(Schema::Edge);
        let (plain, _) = model_bytes(&agent, &about).unwrap();
        let bytes = signed(&plain, &key, u64::MAX).unwrap();
        let model = Model::read(&bytes).unwrap();
        assert_eq!(model.parts().counter, u64::MAX);
        let trusted = [TrustedKey::load(&with_ending(&name, ".pub")).unwrap()];
        assert_eq!(signer(&trusted, &bytes, &model), Some(trusted[0].path.as_path()));
        let plain = Model::read(&plain).unwrap();
        assert_eq!(plain.parts().layers, model.parts().layers);
        let other = SigningKey::of_seed([1; 32]);
        let forged = signed(&bytes, &other, 5).unwrap();
        assert_eq!(signer(&trusted, &forged, &Model::read(&forged).unwrap()), None);
    }
}
