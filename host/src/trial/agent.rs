//! `edge` as a process of its own beside a live broker.

use super::Profile;
use crate::broker::{self, Belongings, BrokerProcess, Output};
use crate::env::broker::targets;
use crate::scenario::Scenario;
use anyhow::{Context as _, bail};
use brokertuner_core::features::Schema;
use brokertuner_core::model::Model;
use brokertuner_core::{Knob, Settings};
use brokertuner_edge::agent::Report;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// Longest wait for the agent's end after SIGTERM: it ends the apply that it is in, which may run
/// its restart command and then wait for a broker, and may do both again to undo it.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(120);
/// Lines of the agent's log that are kept in the report.
const LOG_LINES_MAX: usize = 200;

/// What an agent did in a trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentReport {
    /// Its status when the trial ended, as `edge status --json` prints it.
    pub status: serde_json::Value,
    /// The last lines of its log.
    pub log: Vec<String>,
    /// One entry a decision.
    pub decisions: Vec<AgentDecision>,
}

/// One decision of an agent, out of the line that `edge run --json` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentDecision {
    /// As in [`brokertuner_edge::agent::VerdictReport`].
    pub kind: String,
    /// The reason, or what a change answers.
    pub why: String,
    /// What the policy wanted, by option; only tuned ones.
    pub wanted: BTreeMap<String, u64>,
}

/// A running agent; ended when dropped.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    /// How it ended, once it was waited for.
    ended: Option<ExitStatus>,
    dir: TempDir,
    log: PathBuf,
    lines: PathBuf,
}

impl Agent {
    /// Starts `edge run` with a configuration for `broker` in `profile`.
    pub(super) fn start(
        edge: &Path,
        model: &Path,
        broker: &BrokerProcess,
        scenario: &Scenario,
        profile: &Profile,
    ) -> anyhow::Result<Agent> {
        let dir = tempfile::tempdir().context("cannot make a folder for the agent")?;
        let config = dir.path().join("edge.toml");
        let text = config_text(dir.path(), model, broker, scenario, profile)?;
        std::fs::write(&config, text)
            .with_context(|| format!("cannot write {}", config.display()))?;
        let log = dir.path().join("edge.log");
        let stderr = std::fs::File::create(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let lines = dir.path().join("decisions.jsonl");
        let stdout = std::fs::File::create(&lines)
            .with_context(|| format!("cannot write {}", lines.display()))?;
        let arguments = ["run", "--json", "--config"].map(OsStr::new);
        let child = broker::spawn_child(
            edge,
            &[&arguments[..], &[config.as_os_str()]].concat(),
            Output { stdout: &stdout, stderr: &stderr },
            Belongings { dir: dir.path().to_owned(), cgroup: None },
        )
        .with_context(|| format!("cannot start {}", edge.display()))?;
        Ok(Agent { child, ended: None, dir, log, lines })
    }

    /// Nothing where the agent still runs.
    ///
    /// # Errors
    /// Where it has ended by itself; the message has its last words.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.exit_status().context("cannot wait for edge")? {
            None => Ok(()),
            Some(status) => {
                bail!("edge ended by itself with {status}:\n{}", self.tail().join("\n"))
            }
        }
    }

    fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
            if self.ended.is_some() {
                broker::unregister(self.child.id());
            }
        }
        Ok(self.ended)
    }

    /// Ends the agent in good order and reads what it did, and what was in force after each tick.
    pub(super) fn finish(mut self) -> anyhow::Result<(AgentReport, Vec<(SystemTime, Settings)>)> {
        self.check()?;
        let status = self.end();
        if !status.is_some_and(|status| status.success()) {
            bail!("edge did not end in good order ({status:?}):\n{}", self.tail().join("\n"));
        }
        let path = self.dir.path().join("state/status.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("edge left no status at {}", path.display()))?;
        let status = serde_json::from_str(&text).context("edge's status is not JSON")?;
        let reports = self.reports()?;
        let in_force = reports.iter().map(in_force).collect::<anyhow::Result<_>>()?;
        let decisions = reports.into_iter().map(decision).collect();
        Ok((AgentReport { status, log: self.tail(), decisions }, in_force))
    }

    fn tail(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(LOG_LINES_MAX)..].to_vec()
    }

    /// What `edge run --json` printed.
    fn reports(&self) -> anyhow::Result<Vec<Report>> {
        let text = std::fs::read_to_string(&self.lines)
            .with_context(|| format!("cannot read {}", self.lines.display()))?;
        let report = |line| serde_json::from_str(line).context("edge printed no report");
        text.lines().map(report).collect()
    }

    fn end(&mut self) -> Option<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).ok()?);
        // The child is not reaped yet, so the pid is still its own.
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.exit_status() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        self.ended = self.child.wait().ok();
        broker::unregister(self.child.id());
        self.ended
    }
}

