//! The fault matrix: everything that may go wrong beside a real broker, on every version.
//!
//! A row brings one fault about and says what the agent is to say of it. What has to hold in the
//! end is the same for all: the broker serves; the settings are inside the envelope; of the
//! sessions and messages that were saved before the fault none is lost, and where nothing is saved
//! the agent makes no restart; the named words stand in the agent's log or answer.

mod broker;
mod calls;
mod clock;
mod files;
mod helper;
mod http;
mod models;
mod site;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::VERSIONS;
use site::Site;

/// Rows at a time: most of a row is waiting, for `$SYS` above all.
const LANES: usize = 10;
/// The matrix is part of every run of the tests.
const TIME_MAX: Duration = Duration::from_secs(360);

/// What the broker holds when the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// A session with messages and a retained message, saved to the disk.
    Saved,
    /// The same without persistence.
    Unsaved,
    /// Nothing.
    Nothing,
}

/// One fault.
struct Row {
    name: &'static str,
    holds: Holds,
    /// Further lines of the broker's main file.
    main_conf: &'static [&'static str],
    /// Further lines of the agent's configuration.
    config: &'static str,
    /// Brings the fault about and waits for what comes of it.
    fault: fn(&mut Site),
    /// What the agent says.
    says: &'static [&'static str],
    /// The drop-in ends as someone else's.
    theirs: bool,
}

const ROW: Row = Row {
    name: "",
    holds: Holds::Saved,
    main_conf: &[],
    config: "",
    fault: |_| {},
    says: &[],
    theirs: false,
};

fn rows() -> impl Iterator<Item = &'static Row> {
    let first = files::ROWS.iter().chain(broker::ROWS).chain(models::ROWS);
    first.chain(http::ROWS).chain(clock::ROWS).chain(helper::ROWS)
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// What is wrong with a row on a version; `None` where nothing is.
fn fault_of(row: &Row, version: &'static str) -> Option<String> {
    let began = Instant::now();
    let mut site = match catch_unwind(|| Site::new(row, version)) {
        Ok(site) => site,
        Err(panic) => return Some(format!("{version}: {}: {}", row.name, words(&*panic))),
    };
    let judged = catch_unwind(AssertUnwindSafe(|| {
        (row.fault)(&mut site);
        site.judge(row);
    }));
    println!("{version}: {}: {:.1} s", row.name, began.elapsed().as_secs_f64());
    let panic = judged.err()?;
    Some(format!("{version}: {}: {}\n{}", row.name, words(&*panic), site.story()))
}

/// Judges rows on all versions; gives how long it took.
fn judge(rows: impl Iterator<Item = &'static Row>) -> Duration {
    let began = Instant::now();
    let all: Vec<(&Row, &'static str)> =
        rows.flat_map(|row| VERSIONS_ALL.map(|version| (row, version))).collect();
    let next = AtomicUsize::new(0);
    let lane = || {
        let mut faults = Vec::new();
        while let Some((row, version)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            faults.extend(fault_of(row, version));
        }
        faults
    };
    let faults: Vec<String> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().flat_map(|lane| lane.join().expect("a lane catches panics")).collect()
    });
    let took = began.elapsed();
    println!("{} rows and versions of {VERSIONS_ALL:?} in {took:.0?}", all.len());
    assert!(faults.is_empty(), "{} faults:\n\n{}", faults.len(), faults.join("\n\n"));
    took
}

#[test]
fn every_fault_leaves_a_serving_broker_and_is_told() {
    let took = judge(rows());
    assert!(rows().count() >= 40);
    assert!(took <= TIME_MAX, "{took:?}");
}

#[test]
#[ignore = "some minutes of waiting: tests/run --only slow-faults"]
fn a_broker_that_tells_of_itself_once_a_minute_is_tuned() {
    judge(broker::SLOW_ROWS.iter());
}

/// The versions of the other tests, and the newest there is.
const VERSIONS_ALL: [&str; 3] = [VERSIONS[0], VERSIONS[1], "2.1"];
