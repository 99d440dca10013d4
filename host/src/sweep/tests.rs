#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::ddpg::Hyper;
use crate::env::broker::site_values;
use crate::reward::DeadlinePrices;
use std::path::Path;

fn config() -> SweepConfig {
    SweepConfig {
        source: Source::Sites(1 << 40),
        calibrations: vec![Calibration::default()],
        capacity_msgs_per_s: None,
        schema: Schema::Edge,
        reward: RewardKind::Deadline(DeadlinePrices::default()),
        tuned: crate::env::trained(),
        library_pool: 3,
        library_sites: 2,
        rounds: 1,
        sites: 6,
        tries: 4,
        updates: 20,
        seed: 1,
    }
}

/// A file of trials in a folder that goes with it.
fn no_trials() -> (tempfile::TempDir, TrialFile) {
    let folder = tempfile::tempdir().unwrap();
    let file = TrialFile::open(&folder.path().join("trials"), "").unwrap();
    (folder, file)
}

#[test]
fn the_cover_takes_what_adds_most() {
    // The second column is the best alone, the third adds nothing to it, the first does.
    let table = vec![vec![0.9, 0.5, 0.4], vec![0.0, 0.8, 0.8], vec![0.0, 0.8, 0.7]];
    assert_eq!(library::cover(&table, 2), [1, 0]);
    assert_eq!(library::cover(&table, 9).len(), 3);
    assert!(library::cover(&[], 3).is_empty());
}

#[test]
fn a_site_begins_on_the_defaults_and_only_tuned_options_move() {
    let config = config();
    let library = [[1.0; KNOB_COUNT]];
    let mut seen = 0;
    for index in 0..6 {
        let mut rng = config.rng(index);
        let site = config.site(index, &mut rng).unwrap();
        assert_eq!(site.scenario.phases.len(), 1);
        let tried = try_site(&config, &site, &library, None, &mut rng);
        for one in &tried {
            seen += 1;
            assert!(one.states.len() <= STATES_MAX && !one.states.is_empty());
            assert!(one.reward <= 1.0 && one.output.iter().all(|value| value.abs() <= 1.0));
            let held = Settings::UNWRITTEN.encode(&site_values(&site.scenario));
            let moved =
                |knob: Knob| one.output[knob as usize] != f32::from(held[knob as usize]) / 127.0;
            assert!(Knob::ALL.into_iter().all(|knob| config.tuned.contains(knob) || !moved(knob)));
        }
    }
    assert!(seen >= 6, "{seen} trials");
}

#[test]
fn a_sweep_repeats_itself_and_teaches() {
    let run = || {
        let mut agent = Agent::new(
            Hyper { hidden: [8, 8], batch: 16, ..Hyper::twin() },
            Schema::Edge.len(),
            KNOB_COUNT,
            3,
        )
        .unwrap();
        let mut told = Vec::new();
        let score = &|agent: &Agent| Ok(f64::from(agent.act(&[0.5; Schema::Edge.len()])[0]));
        let after = &mut |round: u32, swept: &Swept, score: f64| {
            told.push((round, *swept, score));
            Ok(())
        };
        let config = SweepConfig { rounds: 2, ..config() };
        sweep(&mut agent, &config, &no_trials().1, || false, score, after).unwrap();
        (told, agent.updates(), agent.act(&[0.5; Schema::Edge.len()]))
    };
    let (told, updates, action) = run();
    // The best policy that was looked at is what remains.
    assert_eq!(told.last().unwrap().2, f64::from(action[0]));
    assert_eq!(told.len(), 2);
    assert!((20 + 10..=40).contains(&updates), "{updates}");
    assert!(told.iter().all(|(_, swept, _)| swept.best_mean >= swept.default_mean));
    assert_eq!((told, updates, action), run());
}

#[test]
fn an_interrupted_sweep_ends() {
    let mut agent = Agent::new(Hyper::twin(), Schema::Edge.len(), KNOB_COUNT, 3).unwrap();
    let after = &mut |_: u32, _: &Swept, _: f64| panic!("no round was finished");
    sweep(&mut agent, &config(), &no_trials().1, || true, &|_| Ok(0.0), after).unwrap();
    assert_eq!(agent.updates(), 0);
}

