//! `edge` in the twin: the same meter, policy and controller, without processes and files.

use super::world::World;
use crate::env::broker::{site_values, targets};
use crate::scenario::Scenario;
use brokertuner_core::controller::{Controller, Decision, Health, Inputs, Outcome, Rules};
use brokertuner_core::features::{Targets, View};
use brokertuner_core::knobs::Apply;
use brokertuner_core::sample::{Meter, Metrics};
use brokertuner_core::{Envelope, Settings};
use brokertuner_edge::policy::Policy;

/// How soon a decision that found no figures is tried again.
const BLIND_INTERVAL_S: f64 = 1.0;

/// Eyes and hands beside a broker of the twin: what an agent is but for its policy.
#[derive(Debug)]
pub struct Gateway {
    controller: Controller,
    meter: Meter,
    envelope: Envelope,
    targets: Targets,
    restarts: u32,
    timeline: Vec<(f64, Settings)>,
}

impl Gateway {
    /// Beside a broker that runs with `settings` under `scenario`.
    #[must_use]
    pub fn new(scenario: &Scenario, settings: Settings, rules: Rules) -> Gateway {
        Gateway {
            controller: Controller::new(rules, settings),
            meter: Meter::default(),
            envelope: Envelope { site: site_values(scenario), ..Envelope::default() },
            targets: targets(scenario),
            restarts: 0,
            timeline: vec![(0.0, settings)],
        }
    }

    /// Rates and gauges now.
    pub fn look(&mut self, world: &World) -> Metrics {
        self.meter.measure(&world.sample())
    }

    /// What a policy is asked about.
    #[must_use]
    pub fn view<'a>(&'a self, metrics: &'a Metrics) -> View<'a> {
        View {
            metrics,
            effective: self.controller.effective(),
            site: &self.envelope.site,
            targets: &self.targets,
        }
    }

    /// The bounds in force.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Lets the controller decide on what is wanted (`None`: nothing was seen to decide on), and
    /// carries it out.
    pub fn decide(
        &mut self,
        world: &mut World,
        metrics: &Metrics,
        wanted: Option<Settings>,
    ) -> Decision {
        let health = Health::of(metrics, &self.targets, world.is_serving());
        let inputs = Inputs {
            wanted: wanted.unwrap_or(self.controller.standing()),
            envelope: self.envelope,
            health,
            stored_share: metrics.store_bytes.map(|bytes| self.targets.memory_share(bytes)),
            // Scenarios in which restarts count are persistent, or have nothing to lose.
            state_at_risk: false,
            quiet_hours: false,
        };
        let now = world.instant();
        let decision = self.controller.step(now, &inputs);
        if let Decision::Change { settings, apply } | Decision::RollBack { settings, apply, .. } =
            decision
        {
            world.apply(&settings, apply);
            self.timeline.push((world.now_s(), settings));
            self.restarts += u32::from(apply == Apply::Restart);
            self.controller.applied(now, &decision, Outcome::Done, health);
        }
        decision
    }

    /// What is in force in the broker.
    #[must_use]
    pub fn effective(&self) -> &Settings {
        self.controller.effective()
    }

    /// Whether a change has yet to stand its verification.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.controller.is_watching()
    }

    /// Restarts of the broker so far.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// When the settings in force changed, in seconds of the world, and to what.
    #[must_use]
    pub fn timeline(&self) -> &[(f64, Settings)] {
        &self.timeline
    }
}

/// Whether there is enough to decide on: two updates of `$SYS`.
#[must_use]
pub fn is_sighted(metrics: &Metrics) -> bool {
    metrics.publish_sent_per_s.is_some()
}

/// An agent beside a broker of the twin.
pub struct Agent<'p> {
    policy: &'p mut dyn Policy,
    gateway: Gateway,
    interval_s: f64,
}

impl std::fmt::Debug for Agent<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

impl<'p> Agent<'p> {
    /// An agent that enters on the defaults.
    pub fn new(
        policy: &'p mut dyn Policy,
        scenario: &Scenario,
        rules: Rules,
        interval_s: f64,
    ) -> Agent<'p> {
        let gateway = Gateway::new(scenario, Settings::UNWRITTEN, rules);
        Agent { policy, gateway, interval_s }
    }

    /// Decides at every interval until the load ends; answers with what it did.
    pub fn run(mut self, world: &mut World) -> Gateway {
        loop {
            let wait_s = if self.tick(world) { self.interval_s } else { BLIND_INTERVAL_S };
            if !world.advance(wait_s.min(self.interval_s)) {
                return self.gateway;
            }
        }
    }

    /// One decision; false where there were no figures to decide on.
    fn tick(&mut self, world: &mut World) -> bool {
        let metrics = self.gateway.look(world);
        if is_sighted(&metrics) {
            let gateway = &self.gateway;
            let wanted = self.policy.want(&gateway.view(&metrics), gateway.envelope());
            let trusted = self.policy.doubt().is_none().then_some(wanted);
            self.gateway.decide(world, &metrics, trusted);
            return true;
        }
        if self.gateway.is_watching() {
            self.gateway.decide(world, &metrics, None);
        }
        self.gateway.is_watching()
    }
}
