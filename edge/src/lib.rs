//! The agent beside the broker: samples, infers, applies, verifies, rolls back. Training drives the
//! same code in-process.
pub mod agent;
pub mod apply;
pub mod clock;
pub mod command;
pub mod config;
pub mod connack;
pub mod control;
pub mod elsewhere;
pub mod fs;
pub mod keys;
pub mod model;
pub mod pid;
pub mod policy;
pub mod ready;
pub mod sampler;
pub mod site;
pub mod state;
