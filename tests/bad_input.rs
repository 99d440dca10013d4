//! What `edge` makes of bad input: a documented exit status, one message that names the file, what
//! is wrong and what to do, and a broker and a drop-in that are exactly as they were.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use brokertuner_core::knobs;
use brokertuner_core::model::{CHECKSUM_BYTES, checksum};
use brokertuner_core::{Knob, Settings, render};
use brokertuner_host::broker::{BrokerProcess, Mosquitto, SpawnConfig};
use nix::unistd::Uid;
use tempfile::TempDir;

use crate::support::edge::{EdgeConfig, model, program};
use crate::support::mqtt::{Limits, limits_at};
use crate::support::{broker_with, mosquitto, wait_for};

const VERSION: &str = "2.0.21";
/// The command ran, and the answer is no.
const NO: i32 = 1;
/// Usage, configuration or environment.
const WRONG: i32 = 2;
/// What the model always wants: another window takes a restart.
const WIDE: [(Knob, u64); 2] =
    [(Knob::InflightMessagesMax, 1000), (Knob::QueuedMessagesMax, 10_000)];

/// Quick decisions, restarts however well the broker does, and nothing but errors on standard error.
const QUICK: &str = "log_level = \"error\"\n[decide]\ninterval_ms = 250\nverify_window_s = 1\n\
                     restart_gain_min_percent = 0\n";

/// A broker with a drop-in of ours, and everything that the agent needs beside it.
struct Place {
    broker: BrokerProcess,
    dir: TempDir,
    config: EdgeConfig,
    before: Seen,
}

/// What must not change.
#[derive(Debug, PartialEq)]
struct Seen {
    pid: u32,
    drop_in: Option<Vec<u8>>,
    include_dir: Vec<PathBuf>,
    limits: Limits,
}

impl Place {
    fn new() -> Self {
        Self::with(&SpawnConfig::default())
    }

    fn with(spawn: &SpawnConfig) -> Self {
        Self::on(broker_with(VERSION, &Self::spawn_config(spawn)))
    }

    /// Without persistence, which nothing here needs: a restart would wait for a save.
    fn spawn_config(spawn: &SpawnConfig) -> SpawnConfig {
        let mut settings = Settings::UNWRITTEN;
        settings.set(Knob::InflightMessagesMax, 100).unwrap();
        let dropin = Some(render::render(&settings).as_str().to_owned());
        SpawnConfig { dropin, supervised: true, persistence: false, ..spawn.clone() }
    }

    fn on(broker: BrokerProcess) -> Self {
        let dir = TempDir::new().unwrap();
        let mut config = EdgeConfig::of(&broker, dir.path());
        config.extra = QUICK.into();
        model::write(&config.model, &WIDE);
        let before = seen(&broker);
        Self { broker, dir, config, before }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `edge once` with a configuration that `change` has spoilt.
    fn once(&self, change: impl FnOnce(&mut EdgeConfig)) -> Ended {
        let mut config = self.config.clone();
        change(&mut config);
        edge(&["once", "--config", config.write(self.dir.path()).to_str().unwrap()])
    }

    /// The same with one line of the configuration replaced.
    fn once_replacing(&self, line: &str, by: &str) -> Ended {
        let config = self.config.write(self.dir.path());
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains(line), "{line} in {text}");
        fs::write(&config, text.replace(line, by)).unwrap();
        edge(&["once", "--config", config.to_str().unwrap()])
    }

    fn assert_untouched(&self, context: &str) {
        assert_eq!(seen(&self.broker), self.before, "{context}");
    }
}

