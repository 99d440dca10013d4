//! Tests of the workspace against real brokers, and of the repository itself.
//!
//! Each module is one subject. A broker that is missing is a failure that names the command to get
//! it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]

mod bad_input;
mod cross;
mod demo;
mod faults;
mod kill;
mod learning;
mod lifecycle;
mod lightness;
mod long;
mod own_traffic;
mod packages;
mod scores;
mod semantics;
mod soak;
mod support;
mod tidy;
