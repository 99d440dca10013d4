#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::topic::{check_filter, check_topic, expand, matches};
use super::*;

const SMALL: &str = r#"
schema = 1
name = "small"
summary = "one of each"
deadline_ms = 250
rss_limit_mib = 32
[[phase]]
name = "steady"
duration_s = 20
[[phase.publish]]
name = "sensors"
clients = 10
rate_hz = 100
payload_bytes = 64
topic = "t/{client}"
[[phase.subscribe]]
name = "cloud"
clients = 1
filter = "t/#"
"#;

fn faults(text: &str) -> Vec<Fault> {
    match Scenario::parse(text, "test") {
        Err(ScenarioError::Invalid { faults, .. }) => faults,
        other => panic!("expected faults, got {other:?} for\n{text}"),
    }
}

/// `SMALL` with one line replaced or, with an empty `from`, one line added at the end.
fn changed(from: &str, to: &str) -> String {
    match from {
        "" => format!("{SMALL}{to}\n"),
        _ => {
            assert!(SMALL.contains(from));
            SMALL.replace(from, to)
        }
    }
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let scenario = Scenario::parse(SMALL, "test").unwrap();
    assert_eq!(
        scenario.broker,
        BrokerSetup { persistence: true, sys_interval_s: 1, cpu_share: None }
    );
    assert_eq!(scenario.rss_limit_bytes, 32 * 1024 * 1024);
    let phase = &scenario.phases[0];
    assert!((phase.weight - 20.0).abs() < 1e-12);
    let writer = &phase.publish[0];
    assert_eq!(
        (writer.qos, writer.protocol, writer.retain, writer.sync),
        (Qos::AtMostOnce, Protocol::V4, false, false)
    );
    assert_eq!(
        (writer.payload_bytes_min, writer.payload_bytes_max, writer.inflight),
        (64, 64, 100)
    );
    assert_eq!((writer.rate, writer.burst), (Rate::PerClientHz(100.0), None));
    assert_eq!(writer.reconnect, Duration::from_millis(200));
    let reader = &phase.subscribe[0];
    assert_eq!((reader.deadline, reader.ack_delay), (Duration::from_millis(250), Duration::ZERO));
    assert_eq!((reader.clean_session, reader.receive_maximum, reader.offline), (true, None, None));
    assert!((reader.weight - 1.0).abs() < 1e-12);
}

#[test]
fn every_embedded_scenario_loads_under_its_own_name() {
    let names = Scenario::names();
    assert!(names.is_sorted() && names.len() == 11, "{names:?}");
    for name in names {
        assert_eq!(Scenario::load(name).unwrap().name, name);
    }
    let day = Scenario::load("mixed-day").unwrap();
    assert_eq!((day.phases.len(), day.duration().as_secs()), (5, 320));
    assert_eq!(day.deadline_min(), Duration::from_millis(10));
    let offline = day.phases[2].subscribe[0].offline.unwrap();
    assert_eq!((offline.at.as_secs(), offline.lasts.as_secs()), (5, 45));
}

#[test]
fn the_example_of_the_documentation_loads() {
    let page = include_str!("../../SCENARIOS.md");
    let example = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let scenario = Scenario::parse(example, "SCENARIOS.md").unwrap();
    assert_eq!(scenario.phases.len(), 2);
    assert!(scenario.needs_capacity());
}

#[test]
fn an_unknown_name_lists_those_that_exist() {
    let message = Scenario::load("no-such").unwrap_err().to_string();
    assert!(
        message.contains("no-such")
            && message.contains("alarm-burst")
            && message.contains("wan-uplink"),
        "{message}"
    );
    let message = Scenario::load("./no-such.toml").unwrap_err().to_string();
    assert!(message.contains("./no-such.toml"), "{message}");
}

#[test]
fn a_fault_names_file_line_and_key() {
    let text = changed("rate_hz = 100", "rate_hz = 0");
    let message = Scenario::parse(&text, "my.toml").unwrap_err().to_string();
    assert!(message.contains("my.toml"), "{message}");
    assert!(
        message
            .contains("line 13: phase[0].publish[0].rate_hz: must be 0.0001 to 1000000, found 0"),
        "{message}"
    );
}

