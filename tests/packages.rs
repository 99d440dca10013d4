//! What is handed out: packages that hold what they should, and that leave a broker as they found it.
//!
//! Long, and in need of programs for other processors: `tests/run --only packages` gets them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use brokertuner_core::Knob;
use tempfile::TempDir;

use crate::support::edge::model;
use crate::support::repository;

/// Debian's name, what runs its programs here, OpenWrt's names.
const PROCESSORS: [(&str, &[&str], &[&str]); 3] = [
    ("amd64", &[], &["x86_64"]),
    ("arm64", &["qemu-aarch64"], &["aarch64_cortex-a53", "aarch64_cortex-a72", "aarch64_generic"]),
    (
        "armhf",
        &["qemu-arm", "-cpu", "arm1176"],
        &["arm_arm1176jzf-s_vfp", "arm_cortex-a7_neon-vfpv4"],
    ),
];
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// stdout of a program that must succeed.
fn told<I: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = I>) -> String {
    let mut command = Command::new(program);
    let output =
        command.args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}

/// A file of target/cross/packages, which cross/package fills.
fn package(name: &str) -> String {
    let own = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = own.unwrap_or_else(|| repository().join("target"));
    let path = target.join("cross/packages").join(name);
    assert!(path.exists(), "{} is missing: run cross/package", path.display());
    path.to_str().unwrap().to_owned()
}

fn in_cross(name: &str) -> PathBuf {
    repository().join("cross").join(name)
}

/// The program in `root` runs and is of this version.
fn runs(runner: &[&str], root: &Path) {
    let program = root.join("usr/bin/edge");
    let mut line: Vec<_> = runner.iter().map(OsStr::new).collect();
    line.extend([program.as_os_str(), OsStr::new("--version")]);
    let first = line.remove(0);
    let found = told(first.to_str().unwrap(), line);
    assert_eq!(found.trim(), format!("edge {VERSION}"));
}

#[test]
#[ignore = "needs cross/package: tests/run --only packages"]
fn debian_packages_hold_what_they_should() {
    for (arch, runner, _) in PROCESSORS {
        let deb = package(&format!("brokertuner_{VERSION}-1_{arch}.deb"));
        assert_eq!(told("dpkg-deb", ["-f", &deb, "Architecture"]).trim(), arch);
        let dir = TempDir::new().unwrap();
        told("dpkg-deb", ["-R", &deb, dir.path().to_str().unwrap()]);
        runs(runner, dir.path());
        for file in [
            "etc/brokertuner/edge.toml",
            "usr/lib/systemd/system/brokertuner.service",
            "usr/lib/systemd/system/brokertuner-helper.socket",
            "usr/lib/systemd/system/brokertuner-helper@.service",
            "usr/share/man/man1/edge.1.gz",
            "usr/share/man/man1/edge-off.1.gz",
            "usr/share/bash-completion/completions/edge",
            "usr/share/zsh/vendor-completions/_edge",
            "usr/share/doc/brokertuner/copyright",
            "DEBIAN/templates",
        ] {
            assert!(fs::metadata(dir.path().join(file)).unwrap().len() > 0, "{arch}: {file}");
        }
        let conffiles = fs::read_to_string(dir.path().join("DEBIAN/conffiles")).unwrap();
        assert_eq!(conffiles.trim(), "/etc/brokertuner/edge.toml");
        let config = fs::read_to_string(dir.path().join("etc/brokertuner/edge.toml")).unwrap();
        assert!(config.contains("\nuse = true\n"), "the agent has no rights of its own");
        let shipped = dir.path().join("usr/share/brokertuner/default.btm").exists();
        assert_eq!(shipped, repository().join("models/default.btm").exists());
        assert_eq!(config.contains("/usr/share/brokertuner/default.btm"), shipped);
    }
}

#[test]
#[ignore = "needs cross/package: tests/run --only packages"]
fn openwrt_packages_hold_what_they_should() {
    for (_, runner, names) in PROCESSORS {
        for name in names {
            let ipk = package(&format!("brokertuner_{VERSION}_{name}.ipk"));
            let dir = TempDir::new().unwrap();
            let at = dir.path().to_str().unwrap();
            told("tar", ["-xzf", &ipk, "-C", at]);
            for part in ["control", "data"] {
                let part = dir.path().join(format!("{part}.tar.gz"));
                told("tar", ["-xzf", part.to_str().unwrap(), "-C", at]);
            }
            let control = fs::read_to_string(dir.path().join("control")).unwrap();
            assert!(control.contains(&format!("Architecture: {name}\n")), "{control}");
            runs(runner, dir.path());
            let config = dir.path().join("etc/brokertuner/edge.toml");
            let text = fs::read_to_string(&config).unwrap();
            assert!(text.contains("restart_command = [\"/etc/init.d/mosquitto\", \"restart\"]"));
            assert!(
                text.contains("\nstate_dir = \"/etc/brokertuner/state\"\n"),
                "/var is a RAM disk"
            );
            assert!(text.contains("\nreload = \"signal\"\n"), "mosquitto's script has no reload");
            let mode = fs::metadata(&config).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o644, "the helper refuses a file that others may write");
            for script in ["etc/init.d/brokertuner", "prerm", "postinst"] {
                told("sh", ["-n", dir.path().join(script).to_str().unwrap()]);
            }
        }
    }
}

