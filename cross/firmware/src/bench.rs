//! The cases whose instructions are counted.
#![cfg_attr(feature = "board", no_std, no_main)]
#[cfg(not(feature = "board"))]
fn main() {}
#[cfg(feature = "board")]
use brokertuner_firmware::board as _;
#[cfg(feature = "board")]
#[cortex_m_rt::entry]
fn main() -> ! { brokertuner_firmware::board::end(true) }
