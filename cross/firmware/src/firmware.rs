//! Replays the trace in flash with the model in flash, and prints each decision.
//!
//! On a Cortex-M the decisions follow embassy-time's clock; on Linux this prints the same lines at
//! once: what the firmware is compared with.
#![cfg_attr(feature = "board", no_std, no_main)]

use brokertuner_firmware::lines::{self, Fault, Player};

#[cfg(not(feature = "board"))]
fn main() -> Result<(), Fault> {
    let mut player = Player::new()?;
    for record in player.records() {
        println!("{}", player.step(&record?)?);
    }
    println!("{}", lines::digest()?);
    Ok(())
}

#[cfg(feature = "board")]
mod device {
    use super::{Fault, Player, lines};
    use brokertuner_firmware::board;
    use embassy_executor::Spawner;
    use embassy_time::{Duration, Ticker};

    /// How much faster than the recording it is replayed.
    const SPEED: u32 = 1000;

    async fn replay() -> Result<(), Fault> {
        let mut player = Player::new()?;
        let interval = Duration::from_millis(u64::from((player.interval_ms() / SPEED).max(1)));
        let mut ticker = Ticker::every(interval);
        for record in player.records() {
            ticker.next().await;
            defmt::println!("{=str}", player.step(&record?)?.as_str());
        }
        defmt::println!("{=str}", lines::digest()?.as_str());
        Ok(())
    }

    #[embassy_executor::main]
    async fn main(_spawner: Spawner) {
        if let Some(peripherals) = cortex_m::Peripherals::take() {
            board::start(peripherals.SYST);
        }
        let end = replay().await;
        if let Err(fault) = end {
            defmt::error!("{}", defmt::Debug2Format(&fault));
        }
        defmt::info!("stack {=usize} bytes", board::stack_bytes_used());
        board::end(end.is_ok());
    }
}