/// What is replaced in `SMALL`, by what, and the key that is at fault.
const WRONG: &[(&str, &str, &str)] = &[
    ("schema = 1", "schema = 2", "schema"),
    ("schema = 1", "", ""),
    ("schema = 1", "schema = 1\nspeed = 3", "speed"),
    ("name = \"small\"", "name = \"\"", "name"),
    ("name = \"small\"", "name = \"hall/line1\"", "name"),
    ("name = \"small\"", "name = \"..\"", "name"),
    ("rss_limit_mib = 32", "rss_limit_mib = 70000", "rss_limit_mib"),
    ("deadline_ms = 250", "deadline_ms = \"fast\"", "deadline_ms"),
    ("deadline_ms = 250", "deadline_ms = 600001", "deadline_ms"),
    (
        "rss_limit_mib = 32",
        "rss_limit_mib = 32\nbroker.sys_interval_s = 0",
        "broker.sys_interval_s",
    ),
    ("rss_limit_mib = 32", "rss_limit_mib = 32\nbroker.cpu_share = 1.5", "broker.cpu_share"),
    ("rss_limit_mib = 32", "rss_limit_mib = 32\nbroker.colour = 1", "broker.colour"),
    ("duration_s = 20", "duration_s = 0", "phase[0].duration_s"),
    ("duration_s = 20", "duration_s = 20\nweight = nan", "phase[0].weight"),
    ("clients = 10", "clients = 0", "phase[0].publish[0].clients"),
    (
        "rate_hz = 100",
        "rate_hz = 100\nrate_x_capacity = 1.0",
        "phase[0].publish[0].rate_x_capacity",
    ),
    ("rate_hz = 100\n", "", "phase[0].publish[0].name"),
    ("rate_hz = 100", "rate_x_capacity = 0.001", "phase[0].publish[0].rate_x_capacity"),
    ("rate_hz = 100", "rate_hz = inf", "phase[0].publish[0].rate_hz"),
    ("payload_bytes = 64", "payload_bytes = 15", "phase[0].publish[0].payload_bytes"),
    ("payload_bytes = 64", "payload_bytes = [64, 32]", "phase[0].publish[0].payload_bytes"),
    ("payload_bytes = 64", "payload_bytes = [64, 65, 66]", "phase[0].publish[0].payload_bytes"),
    ("payload_bytes = 64", "payload_bytes = 268435455", "phase[0].publish[0].payload_bytes"),
    ("payload_bytes = 64", "payload_bytes = 64\nqos = 3", "phase[0].publish[0].qos"),
    ("payload_bytes = 64", "payload_bytes = 64\nprotocol = 3", "phase[0].publish[0].protocol"),
    ("payload_bytes = 64", "payload_bytes = 64\nweight = 3", "phase[0].publish[0].weight"),
    ("payload_bytes = 64", "payload_bytes = 64\ninflight = 65536", "phase[0].publish[0].inflight"),
    (
        "payload_bytes = 64",
        "payload_bytes = 64\nreconnect_ms = -1",
        "phase[0].publish[0].reconnect_ms",
    ),
    (
        "payload_bytes = 64",
        "payload_bytes = 64\nburst = { period_s = 1, duty = 0 }",
        "phase[0].publish[0].burst.duty",
    ),
    (
        "payload_bytes = 64",
        "payload_bytes = 64\nburst = { period_s = 1, duty = 1.1 }",
        "phase[0].publish[0].burst.duty",
    ),
    (
        "payload_bytes = 64",
        "payload_bytes = 64\nburst = { period_s = 0, duty = 1 }",
        "phase[0].publish[0].burst.period_s",
    ),
    ("topic = \"t/{client}\"", "topic = \"t/+\"", "phase[0].publish[0].topic"),
    ("topic = \"t/{client}\"", "topic = \"t/{host}\"", "phase[0].publish[0].topic"),
    ("topic = \"t/{client}\"", "topic = \"other\"", "phase[0]"),
    ("filter = \"t/#\"", "filter = \"$share/g/t/#\"", "phase[0].subscribe[0].filter"),
    ("filter = \"t/#\"", "filter = [\"t/#\", \"t/1\"]", "phase[0].subscribe[0].filter"),
    ("filter = \"t/#\"", "filter = \"t/#/x\"", "phase[0].subscribe[0].filter"),
    ("", "receive_maximum = 5", "phase[0].subscribe[0].receive_maximum"),
    ("", "ack_delay_ms = 60001", "phase[0].subscribe[0].ack_delay_ms"),
    ("", "weight = 1001", "phase[0].subscribe[0].weight"),
    ("", "offline = { at_s = 10, for_s = 11 }", "phase[0].subscribe[0].offline"),
    ("", "offline = { at_s = 21, for_s = 1 }", "phase[0].subscribe[0].offline.at_s"),
    (
        "",
        "[[phase.subscribe]]\nname = \"cloud\"\nclients = 1\nfilter = \"t/1\"",
        "phase[0].subscribe[1].name",
    ),
];

