//! Trains, evaluates and exports BrokerTuner policies on a workstation.
#![forbid(unsafe_code)]

pub mod ddpg;
pub mod knob_table;
pub mod logs;
pub mod reward;
