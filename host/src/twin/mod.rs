//! A simulator of a broker and its clients.

mod cohort;
mod cpu;
mod link;
mod time;
mod world;

pub use cpu::Costs;
pub use world::{Outcome, play};
