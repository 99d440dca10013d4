//! The cases whose instructions QEMU's plugin counts: each between `bench_begin` and `bench_end`.
//!
//! Prints a line a case, in the plugin's order: name, multiply-accumulates.
#![cfg_attr(feature = "board", no_std, no_main)]

use core::arch::asm;
use core::hint::black_box;

use brokertuner_core::KNOB_COUNT;
use brokertuner_core::controller::{Decision, Rules};
use brokertuner_core::features::Schema;
use brokertuner_core::knobs::Apply;
use brokertuner_core::model::Model;
use brokertuner_core::render;
use brokertuner_core::replay::Replay;
use brokertuner_core::trace::Trace;
use brokertuner_firmware::lines::Fault;
use brokertuner_firmware::{HIDDEN, MODEL, TRACE, compared};

const INPUTS: usize = Schema::Edge.len();
const PRODUCTS: usize = INPUTS * HIDDEN[0] + HIDDEN[0] * HIDDEN[1] + HIDDEN[1] * KNOB_COUNT;

/// Counting begins.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bench_begin() {
    // SAFETY: an instruction that does nothing; there so that no two functions are alike.
    unsafe { asm!("nop") }
}

/// Counting ends.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bench_end() {
    // SAFETY: as above.
    unsafe { asm!("nop", "nop") }
}

/// Counts the instructions of `case`.
fn count<T>(case: impl FnOnce() -> T) -> T {
    bench_begin();
    let result = black_box(case());
    bench_end();
    result
}

fn bench(mut line: impl FnMut(&str, usize)) -> Result<(), Fault> {
    let model = Model::read(MODEL)?;
    inference(&model)?;
    line("quantise", 0);
    line("infer", PRODUCTS);
    count(|| compared::infer(black_box(&[5; INPUTS])));
    line("microflow", PRODUCTS);
    let trace = Trace::read(TRACE)?;
    decision(&model, &trace, first_restart(&model, &trace)?)?;
    line("decision", PRODUCTS);
    Ok(())
}

/// Two cases: features to bytes, and bytes to actions. What is never inlined gives its stack back.
#[inline(never)]
fn inference(model: &Model) -> Result<(), Fault> {
    let actor = model.actor::<INPUTS, { HIDDEN[0] }, { HIDDEN[1] }, KNOB_COUNT>()?;
    let features: [f32; INPUTS] = core::array::from_fn(|index| index as f32 / 20.0);
    let input = count(|| actor.quantise(black_box(&features)));
    count(|| actor.infer(black_box(&input)));
    Ok(())
}

/// The number of the first record whose decision restarts the broker. That takes all that a decision
/// can: from the sample by way of the model and the price of a restart to the text of the drop-in.
#[inline(never)]
fn first_restart(model: &Model, trace: &Trace) -> Result<usize, Fault> {
    let mut replay = Replay::new(*model, *trace.head(), Rules::default());
    for (number, record) in trace.records().enumerate() {
        let decision = replay.step(&record?)?.decision;
        if matches!(decision, Decision::Change { apply: Apply::Restart, .. }) {
            return Ok(number);
        }
    }
    Err(Fault::NoRestart)
}

/// Counts the decision on record `number`. A replay of its own: two at once are too much for 16 KiB.
#[inline(never)]
fn decision(model: &Model, trace: &Trace, number: usize) -> Result<(), Fault> {
    let mut replay = Replay::new(*model, *trace.head(), Rules::default());
    for record in trace.records().take(number) {
        replay.step(&record?)?;
    }
    let record = trace.records().nth(number).ok_or(Fault::NoRestart)??;
    let text = count(|| replay.step(black_box(&record)).map(|step| render::render(&step.written)))?;
    black_box(text);
    Ok(())
}

#[cfg(not(feature = "board"))]
fn main() -> Result<(), Fault> {
    bench(|name, products| println!("{name} {products}"))
}

#[cfg(feature = "board")]
#[cortex_m_rt::entry]
fn main() -> ! {
    let end = bench(|name, products| defmt::println!("{=str} {=usize}", name, products));
    brokertuner_firmware::board::end(end.is_ok())
}
