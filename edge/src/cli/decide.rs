//! `edge once` and `edge advise`: one decision.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration as StdDuration, Instant as StdInstant};

use anyhow::{Context as _, anyhow, bail};
use brokertuner_core::Duration;
use brokertuner_core::controller::HoldReason;
use brokertuner_core::knobs::Apply;
use brokertuner_edge::agent::{Agent, Call, Mode, Report, StatusFile, Tick, Verdict, drive};
use brokertuner_edge::config::Config;
use brokertuner_edge::sampler::{Link, SysStatus};

use super::{NO, event_loop, prepare, print_result};

/// Two updates at `sys_interval 60`, and some.
const PATIENCE: StdDuration = StdDuration::from_secs(150);
/// How long a broker may be away before it is said to be.
const LINK_PATIENCE: StdDuration = StdDuration::from_secs(10);
/// Looks more often than it would decide: the first two updates of `$SYS` are waited for.
const INTERVAL_MAX: Duration = Duration::from_secs(1);

pub(super) fn once(config: &Config, dry_run: bool, json: bool) -> anyhow::Result<ExitCode> {
    let mode = if dry_run { Mode::Look } else { Mode::Act };
    let report = decide(config, mode)?;
    print_result(&report, json)?;
    Ok(match report.verdict.kind.as_str() {
        "planned" | "changed" => ExitCode::SUCCESS,
        _ => ExitCode::from(NO),
    })
}

pub(super) fn advise(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let report = decide(config, Mode::Look)?;
    print_result(&report, json)?;
    Ok(ExitCode::SUCCESS)
}

/// Ticks until a decision is there and, where it was carried out, has stood its verify window.
fn decide(config: &Config, mode: Mode) -> anyhow::Result<Report> {
    let (mut site, policy) = prepare(config)?;
    // One decision has no yesterday to be alike with.
    site.rules.dwell = Duration::from_ticks(0);
    let interval = site.interval.min(INTERVAL_MAX);
    let mut agent = match mode {
        Mode::Act => Agent::start(site, Box::new(policy))?,
        Mode::Look => Agent::watch(site, Box::new(policy))?,
    };
    let started = StdInstant::now();
    let mut change: Option<Report> = None;
    let mut outcome: Option<anyhow::Result<Report>> = None;
    let driven = event_loop()?.block_on(drive(
        &mut agent,
        mode,
        interval,
        std::future::pending::<()>(),
        &mut Call::queue().1,
        |agent, tick| match end_of(agent, tick, started, &mut change) {
            Some(end) => {
                outcome = Some(end);
                ControlFlow::Break(())
            }
            None => ControlFlow::Continue(()),
        },
    ));
    driven.context("the control loop has no timer")?;
    let state_dir = agent.site().paths.state_dir.clone();
    agent.end();
    let report = outcome.unwrap_or_else(|| bail!("the decision was interrupted"))?;
    if mode == Mode::Act
        && let Err(error) = StatusFile::in_dir(&state_dir).write(&report)
    {
        tracing::warn!(%error, "status.json was not written.");
    }
    Ok(report)
}

/// What ends the decision, if this tick does.
fn end_of(
    agent: &Agent,
    tick: &Tick,
    started: StdInstant,
    change: &mut Option<Report>,
) -> Option<anyhow::Result<Report>> {
    let report = || Report::of(agent, tick);
    match &tick.verdict {
        Verdict::HandsOff(reason) => Some(Err(anyhow!("{reason}"))),
        Verdict::Blind(reason) if is_hopeless(agent, started) => Some(Err(anyhow!("{reason}"))),
        Verdict::Blind(_) => None,
        Verdict::Planned(_) | Verdict::Failed(..) | Verdict::Restrained(_) => Some(Ok(report())),
        Verdict::Changed(plan, _) if plan.is_roll_back => Some(Ok(report())),
        Verdict::Changed(..) => {
            *change = Some(report());
            None
        }
        Verdict::Hold(HoldReason::Verifying) => None,
        Verdict::Hold(_) | Verdict::Barred(_) => match agent.controller().watched() {
            // A reload is judged beside whatever else holds.
            Some(Apply::Reload) if change.is_some() => None,
            // Undoing it has to wait, for state that would be lost or for quiet hours.
            Some(_) => Some(Ok(report())),
            None => Some(Ok(change.take().unwrap_or_else(report))),
        },
    }
}

/// Waiting longer would not help.
fn is_hopeless(agent: &Agent, started: StdInstant) -> bool {
    let sampler = agent.sampler();
    let is_denied = matches!(sampler.sys_status(), SysStatus::Refused | SysStatus::Silent);
    let is_away = matches!(sampler.link(), Link::Lost(_)) && started.elapsed() >= LINK_PATIENCE;
    is_denied || is_away || started.elapsed() >= PATIENCE
}
