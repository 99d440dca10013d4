//! edge against a real Mosquitto, and its command line.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod agent;
mod apply;
mod broker;
mod cli;
mod kill;
mod model;
mod models;
mod sampler;
