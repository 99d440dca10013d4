#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use brokertuner_core::Action;

/// What a scripted environment does in a step.
#[derive(Clone, Copy)]
enum Does {
    Reward(f64),
    /// Nothing can be said of the step.
    Void,
    /// The broker ended.
    Lose,
    Fail,
    Panic,
}

/// An environment that follows a script, and does its last line for ever.
struct Scripted {
    script: Vec<Does>,
    steps: usize,
}

impl Environment for Scripted {
    fn reset(&mut self, _: u64) -> anyhow::Result<Vec<f32>> {
        Ok(vec![0.0; STATE])
    }

    fn step(&mut self, _: &Action) -> anyhow::Result<StepOutcome> {
        let does = self.script[self.steps.min(self.script.len() - 1)];
        self.steps += 1;
        let outcome = |reward: Option<f64>, is_cut| {
            let score = reward.map(|reward| reward.max(0.0));
            let applied = if is_cut { LOST } else { "none" };
            let row = ActionRow { applied, score, reward, ..ActionRow::default() };
            let state = vec![self.steps as f32; STATE];
            StepOutcome { state, reward, score, is_cut, row }
        };
        match does {
            Does::Reward(reward) => Ok(outcome(Some(reward), false)),
            Does::Void => Ok(outcome(None, false)),
            Does::Lose => Ok(outcome(Some(-1.0), true)),
            Does::Fail => anyhow::bail!("the world ended"),
            Does::Panic => panic!("a fault in the environment"),
        }
    }

    fn scenario(&self) -> &str {
        "scripted"
    }
}

const STATE: usize = 3;

fn hyper() -> Hyper {
    Hyper { warm_up_steps: 2, batch: 2, hidden: [4, 4], ..Hyper::default() }
}

fn config(out: &Path) -> TrainConfig {
    TrainConfig {
        hyper: hyper(),
        out: out.to_owned(),
        steps: 10,
        duration: None,
        episode_steps: 4,
        checkpoint_steps: 100,
        tuned: crate::env::trained(),
        resume: false,
    }
}

fn agent() -> Agent {
    Agent::new(hyper(), STATE, KNOB_COUNT, 1).unwrap()
}

fn envs(script: &[Does]) -> Vec<Box<dyn Environment>> {
    vec![Box::new(Scripted { script: script.to_vec(), steps: 0 })]
}

#[test]
fn what_was_learnt_outlives_an_environment_that_fails_or_panics() {
    for (end, words) in [(Does::Fail, "the world ended"), (Does::Panic, "a fault in the env")] {
        let dir = tempfile::tempdir().unwrap();
        let script = [Does::Reward(0.5), Does::Reward(0.5), end];
        let error =
            train_until(envs(&script), &config(dir.path()), agent(), None, || false).unwrap_err();
        let message = format!("{error:#}");
        for word in [words, "environment 0 cannot go on", "checkpoint-00000002", "--resume"] {
            assert!(message.contains(word), "{message}");
        }
        let kept = Agent::load(&newest_checkpoint(dir.path()).unwrap()).unwrap();
        assert_eq!(kept.observed(), 2);
    }
}

/// An environment answers the interrupt with a failure before the trainer has looked for one.
#[test]
fn an_interrupt_that_the_environment_sees_first_is_no_failure() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static LOOKS: AtomicU32 = AtomicU32::new(0);
    let dir = tempfile::tempdir().unwrap();
    // Reset, two steps and the failing one: the trainer looks before each answer, and is told of
    // the interrupt only when it looks again because of the failure.
    let interrupted = || LOOKS.fetch_add(1, Ordering::SeqCst) >= 4;
    let script = [Does::Reward(0.5), Does::Reward(0.5), Does::Fail];
    let trained =
        train_until(envs(&script), &config(dir.path()), agent(), None, interrupted).unwrap();
    assert_eq!(trained.ended, Ended::Interrupted);
    newest_checkpoint(dir.path()).unwrap();
}

#[test]
fn a_step_without_a_score_is_not_learnt_as_a_total_loss() {
    let dir = tempfile::tempdir().unwrap();
    let script = [Does::Reward(0.5), Does::Void, Does::Reward(0.5), Does::Void];
    let config = TrainConfig { steps: 4, ..config(dir.path()) };
    let hyper = Hyper { n_step: 3, ..hyper() };
    let agent = Agent::new(hyper, STATE, KNOB_COUNT, 1).unwrap();
    let trained = train_until(envs(&script), &config, agent, None, || false).unwrap();
    assert_eq!((trained.steps, trained.agent.observed()), (4, 2));
    let rewards: Vec<(f32, bool)> = trained.agent.replay_outcomes().collect();
    assert_eq!(rewards, [(0.5, false), (0.5, false)], "no return reaches over the gap");
    let log = std::fs::read_to_string(dir.path().join("action_throughput_log.csv")).unwrap();
    let is_empty = |line: &str| line.split(',').skip(7).take(2).all(str::is_empty);
    assert_eq!(log.lines().filter(|line| is_empty(line)).count(), 2, "{log}");
    let progress = std::fs::read_to_string(dir.path().join("progress.csv")).unwrap();
    let row = progress.lines().nth(1).unwrap();
    assert_eq!(row.split(',').nth(7), Some("0.5"), "{row}");
    assert_eq!(trained.score_mean_last_quarter, Some(0.5));
}

