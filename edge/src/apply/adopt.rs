//! Taking over a drop-in that someone else changed, once they say so.

use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Envelope, Knob, Settings, render};

use super::{Applier, ApplyError, sha256};
use crate::fs;
use crate::state::{Effective, How};

impl Applier {
    /// Takes the drop-in over as it stands, then writes it in the agent's own words, confined to
    /// `envelope`, and makes a running broker read it. `None`: it was removed.
    ///
    /// # Errors
    /// [`ApplyError::Foreign`] where it holds more than our options: those lines are not ours to
    /// overwrite. Else as [`Applier::apply`]; the file is then taken over, but as it was.
    pub fn adopt(&mut self, envelope: &Envelope) -> Result<Option<Settings>, ApplyError> {
        let path = self.paths.drop_in.clone();
        let bytes = self.files.read(&path).map_err(fs::at("read", &path))?;
        let found = match &bytes {
            None => None,
            Some(bytes) => {
                let text = String::from_utf8_lossy(bytes);
                let parsed = render::parse(&text);
                Some(parsed.map_err(|error| ApplyError::Foreign { path, error })?)
            }
        };
        let digest = bytes.as_deref().map(sha256);
        let limit = self.memory_limit_left(found, &envelope.site);
        let running = self.broker.process().ok();
        self.remember(|state| {
            (state.written, state.written_sha256) = (found, digest);
            let known = state.effective.filter(|known| running == Some(known.process));
            // Another process has read the file as it stands, as far as can be told.
            let settings = known.map_or(found.unwrap_or_default(), |known| known.settings);
            state.effective = running.map(|process| Effective { process, settings });
        })?;
        let wanted = found.map(|settings| envelope.confine(settings));
        if running.is_some() {
            if limit.is_some() {
                self.apply(limit, How::Reload, &envelope.site)?;
            }
            self.apply(wanted, How::Reload, &envelope.site)?;
        }
        self.mark_good()?;
        Ok(wanted)
    }

    /// The site's `memory_limit`, to be stated once: a removed line leaves ours in force.
    fn memory_limit_left(&self, found: Option<Settings>, site: &SiteValues) -> Option<Settings> {
        let is_stated = |settings: Settings| settings.written().contains(Knob::MemoryLimit);
        let was_ours = self.state.effective.is_some_and(|effective| is_stated(effective.settings));
        let mut settings = found.unwrap_or_default();
        if !was_ours || is_stated(settings) {
            return None;
        }
        settings.set(Knob::MemoryLimit, site.get(Knob::MemoryLimit)).ok()?;
        Some(settings)
    }
}
