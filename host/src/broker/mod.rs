//! Mosquitto as a child process: found, started on a free loopback port, capped, watched and always
//! ended.
//!
//! Every broker runs in a temporary folder of its own with a configuration like a distribution's: a
//! main file whose last line includes `conf.d/`, where the tuned drop-in lies. Three nets catch a
//! broker whose owner goes away: [`BrokerProcess`] ends it when dropped (unwinding included),
//! [`install_signal_guard`] on a second Ctrl-C, and the kernel's parent-death signal when this
//! process is killed outright. The last two catch an `edge` too that is started beside a broker.

mod cgroup;
mod conf;
mod error;
mod fetch;
mod find;
mod guard;
mod lifecycle;
mod port;
mod probe;
mod process;
mod spawner;
mod supervise;

pub use error::BrokerError;
pub use fetch::fetch;
pub use find::{Mosquitto, Version};
pub(crate) use guard::{Belongings, unregister};
pub use guard::{install_signal_guard, interrupted};
pub use probe::window_holds;
pub use process::{BrokerProcess, LogTypes, Phase, RestartInfo, SpawnConfig, cpu_time, rss_bytes};
pub(crate) use spawner::{Output, spawn as spawn_child};
