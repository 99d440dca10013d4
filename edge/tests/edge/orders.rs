//! What an operator orders, with an agent at work and without one, on both brokers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use brokertuner_edge::agent::Report;
use brokertuner_edge::control::Broker as _;
use brokertuner_edge::orders::Answer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::broker::{Broker, eventually, mosquittos};
use super::cli::{Running, WIDE, edge, on};
use super::model;

/// Decides four times a second and believes what it sees for a second.
const FAST: &str = "[decide]\ninterval_ms = 250\ndwell_s = 0\nverify_window_s = 1\n";

pub(super) struct Site {
    pub(super) broker: Broker,
    pub(super) config: PathBuf,
}

impl Site {
    fn new(mosquitto: &Path) -> Self {
        let broker = Broker::start_with(mosquitto, "");
        let model = broker.path("model.btm");
        model::write(&model, &WIDE);
        let config = broker.edge_config(&model, FAST);
        Self { broker, config }
    }

    pub(super) fn agent(&self) -> Running {
        let log = File::options().append(true).create(true).open(self.broker.path("edge.log"));
        let mut command = edge(&["run", "--config", self.config.to_str().unwrap()]);
        Running(command.stderr(log.unwrap()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.broker.path("edge.log")).unwrap_or_default()
    }

    /// As `edge status` reads it, but without a process for each look.
    fn report(&self) -> Option<Report> {
        let text = fs::read(self.broker.path("state/status.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(super) fn until(&self, what: &str, is_it: impl Fn(&Report) -> bool) -> Report {
        let mut last = None;
        let found = || {
            last = self.report();
            last.clone().filter(|report| is_it(report))
        };
        let all = format!("{what}\n{}", self.broker.log());
        eventually(&all, found)
    }

    fn until_kind(&self, kind: &str) -> Report {
        self.until(kind, |report| report.verdict.kind == kind)
    }

    pub(super) fn until_tuned(&self) -> Report {
        self.until("the settings fit", |report| report.verdict.why == "the settings fit")
    }

    /// The exit status and the answer to an order.
    fn order(&self, order: &[&str]) -> (i32, Answer) {
        let mut arguments = order.to_vec();
        arguments.push("--json");
        let (code, out, err) = on(&self.config, &arguments);
        let answer = serde_json::from_str(&out);
        (code, answer.unwrap_or_else(|e| panic!("{order:?}: {e}: {out}{err}{}", self.said())))
    }

    pub(super) fn done(&self, order: &[&str]) -> Answer {
        let (code, answer) = self.order(order);
        assert!(code == 0 && answer.done, "{order:?}: {code}: {answer:?}\n{}", self.said());
        answer
    }

    fn refused(&self, order: &[&str]) -> String {
        let (code, answer) = self.order(order);
        assert!(code == 1 && !answer.done, "{order:?}: {code}: {answer:?}");
        answer.said
    }

    pub(super) fn window(&self) -> u16 {
        eventually("an answer", || self.broker.live().answer().ok()).receive_maximum.unwrap()
    }
}

fn on_both(test: impl Fn(&Site)) {
    for mosquitto in mosquittos() {
        test(&Site::new(&mosquitto));
    }
}

#[test]
fn the_agent_at_work_obeys() {
    on_both(|site| {
        let agent = site.agent();
        site.until_tuned();
        let tuned = site.window();
        assert!(tuned > 900, "{tuned}");

        site.done(&["pause"]);
        let report = site.until_kind("paused");
        assert_eq!(report.standing.to_string(), "paused");
        assert_eq!(site.window(), tuned, "a pause changes nothing");

        let back = site.done(&["rollback"]);
        assert_eq!(back.how.as_deref(), Some("restart"), "{back:?}");
        assert!(
            back.diff.iter().any(|line| line.starts_with("max_inflight_messages ")),
            "{back:?}"
        );
        assert!(!site.broker.drop_in().exists(), "there was none before the first change");
        assert_eq!(site.window(), 20);
        let is_bare = |report: &Report| report.options.iter().all(|o| o.written.is_none());
        assert_eq!(site.until("the site's own values", is_bare).verdict.kind, "paused");

        site.done(&["resume"]);
        site.until_tuned();
        assert_eq!(site.window(), tuned);

        let off = site.done(&["off", "--restore"]);
        assert!(off.said.contains("site's own values hold"), "{off:?}");
        assert!(!site.broker.drop_in().exists());
        assert_eq!(site.window(), 20);
        let report = site.until_kind("off");
        assert_eq!(report.restarts_in_hour, 4, "an order's restarts count too: {report}");
        assert!(site.done(&["off", "--restore"]).said.contains("nothing of edge's"));
        drop(agent);
    });
}

#[test]
fn orders_outlast_the_agent_and_work_without_one() {
    on_both(|site| {
        fs::create_dir_all(site.broker.path("state")).unwrap();
        assert!(site.refused(&["rollback"]).contains("nothing to go back to"));
        // Nothing of the broker is needed for it, and a number is kept like any other.
        fs::write(site.broker.path("state/edge.state"), "damaged").unwrap();
        let id = site.done(&["pause"]).id.unwrap();
        let again = site.done(&["pause"]).id.unwrap();
        assert!(again > id, "{again} after {id}");
        let (code, out, err) = on(&site.config, &["explain", &again.to_string()]);
        assert!(code == 0 && out.contains("edge pause: paused"), "{code}: {out}{err}");
        let agent = site.agent();
        let report = site.until("what it would do to be told", |report| {
            report.options.iter().any(|option| option.wanted.is_some())
        });
        assert_eq!(report.verdict.kind, "paused");
        assert!(!site.broker.drop_in().exists());
        drop(agent);

        site.done(&["resume"]);
        let agent = site.agent();
        site.until_tuned();
        drop(agent);

        // Nobody looks at the broker now, so it may hold what a restart would lose.
        let said = site.refused(&["rollback"]);
        assert!(said.contains("--allow-state-loss"), "{said}");
        assert!(site.window() > 900);
        let said = site.refused(&["off", "--restore"]);
        assert!(said.contains("until the broker is restarted"), "{said}");
        assert!(!site.broker.drop_in().exists(), "what needs no restart is done");
        assert!(site.window() > 900, "and the rest is not");
        site.done(&["off", "--restore", "--allow-state-loss"]);
        assert_eq!(site.window(), 20);
        let (code, out, _) = on(&site.config, &["status"]);
        assert!(code == 1 && out.contains("standing  off"), "{code}: {out}");
    });
}

#[test]
fn while_the_kill_switch_exists_nothing_is_changed() {
    on_both(|site| {
        let switch = site.broker.path("state/kill-switch");
        fs::create_dir_all(site.broker.path("state")).unwrap();
        File::create(&switch).unwrap();
        let agent = site.agent();
        let report = site.until_kind("kill_switch");
        assert_eq!(report.kill_switch.as_deref(), switch.to_str());
        assert!(report.to_string().contains("kill-switch exists"), "{report}");
        for order in [&["rollback"][..], &["off", "--restore"], &["resume"]] {
            let said = site.refused(order);
            assert!(said.contains("kill-switch exists"), "{order:?}: {said}");
        }
        assert!(!site.broker.drop_in().exists());
        fs::remove_file(&switch).unwrap();
        site.until_tuned();
        File::create(&switch).unwrap();
        site.until_kind("kill_switch");
        assert!(site.window() > 900, "what was changed stays");
        drop(agent);
    });
}

#[test]
fn a_drop_in_edited_by_hand_is_taken_over_when_told() {
    on_both(|site| {
        let agent = site.agent();
        site.until_tuned();
        let drop_in = site.broker.drop_in();
        fs::write(&drop_in, "max_queued_messages 300\nmax_connections 7\n").unwrap();
        site.until_kind("hands_off");
        let said = site.refused(&["resume"]);
        assert!(said.contains("zz-brokertuner.conf: line 2: not an option"), "{said}");
        let text = fs::read_to_string(&drop_in).unwrap();
        assert!(text.contains("max_connections 7"), "{text}");

        fs::write(&drop_in, "# mine\nautosave_interval 7200\n").unwrap();
        let said = site.done(&["resume"]).said;
        assert!(said.contains("written by hand"), "{said}");
        let text = || fs::read_to_string(&drop_in).unwrap_or_default();
        let is_full = || text().contains("max_inflight_messages ");
        eventually("the file to say what is in force", || is_full().then_some(()));
        assert!(!text().contains("mine"), "{}", text());
        assert_eq!(site.report().unwrap().restarts_in_hour, 1, "no restart for that");

        fs::remove_file(&drop_in).unwrap();
        site.until_kind("hands_off");
        let said = site.done(&["resume"]).said;
        assert!(said.contains("removed by hand"), "{said}");
        site.until("the settings of before to be dormant no more", |report| {
            report.options.iter().all(|option| !option.dormant)
        });
        drop(agent);
    });
}

/// Killed again and again at its start, it leaves the broker alone the fifth time.
#[test]
fn an_agent_that_is_started_in_a_loop_only_watches() {
    let site = Site::new(&mosquittos()[0]);
    let starts = || site.said().matches("Started.").count();
    for start in 1..5 {
        let mut agent = site.agent();
        eventually("a start", || (starts() == start).then_some(()));
        kill(Pid::from_raw(i32::try_from(agent.0.id()).unwrap()), Signal::SIGKILL).unwrap();
        agent.0.wait().unwrap();
    }
    let agent = site.agent();
    let report = site.until_kind("start_loop");
    assert!(report.verdict.why.contains("started 5 times"), "{report}");
    site.done(&["resume"]);
    site.until_tuned();
    drop(agent);

    // An orderly end is no part of a loop, however often.
    for _ in 0..6 {
        let mut agent = site.agent();
        let before = starts();
        eventually("a start", || (starts() > before).then_some(()));
        kill(Pid::from_raw(i32::try_from(agent.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        agent.0.wait().unwrap();
    }
    let agent = site.agent();
    site.until_tuned();
    drop(agent);
}

#[test]
fn an_order_that_cannot_be_brought_is_an_error_with_a_remedy() {
    let site = Site::new(&mosquittos()[0]);
    let agent = site.agent();
    site.until_tuned();
    fs::remove_file(site.broker.path("state/control.sock")).unwrap();
    let (code, _, err) = on(&site.config, &["pause"]);
    assert!(code == 2 && err.contains("does not listen on"), "{code}: {err}");
    drop(agent);
}

#[test]
fn every_decision_can_be_explained_and_undone_by_hand() {
    on_both(|site| {
        let agent = site.agent();
        site.until_tuned();
        let report = site.until("the change to be verified", |report| {
            report.last.as_ref().is_some_and(|last| last.after.is_some())
        });
        let last = report.last.unwrap();
        assert!(last.expected.iter().any(|line| line.starts_with("max_inflight_messages: ")));
        assert!(site.said().contains(&format!("id={}", last.id)), "{}", site.said());
        let (code, out, err) = on(&site.config, &["explain", &last.id.to_string()]);
        assert_eq!(code, 0, "{err}");
        for part in ["what      ", "why       ", "expected  ", "before    ", "after     "] {
            assert!(out.contains(part), "{part}: {out}");
        }
        // The commands do what they say; edge finds the file changed by hand.
        assert!(last.undo[2].starts_with("sudo rm "), "{:?}", last.undo);
        let undo = last.undo[2..].join(" && ").replace("sudo ", "");
        let done = std::process::Command::new("/bin/sh").args(["-c", &undo]).status().unwrap();
        assert!(done.success() && !site.broker.drop_in().exists());
        eventually("the site's own window", || (site.window() == 20).then_some(()));
        site.until_kind("hands_off");

        let id = site.done(&["off"]).id.unwrap();
        let (code, out, _) = on(&site.config, &["explain", "--json"]);
        let all: serde_json::Value = serde_json::from_str(&out).unwrap();
        let events: Vec<_> = all.as_array().unwrap().iter().map(|e| &e["event"]).collect();
        assert_eq!(events, ["changed", "verified", "hands_off", "ordered"], "{code}: {out}");
        assert_eq!(all[3]["id"].as_u64(), Some(id));
        let (code, _, err) = on(&site.config, &["explain", "999"]);
        assert!(code == 1 && err.contains("no decision 999"), "{code}: {err}");
        drop(agent);
    });
}
