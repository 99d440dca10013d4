//! The last report as Prometheus text (format 0.0.4): base units, `_total` on counters, a HELP and
//! a TYPE for every family. What is not known is left out, never 0.

use std::fmt::Write as _;

use brokertuner_core::sample::Metrics;

use crate::agent::{OptionReport, Report};
use crate::model::ModelReport;
use crate::sampler::Latency;

/// A figure of the broker: name without its prefix, help, factor to the base unit, where it is.
type Figure = (&'static str, &'static str, f64, fn(&Metrics) -> Option<f32>);

const US: f64 = 1e-6;

const FIGURES: [Figure; 18] = [
    ("sys_period_seconds", "Real period of $SYS.", 1.0, |m| m.sys_period_s),
    ("clients", "Open connections of others than the agent.", 1.0, |m| m.clients_others),
    ("clients_offline", "Persistent sessions without a connection.", 1.0, |m| m.clients_offline),
    ("subscriptions", "Subscriptions of others.", 1.0, |m| m.subscriptions),
    ("publish_received_per_second", "PUBLISH received from others.", 1.0, |m| {
        m.publish_received_per_s
    }),
    ("publish_sent_per_second", "PUBLISH sent to others.", 1.0, |m| m.publish_sent_per_s),
    ("publish_dropped_per_second", "PUBLISH dropped.", 1.0, |m| m.publish_dropped_per_s),
    ("received_bytes_per_second", "Bytes received from others.", 1.0, |m| m.bytes_received_per_s),
    ("sent_bytes_per_second", "Bytes sent to others.", 1.0, |m| m.bytes_sent_per_s),
    ("backlog_messages", "Messages kept, retained ones left out.", 1.0, |m| m.backlog_messages),
    ("store_bytes", "Payload of the messages kept.", 1.0, |m| m.store_bytes),
    ("heap_bytes", "Heap in use, as memory_limit counts it.", 1.0, |m| m.heap_bytes),
    ("heap_max_bytes", "Largest heap so far.", 1.0, |m| m.heap_bytes_max),
    ("resident_memory_bytes", "Resident memory of the broker's process.", 1.0, |m| m.rss_bytes),
    ("cpu_ratio", "CPU time of the broker's process over time, 1 is a core.", 1.0, |m| m.cpu_share),
    ("context_switches_per_second", "Context switches of its process.", 1.0, |m| {
        m.context_switches_per_s
    }),
    ("probe_latency_qos0_seconds", "Worst QoS 0 round trip since the last tick.", US, |m| {
        m.probe_latency_us_qos0
    }),
    ("probe_latency_qos1_seconds", "Worst QoS 1 round trip since the last tick.", US, |m| {
        m.probe_latency_us_qos1
    }),
];

/// Words of a verdict's kind and of a standing, so that each has a series that goes to 0 and 1.
const KINDS: [&str; 13] = [
    "blind",
    "hands_off",
    "kill_switch",
    "start_loop",
    "paused",
    "off",
    "unended",
    "hold",
    "planned",
    "changed",
    "rolled_back",
    "failed",
    "starting",
];
const STANDINGS: [&str; 3] = ["tuning", "paused", "off"];

