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
    use core::ops::ControlFlow;

    use super::{Fault, Line, Player, lines};
    use brokertuner_core::pace::{self, World};
    use brokertuner_firmware::board;
    use embassy_executor::Spawner;
    use embassy_time::{Duration, Instant, Timer};

    /// How much faster than the recording it is replayed.
    const SPEED: u32 = 1000;

    /// The loop's world: the trace in flash in the place of a broker.
    struct Board {
        player: Player,
        interval: Duration,
        line: Line,
        end: Result<(), Fault>,
    }

    impl Board {
        fn new() -> Board {
            let (player, line) = (Player::default(), Line::new());
            Board { player, interval: Duration::MIN, line, end: Ok(()) }
        }

        /// In place: what is moved takes its room twice, on the stack or in the task's static state.
        fn begin(&mut self) -> Result<(), Fault> {
            let interval_ms = self.player.begin()? / SPEED;
            self.interval = Duration::from_millis(interval_ms.max(1).into());
            Ok(())
        }
    }

    impl World for Board {
        fn now(&self) -> Instant {
            Instant::now()
        }

        fn tick(&mut self) -> ControlFlow<(), Duration> {
            match self.player.next(&mut self.line) {
                Some(Ok(())) => {
                    defmt::println!("{=str}", self.line.as_str());
                    return ControlFlow::Continue(self.interval);
                }
                Some(Err(fault)) => self.end = Err(fault),
                None => {}
            }
            ControlFlow::Break(())
        }

        async fn wait(&mut self, due: Instant) -> ControlFlow<()> {
            Timer::at(due).await;
            ControlFlow::Continue(())
        }
    }

    async fn replay() -> Result<(), Fault> {
        let mut board = Board::new();
        board.begin()?;
        pace::drive(&mut board).await;
        board.end?;
        lines::digest(&mut board.line)?;
        defmt::println!("{=str}", board.line.as_str());
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
