//! Faults of the broker, of its process and of those who start it.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use brokertuner_core::Knob;
use brokertuner_host::broker::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::site::{Site, install};
use super::{Holds, ROW, Row};
use crate::support::edge::model;
use crate::support::{wait_for, wait_within};

pub(super) static ROWS: &[Row] = &[
    Row {
        name: "the broker refuses to start with the new settings",
        fault: |site| {
            fs::write(site.beside_broker("refuse"), "").unwrap();
            site.start_agent();
            site.until_said("The change did not go through.");
        },
        says: &["the restart command failed", "the previous settings are back"],
        ..ROW
    },
    Row {
        name: "the broker hangs",
        fault: |site| {
            site.tune();
            let pid = Pid::from_raw(i32::try_from(site.broker.pid()).unwrap());
            kill(pid, Signal::SIGSTOP).unwrap();
            site.until_said_again("Cannot decide.");
            kill(pid, Signal::SIGCONT).unwrap();
        },
        says: &["Cannot decide."],
        ..ROW
    },
    Row {
        name: "the restart command hangs",
        fault: |site| {
            replace_restart(site, "exec sleep 600");
            site.replace("command_timeout_s = 10", "command_timeout_s = 1");
            site.start_agent();
            site.until_said("The change did not go through.");
        },
        says: &["the restart command failed", "the previous settings are back"],
        ..ROW
    },
    Row {
        name: "the restart command does nothing",
        fault: |site| {
            replace_restart(site, "exit 0");
            site.replace("command_timeout_s = 10", "command_timeout_s = 10\nready_timeout_s = 1");
            site.start_agent();
            site.until_said("The change did not go through.");
            assert_eq!(site.broker.start_count(), 1);
        },
        says: &["it was never restarted", "the previous settings are back"],
        ..ROW
    },
    Row {
        name: "the restart command fails",
        fault: |site| {
            replace_restart(site, "echo no rights >&2; exit 4");
            site.start_agent();
            site.until_said("The change did not go through.");
            assert_eq!(site.broker.start_count(), 1);
        },
        says: &["no rights", "the previous settings are back"],
        ..ROW
    },
    Row {
        name: "a reload is ignored",
        fault: |site| {
            site.replace(
                "reload = \"signal\"",
                "reload = \"command\"\nreload_command = [\"true\"]",
            );
            model::write(&site.config.model, &[(Knob::AutosaveInterval, 100)]);
            site.start_agent();
            site.until_said("The change stood its verification.");
        },
        // Nothing shows what the broker made of a reload; a restart takes the file over.
        says: &["Changed.", "The change stood its verification."],
        ..ROW
    },
    Row {
        name: "the port is taken for a moment while the broker is away",
        fault: port_taken,
        says: &["Changed."],
        ..ROW
    },
    Row {
        name: "the broker is killed",
        fault: |site| {
            site.tune();
            site.kill_broker();
            site.until_said("The broker was restarted by someone else.");
        },
        says: &["The broker was restarted by someone else."],
        ..ROW
    },
    Row {
        name: "the broker ends again and again after a change",
        fault: |site| {
            site.replace("verify_window_s = 1\n", "verify_window_s = 20\n");
            site.start_agent();
            site.until_said("Changed.");
            let is_restarted = || (site.broker.start_count() >= 2).then_some(());
            wait_for("the restart of the change", is_restarted);
            for _ in 0..2 {
                let restarts = || site.log().matches("restarted by someone else").count();
                let before = restarts();
                site.kill_broker();
                wait_for("it to be noticed", || (restarts() > before).then_some(()));
            }
            site.until_said("ended again and again");
        },
        says: &["the broker ended again and again after the change"],
        ..ROW
    },
    Row {
        name: "the broker is started without the drop-in",
        fault: |site| {
            site.tune();
            let other = site.beside_broker("other");
            fs::write(&other, "").unwrap();
            site.kill_broker();
            site.until_said("The broker was started without the drop-in");
            fs::remove_file(other).unwrap();
            // It restarts the broker for what it wants, which reads the drop-in then.
            site.until_tuned();
        },
        says: &["not_in_force=\"max_inflight_messages"],
        ..ROW
    },
    Row {
        name: "the broker hangs after a change",
        fault: |site| {
            watch_a_restart(site);
            let pid = Pid::from_raw(i32::try_from(site.broker.pid()).unwrap());
            kill(pid, Signal::SIGSTOP).unwrap();
            site.until_said("stopped answering");
            // Until then no signal ends it.
            kill(pid, Signal::SIGCONT).unwrap();
            let is_undone = || (site.broker.start_count() >= 3).then_some(());
            wait_for("the restart that undoes it", is_undone);
        },
        says: &["the broker stopped answering after the change"],
        ..ROW
    },
    Row {
        name: "the broker stays away after a change",
        fault: |site| {
            watch_a_restart(site);
            let hold = site.hold_broker();
            site.until_said("stopped answering");
            fs::remove_file(hold).unwrap();
        },
        says: &["the broker stopped answering after the change"],
        ..ROW
    },
    Row {
        name: "the broker comes after the agent",
        fault: |site| {
            let hold = site.hold_broker();
            site.start_agent();
            site.until_said("Cannot decide.");
            fs::remove_file(hold).unwrap();
            site.until_tuned();
        },
        says: &["no broker listens on", "Changed."],
        ..ROW
    },
    Row {
        name: "logrotate reloads the broker all the time",
        fault: |site| {
            site.start_agent();
            let mut due = Instant::now();
            wait_for("the last change", || {
                // A broker that only just starts is ended by the signal.
                if site.broker.phase() == Phase::Running && Instant::now() >= due {
                    site.broker.reload().unwrap();
                    due += Duration::from_millis(50);
                }
                site.log().contains("The change stood its verification.").then_some(())
            });
            site.until_tuned();
            assert!(site.broker.start_count() <= 2, "a reload costs no restart");
        },
        says: &["Changed."],
        ..ROW
    },
    Row {
        name: "the pid was given to another process",
        fault: |site| {
            let other = Stranger::start();
            site.config.pid_file = site.path("pid");
            fs::write(&site.config.pid_file, other.0.id().to_string()).unwrap();
            let file = fs::File::options().write(true).open(&site.config.pid_file).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
            site.start_agent();
            site.until_said("the pid was reused");
            other.assert_unhurt();
            assert!(!site.config.drop_in.exists());
        },
        says: &["so the pid was reused; the broker is gone"],
        ..ROW
    },
    Row {
        name: "the pid file names nobody",
        fault: |site| {
            site.config.pid_file = site.path("pid");
            fs::write(&site.config.pid_file, i32::MAX.to_string()).unwrap();
            site.start_agent();
            site.until_said("only $SYS is watched, and nothing is changed: no process");
            site.let_decide();
            assert!(!site.config.drop_in.exists());
            assert_eq!(site.log().matches("nothing is changed").count(), 1, "it is told once");
        },
        says: &["it should; start the broker, or correct"],
        ..ROW
    },
    Row {
        name: "the pid file names a stranger",
        fault: |site| {
            let other = Stranger::start();
            site.config.pid_file = site.path("pid");
            fs::write(&site.config.pid_file, other.0.id().to_string()).unwrap();
            site.replace("source = \"file\"", "source = \"auto\"");
            site.replace("pid_file = ", "unit = \"\"\npid_file = ");
            site.tune();
            other.assert_unhurt();
        },
        // The owner of the port is the broker, whatever a file says.
        says: &["Changed."],
        ..ROW
    },
    Row {
        name: "only the pid file is asked, and it names a stranger",
        fault: |site| {
            let other = Stranger::start();
            site.config.pid_file = site.path("pid");
            fs::write(&site.config.pid_file, other.0.id().to_string()).unwrap();
            site.start_agent();
            site.until_said("is not the broker");
            other.assert_unhurt();
            assert!(!site.config.drop_in.exists());
        },
        says: &["is not the broker"],
        ..ROW
    },
    Row {
        name: "$SYS is silent",
        main_conf: &["sys_interval 0"],
        fault: |site| {
            site.start_agent();
            site.until_said("nothing comes");
            assert!(!site.config.drop_in.exists());
        },
        says: &["sys_interval is 0"],
        ..ROW
    },
    Row {
        name: "$SYS goes silent while the agent runs",
        fault: |site| {
            site.tune();
            let quiet = site.include_dir().join("00-quiet.conf");
            fs::write(&quiet, "sys_interval 0\n").unwrap();
            site.broker.reload().unwrap();
            site.until_said("$SYS has stopped");
            fs::remove_file(quiet).unwrap();
            site.broker.reload().unwrap();
        },
        says: &["its figures are not believed"],
        ..ROW
    },
    Row {
        name: "an ACL denies $SYS",
        holds: Holds::Nothing,
        fault: |site| {
            let acl = site.beside_broker("acl");
            fs::write(&acl, "topic readwrite brokertuner/probe/#\n").unwrap();
            let main = fs::read_to_string(&site.config.main_conf).unwrap();
            let line = format!("acl_file {}\n", acl.display());
            fs::write(&site.config.main_conf, line + &main).unwrap();
            site.broker.restart().unwrap();
            site.start_agent();
            site.until_said("topic read $SYS/#");
            assert!(!site.config.drop_in.exists());
        },
        says: &["topic read $SYS/#"],
        ..ROW
    },
    Row {
        name: "the login is refused",
        holds: Holds::Nothing,
        fault: |site| {
            let main = fs::read_to_string(&site.config.main_conf).unwrap();
            let closed = main.replace("allow_anonymous true", "allow_anonymous false");
            fs::write(&site.config.main_conf, closed).unwrap();
            let _ = site.broker.restart();
            site.start_agent();
            site.until_said("refuses the login");
            assert!(!site.config.drop_in.exists());
            // For whoever judges.
            fs::write(&site.config.main_conf, main).unwrap();
            site.broker.restart().unwrap();
        },
        says: &["refuses the login", "broker.user_file"],
        ..ROW
    },
    Row {
        name: "the agent is killed in the verify window",
        fault: |site| {
            site.replace("verify_window_s = 1\n", "verify_window_s = 2\n");
            site.start_agent();
            // Not with the line before: what was decided is remembered a moment after it was done.
            site.until_said("watching the effect of the last change");
            site.take_agent().kill();
            site.tune();
        },
        says: &["The change stood its verification."],
        ..ROW
    },
    Row {
        name: "the agent is started again and again",
        fault: |site| {
            for start in 1..5 {
                site.start_agent();
                wait_for("a start", || {
                    (site.log().matches("Started.").count() == start).then_some(())
                });
                site.take_agent().kill();
            }
            site.start_agent();
            site.until("it to watch only", |report| report.verdict.kind == "start_loop");
        },
        says: &["edge was started 5 times"],
        ..ROW
    },
];

