//! The agent without rights, and the helper that has them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use brokertuner_core::Knob;
use brokertuner_edge::control::Broker as _;
use brokertuner_edge::helper::{Answer, Client, Request};
use nix::unistd::{User, chown};

use super::broker::{Broker, PATIENCE, copy_of_edge, eventually};
use super::cli::{Running, edge, on};
use super::model;

const AGENT: &str = "nobody";
const WANTED: [(Knob, u64); 2] =
    [(Knob::InflightMessagesMax, 1000), (Knob::QueuedMessagesMax, 10_000)];

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// The same program with the rights and the view that the helper's unit leaves it, and that of handing
/// its own socket on.
fn as_in_its_unit(program: &Command) -> Command {
    let unit =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../cross/systemd/brokertuner-helper@.service");
    let unit = fs::read_to_string(unit).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let rights = line.unwrap().to_lowercase().replace("cap_", "+").replace(' ', ",");
    assert!(unit.contains("\nPrivateNetwork=true\n"));
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "setpriv", "--inh-caps=-all", "--no-new-privs"]);
    command.arg(format!("--bounding-set=-all,+chown,{rights}")).arg("--");
    command.arg(program.get_program()).args(program.get_args());
    command
}

/// A broker whose files are root's, a helper beside it, and a state directory of the agent's user.
struct Site {
    broker: Broker,
    config: PathBuf,
    _helper: Running,
}

impl Site {
    /// The helper answers the user of that name.
    fn start(user: &str, main_conf: &str) -> Self {
        let broker = Broker::start(main_conf);
        assert_eq!(fs::metadata(broker.dir.path()).unwrap().uid(), 0, "run these tests as root");
        chmod(broker.dir.path(), 0o755);
        let agent = User::from_name(AGENT).unwrap().unwrap();
        fs::create_dir(broker.path("state")).unwrap();
        chown(&broker.path("state"), Some(agent.uid), Some(agent.gid)).unwrap();
        model::write(&broker.path("model.btm"), &WANTED);
        let socket = broker.path("helper.sock");
        let extra = format!(
            "[decide]\ninterval_ms = 250\nverify_window_s = 1\n\
             [helper]\nuse = true\nsocket = {socket:?}\nuser = {user:?}\n\
             [knobs.autosave_interval]\nmin = 60\nmax = 7200\n"
        );
        let config = broker.edge_config(&broker.path("model.btm"), &extra);
        let mut command = as_in_its_unit(&edge(&["helper", "--config", config.to_str().unwrap()]));
        command.arg("--listen").arg(&socket);
        let log = fs::File::create(broker.path("helper.log")).unwrap();
        let helper = Running(command.stderr(log).spawn().unwrap());
        let is_open = || fs::metadata(&socket).is_ok_and(|found| found.mode() & 0o777 == 0o660);
        eventually("the helper to listen", || is_open().then_some(()));
        Self { broker, config, _helper: helper }
    }

    fn socket(&self) -> PathBuf {
        self.broker.path("helper.sock")
    }

    fn ask(&self, request: &Request) -> Answer {
        Client { socket: self.socket(), timeout: PATIENCE }.ask(request).unwrap()
    }

