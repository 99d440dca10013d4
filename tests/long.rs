//! The long comparisons of the shipped model with what an operator would do without it. Each goes
//! on where it ended before (`LONG_S` seconds at a time, an hour by default), and fails until
//! everything is measured and true. Measurements stand in runs/long, what came of them in
//! models/results.
//!
//! On the real broker the rivals are this machine's own: it is calibrated, their settings are
//! searched in its twin, and of each load's the best three are measured on the broker.

use crate::support::{host, repository};
use brokertuner_host::evaluate::{Record, mean_and_sd};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Seconds of one go, where the environment does not say.
const GO_S: &str = "3600";
/// Randomised sites that nobody trained on.
const SITES: u32 = 200;
/// One-sided 95 % points of Student's t, from 2 degrees of freedom on.
const STUDENT_T_95: [f64; 8] = [2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833];

/// Scores of an arm on a load, by repeat.
type Scores = BTreeMap<(String, String), BTreeMap<u32, f64>>;

/// A path of the tree as an argument.
fn tree(path: &str) -> String {
    repository().join(path).display().to_string()
}

fn go_s() -> String {
    std::env::var("LONG_S").unwrap_or_else(|_| GO_S.to_owned())
}

/// Runs `host` with `args` on what was done before.
///
/// # Panics
/// Where that fails, or has not come to its end.
fn go_on(args: &[&str]) {
    let (status, _, stderr) = host("2.0.21", args);
    assert_eq!(status, 0, "host {args:?}; where the time ran out, run it again:\n{stderr}");
}

/// This machine's rivals: its calibration, the best setting for all loads, a folder of the best for
/// each.
fn rivals() -> [String; 3] {
    let (calibration, all, each) =
        (tree("runs/long/calibration.toml"), tree("runs/long/all"), tree("runs/long/site-best"));
    if !std::path::Path::new(&calibration).exists() {
        go_on(&["calibrate", "--out", &calibration]);
    }
    let search = ["search", "--resume", "--calibration", &calibration];
    go_on(&[&search[..], &["--out", &all]].concat());
    let confirmed = ["--each", "--confirm", "3", "--duration-s", &go_s(), "--out", &each];
    go_on(&[&search[..], &confirmed].concat());
    [calibration, format!("{all}/best-static.conf"), each]
}

/// Runs `host evaluate` with `args`, goes on with `runs/long/NAME.jsonl`, and gives what is there.
///
/// # Panics
/// Where not everything is measured yet, or void.
fn compare(name: &str, best_static: &str, args: &[&str]) -> Scores {
    let out = tree(&format!("runs/long/{name}.jsonl"));
    let (model, go_s) = (tree("models/default.btm"), go_s());
    if args.contains(&"twin") {
        // Minutes, and of this program only.
        let _ = std::fs::remove_file(&out);
    }
    let mut all = vec!["evaluate", "--resume", "--out", &out, "--duration-s", &go_s];
    all.extend(["--model", &model, "--fixed", best_static]);
    all.extend(args);
    let (status, stdout, stderr) = host("2.0.21", &all);
    assert!(status < 2, "host {all:?}:\n{stderr}");
    let document: Value = serde_json::from_str(&stdout).unwrap();
    let records: Vec<Record> = serde_json::from_value(document["records"].clone()).unwrap();
    let counted: Vec<&Record> =
        records.iter().filter(|record| record.counted_score().is_some()).collect();
    let is_whole = document["is_complete"].as_bool().unwrap() && counted.len() == records.len();
    assert!(is_whole, "{} measurements that count so far; run it again to go on", counted.len());
    if !args.contains(&"--sites") {
        std::fs::write(tree(&format!("models/results/{name}.csv")), csv(&counted)).unwrap();
    }
    let mut scores = Scores::new();
    for record in counted {
        let key = (record.scenario.clone(), record.arm.clone());
        scores.entry(key).or_default().extend(record.score.map(|score| (record.repeat, score)));
    }
    scores
}

/// What became of the messages, a row for each measurement.
fn csv(records: &[&Record]) -> String {
    let mut out =
        "scenario,arm,repeat,score,restarts,in_time,lost_late,lost_queue,lost_outage,lost_memory,\
                   seconds,seconds_void\n"
            .to_owned();
    for Record { scenario, arm, repeat, score, outcome, .. } in records {
        let (load, score) = (&outcome.load, score.unwrap_or_default());
        let tally = &load.tally;
        writeln!(
            out,
            "{scenario},{arm},{repeat},{score:.4},{},{},{},{},{},{},{},{}",
            outcome.restarts,
            tally.in_time,
            tally.lost_late,
            tally.lost_queue,
            tally.lost_outage,
            tally.lost_memory,
            load.seconds,
            load.seconds_void
        )
        .unwrap();
    }
    out
}

fn loads(scores: &Scores) -> Vec<String> {
    scores.keys().map(|(load, _)| load.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn of<'a>(scores: &'a Scores, load: &str, arm: &str) -> &'a BTreeMap<u32, f64> {
    &scores[&(load.to_owned(), arm.to_owned())]
}

fn mean(scores: &Scores, load: &str, arm: &str) -> f64 {
    mean_and_sd(&of(scores, load, arm).values().copied().collect::<Vec<_>>()).0
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
    let differences: Vec<f64> = ours.iter().map(|(repeat, score)| score - theirs[repeat]).collect();
    assert!(differences.len() > 2, "{load}: no interval over {}", differences.len());
    let (mean, sd) = mean_and_sd(&differences);
    let t = STUDENT_T_95[differences.len().clamp(3, 10) - 3];
    mean - t * sd / (differences.len() as f64).sqrt()
}

fn print(scores: &Scores) {
    for ((load, arm), scores) in scores {
        let (mean, sd) = mean_and_sd(&scores.values().copied().collect::<Vec<_>>());
        println!("{load:<20} {arm:<12} {mean:.3} +- {sd:.3} ({})", scores.len());
    }
}

#[test]
#[ignore = "takes five hours in all: five arms on the public loads, five times on a real broker"]
fn the_shipped_model_beats_what_an_operator_would_do() {
    let [_, best_static, site_best] = rivals();
    let args = ["--rule", "--per-site", &site_best, "--repeats", "5"];
    let scores = compare("public-on-mosquitto-2.0.21", &best_static, &args);
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
    let [_, best_static, _] = rivals();
    let scores = compare("sys-interval-10", &best_static, &args);
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
    let scores = compare("day-of-four-hours", &tree("models/best-static.conf"), &args);
    print(&scores);
    let day = |arm| mean(&scores, "mixed-day", arm);
    assert!(day("model") >= day("best-static").max(day("site-best")) + 0.04);
}

#[test]
#[ignore = "takes half an hour in the twin, most of it the search for each site's best"]
fn sites_that_nobody_trained_on_are_served() {
    let (sites, found) = (SITES.to_string(), tree("runs/long/sites-best"));
    let args = ["search", "--resume", "--each", "--sites", &sites, "--n", "150", "--out", &found];
    go_on(&args);
    let args = ["--env", "twin", "--sites", &sites, "--per-site", &found];
    let scores = compare("sites-in-the-twin", &tree("models/best-static.conf"), &args);
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
    let [calibration, _, site_best] = rivals();
    let go_s = go_s();
    let mut args = vec!["calibrate", "--check", "--resume", "--out", &calibration];
    args.extend(["--best", &site_best, "--duration-s", &go_s]);
    let (status, stdout, stderr) = host("2.0.21", &args);
    println!("{stdout}");
    assert_eq!(status, 0, "not good enough, or not all measured yet:\n{stderr}");
}
