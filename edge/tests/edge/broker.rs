//! A Mosquitto under supervision, as on a gateway: ended by a signal, it is started again.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use brokertuner_edge::apply::{Applier, Paths};
use brokertuner_edge::control::{Broker as _, LiveBroker, Method};
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::mqtt::ProtocolChoice;
use brokertuner_edge::pid::PidFinder;
use brokertuner_edge::ready;
use tempfile::TempDir;

const INSTALL: &str = "Mosquitto is missing: sudo apt-get install -y mosquitto";
/// When to give up, not how fast it should be: other work may take the processor meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `done` answers, and fails the test after [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A broker whose listener speaks TLS with the certificate of `extra`: ready when it listens.
pub(crate) fn start_with_tls(extra: &str) -> Broker {
    let mut tries = 0..5;
    loop {
        tries.next().expect("no port stays free");
        let broker = Broker::start_once(&mosquitto(), extra);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            let listens = std::net::TcpStream::connect(broker.address).is_ok();
            if listens && broker.live().process().is_ok() {
                return broker;
            }
            thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{}", broker.log());
    }
}

/// A command for a program of these tests' own target: where that is not this machine's
/// (`cross/test`), it runs under what the variable names.
pub(crate) fn program(path: impl AsRef<OsStr>) -> Command {
    let runner = std::env::var("BROKERTUNER_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    match words.next() {
        None => Command::new(path),
        Some(first) => {
            let mut command = Command::new(first);
            command.args(words).arg(path);
            command
        }
    }
}

/// As [`program`], of a copy of edge in `dir`: where the build lies may be closed to other users.
pub(crate) fn copy_of_edge(dir: &Path) -> Command {
    let copy = dir.join("edge");
    if !copy.exists() {
        // By another process: a file that this one has open for writing may be passed on to what
        // another test starts, and can't be executed until that has ended.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_edge")).arg(&copy).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp to {}", copy.display());
    }
    program(copy)
}

fn mosquitto() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join("mosquitto"))
        .find(|candidate| candidate.is_file())
        .expect(INSTALL)
}

/// The machine's own Mosquitto, and 2.0.21 where that is another one: older ones behave otherwise.
pub(crate) fn mosquittos() -> Vec<PathBuf> {
    let own = mosquitto();
    let said = Command::new(&own).arg("-h").output().unwrap();
    if String::from_utf8_lossy(&said.stdout).contains("version 2.0.21") {
        return vec![own];
    }
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/.brokers/trixie/mosquitto");
    assert!(other.exists(), "Mosquitto 2.0.21 is missing: tests/fetch-broker trixie");
    vec![own, other]
}

pub(crate) struct Broker {
    pub(crate) dir: TempDir,
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts a broker; `extra` goes into the main file before `include_dir`.
    pub(crate) fn start(extra: &str) -> Self {
        Self::start_with(&mosquitto(), extra)
    }

    /// As [`Broker::start`], with a Mosquitto of choice.
    pub(crate) fn start_with(mosquitto: &Path, extra: &str) -> Self {
        let mut tries = 0..5;
        loop {
            // The port may be taken between the two binds: then another one.
            tries.next().expect("no port stays free");
            let broker = Self::start_once(mosquitto, extra);
            if ready::wait(&broker.live(), None, Duration::from_secs(5)).is_ok() {
                return broker;
            }
            eprintln!("{}", broker.log());
        }
    }

    fn start_once(mosquitto: &Path, extra: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let root = dir.path().display();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        let sys = if extra.contains("sys_interval") { "" } else { "sys_interval 1\n" };
        let access = if extra.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" };
        let main = format!(
            "listener {} 127.0.0.1\n{access}{sys}pid_file {root}/mosquitto.pid\n\
             log_dest stderr\nuser root\n{extra}\ninclude_dir {root}/conf.d\n",
            address.port(),
        );
        fs::write(dir.path().join("mosquitto.conf"), main).unwrap();
        // Stands for a broker that refuses a configuration.
        let script = format!(
            "#!/bin/sh\ngrep -qs 'max_inflight_messages 4000' {root}/conf.d/*.conf && exit 3\n\
             exec {} -c {root}/mosquitto.conf\n",
            mosquitto.display()
        );
        fs::write(dir.path().join("start"), script).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (dir.path().to_path_buf(), Arc::clone(&stop));
        let supervisor = thread::spawn(move || supervise(&path, &stopped));
        Self { dir, address, stop, supervisor: Some(supervisor) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn drop_in(&self) -> PathBuf {
        self.path("conf.d/zz-brokertuner.conf")
    }

    pub(crate) fn restart_command(&self) -> Vec<String> {
        let kill = format!("kill -TERM $(cat {})", self.path("mosquitto.pid").display());
        vec!["/bin/sh".into(), "-c".into(), kill]
    }

    pub(crate) fn live(&self) -> LiveBroker {
        LiveBroker {
            address: self.address,
            client_id: "test".into(),
            credentials: None,
            tls: None,
            mqtt: ProtocolChoice::default(),
            finder: PidFinder::pid_file(&self.path("mosquitto.pid"), self.address),
            reload: Method::Signal,
            restart: Method::Command(self.restart_command()),
            command_timeout: PATIENCE,
            answer_timeout: Duration::from_secs(2),
        }
    }

    pub(crate) fn applier(&self) -> Applier {
        fs::create_dir_all(self.path("state")).unwrap();
        let paths =
            Paths { drop_in: self.drop_in(), state_dir: self.path("state"), database: None };
        let (applier, damage) =
            Applier::open(Box::new(RealFiles), Box::new(self.live()), paths).unwrap();
        assert!(damage.is_none(), "{damage:?}");
        applier
    }

    pub(crate) fn pid(&self) -> i32 {
        eventually("a process", || self.live().process().ok()).pid
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A configuration for edge; `extra` is added at its end.
    pub(crate) fn edge_config(&self, model: &Path, extra: &str) -> PathBuf {
        let root = self.dir.path().display();
        let file = self.path("edge.toml");
        let text = format!(
            "[broker]\nport = {}\ndrop_in = \"{root}/conf.d/zz-brokertuner.conf\"\n\
             main_conf = \"{root}/mosquitto.conf\"\n\
             [pid]\nsource = \"file\"\npid_file = \"{root}/mosquitto.pid\"\n\
             [control]\nreload = \"signal\"\nrestart = \"command\"\nrestart_command = {:?}\n\
             [model]\npath = \"{}\"\n\
             [agent]\nstate_dir = \"{root}/state\"\n{extra}",
            self.address.port(),
            self.restart_command(),
            model.display()
        );
        fs::write(&file, text).unwrap();
        file
    }
}

fn supervise(dir: &Path, stop: &AtomicBool) {
    let mut child: Option<Child> = None;
    while !stop.load(Ordering::Relaxed) {
        match &mut child {
            Some(running) => {
                if running.try_wait().unwrap().is_some() {
                    child = None;
                }
            }
            None => {
                let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
                let started = Command::new("/bin/sh")
                    .arg(dir.join("start"))
                    .stdout(Stdio::null())
                    .stderr(log)
                    .spawn();
                child = Some(started.unwrap());
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    if let Some(mut running) = child {
        let _ = running.kill();
        let _ = running.wait();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}
