//! `edge record`: what is recorded beside a real broker reads back and replays.

use std::process::Stdio;

use brokertuner_core::controller::Rules;
use brokertuner_core::model::Model;
use brokertuner_core::replay::Replay;
use brokertuner_core::trace::{Record, Trace, TraceError};
use brokertuner_core::{Duration, Knob};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::broker::{Broker, eventually};
use super::cli::{Running, edge, on};
use super::model;

const QUICK: &str = "[decide]\ninterval_ms = 250\n";

fn records(bytes: &[u8]) -> Vec<Record> {
    let trace = Trace::read(bytes).unwrap();
    trace.records().collect::<Result<_, TraceError>>().unwrap()
}

#[test]
fn what_is_recorded_replays_to_the_agents_decision() {
    let broker = Broker::start("");
    let trace = broker.path("trace.btt");
    // No model lies there: recording needs none.
    let config = broker.edge_config(&broker.path("model.btm"), QUICK);
    let file = trace.to_str().unwrap();
    let (code, out, err) = on(&config, &["record", file, "--duration-s", "8", "--json"]);
    let said: serde_json::Value =
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {err}"));
    assert_eq!((code, said["ended_by"].as_str()), (0, Some("duration")));
    let bytes = std::fs::read(&trace).unwrap();
    assert_eq!(said["bytes"].as_u64(), Some(bytes.len() as u64));
    let seen = records(&bytes);
    assert_eq!(said["records"].as_u64(), Some(seen.len() as u64));
    let last = seen.last().unwrap();
    assert_eq!(last.sample.proc.map(|proc| proc.pid), u32::try_from(broker.pid()).ok());
    assert!(last.is_serving && last.sample.sys.at.is_some());
    let is_probed = |record: &Record| record.sample.probe.latency_us_qos1.is_some();
    assert!(seen.iter().any(is_probed), "{} records", seen.len());

    let path = broker.path("wanted.btm");
    model::write(&path, &[(Knob::AutosaveInterval, 100)]);
    let file = std::fs::read(&path).unwrap();
    let model = Model::read(&file).unwrap();
    let rules = Rules { dwell: Duration::from_ticks(0), ..Rules::default() };
    let mut replay = Replay::new(model, *Trace::read(&bytes).unwrap().head(), rules);
    let steps: Vec<_> = seen.iter().map(|record| replay.step(record).unwrap()).collect();
    let written = steps.last().unwrap().written.get(Knob::AutosaveInterval).value();
    assert!(written.is_some_and(|value| (90..=110).contains(&value)), "{written:?}");
    assert!(!broker.drop_in().exists(), "recording changes nothing");

    let (code, _, err) = on(&config, &["record", trace.to_str().unwrap()]);
    assert!(code == 2 && err.contains("exists; name a new file"), "{err}");
}

#[test]
fn a_trace_is_bounded_and_ends_whole() {
    let broker = Broker::start("");
    let config = broker.edge_config(&broker.path("model.btm"), QUICK);
    let trace = broker.path("small.btt");
    let file = trace.to_str().unwrap();
    let (code, out, err) = on(&config, &["record", file, "--bytes-max", "1024"]);
    assert!(code == 0 && out.contains("ended by size"), "{out}{err}");
    let bytes = std::fs::read(&trace).unwrap();
    assert!(bytes.len() <= 1024 && !records(&bytes).is_empty());

    let trace = broker.path("ended.btt");
    let mut command =
        edge(&["record", trace.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    let mut recording = Running(command.stdout(Stdio::null()).spawn().unwrap());
    eventually("a record", || {
        let bytes = std::fs::read(&trace).ok()?;
        Trace::read(&bytes).ok()?.records().next()?.ok()
    });
    kill(Pid::from_raw(i32::try_from(recording.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    let end = eventually("its end", || recording.0.try_wait().unwrap());
    assert!(end.success(), "{end}");
    records(&std::fs::read(&trace).unwrap());
}

#[test]
fn a_trace_that_cannot_be_written_is_told() {
    let broker = Broker::start("");
    let config = broker.edge_config(&broker.path("model.btm"), QUICK);
    let (code, _, err) = on(&config, &["record", "/nonexistent/trace.btt"]);
    assert!(code == 2 && err.contains("cannot create /nonexistent/trace.btt"), "{err}");
}
