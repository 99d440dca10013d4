//! The clock on the wall, stepped under an agent at work.
//!
//! libfaketime steps it for the agent alone; the clock that the loop goes by stays as it is, as with a
//! step by hand or by the network's time.

use std::path::{Path, PathBuf};

use super::site::Site;
use super::{ROW, Row};
use crate::support::wait_for;

const INSTALL: &str = "libfaketime is missing: sudo apt-get install -y faketime";

const SAYS: &[&str] = &[
    "The clock on the wall was stepped",
    "The change stood its verification.",
    "the restart budget of this hour is used up",
];

pub(super) static ROWS: &[Row] = &[
    Row {
        name: "the wall clock back an hour while the agent is at work",
        fault: |site| stepped(site, -3600),
        says: SAYS,
        ..ROW
    },
    Row {
        name: "the wall clock forward an hour while the agent is at work",
        fault: |site| stepped(site, 3600),
        says: SAYS,
        ..ROW
    },
    Row {
        name: "the wall clock forward a day while the agent is at work",
        fault: |site| stepped(site, 86_400),
        says: SAYS,
        ..ROW
    },
];

/// Whoever runs with these goes by a clock that is ahead by what the file says.
pub(super) fn environment(ahead: &Path) -> [(&'static str, PathBuf); 6] {
    let library = ["x86_64", "aarch64", "arm"]
        .map(|processor| format!("/usr/lib/{processor}-linux-gnu/faketime/libfaketimeMT.so.1"));
    let library = library.iter().map(PathBuf::from).find(|path| path.exists()).expect(INSTALL);
    [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", ahead.into()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DISABLE_SHM", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
    ]
}

/// A step in the middle of a change: the change is verified, the one restart of this hour stays one,
/// for this agent and for the one that is started after it was killed.
fn stepped(site: &mut Site, by_s: i64) {
    site.replace("restarts_per_hour_max = 32", "restarts_per_hour_max = 1");
    site.set_clock_ahead(0);
    site.start_agent();
    site.until_said("Changed.");
    site.set_clock_ahead(by_s);
    site.until_said("The clock on the wall was stepped");
    let log = site.log();
    let told_s = log.split_once("stepped_s=").and_then(|(_, rest)| rest.split_whitespace().next());
    let told_s: i64 = told_s.unwrap_or_default().parse().unwrap();
    assert!(told_s.abs_diff(by_s) <= 2, "{told_s}");
    site.until_tuned();
    let before = site.broker.pid();
    super::models::want_less(site);
    site.until_said("the restart budget of this hour is used up");
    site.take_agent().kill();
    let said = site.log().len();
    site.start_agent();
    wait_for("the next agent to hold", || {
        site.log()[said..].contains("the restart budget of this hour is used up").then_some(())
    });
    assert_eq!(site.broker.pid(), before, "restarted");
    // The journal's dates run back or leap; what it tells is in order all the same.
    assert_eq!(site.run_edge(&["explain"]), 0);
}