#[test]
fn an_interrupted_sweep_goes_on_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trials");
    let config = SweepConfig { rounds: 2, ..config() };
    let run = |path: &Path| {
        let hyper = Hyper { hidden: [8, 8], critic_hidden: None, batch: 16, ..Hyper::twin() };
        let mut agent = Agent::new(hyper, Schema::Edge.len(), KNOB_COUNT, 3).unwrap();
        let mut told = Vec::new();
        let after = &mut |_: u32, swept: &Swept, _: f64| {
            told.push(*swept);
            Ok(())
        };
        let file = TrialFile::open(path, "run").unwrap();
        sweep(&mut agent, &config, &file, || false, &|_| Ok(0.0), after).unwrap();
        (told, agent.act(&[0.5; Schema::Edge.len()]))
    };
    let whole = run(&path);
    let bytes = std::fs::read(&path).unwrap();
    // Killed after any byte: between parts, within one, before the first.
    for kept in [0, 3, 10, bytes.len() / 3, bytes.len() - 1, bytes.len()] {
        std::fs::write(&path, &bytes[..kept]).unwrap();
        assert_eq!(run(&path), whole, "{kept} of {} bytes", bytes.len());
    }
    let other = TrialFile::open(&path, "another run").unwrap_err().to_string();
    assert!(other.contains("of other sites, options or program"), "{other}");
    std::fs::write(&path, [0xff; 64]).unwrap();
    let damaged = TrialFile::open(&path, "run").unwrap_err().to_string();
    assert!(damaged.contains("remove it"), "{damaged}");
}

#[test]
fn where_no_policy_is_better_the_last_one_stays() {
    let hyper = Hyper { hidden: [8, 8], critic_hidden: None, batch: 16, ..Hyper::twin() };
    let mut agent = Agent::new(hyper, Schema::Edge.len(), KNOB_COUNT, 3).unwrap();
    let after = &mut |_: u32, _: &Swept, _: f64| Ok(());
    sweep(&mut agent, &config(), &no_trials().1, || false, &|_| Ok(0.0), after).unwrap();
    assert_eq!(agent.updates(), config().updates);
}

#[test]
fn looks_are_spread_over_the_second_half() {
    let looks = |all, count| -> Vec<u64> {
        (1..=all).filter(|&updates| is_look(updates, all, count)).collect()
    };
    assert_eq!(looks(20, 1), [20]);
    assert_eq!(looks(20, 5), [12, 14, 16, 18, 20]);
    assert_eq!(looks(1, 5), [1]);
    assert_eq!(looks(3, 5), [1, 2, 3]);
}

/// Bulk for a slow reader beside telemetry that nothing but memory hinders.
fn bulk_site(rss_limit_mib: u32) -> Site {
    let text = format!(
        "schema = 1\nname = \"t\"\nsummary = \"t\"\ndeadline_ms = 2000\nrss_limit_mib = {rss_limit_mib}\n\
        [[phase]]\nname = \"p\"\nduration_s = 30\n\
        [[phase.publish]]\nname = \"b\"\nclients = 4\nrate_hz = 4.0\nqos = 1\npayload_bytes = 60000\n\
        topic = \"bulk/{{client}}\"\n\
        [[phase.publish]]\nname = \"s\"\nclients = 4\nrate_hz = 4.0\nqos = 0\npayload_bytes = 60\n\
        topic = \"site/{{client}}\"\n\
        [[phase.subscribe]]\nname = \"near\"\nclients = 1\nfilter = \"site/#\"\nqos = 0\n\
        [[phase.subscribe]]\nname = \"archive\"\nclients = 1\nfilter = \"bulk/#\"\nqos = 1\n\
        ack_delay_ms = 600\nprotocol = 5\nreceive_maximum = 5\n"
    );
    let scenario = Arc::new(Scenario::parse(&text, "t").unwrap());
    Site { whole: Arc::clone(&scenario), scenario, calibration: Calibration::default() }
}

/// A queue that fills in a minute and a half is over the limit for good, though a trial's first 30
/// s do not show it.
#[test]
fn a_trial_is_scored_when_the_memory_is_steady() {
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let tried = bulk_site(48).play(&config(), None, false, &mut rng).unwrap();
    assert!(tried.reward < 0.1, "{}", tried.reward);
    assert!(tried.is_loaded);
}

/// What waits for a clean session weighs on the broker that was restarted with it.
#[test]
fn a_restart_carries_on_with_what_waited_under_the_defaults() {
    let mut output = [0.0; KNOB_COUNT];
    output[Knob::QueuedMessagesMax as usize] = -1.0;
    let site = bulk_site(14);
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let mut reward = |enters| site.play(&config(), Some(output), enters, &mut rng).unwrap().reward;
    let (from_the_start, entered) = (reward(false), reward(true));
    assert!(entered < from_the_start - 0.2, "{entered} {from_the_start}");
}

/// A gateway has one deadline: that of the phase which is hardest.
#[test]
fn a_phase_is_seen_with_the_deadline_of_its_whole_load() {
    let config = config();
    let mut shorter = 0;
    for index in 0..40 {
        let whole = config.source.scenario(index).unwrap();
        let site = config.site(index, &mut config.rng(index)).unwrap();
        let deadline_ms = |eyes: &Eyes| eyes.gateway.view(&Metrics::default()).targets.deadline_ms;
        let seen_ms = deadline_ms(&Eyes::new(&site, Schema::Edge));
        assert_eq!(u128::from(seen_ms), whole.deadline_min().as_millis(), "{index}");
        shorter += usize::from(whole.deadline_min() < site.scenario.deadline_min());
    }
    assert!(shorter > 0, "no phase has a longer one");
}