fn seen(broker: &BrokerProcess) -> Seen {
    let include_dir = broker.dropin_path().parent().unwrap();
    Seen {
        pid: broker.pid(),
        drop_in: fs::read(broker.dropin_path()).ok(),
        include_dir: fs::read_dir(include_dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect(),
        limits: limits_at(broker.addr()),
    }
}

/// How a run of `edge` ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ended {
    /// Refused with one message on standard error, and nothing on standard output.
    fn assert_wrong(&self, case: &str, words: &[&str]) {
        assert_eq!(self.out, "", "{case}: {self:?}");
        let lines = self.err.lines().count();
        let parts: Vec<&str> = self.err.trim_end().split([':', ';']).map(str::trim).collect();
        let twice = parts.iter().enumerate().find(|(index, part)| parts[..*index].contains(part));
        assert_eq!(twice, None, "{case}: said twice: {self:?}");
        assert!(self.err.starts_with("edge: ") && lines == 1, "{case}: {lines} lines: {self:?}");
        self.assert_says(case, WRONG, words);
    }

    fn assert_says(&self, case: &str, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{case}: {self:?}");
        let said = format!("{}{}", self.out, self.err);
        for word in words {
            assert!(said.contains(word), "{case}: no {word:?} in {said}");
        }
        for word in ["panicked", "RUST_BACKTRACE", "Os {", "Error {"] {
            assert!(!said.contains(word), "{case}: {word:?} in {said}");
        }
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    for variable in ["MOSQUITTO_PID", "MOSQUITTO_TUNER_CONFIG", "RUST_LOG", "RUST_BACKTRACE"] {
        command.env_remove(variable);
    }
    command
}

fn edge(arguments: &[&str]) -> Ended {
    command(arguments).output().unwrap().into()
}

/// `bytes` with `from` replaced, and a checksum that fits again.
fn forged(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from);
    let at = at.expect("the model holds what is to be replaced");
    let mut forged = bytes[..bytes.len() - CHECKSUM_BYTES].to_vec();
    forged[at..at + from.len()].copy_from_slice(to);
    forged.extend(checksum(&forged).to_le_bytes());
    forged
}

#[test]
fn a_wrong_model_is_refused_by_name() {
    let place = Place::new();
    let sound = fs::read(&place.config.model).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 0x10;
    let ours = knobs::FINGERPRINT.to_le_bytes();
    let theirs = (knobs::FINGERPRINT ^ 1).to_le_bytes();
    let again = "copy it again";
    let cases: [(&str, Vec<u8>, &[&str]); 6] = [
        ("truncated", sound[..sound.len() - 7].to_vec(), &["its header says", again]),
        ("longer", [&sound[..], b"x"].concat(), &["its header says", again]),
        ("a bit flipped", flipped, &["damaged", again]),
        ("other knobs", forged(&sound, &ours, &theirs), &["knob table", "export"]),
        ("empty", Vec::new(), &["not a model file: 0 bytes", "host export"]),
        ("text", b"max_queued_messages 500\n".to_vec(), &["not a model file", "host export"]),
    ];
    for (case, bytes, words) in cases {
        fs::write(place.path("wrong.btm"), bytes).unwrap();
        let ended = place.once(|config| config.model = place.path("wrong.btm"));
        ended.assert_wrong(case, &[words, &["model.path: ", "wrong.btm: "]].concat());
    }
    let ended = place.once(|config| config.model = place.path("absent.btm"));
    ended.assert_wrong("absent", &["absent.btm: no such file", "host export"]);
    let ended = place.once(|config| config.model = place.dir.path().into());
    ended.assert_wrong("a folder", &["model.path: ", "directory", "check the path"]);
    let ended = place.once_replacing("[model]", "[model]\nschema = \"seed5\"");
    ended.assert_wrong("another state vector", &["model.btm: made for schema", "set model.schema"]);
    place.assert_untouched("models");
}

