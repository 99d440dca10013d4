//! `edge` in the twin: the same meter, policy and controller, without processes and files.

use super::world::World;
use brokertuner_core::controller::{Controller, Decision, Health, Inputs, Outcome, Rules};
use brokertuner_core::features::{Targets, View};
use brokertuner_core::sample::{Meter, Metrics};
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Envelope, Settings};
use brokertuner_edge::policy::Policy;

/// How soon a decision that found no figures is tried again.
const BLIND_INTERVAL_S: f64 = 1.0;

/// An agent beside a broker of the twin.
pub struct Agent<'p> {
    policy: &'p mut dyn Policy,
    controller: Controller,
    meter: Meter,
    envelope: Envelope,
    targets: Targets,
    interval_s: f64,
    restarts: u32,
}

impl std::fmt::Debug for Agent<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("controller", &self.controller).finish_non_exhaustive()
    }
}

impl<'p> Agent<'p> {
    /// An agent that enters on the defaults.
    pub fn new(
        policy: &'p mut dyn Policy,
        rules: Rules,
        site: SiteValues,
        targets: Targets,
        interval_s: f64,
    ) -> Agent<'p> {
        Agent {
            policy,
            controller: Controller::new(rules, Settings::UNWRITTEN),
            meter: Meter::default(),
            envelope: Envelope { site, ..Envelope::default() },
            targets,
            interval_s,
            restarts: 0,
        }
    }

    /// Decides at every interval until the load ends.
    pub fn run(&mut self, world: &mut World) {
        loop {
            let wait_s = if self.tick(world) { self.interval_s } else { BLIND_INTERVAL_S };
            if !world.advance(wait_s.min(self.interval_s)) {
                return;
            }
        }
    }

    /// Restarts of the broker so far.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// One decision; false where there were no figures to decide on.
    fn tick(&mut self, world: &mut World) -> bool {
        let sample = world.sample();
        let metrics = self.meter.measure(&sample);
        let is_blind = metrics.publish_sent_per_s.is_none();
        if is_blind && !self.controller.is_watching() {
            return false;
        }
        let effective = *self.controller.effective();
        let wanted = if is_blind {
            *self.controller.written()
        } else {
            let (site, targets) = (&self.envelope.site, &self.targets);
            let view = View { metrics: &metrics, effective: &effective, site, targets };
            self.policy.want(&view, &self.envelope)
        };
        let health = self.health(&metrics, world);
        let inputs = Inputs {
            wanted,
            envelope: self.envelope,
            health,
            // Scenarios that restart are persistent, or have nothing to lose.
            state_at_risk: false,
            quiet_hours: false,
            gain: None,
        };
        let decision = self.controller.step(sample.at, &inputs);
        if let Decision::Change { settings, apply } | Decision::RollBack { settings, apply, .. } =
            decision
        {
            world.apply(&settings, apply);
            self.restarts += u32::from(apply == brokertuner_core::knobs::Apply::Restart);
            self.controller.applied(sample.at, &decision, Outcome::Done, health);
        }
        true
    }

    fn health(&self, metrics: &Metrics, world: &World) -> Health {
        let dropped = metrics.publish_dropped_per_s.zip(metrics.publish_sent_per_s);
        let limit_bytes = self.targets.rss_limit_mib.max(1) as f32 * 1_048_576.0;
        Health {
            is_serving: world.is_serving(),
            probe_latency_us: metrics.probe_latency_us_qos1,
            dropped_share: dropped.map(|(dropped, sent)| match dropped + sent {
                total if total > 0.0 => dropped / total,
                _ => 0.0,
            }),
            clients: metrics.clients_others,
            memory_share: metrics.rss_bytes.map(|bytes| bytes / limit_bytes),
        }
    }
}
