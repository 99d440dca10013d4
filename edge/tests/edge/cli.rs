//! The command line, as an operator meets it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use brokertuner_core::Knob;
use brokertuner_edge::agent::Report;
use brokertuner_edge::control::Broker as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::broker::{Broker, eventually, program};
use super::model;

pub(crate) fn edge(arguments: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_edge"));
    command.args(arguments).env_remove("MOSQUITTO_PID").env_remove("MOSQUITTO_TUNER_CONFIG");
    command.env_remove("RUST_LOG");
    command
}

pub(crate) fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    ended(&edge(arguments).output().unwrap())
}

pub(crate) fn on(config: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut all = arguments.to_vec();
    all.extend(["--config", config.to_str().unwrap()]);
    run(&all)
}

/// Ends the agent when the test ends, however.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both kinds of options: one reload and one restart, or one restart for all.
pub(super) const WIDE: [(Knob, u64); 4] = [
    (Knob::InflightMessagesMax, 1000),
    (Knob::QueuedMessagesMax, 10_000),
    (Knob::TcpNodelay, 1),
    (Knob::AutosaveInterval, 100),
];

#[test]
fn the_default_configuration_is_printed_and_valid() {
    let (code, out, _) = run(&["default-config"]);
    assert_eq!((code, out.as_str()), (0, include_str!("../golden/default-config.toml")));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    fs::write(&file, out).unwrap();
    let (code, out, _) = run(&["check-config", file.to_str().unwrap()]);
    // A note may follow, where a Mosquitto of this machine is set up otherwise.
    assert!(code == 0 && out.starts_with(&format!("{}: valid\n", file.display())), "{out}");
    assert_eq!(on(&file, &["check-config"]), (0, out, String::new()), "--config names it as well");
}