#[test]
fn every_fault_of_a_configuration_is_named_with_file_line_and_remedy() {
    let place = Place::new();
    let file = place.path("wrong.toml");
    let name = file.to_str().unwrap();
    let cases: [(&str, &[u8], &[&str]); 8] = [
        ("unknown option", b"[broker]\nprot = 1\n", &[":2: broker.prot: no such option", "`port`"]),
        ("unknown section", b"[brokr]\nport = 1\n", &[":1: brokr: no such section", "`broker`"]),
        ("out of range", b"[decide]\ninterval_ms = 1\n", &[":2: ", "out of range; use 250 to"]),
        ("another type", b"[broker]\nport = \"x\"\n", &[":2: broker.port: "]),
        ("too large", b"[broker]\nport = 70000\n", &[":2: broker.port: "]),
        ("outside the table", b"[knobs.max_queued_messages]\nmin = 0\n", &[":2: ", "use 100 to"]),
        ("no TOML", b"[broker\nport 1\n", &[":1: ", "toml"]),
        ("no text", b"[broker]\n# \xff\n", &["is not UTF-8; save it as UTF-8"]),
    ];
    for (case, bytes, words) in cases {
        fs::write(&file, bytes).unwrap();
        for arguments in [["check-config", name].as_slice(), &["run", "--config", name]] {
            let ended = edge(arguments);
            // A broken line may be wrong in several ways, each in a line of its own.
            assert!(
                ended.err.lines().all(|line| line.contains("wrong.toml:")),
                "{case}: {ended:?}"
            );
            ended.assert_says(case, WRONG, words);
        }
    }
    let folder = place.dir.path().to_str().unwrap();
    edge(&["check-config", folder])
        .assert_wrong("a folder", &[folder, "directory", "edge default-config"]);
    let absent = format!("{folder}/absent.toml");
    edge(&["once", "--config", &absent]).assert_wrong("absent", &[&absent, "edge default-config"]);
    edge(&["tune"]).assert_says("a verb that is none", WRONG, &["tune", "--help"]);
    place.assert_untouched("configurations");
}

#[test]
fn paths_that_lead_nowhere_are_named() {
    let place = Place::new();
    fs::write(place.path("file"), "").unwrap();
    fs::write(place.path("no-include.conf"), "persistence true\n").unwrap();
    let missing = place.path("missing");
    let text = format!("include_dir {}\n", missing.display());
    fs::write(place.path("missing-dir.conf"), text).unwrap();
    let newer = place.path("newer");
    fs::create_dir(&newer).unwrap();
    fs::write(newer.join("edge.state"), b"BTES\x09\0\0\0\0\0\0\0\0\0").unwrap();

    let ended = place.once(|config| config.main_conf = place.path("absent.conf"));
    ended.assert_wrong(
        "no main file",
        &["broker.main_conf: ", "absent.conf", "No such file", "correct the path"],
    );
    let ended = place.once(|config| config.main_conf = place.path("no-include.conf"));
    ended.assert_wrong("not included", &["no-include.conf", "add the line `include_dir "]);
    let ended = place.once(|config| {
        config.main_conf = place.path("missing-dir.conf");
        config.drop_in = missing.join("zz-brokertuner.conf");
    });
    ended.assert_wrong("no folder for the drop-in", &["missing", "create the directory"]);
    assert!(!missing.exists(), "made nothing");
    let ended = place.once(|config| config.state_dir = place.path("file"));
    ended.assert_wrong("records in a file", &["agent.state_dir: ", "file"]);
    let ended = place.once(|config| config.state_dir = newer.clone());
    ended.assert_wrong("newer records", &["agent.state_dir: ", "edge.state", "newer edge"]);
    let ended = place.once(|config| {
        config.main_conf = place.broker.conf_path().join("beneath-a-file");
    });
    ended.assert_wrong("beneath a file", &["broker.main_conf: ", "beneath-a-file"]);
    let secret = format!("user_file = {:?}\n[pid]", place.path("absent"));
    let ended = place.once_replacing("[pid]", &secret);
    ended.assert_wrong("no secret", &["broker.user_file: ", "absent", "correct the path"]);
    place.assert_untouched("paths");
}

