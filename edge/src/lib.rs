//! The agent beside the broker: samples, infers, applies, verifies, rolls back. Training drives the
//! same code in-process.
pub mod agent;
pub mod apply;
pub mod clock;
pub mod command;
pub mod config;
pub mod connack;
pub mod control;
pub mod doctor;
pub mod elsewhere;
pub mod fs;
pub mod journal;
pub mod knobs_request;
pub mod orders;
pub mod pid;
pub mod plan;
pub mod policy;
pub mod quiet;
pub mod ready;
pub mod sampler;
pub mod service;
pub mod site;
pub mod state;
pub mod undo;
