//! A trial in the twin: lead-in, scored part, and either fixed settings or an agent.

use super::{Agent, Calibration, Config, World};
use crate::env::broker::site_values;
use crate::load::capacity;
use crate::load::score::Tally;
use crate::scenario::Scenario;
use crate::trial::Profile;
use brokertuner_core::Settings;
use brokertuner_core::controller::Rules;
use brokertuner_edge::policy::Policy;
use std::sync::Arc;

/// Length of a slice of time.
pub const SLICE_US: u32 = 1000;

/// What is played.
#[derive(Clone, Debug)]
pub struct Play {
    /// The load.
    pub scenario: Arc<Scenario>,
    /// The broker.
    pub calibration: Calibration,
    /// Messages a second that the broker passes, for scenarios that ask for a multiple of it.
    pub capacity_msgs_per_s: Option<f64>,
    /// Rules of the comparison.
    pub profile: Profile,
    /// Of what blurs an agent's sight; fixed settings come to the same with any.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Played {
    /// 0..=1; `None` where nothing was expected.
    pub score: Option<f64>,
    /// Restarts by the agent.
    pub restarts: u32,
    /// Seconds from the start of the score (negative in the lead-in) and the settings in force from
    /// then on.
    pub timeline: Vec<(f64, Settings)>,
    /// CPU time of the broker in the scored part, of one core.
    pub cpu_share: f64,
    /// What became of the messages of the scored part.
    pub tally: Tally,
    /// The largest resident memory.
    pub rss_bytes_max: u64,
}

impl Play {
    /// These settings from the start.
    #[must_use]
    pub fn fixed(&self, settings: &Settings) -> Played {
        let mut world = self.world(settings);
        world.finish();
        self.played(&world, 0, vec![(-self.lead_in_s(), *settings)])
    }

    /// An agent that enters on the defaults, by the rules of the profile.
    pub fn tuned(&self, policy: &mut dyn Policy) -> Played {
        self.tuned_by(policy, self.profile.rules(&self.scenario), self.interval_s())
    }

    /// As [`Play::tuned`], by other rules.
    pub fn tuned_by(&self, policy: &mut dyn Policy, rules: Rules, interval_s: f64) -> Played {
        let mut world = self.world(&Settings::UNWRITTEN);
        let gateway = Agent::new(policy, &self.scenario, rules, interval_s).run(&mut world);
        let lead_in_s = self.lead_in_s();
        let timeline = gateway.timeline().iter().map(|(at_s, set)| (at_s - lead_in_s, *set));
        self.played(&world, gateway.restarts(), timeline.collect())
    }

    fn world(&self, settings: &Settings) -> World {
        World::new(Config {
            scenario: Arc::clone(&self.scenario),
            calibration: self.calibration,
            site: site_values(&self.scenario),
            settings: *settings,
            capacity_msgs_per_s: self.capacity_msgs_per_s,
            lead_in_s: self.lead_in_s() as u32,
            repeat: false,
            slice_us: SLICE_US,
            seed: self.seed,
        })
    }

    fn lead_in_s(&self) -> f64 {
        self.profile.lead_in(self.scenario.broker.sys_interval_s).as_secs_f64()
    }

    fn interval_s(&self) -> f64 {
        f64::from(self.profile.decision_interval_ms) / 1000.0
    }

    fn played(&self, world: &World, restarts: u32, timeline: Vec<(f64, Settings)>) -> Played {
        Played {
            score: world.score(),
            restarts,
            timeline,
            cpu_share: world.cpu_share(),
            tally: world.tally(),
            rss_bytes_max: world.rss_bytes_max(),
        }
    }
}

/// Messages a second that the twin's broker passes, as it is measured on a real one; `None` where
/// even the lowest rate does not pass.
#[must_use]
pub fn capacity_msgs_per_s(calibration: &Calibration) -> Option<f64> {
    let settings = brokertuner_core::render::parse(capacity::SETTINGS).ok()?;
    let passes = |scenario: Scenario| {
        let mut world = World::new(Config {
            site: site_values(&scenario),
            settings,
            scenario: Arc::new(scenario),
            calibration: *calibration,
            capacity_msgs_per_s: None,
            lead_in_s: 0,
            repeat: false,
            slice_us: SLICE_US,
            seed: 0,
        });
        world.finish();
        capacity::is_little_lost(&world.tally())
    };
    capacity::highest_passed(passes).ok()
}
