//! A broker's life under `host`: started, restarted, supervised, confined, and never left behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use brokertuner_core::KNOB_COUNT;
use brokertuner_core::features::Schema;
use brokertuner_host::broker::{
    BrokerError, BrokerProcess, Phase, SpawnConfig, rss_bytes, window_holds,
};
use brokertuner_host::ddpg::{Agent, Hyper};
use brokertuner_host::export::{About, export};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;

use crate::support::mqtt::limits_at;
use crate::support::{PATIENCE, VERSIONS, broker, broker_with, mosquitto, wait_for};

const VERSION: &str = "2.0.21";

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Gone, or only waited for.
fn ended(pid: u32) -> bool {
    let stat = Process::new(i32::try_from(pid).unwrap()).and_then(|process| process.stat());
    stat.map_or(true, |stat| stat.state == 'Z')
}

fn supervised(dropin: &str) -> BrokerProcess {
    let config =
        SpawnConfig { dropin: Some(dropin.to_owned()), supervised: true, ..SpawnConfig::default() };
    broker_with(VERSION, &config)
}

/// The `broker-owner` program, its broker's process id and its folder.
struct Owner {
    child: Child,
    broker_pid: u32,
    folder: PathBuf,
}

impl Owner {
    fn start(end: &str, cpu_share: Option<&str>) -> Self {
        // Under nohup the test itself ignores SIGHUP, and so would the owner.
        let mut child = Command::new("env")
            .arg("--default-signal=HUP")
            .arg(env!("CARGO_BIN_EXE_broker-owner"))
            .arg(end)
            .arg(mosquitto(VERSION).path())
            .args(cpu_share)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (pid, folder) = line.trim().split_once(' ').expect("the broker's pid and folder");
        Self { child, broker_pid: pid.parse().unwrap(), folder: PathBuf::from(folder) }
    }

