//! What the agent tells: one documented, versioned object for `status.json`, `--json` and people.

use std::fmt;
use std::path::Path;

use brokertuner_core::sample::Metrics;
use brokertuner_core::{Knob, Settings};
use serde::{Deserialize, Serialize};

use super::{Agent, Tick, Verdict};
use crate::apply::unix_s;
use crate::journal::{Entry, utc};
use crate::model::ModelReport;
use crate::mqtt::Protocol;
use crate::orders;
use crate::plan::Plan;
use crate::sampler::Latency;
use crate::state::Standing;

/// Version of [`Report`]'s shape.
const REPORT_VERSION: u32 = 1;

/// What is missing where the broker speaks MQTT 3.1.1 only.
pub(crate) const NO_READ_BACK: &str =
    "it speaks MQTT 3.1.1: which settings are in force can't be read back from it";

/// Everything worth telling after a tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this object's shape.
    pub report_version: u32,
    /// Unix time of the tick.
    pub at_unix_s: u64,
    /// The agent's process.
    pub agent_pid: u32,
    /// The broker.
    pub broker: BrokerReport,
    /// The model in use; `null` where the policy is another.
    #[serde(default)]
    pub model: Option<ModelReport>,
    /// What came of the last tick.
    pub verdict: VerdictReport,
    /// Every option, in table order.
    pub options: Vec<OptionReport>,
    /// Changes in a row that had to be taken back.
    pub failures: u8,
    /// Restarts within the last hour.
    pub restarts_in_hour: usize,
    /// Restarts within the last 24 hours.
    #[serde(default)]
    pub restarts_in_day: usize,
    /// What the operator said last: `tuning`, `paused` or `off`.
    #[serde(default)]
    pub standing: Standing,
    /// Options that were set over HTTP: the policy leaves them alone.
    #[serde(default)]
    pub pinned: Vec<String>,
    /// The decision that was asked for over HTTP and waits for a restart.
    #[serde(default)]
    pub scheduled: Option<u64>,
    /// Decisions that were carried out or tried, ever.
    #[serde(default)]
    pub decisions: u64,
    /// The kill-switch file, where it exists.
    #[serde(default)]
    pub kill_switch: Option<String>,
    /// The last change or attempt, what weighed most, and what came of it.
    #[serde(default)]
    pub last: Option<Entry>,
    /// Lines of other files about our options.
    pub elsewhere: Vec<String>,
    /// What was measured.
    pub metrics: Metrics,
    /// Round trips of the probe by QoS 0 over the last five to ten minutes.
    #[serde(default)]
    pub probe_qos0: Option<Latency>,
    /// The same by QoS 1.
    #[serde(default)]
    pub probe_qos1: Option<Latency>,
}

/// The broker in a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerReport {
    /// Where it listens.
    pub address: String,
    /// Its process; `null` where that is not known.
    pub pid: Option<i32>,
    /// Why its process is not known though it serves: then nothing is changed.
    #[serde(default)]
    pub hidden: Option<String>,
    /// Its version; `null` before it was published.
    pub version: Option<String>,
    /// The state of the agent's connection, in words.
    pub link: String,
    /// The version of MQTT that is spoken: `5`, or `3.1.1`, by which the settings in force can't be
    /// read back; `null` before the first connection.
    #[serde(default)]
    pub mqtt: Option<Protocol>,
}

/// A [`Verdict`] in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictReport {
    /// `blind`, `hands_off`, `kill_switch`, `start_loop`, `paused`, `off`, `unended`, `hold`,
    /// `planned`, `changed`, `rolled_back` or `failed`.
    pub kind: String,
    /// The reason, or what a change answers.
    pub why: String,
    /// Options that change, one line each.
    pub diff: Vec<String>,
    /// `reload` or `restart`, for a change.
    pub how: Option<String>,
}

/// One option in a [`Report`]; values in the broker's own terms, `null` for no line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionReport {
    /// Its name in mosquitto.conf.
    pub option: String,
    /// In the drop-in.
    pub written: Option<u64>,
    /// In force in the running broker, as far as the drop-in goes.
    pub effective: Option<u64>,
    /// Wanted by the policy.
    pub wanted: Option<u64>,
    /// What holds without a line.
    pub site: u64,
    /// The agent may write it.
    pub tuned: bool,
    /// Written, but waiting for a restart.
    pub dormant: bool,
}