#[test]
#[ignore = "needs cross/package: tests/run --only packages"]
fn sums_and_bills_of_material_are_right() {
    let sums = package("SHA256SUMS");
    let dir = Path::new(&sums).parent().unwrap();
    told(
        "sh",
        ["-c", &format!("cd '{}' && sha256sum --strict --quiet -c SHA256SUMS", dir.display())],
    );
    let listed = fs::read_to_string(&sums).unwrap();
    for (name, _, _) in PROCESSORS {
        assert!(listed.contains(&format!("_{name}.deb")), "{listed}");
    }
    let bills: Vec<_> = listed.lines().filter(|line| line.ends_with(".cdx.json")).collect();
    assert_eq!(bills.len(), 3, "{listed}");
    for line in bills {
        let text =
            fs::read_to_string(package(line.split_whitespace().next_back().unwrap())).unwrap();
        let bill: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(bill["bomFormat"], "CycloneDX");
        let names: Vec<_> =
            bill["components"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        for name in ["rustls", "rumqttc", "brokertuner-core"] {
            assert!(names.iter().any(|found| *found == name), "{line}: no {name}");
        }
        assert!(!text.contains(repository().to_str().unwrap()), "{line}: a place of this machine");
    }
}

/// The image needs nothing but itself: its layers, unpacked, are all that the program sees.
#[test]
#[ignore = "needs cross/package: tests/run --only packages"]
fn the_container_image_is_whole() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let archive = package(&format!("brokertuner_{VERSION}_x86_64.docker.tar"));
    fs::create_dir(at("image")).unwrap();
    fs::create_dir(at("root")).unwrap();
    told("tar", ["-xf", &archive, "-C", &at("image")]);
    let manifest: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(at("image/manifest.json")).unwrap()).unwrap();
    let path = |name: &serde_json::Value| dir.path().join("image").join(name.as_str().unwrap());
    for layer in manifest[0]["Layers"].as_array().unwrap() {
        told("tar", ["-xf", path(layer).to_str().unwrap(), "-C", &at("root")]);
    }
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path(&manifest[0]["Config"])).unwrap()).unwrap();
    let config = &config["config"];
    assert_eq!(config["User"], "1883:1883");
    assert_eq!(
        config["Healthcheck"]["Test"],
        serde_json::json!(["CMD", "/usr/bin/edge", "status"])
    );
    assert!(nix::unistd::Uid::effective().is_root(), "chroot: run it as root");
    let inside = |arguments: &[&str]| {
        let mut command = Command::new("chroot");
        command.args(["--userspec=1883:1883", &at("root"), "/usr/bin/edge"]).args(arguments);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(inside(&["check-config"]), (Some(0), String::new()));
    let (status, said) = inside(&["status"]);
    assert_eq!(status, Some(1), "no agent is running: {said}");
}

/// cross/test-container says how; a reload is all that the agent of the compose file may do.
#[test]
#[ignore = "needs cross/package: tests/run --only packages"]
fn the_container_tunes_the_broker_beside_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.btm");
    model::write(&path, &[(Knob::AutosaveInterval, 300)]);
    let image = package(&format!("brokertuner_{VERSION}_x86_64.docker.tar"));
    let said = told(in_cross("test-container").to_str().unwrap(), [&image, path.to_str().unwrap()]);
    assert!(said.contains("autosave_interval "), "{said}");
    print!("{said}");
}

/// By the tool that reads such files: compose's own schema, references and types.
#[test]
#[ignore = "needs docker-compose: tests/run --only packages"]
fn the_compose_file_fits_its_schema() {
    let file = in_cross("container/compose.yaml");
    told("docker-compose", ["-f", file.to_str().unwrap(), "config", "-q"]);
    let dir = TempDir::new().unwrap();
    let wrong = dir.path().join("compose.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&wrong, text.replace("network_mode", "network_mood")).unwrap();
    let seen = Command::new("docker-compose").arg("-f").arg(&wrong).args(["config", "-q"]).output();
    assert!(!seen.unwrap().status.success(), "the check would not see a slip");
}

/// Writes a model that wants another window, which takes a restart; says where.
fn model_in(dir: &TempDir) -> String {
    let path = dir.path().join("model.btm");
    model::write(&path, &[(Knob::InflightMessagesMax, 1000), (Knob::QueuedMessagesMax, 10_000)]);
    path.to_str().unwrap().to_owned()
}

/// Install, tune, upgrade, remove, keep, purge beside a real broker; cross/test-deb says how.
#[test]
#[ignore = "needs cross/package: tests/run --only packages"]
fn a_package_leaves_the_broker_as_it_was_found() {
    let dir = TempDir::new().unwrap();
    let deb = package(&format!("brokertuner_{VERSION}-1_amd64.deb"));
    let said = told(in_cross("test-deb").to_str().unwrap(), [deb, model_in(&dir)]);
    assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), 7, "{said}");
    print!("{said}");
}

/// The same under a systemd that boots, where one can be booted; edge's tests of the units hold
/// everywhere.
#[test]
#[ignore = "needs cross/package: tests/run --only packages"]
fn a_package_works_on_a_machine_that_boots() {
    const NO_SYSTEMD_BOOTS: Option<i32> = Some(3);
    let dir = TempDir::new().unwrap();
    let deb = package(&format!("brokertuner_{VERSION}-1_amd64.deb"));
    let mut command = Command::new(in_cross("test-systemd"));
    let output = command.args([deb, model_in(&dir)]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    print!("{said}");
    if output.status.code() != NO_SYSTEMD_BOOTS {
        assert!(output.status.success(), "{}", output.status);
        assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), 6);
    }
}
