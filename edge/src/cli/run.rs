//! `edge run`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use brokertuner_edge::agent::{Agent, Call, Mode, Report, StatusFile, Tick, Verdict, drive};
use brokertuner_edge::config::Config;
use brokertuner_edge::error::told;
use brokertuner_edge::notify;
use brokertuner_edge::pid::mosquittos;
use brokertuner_edge::service::{Board, HttpOptions, Listen, Service, Token};
use brokertuner_edge::site::Environment;
use tokio::signal::unix::{SignalKind, signal};

use super::{event_loop, prepare, print};

pub(super) fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let (site, policy) = prepare(config)?;
    let reload = policy.reload_flag();
    let interval = site.interval;
    let mut status = StatusFile::in_dir(&site.paths.state_dir);
    let address = site.broker.address;
    event_loop()?.block_on(async {
        // Before the first change: from here on a signal ends the agent between two changes.
        let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut hup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
        tokio::spawn(async move {
            while hup.recv().await.is_some() {
                reload.store(true, Ordering::Relaxed);
            }
        });
        let stop = async {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        };
        let mut agent = Agent::start(site, Box::new(policy))?;
        let (call, mut calls) = Call::queue();
        let board = Board::default();
        let http = http_options(config)?.map(|options| (options, board.clone()));
        let is_http = http.is_some();
        let _service = Service::start(&config.agent.state_dir, http, call)?;
        let own = agent.sampler().process().or_else(|| agent.applier().broker().process().ok());
        for other in mosquittos().iter().filter(|one| Some(one.process) != own) {
            tracing::info!(%other, "Another Mosquitto runs on this machine.");
        }
        notify::ready();
        tokio::spawn(notify::feed_watchdog());
        tracing::info!(%address, drop_in = %agent.applier().drop_in().display(), "Started.");
        let mut teller = Teller::default();
        drive(&mut agent, Mode::Act, interval, stop, &mut calls, |agent, tick| {
            teller.log(tick);
            let is_due = status.is_due(agent, tick);
            if !(is_due || json || is_http) {
                return ControlFlow::Continue(());
            }
            let report = Report::of(agent, tick);
            if is_due && let Err(error) = status.write(&report) {
                teller.log_once(&format!("status.json was not written: {error}"));
            }
            if json && let Ok(line) = serde_json::to_string(&report) {
                // No reason to stop tuning.
                if let Err(error) = print(&format!("{line}\n")) {
                    teller.log_once(&told(error.as_ref()));
                }
            }
            if is_http {
                board.put(report);
            }
            ControlFlow::Continue(())
        })
        .await
        .context("the control loop has no timer")?;
        notify::stopping();
        agent.end();
        tracing::info!("Stopped; the broker keeps its settings.");
        Ok(ExitCode::SUCCESS)
    })
}

/// How HTTP is served, where it is.
fn http_options(config: &Config) -> anyhow::Result<Option<HttpOptions>> {
    let Some(listen) = Listen::parse(&config.http.listen) else { return Ok(None) };
    let token = match config.http.token_file.as_path() {
        file if file.as_os_str().is_empty() => None,
        file => {
            let file = Environment::of_process().file("http.token_file", file.into())?;
            Some(Token::read(&file).context("http.token_file")?)
        }
    };
    let control = &config.control;
    // Three ticks, and the longest that a change and its undoing may take.
    let change_s = 5 * control.ready_timeout_s + 2 * control.command_timeout_s;
    let tick_max = Duration::from_millis(3 * u64::from(config.decide.interval_ms))
        + Duration::from_secs(change_s.into());
    Ok(Some(HttpOptions { listen, token, tick_max }))
}

/// Why nothing is changed is told again after this time, where other reasons came between: a load
/// at a threshold would fill the log.
const RETOLD_AFTER: Duration = Duration::from_secs(600);
/// Reasons that are remembered.
const TOLD_MAX: usize = 8;

/// Logs what is new, and what is not new at debug level.
#[derive(Default)]
struct Teller {
    /// What was said last, and room for what is to be said; figures left out.
    last: String,
    said: String,
    /// Why nothing was changed, and when that was told.
    told: VecDeque<(String, Instant)>,
    complaint: Option<String>,
}

impl Teller {
    fn log(&mut self, tick: &Tick) {
        let verdict = &tick.verdict;
        match verdict {
            // Logged where they happen.
            Verdict::HandsOff(_) | Verdict::Planned(_) => return,
            Verdict::Changed(..) | Verdict::Failed(..) => {
                self.last.clear();
                self.told.clear();
                return;
            }
            Verdict::Hold(_) | Verdict::Blind(_) | Verdict::Barred(_) | Verdict::Restrained(_) => {}
        }
        self.said.clear();
        // A string takes all words.
        let _ = write!(self.said, "{verdict}");
        self.said.retain(|letter| !letter.is_ascii_digit());
        if self.last == self.said {
            tracing::debug!(reason = %verdict, "Holding.");
            return;
        }
        notify::status(&verdict.to_string());
        match verdict {
            Verdict::Blind(_) => tracing::warn!(reason = %verdict, "Cannot decide."),
            Verdict::Restrained(_) => tracing::info!(reason = %verdict, "Holding."),
            _ if self.is_told() => tracing::debug!(reason = %verdict, "Holding."),
            Verdict::Barred(_) => tracing::warn!(reason = %verdict, "Holding."),
            _ => tracing::info!(reason = %verdict, "Holding."),
        }
        std::mem::swap(&mut self.last, &mut self.said);
    }

    /// Whether what is to be said was told a short while ago; it counts as told from now on.
    fn is_told(&mut self) -> bool {
        let now = Instant::now();
        self.told.retain(|(_, at)| now.saturating_duration_since(*at) < RETOLD_AFTER);
        if self.told.iter().any(|(told, _)| *told == self.said) {
            return true;
        }
        if self.told.len() == TOLD_MAX {
            self.told.pop_front();
        }
        self.told.push_back((self.said.clone(), now));
        false
    }

    fn log_once(&mut self, complaint: &str) {
        if self.complaint.as_deref() != Some(complaint) {
            tracing::warn!("{complaint}");
            self.complaint = Some(complaint.to_owned());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// A load at the edge of what training saw, an hour long: two lines, not 720.
    #[test]
    fn reasons_that_take_turns_do_not_fill_the_log() {
        let mut teller = Teller::default();
        let mut told = 0;
        for tick in 0..720 {
            teller.said = ["clients beyond", "the settings fit"][tick % 2].to_owned();
            told += u32::from(!teller.is_told());
        }
        assert_eq!(told, 2);
        let long_ago = Instant::now().checked_sub(RETOLD_AFTER).unwrap();
        teller.told.iter_mut().for_each(|(_, at)| *at = long_ago);
        assert!(!teller.is_told(), "it may be news again");
        for reason in 0..100 {
            teller.said = reason.to_string();
            assert!(!teller.is_told());
        }
        assert_eq!(teller.told.len(), TOLD_MAX);
    }
}
