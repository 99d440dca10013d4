//! A simulator of a broker and its clients: see `host/TWIN.md`.

#![allow(
    clippy::cast_possible_truncation,
    reason = "casts from f64 saturate, and no hour of a broker comes near their bounds"
)]

mod agent;
mod broker;
mod calibration;
mod cohort;
mod cpu;
mod eyes;
#[cfg(test)]
mod judge;
mod link;
mod play;
mod policy;
mod time;
mod world;

pub use agent::{Agent, Gateway, is_sighted};
pub use calibration::{Calibration, CalibrationError};
pub use cpu::Costs;
pub use play::{Play, Played, SLICE_US, capacity_msgs_per_s};
pub use policy::{AgentPolicy, FilePolicy};
pub use world::{Config, World};

#[cfg(test)]
mod tests;
