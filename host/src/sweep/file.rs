//! Trials on disk as they are made: half an hour of work that an interruption must not cost.

use super::{Output, Tried};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// No part of the file is longer.
const PART_BYTES_MAX: u32 = 1 << 20;

/// A part of the file: its length in 4 bytes, little endian, then this by postcard.
#[derive(Serialize, Deserialize)]
enum Part {
    /// What all others hang on: the first.
    Run(String),
    /// The settings that are tried everywhere.
    Library(Vec<Output>),
    /// What was tried on the site of that number.
    Site(u64, Vec<Tried>),
}

/// The trials of one run.
#[derive(Debug)]
pub struct TrialFile {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    library: Option<Vec<Output>>,
    sites: HashMap<u64, Vec<Tried>>,
}

impl TrialFile {
    /// Opens or begins the file of `run`, which tells this run's trials from all others. A last
    /// part that was cut short is dropped.
    ///
    /// # Errors
    /// A file that cannot be read or written, that is damaged, or of another run.
    pub fn open(path: &Path, run: &str) -> Result<TrialFile> {
        let remedy =
            || format!("{} cannot be used; remove it, or choose another --out", path.display());
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).read(true).append(true).open(path).with_context(remedy)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(remedy)?;
        let (parts, whole) = parts(&bytes).with_context(remedy)?;
        file.set_len(whole as u64).with_context(remedy)?;
        let (mut library, mut sites) = (None, HashMap::new());
        let mut parts = parts.into_iter();
        match parts.next() {
            None => append(&mut file, &Part::Run(run.to_owned())).with_context(remedy)?,
            Some(Part::Run(found)) if found == run => {}
            Some(_) => bail!(
                "{} holds trials of other sites, options or program; give those again, remove it, \
                 or choose another --out",
                path.display()
            ),
        }
        for part in parts {
            match part {
                Part::Run(_) => bail!(remedy()),
                Part::Library(found) => library = Some(found),
                Part::Site(number, tried) => {
                    sites.insert(number, tried);
                }
            }
        }
        let inner = Mutex::new(Inner { file, library, sites });
        Ok(TrialFile { path: path.to_owned(), inner })
    }

    /// Whether nothing was tried before it was opened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().sites.is_empty()
    }

    /// The library that it holds, or that of `choose`, and then it holds that: `None` where it was
    /// not chosen to the end.
    pub(super) fn library(
        &self,
        choose: impl FnOnce() -> Result<Option<Vec<Output>>>,
    ) -> Result<Option<Vec<Output>>> {
        if let Some(library) = &self.lock().library {
            return Ok(Some(library.clone()));
        }
        let Some(chosen) = choose()? else { return Ok(None) };
        self.append(&Part::Library(chosen.clone()))?;
        Ok(Some(chosen))
    }

    /// What it holds of the site of that number, or what `find` finds, and then it holds that.
    pub(super) fn site(
        &self,
        number: u64,
        find: impl FnOnce() -> Result<Vec<Tried>>,
    ) -> Result<Vec<Tried>> {
        let known = self.lock().sites.remove(&number);
        if let Some(known) = known {
            return Ok(known);
        }
        let tried = find()?;
        self.append(&Part::Site(number, tried.clone()))?;
        Ok(tried)
    }

    fn append(&self, part: &Part) -> Result<()> {
        append(&mut self.lock().file, part)
            .with_context(|| format!("cannot write {}; free some space", self.path.display()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Parts are written whole or dropped when it is read.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn append(file: &mut File, part: &Part) -> Result<()> {
    let body = postcard::to_allocvec(part)?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length <= PART_BYTES_MAX);
    let mut bytes = length.context("the trials of one site are too large")?.to_le_bytes().to_vec();
    bytes.extend(body);
    let end = file.metadata()?.len();
    file.write_all(&bytes).inspect_err(|_| {
        // What came after a part that is cut short could not be read. Where this fails too, it is
        // damaged, and says so when it is read.
        let _ = file.set_len(end);
    })?;
    Ok(())
}

/// The parts, and how many of the bytes they are.
fn parts(bytes: &[u8]) -> Result<(Vec<Part>, usize)> {
    let (mut parts, mut rest) = (Vec::new(), bytes);
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        if length > PART_BYTES_MAX {
            bail!(std::io::Error::new(ErrorKind::InvalidData, "a part is too long"));
        }
        let Some((body, after)) = after.split_at_checked(length as usize) else { break };
        parts.push(postcard::from_bytes(body)?);
        rest = after;
    }
    Ok((parts, bytes.len() - rest.len()))
}
