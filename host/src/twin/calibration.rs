//! What the twin knows of the real broker, from measurement.

use super::cpu::Costs;
use rand::RngExt;
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// No time, size or share of a broker is larger: microseconds of an hour.
const NUMBER_MAX: f64 = 3.6e9;
/// What `host calibrate` wrote for Mosquitto 2.0.21: on a core of a server, then on one of a virtual
/// machine half as fast.
const SHIPPED: [&str; 2] = [
    include_str!("../../calibrations/mosquitto-2.0.21.toml"),
    include_str!("../../calibrations/mosquitto-2.0.21-vm.toml"),
];
/// No two gateways are alike: a core takes so many times as long as the calibration's.
const SLOWED: std::ops::Range<f64> = 0.5..3.0;
/// Nor is one only slower: each cost by itself takes so many times as long. What a step costs of its
/// own can hardly be told from what the steps beside it cost (the two calibrations differ by 20
/// times in `publish_us`), so that no policy may rest on it.
const UNLIKE: std::ops::Range<f64> = 0.6..1.7;
/// Size of the idle process, as a multiple of the calibrated one.
const SIZES: std::ops::Range<f64> = 0.8..1.3;
/// Share of gateways with a broker whose window does not hold, as that of Debian 12.
const OLD_SHARE: f64 = 0.1;
/// Version of the file.
const VERSION: u32 = 1;

/// One broker on one machine. Written by `host calibrate` as TOML.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Version of this file's format.
    pub version: u32,
    /// The inflight window holds against late acknowledgements (not on 2.0.11).
    pub window_holds: bool,
    /// From the loss of all connections to the first CONNACK.
    pub restart_us: f64,
    /// A save of an empty database.
    pub save_us_base: f64,
    /// The same for each MiB in it.
    pub save_us_per_mib: f64,
    /// Round trip of the agent's probe through a broker at rest.
    pub probe_us: f64,
    /// Resident memory of an empty broker.
    pub rss_bytes_base: u64,
    /// Heap of an empty broker.
    pub heap_bytes_base: u64,
    /// Memory of a stored message beside its payload.
    pub bytes_per_message: f64,
    /// Memory of a byte of payload.
    pub payload_factor: f64,
    /// Memory of its entry in a window or queue.
    pub bytes_per_entry: f64,
    /// Memory of a connection.
    pub bytes_per_client: u64,
    /// Share of the largest resident memory that is kept when messages go.
    pub rss_kept_share: f64,
    /// CPU time.
    pub costs: Costs,
}

/// Why a calibration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// Reading or writing the file failed.
    #[error("calibration {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Not a calibration.
    #[error("calibration {}: {reason}; `host calibrate` makes another one", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Calibration {
    /// The same broker on a core that takes so many times as long for everything.
    #[must_use]
    pub fn slowed(self, factor: f64) -> Calibration {
        Calibration {
            restart_us: self.restart_us * factor,
            save_us_base: self.save_us_base * factor,
            save_us_per_mib: self.save_us_per_mib * factor,
            probe_us: self.probe_us * factor,
            costs: self.costs.map(|us| us * factor),
            ..self
        }
    }

    /// One of these brokers as it may be found in the field: on a slower or faster core, with other
    /// libraries, and some with a window that does not hold. There must be one.
    pub(crate) fn of_some_gateway(calibrations: &[Calibration], rng: &mut Pcg64Mcg) -> Calibration {
        let calibration = calibrations[rng.random_range(0..calibrations.len())];
        let factor = between(rng, &SLOWED);
        let size: f64 = rng.random_range(SIZES);
        let sized = |bytes: u64| (bytes as f64 * size) as u64;
        Calibration {
            window_holds: calibration.window_holds && !rng.random_bool(OLD_SHARE),
            rss_bytes_base: sized(calibration.rss_bytes_base),
            heap_bytes_base: sized(calibration.heap_bytes_base),
            costs: calibration.costs.map(|us| us * factor * between(rng, &UNLIKE)),
            ..calibration.slowed(factor)
        }
    }

    /// All that the program carries, the default first.
    #[must_use]
    pub fn shipped() -> Vec<Calibration> {
        // A test reads them; without one nothing could be simulated.
        let parsed = SHIPPED.map(Calibration::parse);
        parsed
            .into_iter()
            .map(|parsed| parsed.unwrap_or_else(|reason| panic!("a shipped calibration: {reason}")))
            .collect()
    }

    /// Reads a file of `host calibrate`.
    ///
    /// # Errors
    /// [`CalibrationError`], which names the file.
    pub fn load(path: &Path) -> Result<Calibration, CalibrationError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| CalibrationError::File { path: path.to_owned(), source })?;
        Calibration::parse(&text)
            .map_err(|reason| CalibrationError::Invalid { path: path.to_owned(), reason })
    }

    /// Reads the text of such a file; the error says what is wrong with it.
    fn parse(text: &str) -> Result<Calibration, String> {
        let found: Calibration = toml::from_str(text).map_err(|error| error.to_string())?;
        if found.version != VERSION {
            return Err(format!("version {}, where this program reads {VERSION}", found.version));
        }
        let table = toml::Table::try_from(found).map_err(|error| error.to_string())?;
        match numbers(&table).find(|(_, value)| !(0.0..=NUMBER_MAX).contains(value)) {
            Some((name, value)) => Err(format!("{name} is {value}, not 0 to {NUMBER_MAX}")),
            None => Ok(found),
        }
    }
}

/// Even by the logarithm.
fn between(rng: &mut Pcg64Mcg, range: &std::ops::Range<f64>) -> f64 {
    rng.random_range(range.start.ln()..range.end.ln()).exp()
}

/// Every number of a table and of those in it, by name.
fn numbers(table: &toml::Table) -> Box<dyn Iterator<Item = (&str, f64)> + '_> {
    Box::new(table.iter().flat_map(|(name, value)| match value {
        toml::Value::Table(inner) => numbers(inner),
        toml::Value::Float(number) => Box::new(std::iter::once((name.as_str(), *number))),
        #[allow(clippy::cast_precision_loss, reason = "a bound of it is checked")]
        toml::Value::Integer(number) => Box::new(std::iter::once((name.as_str(), *number as f64))),
        _ => Box::new(std::iter::empty()),
    }))
}

impl Default for Calibration {
    /// Mosquitto 2.0.21 on a core of an x86-64 server, as `host calibrate` measured it.
    fn default() -> Self {
        Calibration::shipped()[0]
    }
}
