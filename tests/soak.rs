//! The agent at work for long: real load, changes of every kind, restarts by itself and by others,
//! readers over HTTP. It must not grow, in memory or in descriptors.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use brokertuner_core::Knob;
use brokertuner_edge::agent::Report;
use brokertuner_host::broker::{BrokerProcess, SpawnConfig};
use procfs::process::Process;
use tempfile::TempDir;

use crate::support::edge::{EdgeConfig, model, program};
use crate::support::mqtt::{Client, Level};
use crate::support::{PATIENCE, broker_with, wait_for};

/// How long, in seconds; an hour without it.
const SECONDS: &str = "BROKERTUNER_SOAK_S";
const HOUR: Duration = Duration::from_secs(3600);
/// What the agent may have grown by at the end, since its warm-up.
const GROWTH_MAX: f64 = 1.05;
/// Figures are medians, and least counts of descriptors, over this time.
const WINDOW: Duration = Duration::from_secs(15);
/// Restarts that the agent may make in an hour, by configuration: the most that there are.
const RESTARTS_MAX: u32 = 32;

/// What is done to agent and broker, and how often.
struct Pace {
    all: Duration,
    /// After this the agent is warm: 5 minutes of an hour, and a third of a short run, in which
    /// each of the things below was done several times too.
    warm_up: Duration,
    /// The model wants another value of an option that reloads.
    reload: Duration,
    /// The model wants another window.
    restart: Duration,
    /// Someone else restarts the broker.
    interfere: Duration,
}

impl Pace {
    fn of_environment() -> Self {
        let seconds = std::env::var(SECONDS).ok().map(|text| text.parse().expect(SECONDS));
        let all = seconds.map_or(HOUR, Duration::from_secs);
        Self {
            all,
            warm_up: Duration::from_secs(300).min(all / 3),
            reload: Duration::from_secs(10),
            restart: (all / (RESTARTS_MAX - 4)).max(Duration::from_secs(15)),
            interfere: Duration::from_secs(45),
        }
    }
}

/// The agent, ended with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Medians of a window.
#[derive(Debug, Clone, Copy)]
struct Size {
    rss_bytes: u64,
    descriptors: usize,
}

/// Looks at a process once a second for [`WINDOW`].
fn size_of(pid: u32) -> Size {
    let process = Process::new(i32::try_from(pid).unwrap()).unwrap();
    let began = Instant::now();
    let (mut sizes, mut counts) = (Vec::new(), Vec::new());
    while began.elapsed() < WINDOW {
        sizes.push(process.status().unwrap().vmrss.unwrap() * 1024);
        counts.push(process.fd_count().unwrap());
        thread::sleep(Duration::from_millis(500));
    }
    sizes.sort_unstable();
    // A connection of the moment is no leak.
    Size { rss_bytes: sizes[sizes.len() / 2], descriptors: counts.into_iter().min().unwrap() }
}

/// Publishes and takes, through every restart, until `stop`.
fn load(addr: SocketAddr, stop: &AtomicBool, passed: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::open(addr, Level::V311, "soak", true) else {
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        client.publish("soak/topic", &[b'x'; 100], 1, 1);
        while !stop.load(Ordering::Relaxed) {
            let Some((kind, _)) = client.receive(PATIENCE) else { break };
            if kind & 0xf0 == 0x40 {
                passed.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
                client.publish("soak/topic", &[b'x'; 100], 1, 1);
            }
        }
    }
}

/// One reader's request.
fn read_metrics(http: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(http) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    sent.is_ok() && answer.starts_with(b"HTTP/1.1 200 ")
}

struct Soak {
    broker: BrokerProcess,
    dir: TempDir,
    config: EdgeConfig,
    http: SocketAddr,
    /// What the model wants: counts up with each change.
    wanted: [u64; 2],
}

impl Soak {
    fn new() -> Self {
        let spawn = SpawnConfig { supervised: true, ..SpawnConfig::default() };
        let broker = broker_with("2.0.21", &spawn);
        let dir = TempDir::new().unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = EdgeConfig::of(&broker, dir.path());
        config.extra = format!(
            "[decide]\ninterval_ms = 250\ndwell_s = 0\nverify_window_s = 1\nback_off_s = 1\n\
             restarts_per_hour_max = {RESTARTS_MAX}\nrestarts_per_day_max = 64\n\
             restart_gain_min_percent = 0\n\
             [http]\nlisten = \"{http}\"\n"
        );
        let mut soak = Self { broker, dir, config, http, wanted: [0, 0] };
        soak.want(0);
        soak
    }