impl Report {
    /// The report of a tick.
    #[must_use]
    pub fn of(agent: &Agent, tick: &Tick) -> Self {
        let controller = agent.controller();
        let [probe_qos0, probe_qos1] = agent.sampler.latencies();
        Self {
            report_version: REPORT_VERSION,
            at_unix_s: unix_s(),
            agent_pid: std::process::id(),
            broker: BrokerReport {
                address: agent.site.broker.address.to_string(),
                pid: agent.process.map(|process| process.pid),
                hidden: agent.hidden_process(),
                version: agent.sampler.version().map(|version| version.to_string()),
                link: agent.sampler.link().to_string(),
                mqtt: agent.sampler.protocol(),
            },
            model: agent.policy.model().cloned(),
            verdict: VerdictReport::of(&tick.verdict),
            options: Knob::ALL.map(|knob| option(agent, tick.wanted.as_ref(), knob)).to_vec(),
            failures: controller.failures(),
            restarts_in_hour: controller.restarts_in_hour(tick.at),
            restarts_in_day: controller.restarts_in_day(tick.at),
            standing: agent.applier.state().standing,
            pinned: pinned(agent),
            scheduled: agent.applier.state().scheduled.map(|scheduled| scheduled.id),
            decisions: agent.applier.state().last_decision,
            kill_switch: kill_switch(&agent.site.kill_switch),
            last: agent.last.clone(),
            elsewhere: agent.site.elsewhere.lines.iter().map(ToString::to_string).collect(),
            metrics: tick.metrics,
            probe_qos0,
            probe_qos1,
        }
    }
}

fn pinned(agent: &Agent) -> Vec<String> {
    let pinned = agent.applier.state().pinned.unwrap_or_default();
    pinned.written().iter().map(|knob| knob.to_string()).collect()
}

/// The kill-switch file as a report tells it.
fn kill_switch(path: &Path) -> Option<String> {
    orders::is_killed(path).then(|| path.display().to_string())
}

fn option(agent: &Agent, wanted: Option<&Settings>, knob: Knob) -> OptionReport {
    let controller = agent.controller();
    OptionReport {
        option: knob.to_string(),
        written: controller.written().get(knob).value(),
        effective: controller.effective().get(knob).value(),
        wanted: wanted.and_then(|wanted| wanted.get(knob).value()),
        site: agent.site.envelope.site.get(knob),
        tuned: agent.site.envelope.opted_in.contains(knob),
        dormant: controller.dormant().contains(knob),
    }
}

impl VerdictReport {
    fn of(verdict: &Verdict) -> Self {
        let plan = verdict.plan();
        Self {
            kind: verdict.kind().into(),
            why: verdict.to_string(),
            diff: plan.map(Plan::diff).unwrap_or_default(),
            how: plan.map(|plan| plan.how.to_string()),
        }
    }
}

impl Report {
    /// The broker, the model and what the operator said last.
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "as of     {}", utc(self.at_unix_s))?;
        let broker = &self.broker;
        let version = broker.version.as_deref().unwrap_or("of unknown version");
        write!(f, "broker    {version} at {}", broker.address)?;
        match broker.pid {
            Some(pid) => writeln!(f, ", process {pid}, {}", broker.link)?,
            None => writeln!(f, ", {}", broker.link)?,
        }
        if let Some(why) = &broker.hidden {
            writeln!(f, "          {why}")?;
        }
        if broker.mqtt == Some(Protocol::V311) {
            writeln!(f, "          {NO_READ_BACK}")?;
        }
        if let Some(model) = &self.model {
            writeln!(f, "model     {model}")?;
        }
        if let Some(path) = &self.kill_switch {
            writeln!(f, "standing  {}, but {path} exists: nothing is changed", self.standing)?;
        } else {
            writeln!(f, "standing  {}", self.standing)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        writeln!(f, "decision  {}: {}", self.verdict.kind, self.verdict.why)?;
        for line in &self.verdict.diff {
            writeln!(f, "          {line}")?;
        }
        if let Some(how) = &self.verdict.how {
            writeln!(f, "          by {how}")?;
        }
        writeln!(
            f,
            "history   {} restarts in the last hour, {} in 24 hours, {} failures in a row",
            self.restarts_in_hour, self.restarts_in_day, self.failures
        )?;
        for (qos, latency) in [(0, &self.probe_qos0), (1, &self.probe_qos1)] {
            if let Some(latency) = latency {
                writeln!(f, "probe     QoS {qos}: {latency} in the last minutes")?;
            }
        }
        if !self.pinned.is_empty() {
            writeln!(f, "set       {} over HTTP, until `edge resume`", self.pinned.join(", "))?;
        }
        if let Some(id) = self.scheduled {
            writeln!(f, "waiting   decision {id} waits for a restart")?;
        }
        if let Some(last) = &self.last {
            writeln!(f)?;
            write!(f, "{last}")?;
            writeln!(f)?;
        }
        for line in &self.elsewhere {
            writeln!(f, "elsewhere {line}")?;
        }
        writeln!(
            f,
            "{:<24} {:>11} {:>11} {:>11} {:>11}",
            "option", "site", "written", "effective", "wanted"
        )?;
        let shown = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        for option in &self.options {
            let note = match (option.dormant, option.tuned) {
                (true, _) => "  dormant until a restart",
                (false, false) => "  held",
                (false, true) => "",
            };
            writeln!(
                f,
                "{:<24} {:>11} {:>11} {:>11} {:>11}{note}",
                option.option,
                option.site,
                shown(option.written),
                shown(option.effective),
                shown(option.wanted),
            )?;
        }
        Ok(())
    }
}
