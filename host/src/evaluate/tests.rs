#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::broker::Mosquitto;
use crate::load::LoadResult;
use crate::load::score::Tally;
use crate::trial::Outcome;

/// An evaluation of one load with a file of settings beside the defaults.
fn config(dir: &Path) -> EvaluateConfig {
    let path = dir.join("mine.conf");
    if !path.exists() {
        std::fs::write(&path, "max_inflight_messages 100\n").unwrap();
    }
    let mosquitto = Mosquitto::find(None).unwrap();
    EvaluateConfig {
        broker_version: mosquitto.version().to_string(),
        bench: Bench::Broker { mosquitto, edge: None, allow_uncapped: false, pin: false },
        scenarios: vec![Arc::new(Scenario::load("wan-uplink").unwrap())],
        arms: vec![Arm::Default, Arm::fixed(&path).unwrap(), Arm::Random],
        repeats: 1,
        seed: 1,
        random_count: 3,
        // Everything is measured already, or nothing is.
        duration: Some(Duration::ZERO),
        profile: Profile::judging().unwrap(),
        capacity_msgs_per_s: None,
    }
}

fn outcome(score: f64, is_void: bool) -> Outcome {
    let load = LoadResult {
        version: 1,
        scenario: "wan-uplink".to_owned(),
        seed: 1,
        score: Some(score),
        is_void,
        is_complete: true,
        seconds: 60,
        seconds_void: 2,
        capacity_msgs_per_s: Some(5000.0),
        tally: Tally {
            expected: 100,
            in_time: 60,
            lost_late: 10,
            lost_queue: 10,
            lost_outage: 10,
            lost_memory: 10,
        },
        delivered_per_s: 1.0,
        ..LoadResult::default()
    };
    Outcome {
        load,
        agent: None,
        settings_conf: String::new(),
        restarts: 0,
        is_uncapped: true,
        cpu_share: None,
        rss_bytes_end: None,
        phases: Vec::new(),
        timeline: Vec::new(),
    }
}

fn record(unit: &Unit<'_>, score: f64, is_void: bool) -> Record {
    let Key { scenario, arm, actor, repeat, seed } = unit.key.clone();
    Record {
        scenario,
        arm,
        actor,
        repeat,
        seed,
        score: Some(score),
        is_void,
        broker_version: "2.0.21".to_owned(),
        identity: unit.identity.clone(),
        outcome: outcome(score, is_void),
    }
}

/// A journal in which everything of `config` was measured, the tries with these scores.
fn measured(config: &EvaluateConfig, out: &Path, tries: &[(f64, bool)]) -> Journal {
    let mut journal = Journal::open(out, false).unwrap();
    let scenario = &config.scenarios[0];
    for ((unit, _), (score, is_void)) in config.tries(scenario).zip(tries) {
        journal.append(record(&unit, *score, *is_void)).unwrap();
    }
    for repeat in 0..config.repeats {
        for arm in &config.arms {
            for unit in config.units(scenario, arm, repeat, Some(Settings::UNWRITTEN)).unwrap() {
                journal.append(record(&unit, 0.5, false)).unwrap();
            }
        }
    }
    journal
}

const TRIES: [(f64, bool); 3] = [(0.2, false), (0.9, true), (0.4, false)];

#[test]
fn what_was_measured_is_not_measured_again() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (config(dir.path()), dir.path().join("out.jsonl"));
    let counted = TRIES.map(|(score, _)| (score, false));
    let lines = measured(&config, &out, &counted).records().len();
    let mut journal = Journal::open(&out, true).unwrap();
    assert_eq!(evaluate(&config, &mut journal).unwrap(), Done::All);
    assert_eq!(journal.records().len(), lines);
    assert_eq!(journal.capacity_msgs_per_s(), Some(5000.0));
    let more = EvaluateConfig { repeats: 2, ..config };
    // The default, the file and the best random settings once more; not the tries.
    assert_eq!(more.check(&journal).unwrap(), 3);
    assert_eq!(evaluate(&more, &mut journal).unwrap(), Done::Partly);
}

#[test]
fn a_void_measurement_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (config(dir.path()), dir.path().join("out.jsonl"));
    let journal = measured(&config, &out, &TRIES);
    assert_eq!(config.check(&journal).unwrap(), 0, "not within one run");
    drop(journal);
    let journal = Journal::open(&out, true).unwrap();
    assert_eq!(config.check(&journal).unwrap(), 1, "the void try");
}

#[test]
fn records_of_something_else_are_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (sound, out) = (config(dir.path()), dir.path().join("out.jsonl"));
    let mut journal = measured(&sound, &out, &TRIES);
    let quick = Arc::new(sound.scenarios[0].with_phases_of_at_most(8));
    std::fs::write(dir.path().join("mine.conf"), "max_inflight_messages 200\n").unwrap();
    let edited = config(dir.path());
    let Bench::Broker { mosquitto, edge, allow_uncapped, .. } = sound.bench.clone() else {
        unreachable!("the configuration is of a broker")
    };
    let pinned = Bench::Broker { mosquitto, edge, allow_uncapped, pin: true };
    let cases = [
        (EvaluateConfig { scenarios: vec![quick], ..sound.clone() }, "text of the scenario"),
        (EvaluateConfig { bench: pinned, ..sound.clone() }, "pinning"),
        (EvaluateConfig { broker_version: "1.4.0".into(), ..sound.clone() }, "Mosquitto"),
        (EvaluateConfig { seed: 2, ..sound.clone() }, "--seed"),
        (EvaluateConfig { random_count: 2, ..sound.clone() }, "--random-n"),
        (edited, "mine.conf"),
    ];
    for (config, words) in cases {
        let message = evaluate(&config, &mut journal).unwrap_err().to_string();
        for word in ["out.jsonl: ", " on wan-uplink was measured with another ", words, "--out"] {
            assert!(message.contains(word), "{message}");
        }
    }
    let scenario = &sound.scenarios[0];
    let scenarios = vec![Arc::clone(scenario), Arc::clone(scenario)];
    let twice = EvaluateConfig { scenarios, ..sound };
    let message = evaluate(&twice, &mut journal).unwrap_err().to_string();
    assert!(message.contains("\"wan-uplink\"") && message.contains("`name`"), "{message}");
}

