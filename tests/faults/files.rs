//! Faults of files: disks, rights, hands, other files of the configuration, the agent's records.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use brokertuner_core::Knob;
use brokertuner_edge::config::Config;
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::ready;
use brokertuner_edge::site::{Environment, Site as EdgeSite};
use brokertuner_edge::state::StateStore;
use nix::unistd::Uid;

use super::site::{Site, copy};
use super::{Holds, ROW, Row, calls};
use crate::support::wait_for;

pub(super) static ROWS: &[Row] = &[
    Row {
        name: "killed at every system call that touches a file",
        fault: calls::kill_at_each,
        says: &["a kill at every call"],
        ..ROW
    },
    Row {
        name: "no room for the agent's records",
        fault: |site| once_mounted(site, |site| site.config.state_dir.clone(), FULL),
        says: &["free some space there"],
        ..ROW
    },
    Row {
        name: "no room for the drop-in",
        fault: |site| once_mounted(site, |site| site.include_dir().into(), FULL),
        says: &["free some space there", "zz-brokertuner.conf.new"],
        ..ROW
    },
    Row {
        name: "the agent's records on a read-only file system",
        fault: |site| once_mounted(site, |site| site.config.state_dir.clone(), READ_ONLY),
        says: &["mount it writable"],
        ..ROW
    },
    Row {
        name: "the drop-in on a read-only file system",
        fault: |site| once_mounted(site, |site| site.include_dir().into(), READ_ONLY),
        says: &["mount it writable", "zz-brokertuner.conf.new"],
        ..ROW
    },
    Row {
        name: "no permission to write the drop-in any more",
        // A save is asked for first, and that needs a permission too.
        holds: Holds::Nothing,
        fault: without_permission,
        says: &["run edge as a user who may write there"],
        ..ROW
    },
    Row {
        name: "the drop-in edited by hand",
        fault: |site| {
            site.tune();
            fs::write(&site.config.drop_in, "max_inflight_messages 50\n").unwrap();
            site.until_said("Hands off.");
            site.let_decide();
            let left = fs::read_to_string(&site.config.drop_in).unwrap();
            assert_eq!(left, "max_inflight_messages 50\n");
        },
        says: &["edited by hand since edge wrote it"],
        theirs: true,
        ..ROW
    },
    Row {
        name: "the drop-in removed by hand",
        fault: |site| {
            site.tune();
            fs::remove_file(&site.config.drop_in).unwrap();
            site.until_said("Hands off.");
            site.let_decide();
            assert!(!site.config.drop_in.exists(), "it is back");
        },
        says: &["removed by hand since edge wrote it"],
        ..ROW
    },
    Row {
        name: "an option overridden by a later drop-in",
        fault: |site| {
            let later = site.include_dir().join("zzz.conf");
            fs::write(later, "max_inflight_messages 25\n").unwrap();
            assert_left_alone(site);
        },
        says: &["zzz.conf:1: `max_inflight_messages 25` overrides the drop-in"],
        ..ROW
    },
    Row {
        name: "an option overridden by the main file",
        fault: |site| {
            let main = &site.config.main_conf;
            let text = fs::read_to_string(main).unwrap();
            fs::write(main, text + "max_inflight_messages 25\n").unwrap();
            assert_left_alone(site);
        },
        says: &["`max_inflight_messages 25` overrides the drop-in"],
        ..ROW
    },
    Row {
        name: "an option overridden while the agent runs",
        fault: |site| {
            site.tune();
            let later = site.include_dir().join("zzz.conf");
            fs::write(later, "autosave_interval 900\n").unwrap();
            // It looks before every change.
            super::models::want_less(site);
            site.until("the option to be let go of", |report| {
                let option = &report.options[Knob::AutosaveInterval as usize];
                !option.tuned && option.written.is_none()
            });
            site.until("the rest to go on", |report| report.verdict.why == "the settings fit");
        },
        says: &["zzz.conf:1: `autosave_interval 900` overrides the drop-in"],
        ..ROW
    },
    Row {
        name: "the administrator sets an option that the agent had set",
        fault: taken_over,
        says: &["`max_inflight_messages 25` is set by the site"],
        ..ROW
    },
    Row {
        name: "the agent's memory damaged",
        fault: |site| {
            site.tune();
            site.stop_agent();
            fs::write(site.state("edge.state"), "neither magic nor state").unwrap();
            site.start_agent();
            // It may have held `edge off`.
            site.until("it to pause", |report| report.verdict.kind == "paused");
        },
        says: &["The agent's memory is lost."],
        ..ROW
    },
    Row {
        name: "the agent's memory of a newer version",
        fault: |site| {
            fs::create_dir_all(&site.config.state_dir).unwrap();
            fs::write(site.state("edge.state"), b"BTES\x09\0\0\0\0\0\0\0\0\0").unwrap();
            assert_eq!(site.run_edge(&["run"]), 2);
        },
        says: &["written by a newer edge"],
        ..ROW
    },
    Row {
        name: "a journal that cannot be written",
        fault: |site| {
            fs::create_dir_all(site.state("journal.jsonl")).unwrap();
            site.tune();
        },
        says: &["The journal lacks an entry; nothing else rests on it."],
        ..ROW
    },
    Row {
        name: "a status file that cannot be written",
        fault: |site| {
            fs::create_dir_all(site.state("status.json")).unwrap();
            site.start_agent();
            site.until_said("The change stood its verification.");
        },
        says: &["status.json was not written"],
        ..ROW
    },
    Row {
        name: "the wall clock back an hour",
        fault: clock_set_back,
        says: &["the restart budget of this hour is used up"],
        ..ROW
    },
    Row {
        name: "the kill-switch file",
        fault: |site| {
            fs::create_dir_all(&site.config.state_dir).unwrap();
            fs::write(site.state("kill-switch"), "").unwrap();
            site.start_agent();
            site.until("it to be seen", |report| {
                report.verdict.kind == "kill_switch" && report.options[0].wanted.is_some()
            });
            site.let_decide();
            assert_untouched(site);
        },
        says: &["exists: nothing is changed until it is removed"],
        ..ROW
    },
    Row {
        name: "a second agent on the same broker",
        fault: |site| {
            site.tune();
            assert_eq!(site.run_edge(&["once"]), 2);
        },
        says: &["another edge is at work on this broker"],
        ..ROW
    },
    Row {
        name: "state to lose, and no persistence",
        holds: Holds::Unsaved,
        fault: |site| {
            site.start_agent();
            site.until("it to hold", |report| report.verdict.why.contains("would lose sessions"));
        },
        says: &["a restart would lose sessions or messages"],
        ..ROW
    },
    Row {
        name: "a database that cannot be saved",
        fault: |site| {
            let (data, away) = (site.broker.data_dir().to_owned(), site.beside_broker("away"));
            site.replace("command_timeout_s = 10", "command_timeout_s = 2");
            fs::rename(&data, &away).unwrap();
            site.start_agent();
            site.until_said("The change did not go through.");
            assert_eq!(site.broker.start_count(), 1, "restarted without a save");
            fs::rename(&away, &data).unwrap();
        },
        says: &["so a restart could lose what it holds"],
        ..ROW
    },
];