/// The whole exposition.
pub(super) fn text(report: &Report) -> String {
    let mut out = Families(String::with_capacity(8192));
    out.family("build_info", "gauge", "Version of the agent.");
    out.sample("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    out.single(
        "tick_timestamp_seconds",
        "gauge",
        "Unix time of the last tick.",
        unsigned(report.at_unix_s),
    );
    out.single(
        "decisions_total",
        "counter",
        "Decisions carried out or tried, ever.",
        unsigned(report.decisions),
    );
    out.single(
        "failures",
        "gauge",
        "Changes in a row that had to be taken back.",
        report.failures.into(),
    );
    out.single(
        "restarts_in_hour",
        "gauge",
        "Restarts of the broker by the agent within the last hour.",
        count(report.restarts_in_hour),
    );
    out.single(
        "restarts_in_day",
        "gauge",
        "Restarts of the broker by the agent within 24 hours.",
        count(report.restarts_in_day),
    );
    out.single(
        "kill_switch",
        "gauge",
        "1 while the kill-switch file exists.",
        flag(report.kill_switch.is_some()),
    );
    out.states(
        "standing",
        "What the operator said last: 1 for the one that holds.",
        &STANDINGS,
        &report.standing.to_string(),
    );
    out.states(
        "verdict",
        "What came of the last tick: 1 for the one that did.",
        &KINDS,
        &report.verdict.kind,
    );
    out.single(
        "broker_process_hidden",
        "gauge",
        "1 while the broker serves and its process is not known: nothing is changed then.",
        flag(report.broker.hidden.is_some()),
    );
    model(&mut out, report.model.as_ref());
    settings(&mut out, &report.options);
    for (name, help, factor, of) in FIGURES {
        if let Some(value) = of(&report.metrics) {
            let name = format!("broker_{name}");
            out.single(&name, "gauge", help, f64::from(value) * factor);
        }
    }
    probe(&mut out, [("0", report.probe_qos0), ("1", report.probe_qos1)]);
    out.0
}

fn probe(out: &mut Families, latencies: [(&str, Option<Latency>); 2]) {
    out.family(
        "broker_probe_latency_seconds",
        "gauge",
        "Round trips of the probe over the last five to ten minutes; quantile 1 is the slowest.",
    );
    for (qos, latency) in latencies {
        let Some(latency) = latency else { continue };
        let quantiles = [("0.5", latency.us_p50), ("0.99", latency.us_p99), ("1", latency.us_max)];
        for (quantile, us) in quantiles {
            let labels = [("qos", qos), ("quantile", quantile)];
            out.sample("broker_probe_latency_seconds", &labels, unsigned(us) * US);
        }
    }
}

fn model(out: &mut Families, model: Option<&ModelReport>) {
    let Some(model) = model else { return };
    let counter = unsigned(model.counter);
    out.single("model_counter", "gauge", "Release counter of the model in use.", counter);
    out.single(
        "model_refused",
        "gauge",
        "1 while the configured model file is refused and another is in use.",
        flag(model.refused.is_some()),
    );
    if let Some(at) = model.replaced_unix_s {
        let help = "Unix time at which the model in use replaced another.";
        out.single("model_replaced_timestamp_seconds", "gauge", help, unsigned(at));
    }
}

fn settings(out: &mut Families, options: &[OptionReport]) {
    out.family("setting", "gauge", "Value of an option in the broker's own terms: what holds without a line, and what is written, effective and wanted.");
    for option in options {
        let values = [
            ("site", Some(option.site)),
            ("written", option.written),
            ("effective", option.effective),
            ("wanted", option.wanted),
        ];
        for (of, value) in values {
            if let Some(value) = value {
                let labels = [("option", option.option.as_str()), ("value", of)];
                out.sample("setting", &labels, unsigned(value));
            }
        }
    }
    out.family("setting_dormant", "gauge", "1 where a written value waits for a restart.");
    for option in options {
        out.sample("setting_dormant", &[("option", option.option.as_str())], flag(option.dormant));
    }
}

fn flag(is_on: bool) -> f64 {
    if is_on { 1.0 } else { 0.0 }
}

/// Exact up to 2^53: no value of ours comes near.
fn unsigned(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    value as f64
}

struct Families(String);

impl Families {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string can't fail, here and below.
        let _ =
            writeln!(self.0, "# HELP brokertuner_{name} {help}\n# TYPE brokertuner_{name} {kind}");
    }

    /// Values of labels are our own words: no quote, backslash or newline among them.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{text}\"")).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "brokertuner_{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn states(&mut self, name: &str, help: &str, all: &[&str], now: &str) {
        self.family(name, "gauge", help);
        for state in all {
            self.sample(name, &[(name, state)], flag(*state == now));
        }
    }
}
