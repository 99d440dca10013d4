//! The broker's database across a restart: saved before, and never read when it is stale.

use std::path::{Path, PathBuf};

use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, Settings};

use super::{Applier, ApplyError, unix_s};
use crate::fs::{self, FileError, Files};
use crate::pid::ProcessId;

impl Applier {
    /// Sees to it that a restart loses or resurrects no stored state.
    ///
    /// A broker that hangs saves nothing more. To wait for it would be never to undo what made it
    /// hang: it is asked once, and restarted all the same where `is_roll_back`.
    pub(super) fn guard_database(
        &self,
        from: Option<Settings>,
        to: Option<Settings>,
        running: Option<ProcessId>,
        site: &SiteValues,
        is_roll_back: bool,
    ) -> Result<(), ApplyError> {
        let on = |settings: Option<Settings>| {
            settings.unwrap_or_default().effective(Knob::Persistence, site) != 0
        };
        let database = self.paths.database.as_deref();
        match (on(from), on(to), database) {
            (true, _, Some(database)) => match running {
                Some(running) => match self.broker.save(running, database) {
                    Err(error) if is_roll_back && self.answers_nobody() => {
                        tracing::warn!(%error, "The broker hangs and saves nothing: it is restarted without.");
                        Ok(())
                    }
                    saved => Ok(saved?),
                },
                None => Ok(()),
            },
            (false, true, None) => Err(ApplyError::NoDatabase),
            (false, true, Some(database)) => self.move_aside(database),
            // Stopping saves too; that it will succeed can't be seen without knowing the file.
            (true, _, None) | (false, false, _) => Ok(()),
        }
    }

    /// Keeps a database that the broker is not to read, under another name.
    fn move_aside(&self, database: &Path) -> Result<(), ApplyError> {
        set_aside(&*self.files, database)?;
        Ok(())
    }
}

/// Renames the database, where there is one, with the time in its new name.
pub(crate) fn set_aside(files: &dyn Files, database: &Path) -> Result<(), FileError> {
    if !files.exists(database).map_err(fs::at("look at", database))? {
        return Ok(());
    }
    let mut kept = database.as_os_str().to_os_string();
    kept.push(format!(".before-brokertuner-{}", unix_s()));
    let kept = PathBuf::from(kept);
    files.rename(database, &kept).map_err(fs::at("move aside", database))?;
    // Before the drop-in that switches persistence on: after a power cut the old name must not be
    // back.
    files.sync_dir(fs::dir_of(database)).map_err(fs::at("sync", fs::dir_of(database)))?;
    tracing::warn!(kept = %kept.display(), "Persistence is switched on: the database of before was moved aside.");
    Ok(())
}