/// One page: a file system with no room for anything.
const FULL: &str = "mount -t tmpfs -o size=4k tmpfs \"$0\" && head -c 4096 /dev/zero > \"$0/fill\"";
const READ_ONLY: &str = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";

/// `edge once`, with `mount` done to a directory for it alone: the broker sees nothing of it.
fn once_mounted(site: &mut Site, dir: fn(&Site) -> PathBuf, mount: &str) {
    fs::create_dir_all(&site.config.state_dir).unwrap();
    let dir = dir(site);
    let plain = site.edge(&["once"]);
    let mut command = Command::new("unshare");
    let script = format!("{mount} && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &script]).arg(dir).arg(plain.get_program());
    command.args(plain.get_args()).env_remove("RUST_LOG");
    let code = site.run(command);
    assert!(code == 1 || code == 2, "{code}");
    assert_untouched(site);
}

fn assert_untouched(site: &Site) {
    assert!(!site.config.drop_in.exists());
    assert_eq!(fs::read_dir(site.include_dir()).unwrap().count(), 0, "something is left there");
    assert_eq!(site.broker.start_count(), 1, "restarted");
}

/// Root may write everything, so it is another user who runs the agent.
fn without_permission(site: &mut Site) {
    let open = |path: PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let tool = site.path("edge");
    copy(crate::support::edge::program(), &tool);
    fs::create_dir_all(&site.config.state_dir).unwrap();
    open(site.config.state_dir.clone(), 0o777);
    for dir in [site.dir.path().into(), site.beside_broker("."), site.include_dir().into()] {
        open(dir, 0o555);
    }
    let file = site.write_config();
    let mut command = Command::new("setpriv");
    if Uid::effective().is_root() {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    command.arg("--").arg(&tool).args(["once", "--config"]).arg(file).env_remove("RUST_LOG");
    assert_eq!(site.run(command), 1);
    open(site.dir.path().into(), 0o755);
    open(site.beside_broker("."), 0o755);
    open(site.include_dir().into(), 0o755);
    assert_untouched(site);
}

fn assert_left_alone(site: &mut Site) {
    site.start_agent();
    let report = site.until("the other options", |report| {
        report.verdict.why == "the settings fit" && report.last.is_some()
    });
    let window = &report.options[0];
    assert_eq!((window.written, window.tuned), (None, false), "{report}");
}

/// In the main file, before the drop-in is read: the broker's next start goes by it.
fn taken_over(site: &mut Site) {
    site.tune();
    let main = site.config.main_conf.clone();
    let text = fs::read_to_string(&main).unwrap();
    fs::write(&main, format!("max_inflight_messages 25\n{text}")).unwrap();
    super::models::want_less(site);
    site.until("the option to be let go of", |report| {
        !report.options[0].tuned && report.options[0].written.is_none()
    });
    site.kill_broker();
    let config = Config::load(&site.write_config()).unwrap();
    let edge = EdgeSite::look(&config, &Environment::default()).unwrap();
    wait_for("the administrator's window", || {
        let ready = ready::look(&edge.broker, None).ok()?;
        (ready.connack.receive_maximum == Some(25)).then_some(())
    });
}

/// What the agent remembers then lies in the future, as it does in its file here.
fn clock_set_back(site: &mut Site) {
    site.replace("restarts_per_hour_max = 32", "restarts_per_hour_max = 1");
    site.tune();
    site.stop_agent();
    let store = StateStore::in_dir(&site.config.state_dir);
    let mut state = store.load(&RealFiles).unwrap();
    assert_eq!(state.restarts_unix_s.len(), 1, "{state:?}");
    for at in &mut state.restarts_unix_s {
        *at += 3600;
    }
    store.save(&RealFiles, &state).unwrap();
    super::models::want_less(site);
    let before = site.broker.pid();
    site.start_agent();
    site.until_said("the restart budget of this hour is used up");
    assert_eq!(site.broker.pid(), before, "restarted");
}
