//! Brokers whose process can't be told, or is one of several.

use std::fs;
use std::process::{Command, Output};

use brokertuner_core::Knob;
use brokertuner_edge::agent::Report;

use super::broker::{Broker, copy_of_edge};
use super::cli::{ended, on};
use super::model;

const WANTED: [(Knob, u64); 1] = [(Knob::AutosaveInterval, 100)];
const QUICK: &str = "[decide]\ninterval_ms = 250\ndwell_s = 0\nverify_window_s = 1\n";

/// The configuration, with the process found as `pid` says.
fn config(broker: &Broker, pid: &str) -> std::path::PathBuf {
    let model = broker.path("model.btm");
    model::write(&model, &WANTED);
    let config = broker.edge_config(&model, QUICK);
    let text = fs::read_to_string(&config).unwrap();
    let (before, rest) = text.split_once("[pid]\n").unwrap();
    let (_, after) = rest.split_once("[control]").unwrap();
    fs::write(&config, format!("{before}[pid]\n{pid}\n[control]{after}")).unwrap();
    config
}

/// edge in a process namespace of its own, as in a container with the host's network.
fn in_container(broker: &Broker, arguments: &[&str]) -> Output {
    let edge = copy_of_edge(broker.dir.path());
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--pid", "--fork", "--mount-proc", "--"]);
    unshare.arg(edge.get_program()).args(edge.get_args()).args(arguments);
    unshare.env_remove("MOSQUITTO_PID").env_remove("MOSQUITTO_TUNER_CONFIG").output().unwrap()
}

#[test]
fn behind_a_hidden_process_it_watches_and_changes_nothing() {
    let broker = Broker::start("");
    let config = config(&broker, "unit = \"\"");
    let config = config.to_str().unwrap();
    let (code, out, err) = ended(&in_container(&broker, &["once", "--json", "--config", config]));
    let report: Report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {err}"));
    assert_eq!((code, report.verdict.kind.as_str()), (1, "hold"), "{out}{err}");
    assert!(report.verdict.why.contains("only $SYS is watched"), "{}", report.verdict.why);
    assert!(report.verdict.why.contains("its process is hidden"), "{}", report.verdict.why);
    assert_eq!((report.broker.pid, report.metrics.rss_bytes), (None, None));
    assert!(report.metrics.publish_sent_per_s.is_some(), "$SYS is seen all the same");
    assert!(!broker.drop_in().exists());

    let (code, out, _) = ended(&in_container(&broker, &["doctor", "--config", config]));
    assert!(code == 1 && out.contains("its process is hidden"), "{out}");
}

#[test]
fn of_several_brokers_the_one_that_owns_the_port_is_taken() {
    let (broker, other) = (Broker::start(""), Broker::start(""));
    // The other one's pid file misleads nobody.
    let stray = format!("pid_file = {:?}\nunit = \"\"", other.path("mosquitto.pid"));
    let config = config(&broker, &stray);
    let (code, out, err) = on(&config, &["once", "--json"]);
    let report: Report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {err}"));
    assert_eq!((code, report.broker.pid), (0, Some(broker.pid())), "{out}{err}");
    assert!(broker.drop_in().exists() && !other.drop_in().exists());

    let (_, out, _) = on(&config, &["doctor"]);
    let line = format!("process {} (", other.pid());
    let said = out.lines().find(|said| said.contains("another Mosquitto") && said.contains(&line));
    let port = format!("port {}", other.address.port());
    assert!(said.is_some_and(|said| said.contains(&port)), "{out}");
    let own = format!("another Mosquitto runs on this machine: process {} (", broker.pid());
    assert!(!out.contains(&own), "{out}");
}

#[test]
fn where_the_owner_is_unseen_and_two_are_named_both_are_said() {
    let (broker, other) = (Broker::start(""), Broker::start(""));
    let two = format!(
        "pid = {}\npid_file = {:?}\nunit = \"\"",
        broker.pid(),
        other.path("mosquitto.pid")
    );
    let config = config(&broker, &two);
    let mut edge = Command::new("setpriv");
    edge.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    let copy = copy_of_edge(broker.dir.path());
    edge.arg(copy.get_program()).args(copy.get_args());
    edge.args(["advise", "--json", "--config"]).arg(&config);
    edge.env_remove("MOSQUITTO_PID");
    for dir in [&broker, &other] {
        open_to_all(dir.dir.path());
    }
    let (code, out, err) = ended(&edge.output().unwrap());
    let report: Report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {err}"));
    let why = &report.verdict.why;
    assert_eq!((code, report.verdict.kind.as_str()), (0, "hold"), "{out}{err}");
    for pid in [broker.pid(), other.pid()] {
        assert!(why.contains(&format!("process {pid} by pid.")), "{why}");
    }
}

fn open_to_all(dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
