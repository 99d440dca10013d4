//! The service files: sound by systemd's own check, and closed by its own measure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cli::edge;

/// Of 10; in tenths, as `systemd-analyze security --threshold` takes it.
const EXPOSURE_MAX_TENTHS: &str = "15";
const CONFIG: &str = "/etc/brokertuner/edge.toml";
const INSTALL: &str = "systemd-analyze is missing: sudo apt-get install -y systemd";

fn units() -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../cross/systemd");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_unit = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ending == "service" || ending == "socket")
    };
    let mut units: Vec<_> = files.filter(is_unit).collect();
    units.sort();
    assert_eq!(units.len(), 3, "{units:?}");
    units
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What systemd says of the units, with a program that exists here.
fn verified(dir: &Path, change: impl Fn(&str) -> String) -> String {
    let paths = units().into_iter().map(|unit| {
        let copy = dir.join(unit.file_name().unwrap());
        let text = fs::read_to_string(&unit).unwrap().replace("/usr/bin/edge", "/bin/true");
        fs::write(&copy, change(&text)).unwrap();
        copy
    });
    let mut command = Command::new("systemd-analyze");
    let output = command.args(["verify", "--man=no"]).args(paths).output().expect(INSTALL);
    text(&output)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(verified(dir.path(), str::to_owned), "");
    let wrong = verified(dir.path(), |text| text.replace("NoNewPrivileges", "NoNewPriviledges"));
    assert!(wrong.contains("NoNewPriviledges"), "the check would not see a slip: {wrong}");
}

#[test]
fn the_services_are_closed() {
    for unit in units().iter().filter(|unit| unit.extension().unwrap() == "service") {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager", "--threshold"]);
        let output = command.arg(EXPOSURE_MAX_TENTHS).arg(unit).output().expect(INSTALL);
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// The other service managers start the same program in the same way.
#[test]
fn the_scripts_are_sound_shell_and_start_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (script, config) = (dir.path().join("script"), dir.path().join("edge.toml"));
    for name in ["openrc/brokertuner", "openrc/brokertuner-helper", "procd/brokertuner"] {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cross")).join(name);
        let here = fs::read_to_string(path)
            .unwrap()
            .replace("/usr/bin/edge", env!("CARGO_BIN_EXE_edge"))
            .replace(CONFIG, config.to_str().unwrap());
        fs::write(&script, here).unwrap();
        fs::write(&config, "[agent]\nstate_dir = \"/place/of/its/own\"\n").unwrap();
        let started = text(&sh(&["-c", STUBS], &script));
        let is_procd = name.starts_with("procd");
        assert_eq!(started.lines().count(), if is_procd { 3 } else { 1 }, "{name}: {started}");
        if is_procd {
            assert!(started.contains("made /run/brokertuner /place/of/its/own\n"), "{started}");
            fs::write(&config, "states = 50").unwrap();
            let started = text(&sh(&["-c", STUBS], &script));
            assert!(
                started.contains("edge check-config") && !started.contains("made"),
                "{started}"
            );
        }
        for line in started.lines().filter(|line| !line.starts_with("made ")) {
            assert_is_understood(line, config.to_str().unwrap());
        }
    }
}

fn sh(arguments: &[&str], script: &Path) -> std::process::Output {
    Command::new("sh").args(arguments).arg(script).output().unwrap()
}

/// What the service managers offer to their scripts, as far as it takes to hear what they start.
const STUBS: &str = r#"
procd_open_instance() { :; }
procd_close_instance() { :; }
procd_set_param() { [ "$1" != command ] || { shift; echo "$@"; }; }
mkdir() { echo "made $2 $3"; }
logger() { echo "$3"; }
chown() { :; }
chmod() { :; }
. "$0"
if [ -n "$command" ]; then echo "$command $command_args"; else start_service; fi
"#;

/// The program takes these arguments: it gets as far as to miss its configuration.
fn assert_is_understood(line: &str, config: &str) {
    let line = line.replace(config, "/nonexistent/edge.toml");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(["/usr/bin/edge", env!("CARGO_BIN_EXE_edge")].contains(&words[0]), "{line}");
    let output = edge(&words[1..]).output().unwrap();
    let said = text(&output);
    assert!(said.contains("/nonexistent/edge.toml: no such file"), "{line}: {said}");
}

#[test]
fn the_units_start_what_there_is() {
    for unit in units().iter().filter(|unit| unit.extension().unwrap() == "service") {
        let text = fs::read_to_string(unit).unwrap();
        let started: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).collect();
        assert_eq!(started.len(), 1, "{}", unit.display());
        assert_is_understood(started[0], CONFIG);
    }
}
