//! The long comparisons of the shipped model with what an operator would do without it. Each goes on
//! where it ended before (`LONG_S` seconds at a time, an hour by default), keeps its measurements
//! under models/results/, and fails until everything is measured and true.

use crate::support::{host, repository};
use brokertuner_host::evaluate::mean_and_sd;
use serde_json::Value;
use std::collections::BTreeMap;

/// Seconds of one go, where the environment does not say.
const GO_S: &str = "3600";
/// Randomised sites that nobody trained on.
const SITES: u32 = 200;
/// One-sided 95 % points of Student's t, from 2 degrees of freedom on.
const STUDENT_T_95: [f64; 8] = [2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833];

/// Scores of an arm on a load, by repeat.
type Scores = BTreeMap<(String, String), Vec<f64>>;

/// A path of the tree as an argument.
fn tree(path: &str) -> String {
    repository().join(path).display().to_string()
}

/// Runs `host` with `args`, goes on with `models/results/NAME.jsonl`, and gives what is there.
///
/// # Panics
/// Where not everything is measured yet.
fn compare(name: &str, args: &[&str]) -> Scores {
    let out = tree(&format!("models/results/{name}.jsonl"));
    let go_s = std::env::var("LONG_S").unwrap_or_else(|_| GO_S.to_owned());
    let (model, best_static) = (tree("models/default.btm"), tree("models/best-static.conf"));
    let mut all = vec!["evaluate", "--resume", "--out", &out, "--duration-s", &go_s];
    all.extend(["--model", &model, "--fixed", &best_static]);
    all.extend(args);
    let (status, stdout, stderr) = host("2.0.21", &all);
    assert!(status < 2, "host {all:?}:\n{stderr}");
    let document: Value = serde_json::from_str(&stdout).unwrap();
    let mut scores = Scores::new();
    for record in document["records"].as_array().unwrap() {
        let text = |key: &str| record[key].as_str().unwrap().to_owned();
        if let Some(score) = record["score"].as_f64() {
            scores.entry((text("scenario"), text("arm"))).or_default().push(score);
        }
    }
    let is_whole = document["is_complete"].as_bool().unwrap();
    assert!(is_whole, "{} measurements so far; run it again to go on", scores.len());
    scores
}

fn loads(scores: &Scores) -> Vec<String> {
    let mut loads: Vec<String> = scores.keys().map(|(load, _)| load.clone()).collect();
    loads.dedup();
    loads
}

fn of(scores: &Scores, load: &str, arm: &str) -> Vec<f64> {
    scores[&(load.to_owned(), arm.to_owned())].clone()
}

fn mean(scores: &Scores, load: &str, arm: &str) -> f64 {
    mean_and_sd(&of(scores, load, arm)).0
}

/// The mean of an arm's means over all loads.
fn mean_of_means(scores: &Scores, arm: &str) -> f64 {
    let means: Vec<f64> = loads(scores).iter().map(|load| mean(scores, load, arm)).collect();
    mean_and_sd(&means).0
}

/// What `arm` gains over `floor`, as a share of what `best` gains over it.
fn share(scores: &Scores, arm: &str, floor: &str, best: &str) -> f64 {
    let of = |arm| mean_of_means(scores, arm);
    (of(arm) - of(floor)) / (of(best) - of(floor))
}

/// The lower one-sided 95 % bound of the paired difference of two arms on a load.
fn lower_bound(scores: &Scores, load: &str, arm: &str, than: &str) -> f64 {
    let (ours, theirs) = (of(scores, load, arm), of(scores, load, than));
    let differences: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
    let (mean, sd) = mean_and_sd(&differences);
    let t = STUDENT_T_95[differences.len().clamp(3, 10) - 3];
    mean - t * sd / (differences.len() as f64).sqrt()
}

fn print(scores: &Scores) {
    for ((load, arm), scores) in scores {
        let (mean, sd) = mean_and_sd(scores);
        println!("{load:<20} {arm:<12} {mean:.3} +- {sd:.3} ({})", scores.len());
    }
}

