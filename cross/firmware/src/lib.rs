//! What the firmware and the Linux programs beside it share: the model and the trace in their
//! flash, the lines that a replay prints, and the vectors whose digest is the same everywhere.
#![no_std]
#![deny(missing_docs)]

#[cfg(feature = "board")]
pub mod board;
#[cfg(feature = "compared")]
pub mod compared;
pub mod lines;
pub mod vectors;

/// The model: models/default.btm, or one with random weights where the tree has none.
pub static MODEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/model.btm"));
/// What an agent saw beside a real broker under the load mixed-day, every 5 s.
pub static TRACE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/trace.btt"));

include!(concat!(env!("OUT_DIR"), "/shape.rs"));
