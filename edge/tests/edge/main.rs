//! edge against a real Mosquitto, and its command line.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod agent;
mod apply;
mod broker;
mod cli;
mod disk;
mod doctor;
mod helper;
mod hidden;
mod http;
mod kill;
mod model;
mod models;
mod mqtt;
mod notify;
mod orders;
mod record;
mod sampler;
mod tls;
mod units;
