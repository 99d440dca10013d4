//! A simulator of a broker and its clients.

mod broker;
mod calibration;
mod cohort;
mod cpu;
mod link;
mod time;
mod world;

pub use calibration::Calibration;
pub use cpu::Costs;
pub use world::{Config, World};
