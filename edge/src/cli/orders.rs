//! `edge pause`, `resume`, `rollback` and `off`: by the running agent, else on the spot.

use std::process::ExitCode;

use brokertuner_edge::agent::{Lock, StartError};
use brokertuner_edge::apply::Recovery;
use brokertuner_edge::config::Config;
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::orders::{self, Answer, Facts, Order};
use brokertuner_edge::service;
use brokertuner_edge::site::{Environment, Site};
use brokertuner_edge::state::{State, StateError, StateStore};

use super::{NO, print_result};

pub(super) fn give(config: &Config, order: &Order, json: bool) -> anyhow::Result<ExitCode> {
    let dir = &config.agent.state_dir;
    let answer = match Lock::take(dir) {
        Ok(_lock) => on_the_spot(config, order)?,
        Err(StartError::Busy { .. }) => service::ask(&service::control_socket(dir), order)?,
        Err(error) => return Err(error.into()),
    };
    print_result(&answer, json)?;
    Ok(if answer.done { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

/// Carries the order out without an agent.
fn on_the_spot(config: &Config, order: &Order) -> anyhow::Result<Answer> {
    if !order.touches_broker() {
        return stand(config, order);
    }
    let site = Site::look(config, &Environment::of_process())?;
    let (mut applier, damage) = site.open_applier()?;
    if let Some(damage) = damage {
        tracing::warn!("{damage}");
    }
    if !orders::is_killed(&site.kill_switch) {
        match applier.recover()? {
            Recovery::Clean => {}
            ended => tracing::warn!(?ended, "A change had been cut short; it was ended first."),
        }
    }
    // Nobody has looked at the broker's sessions and messages: there may be some.
    let state_at_risk = true;
    let facts = Facts { envelope: &site.envelope, state_at_risk, kill_switch: &site.kill_switch };
    Ok(orders::carry_out(&mut applier, &facts, order))
}

/// Needs nothing of the broker and its files: it must work where those are broken.
fn stand(config: &Config, order: &Order) -> anyhow::Result<Answer> {
    let dir = &config.agent.state_dir;
    let store = StateStore::in_dir(dir);
    let mut state = match store.load(&RealFiles) {
        Err(damage @ StateError::Corrupt { .. }) => {
            tracing::warn!("{damage}");
            State::default()
        }
        found => found?,
    };
    let waiting = state.scheduled;
    let answer = orders::stand(&mut state, order);
    store.save(&RealFiles, &state)?;
    orders::note_dropped(dir, waiting, order);
    orders::note(dir, &answer, state.last_decision);
    Ok(answer)
}