#[test]
fn a_void_try_is_not_the_best() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing but the tries.
    let config = EvaluateConfig { repeats: 0, ..config(dir.path()) };
    let scenario = &config.scenarios[0];
    let settings: Vec<Settings> = config.tries(scenario).map(|(_, settings)| settings).collect();
    for (name, tries, expected) in [
        ("a", TRIES, Some(settings[2])),
        ("b", [(0.7, true); 3], None),
        ("c", [(0.0, true), (0.0, false), (0.0, true)], Some(settings[1])),
    ] {
        let mut journal = measured(&config, &dir.path().join(name), &tries);
        assert_eq!(chosen(&config, &mut journal), expected, "{name}");
    }
}

fn chosen(config: &EvaluateConfig, journal: &mut Journal) -> Option<Settings> {
    let started = Instant::now();
    let mut run = Progressing { journal, progress: Progress::new(0), started, measured: 0 };
    match config.best_random(&mut run, &config.scenarios[0]).unwrap() {
        Choice::Best(settings) => Some(settings),
        Choice::None => None,
        Choice::TimeIsUp => panic!("nothing was to be measured"),
    }
}

#[test]
fn the_random_arm_stays_with_the_settings_that_it_was_measured_with() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let mut journal = measured(&config, &dir.path().join("out.jsonl"), &TRIES);
    // Its record says that nothing was set, whichever try is best by now.
    assert_eq!(chosen(&config, &mut journal), Some(Settings::UNWRITTEN));
    drop(journal);
    // The void try is made again all the same: this bench has no broker.
    let mut journal = Journal::open(&dir.path().join("out.jsonl"), true).unwrap();
    let config = EvaluateConfig { duration: Some(Duration::ZERO), ..config };
    let started = Instant::now();
    let progress = Progress::new(0);
    let mut run = Progressing { journal: &mut journal, progress, started, measured: 0 };
    let found = config.best_random(&mut run, &config.scenarios[0]).unwrap();
    assert!(matches!(found, Choice::TimeIsUp));
}

#[test]
fn repeats_of_one_actor_are_no_new_actors() {
    let dir = tempfile::tempdir().unwrap();
    let actors = Architecture::default().write_untrained(dir.path()).unwrap();
    let config =
        EvaluateConfig { repeats: 3, arms: vec![Arm::Untrained { actors }], ..config(dir.path()) };
    let mut journal = Journal::open(&dir.path().join("out.jsonl"), false).unwrap();
    for repeat in 0..config.repeats {
        let units = config.units(&config.scenarios[0], &config.arms[0], repeat, None).unwrap();
        for (unit, score) in units.iter().zip([0.1, 0.3, 0.5, 0.7, 0.9]) {
            journal.append(record(unit, score, false)).unwrap();
        }
    }
    let summary = &summarise(journal.records())[0];
    assert_eq!((summary.repeats, summary.independent), (15, 5));
    // Of 0.1, 0.3 ... 0.9.
    assert!((summary.score_sd.unwrap() - 0.1_f64.sqrt()).abs() < 1e-12);
}

#[test]
fn each_untrained_actor_is_measured_in_every_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let actors = Architecture::default().write_untrained(dir.path()).unwrap();
    let arm = Arm::Untrained { actors };
    let config = config(dir.path());
    for repeat in 0..3 {
        let units = config.units(&config.scenarios[0], &arm, repeat, None).unwrap();
        let actors: Vec<Option<u64>> = units.iter().map(|unit| unit.key.actor).collect();
        assert_eq!(actors, [1, 2, 3, 4, 5].map(Some));
        assert!(units.iter().all(|unit| unit.key.arm == "untrained"));
    }
}

#[test]
fn a_summary_bears_its_marks() {
    let dir = tempfile::tempdir().unwrap();
    let config = EvaluateConfig { repeats: 2, ..config(dir.path()) };
    let journal = measured(&config, &dir.path().join("out.jsonl"), &TRIES);
    let mut records = journal.records().to_vec();
    let void = records.iter_mut().find(|record| record.arm == "mine").unwrap();
    void.is_void = true;
    let summaries = summarise(&records);
    let of = |arm: &str| summaries.iter().find(|summary| summary.arm == arm).unwrap();
    let (mine, default) = (of("mine"), of("default"));
    assert_eq!((mine.repeats, mine.void, mine.uncapped, mine.seconds_void), (1, 1, 1, 4));
    assert_eq!((default.repeats, default.uncapped, default.seconds), (2, 2, 120));
    assert_eq!(default.capacity_msgs_per_s, Some(5000.0));
    assert_eq!((default.tally.expected, default.tally.lost_queue), (200, 20));
}
