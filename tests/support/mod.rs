//! What the tests share: brokers by version, a raw MQTT client, waiting with a deadline.

pub(crate) mod edge;
pub(crate) mod mqtt;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use brokertuner_host::broker::{BrokerProcess, Mosquitto, SpawnConfig};

/// The versions that the tests of the broker's behaviour run against.
pub(crate) const VERSIONS: [&str; 2] = ["2.0.11", "2.0.21"];
/// For what a busy machine may delay; what is expected comes far sooner.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The repository's root.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// The Mosquitto of a version: the system's own where it is that one, else the one that was
/// fetched.
///
/// # Panics
/// With the command to run where it is missing.
pub(crate) fn mosquitto(version: &str) -> Mosquitto {
    let suite = match version {
        "2.0.11" => "bookworm",
        "2.0.21" => "trixie",
        // The newest there is: the suite moves on.
        "2.1" => "sid",
        other => panic!("no suite is known for Mosquitto {other}: add it to tests/support"),
    };
    let fetched = repository().join("tests/.brokers").join(suite).join("mosquitto");
    let candidates = [system_mosquitto(), Mosquitto::find(Some(&fetched)).ok()];
    let is_wanted = |found: &Mosquitto| {
        let found = found.version().to_string();
        found == version || (suite == "sid" && found.starts_with(&format!("{version}.")))
    };
    let found = candidates.into_iter().flatten().find(is_wanted);
    found.unwrap_or_else(|| {
        panic!("Mosquitto {version} is missing: run `tests/fetch-broker {suite}`")
    })
}

fn system_mosquitto() -> Option<Mosquitto> {
    static FOUND: OnceLock<Option<Mosquitto>> = OnceLock::new();
    FOUND.get_or_init(|| Mosquitto::find(None).ok()).clone()
}

/// The program of that name, built as these tests were: cargo builds only a package's own programs
/// for its tests. They are named beside it, and are built already: so it gets the features that they
/// were built with, and what is under it is not built again.
///
/// # Panics
/// Where it does not build.
pub(crate) fn build_program(name: &str) -> PathBuf {
    // target/PROFILE/deps/tests-HASH
    let own = std::env::current_exe().expect("a program knows where it lies");
    let profile = own.ancestors().nth(2).expect("the tests lie in cargo's target folder");
    let mut build = cargo();
    build.args(["build", "--quiet", "--workspace", "--bin", name, "--test", "tests"]);
    build.arg("--target-dir").arg(profile.parent().expect("a target folder"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let built = build.current_dir(repository()).status().expect("cargo runs");
    assert!(built.success(), "{name} does not build");
    profile.join(name)
}

/// Cargo, without what cargo told these tests: a build script that looks at it (ring's) would be
/// run anew, and all that rests on it be built anew, each time.
fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let shown = name.to_string_lossy();
        if ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|start| shown.starts_with(start)) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// A package's program as it is built for gateways: small, and by itself, so that no other package
/// adds to it.
///
/// # Panics
/// Where it does not build.
pub(crate) fn build_small(package: &str, name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a program knows where it lies");
    let target = own.ancestors().nth(3).expect("the tests lie in cargo's target folder");
    let mut build = cargo();
    build.args(["build", "--quiet", "--profile", "release-small", "-p", package, "--bin", name]);
    let built = build.arg("--target-dir").arg(target).current_dir(repository()).status();
    assert!(built.expect("cargo runs").success(), "{name} does not build");
    target.join("release-small").join(name)
}

/// Runs `host` with a broker of a version and `--json`, and gives its exit status and document.
///
/// # Panics
/// Where it ends with status 2 or prints something else.
pub(crate) fn host_json(version: &str, args: &[&str]) -> (i32, serde_json::Value) {
    let (status, stdout, stderr) = host(version, args);
    assert!(status < 2, "host {args:?} ended with {status}:\n{stderr}");
    let document = serde_json::from_str(&stdout);
    (status, document.unwrap_or_else(|error| panic!("host {args:?}: {error}\n{stderr}")))
}

/// Runs `host` with a broker of a version and `--json`, and gives its exit status and both streams.
pub(crate) fn host(version: &str, args: &[&str]) -> (i32, String, String) {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    let host = PROGRAMS.get_or_init(|| {
        // host looks for edge beside itself.
        build_program("edge");
        build_program("host")
    });
    let mut command = Command::new(host);
    command.args(args).arg("--json").arg("--mosquitto").arg(mosquitto(version).path());
    let output = command.output().expect("host runs");
    let status = output.status.code().expect("host ends by itself");
    let text = |bytes| String::from_utf8(bytes).expect("host prints UTF-8");
    (status, text(output.stdout), text(output.stderr))
}

/// A running broker of a version with a drop-in.
pub(crate) fn broker(version: &str, dropin: &str) -> BrokerProcess {
    broker_with(version, &SpawnConfig { dropin: Some(dropin.to_owned()), ..SpawnConfig::default() })
}

/// A running broker of a version, configured at will.
pub(crate) fn broker_with(version: &str, config: &SpawnConfig) -> BrokerProcess {
    BrokerProcess::spawn(&mosquitto(version), config)
        .unwrap_or_else(|error| panic!("{version}: {error}"))
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Polls until `check` gives a value.
///
/// # Panics
/// After [`PATIENCE`], naming what was waited for.
pub(crate) fn wait_for<T>(what: impl Display, check: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, check)
}

/// As [`wait_for`], with other patience.
///
/// # Panics
/// After it, naming what was waited for.
pub(crate) fn wait_within<T>(
    patience: Duration,
    what: impl Display,
    mut check: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The paths of the files in a folder of the repository that are, or could be, committed.
pub(crate) fn tracked_files() -> Vec<PathBuf> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("paths are UTF-8");
    text.lines().map(PathBuf::from).filter(|path| repository().join(path).is_file()).collect()
}