#[test]
#[ignore = "takes five hours in all: five arms on the public loads, five times on a real broker"]
fn the_shipped_model_beats_what_an_operator_would_do() {
    let site_best = tree("models/site-best");
    let args = ["--rule", "--per-site", &site_best, "--repeats", "5"];
    let scores = compare("public", &args);
    print(&scores);
    let headroom = share(&scores, "model", "default", "site-best");
    let beyond_static = share(&scores, "model", "best-static", "site-best");
    println!(
        "share of what site-best gains over default {headroom:.3}, over best-static {beyond_static:.3}"
    );
    for load in loads(&scores) {
        let bound = lower_bound(&scores, &load, "model", "default");
        println!("{load:<20} model - default at least {bound:+.3}");
        assert!(bound >= -0.02, "{load}: worse than the defaults");
    }
    let day = |arm| mean(&scores, "mixed-day", arm);
    let rival = day("best-static").max(day("site-best"));
    println!("mixed-day: model {:.3}, the better fixed setting {rival:.3}", day("model"));
    assert!(headroom >= 0.9 && beyond_static >= 0.5);
    assert!(day("model") >= rival + 0.04);
}

#[test]
#[ignore = "takes 40 minutes on a real broker"]
fn the_model_is_as_good_where_the_broker_tells_little() {
    let mut args = vec!["--scenario", "wan-uplink", "--scenario", "idle-telemetry"];
    args.extend(["--sys-interval-s", "10", "--repeats", "5"]);
    let scores = compare("sys-interval-10", &args);
    print(&scores);
    for load in loads(&scores) {
        let bound = lower_bound(&scores, &load, "model", "default");
        assert!(bound >= -0.02, "{load}: worse than the defaults ({bound:+.3})");
    }
}

#[test]
#[ignore = "takes minutes in the twin"]
fn a_day_of_four_hours_is_worth_its_restarts() {
    let site_best = tree("models/site-best");
    let mut args = vec!["--env", "twin", "--scenario", "mixed-day", "--stretch", "45"];
    args.extend(["--profile", "gateway", "--per-site", &site_best]);
    let scores = compare("day-of-four-hours", &args);
    print(&scores);
    let day = |arm| mean(&scores, "mixed-day", arm);
    assert!(day("model") >= day("best-static").max(day("site-best")) + 0.04);
}

#[test]
#[ignore = "takes half an hour in the twin, most of it the search for each site's best"]
fn sites_that_nobody_trained_on_are_served() {
    let (sites, found) = (SITES.to_string(), tree("models/results/sites-best"));
    let args = ["search", "--resume", "--each", "--sites", &sites, "--n", "150", "--out", &found];
    let (status, _, stderr) = host("2.0.21", &args);
    assert_eq!(status, 0, "{stderr}");
    let args = ["--env", "twin", "--sites", &sites, "--per-site", &found];
    let scores = compare("sites", &args);
    let headroom = share(&scores, "model", "default", "sites-best");
    let served = loads(&scores)
        .iter()
        .filter(|load| mean(&scores, load, "model") >= mean(&scores, load, "best-static") - 1e-9)
        .count();
    for arm in ["default", "best-static", "sites-best", "model"] {
        println!("{arm:<12} {:.3}", mean_of_means(&scores, arm));
    }
    println!(
        "share of headroom {headroom:.3}; at or above best-static in {served} of {SITES} sites"
    );
    assert!(headroom >= 0.9 && served * 10 >= SITES as usize * 8);
}

#[test]
#[ignore = "takes three hours: 14 settings under every public load on a real broker"]
fn the_twin_tells_what_the_broker_does() {
    let calibration = tree("models/results/fidelity.toml");
    let shipped = tree("host/calibrations/mosquitto-2.0.21.toml");
    std::fs::copy(shipped, &calibration).unwrap();
    let go_s = std::env::var("LONG_S").unwrap_or_else(|_| GO_S.to_owned());
    let best = tree("models/site-best");
    let mut args = vec!["calibrate", "--check", "--resume", "--out", &calibration];
    args.extend(["--best", &best, "--duration-s", &go_s]);
    let (status, stdout, stderr) = host("2.0.21", &args);
    println!("{stdout}");
    assert_eq!(status, 0, "not good enough, or not all measured yet:\n{stderr}");
}