    /// Puts a model in place that wants the other value of one option.
    fn want(&mut self, which: usize) {
        self.wanted[which] += 1;
        let [interval, window] = self.wanted.map(|count| count.is_multiple_of(2));
        let (window, queue) = if window { (1000, 10_000) } else { (100, 1000) };
        let aside = self.dir.path().join("aside.btm");
        let values = [
            (Knob::AutosaveInterval, if interval { 100 } else { 3000 }),
            (Knob::InflightMessagesMax, window),
            (Knob::QueuedMessagesMax, queue),
        ];
        model::write(&aside, &values);
        fs::rename(aside, &self.config.model).unwrap();
    }

    fn start_agent(&self) -> Agent {
        let log = fs::File::create(self.dir.path().join("edge.log")).unwrap();
        let mut command = Command::new(program());
        command.args(["run", "--config"]).arg(self.config.write(self.dir.path()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).env_remove("RUST_LOG");
        Agent(command.spawn().unwrap())
    }

    fn report(&self) -> Option<Report> {
        serde_json::from_slice(&fs::read(self.config.state_dir.join("status.json")).ok()?).ok()
    }

    /// Everything that is done to the agent, until `stop`; answers how many reads were served.
    fn stir(&mut self, pace: &Pace, stop: &AtomicBool) -> u64 {
        let mut served = 0;
        let began = Instant::now();
        let mut due = [pace.reload, pace.restart, pace.interfere];
        while !stop.load(Ordering::Relaxed) {
            served += u64::from(read_metrics(self.http));
            let is_due = |due: &mut Duration, every: Duration| {
                let is_due = began.elapsed() >= *due;
                *due += if is_due { every } else { Duration::ZERO };
                is_due
            };
            if is_due(&mut due[0], pace.reload) {
                self.want(0);
                // As logrotate does it.
                let _ = self.broker.reload();
            }
            if is_due(&mut due[1], pace.restart) {
                self.want(1);
            }
            if is_due(&mut due[2], pace.interfere) {
                let _ = self.broker.restart();
            }
            thread::sleep(Duration::from_millis(500));
        }
        served
    }
}

#[test]
#[ignore = "an hour: tests/run --only soak, and three minutes of it in every run"]
fn the_agent_does_not_grow() {
    let pace = Pace::of_environment();
    assert!(pace.all >= 6 * WINDOW, "{SECONDS} must be at least {:?}", 6 * WINDOW);
    let mut soak = Soak::new();
    let agent = soak.start_agent();
    let pid = agent.0.id();
    let began = Instant::now();
    let (stop, passed) = (AtomicBool::new(false), AtomicU64::new(0));
    let addr = soak.broker.addr();
    wait_for("the first change", || soak.report().filter(|report| report.decisions > 0));
    let (warm, end, served) = thread::scope(|scope| {
        scope.spawn(|| load(addr, &stop, &passed));
        let stirring = scope.spawn(|| soak.stir(&pace, &stop));
        let until = |at: Duration| thread::sleep(at.saturating_sub(began.elapsed()));
        until(pace.warm_up);
        let warm = size_of(pid);
        until(pace.all - WINDOW);
        let end = size_of(pid);
        stop.store(true, Ordering::Relaxed);
        (warm, end, stirring.join().unwrap())
    });
    let report = soak.report().unwrap();
    let (passed, starts) = (passed.into_inner(), soak.broker.start_count());
    println!(
        "{:?}: {warm:?} after {:?}, {end:?} at the end; {} decisions, {starts} starts of the \
         broker, {passed} messages, {served} reads",
        pace.all, pace.warm_up, report.decisions
    );
    let growth = end.rss_bytes as f64 / warm.rss_bytes as f64;
    assert!(growth <= GROWTH_MAX, "{warm:?} to {end:?}: {growth:.3}");
    assert!(end.descriptors <= warm.descriptors, "{warm:?} to {end:?}");
    // Else nothing was put to the test.
    let minutes = pace.all.as_secs() / 60;
    assert!(report.decisions >= 3 * minutes && u64::from(starts) >= minutes, "{report}");
    assert!(passed > 60 * minutes && served > 20 * minutes, "{passed} messages, {served} reads");
}
