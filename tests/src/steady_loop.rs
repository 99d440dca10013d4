//! What the steady loop costs, for `tests/lightness.rs`: `steady-loop CONFIG MODEL SHIPPED`.
//!
//! Runs the agent of that configuration until it holds, and prints one JSON object: time of an
//! inference of the shipped model and of a decision, and heap allocations of a decision, of a whole
//! tick of `edge run`, and of all other threads beside it. Every allocation is counted by the
//! allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use brokertuner_core::KNOB_COUNT;
use brokertuner_core::controller::{HoldReason, Rules};
use brokertuner_core::features::Schema;
use brokertuner_core::model::Model;
use brokertuner_core::replay::Replay;
use brokertuner_core::trace::{Head, Record};
use brokertuner_edge::agent::{Agent, Mode, Report, StatusFile, Verdict};
use brokertuner_edge::config::Config;
use brokertuner_edge::model::ModelSource;
use brokertuner_edge::site::{Environment, Site};
use serde_json::json;

/// Ticks and inferences that are measured.
const TICKS: u32 = 50;
/// Records of a replay, one per [`PAUSE`], and how often they are replayed.
const RECORDS: usize = 100;
const REPLAYS: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(100);
const INFERENCES: u32 = 100_000;
/// Rounds of a measurement: shorter than what a busy machine leaves a process at a time.
const ROUNDS: u32 = 1000;
/// Two updates of `$SYS`, and some.
const PATIENCE: Duration = Duration::from_secs(60);

/// Allocations of all threads.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Allocations of this thread, and bytes that it has taken and not given back.
    static HEAP: Cell<(u64, i64)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, counting.
struct Counting;

fn count(calls: u64, bytes: i64) {
    ALLOCATIONS.fetch_add(calls, Ordering::Relaxed);
    // A thread that is ending has no counter any more.
    let _ = HEAP.try_with(|heap| {
        let (all, live) = heap.get();
        heap.set((all + calls, live + bytes));
    });
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: each call goes to the system's allocator with its arguments unchanged; counting touches
// only a thread-local cell without a destructor, which allocates nothing.
#[allow(unsafe_code, reason = "an allocator can't be written without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, signed(layout.size()));
        // SAFETY: the caller's promise about `layout` is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -signed(layout.size()));
        // SAFETY: the caller's promise about both is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, signed(size) - signed(layout.size()));
        // SAFETY: the caller's promise about all three is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and growth of `run`, per call of `times`.
fn heap_of(times: u32, mut run: impl FnMut()) -> (f64, f64) {
    let (calls, live) = HEAP.get();
    (0..times).for_each(|_| run());
    let (calls_after, live_after) = HEAP.get();
    let per = |total: f64| total / f64::from(times);
    (per((calls_after - calls) as f64), per((live_after - live) as f64))
}

/// Nanoseconds of `run`: the quickest of a thousand short rounds, for whatever else runs only adds.
fn time_of(times: u32, mut run: impl FnMut()) -> f64 {
    let each = times / ROUNDS;
    let rounds = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        (0..each).for_each(|_| run());
        began.elapsed().as_nanos() as f64 / f64::from(each)
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let config = arguments.next().ok_or("usage: steady-loop CONFIG MODEL SHIPPED")?;
    let model = std::fs::read(arguments.next().ok_or("the model is missing")?)?;
    let shipped = std::fs::read(arguments.next().ok_or("the shipped model is missing")?)?;
    let config = Config::load(Path::new(&config))?;
    let site = Site::look(&config, &Environment::default())?;
    let head = Head {
        interval_ms: u32::try_from(site.interval.as_millis())?,
        targets: site.targets,
        envelope: site.envelope,
    };
    let policy = ModelSource::of(&config)?.open()?;
    let mut agent = Agent::start(site, Box::new(policy))?;
    let mut status = StatusFile::in_dir(&config.agent.state_dir);
    let records = steady(&mut agent, &mut status)?;
    let began = (Instant::now(), ALLOCATIONS.load(Ordering::Relaxed), HEAP.get().0);
    let (tick_allocations, tick_grown_bytes) = heap_of(TICKS, || {
        let tick = black_box(agent.tick(Mode::Act));
        black_box(status.is_due(&agent, &tick));
        thread::sleep(PAUSE);
    });
    let all = ALLOCATIONS.load(Ordering::Relaxed) - began.1;
    let others = (all - (HEAP.get().0 - began.2)) as f64;
    let other_allocations_per_s = others / began.0.elapsed().as_secs_f64();

    let model = Model::read(&model)?;
    let mut asked = 0;
    let mut decide_all = || {
        let mut replay = Replay::new(model, head, Rules::default());
        for record in &records {
            let step = black_box(replay.step(black_box(record)));
            asked += u32::from(step.is_ok_and(|step| step.answer.is_some()));
        }
    };
    let count = f64::from(u32::try_from(records.len())?);
    let (allocations, _) = heap_of(REPLAYS, &mut decide_all);
    let (decision_allocations, decision_ns) =
        (allocations / count, time_of(REPLAYS, &mut decide_all) / count);
    if f64::from(asked) < f64::from(REPLAYS) * count {
        return Err("most decisions did not ask the model: nothing was measured".into());
    }

    let features = [0.5; Schema::Edge.len()];
    let mut action = [0; KNOB_COUNT];
    let shipped = Model::read(&shipped)?;
    let infer_ns = time_of(INFERENCES, || {
        let _ = shipped.infer(black_box(&features), &mut action);
        black_box(&action);
    });
    println!(
        "{}",
        json!({
            "infer_ns": infer_ns,
            "decision_ns": decision_ns,
            "decision_allocations": decision_allocations,
            "tick_allocations": tick_allocations,
            "tick_grown_bytes": tick_grown_bytes,
            "other_allocations_per_s": other_allocations_per_s,
        })
    );
    Ok(())
}

/// Ticks until there is nothing to change and for as long again, and returns what the decisions of
/// the second part rest on.
fn steady(agent: &mut Agent, status: &mut StatusFile) -> Result<Vec<Record>, Box<dyn Error>> {
    let began = Instant::now();
    let mut records = Vec::with_capacity(RECORDS);
    while records.len() < RECORDS {
        let tick = agent.tick(Mode::Act);
        if status.is_due(agent, &tick) {
            status.write(&Report::of(agent, &tick))?;
        }
        if matches!(tick.verdict, Verdict::Hold(HoldReason::Satisfied)) {
            records.push(tick.record);
        } else if began.elapsed() > PATIENCE {
            return Err(format!("no steady state: {:?}", tick.verdict).into());
        }
        thread::sleep(PAUSE);
    }
    Ok(records)
}
