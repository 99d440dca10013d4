#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use proptest::prelude::*;

#[test]
fn the_default_file_is_the_golden_one_and_reads_back_as_the_default() {
    let file = Config::default_file();
    let golden = include_str!("../../tests/golden/default-config.toml");
    assert_eq!(file, golden, "renew with: cargo run --bin edge -- default-config");
    let read = Config::parse(&file).unwrap();
    let knobs = BTreeMap::new();
    assert_eq!(Config { knobs, ..read.clone() }, Config::default());
    for knob in Knob::ALL {
        assert_eq!(
            bounds(knob, &read.rules_of(knob)),
            bounds(knob, &KnobRules::default()),
            "{knob}"
        );
    }
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(Config::parse("").unwrap(), Config::default());
}

fn faults(text: &str) -> Vec<String> {
    let faults = Config::parse(text).unwrap_err();
    let error = ConfigError::Faults { path: "edge.toml".into(), faults };
    error.to_string().lines().map(ToOwned::to_owned).collect()
}

#[test]
fn every_fault_is_reported_with_line_name_and_remedy() {
    let text = r#"
[broker]
hots = "localhost"
port = 70000
client_id = "with blank"
drop_in = "/etc/mosquitto/conf.d/tuner.txt"
[pid]
source = "file"
[control]
restart = "signal"
reload = "command"
[decide]
interval_ms = 100
quiet_hours = ["22:00-06:00", "25:00-26:00"]
[knobs.max_queued_mesages]
min = 5
[knobs.max_queued_messages]
min = 5
max = 4
tune = "maybe"
[http]
listen = "0.0.0.0:80"
[extra]
"#;
    assert_eq!(
        faults(text),
        [
            "edge.toml:3: broker.hots: no such option; did you mean `host`?",
            "edge.toml:4: broker.port: invalid value: integer `70000`, expected u16",
            "edge.toml:5: broker.client_id: must be 1 to 200 printable ASCII characters without blanks",
            "edge.toml:6: broker.drop_in: must end in .conf, or the broker does not load it",
            "edge.toml:8: pid.source: needs pid.pid_file",
            "edge.toml:10: control.restart: no signal restarts Mosquitto; use \"systemd\", \"command\" or \"none\"",
            "edge.toml:11: control.reload: \"command\" needs control.reload_command, as in [\"/usr/local/bin/reload-broker\"]",
            "edge.toml:13: decide.interval_ms: 100 is out of range; use 250 to 3600000",
            "edge.toml:14: decide.quiet_hours: `25:00-26:00` is no time of day; write it as in \"22:00-06:00\"",
            "edge.toml:15: knobs.max_queued_mesages: no such option; did you mean `max_queued_messages`?",
            "edge.toml:18: knobs.max_queued_messages.min: 5 is out of range; use 100 to 65536",
            "edge.toml:19: knobs.max_queued_messages.max: 4 is out of range; use 100 to 65536",
            "edge.toml:19: knobs.max_queued_messages.max: 4 is below min = 5",
            "edge.toml:20: knobs.max_queued_messages.tune: unknown variant `maybe`, expected one of `auto`, `yes`, `no`",
            "edge.toml:22: http.listen: 0.0.0.0:80 can be reached from elsewhere; listen on a Unix socket or loopback, or set allow_remote = true and token_file",
            "edge.toml:23: extra: no such section; there are broker, pid, control, helper, model, targets, decide, agent, http, knobs",
        ]
    );
}

/// Its sandbox hides the listeners from the helper, and the watchdog ends what takes too long.
#[test]
fn what_the_service_files_do_not_carry_is_refused() {
    let beside = |pid: &str| format!("[helper]\nuse = true\n[pid]\n{pid}\n");
    for pid in ["source = \"listener\"", "unit = \"\""] {
        let said = faults(&beside(pid));
        assert!(said[0].contains("set pid.pid_file or pid.unit"), "{said:?}");
    }
    for pid in ["", "unit = \"\"\npid_file = \"/run/mosquitto.pid\""] {
        assert!(Config::parse(&beside(pid)).is_ok(), "{pid}");
    }
    let said = faults("[control]\ncommand_timeout_s = 241\nready_timeout_s = 600\n");
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().all(|line| line.contains("use 1 to 240")), "{said:?}");
}

#[test]
fn broken_syntax_does_not_hide_the_other_faults() {
    let said = faults("[broker]\nport = = 3\n[decide]\ninterval_ms = 1\n");
    assert!(said[0].starts_with("edge.toml:2: "), "{said:?}");
    assert!(said.last().unwrap().contains("decide.interval_ms: 1 is out of range"), "{said:?}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,200}") {
        let _ = Config::parse(&text);
    }

    #[test]
    fn near_misses_do_not_panic(
        lines in prop::collection::vec(
            "(\\[(broker|knobs|knobs.persistence|x)\\]|(port|min|tune|pid) ?= ?[-a-z0-9\"\\[\\]{}.]{0,12})", 0..8)
    ) {
        let _ = Config::parse(&lines.join("\n"));
    }
}