#[test]
fn what_can_never_be_changed_is_told_at_once() {
    let broker = Broker::start("");
    let model = broker.path("model.btm");
    model::write(&model, &WIDE);
    let config = broker.edge_config(&model, "[decide]\ninterval_ms = 250\n");
    let text = fs::read_to_string(&config).unwrap();
    let ways = |reload: &str, restart: &str| {
        let text = text.replace("\"signal\"", reload).replace("\"command\"", restart);
        fs::write(&config, text).unwrap();
        on(&config, &["advise"])
    };
    let (code, out, err) = ways("\"none\"", "\"none\"");
    let told = "no option may be changed: control.reload and control.restart are \"none\"";
    assert!(code == 0 && out.contains(&format!("hold: {told}")), "{out}{err}");
    assert!(err.contains(told), "at the start too: {err}");
    let (_, _, err) = ways("\"systemd\"\nunit = \"no-such.service\"", "\"none\"");
    assert!(err.contains("control.reload: "), "{err}");
    assert!(err.contains("control.unit") || err.contains("where there is no systemd"), "{err}");
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    fs::write(&file, "[broker]\nprot = 1\n[decide]\ninterval_ms = 1\n").unwrap();
    let name = file.to_str().unwrap();
    let (code, out, err) = run(&["check-config", name]);
    assert_eq!((code, out.as_str()), (2, ""));
    let expected = format!(
        "edge: {name}:2: broker.prot: no such option; did you mean `port`?\n\
         {name}:4: decide.interval_ms: 1 is out of range; use 250 to 3600000\n"
    );
    assert_eq!(err, expected);
    let (code, out, _) = run(&["check-config", name, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, found["faults"][1]["line"].as_u64()), (2, Some(4)));
    // What the packages' scripts read of it, by this very pattern.
    assert!(out.contains(r#""state_dir":null"#) && out.contains(r#""drop_in":null"#), "{out}");
    fs::write(&file, "[agent]\nstate_dir = '/data/bt'\n[broker]\ndrop_in = \"/data/zz.conf\"\n")
        .unwrap();
    let (code, out, _) = run(&["check-config", name, "--json"]);
    assert_eq!(code, 0);
    assert!(out.contains(r#""state_dir":"/data/bt""#), "{out}");
    assert!(out.contains(r#""drop_in":"/data/zz.conf""#), "{out}");
}

#[test]
fn what_is_missing_is_named_with_a_remedy_and_exit_2() {
    let (code, _, err) = run(&["run", "--config", "/nonexistent/edge.toml"]);
    assert_eq!(code, 2);
    assert!(err.contains("/nonexistent/edge.toml: no such file"), "{err}");
    assert!(err.contains("edge default-config"), "{err}");

    let broker = Broker::start("");
    let model = broker.path("model.btm");
    let config = broker.edge_config(&model, "");
    let (code, _, err) = on(&config, &["once"]);
    assert!(code == 2 && err.contains("model.btm: no such file"), "{code}: {err}");
    fs::write(&model, "no model").unwrap();
    let (code, _, err) = on(&config, &["once"]);
    assert!(code == 2 && err.contains("model.btm: "), "{code}: {err}");
    assert_eq!(err.lines().count(), 1, "one message: {err}");
    let (_, cause) = err.trim().rsplit_once("model.btm: ").unwrap();
    assert_eq!(err.matches(cause).count(), 1, "said once: {err}");
    assert!(!broker.drop_in().exists());

    fs::remove_dir(broker.path("conf.d")).unwrap();
    model::write(&model, &WIDE);
    let (code, _, err) = on(&config, &["once"]);
    assert!(code == 2 && err.contains("conf.d"), "{code}: {err}");
}

#[test]
fn once_shows_then_applies_then_has_nothing_to_do() {
    let broker = Broker::start("");
    let model = broker.path("model.btm");
    model::write(&model, &WIDE);
    let extra = "[decide]\ninterval_ms = 250\nverify_window_s = 1\n";
    let config = broker.edge_config(&model, extra);
    let before = broker.pid();

    let (code, out, err) = on(&config, &["once", "--dry-run"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("set_tcp_nodelay (no line) -> true"), "{out}");
    assert!(out.contains("autosave_interval (no line) -> "), "{out}");
    assert!(!broker.drop_in().exists(), "nothing was changed");
    assert!(!broker.path("state/status.json").exists(), "a look leaves nothing behind");
    let (code, out, _) = on(&config, &["advise", "--json"]);
    let advice: Report = serde_json::from_str(&out).unwrap();
    assert_eq!((code, advice.verdict.kind.as_str()), (0, "planned"));
    assert_eq!(advice.verdict.how.as_deref(), Some("restart"));
    assert_eq!(broker.pid(), before);

    let (code, out, err) = on(&config, &["once", "--json"]);
    let done: Report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!((code, done.verdict.kind.as_str()), (0, "changed"), "{err}");
    assert_ne!(broker.pid(), before, "restarted");
    let (code, out, err) = on(&config, &["status"]);
    assert!(code == 1 && err.contains("not running") && out.contains("decision  changed"), "{out}");
    let window = broker.live().answer().unwrap().receive_maximum.unwrap();
    assert!((900..=1100).contains(&window), "{window}: nearest to 1000 on the actor's grid");

    let (code, out, err) = on(&config, &["once"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("hold: the settings fit"), "{out}");
}

#[test]
fn a_running_agent_tunes_tells_and_stops_cleanly() {
    let broker = Broker::start("");
    let model = broker.path("model.btm");
    model::write(&model, &WIDE);
    let extra = "[decide]\ninterval_ms = 250\ndwell_s = 0\nverify_window_s = 1\n";
    let config = broker.edge_config(&model, extra);
    let (code, _, err) = on(&config, &["status"]);
    assert!(code == 1 && err.contains("no agent has run here yet"), "{err}");

    let log = fs::File::create(broker.path("edge.log")).unwrap();
    let mut command = edge(&["run", "--config", config.to_str().unwrap()]);
    let mut agent = Running(command.stderr(log).stdout(Stdio::null()).spawn().unwrap());
    let said = || fs::read_to_string(broker.path("edge.log")).unwrap();
    let status = eventually("the settings to fit", || {
        assert!(agent.0.try_wait().unwrap().is_none(), "{}", said());
        let (_, out, _) = on(&config, &["status", "--json"]);
        let report: Report = serde_json::from_str(&out).ok()?;
        (report.verdict.why == "the settings fit").then_some(report)
    });
    assert_eq!(status.restarts_in_hour, 1);
    assert_eq!(status.broker.pid, Some(broker.pid()));
    let nodelay = &status.options[Knob::TcpNodelay as usize];
    assert_eq!((nodelay.written, nodelay.effective), (Some(1), Some(1)));
    assert!(said().contains("Changing the broker's settings."), "{}", said());
    assert!(said().contains("the policy's answer to: clients 0"), "why: {}", said());

    let (code, _, err) = on(&config, &["once"]);
    assert!(code == 2 && err.contains("another edge is at work"), "{code}: {err}");
    an_old_status_is_not_passed_off_as_news(&broker, &config, &agent);

    fs::write(broker.drop_in(), "max_queued_messages 300\n").unwrap();
    eventually("hands off", || said().contains("edited by hand").then_some(()));
    let pid = Pid::from_raw(i32::try_from(agent.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let end = eventually("a clean end", || agent.0.try_wait().unwrap());
    assert!(end.success(), "{end}: {}", said());
    assert_eq!(fs::read_to_string(broker.drop_in()).unwrap(), "max_queued_messages 300\n");
    let (code, out, err) = on(&config, &["status"]);
    assert_eq!(code, 1);
    assert!(err.contains("not running") && out.contains("hands_off"), "{out}{err}");
}

/// As on a full disk, where it stays as it was.
fn an_old_status_is_not_passed_off_as_news(broker: &Broker, config: &Path, agent: &Running) {
    assert_eq!(on(config, &["status"]).0, 0);
    let pid = Pid::from_raw(i32::try_from(agent.0.id()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let file = broker.path("state/status.json");
    let mut report: Report = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    report.at_unix_s -= 600;
    fs::write(&file, serde_json::to_vec(&report).unwrap()).unwrap();
    let (code, out, err) = on(config, &["status"]);
    kill(pid, Signal::SIGCONT).unwrap();
    let is_told = err.contains("this is what it said 60") && err.contains("can't be written");
    assert!(code == 1 && is_told && out.starts_with("as of     20"), "{code}: {out}{err}");
}

#[test]
fn state_that_a_restart_would_lose_holds_the_restart() {
    // Persistence is off, and someone retains a message.
    let broker = Broker::start("");
    let publish = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &broker.address.port().to_string()])
        .args(["-t", "site/setting", "-m", "42", "-r", "-q", "1"])
        .status();
    assert!(
        publish.is_ok_and(|status| status.success()),
        "sudo apt-get install -y mosquitto-clients"
    );
    let model = broker.path("model.btm");
    model::write(&model, &WIDE[..3]);
    let config = broker.edge_config(&model, "[decide]\ninterval_ms = 250\n");
    let before = broker.pid();
    let (code, out, err) = on(&config, &["once"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("a restart would lose sessions or messages"), "{out}{err}");
    assert_eq!(broker.pid(), before);
}

/// Every client is lost after the restart, which is worse; but undoing it by another restart would
/// lose what was retained since. That is the end of it: nobody waits for ever.
#[test]
fn once_ends_where_its_change_cannot_be_undone() {
    let broker = Broker::start("");
    let model = broker.path("model.btm");
    model::write(&model, &WIDE[..3]);
    let extra = "[decide]\ninterval_ms = 250\nverify_window_s = 4\n";
    let config = broker.edge_config(&model, extra);
    let port = broker.address.port().to_string();
    let mut clients: Vec<Running> = (0..12)
        .map(|_| {
            let mut client = Command::new("mosquitto_sub");
            client.args(["-h", "127.0.0.1", "-p", &port, "-t", "site/#"]).stdout(Stdio::null());
            Running(client.spawn().expect("sudo apt-get install -y mosquitto-clients"))
        })
        .collect();
    let before = broker.pid();
    let mut command = edge(&["once", "--config", config.to_str().unwrap()]);
    let mut once = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let is_new = || broker.live().process().is_ok_and(|process| process.pid != before);
    eventually("the restart", || is_new().then_some(()));
    clients.clear();
    eventually("a retained message", || {
        let publish = Command::new("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &port, "-t", "site/a", "-m", "1", "-r", "-q", "1"])
            .stderr(Stdio::null())
            .status();
        publish.unwrap().success().then_some(())
    });
    let status = eventually("its end", || once.0.try_wait().unwrap());
    let mut out = String::new();
    std::io::Read::read_to_string(&mut once.0.stdout.take().unwrap(), &mut out).unwrap();
    assert_eq!(status.code(), Some(1), "{out}");
    assert!(out.contains("a restart would lose sessions or messages"), "{out}");
}
