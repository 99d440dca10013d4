//! Other processors: the same decisions on each, within the budgets of cross/budget.toml.
//!
//! Long, and in need of compilers and emulators: `tests/run --only cross` gets them and runs these, and
//! `--only firmware` those for microcontrollers.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;

use brokertuner_core::{KNOBS, Knob, render};
use brokertuner_host::broker::SpawnConfig;
use tempfile::TempDir;
use toml::Table;

use crate::support::edge::{EdgeConfig, model};
use crate::support::mqtt::limits_at;
use crate::support::{broker_with, repository};

/// Cortex-M0, M3, M4F.
const BOARDS: [&str; 3] = ["thumbv6m-none-eabi", "thumbv7m-none-eabi", "thumbv7em-none-eabihf"];
/// x86-64, aarch64, ARMv7, ARMv6.
const LINUXES: [&str; 4] = [
    "x86_64-unknown-linux-musl",
    "aarch64-unknown-linux-gnu",
    "armv7-unknown-linux-gnueabihf",
    "arm-unknown-linux-musleabihf",
];
const QUICK: &str = "log_level = \"error\"\n[decide]\ninterval_ms = 250\nverify_window_s = 1\n\
                     restart_gain_min_percent = 0\n";

fn cross(program: &str, arguments: &[&str]) -> Output {
    let path = repository().join("cross").join(program);
    Command::new(path).args(arguments).output().expect("the programs of cross/ run")
}

/// Both streams of a program that must succeed.
fn succeeded(program: &str, arguments: &[&str]) -> (String, String) {
    let output = cross(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "cross/{program} {arguments:?}: {}\n{out}{err}",
        output.status
    );
    (out, err)
}

fn budget(table: &str) -> Table {
    let text = fs::read_to_string(repository().join("cross/budget.toml")).unwrap();
    let whole: Table = text.parse().unwrap();
    whole[table].as_table().unwrap().clone()
}

fn number(value: &toml::Value) -> u64 {
    u64::try_from(value.as_integer().unwrap()).unwrap()
}

/// The number before each of the words, as in `flash 1 bytes, static RAM 2 bytes`.
fn figure(text: &str, name: &str) -> u64 {
    let after = text.split(name).nth(1).unwrap_or_else(|| panic!("no `{name}` in {text}"));
    after.split_whitespace().next().unwrap().parse().unwrap()
}

fn target_dir() -> PathBuf {
    let own = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    own.unwrap_or_else(|| repository().join("target"))
}

#[test]
fn every_target_has_a_budget() {
    let (help, _) = succeeded("build", &["--help"]);
    let triples = help.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let mut triples: Vec<_> = triples.filter(|word| word.contains("-linux-")).collect();
    triples.sort_unstable();
    assert_eq!(triples.len(), 6, "{help}");
    let mut budgeted: Vec<_> = budget("edge_bytes_max").keys().cloned().collect();
    budgeted.sort_unstable();
    assert_eq!(triples, budgeted);
}

#[test]
fn what_is_wrong_with_a_build_is_named_with_its_remedy() {
    let told = |program: &str, path: Option<&str>, target: &str| {
        let mut command = Command::new(repository().join("cross").join(program));
        command.arg(target).env("XDG_CACHE_HOME", "/nonexistent");
        path.map(|path| command.env("PATH", path));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for program in ["setup", "build", "test"] {
        let (status, text) = told(program, None, "mips-unknown-linux-musl");
        assert_eq!(status, Some(2), "{text}");
        assert!(text.starts_with(&format!("cross/{program}: no target is called 'mips")), "{text}");
        assert!(text.contains("arm-unknown-linux-musleabihf"), "the list: {text}");
    }
    let tools = TempDir::new().unwrap();
    for tool in ["sh", "dirname", "awk", "sed", "tr", "env"] {
        let found = ["/usr/bin", "/bin"].map(|dir| PathBuf::from(dir).join(tool));
        let found = found.iter().find(|path| path.exists()).unwrap();
        std::os::unix::fs::symlink(found, tools.path().join(tool)).unwrap();
    }
    let (status, text) = told("build", tools.path().to_str(), "armv7-unknown-linux-gnueabihf");
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("apt-get install -y gcc-arm-linux-gnueabihf libc6-dev-armhf"), "{text}");
    let (status, text) = told("build", tools.path().to_str(), "arm-unknown-linux-musleabihf");
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("run `cross/setup arm-unknown-linux-musleabihf`"), "{text}");
}

/// What was built is not larger than it may be; cross/build says so too, and what grew.
#[test]
#[ignore = "needs cross/build: tests/run --only cross"]
fn built_programs_are_within_their_budgets() {
    for (triple, bytes_max) in budget("edge_bytes_max") {
        let Ok(file) = fs::metadata(target_dir().join(format!("cross/edge-{triple}"))) else {
            // Released are the static ones; `tests/run --only gnu` builds the others.
            assert!(triple.contains("-gnu"), "{triple} is not built: run cross/build");
            continue;
        };
        assert!(file.len() <= number(&bytes_max), "{triple}: {} of {bytes_max}", file.len());
    }
}

