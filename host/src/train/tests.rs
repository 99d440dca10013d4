#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use brokertuner_core::{Action, Settings};

/// What a scripted environment does in a step.
#[derive(Clone, Copy)]
enum Does {
    Reward(f64),
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
        let outcome = |reward, score, is_cut| StepOutcome {
            state: vec![self.steps as f32; STATE],
            reward,
            score,
            is_cut,
            row: ActionRow { applied: "none", ..ActionRow::default() },
        };
        match does {
            Does::Reward(reward) => Ok(outcome(reward, Some(reward), false)),
            Does::Fail => anyhow::bail!("the world ended"),
            Does::Panic => panic!("a fault in the environment"),
        }
    }

    fn scenario(&self) -> &str {
        "scripted"
    }

    fn effective(&self) -> Settings {
        Settings::UNWRITTEN
    }

    fn step_s(&self) -> f64 {
        1.0
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
        tuned: KnobSet::tuned_by_default(),
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
        let error = train_until(envs(&script), &config(dir.path()), agent(), || false).unwrap_err();
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
    let trained = train_until(envs(&script), &config(dir.path()), agent(), interrupted).unwrap();
    assert_eq!(trained.ended, Ended::Interrupted);
    newest_checkpoint(dir.path()).unwrap();
}
