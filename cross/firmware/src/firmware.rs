//! Replays the trace in flash with the model in flash, and prints each decision.
//!
//! On a Cortex-M the decisions follow embassy-time's clock; on Linux this prints the same lines at
//! once: what the firmware is compared with.
#![cfg_attr(feature = "board", no_std, no_main)]

use brokertuner_firmware::lines::{self, Fault, Line, Player};

#[cfg(not(feature = "board"))]
fn main() -> Result<(), Fault> {
    let mut player = Player::default();
    player.begin()?;
    let mut line = Line::new();
    while let Some(next) = player.next(&mut line) {
        next?;
        println!("{line}");
    }
    lines::digest(&mut line)?;
    println!("{line}");
    Ok(())
}

#[cfg(feature = "board")]
mod device {
    use super::{Fault, Line, Player, lines};
    use brokertuner_firmware::board;
    use embassy_executor::Spawner;
    use embassy_time::{Duration, Ticker};

    /// How much faster than the recording it is replayed.
    const SPEED: u32 = 1000;

    async fn replay() -> Result<(), Fault> {
        let mut player = Player::default();
        let interval_ms = player.begin()? / SPEED;
        let mut ticker = Ticker::every(Duration::from_millis(interval_ms.max(1).into()));
        let mut line = Line::new();
        while let Some(next) = player.next(&mut line) {
            next?;
            defmt::println!("{=str}", line.as_str());
            ticker.next().await;
        }
        lines::digest(&mut line)?;
        defmt::println!("{=str}", line.as_str());
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