fn decision(report: Report) -> AgentDecision {
    let wanted = report
        .options
        .into_iter()
        .filter_map(|option| option.wanted.map(|value| (option.option, value)));
    AgentDecision { kind: report.verdict.kind, why: report.verdict.why, wanted: wanted.collect() }
}

/// When a tick ended, and what was in force in the broker then, as far as the drop-in goes.
fn in_force(report: &Report) -> anyhow::Result<(SystemTime, Settings)> {
    let mut settings = Settings::UNWRITTEN;
    for option in &report.options {
        let Some(value) = option.effective else { continue };
        let knob = Knob::from_key(&option.option)
            .with_context(|| format!("edge reports an unknown option {:?}", option.option))?;
        settings.set(knob, value).context("edge reports a value that it cannot have written")?;
    }
    Ok((UNIX_EPOCH + Duration::from_secs(report.at_unix_s), settings))
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.exit_status(), Ok(None)) {
            self.end();
        }
    }
}

/// The schema that a model was made for, as edge's configuration names it: edge refuses a model
/// for another one than it was told.
fn schema_name(path: &Path) -> anyhow::Result<&'static str> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let model = Model::read(&bytes)
        .with_context(|| format!("{} is no model for this program", path.display()))?;
    match model.schema() {
        Some(Schema::Seed5) => Ok("seed5"),
        Some(Schema::Edge) => Ok("edge"),
        None => bail!("{}: made for a schema that this program does not know", path.display()),
    }
}

pub(super) fn config_text(
    dir: &Path,
    model: &Path,
    broker: &BrokerProcess,
    scenario: &Scenario,
    profile: &Profile,
) -> anyhow::Result<String> {
    let restart = broker.restart_command().context("the broker is not supervised")?;
    let targets = targets(scenario);
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let path = std::path::absolute(model).context("cannot tell where the model lies")?;
    let mut text = Vec::new();
    write!(
        text,
        "[broker]\nport = {port}\ndrop_in = {drop_in}\nmain_conf = {main_conf}\n\
         [pid]\nsource = \"file\"\npid_file = {pid_file}\n\
         [control]\nreload = \"signal\"\nrestart = \"command\"\nrestart_command = [{restart}]\n\
         [model]\npath = {path}\nschema = \"{schema}\"\n\
         [targets]\ndeadline_ms = {deadline_ms}\nrss_limit_mib = {rss_limit_mib}\n\
         [decide]\ninterval_ms = {interval_ms}\ndwell_s = {dwell_s}\n\
         verify_window_s = {verify_s}\nrestarts_per_hour_max = {restarts}\n\
         restarts_per_day_max = {restarts}\n\
         [agent]\nstate_dir = {state_dir}\n",
        port = broker.addr().port(),
        drop_in = quoted(broker.dropin_path()),
        main_conf = quoted(broker.conf_path()),
        pid_file = quoted(broker.pid_path()),
        restart = quoted(restart),
        path = quoted(&path),
        schema = schema_name(model)?,
        deadline_ms = targets.deadline_ms,
        rss_limit_mib = targets.rss_limit_mib,
        interval_ms = profile.decision_interval_ms,
        dwell_s = profile.dwell_ms / 1000,
        verify_s = profile.verify_window_ms / 1000,
        restarts = profile.rules(scenario).restarts_per_hour_max,
        state_dir = quoted(&dir.join("state")),
    )?;
    Ok(String::from_utf8(text)?)
}
