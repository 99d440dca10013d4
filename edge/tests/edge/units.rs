//! The service files: sound by systemd's own check, and closed by its own measure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of 10; in tenths, as `systemd-analyze security --threshold` takes it.
const EXPOSURE_MAX_TENTHS: &str = "15";
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
    for script in ["openrc/brokertuner", "openrc/brokertuner-helper", "procd/brokertuner"] {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cross")).join(script);
        let checked = Command::new("sh").arg("-n").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{script}: {}", text(&checked));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("/usr/bin/edge") && text.contains("/etc/brokertuner/edge.toml"));
    }
}
