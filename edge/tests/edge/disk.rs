//! Disks that are really full or really read-only, in a mount namespace of the agent's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use brokertuner_core::Knob;

use super::broker::Broker;
use super::cli::{edge, ended, on};
use super::model;

const WANTED: [(Knob, u64); 2] =
    [(Knob::InflightMessagesMax, 1000), (Knob::QueuedMessagesMax, 10_000)];
const INSTALL: &str = "unshare is missing: sudo apt-get install -y util-linux";
/// One page: a file system with no room for anything.
const FULL: &str = "mount -t tmpfs -o size=4k tmpfs \"$0\" && head -c 4096 /dev/zero > \"$0/fill\"";
const READ_ONLY: &str = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";

/// The same with what is there already.
const FILLED: &str = "kept=$(mktemp -d) && cp -a \"$0/.\" \"$kept\" \
    && mount -t tmpfs -o size=64k tmpfs \"$0\" && cp -a \"$kept/.\" \"$0\" && rm -r \"$kept\" \
    && { head -c 64k /dev/zero > \"$0/fill\" 2>/dev/null || true; }";

/// `edge` with `args`, with `mount` done to `dir` for it alone; the broker sees nothing of it.
fn alone(args: &[&str], config: &Path, dir: &Path, mount: &str) -> (i32, String, String) {
    let plain = edge(&[]);
    let mut command = Command::new("unshare");
    let script = format!("{mount} && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &script]).arg(dir).arg(plain.get_program());
    command.args(plain.get_args()).args(args).arg("--config").arg(config).env_remove("RUST_LOG");
    ended(&command.output().expect(INSTALL))
}

/// A broker, and the configuration of an agent that wants to change it.
fn wanting() -> (Broker, PathBuf) {
    let broker = Broker::start("");
    let model = broker.path("model.btm");
    model::write(&model, &WANTED);
    let config = broker.edge_config(&model, "[decide]\ninterval_ms = 250\nverify_window_s = 1\n");
    (broker, config)
}

#[test]
fn a_full_or_read_only_disk_changes_nothing_and_is_named() {
    let (broker, config) = wanting();
    fs::create_dir(broker.path("state")).unwrap();
    let before = broker.pid();
    for (dir, mount, remedy) in [
        ("state", FULL, "free some space there"),
        ("state", READ_ONLY, "mount it writable"),
        ("conf.d", FULL, "free some space there"),
        ("conf.d", READ_ONLY, "mount it writable"),
    ] {
        let dir = broker.path(dir);
        let (code, out, err) = alone(&["once"], &config, &dir, mount);
        let said = format!("{out}{err}");
        assert!(code == 1 || code == 2, "{dir:?}, exit {code}: {said}");
        assert!(said.contains(remedy) && said.contains(dir.to_str().unwrap()), "{said}");
        assert_eq!(broker.pid(), before, "restarted: {said}");
        assert!(!broker.drop_in().exists(), "{said}");
        let left = fs::read_dir(broker.path("conf.d")).unwrap().count();
        assert_eq!(left, 0, "something is left in conf.d: {said}");
        // The failure counts, and its wait: the next row is to start afresh.
        let _ = fs::remove_file(broker.path("state/edge.state"));
    }
    let (code, out, err) = on(&config, &["once"]);
    assert_eq!(code, 0, "with room again: {out}{err}");
    assert!(broker.drop_in().exists());
}

/// What is to make things better again needs no room for records.
#[test]
fn a_person_takes_back_with_a_full_disk_of_records() {
    let (broker, config) = wanting();
    let (code, out, err) = on(&config, &["once"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(broker.drop_in().exists());
    let rollback = ["rollback", "--allow-state-loss"];
    let (code, out, err) = alone(&rollback, &config, &broker.path("state"), FILLED);
    let said = format!("{out}{err}");
    assert_eq!(code, 0, "{said}");
    let is_told = said.contains("a restart of the agent forgets that")
        && said.contains("free some space there");
    assert!(said.contains("the settings of before are back") && is_told, "{said}");
    assert!(!broker.drop_in().exists(), "{said}");
    // With room, and a state that does not know of it, edge takes it for a person's: as it was.
    let (code, out, err) = on(&config, &["once"]);
    assert!(code == 2 && err.contains("removed by hand"), "{code}: {out}{err}");
    assert!(!broker.drop_in().exists());
}
