//! What the agent costs beside a broker, against its budgets: memory, CPU, wake-ups, allocations,
//! time of an inference, and time from a start to the first decision.
//!
//! The size of the program is held by `cross/build`. Figures are printed with each budget.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use brokertuner_host::broker::{BrokerProcess, SpawnConfig};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::edge::{EdgeConfig, model};
use crate::support::mqtt::{Client, Level};
use crate::support::{broker_with, build_small, free_port, repository};

/// The version that is measured beside.
const VERSION: &str = "2.0.21";
/// Neurons of each hidden layer where the model's answer has to be known: as much work as the shipped
/// one's 128 and 64.
const HIDDEN: usize = 96;
/// What is measured begins when the agent has settled, and lasts for:
const SETTLED: Duration = Duration::from_secs(60);
const SPAN: Duration = Duration::from_secs(600);

const PSS_MIB_MAX: f64 = 4.0;
const PSS_TLS_MIB_MAX: f64 = 6.0;
const CPU_PERCENT_MAX: f64 = 0.1;
const WAKE_UPS_PER_S_MAX: f64 = 2.0;
const FIRST_DECISION_S_MAX: f64 = 1.0;
const INFER_NS_MAX: f64 = 2000.0;
/// The MQTT client's thread, where `$SYS` comes every second: rumqttc allocates for what it reads and
/// sends.
const OTHER_ALLOCATIONS_PER_S_MAX: f64 = 12.0;

/// Figures and what they are held to, told together at the end.
#[derive(Default)]
struct Figures {
    text: String,
    over: Vec<String>,
}

impl Figures {
    fn hold(&mut self, what: &str, found: f64, budget: f64, unit: &str) {
        let line = format!("{what:<44} {found:>10.3} of {budget:>7.1} {unit}");
        let _ = writeln!(self.text, "{line}");
        if found > budget {
            self.over.push(line);
        }
    }

    fn tell(&self) {
        println!("{}", self.text);
        assert!(self.over.is_empty(), "over budget:\n{}", self.over.join("\n"));
    }
}

/// What a process has used so far.
struct Used {
    at: Instant,
    cpu: Duration,
    wake_ups: u64,
}

impl Used {
    /// Of all threads: time on a processor, and how often each had slept and was woken.
    fn by(pid: u32) -> Self {
        let (mut cpu, mut wake_ups) = (Duration::ZERO, 0);
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let task = task.unwrap().path();
            let scheduled = fs::read_to_string(task.join("schedstat")).unwrap();
            let on_cpu_ns = scheduled.split_whitespace().next().unwrap().parse().unwrap();
            cpu += Duration::from_nanos(on_cpu_ns);
            wake_ups += field(&task.join("status"), "voluntary_ctxt_switches:");
        }
        Self { at: Instant::now(), cpu, wake_ups }
    }
}