#[test]
fn a_run_without_any_score_has_no_mean() {
    let dir = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: 2, ..config(dir.path()) };
    let trained = train_until(envs(&[Does::Void]), &config, agent(), None, || false).unwrap();
    assert_eq!(trained.score_mean_last_quarter, None);
}

#[test]
fn a_lost_broker_ends_the_return() {
    let dir = tempfile::tempdir().unwrap();
    let script = [Does::Reward(0.5), Does::Lose];
    let config = TrainConfig { steps: 2, ..config(dir.path()) };
    let trained = train_until(envs(&script), &config, agent(), None, || false).unwrap();
    let rewards: Vec<(f32, bool)> = trained.agent.replay_outcomes().collect();
    assert_eq!(rewards, [(0.5, false), (-1.0, true)]);
}

#[test]
fn a_resumed_run_counts_on_and_does_not_mix_its_returns_with_the_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let hyper = Hyper { n_step: 3, ..hyper() };
    let first = TrainConfig { steps: 6, hyper: hyper.clone(), ..config(dir.path()) };
    let fresh = Agent::new(hyper, STATE, KNOB_COUNT, 1).unwrap();
    train_until(envs(&[Does::Reward(0.5)]), &first, fresh, None, || false).unwrap();
    let load = || Agent::load(&newest_checkpoint(dir.path()).unwrap()).unwrap();
    assert_eq!(load().replay_count(), 4, "two returns are still being collected");

    let again = TrainConfig { steps: 8, resume: true, ..first.clone() };
    let script = [Does::Reward(-1.0)];
    let trained = train_until(envs(&script), &again, load(), None, || false).unwrap();
    assert_eq!((trained.steps, trained.agent.observed()), (8, 8));
    let sums: Vec<f32> = trained.agent.replay_outcomes().map(|(reward, _)| reward).collect();
    assert_eq!(sums.len(), 4, "{sums:?}");
    let log = std::fs::read_to_string(dir.path().join("action_throughput_log.csv")).unwrap();
    let column = |index: usize| -> Vec<&str> {
        log.lines().skip(1).map(|line| line.split(',').nth(index).unwrap()).collect()
    };
    assert_eq!(column(1), ["1", "2", "3", "4", "5", "6", "7", "8"]);
    assert_eq!(column(3), ["0", "0", "0", "0", "1", "1", "2", "2"]);
    let seconds: Vec<f64> = column(0).iter().map(|text| text.parse().unwrap()).collect();
    assert!(seconds.is_sorted(), "{seconds:?}");

    let error = train_until(envs(&script), &again, load(), None, || false).unwrap_err().to_string();
    assert!(error.contains("8 steps already; give a larger --steps"), "{error}");
}

#[test]
fn the_best_of_an_earlier_run_stays_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let first = TrainConfig { steps: 4, ..config(dir.path()) };
    let judged = |score: f64| move |_: &Agent| anyhow::Ok(score);
    let (high, low) = (judged(0.9), judged(0.2));
    let by = |score| Some(Validation { every_steps: 2, score });
    let script = [Does::Reward(0.5)];
    let trained = train_until(envs(&script), &first, agent(), by(&high), || false).unwrap();
    assert_eq!(trained.validation, Some((0.9, 2)), "of equals the first");
    let rows = |dir: &Path| std::fs::read_to_string(dir.join("validation.csv")).unwrap();
    assert_eq!(rows(dir.path()).lines().count(), 1 + 2, "no step is judged twice");
    let again = TrainConfig { steps: 8, resume: true, ..first };
    let load = Agent::load(&newest_checkpoint(dir.path()).unwrap()).unwrap();
    let trained = train_until(envs(&script), &again, load, by(&low), || false).unwrap();
    assert_eq!((trained.validation, trained.agent.observed()), (Some((0.9, 2)), 2));
}

#[test]
fn another_runs_checkpoints_are_not_mixed_in() {
    let dir = tempfile::tempdir().unwrap();
    refuse_checkpoints(dir.path()).unwrap();
    refuse_checkpoints(&dir.path().join("missing")).unwrap();
    agent().save(&dir.path().join("checkpoint-00000000.safetensors"), Keep::Networks).unwrap();
    let error = refuse_checkpoints(dir.path()).unwrap_err().to_string();
    for word in ["checkpoint-00000000.safetensors", "--resume", "another --out"] {
        assert!(error.contains(word), "{error}");
    }
}
