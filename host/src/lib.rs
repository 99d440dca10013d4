//! Trains, evaluates and exports BrokerTuner policies on a workstation.
#![forbid(unsafe_code)]

pub mod broker;
pub mod calibrate;
pub mod cli;
pub mod ddpg;
pub mod demo;
pub mod env;
pub mod evaluate;
pub mod export;
pub mod knob_table;
pub mod load;
pub mod logs;
mod progress;
pub mod report;
pub mod reward;
pub mod scenario;
pub mod search;
pub mod sites;
pub mod sweep;
pub mod train;
pub mod trial;
pub mod twin;