#[test]
fn each_wrong_value_is_refused_at_its_key() {
    for (from, to, key) in WRONG {
        let found = faults(&changed(from, to));
        assert!(
            found.iter().any(|fault| fault.key == *key && fault.line > 0),
            "{from:?} -> {to:?}: wanted {key}, got {found:?}"
        );
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let text =
        changed("clients = 10", "clients = 0").replace("rss_limit_mib = 32", "rss_limit_mib = 0");
    assert_eq!(faults(&text).iter().map(|fault| fault.line).collect::<Vec<_>>(), [6, 12]);
}

#[test]
fn publish_and_subscribe_groups_may_share_a_name() {
    assert!(Scenario::parse(&changed("name = \"cloud\"", "name = \"sensors\""), "test").is_ok());
}

#[test]
fn rate_is_shared_only_when_relative_to_capacity() {
    assert_eq!(Rate::PerClientHz(5.0).per_client_hz(10, None), Some(5.0));
    assert_eq!(Rate::TimesCapacity(2.0).per_client_hz(10, Some(1000.0)), Some(200.0));
    assert_eq!(Rate::TimesCapacity(2.0).per_client_hz(10, None), None);
}

#[test]
fn filters_match_as_the_standard_says() {
    let yes = [
        ("a/b", "a/b"),
        ("a/#", "a"),
        ("a/#", "a/b/c"),
        ("+/b", "a/b"),
        ("#", "a"),
        ("a/+/c", "a//c"),
        ("/+", "/a"),
    ];
    let no = [
        ("a/b", "a"),
        ("a", "a/b"),
        ("+", "a/b"),
        ("+", "/a"),
        ("#", "$SYS/x"),
        ("+/x", "$SYS/x"),
        ("a/+", "a"),
    ];
    for (filter, topic) in yes {
        assert!(matches(filter, topic), "{filter} {topic}");
    }
    for (filter, topic) in no {
        assert!(!matches(filter, topic), "{filter} {topic}");
    }
    assert!(matches("$SYS/#", "$SYS/x"));
}

#[test]
fn topic_and_filter_syntax() {
    assert!(
        check_topic("a/b c/ü").is_ok()
            && check_filter("+/+/#").is_ok()
            && check_filter("$SYS/#").is_ok()
    );
    for bad in ["", "a/#", "+", "$SYS/x", "a\0b", "{x}"] {
        assert!(check_topic(bad).is_err(), "{bad:?}");
    }
    for bad in ["", "a#", "#/a", "a+/b", "$share/g/x", "a\0b", "{x}"] {
        assert!(check_filter(bad).is_err(), "{bad:?}");
    }
    assert!(check_topic(&"x".repeat(65_536)).is_err());
    assert_eq!(expand("{group}/{client}/{client}", "g", 7), "g/7/7");
}

proptest! {
    #[test]
    fn random_text_never_panics(text in ".{0,400}") {
        let _ = Scenario::parse(&text, "fuzz");
    }

    /// Replaces a random stretch of a valid file, so that faults lie deep.
    #[test]
    fn a_damaged_file_never_panics(which in 0..EMBEDDED.len(), per_mille in 0usize..1000, cut in 0usize..40, insert in "[ -~\\n]{0,12}") {
        let text: Vec<char> = EMBEDDED[which].1.chars().collect();
        let start = text.len() * per_mille / 1000;
        let end = (start + cut).min(text.len());
        let damaged: String = text[..start].iter().copied().chain(insert.chars()).chain(text[end..].iter().copied()).collect();
        if let Err(error) = Scenario::parse(&damaged, "fuzz") {
            prop_assert!(error.to_string().contains("line "));
        }
    }
}
