//! The model file on the gateway: verified before use, replaced while the agent runs, the last
//! accepted one kept.
//!
//! A copy of what was accepted lies in the state directory. It is used where the configured file is
//! refused, and its counter is the highest that was accepted: an older signed model is a roll-back.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use brokertuner_core::features::{Features, Schema, View};
use brokertuner_core::model::{Beyond, Model};
use brokertuner_core::weigh::Weights;
use brokertuner_core::{Envelope, KnobSet, Settings};
use serde::{Deserialize, Serialize};

use crate::apply::unix_s;
use crate::config::Config;
use crate::fs::{self, Files, MODE_STATE, RealFiles};
use crate::journal;
use crate::keys::{TrustedKey, signer};
use crate::policy::{ModelPolicy, Policy, PolicyError};

/// The copy of the accepted model, in the state directory.
const KEPT_FILE: &str = "accepted.btm";

/// What is to be told of the model in use.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelReport {
    /// The file it was read from.
    pub file: String,
    /// Its release counter.
    pub counter: u64,
    /// The file of the key that signed it; `null` where no key is configured.
    pub signed_by: Option<String>,
    /// Why the configured file is not in use, where it is not.
    pub refused: Option<String>,
    /// Unix time since which it is in use, where it replaced another while the agent ran.
    #[serde(default)]
    pub replaced_unix_s: Option<u64>,
}

/// What became of the model file while the agent ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelNews {
    /// Another model is in use: what it is, and what it took the place of.
    Replaced(String),
    /// The new file was refused, and the one in use stays: why.
    Refused(String),
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, counter {}", self.file, self.counter)?;
        if let Some(key) = &self.signed_by {
            write!(f, ", signed by {key}")?;
        }
        if let Some(at) = self.replaced_unix_s {
            write!(f, ", since {}", journal::utc(at))?;
        }
        match &self.refused {
            Some(reason) => write!(f, "\n          refused: {reason}"),
            None => Ok(()),
        }
    }
}

/// Where models come from and what they must be.
#[derive(Debug, Clone)]
pub struct ModelSource {
    /// The configured file.
    pub path: PathBuf,
    /// The copy of the accepted one.
    pub kept: PathBuf,
    /// The state vector that they must be made for.
    pub schema: Schema,
    /// One of these must have signed it; empty: none needs to.
    pub keys: Vec<TrustedKey>,
    /// Hold where an input lies beyond what training saw.
    pub hold_beyond_training: bool,
}

impl ModelSource {
    /// As configured.
    ///
    /// # Errors
    /// [`PolicyError::Key`].
    pub fn of(config: &Config) -> Result<Self, PolicyError> {
        let keys = config.model.public_keys.iter().map(|path| TrustedKey::load(path));
        Ok(Self {
            path: config.model.path.clone(),
            kept: config.agent.state_dir.join(KEPT_FILE),
            schema: config.model.schema,
            keys: keys.collect::<Result<_, _>>()?,
            hold_beyond_training: config.model.hold_beyond_training,
        })
    }

    /// Verifies the model file at `path`: encoding, tables, signature, counter.
    ///
    /// # Errors
    /// [`PolicyError`], naming the file and what is wrong with it.
    pub fn verify(&self, path: &Path) -> Result<Verified, PolicyError> {
        self.load(path, self.highest()?)
    }

    fn load(&self, path: &Path, highest: u64) -> Result<Verified, PolicyError> {
        let policy = ModelPolicy::load(path, self.schema)?;
        let wrong = |source| PolicyError::Model { path: path.into(), source };
        let model = Model::read(policy.bytes()).map_err(wrong)?;
        let counter = model.parts().counter;
        let mut signed_by = None;
        if !self.keys.is_empty() {
            if model.signature().is_none() {
                return Err(PolicyError::Unsigned { path: path.into() });
            }
            let signer = signer(&self.keys, policy.bytes(), &model);
            let signer = signer.ok_or_else(|| PolicyError::Signature { path: path.into() })?;
            signed_by = Some(signer.to_path_buf());
            if counter < highest {
                let (path, kept) = (path.into(), self.kept.clone());
                return Err(PolicyError::RolledBack { path, found: counter, highest, kept });
            }
        }
        Ok(Verified { policy, path: path.into(), counter, signed_by })
    }

    /// The highest counter that was accepted; 0 where none was, or where nobody signs: then a
    /// counter proves nothing.
    ///
    /// # Errors
    /// A copy that is there and can't be read: what it holds may be higher than any.
    fn highest(&self) -> Result<u64, PolicyError> {
        if self.keys.is_empty() {
            return Ok(0);
        }
        let kept = RealFiles.read(&self.kept).map_err(fs::at("read", &self.kept))?;
        let Some(kept) = kept else { return Ok(0) };
        let damaged = |source| PolicyError::Kept { path: self.kept.clone(), source };
        let model = Model::parse(&kept).map_err(damaged)?;
        Ok(if model.signature().is_some() { model.parts().counter } else { 0 })
    }

    /// The policy of the configured file, or of the copy where that file is refused. Writes
    /// nothing.
    ///
    /// # Errors
    /// [`PolicyError`] of the configured file, where there is no sound copy either.
    pub fn open(self) -> Result<LivePolicy, PolicyError> {
        let seen = Stamp::of(&self.path);
        let (current, refused) = match self.verify(&self.path) {
            Ok(verified) => (verified, None),
            Err(error) => match self.load(&self.kept, 0) {
                Ok(kept) => (kept, Some(error.to_string())),
                Err(_) => return Err(error),
            },
        };
        if let Some(reason) = &refused {
            tracing::error!(%reason, kept = %self.kept.display(), "The model was refused; the one that was accepted before is in use.");
        }
        // Where nothing sound is kept, nothing but the configured file can be in use.
        let highest = self.highest()?.max(current.counter);
        let report = ModelReport { refused, ..current.report() };
        Ok(LivePolicy {
            source: self,
            current,
            report,
            highest,
            seen,
            beyond: None,
            is_stored: false,
            complaint: None,
            reload: Arc::default(),
        })
    }
}