#[test]
fn a_pid_file_that_names_nobody_stops_the_change() {
    let place = Place::new();
    for (case, pid, word) in [
        ("absent", None, "cannot read the pid file"),
        ("empty", Some(String::new()), "holds no process id"),
        ("gone", Some(i32::MAX.to_string()), "start the broker"),
    ] {
        let _ = fs::remove_file(place.path("pid"));
        if let Some(pid) = pid {
            fs::write(place.path("pid"), pid).unwrap();
        }
        let ended = place.once(|config| {
            config.pid_file = place.path("pid");
            // A failure before would make the agent wait.
            config.state_dir = place.path(case);
        });
        let path = place.path("pid").display().to_string();
        ended.assert_says(case, NO, &[word, &path, "nothing is changed"]);
        place.assert_untouched(case);
    }
}

#[test]
fn a_broker_that_is_not_there_is_said_to_be_absent() {
    let place = Place::new();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = place.once(|config| config.port = unused.port());
    let address = unused.to_string();
    ended.assert_wrong("nobody", &["no broker listens on", &address, "start it", "broker.port"]);
    place.assert_untouched("no broker");
}

#[test]
fn a_port_that_says_nothing_is_said_to_be_silent() {
    let place = Place::new();
    // Accepts connections, by its backlog.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let ended = place.once(|config| config.port = address.port());
    ended.assert_wrong("silent", &[&address.to_string(), "did not answer", "broker.port"]);
    place.assert_untouched("silent");
}

