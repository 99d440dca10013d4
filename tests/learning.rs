//! Learning, not luck: policies of three training seeds against untrained actors and random
//! settings on `fanout-saturation` and `idle-telemetry`. Prints the figures and holds the order of
//! the means.

use crate::support::host_json;
use brokertuner_host::evaluate::mean_and_sd;
use serde_json::Value;
use std::path::{Path, PathBuf};

const SCENARIOS: [&str; 2] = ["fanout-saturation", "idle-telemetry"];
const TRAINING_SEEDS: [u64; 3] = [1, 2, 3];
/// Trials in the twin of each seed, on sites that are neither of the two loads.
const TWIN: [&str; 10] = [
    "--sweep-sites",
    "1000",
    "--sweep-updates",
    "15000",
    "--steps",
    "10000",
    "--validate-steps",
    "5000",
    "--validate-sites",
    "40",
];
/// Its finish on one real broker at a time: saturation wants the machine for itself.
const FINISH_S: &str = "200";

/// Runs `host` to its good end.
fn run(args: &[&str]) -> Value {
    let (status, document) = host_json("2.0.21", args);
    assert_eq!(status, 0, "host {args:?}");
    document
}

fn train(dir: &Path, seed: u64) -> PathBuf {
    let seed_text = seed.to_string();
    let folder = |name: &str| dir.join(format!("{name}-{seed}"));
    let (twin, finish) = (folder("twin"), folder("finish"));
    let twin_text = twin.display().to_string();
    let mut args = vec!["train", "--env", "twin", "--seed", &seed_text, "--out", &twin_text];
    args.extend(TWIN);
    run(&args);
    let (from, out) = (twin.join("best.safetensors"), finish.display().to_string());
    let from = from.display().to_string();
    let mut args = vec!["train", "--from", &from, "--duration-s", FINISH_S];
    args.extend(["--episode-steps", "15", "--seed", &seed_text, "--out", &out]);
    args.extend(SCENARIOS.iter().flat_map(|scenario| ["--scenario", scenario]));
    run(&args);
    let model = dir.join(format!("trained-{seed}.btm"));
    std::fs::copy(finish.join("model.btm"), &model).unwrap();
    model
}

/// Every measurement of an arm.
fn scores(document: &Value, arm: impl Fn(&str) -> bool) -> Vec<f64> {
    let records = document["records"].as_array().unwrap();
    let of = |record: &&Value| arm(record["arm"].as_str().unwrap());
    records.iter().filter(of).filter_map(|record| record["score"].as_f64()).collect()
}

/// The mean of `scores` with its 95 % interval by the normal approximation.
fn interval(scores: &[f64]) -> (f64, f64) {
    let (mean, sd) = mean_and_sd(scores);
    (mean, 1.96 * sd / (scores.len() as f64).sqrt())
}

#[test]
#[ignore = "takes more than an hour: three trainings and their evaluation on a real broker"]
fn trained_policies_beat_untrained_ones_and_the_first_random_settings() {
    let dir = tempfile::tempdir().unwrap();
    let models: Vec<PathBuf> = TRAINING_SEEDS.iter().map(|&seed| train(dir.path(), seed)).collect();
    let out = dir.path().join("results.jsonl").display().to_string();
    let paths: Vec<String> = models.iter().map(|path| path.display().to_string()).collect();
    let mut args = vec!["evaluate", "--untrained", "--random", "--random-n", "8"];
    args.extend(["--repeats", "2", "--seed", "100", "--out", &out]);
    args.extend(paths.iter().flat_map(|path| ["--model", path.as_str()]));
    args.extend(SCENARIOS.iter().flat_map(|scenario| ["--scenario", scenario]));
    let document = run(&args);

    let trained = interval(&scores(&document, |arm| arm.starts_with("trained-")));
    let untrained = interval(&scores(&document, |arm| arm == "untrained"));
    let random = interval(&scores(&document, |arm| arm.starts_with("random-")));
    let best_random = interval(&scores(&document, |arm| arm == "random"));
    let default = interval(&scores(&document, |arm| arm == "default"));
    for (name, (mean, half)) in [
        ("trained", trained),
        ("untrained", untrained),
        ("first random settings", random),
        ("best of them", best_random),
        ("default", default),
    ] {
        println!("{name:<22} {mean:.3} +- {half:.3}");
    }
    assert!(trained.0 > untrained.0, "not above the untrained actors");
    assert!(trained.0 > random.0, "not above the first random settings");
}