/// Rows that wait for minutes.
pub(super) static SLOW_ROWS: &[Row] = &[Row {
    name: "$SYS once a minute",
    main_conf: &["sys_interval 60"],
    fault: |site| {
        site.start_agent();
        site.until("what it waits for", |report| {
            report.verdict.why.contains("waiting for two updates of $SYS")
        });
        assert_eq!(site.broker.start_count(), 1, "changed blindly");
        // Two updates before the change, two after it, each at 61 s on 2.0.
        wait_within(Duration::from_secs(400), "the settings to fit", || site.tuned());
    },
    says: &["Changed.", "The change stood its verification."],
    ..ROW
}];

/// A process that has nothing to do with any of this.
struct Stranger(Child);

impl Stranger {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn assert_unhurt(mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "a stranger was ended");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until the agent has restarted the broker and watches what comes of it, for a minute.
fn watch_a_restart(site: &mut Site) {
    site.replace("verify_window_s = 1\n", "verify_window_s = 60\n");
    site.start_agent();
    let is_restarted = || (site.broker.start_count() >= 2).then_some(());
    wait_for("the restart of the change", is_restarted);
    site.until("the watch over it", |report| report.verdict.why.contains("watching"));
}

fn replace_restart(site: &mut Site, script: &str) {
    let command = site.path("restart");
    install(&command, &format!("#!/bin/sh\n{script}\n"));
    site.config.restart = command;
}

/// Someone else listens there before the broker comes back, for its first try.
fn port_taken(site: &mut Site) {
    let hold = site.beside_broker("hold");
    fs::write(&hold, "").unwrap();
    site.start_agent();
    let taken = wait_for("the port to be free", || TcpListener::bind(site.broker.addr()).ok());
    fs::remove_file(hold).unwrap();
    wait_for("the broker to say so", || {
        let said = |file: &str| fs::read_to_string(site.beside_broker(file)).unwrap_or_default();
        let all = said("output.log") + &said("mosquitto.log");
        all.contains("Address already in use").then_some(())
    });
    drop(taken);
    site.until_tuned();
}
