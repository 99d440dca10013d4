//! The README's first command, end to end, and the other verbs of `host` on real brokers.

use crate::support::{host, host_json};
use brokertuner_core::{Envelope, render};

/// What the defaults stay below, and what `edge` reaches, on both loads of the demo.
#[test]
#[ignore = "takes about 7 minutes, and wants the machine for itself"]
fn a_live_broker_that_edge_tuned_scores_above_0_9_where_the_default_stays_below_0_3() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().display().to_string();
    let (status, report) = host_json("2.0.21", &["demo", "--out", &out]);
    assert_eq!(status, 0, "{}", std::fs::read_to_string(dir.path().join("report.md")).unwrap());
    for row in report["measured"].as_array().unwrap() {
        let score = |arm: &str| row[arm]["load"]["score"].as_f64().unwrap();
        assert!(score("default") < 0.3, "{}: default {}", row["scenario"], score("default"));
        assert!(score("tuned") >= 0.9, "{}: tuned {}", row["scenario"], score("tuned"));
        let conf = row["tuned"]["settings_conf"].as_str().unwrap();
        let settings = render::parse(conf).unwrap();
        assert!(Envelope::default().check(&settings).is_empty(), "{conf}");
    }
    for name in ["report.md", "report.json", "model.btm", "train/progress.csv"] {
        assert!(dir.path().join(name).is_file(), "no {name}");
    }
}

/// Training, its logs, the export and the evaluation, on a few steps.
#[test]
#[ignore = "wants the machine for itself: beside other tests the load generator is late, and its runs are void"]
fn a_short_training_gives_a_model_that_the_other_verbs_take() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (_, trained) = host_json(
        "2.0.21",
        &["train", "--preset", "demo", "--scenario", "link-50ms", "--steps", "12"]
            .into_iter()
            .chain(["--step-s", "1", "--warm-up-steps", "4", "--updates-per-step", "5"])
            .chain(["--episode-steps", "4", "--out", &path("run")])
            .collect::<Vec<_>>(),
    );
    assert_eq!(trained["steps"], 12);
    assert!(trained["deviation_steps_max"].as_f64().unwrap() <= 2.0, "{trained}");
    let log = std::fs::read_to_string(path("run/action_throughput_log.csv")).unwrap();
    assert_eq!(log.lines().count(), 13, "{log}");

    let model = path("run/model.btm");
    let args = ["evaluate", "--quick", "--no-pin", "--scenario", "link-50ms", "--model", &model];
    let out = path("e.jsonl");
    let (status, document) = host_json("2.0.21", &[&args[..], &["--out", &out]].concat());
    let records = document["records"].as_array().unwrap();
    let is_void = |record: &serde_json::Value| record["is_void"] == true;
    assert_eq!((status, records.len()), (i32::from(records.iter().any(is_void)), 2));
    // What is not void is measured already: resuming does not measure it again.
    let resumed = [&args[..], &["--out", &out, "--resume"]].concat();
    let (_, again) = host_json("2.0.21", &resumed);
    let again = again["records"].as_array().unwrap();
    for record in records.iter().filter(|record| !is_void(record)) {
        assert!(again.contains(record), "{record} not in {again:?}");
    }
}

/// What was measured before the error is printed, and the error is said.
#[test]
fn an_evaluation_that_fails_midway_prints_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let crowd = include_str!("../host/scenarios/link-50ms.toml")
        .replace("\"link-50ms\"", "\"crowd\"")
        .replace("clients = 1\n", "clients = 1000000\n");
    std::fs::write(path("crowd.toml"), crowd).unwrap();
    let args = ["evaluate", "--quick", "--no-pin", "--scenario", "link-50ms", "--scenario"];
    let (status, stdout, stderr) =
        host("2.0.21", &[&args[..], &[&path("crowd.toml"), "--out", &path("e.jsonl")]].concat());
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("error: crowd with default"), "{stderr}");
    let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(document["is_complete"], false);
    assert_eq!(document["summaries"][0]["scenario"], "link-50ms");
}