    fn assert_broker_ends(&self) {
        wait_for("the end of the broker", || ended(self.broker_pid).then_some(()));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_restart_keeps_the_address_and_takes_the_new_settings() {
    for version in VERSIONS {
        let broker = broker(version, "max_inflight_messages 5\n");
        let (addr, pid) = (broker.addr(), broker.pid());
        fs::write(broker.dropin_path(), "max_inflight_messages 7\n").unwrap();
        let restart = broker.restart().unwrap();
        println!("{version}: stop {:?}, start {:?}", restart.stop_took, restart.start_took);
        assert_eq!((broker.addr(), broker.pid()), (addr, restart.pid), "{version}");
        assert_ne!(restart.pid, pid, "{version}");
        assert!(restart.exit.is_some_and(|exit| exit.success()), "{version}: {restart:?}");
        assert_eq!(limits_at(addr).receive_maximum, Some(7), "{version}");
        assert_eq!(broker.start_count(), 2);
    }
}

#[test]
fn a_refused_configuration_is_reported_in_the_brokers_words() {
    for version in VERSIONS {
        let config = SpawnConfig {
            dropin: Some("max_inflight_messages 5\nno_such_option 1\n".to_owned()),
            ..SpawnConfig::default()
        };
        let error = BrokerProcess::spawn(&mosquitto(version), &config).unwrap_err();
        let BrokerError::Exited { status, log } = &error else { panic!("{version}: {error}") };
        assert_eq!(status.code(), Some(3), "{version}");
        assert!(log.contains("no_such_option") && log.contains("zz-brokertuner.conf:2"), "{log}");
    }
}

#[test]
fn a_stopped_broker_leaves_nothing_and_takes_no_orders() {
    let mut broker = broker(VERSION, "");
    let (pid, folder) = (broker.pid(), broker.conf_path().parent().unwrap().to_path_buf());
    assert!(rss_bytes(pid).unwrap() > 1_000_000);
    assert!(broker.stop().is_some_and(|exit| exit.success()));
    assert_eq!((broker.phase(), broker.is_alive()), (Phase::Stopped, false));
    assert!(matches!(broker.reload(), Err(BrokerError::NotRunning)));
    assert!(matches!(broker.restart(), Err(BrokerError::NotRunning)));
    assert!(rss_bytes(pid).is_err());
    drop(broker);
    assert!(!folder.exists());
}

#[test]
fn an_unsupervised_broker_that_dies_stays_dead() {
    let broker = broker(VERSION, "");
    assert_eq!(broker.restart_command(), None);
    signal(broker.pid(), Signal::SIGKILL);
    wait_for("the end", || (!broker.is_alive()).then_some(()));
    assert_eq!(broker.phase(), Phase::Stopped);
    assert!(broker.exit_status().is_some_and(|exit| exit.code().is_none()));
    assert!(!broker.pid_path().exists(), "a stale pid file would name a stranger");
}

#[test]
fn a_supervised_broker_comes_back_whatever_ended_it() {
    let broker = supervised("max_inflight_messages 5\n");
    for (count, end) in [(1, Signal::SIGTERM), (2, Signal::SIGKILL)] {
        let pid = broker.pid();
        signal(pid, end);
        broker.wait_for_start(count, PATIENCE).unwrap();
        assert_ne!(broker.pid(), pid, "{end}");
        let named = fs::read_to_string(broker.pid_path()).unwrap();
        assert_eq!(named.trim(), broker.pid().to_string(), "{end}: the pid file names the new one");
    }
}

#[test]
fn the_restart_command_returns_when_the_broker_serves() {
    let broker = supervised("max_inflight_messages 5\n");
    for window in [6, 7, 8] {
        fs::write(broker.dropin_path(), format!("max_inflight_messages {window}\n")).unwrap();
        let status = Command::new(broker.restart_command().unwrap()).status().unwrap();
        assert!(status.success());
        assert_eq!(limits_at(broker.addr()).receive_maximum, Some(window));
    }
    assert_eq!(broker.start_count(), 4, "one start for each request");
}

#[test]
fn a_supervised_broker_that_cannot_start_fails_and_can_be_repaired() {
    let broker = supervised("max_inflight_messages 5\n");
    fs::write(broker.dropin_path(), "no_such_option 1\n").unwrap();
    let output = Command::new(broker.restart_command().unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("no_such_option"), "{words}");
    assert_eq!(broker.phase(), Phase::Failed);
    let error = broker.wait_for_start(1, PATIENCE).unwrap_err();
    assert!(matches!(error, BrokerError::GaveUp { .. }), "{error}");

    fs::write(broker.dropin_path(), "max_inflight_messages 9\n").unwrap();
    assert!(Command::new(broker.restart_command().unwrap()).status().unwrap().success());
    assert_eq!(broker.phase(), Phase::Running);
    assert_eq!(limits_at(broker.addr()).receive_maximum, Some(9));
}

#[test]
fn host_can_restart_a_supervised_broker_too() {
    let broker = supervised("");
    for count in 2..5 {
        broker.restart().unwrap();
        assert_eq!((broker.phase(), broker.start_count()), (Phase::Running, count));
    }
}

#[test]
fn the_broker_runs_on_its_core() {
    let core = first_allowed_core();
    let config = SpawnConfig { core: Some(core), ..SpawnConfig::default() };
    let broker = broker_with(VERSION, &config);
    let allowed = || {
        let status = Process::new(i32::try_from(broker.pid()).unwrap()).unwrap().status().unwrap();
        status.cpus_allowed_list.unwrap()
    };
    let only = vec![(u32::try_from(core).unwrap(), u32::try_from(core).unwrap())];
    assert_eq!(allowed(), only);
    broker.restart().unwrap();
    assert_eq!(allowed(), only, "after a restart");

    let config = SpawnConfig { core: Some(1_000), ..SpawnConfig::default() };
    let error = BrokerProcess::spawn(&mosquitto(VERSION), &config).unwrap_err();
    assert!(matches!(error, BrokerError::Pin { core: 1_000, .. }), "{error}");
}

fn first_allowed_core() -> usize {
    let status = Process::myself().unwrap().status().unwrap();
    usize::try_from(status.cpus_allowed_list.unwrap()[0].0).unwrap()
}

/// The group's quota as the kernel reports it, found through the process itself.
fn quota_and_period_us(pid: u32) -> Option<(PathBuf, u64, u64)> {
    let groups = Process::new(i32::try_from(pid).unwrap()).unwrap().cgroups().unwrap();
    let group = groups.into_iter().find(|group| group.pathname.contains("/brokertuner-"))?;
    let name = group.pathname.rsplit('/').next().unwrap().to_owned();
    let mounts = Process::myself().unwrap().mountinfo().unwrap();
    let dirs = mounts.into_iter().filter(|mount| mount.fs_type.starts_with("cgroup"));
    let dir = dirs
        .flat_map(|mount| {
            [mount.mount_point.join(&name), joined(&mount.mount_point, &group.pathname)]
        })
        .find(|dir| {
            dir.join("cgroup.procs").exists()
                && (has(dir, "cpu.max") || has(dir, "cpu.cfs_quota_us"))
        })?;
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let text = read("cpu.max") + &read("cpu.cfs_quota_us") + " " + &read("cpu.cfs_period_us");
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
    Some((dir, numbers.next()?, numbers.next()?))
}

fn joined(mount: &Path, group: &str) -> PathBuf {
    mount.join(group.trim_start_matches('/'))
}

fn has(dir: &Path, file: &str) -> bool {
    dir.join(file).exists()
}

/// A broker under a quota, or `None` where this machine lets us set none, which must be said by
/// name.
fn capped_broker(cpu_share: f64) -> Option<BrokerProcess> {
    let config = SpawnConfig { cpu_share: Some(cpu_share), ..SpawnConfig::default() };
    match BrokerProcess::spawn(&mosquitto(VERSION), &config) {
        Ok(broker) => Some(broker),
        Err(BrokerError::CpuShare { reason, .. }) if !reason.is_empty() => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_quota_is_set_or_refused_by_name() {
    let Some(broker) = capped_broker(0.05) else { return };
    let (dir, quota_us, period_us) = quota_and_period_us(broker.pid()).unwrap();
    assert_eq!((quota_us, period_us), (1_000, 20_000));
    broker.restart().unwrap();
    assert_eq!(quota_and_period_us(broker.pid()).unwrap().0, dir, "the same group after a restart");
    drop(broker);
    assert!(!dir.exists(), "{} is left", dir.display());
}

#[test]
fn a_panic_takes_the_broker_along() {
    let mut owner = Owner::start("panic", None);
    assert_eq!(owner.child.wait().unwrap().code(), Some(101));
    owner.assert_broker_ends();
    assert!(!owner.folder.exists());
}

#[test]
fn one_signal_winds_up() {
    for end in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut owner = Owner::start("poll", None);
        signal(owner.child.id(), end);
        assert!(owner.child.wait().unwrap().success(), "{end}");
        owner.assert_broker_ends();
        assert!(!owner.folder.exists(), "{end}");
    }
}

#[test]
fn a_second_signal_ends_everything_at_once() {
    let share = capped_broker(0.5).map(|_| "0.5");
    let mut owner = Owner::start("ignore", share);
    let group = quota_and_period_us(owner.broker_pid).map(|(dir, ..)| dir);
    assert_eq!(group.is_some(), share.is_some());
    // Signals of one kind that come together are one signal, so the second is repeated until it is
    // seen.
    let status = wait_for("the end of the owner", || {
        signal(owner.child.id(), Signal::SIGINT);
        owner.child.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(130));
    owner.assert_broker_ends();
    assert!(!owner.folder.exists());
    assert!(group.is_none_or(|dir| !dir.exists()), "the control group is left");
}

#[test]
fn a_killed_owner_takes_the_broker_along() {
    let mut owner = Owner::start("ignore", None);
    assert!(!ended(owner.broker_pid), "it outlives the thread that asked for it");
    signal(owner.child.id(), Signal::SIGKILL);
    owner.child.wait().unwrap();
    owner.assert_broker_ends();
    fs::remove_dir_all(&owner.folder).unwrap();
}

#[test]
fn a_hangup_that_nohup_had_ignored_stays_ignored() {
    let owner = Path::new(env!("CARGO_BIN_EXE_broker-owner"));
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" poll \"$1\""])
        .args([owner, mosquitto(VERSION).path()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // With its line it says that the guard is there.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let status = Process::new(i32::try_from(child.id()).unwrap()).unwrap().status().unwrap();
    signal(child.id(), Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
    assert_eq!(status.sigign & 1, 1, "SIGHUP is signal 1");
}

/// A trial in a process of its own, with a stand-in for `edge` that does not end when asked to.
struct TrialOwner {
    child: Child,
    edge_pid: u32,
    /// The agent's temporary folder.
    folder: PathBuf,
    _dir: tempfile::TempDir,
}

impl TrialOwner {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (edge, started) = (dir.path().join("edge"), dir.path().join("started"));
        let script = format!(
            "#!/bin/sh\ntrap '' TERM\necho \"$$ ${{4%/*}}\" >'{0}.new'\nmv '{0}.new' '{0}'\nexec sleep 600\n",
            started.display()
        );
        fs::write(&edge, script).unwrap();
        fs::set_permissions(&edge, fs::Permissions::from_mode(0o755)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_broker-owner"))
            .arg("trial")
            .args([mosquitto(VERSION).path(), &edge, &untrained_model(dir.path())])
            // What a killed owner leaves behind goes with the test.
            .env("TMPDIR", dir.path())
            .spawn()
            .unwrap();
        let line = wait_for("the start of the agent", || fs::read_to_string(&started).ok());
        let (pid, folder) = line.trim().split_once(' ').expect("the agent's pid and folder");
        let (edge_pid, folder) = (pid.parse().unwrap(), PathBuf::from(folder));
        assert!(folder.join("edge.toml").is_file(), "{}", folder.display());
        Self { child, edge_pid, folder, _dir: dir }
    }

    fn assert_agent_ends(&self) {
        wait_for("the end of the agent", || ended(self.edge_pid).then_some(()));
    }
}

/// Any model that this program takes.
fn untrained_model(dir: &Path) -> PathBuf {
    let agent = Agent::new(Hyper::demo(), Schema::Edge.len(), KNOB_COUNT, 1).unwrap();
    let about = About::new(Schema::Edge);
    let path = dir.join("model.btm");
    export(&agent, &about, &path).unwrap();
    path
}

impl Drop for TrialOwner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_killed_trial_takes_its_agent_along() {
    let mut owner = TrialOwner::start();
    assert!(!ended(owner.edge_pid));
    signal(owner.child.id(), Signal::SIGKILL);
    owner.child.wait().unwrap();
    owner.assert_agent_ends();
}

#[test]
fn a_second_signal_ends_the_agent_of_a_trial_and_its_folder() {
    let mut owner = TrialOwner::start();
    let status = wait_for("the end of the owner", || {
        signal(owner.child.id(), Signal::SIGINT);
        owner.child.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(130));
    owner.assert_agent_ends();
    assert!(!owner.folder.exists());
}

#[test]
fn the_window_probe_tells_the_versions_apart() {
    for (version, expected) in [("2.0.11", false), ("2.0.21", true)] {
        assert_eq!(window_holds(&mosquitto(version)).unwrap(), expected, "{version}");
    }
}

#[test]
fn memory_is_sampled_for_the_present_process() {
    let broker = broker(VERSION, "");
    let before = rss_bytes(broker.pid()).unwrap();
    let old = broker.pid();
    broker.restart().unwrap();
    assert!(rss_bytes(old).is_err(), "the old process is gone");
    let after = rss_bytes(broker.pid()).unwrap();
    assert!(after.abs_diff(before) < 4 << 20, "{before} and {after} bytes for an empty broker");
    assert!(broker.wait_for_start(9, Duration::ZERO).is_err());
}
