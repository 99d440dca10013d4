//! What people ask of the running agent, between two ticks.

use super::Agent;
use crate::clock;
use crate::orders::{self, Answer, Facts, Order, Restraint, START_LOOP_S};

impl Agent {
    /// What keeps the agent from changing anything now; `None` where nothing does.
    #[must_use]
    pub fn restraint(&self) -> Option<Restraint> {
        let said = Restraint::of(self.applier.state(), &self.site.kill_switch);
        said.or_else(|| self.start_loop().map(Restraint::StartLoop))
            .or_else(|| self.unended().map(Restraint::Unended))
    }

    /// Why what was begun could not be ended, while it is not.
    fn unended(&self) -> Option<String> {
        self.unended.clone().filter(|_| self.applier.state().intent.is_some())
    }

    /// Starts that make a loop, until the agent has run for longer than one.
    fn start_loop(&self) -> Option<usize> {
        let start = self.start?;
        let age = clock::now().saturating_duration_since(start.at);
        start.loop_of.filter(|_| age.as_secs() < START_LOOP_S)
    }

    /// Carries an operator's order out. Blocks as an apply does.
    pub fn obey(&mut self, order: &Order) -> Answer {
        let is_half_done = self.applier.state().intent.is_some();
        if is_half_done && order.touches_broker() && !orders::is_killed(&self.site.kill_switch) {
            // The order is about what is there, not about what was left half done.
            if let Err(error) = self.recover() {
                return Answer::new(order, false, error.to_string());
            }
        }
        let envelope =
            self.sample.as_ref().map_or(self.site.envelope, |sample| self.envelope(sample));
        let target = order.target(self.applier.state(), &envelope).flatten().unwrap_or_default();
        let is_at_risk = |sample| self.is_state_at_risk(sample, &[target]);
        let state_at_risk = self.sample.as_ref().is_none_or(is_at_risk);
        let facts =
            Facts { envelope: &envelope, state_at_risk, kill_switch: &self.site.kill_switch };
        let answer = orders::carry_out(&mut self.applier, &facts, order);
        tracing::info!(%order, done = answer.done, said = %answer.said, "An order.");
        self.take_over(order);
        answer
    }

    /// Goes on from what an order left.
    fn take_over(&mut self, order: &Order) {
        self.process = self.applier.state().effective.map(|effective| effective.process);
        match order {
            Order::Pause | Order::Off { restore: false, .. } => self.controller.drop_request(),
            Order::Rollback { .. } | Order::Off { .. } => self.recall(),
            Order::Resume => {
                self.hands_off = None;
                if let Some(start) = &mut self.start {
                    start.loop_of = None;
                }
                self.recall();
            }
        }
    }
}
