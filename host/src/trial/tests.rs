#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
//! Trials with an agent, on the system's Mosquitto.

use super::*;
use crate::ddpg;
use crate::export::{About, export};
use brokertuner_core::features::Schema;
use brokertuner_core::{KNOB_COUNT, Knob};
use brokertuner_edge::config::Config;
use brokertuner_edge::policy::ModelPolicy;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

fn scenario(duration_s: u32) -> Arc<Scenario> {
    let text = format!(
        "schema = 1\nname = \"t\"\nsummary = \"t\"\nrss_limit_mib = 64\ndeadline_ms = 100\n\
         [[phase]]\nname = \"p\"\nduration_s = {duration_s}\n\
         [[phase.publish]]\nname = \"w\"\nclients = 1\nrate_hz = 20\npayload_bytes = 16\ntopic = \"a\"\n\
         [[phase.subscribe]]\nname = \"r\"\nclients = 1\nfilter = \"a\"\n"
    );
    Arc::new(Scenario::parse(&text, "test").unwrap())
}

/// An untrained model for states of `schema`.
fn model(schema: Schema, dir: &Path) -> PathBuf {
    let hyper = ddpg::Hyper::demo();
    let agent = ddpg::Agent::new(hyper, schema.len(), KNOB_COUNT, 1).unwrap();
    let about = About {
        schema,
        tuned: crate::env::trained(),
        scenarios: "t".to_owned(),
        broker_versions: "2".to_owned(),
        scores: "none".to_owned(),
    };
    let path = dir.join(format!("{schema:?}.btm"));
    export(&agent, &about, &path).unwrap();
    path
}

#[test]
fn an_agent_is_told_its_models_schema() {
    let dir = tempfile::tempdir().unwrap();
    let scenario = scenario(1);
    let mosquitto = Mosquitto::find(None).unwrap();
    let (broker, _) = spawn(&mosquitto, spawn_config(&scenario), false).unwrap();
    let profile = Profile::judging().unwrap();
    for schema in [Schema::Seed5, Schema::Edge] {
        let model = model(schema, dir.path());
        let text = agent::config_text(dir.path(), &model, &broker, &scenario, &profile).unwrap();
        let path = dir.path().join("edge.toml");
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.model.schema, schema);
        ModelPolicy::load(&model, config.model.schema).unwrap();
        // An apply and its undoing, each with its command and its wait.
        let control = &config.control;
        let apply_max_s = 2 * (control.command_timeout_s + control.ready_timeout_s);
        assert!(agent::END_TIMEOUT > Duration::from_secs(apply_max_s.into()));
    }
}

#[test]
fn an_agent_that_ends_ends_the_trial_at_once_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let edge = dir.path().join("edge");
    std::fs::write(&edge, "#!/bin/sh\necho 'no such thing' >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&edge, std::fs::Permissions::from_mode(0o755)).unwrap();
    let trial = Trial {
        mosquitto: Mosquitto::find(None).unwrap(),
        scenario: scenario(60),
        setter: Setter::Edge { edge, model: model(Schema::Edge, dir.path()) },
        seed: 1,
        profile: Profile::judging().unwrap(),
        pin: false,
        capacity_msgs_per_s: None,
        allow_uncapped: false,
    };
    let begun = Instant::now();
    let error = trial.run().unwrap_err().to_string();
    assert!(error.contains("no such thing") && error.contains("exit status: 3"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60), "not before the end of the load");
}

/// What `edge run --json` prints of a tick, with this window in force.
fn report(window: Option<u64>) -> String {
    let option = serde_json::json!({
        "option": "max_inflight_messages", "written": window, "effective": window,
        "wanted": 1000, "site": 20, "tuned": true, "dormant": false
    });
    let report = serde_json::json!({
        "report_version": 1, "at_unix_s": 0, "agent_pid": 1,
        "broker": { "address": "127.0.0.1:1883", "pid": null, "version": null, "link": "up" },
        "verdict": { "kind": "changed", "why": "asked", "diff": [], "how": "restart" },
        "options": [option], "failures": 0, "restarts_in_hour": 0, "elsewhere": [],
        "metrics": brokertuner_core::sample::Metrics::default()
    });
    report.to_string() + "\n"
}

#[test]
fn what_an_agent_reports_in_force_is_recorded_with_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let edge = dir.path().join("edge");
    let script = "#!/bin/sh\ntrap 'exit 0' TERM\ndir=$(dirname \"$4\")\nmkdir \"$dir/state\"\n\
                  echo '{}' > \"$dir/state/status.json\"\n\
                  sed \"s/\\\"at_unix_s\\\":0/\\\"at_unix_s\\\":$(date +%s)/\" \"$0.jsonl\"\n\
                  while :; do sleep 0.1; done\n";
    std::fs::write(&edge, script).unwrap();
    std::fs::set_permissions(&edge, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ticks = [None, Some(1000), Some(1000), Some(64)].map(report).concat();
    std::fs::write(dir.path().join("edge.jsonl"), ticks).unwrap();
    let trial = Trial {
        mosquitto: Mosquitto::find(None).unwrap(),
        scenario: scenario(2),
        setter: Setter::Edge { edge, model: model(Schema::Edge, dir.path()) },
        seed: 1,
        profile: Profile { lead_in_s: 3, lead_in_sys_periods: 0, ..Profile::judging().unwrap() },
        pin: false,
        capacity_msgs_per_s: None,
        allow_uncapped: false,
    };
    let outcome = trial.run().unwrap();
    let window = |step: &InForce| {
        render::parse(&step.settings_conf).unwrap().get(Knob::InflightMessagesMax).value()
    };
    let windows: Vec<Option<u64>> = outcome.timeline.iter().map(window).collect();
    assert_eq!(windows, [None, Some(1000), Some(64)]);
    assert!((outcome.timeline[0].at_s + 3.0).abs() < 1e-9);
    // The agent was up within the run, and its clock is whole seconds.
    let at_s = outcome.timeline[1].at_s;
    assert!((-4.0..=3.0).contains(&at_s), "{at_s}");
    assert_eq!(outcome.phases, [PhaseSpan { name: "p".to_owned(), duration_s: 2 }]);
}