#[test]
fn a_broker_that_dies_meanwhile_is_said_to_be_absent() {
    let spawn = SpawnConfig { sys_interval_s: 3600, ..SpawnConfig::default() };
    let mut place = Place::with(&spawn);
    let config = place.config.write(place.dir.path());
    let mut child = command(&["once", "--config", config.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let connected = || {
        let log = fs::read_to_string(place.broker.log_path()).unwrap();
        log.contains("-sampler").then_some(())
    };
    wait_for("the agent's connection", connected);
    place.broker.kill();
    assert!(child.try_wait().unwrap().is_none(), "it waits for $SYS");
    let ended = Ended::from(child.wait_with_output().unwrap());
    ended.assert_wrong("killed", &["no broker listens on", "start it"]);
    assert_eq!(fs::read(place.broker.dropin_path()).ok(), place.before.drop_in);
}

#[test]
fn sys_topics_that_an_acl_denies_are_asked_for() {
    let acl = TempDir::new().unwrap();
    let file = acl.path().join("acl");
    fs::write(&file, "topic readwrite brokertuner/probe/#\n").unwrap();
    open_to_all(acl.path());
    let main_conf_lines = vec![format!("acl_file {}", file.display())];
    assert_wants_sys(&SpawnConfig { main_conf_lines, ..SpawnConfig::default() });
}

#[test]
fn sys_topics_that_are_never_published_are_asked_for() {
    assert_wants_sys(&SpawnConfig { sys_interval_s: 0, ..SpawnConfig::default() });
}

/// The two look alike to a client: the message names both.
fn assert_wants_sys(spawn: &SpawnConfig) {
    let place = Place::with(spawn);
    let ended = place.once(|_| {});
    ended.assert_wrong("no $SYS", &["$SYS", "topic read $SYS/#", "sys_interval is 0"]);
    place.assert_untouched("no $SYS");
}

#[test]
fn a_login_that_is_refused_is_said_to_be() {
    let main_conf_lines = vec!["allow_anonymous false".to_owned()];
    let spawn = SpawnConfig { main_conf_lines, ..SpawnConfig::default() };
    let broker = broker_with(VERSION, &Place::spawn_config(&spawn));
    let dir = TempDir::new().unwrap();
    let config = EdgeConfig { extra: QUICK.into(), ..EdgeConfig::of(&broker, dir.path()) };
    model::write(&config.model, &WIDE);
    let drop_in = fs::read(broker.dropin_path()).unwrap();
    let pid = broker.pid();
    let ended = edge(&["once", "--config", config.write(dir.path()).to_str().unwrap()]);
    ended.assert_wrong("no login", &["refuses the login", "broker.user_file"]);
    assert_eq!((fs::read(broker.dropin_path()).unwrap(), broker.pid()), (drop_in, pid));
}

#[test]
fn a_drop_in_of_someone_else_is_left_alone() {
    let spawn = SpawnConfig::default();
    let broker = broker_with(
        VERSION,
        &SpawnConfig {
            dropin: Some("max_queued_messages 500 \n".to_owned()),
            supervised: true,
            ..spawn
        },
    );
    let place = Place::on(broker);
    let path = place.config.drop_in.display().to_string();
    place.once(|_| {}).assert_wrong("edited", &[&path, "edited by hand", "edge resume"]);
    place.assert_untouched("edited");
}

#[test]
fn what_may_not_be_read_or_written_is_named() {
    let place = Place::new();
    let tool = place.path("edge");
    // By another process: what this one has open for writing may be passed on to what another test
    // starts, and can't be executed until that has ended.
    assert!(Command::new("cp").arg(program()).arg(&tool).status().unwrap().success());
    fs::create_dir(&place.config.state_dir).unwrap();
    for open in [place.dir.path(), place.broker.conf_path().parent().unwrap(), &tool] {
        open_to_all(open);
    }
    fs::set_permissions(&place.config.state_dir, fs::Permissions::from_mode(0o777)).unwrap();
    let include_dir = place.config.drop_in.parent().unwrap();
    fs::set_permissions(include_dir, fs::Permissions::from_mode(0o555)).unwrap();
    let config = place.config.write(place.dir.path());
    let once = ["once", "--config", config.to_str().unwrap()];

    let ended = unprivileged(&tool, &once);
    let aside = format!("{}.new", place.config.drop_in.display());
    ended.assert_says("read-only", NO, &["cannot write", &aside, "run edge as a user who may"]);
    place.assert_untouched("read-only");

    // The model that was accepted just now would be used in the place of one that can't be read.
    fs::remove_file(place.config.state_dir.join("accepted.btm")).unwrap();
    for (case, file, key) in
        [("configuration", &config, "edge.toml"), ("model", &place.config.model, "model.path: ")]
    {
        let mode = fs::metadata(file).unwrap().permissions();
        fs::set_permissions(file, fs::Permissions::from_mode(0o0)).unwrap();
        let ended = unprivileged(&tool, &once);
        ended.assert_wrong(case, &["cannot read", key, "Permission denied", "who may read it"]);
        fs::set_permissions(file, mode).unwrap();
    }
    fs::set_permissions(include_dir, fs::Permissions::from_mode(0o755)).unwrap();
    place.assert_untouched("unreadable");
}

/// Searchable and readable by the user of [`unprivileged`].
fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs `program` as an ordinary user: root may read and write everything.
fn unprivileged(program: &Path, arguments: &[&str]) -> Ended {
    let mut command = if Uid::effective().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).output().unwrap().into()
}

#[test]
fn a_drop_in_that_the_broker_refuses_is_taken_back() {
    // Stands for a broker that does not start with what edge wrote.
    let dir = TempDir::new().unwrap();
    let picky = dir.path().join("mosquitto");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" != -c ] || ! grep -qs 'max_inflight_messages ....' \"${{2%/*}}\"/conf.d/*.conf || exit 3\n\
         exec {} \"$@\"\n",
        mosquitto(VERSION).path().display()
    );
    fs::write(&picky, script).unwrap();
    fs::set_permissions(&picky, fs::Permissions::from_mode(0o755)).unwrap();
    let picky = Mosquitto::find(Some(&picky)).unwrap();
    let config = Place::spawn_config(&SpawnConfig::default());
    let place = Place::on(BrokerProcess::spawn(&picky, &config).unwrap());
    let ended = place.once(|_| {});
    ended.assert_says(
        "refused",
        NO,
        &["the restart command failed", "the previous settings are back"],
    );
    let after = seen(&place.broker);
    assert_ne!(after.pid, place.before.pid, "it was restarted with the old settings");
    assert_eq!(Seen { pid: place.before.pid, ..after }, place.before);
}
