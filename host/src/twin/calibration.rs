//! What the twin knows of the real broker, from measurement.

use super::cpu::Costs;
use serde::{Deserialize, Serialize};

/// Version of the file.
pub const VERSION: u32 = 1;

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
    /// Resident memory of an empty broker.
    pub rss_bytes_base: u64,
    /// Heap of an empty broker.
    pub heap_bytes_base: u64,
    /// Memory of a stored message beside its payload.
    pub bytes_per_message: f64,
    /// Memory of its entry in a window or queue.
    pub bytes_per_entry: f64,
    /// Memory of a connection.
    pub bytes_per_client: u64,
    /// Share of the largest resident memory that is kept when messages go.
    pub rss_kept_share: f64,
    /// CPU time.
    pub costs: Costs,
}

impl Default for Calibration {
    /// Mosquitto 2.0.21 on the machine that this was written on.
    fn default() -> Self {
        Calibration {
            version: VERSION,
            window_holds: true,
            restart_us: 40_000.0,
            save_us_base: 1000.0,
            save_us_per_mib: 4000.0,
            rss_bytes_base: 7 << 20,
            heap_bytes_base: 830_000,
            bytes_per_message: 300.0,
            bytes_per_entry: 120.0,
            bytes_per_client: 4000,
            rss_kept_share: 0.9,
            costs: Costs::default(),
        }
    }
}
