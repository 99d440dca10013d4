//! A simulator of a broker and its clients.

mod agent;
mod broker;
mod calibration;
mod cohort;
mod cpu;
#[cfg(test)]
mod judge;
mod link;
mod play;
mod time;
mod world;

pub use agent::{Agent, Gateway, is_sighted};
pub use calibration::{Calibration, CalibrationError};
pub use cpu::Costs;
pub use play::{Play, Played, SLICE_US, capacity_msgs_per_s};
pub use world::{Config, World};

#[cfg(test)]
mod tests;
