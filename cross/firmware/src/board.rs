//! A Cortex-M: the clock, the log, the ends.

use core::cell::RefCell;
use core::panic::PanicInfo;
use core::task::Waker;

use cortex_m::peripheral::syst::SystClkSource;
use cortex_m::peripheral::{SCB, SYST};
use cortex_m_rt::{ExceptionFrame, exception};
use cortex_m_semihosting::debug;
use critical_section::Mutex;
use defmt_semihosting as _;
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;

use crate::CLOCK_HZ;

/// A tick of SysTick; `now` is finer.
const TICK_US: u64 = 1000;
const RELOAD: u32 = CLOCK_HZ / (1_000_000 / TICK_US as u32);

/// embassy-time on SysTick, in microseconds.
struct Clock {
    ticks: Mutex<RefCell<u64>>,
    queue: Mutex<RefCell<Queue>>,
}

embassy_time_driver::time_driver_impl!(static CLOCK: Clock = Clock {
    ticks: Mutex::new(RefCell::new(0)),
    queue: Mutex::new(RefCell::new(Queue::new())),
});

impl Driver for Clock {
    fn now(&self) -> u64 {
        critical_section::with(|cs| {
            let ticks = *self.ticks.borrow_ref(cs);
            let left = SYST::get_current();
            // It may have wrapped since interrupts were masked.
            let (ticks, left) = if SCB::is_pendst_pending() {
                (ticks + 1, SYST::get_current())
            } else {
                (ticks, left)
            };
            ticks * TICK_US + u64::from(RELOAD - left.min(RELOAD)) * TICK_US / u64::from(RELOAD)
        })
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // Every tick looks at the queue.
        critical_section::with(|cs| self.queue.borrow_ref_mut(cs).schedule_wake(at, waker));
    }
}

#[exception]
fn SysTick() {
    critical_section::with(|cs| {
        let now = {
            let mut ticks = CLOCK.ticks.borrow_ref_mut(cs);
            *ticks += 1;
            *ticks * TICK_US
        };
        CLOCK.queue.borrow_ref_mut(cs).next_expiration(now);
    });
}

/// Starts the clock.
pub fn start(mut syst: SYST) {
    syst.set_clock_source(SystClkSource::Core);
    syst.set_reload(RELOAD - 1);
    syst.clear_current();
    syst.enable_counter();
    syst.enable_interrupt();
}

/// Ends QEMU with status 0 or 1; on a board without a debugger, stops here.
pub fn end(is_good: bool) -> ! {
    debug::exit(if is_good { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    loop {
        cortex_m::asm::wfi();
    }
}

/// Bytes of stack that were ever in use: cortex-m-rt painted it before the program began.
pub fn stack_bytes_used() -> usize {
    unsafe extern "C" {
        static _stack_end: u32;
        static _stack_start: u32;
    }
    let end = &raw const _stack_end;
    let start = &raw const _stack_start;
    // SAFETY: both symbols come from cortex-m-rt's linker script and bound the stack's RAM, which
    // is aligned to 4 bytes and always readable; what lies in it is read as plain words.
    unsafe {
        let words = start.offset_from(end).unsigned_abs();
        let untouched = (0..words)
            .take_while(|&index| end.add(index).read_volatile() == cortex_m_rt::STACK_PAINT_VALUE)
            .count();
        (words - untouched) * size_of::<u32>()
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    defmt::error!("{}", defmt::Display2Format(info));
    end(false)
}

// A fault in QEMU would otherwise loop for ever.
#[exception]
unsafe fn HardFault(_frame: &ExceptionFrame) -> ! {
    end(false)
}
