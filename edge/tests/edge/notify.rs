//! What the service manager hears: ready without a broker, fed, told why, told of the end.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::state::StateStore;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use super::agent::cut_short;
use super::broker::{Broker, PATIENCE, eventually};
use super::cli::{Running, edge};
use super::model;

/// How long the agent may be silent.
const WATCHDOG: Duration = Duration::from_millis(100);

/// A configuration with a port that nobody listens on: the agent starts before the broker, or without
/// it.
fn without_its_broker(broker: &Broker) -> PathBuf {
    model::write(&broker.path("model.btm"), &[]);
    let config = broker.edge_config(&broker.path("model.btm"), "");
    let text = fs::read_to_string(&config).unwrap();
    let port = format!("port = {}\n", broker.address.port());
    fs::write(&config, text.replace(&port, "port = 1\n")).unwrap();
    config
}

/// An agent, and the service manager that it tells, which waits for news that long.
fn notifying(
    broker: &Broker,
    config: &Path,
    watchdog: Duration,
    patience: Duration,
) -> (Running, UnixDatagram) {
    let path = broker.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(patience)).unwrap();
    let mut command = edge(&["run", "--config", config.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &path);
    command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    (Running(command.spawn().unwrap()), manager)
}

#[test]
fn the_service_manager_is_told_also_without_a_broker() {
    let broker = Broker::start("");
    let config = without_its_broker(&broker);
    let (mut agent, manager) = notifying(&broker, &config, Duration::from_millis(200), PATIENCE);

    let mut heard = String::new();
    let mut hear = |what: &str, times: usize| {
        eventually(what, || {
            if heard.matches(what).count() >= times {
                return Some(());
            }
            let mut buffer = [0; 4096];
            let bytes = manager.recv(&mut buffer).unwrap();
            heard.push_str(std::str::from_utf8(&buffer[..bytes]).unwrap());
            heard.push('\n');
            (heard.matches(what).count() >= times).then_some(())
        });
    };
    hear("READY=1", 1);
    let started = std::time::Instant::now();
    hear("STATUS=no broker listens on ", 1);
    hear("WATCHDOG=1", 20);
    // Twice per period of 200 ms, so never in a burst.
    assert!(started.elapsed() > Duration::from_millis(1000), "{:?}", started.elapsed());
    kill(Pid::from_raw(i32::try_from(agent.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    hear("STOPPING=1", 1);
    assert!(eventually("its end", || agent.0.try_wait().unwrap()).success());
}

/// The watchdog is fed by the loop that decides, so one that hangs feeds nobody. It hangs in reading
/// the drop-in, in whose place lies a pipe that nobody writes to; and goes on when somebody does.
#[test]
fn a_loop_that_hangs_starves_the_watchdog() {
    let broker = Broker::start("");
    model::write(&broker.path("model.btm"), &[]);
    let config = broker.edge_config(&broker.path("model.btm"), "[decide]\ninterval_ms = 250\n");
    let (agent, manager) = notifying(&broker, &config, WATCHDOG, 20 * WATCHDOG);
    let is_fed = || {
        let mut buffer = [0; 4096];
        let heard = manager.recv(&mut buffer);
        heard.is_ok_and(|bytes| String::from_utf8_lossy(&buffer[..bytes]).contains("WATCHDOG=1"))
    };
    eventually("a loop at work", || is_fed().then_some(()));
    let drop_in = broker.path("conf.d/zz-brokertuner.conf");
    mkfifo(&drop_in, Mode::S_IRUSR).unwrap();
    eventually("a loop that hangs", || (!is_fed()).then_some(()));
    assert!(!is_fed(), "20 of its periods later");
    // A reader waits, so this does not; what it reads is empty, and gone by then.
    let writer = fs::File::options().write(true).open(&drop_in).unwrap();
    fs::remove_file(&drop_in).unwrap();
    drop(writer);
    eventually("a loop that goes on", || is_fed().then_some(()));
    drop(agent);
}

/// Ending what was cut short may take minutes: the service manager must not take them for a start that
/// hangs, nor the watchdog for a loop that does.
#[test]
fn it_is_ready_before_it_ends_what_was_cut_short_and_fed_meanwhile() {
    let broker = Broker::start("");
    cut_short(&broker);
    let config = without_its_broker(&broker);
    // A period that never passes here: what feeds it is the change.
    let (agent, manager) = notifying(&broker, &config, Duration::from_secs(36_000), PATIENCE);
    let hear = || {
        let mut buffer = [0; 4096];
        let bytes = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    };
    assert!(hear().contains("READY=1"), "first of all");
    for time in 0..3 {
        assert!(hear().contains("WATCHDOG=1"), "{time}");
    }
    drop(agent);
    let state = StateStore::in_dir(&broker.path("state")).load(&RealFiles).unwrap();
    assert!(state.intent.is_some(), "it was at it");
}
