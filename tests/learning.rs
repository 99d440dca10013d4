//! Learning, not luck: policies of three training seeds against untrained actors and random
//! settings on `fanout-saturation` and `idle-telemetry`. Prints the figures and holds the order of
//! the means. Goes on in target/learning where it was cut short; void measurements count,
//! and are taken again in the next go.

use crate::support::{host_json, repository};
use brokertuner_host::evaluate::mean_and_sd;
use brokertuner_host::report::scores::half_95;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SCENARIOS: [&str; 2] = ["fanout-saturation", "idle-telemetry"];
const TRAINING_SEEDS: [u64; 3] = [1, 2, 3];
/// Real runs of each policy on each load.
const REPEATS: &str = "1";
/// Training in the twin, on sites that are neither of the two loads.
const TWIN: [&str; 10] = [
    "--sweep-sites",
    "1000",
    "--sweep-updates",
    "15000",
    "--steps",
    "2000",
    "--validate-steps",
    "1000",
    "--validate-sites",
    "100",
];

/// Runs `host`; a status of 1 says that some measurements are void.
fn run(args: &[&str]) -> Value {
    let (status, document) = host_json("2.0.21", args);
    assert!(status < 2, "host {args:?} ended with {status}");
    document
}

fn train(dir: &Path, seed: u64) -> PathBuf {
    let model = dir.join(format!("trained-{seed}.btm"));
    if model.exists() {
        let dir = dir.display();
        println!("{} is of an earlier go; remove {dir} to begin anew", model.display());
        return model;
    }
    let seed_text = seed.to_string();
    let run_dir = dir.join(format!("twin-{seed}"));
    let out = run_dir.display().to_string();
    let mut args = vec!["train", "--env", "twin", "--seed", &seed_text, "--out", &out];
    args.extend(TWIN);
    // What was cut short is begun anew.
    let _ = std::fs::remove_dir_all(&run_dir);
    run(&args);
    std::fs::copy(run_dir.join("model.btm"), &model).unwrap();
    model
}

/// A policy's mean over the loads: of each load the mean of its repeats.
fn policy_means(document: &Value, is_meant: impl Fn(&str) -> bool) -> Vec<f64> {
    type ByLoad<'a> = BTreeMap<&'a str, Vec<f64>>;
    let mut policies: BTreeMap<(&str, Option<u64>), ByLoad<'_>> = BTreeMap::new();
    for record in document["records"].as_array().unwrap() {
        let arm = record["arm"].as_str().unwrap();
        if let Some(score) = record["score"].as_f64().filter(|_| is_meant(arm)) {
            let loads = policies.entry((arm, record["actor"].as_u64())).or_default();
            loads.entry(record["scenario"].as_str().unwrap()).or_default().push(score);
        }
    }
    let mean = |loads: &ByLoad<'_>| {
        let of_loads: Vec<f64> = loads.values().map(|scores| mean_and_sd(scores).0).collect();
        mean_and_sd(&of_loads).0
    };
    policies.values().map(mean).collect()
}

/// The mean over policies, and half of its 95 % interval: runs of one policy are no new policies.
fn interval(means: &[f64]) -> (f64, Option<f64>) {
    let (mean, sd) = mean_and_sd(means);
    (mean, half_95(sd, means.len()))
}

#[test]
#[ignore = "takes most of an hour: three trainings and their evaluation on a real broker"]
fn trained_policies_beat_untrained_ones_and_the_first_random_settings() {
    let dir = repository().join("target/learning");
    std::fs::create_dir_all(&dir).unwrap();
    let models: Vec<PathBuf> = TRAINING_SEEDS.iter().map(|&seed| train(&dir, seed)).collect();
    let out = dir.join("results.jsonl").display().to_string();
    let paths: Vec<String> = models.iter().map(|path| path.display().to_string()).collect();
    let mut args = vec!["evaluate", "--untrained", "--random", "--random-n", "8"];
    args.extend(["--repeats", REPEATS, "--seed", "100", "--resume", "--out", &out]);
    args.extend(paths.iter().flat_map(|path| ["--model", path.as_str()]));
    args.extend(SCENARIOS.iter().flat_map(|scenario| ["--scenario", scenario]));
    let document = run(&args);

    let of = |is_meant: &dyn Fn(&str) -> bool| interval(&policy_means(&document, is_meant));
    let trained = of(&|arm| arm.starts_with("trained-"));
    let untrained = of(&|arm| arm == "untrained");
    let random = of(&|arm| arm.starts_with("random-"));
    for (name, (mean, half)) in [
        ("trained", trained),
        ("untrained", untrained),
        ("first random settings", random),
        ("best of them", of(&|arm| arm == "random")),
        ("default", of(&|arm| arm == "default")),
    ] {
        let half = half.map_or_else(|| "(one policy)".to_owned(), |half| format!("+- {half:.3}"));
        println!("{name:<22} {mean:.3} {half}");
    }
    let records = document["records"].as_array().unwrap();
    let void = records.iter().filter(|record| record["is_void"] == true).count();
    println!("{void} of {} measurements are void: the generator was late", records.len());
    if void == 0 {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    assert_eq!(document["is_complete"], true, "not all was measured");
    assert!(trained.0 > untrained.0, "not above the untrained actors");
    assert!(trained.0 > random.0, "not above the first random settings");
}
