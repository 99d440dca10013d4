//! Decides how a Mosquitto broker should be set, and never does I/O.
//!
//! What stands where: [`knobs`] is the table of the 11 options from which everything else derives;
//! [`settings`] holds a value or nothing for each; [`envelope`] is the bound nobody may leave;
//! [`render`] writes and reads the drop-in's text; [`sample`] turns counters into rates and
//! [`features`] rates into the actor's input; [`actor`] is the integer network (`vectors` makes it
//! quick on 64-bit processors) and [`model`] its file; [`controller`] decides when a change is worth
//! making, and [`weigh`] says what it rests on; [`trace`] keeps what was seen and [`replay`] decides
//! on it again elsewhere; [`pace`] is the loop that does all of it again and again.
//!
//! No heap, no clock, no float between the quantised features and the decoded settings.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod actor;
pub mod controller;
pub mod envelope;
pub mod features;

mod fingerprint;
pub mod knobs;

mod math;
pub mod model;
pub mod pace;
pub mod render;
pub mod replay;
pub mod sample;

pub mod settings;
pub mod trace;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vectors;
pub mod weigh;

pub use embassy_time::{Duration, Instant};
pub use envelope::Envelope;
pub use knobs::{KNOB_COUNT, KNOBS, Knob, KnobSet, KnobSpec, KnobValue};
pub use settings::{Action, Setting, Settings, quantise_action};
