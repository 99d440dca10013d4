//! Processors that stay awake under a load.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};

/// The kernel's bound on how long a processor may take to wake, a native 32-bit integer in
/// microseconds; it holds as long as the file is open (pm_qos_interface in the kernel's
/// documentation).
const CPU_DMA_LATENCY: &str = "/dev/cpu_dma_latency";

/// Idle processors poll as long as this is held, where the system permits it (as a rule to root).
///
/// The processor of a virtual machine that sleeps is lent to others, and woken late: on such a
/// machine 21 of 30 seconds of a light load were void, since turns of the generator took up to
/// 65 ms; held awake, none was, and the longest took 7 ms.
#[derive(Debug)]
pub(super) struct Awake {
    _bound: File,
}

impl Awake {
    /// # Errors
    /// Where there is no such bound, or no permission.
    pub(super) fn hold() -> io::Result<Self> {
        let mut bound = OpenOptions::new().write(true).open(CPU_DMA_LATENCY)?;
        bound.write_all(&0_i32.to_ne_bytes())?;
        Ok(Self { _bound: bound })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_bound_is_in_force_while_it_is_held() {
        let bound_us = || {
            let mut bytes = [0; 4];
            File::open(CPU_DMA_LATENCY)?.read_exact(&mut bytes)?;
            io::Result::Ok(i32::from_ne_bytes(bytes))
        };
        match Awake::hold() {
            Ok(_held) => assert_eq!(bound_us().unwrap(), 0),
            Err(error) => {
                let is_told = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
                assert!(is_told.contains(&error.kind()), "{error}");
            }
        }
    }
}