/// Every decision of the trace, and the digest of 10,000 vectors, line by line.
fn decisions_here() -> String {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--profile", "small", "--bin", "firmware"])
        .arg("--target-dir")
        .arg(target_dir().join("firmware-here"))
        .current_dir(repository().join("cross/firmware"))
        .output()
        .expect("cargo runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() > 20, "{text}");
    assert!(lines.iter().any(|line| line.contains("restart; action")), "{text}");
    assert!(lines[lines.len() - 1].starts_with("digest of 10000 vectors: "), "{text}");
    text
}

#[test]
#[ignore = "compiles for four processors: tests/run --only cross"]
fn gateways_decide_as_this_machine_does() {
    let expected = decisions_here();
    for triple in LINUXES {
        let (found, _) = succeeded("firmware/run", &[triple]);
        assert_eq!(found, expected, "{triple}");
    }
}

#[test]
#[ignore = "compiles for four processors: tests/run --only firmware"]
fn microcontrollers_decide_as_this_machine_does() {
    let build: Vec<_> = std::iter::once("--build").chain(BOARDS).collect();
    succeeded("firmware/run", &build);
    let expected = decisions_here();
    let limits = budget("firmware_bytes_max");
    // At once: each emulator takes one core.
    let ran = thread::scope(|scope| {
        let runs = BOARDS.map(|triple| scope.spawn(move || succeeded("firmware/run", &[triple])));
        runs.map(|run| run.join().expect("it ran"))
    });
    for (triple, (mut found, sizes)) in BOARDS.into_iter().zip(ran) {
        let stack = found.split_off(found.find("stack ").expect("its stack"));
        assert_eq!(found, expected, "{triple}");
        for (name, text) in [("flash", &sizes), ("ram", &sizes), ("stack", &stack)] {
            let found = figure(text, if name == "ram" { "static RAM" } else { name });
            let limit = number(&limits[triple][name]);
            assert!(found <= limit, "{triple}: {name} {found} of {limit}");
        }
        println!("{triple}: {} {}", sizes.trim(), stack.trim());
    }
}

#[test]
#[ignore = "compiles for another processor: tests/run --only cross"]
fn a_risc_v_without_an_operating_system_is_built_for() {
    succeeded("firmware/run", &["riscv32imc-unknown-none-elf"]);
}

#[test]
#[ignore = "compiles for four processors: tests/run --only cross"]
fn instructions_are_within_their_budgets() {
    let build: Vec<_> = ["--counts", "--build"].into_iter().chain(BOARDS).collect();
    succeeded("firmware/run", &build);
    for (triple, limits) in budget("instructions_max") {
        let (counts, _) = succeeded("firmware/run", &["--counts", &triple]);
        let count = |name: &str| {
            let line = counts.lines().find(|line| line.starts_with(&format!("{name} ")));
            let mut words = line.unwrap_or_else(|| panic!("no {name} in {counts}")).split(' ');
            words.next_back().unwrap().parse::<u64>().unwrap()
        };
        for (name, limit) in limits.as_table().unwrap() {
            assert!(count(name) <= number(limit), "{triple}: {name} {} of {limit}", count(name));
        }
        assert!(count("infer") < count("microflow"), "{triple}:\n{counts}");
        println!("{triple}\n{counts}");
    }
}

/// The released ARMv6 program, under QEMU, tunes a broker of this machine.
#[test]
#[ignore = "needs cross/build: tests/run --only cross"]
fn an_arm_program_tunes_a_broker() {
    let arm = target_dir().join("cross/edge-arm-unknown-linux-musleabihf");
    assert!(arm.exists(), "{} is missing: run cross/build", arm.display());
    let spawn = SpawnConfig { supervised: true, persistence: false, ..SpawnConfig::default() };
    let broker = broker_with("2.0.21", &spawn);
    let dir = TempDir::new().unwrap();
    let mut config = EdgeConfig::of(&broker, dir.path());
    config.extra = QUICK.into();
    model::write(
        &config.model,
        &[(Knob::InflightMessagesMax, 1000), (Knob::QueuedMessagesMax, 10_000)],
    );
    let before = (broker.pid(), limits_at(broker.addr()).receive_maximum);
    let file = config.write(dir.path());
    let run = Command::new("qemu-arm")
        .args(["-cpu", "arm1176"])
        .arg(&arm)
        .args(["once", "--json", "--config"])
        .arg(file)
        .env_remove("MOSQUITTO_PID")
        .output()
        .expect("qemu-arm is missing: sudo apt-get install -y qemu-user");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert_eq!(run.status.code(), Some(0), "{out}{err}");
    assert!(out.contains("\"changed\""), "{out}{err}");
    let after = (broker.pid(), limits_at(broker.addr()).receive_maximum);
    assert_ne!(before.0, after.0, "it was restarted");
    assert_ne!(before.1, after.1, "its window is another one: {err}");
    let text = fs::read_to_string(broker.dropin_path()).unwrap();
    let settings = render::parse(&text).unwrap();
    let window = settings.get(Knob::InflightMessagesMax).value().unwrap();
    assert!((900..=1100).contains(&window), "{window} of {}", KNOBS[0].key);
}