/// A model that passed every check.
#[derive(Debug)]
pub struct Verified {
    policy: ModelPolicy,
    /// The file.
    pub path: PathBuf,
    /// Its release counter.
    pub counter: u64,
    /// The key that signed it, where one has to.
    pub signed_by: Option<PathBuf>,
}

impl Verified {
    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &ModelPolicy {
        &self.policy
    }

    fn report(&self) -> ModelReport {
        let shown = |path: &PathBuf| path.display().to_string();
        ModelReport {
            file: shown(&self.path),
            counter: self.counter,
            signed_by: self.signed_by.as_ref().map(shown),
            refused: None,
            replaced_unix_s: None,
        }
    }
}

/// What tells a file from the one that was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self { modified: found.modified().ok(), bytes: found.len(), inode: found.ino() })
    }
}

/// The policy of a model file that may be replaced while it is in use.
#[derive(Debug)]
pub struct LivePolicy {
    source: ModelSource,
    current: Verified,
    /// What is to be told of it.
    report: ModelReport,
    highest: u64,
    seen: Option<Stamp>,
    beyond: Option<Beyond>,
    /// The copy is that of the model in use.
    is_stored: bool,
    /// Why it could not be written, as it was told last.
    complaint: Option<String>,
    reload: Arc<AtomicBool>,
}

impl LivePolicy {
    /// Set to true, the file is looked at before the next decision even if it seems unchanged.
    #[must_use]
    pub fn reload_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.reload)
    }

    fn look_again(&mut self) -> Option<ModelNews> {
        let is_asked = self.reload.swap(false, Ordering::Relaxed);
        let seen = Stamp::of(&self.source.path);
        if !is_asked && seen == self.seen {
            return None;
        }
        self.seen = seen;
        match self.source.load(&self.source.path, self.highest) {
            Ok(verified) => self.take_over(verified, is_asked),
            Err(error) => {
                tracing::error!(reason = %error, "The new model was refused; the one in use stays.");
                let reason = error.to_string();
                self.report.refused = Some(reason.clone());
                Some(ModelNews::Refused(reason))
            }
        }
    }

    fn take_over(&mut self, verified: Verified, is_asked: bool) -> Option<ModelNews> {
        let is_same = verified.policy.bytes() == self.current.policy.bytes();
        self.highest = self.highest.max(verified.counter);
        let before = std::mem::replace(&mut self.current, verified);
        let replaced_unix_s = if is_same { self.report.replaced_unix_s } else { Some(unix_s()) };
        self.report = ModelReport { replaced_unix_s, ..self.current.report() };
        if is_same {
            if is_asked {
                tracing::info!("The model is the one that is in use.");
            }
            return None;
        }
        self.is_stored = false;
        let (file, counter) = (self.source.path.display(), self.current.counter);
        tracing::info!(%file, counter, "A new model is in use.");
        let said = |model: &Verified| {
            let key = model.signed_by.as_ref();
            let signed = key.map_or(String::new(), |key| format!(", signed by {}", key.display()));
            format!("counter {}{signed}", model.counter)
        };
        let said = format!("{file}: {}, in the place of {}", said(&self.current), said(&before));
        Some(ModelNews::Replaced(said))
    }

    /// Keeps a copy of the model in use, where it is not there yet.
    fn store(&mut self) {
        if self.is_stored {
            return;
        }
        let (kept, bytes) = (&self.source.kept, self.current.policy.bytes());
        let is_there = RealFiles.read(kept).ok().flatten().is_some_and(|found| found == bytes);
        let stored = match is_there {
            true => Ok(()),
            false => fs::replace(&RealFiles, kept, Some(bytes), MODE_STATE),
        };
        self.is_stored = stored.is_ok();
        match stored {
            Ok(()) => self.complaint = None,
            // Tried again before the next decision, and told once.
            Err(error) => {
                let said = error.to_string();
                if self.complaint.as_ref() != Some(&said) {
                    tracing::warn!(%error, "No copy of the model could be kept.");
                }
                self.complaint = Some(said);
            }
        }
    }
}

impl Policy for LivePolicy {
    fn want(&mut self, view: &View<'_>, envelope: &Envelope) -> Settings {
        self.beyond = None;
        match self.current.policy.answer(view, envelope) {
            Ok(answer) => {
                self.beyond = answer.beyond.filter(|_| self.source.hold_beyond_training);
                answer.settings
            }
            // Never seen: the same bytes passed the same checks before.
            Err(_) => envelope.confine(*view.effective),
        }
    }

    fn doubt(&self) -> Option<String> {
        self.beyond.as_ref().map(|beyond| self.current.policy.words(beyond))
    }

    fn weigh(&mut self, view: &View<'_>, reference: Option<&Features>, knobs: KnobSet) -> Weights {
        self.current.policy.weigh(view, reference, knobs)
    }

    fn refresh(&mut self) -> Option<ModelNews> {
        let news = self.look_again();
        self.store();
        news
    }

    fn model(&self) -> Option<&ModelReport> {
        Some(&self.report)
    }
}