    /// `edge once` as a user without any rights.
    fn once(&self) -> Output {
        let program = copy_of_edge(self.broker.dir.path());
        Command::new("setpriv")
            .args([
                "--reuid",
                AGENT,
                "--regid",
                "nogroup",
                "--clear-groups",
                "--no-new-privs",
                "--",
            ])
            .arg(program.get_program())
            .args(program.get_args())
            .args(["once", "--config", self.config.to_str().unwrap()])
            .output()
            .expect("sudo apt-get install -y util-linux")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn refusal(answer: Answer) -> String {
    match answer {
        Answer::Refused(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_agent_without_rights_tunes_through_the_helper() {
    let site = Site::start(AGENT, "");
    let before = site.broker.pid();
    let text = fs::read_to_string(&site.config).unwrap();
    fs::write(&site.config, text.replace("use = true", "use = false")).unwrap();
    let alone = site.once();
    assert_ne!(alone.status.code(), Some(0), "{}", said(&alone));
    assert!(said(&alone).contains("Permission denied"), "{}", said(&alone));
    assert!(!site.broker.drop_in().exists());

    // That failure counts, and is waited for: start afresh.
    fs::remove_file(site.broker.path("state/edge.state")).unwrap();
    fs::write(&site.config, text).unwrap();
    let done = site.once();
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert!(said(&done).contains("changed: "), "{}", said(&done));
    assert_ne!(site.broker.pid(), before, "restarted");
    let found = fs::metadata(site.broker.drop_in()).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o644));
    let window = site.broker.live().answer().unwrap().receive_maximum.unwrap();
    assert!((900..=1100).contains(&window), "{window}");
}

#[test]
fn a_change_that_the_broker_refuses_is_taken_back_through_the_helper() {
    let site = Site::start(AGENT, "");
    let script = fs::read_to_string(site.broker.path("start")).unwrap();
    let script = script.replace("'max_inflight_messages 4000'", "'max_inflight_messages'");
    fs::write(site.broker.path("start"), script).unwrap();
    let text = fs::read_to_string(&site.config).unwrap();
    fs::write(&site.config, text.replace("[model]", "ready_timeout_s = 2\n[model]")).unwrap();
    let failed = site.once();
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(!site.broker.drop_in().exists(), "absent again: {}", said(&failed));
    eventually("the broker", || site.broker.live().answer().ok());
}

#[test]
fn the_helper_does_its_five_things_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let site = Site::start(
        AGENT,
        &format!("persistence true\npersistence_location {}/\n", place.path().display()),
    );
    let drop_in = site.broker.drop_in();
    let Answer::Process(process) = site.ask(&Request::Process) else { panic!() };
    assert_eq!(process.pid, site.broker.pid());
    let Answer::Status(status) = site.ask(&Request::Status) else { panic!() };
    assert!(status.rss_bytes > 1 << 20 && status.start_ticks == process.start_ticks);

    let write = |text: &str| site.ask(&Request::Write(Some(text.into())));
    for hostile in [
        "log_dest file /etc/passwd\n",
        "max_inflight_messages 100\nplugin /tmp/evil.so\n",
        "max_inflight_messages 100\r\nuser root\n",
        "max_inflight_messages 99999999\n",
        "# a comment of mine\nmax_inflight_messages 100\n",
        "include_dir /tmp\n",
        "\0",
    ] {
        refusal(write(hostile));
        assert!(!drop_in.exists(), "{hostile:?}");
    }
    let mut settings = brokertuner_core::Settings::UNWRITTEN;
    settings.set(Knob::AutosaveInterval, 77).unwrap();
    let text = brokertuner_core::render::render(&settings);
    assert_eq!(write(text.as_str()), Answer::Done);
    assert_eq!(fs::read_to_string(&drop_in).unwrap(), text.as_str());
    // What the operator forbids; what stands there already may be put back.
    assert!(refusal(write("# Written by BrokerTuner. Edit it and the agent lets go of it.\nautosave_interval 10000\n")).contains("must be 60 to 7200"));
    assert!(refusal(write("# Written by BrokerTuner. Edit it and the agent lets go of it.\nqueue_qos0_messages true\n")).contains("is held"));
    assert_eq!(fs::read_to_string(&drop_in).unwrap(), text.as_str());
    assert_eq!(site.ask(&Request::Reload), Answer::Done);
    eventually("the reload", || site.broker.log().contains("Reloading config").then_some(()));
    assert_eq!(site.ask(&Request::Write(None)), Answer::Done);
    assert!(!drop_in.exists());

    let restart =
        |save_first, set_database_aside| Request::Restart { save_first, set_database_aside };
    let database = place.path().join("mosquitto.db");
    assert_eq!(site.ask(&restart(true, false)), Answer::Done);
    assert!(database.exists(), "saved before the restart");
    let new = || site.broker.live().process().is_ok_and(|now| now != process);
    eventually("the restart", || new().then_some(()));
    eventually("the broker", || site.broker.live().answer().ok());
    assert_eq!(site.ask(&restart(false, true)), Answer::Done);
    let kept = fs::read_dir(database.parent().unwrap()).unwrap().flatten();
    let is_kept = |name: String| name.contains(".before-brokertuner-");
    let kept = kept.filter(|entry| is_kept(entry.file_name().to_string_lossy().into_owned()));
    assert_eq!(kept.count(), 1, "the database lies aside");
}

#[test]
fn another_user_is_refused_and_a_bad_peer_disturbs_nobody() {
    let site = Site::start("daemon", "");
    chmod(&site.socket(), 0o666);
    let refused = site.once();
    assert_ne!(refused.status.code(), Some(0));
    assert!(said(&refused).contains("may not ask; helper.user may"), "{}", said(&refused));
    assert!(!site.broker.drop_in().exists());

    // Garbage, an announcement of too much, nothing at all: each connection ends for itself.
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\x04\x00\x63\x63\x63\x63", b"GET / HTTP/1.1\r\n", b""]
    {
        let mut stream = UnixStream::connect(site.socket()).unwrap();
        let _ = stream.write_all(bytes);
    }
    let unsaved = site.ask(&Request::Restart { save_first: true, set_database_aside: false });
    assert!(refusal(unsaved).contains("set broker.database"));
    // A silent peer is waited for, but not for ever.
    let silent = UnixStream::connect(site.socket()).unwrap();
    let started = std::time::Instant::now();
    assert!(matches!(site.ask(&Request::Process), Answer::Process(_)));
    assert!(started.elapsed() < Duration::from_secs(15));
    drop(silent);
}

/// What root orders while no agent runs goes by the helper, and leaves nothing that the agent can't
/// read.
#[test]
fn orders_of_root_are_carried_out_as_the_agents_user() {
    let site = Site::start(AGENT, "");
    assert_eq!(site.once().status.code(), Some(0));
    assert!(site.broker.drop_in().exists());
    let (code, out, err) = on(&site.config, &["off", "--restore", "--allow-state-loss"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(!site.broker.drop_in().exists(), "{out}{err}");
    let (code, out, err) = on(&site.config, &["resume"]);
    assert_eq!(code, 0, "{out}{err}");
    let agent = User::from_name(AGENT).unwrap().unwrap().uid.as_raw();
    for entry in fs::read_dir(site.broker.path("state")).unwrap().map(Result::unwrap) {
        assert_eq!(entry.metadata().unwrap().uid(), agent, "{:?}", entry.path());
    }
    let again = site.once();
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    assert!(site.broker.drop_in().exists(), "{}", said(&again));
}

/// Whoever may write the configuration would run commands as root.
#[test]
fn a_configuration_that_others_may_write_is_refused() {
    let site = Site::start(AGENT, "");
    let agent = User::from_name(AGENT).unwrap().unwrap();
    let refused = || {
        let mut command = edge(&["helper", "--config", site.config.to_str().unwrap()]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        output.status.code() == Some(2) && said(&output).contains("others than root may write it")
    };
    assert!(!refused());
    chmod(&site.config, 0o666);
    assert!(refused());
    chmod(&site.config, 0o644);
    chown(&site.config, Some(agent.uid), None).unwrap();
    assert!(refused());
    chown(&site.config, Some(0.into()), None).unwrap();
    chmod(site.broker.dir.path(), 0o777);
    assert!(refused());
    chmod(site.broker.dir.path(), 0o755);
    assert!(!refused());
}

/// As systemd starts it: the connection is standard input.
#[test]
fn one_request_on_standard_input_is_answered() {
    let site = Site::start(AGENT, "");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = edge(&["helper", "--config", site.config.to_str().unwrap()]);
    let stdin = Stdio::from(std::os::fd::OwnedFd::from(theirs));
    let mut helper = Running(command.stdin(stdin).spawn().unwrap());
    // It holds their end, which must close for the answer to end.
    drop(command);
    // Request::Process is the first variant: one zero byte.
    (&ours).write_all(&[1, 0, 0]).unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut &ours, &mut answer).unwrap();
    assert_eq!(answer[2], 0, "Answer::Process: {answer:?}");
    assert!(eventually("its end", || helper.0.try_wait().unwrap()).success());
    let output = edge(&["helper", "--config", site.config.to_str().unwrap()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("or use --listen"), "{}", said(&output));
}
