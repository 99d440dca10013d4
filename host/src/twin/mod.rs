//! A simulator of a broker and its clients.

mod agent;
mod broker;
mod calibration;
mod cohort;
mod cpu;
mod link;
mod time;
mod world;

pub use agent::Agent;
pub use calibration::Calibration;
pub use cpu::Costs;
pub use world::{Config, World};
