//! How careful the controller is.

use embassy_time::Duration;

/// How careful to be. Every default is the gateway's.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rules {
    /// An option must have been wanted elsewhere, and at much the same place, for this long before a
    /// restart is made for it.
    pub dwell: Duration,
    /// How long the effect of a change is watched before it counts as good.
    pub verify_window: Duration,
    /// How long figures that were there before a change may stay away after it: three updates of
    /// `$SYS` at `sys_interval 60`, and some.
    pub unseen_max: Duration,
    /// Restarts in any 60 minutes; at most [`RESTARTS_REMEMBERED_MAX`](super::RESTARTS_REMEMBERED_MAX).
    pub restarts_per_hour_max: u8,
    /// Restarts in any 24 hours; at most [`RESTARTS_REMEMBERED_MAX`](super::RESTARTS_REMEMBERED_MAX).
    pub restarts_per_day_max: u8,
    /// Options that moved by at most this many of 254 steps of the actor's grid did not move: an
    /// eighth of the range, about a factor of two in a window or queue.
    pub dead_band_steps: u8,
    /// An option is wanted at much the same place while it stays within this many steps of the mean
    /// of what was wanted before: a quarter of the range. The dwell is there against changes of
    /// mind, not against jitter.
    pub alike_steps: u8,
    /// A broker that answers nobody for this long after a change is not watched any longer.
    pub down_max: Duration,
    /// There is a way to reload.
    pub can_reload: bool,
    /// Restart although offline sessions or stored messages would be lost.
    pub allow_state_loss: bool,
    /// Wait after the first failure; doubles with each further one.
    pub back_off: Duration,
    /// Failures after which the agent only holds, until told to resume.
    pub failures_max: u8,
    /// Least score that must be there to gain for a restart of a broker that runs on settings of ours:
    /// see [`Health::gain_max`](super::Health::gain_max). 0: none is asked for.
    pub restart_gain_min: f32,
    /// Memory is not short up to this share of what the site permits.
    pub ample_memory_share_max: f32,
    /// A change is worse when the probe's latency exceeds this multiple of what it was before ...
    pub worse_latency_factor: f32,
    /// ... and this: below it nobody minds.
    pub worse_latency_us_min: f32,
    /// A change is worse when the share of dropped deliveries rises by more than this.
    pub worse_dropped_share: f32,
    /// A restart is worse when fewer than this share of the clients come back within the window;
    /// whoever came back may leave.
    pub clients_back_share_min: f32,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            dwell: Duration::from_secs(60),
            verify_window: Duration::from_secs(30),
            unseen_max: Duration::from_secs(200),
            restarts_per_hour_max: 4,
            restarts_per_day_max: 12,
            dead_band_steps: 32,
            alike_steps: 64,
            down_max: Duration::from_secs(10),
            can_reload: true,
            allow_state_loss: false,
            back_off: Duration::from_secs(60),
            failures_max: 3,
            restart_gain_min: 0.01,
            ample_memory_share_max: 0.7,
            worse_latency_factor: 4.0,
            worse_latency_us_min: 10_000.0,
            worse_dropped_share: 0.1,
            clients_back_share_min: 0.9,
        }
    }
}

impl Rules {
    /// The defaults for a site that counts deliveries within `deadline_ms`: a probe that takes a
    /// quarter of it is nothing to worry about.
    #[must_use]
    pub fn for_deadline(deadline_ms: u32) -> Rules {
        let worse_latency_us_min = deadline_ms as f32 * 1000.0 / 4.0;
        Rules { worse_latency_us_min, ..Rules::default() }
    }
}
