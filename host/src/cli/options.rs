//! Options that several verbs share.

use crate::broker::Mosquitto;
use crate::scenario::{EMBEDDED, Scenario};
use crate::twin::Calibration;
use anyhow::{Context as _, Result};
use brokertuner_edge::fs::{MODE_CONF, RealFiles, replace};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Which broker.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BrokerOptions {
    /// The broker's program; default: mosquitto on PATH.
    #[arg(long, value_name = "PATH")]
    pub(crate) mosquitto: Option<PathBuf>,
    /// Go on without a CPU quota where a scenario asks for one and none can be set.
    #[arg(long)]
    pub(crate) allow_uncapped: bool,
}

impl BrokerOptions {
    /// Finds the broker.
    ///
    /// # Errors
    /// Where there is none; the message holds the install command.
    pub(crate) fn find(&self) -> Result<Mosquitto> {
        Ok(Mosquitto::find(self.mosquitto.as_deref())?)
    }
}

/// Exactly `N` numbers between commas.
///
/// # Errors
/// What is wrong, for clap's message.
pub(crate) fn list<T: FromStr, const N: usize>(text: &str) -> Result<[T; N], String> {
    let number = |part: &str| {
        part.trim().parse().map_err(|_| format!("{part:?} is no number that fits here"))
    };
    let numbers = text.split(',').map(number).collect::<Result<Vec<T>, String>>()?;
    let found = numbers.len();
    numbers
        .try_into()
        .map_err(|_| format!("{found} given, {N} expected; separate them with commas only"))
}

/// Loads the scenarios by name or path.
///
/// # Errors
/// The first that cannot be loaded, with file, line and key.
pub(crate) fn scenarios(names: &[String]) -> Result<Vec<Arc<Scenario>>> {
    names.iter().map(|name| Ok(Arc::new(Scenario::load(name)?))).collect()
}

/// The loads by name or path, then so many randomised sites that nobody trains on; all that the
/// program carries where neither is given.
///
/// # Errors
/// As [`scenarios`]; a site that cannot be drawn.
pub(crate) fn loads(names: &[String], sites: u32) -> Result<Vec<Arc<Scenario>>> {
    if names.is_empty() && sites == 0 {
        return EMBEDDED.iter().map(|(name, _)| Ok(Arc::new(Scenario::load(name)?))).collect();
    }
    let mut loads = scenarios(names)?;
    for number in 0..u64::from(sites) {
        loads.push(Arc::new(crate::sites::site(number)?));
    }
    Ok(loads)
}

/// Reads calibrations; where none is named, the one that the program carries.
///
/// # Errors
/// The first that cannot be used, by name.
pub(crate) fn calibrations(paths: &[PathBuf]) -> Result<Vec<Calibration>> {
    if paths.is_empty() {
        return Ok(vec![Calibration::default()]);
    }
    paths.iter().map(|path| Ok(Calibration::load(path)?)).collect()
}

/// Messages a second that the twin's broker passes, found only if a scenario asks for a multiple.
///
/// # Errors
/// Where it passes nothing: the calibration is of no real broker.
pub(crate) fn twin_capacity(
    calibration: &Calibration,
    scenarios: &[Arc<Scenario>],
) -> Result<Option<f64>> {
    if !scenarios.iter().any(|scenario| scenario.needs_capacity()) {
        return Ok(None);
    }
    let capacity = crate::twin::capacity_msgs_per_s(calibration);
    Ok(Some(capacity.context("the calibration describes a broker that passes nothing")?))
}

/// Messages a second that the broker passes here, measured only if a scenario asks for a multiple.
///
/// # Errors
/// Where the measurement fails.
pub(crate) fn capacity(
    mosquitto: &Mosquitto,
    scenarios: &[Arc<Scenario>],
    seed: u64,
) -> Result<Option<f64>> {
    if !scenarios.iter().any(|scenario| scenario.needs_capacity()) {
        return Ok(None);
    }
    tracing::info!("measuring the broker's capacity on this machine");
    let capacity = crate::trial::measure_capacity(mosquitto, seed)?;
    tracing::info!(msgs_per_s = format!("{capacity:.0}"), "capacity");
    Ok(Some(capacity))
}

/// Makes the folder that a result file is to lie in.
///
/// # Errors
/// Where it cannot be made.
pub(crate) fn create_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot create {}; choose another --out", dir.display())),
        _ => Ok(()),
    }
}

/// Writes a result whole or not at all.
///
/// # Errors
/// Where it cannot be written; what was there stands then.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(&RealFiles, path, Some(bytes), MODE_CONF)
        .with_context(|| format!("cannot write {}; choose another --out", path.display()))
}
