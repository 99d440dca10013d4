//! Trains, evaluates and exports BrokerTuner policies on a workstation.
#![forbid(unsafe_code)]

pub mod broker;
pub mod knob_table;
pub mod load;
pub mod logs;
pub mod reward;
pub mod scenario;