/// The number behind a word at the beginning of a line.
fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn pss_mib(pid: u32) -> f64 {
    field(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss:") as f64 / 1024.0
}

/// An agent beside a broker of its own, where nothing is to be changed.
struct Beside {
    agent: Child,
    broker: BrokerProcess,
    dir: TempDir,
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// A self-signed certificate, and the key beside it.
fn certificate(dir: &Path) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(vec!["gateway.example".into()]).unwrap();
    let files = ["broker.pem", "broker.key"].map(|name| dir.join(name));
    fs::write(&files[0], made.cert.pem()).unwrap();
    fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
    files.map(|file| file.display().to_string())
}

impl Beside {
    fn start(edge: &Path, is_tls: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let [cert, key] = certificate(dir.path());
        let tls_port = free_port();
        let listener = [
            format!("listener {tls_port} 127.0.0.1"),
            format!("certfile {cert}"),
            format!("keyfile {key}"),
        ];
        let config = SpawnConfig {
            sys_interval_s: 10,
            supervised: true,
            main_conf_lines: if is_tls { listener.to_vec() } else { Vec::new() },
            ..SpawnConfig::default()
        };
        let broker = broker_with(VERSION, &config);
        let mut config = EdgeConfig::of(&broker, dir.path());
        config.extra = "[decide]\ninterval_ms = 10000\n".into();
        model::write_wide(&config.model, &[], HIDDEN);
        if is_tls {
            config.port = tls_port;
        }
        let file = config.write(dir.path());
        if is_tls {
            let text = fs::read_to_string(&file).unwrap();
            let tls = format!("[broker]\nca_file = {cert:?}\ntls_name = \"gateway.example\"\n");
            fs::write(&file, text.replace("[broker]\n", &tls)).unwrap();
        }
        let log = fs::File::create(dir.path().join("edge.log")).unwrap();
        let mut command = Command::new(edge);
        command.args(["run", "--json", "--config"]).arg(&file);
        let agent = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        Self { agent, broker, dir }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("edge.log")).unwrap()
    }

    /// From the second live update of `$SYS` to the first decision. What the agent prints after it
    /// is read on by a thread of its own.
    fn seconds_to_decision(&mut self) -> f64 {
        let mut watcher = Client::connect(self.broker.addr(), Level::V311, "watcher");
        watcher.subscribe("$SYS/broker/uptime", 0);
        let watch = thread::spawn(move || {
            let mut live = 0;
            while live < 2 {
                let (kind, _) = watcher.receive(Duration::from_secs(60)).unwrap();
                live += u32::from(kind & 0xf1 == 0x30);
            }
            Instant::now()
        });
        let mut lines = BufReader::new(self.agent.stdout.take().unwrap()).lines();
        let decided = lines.find_map(|line| {
            let report: Value = serde_json::from_str(&line.unwrap()).unwrap();
            (report["verdict"]["kind"] != "blind").then(Instant::now)
        });
        let decided = decided.unwrap_or_else(|| panic!("no decision: {}", self.log()));
        thread::spawn(move || lines.count());
        // A decision that was quicker than the watcher counts as at once.
        decided.saturating_duration_since(watch.join().unwrap()).as_secs_f64()
    }

    fn measure(&self, before: &Used, name: &str, pss_mib_max: f64, figures: &mut Figures) {
        let pid = self.agent.id();
        let after = Used::by(pid);
        let span_s = (after.at - before.at).as_secs_f64();
        let cpu_percent = (after.cpu - before.cpu).as_secs_f64() / span_s * 100.0;
        let wake_ups_per_s = (after.wake_ups - before.wake_ups) as f64 / span_s;
        figures.hold(&format!("{name}: memory (PSS)"), pss_mib(pid), pss_mib_max, "MiB");
        figures.hold(&format!("{name}: CPU"), cpu_percent, CPU_PERCENT_MAX, "% of a core");
        figures.hold(&format!("{name}: wake-ups"), wake_ups_per_s, WAKE_UPS_PER_S_MAX, "a second");
    }
}

#[test]
#[ignore = "takes about 15 minutes, and wants the machine for itself"]
fn the_agent_is_light_beside_a_broker() {
    let edge = build_small("brokertuner-edge", "edge");
    let mut figures = Figures::default();
    let mut plain = Beside::start(&edge, false);
    let seconds = plain.seconds_to_decision();
    figures.hold("sample to first decision", seconds, FIRST_DECISION_S_MAX, "s");
    let mut tls = Beside::start(&edge, true);
    tls.seconds_to_decision();
    thread::sleep(SETTLED);
    let before = [&plain, &tls].map(|beside| Used::by(beside.agent.id()));
    thread::sleep(SPAN);
    plain.measure(&before[0], "plain", PSS_MIB_MAX, &mut figures);
    tls.measure(&before[1], "TLS", PSS_TLS_MIB_MAX, &mut figures);
    figures.tell();
}

#[test]
#[ignore = "wants the machine for itself"]
fn a_decision_is_quick_and_needs_no_heap() {
    let program = build_small("brokertuner-tests", "steady-loop");
    let config = SpawnConfig { supervised: true, ..SpawnConfig::default() };
    let broker = broker_with(VERSION, &config);
    let dir = TempDir::new().unwrap();
    let config = EdgeConfig::of(&broker, dir.path());
    model::write_wide(&config.model, &[], HIDDEN);
    let mut steady = Command::new(program);
    let shipped = repository().join("models/default.btm");
    let models = [&config.model, &shipped];
    let output = steady.arg(config.write(dir.path())).args(models).output().unwrap();
    let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{e}: {err}"));
    let figure = |name: &str| found[name].as_f64().unwrap();
    let mut figures = Figures::default();
    figures.hold("one inference", figure("infer_ns"), INFER_NS_MAX, "ns");
    figures.hold("one decision, sample to settings", figure("decision_ns"), f64::INFINITY, "ns");
    figures.hold("heap allocations of a decision", figure("decision_allocations"), 0.0, "");
    figures.hold("heap allocations of a tick", figure("tick_allocations"), 0.0, "");
    figures.hold("heap that a tick leaves taken", figure("tick_grown_bytes"), 0.0, "bytes");
    let others = figure("other_allocations_per_s");
    let most = OTHER_ALLOCATIONS_PER_S_MAX;
    figures.hold("heap allocations of the MQTT client", others, most, "a second");
    figures.tell();
}
