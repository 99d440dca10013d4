//! `host train`: one agent, several environments, two logs, checkpoints.

mod origin;
#[cfg(test)]
mod tests;
mod worker;

use crate::ddpg::{Agent, Hyper, Keep, Losses, Transition};
use crate::env::{Environment, StepOutcome};
use crate::logs::{ActionRow, LOST, ProgressRow, TrainLogs, ValidationRow};
use crate::progress::Progress;
use anyhow::Context as _;
use brokertuner_core::{KNOB_COUNT, KnobSet, quantise_action};
use brokertuner_edge::error::told;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use worker::{Answer, Order, Workers};

pub use origin::Origin;

/// Checkpoints are named by the transitions observed.
const CHECKPOINT: &str = "checkpoint-";
const EXTENSION: &str = "safetensors";
/// How often the trainer looks at the clock and for an interrupt.
const ANSWER_PERIOD: Duration = Duration::from_millis(100);
/// Least time between two lines about steps: brokers take seconds a step, their twin milliseconds.
const TELL_PERIOD: Duration = Duration::from_secs(1);
/// Positions of the progress bar.
const PROGRESS_LENGTH: u64 = 1000;

/// The checkpoint in `dir` that saw the most.
///
/// # Errors
/// Where the folder cannot be read or holds none.
pub fn newest_checkpoint(dir: &Path) -> anyhow::Result<PathBuf> {
    checkpoints(dir)?.pop().with_context(|| {
        format!("{} holds no checkpoint; train without --resume first", dir.display())
    })
}

/// Refuses a folder that holds the checkpoints of another run: the two would mix.
///
/// # Errors
/// Where it holds one, or cannot be read.
pub fn refuse_checkpoints(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let Some(newest) = checkpoints(dir)?.pop() else { return Ok(()) };
    anyhow::bail!(
        "{} is of an earlier run; give --resume to go on with it, or another --out",
        newest.display()
    )
}

/// The checkpoints in `dir`, the one that saw the most last.
fn checkpoints(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read {}; choose another --out", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(CHECKPOINT) && name.ends_with(EXTENSION)
        })
        .collect();
    // Zero-padded numbers: the order of names is the order of numbers.
    found.sort();
    Ok(found)
}

/// How long a run is, and where it leaves its files.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// Every hyperparameter of the agent.
    pub hyper: Hyper,
    /// Folder of the logs, checkpoints and the final agent.
    pub out: PathBuf,
    /// Environment steps after which the run ends, of all environments together and with those
    /// that a resumed run has taken already.
    pub steps: u64,
    /// Wall-clock time after which the run ends; a resumed run has it anew.
    pub duration: Option<Duration>,
    /// Steps after which an episode ends.
    pub episode_steps: u64,
    /// Steps between checkpoints.
    pub checkpoint_steps: u64,
    /// Options that the policy moves; the others' outputs are held at 0 so that nothing is learnt
    /// of them.
    pub tuned: KnobSet,
    /// Go on from the newest checkpoint in `out`.
    pub resume: bool,
}

/// Judges an agent now and then, on loads that it does not learn from: the best one is the result.
pub struct Validation<'a> {
    /// Steps between two looks.
    pub every_steps: u64,
    /// How good the policy is; more is better.
    pub score: &'a (dyn Fn(&Agent) -> anyhow::Result<f64> + Sync),
}

impl std::fmt::Debug for Validation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validation").field("every_steps", &self.every_steps).finish_non_exhaustive()
    }
}

/// The best agent so far by validation.
#[derive(Clone, Debug)]
struct Best {
    agent: Agent,
    score: f64,
    step: u64,
}

impl Best {
    /// The best agent of the run in `dir` that is gone on with; `None` where its file is gone.
    fn of_earlier_run(dir: &Path, row: ValidationRow) -> anyhow::Result<Option<Best>> {
        let path = best_path(dir);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Best { agent: Agent::load(&path)?, score: row.score, step: row.step }))
    }
}

/// Where the best agent is kept.
fn best_path(dir: &Path) -> PathBuf {
    dir.join(format!("best.{EXTENSION}"))
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All steps were taken.
    Steps,
    /// The time was up.
    Duration,
    /// Ctrl-C.
    Interrupted,
}

/// A finished run.
#[derive(Debug)]
pub struct Trained {
    /// The agent as it ended; with validation, as it was best.
    pub agent: Agent,
    /// Its validation score, and the steps that it had taken.
    pub validation: Option<(f64, u64)>,
    /// Steps taken, of all environments together.
    pub steps: u64,
    /// Episodes finished.
    pub episodes: u64,
    /// Mean score of the last quarter of the steps that have one; `None` where none has.
    pub score_mean_last_quarter: Option<f64>,
    /// Why it ended.
    pub ended: Ended,
}

/// What the trainer knows of an environment between its answers.
#[derive(Clone, Debug, Default)]
struct Seat {
    state: Vec<f32>,
    action: [f32; KNOB_COUNT],
    scenario: String,
    episode: u64,
    episode_steps: u64,
    episode_return: f64,
    episode_score_sum: f64,
    /// Steps that the sum is of.
    episode_scored: u64,
}

/// One training run.
struct Run<'a> {
    config: &'a TrainConfig,
    agent: Agent,
    logs: TrainLogs,
    seats: Vec<Seat>,
    started: Instant,
    /// Seconds that the run took before it was resumed.
    wall_s_before: f64,
    /// Steps that it took before.
    steps_before: u64,
    steps: u64,
    episodes_begun: u64,
    episodes: u64,
    losses: Vec<Losses>,
    scores: Vec<f64>,
    validation: Option<Validation<'a>>,
    /// Steps that had been taken at the last judgement.
    validated: Option<u64>,
    best: Option<Best>,
    /// When a step was last told of.
    told: Option<Instant>,
    /// Whether there is something that no checkpoint holds yet.
    has_learnt: bool,
    /// Whether the user wants the run to end.
    interrupted: fn() -> bool,
}

/// Trains in `envs` until the steps, the time or the patience are used up.
///
/// # Errors
/// A log or checkpoint that cannot be written, or an environment that cannot go on; the message
/// says which, and where the checkpoint of what was learnt until then lies.
pub fn train(
    envs: Vec<Box<dyn Environment>>,
    config: &TrainConfig,
    agent: Agent,
    validation: Option<Validation<'_>>,
) -> anyhow::Result<Trained> {
    train_until(envs, config, agent, validation, crate::broker::interrupted)
}

fn train_until(
    envs: Vec<Box<dyn Environment>>,
    config: &TrainConfig,
    mut agent: Agent,
    validation: Option<Validation<'_>>,
    interrupted: fn() -> bool,
) -> anyhow::Result<Trained> {
    std::fs::create_dir_all(&config.out)
        .with_context(|| format!("cannot create {}; choose another --out", config.out.display()))?;
    let (logs, mut reached) = TrainLogs::open(&config.out, config.resume)?;
    if config.resume {
        agent.begin_anew();
        // Where the logs were moved away, the checkpoint still knows.
        reached.steps = reached.steps.max(agent.observed());
    }
    anyhow::ensure!(
        reached.steps < config.steps,
        "the run in {} has taken {} steps already; give a larger --steps",
        config.out.display(),
        reached.steps
    );
    let best = match logs.best_validation()? {
        Some(row) => Best::of_earlier_run(&config.out, row)?,
        None => None,
    };
    let has_lessons = agent.updates() > 0 && !config.resume;
    let mut run = Run {
        config,
        agent,
        logs,
        seats: vec![Seat::default(); envs.len()],
        started: Instant::now(),
        wall_s_before: reached.wall_s,
        steps_before: reached.steps,
        steps: reached.steps,
        episodes_begun: reached.episodes_begun,
        episodes: reached.episodes,
        told: None,
        has_learnt: has_lessons,
        losses: Vec::new(),
        scores: Vec::new(),
        validation,
        validated: None,
        best,
        interrupted,
    };
    let workers = Workers::start(envs);
    let ended = run.drive(&workers);
    drop(workers);
    match ended {
        Ok(ended) => run.finish(ended),
        Err(error) => Err(run.keep(error)),
    }
}

impl Run<'_> {
    fn drive(&mut self, workers: &Workers) -> anyhow::Result<Ended> {
        if self.steps == 0 && self.agent.updates() > 0 {
            // It has learnt from lessons: perhaps nothing that follows is better.
            self.validate(true)?;
        }
        for env in 0..workers.len() {
            self.begin_episode(workers, env);
        }
        let progress = Progress::new(PROGRESS_LENGTH);
        loop {
            self.show(&progress);
            if (self.interrupted)() {
                return Ok(Ended::Interrupted);
            }
            if self.config.duration.is_some_and(|limit| self.started.elapsed() >= limit) {
                return Ok(Ended::Duration);
            }
            let Some((env, answer)) = workers.receive(ANSWER_PERIOD)? else { continue };
            match answer {
                // The same Ctrl-C ends the environment's step, and its answer may come first.
                Answer::Failed(_) if (self.interrupted)() => return Ok(Ended::Interrupted),
                Answer::Failed(error) => {
                    return Err(error.context(format!("environment {env} cannot go on")));
                }
                Answer::Started { state, scenario } => {
                    self.seats[env].state = state;
                    self.seats[env].scenario = scenario;
                    self.act(workers, env);
                }
                Answer::Stepped(outcome) => {
                    if self.take(workers, env, *outcome)? {
                        return Ok(Ended::Steps);
                    }
                }
            }
        }
    }

    /// Seconds since the start of the run, as the logs count them.
    fn wall_s(&self) -> f64 {
        self.wall_s_before + self.started.elapsed().as_secs_f64()
    }

    fn begin_episode(&mut self, workers: &Workers, env: usize) {
        let episode = self.episodes_begun;
        self.episodes_begun += 1;
        self.seats[env] = Seat { episode, ..Seat::default() };
        workers.send(env, Order::Reset(episode));
    }

    /// 1. Predict, with noise; the environment decodes, applies and waits.
    fn act(&mut self, workers: &Workers, env: usize) {
        let mut output = [0.0; KNOB_COUNT];
        let noisy = self.agent.act_noisy(env, &self.seats[env].state);
        output.copy_from_slice(&noisy);
        // What is held stays as it is, as far as the state ends with what is in force.
        let state = &self.seats[env].state;
        let in_force = state.len().checked_sub(KNOB_COUNT).map(|start| &state[start..]);
        for (index, knob) in brokertuner_core::Knob::ALL.into_iter().enumerate() {
            if !self.config.tuned.contains(knob) {
                output[index] = in_force.map_or(0.0, |in_force| in_force[index]);
            }
        }
        let action = quantise_action(&output);
        // The critic learns of what was done: the grid's point, not the output before rounding.
        self.seats[env].action = action.map(|raw| f32::from(raw) / 127.0);
        workers.send(env, Order::Step(action));
    }

    /// 2. Remember, 3. learn, 4. log, 5. go on. Answers whether the run is over.
    fn take(
        &mut self,
        workers: &Workers,
        env: usize,
        outcome: StepOutcome,
    ) -> anyhow::Result<bool> {
        self.steps += 1;
        self.has_learnt = true;
        self.remember(env, &outcome)?;
        for _ in 0..self.config.hyper.updates_per_step {
            if let Some(losses) = self.agent.update() {
                self.losses.push(losses);
            }
        }
        let row = ActionRow {
            wall_s: self.wall_s(),
            step: self.steps,
            env,
            episode: self.seats[env].episode,
            ..outcome.row
        };
        self.logs.action(&row)?;
        self.report(&row);
        if self.steps.is_multiple_of(self.config.checkpoint_steps) {
            self.checkpoint()?;
        }
        self.validate(false)?;
        let is_over = self.seats[env].episode_steps >= self.config.episode_steps;
        if is_over || outcome.is_cut {
            self.end_episode(env)?;
        }
        if self.steps >= self.config.steps {
            return Ok(true);
        }
        if is_over {
            self.begin_episode(workers, env);
        } else {
            self.act(workers, env);
        }
        Ok(false)
    }

    fn remember(&mut self, env: usize, outcome: &StepOutcome) -> anyhow::Result<()> {
        let seat = &mut self.seats[env];
        seat.episode_steps += 1;
        seat.episode_return += outcome.reward.unwrap_or(0.0);
        if let Some(score) = outcome.score {
            seat.episode_score_sum += score;
            seat.episode_scored += 1;
            self.scores.push(score);
        }
        let Some(reward) = outcome.reward else {
            // Rewards on either side of the gap do not add up to a return.
            self.agent.cut(env, &seat.state)?;
            seat.state.clone_from(&outcome.state);
            return Ok(());
        };
        #[allow(
            clippy::cast_possible_truncation,
            reason = "rewards are of order one; f32 is what the nets take"
        )]
        let reward = reward as f32;
        let truncated = outcome.is_cut || seat.episode_steps >= self.config.episode_steps;
        self.agent.observe(&Transition {
            lane: env,
            state: &seat.state,
            action: &seat.action,
            reward,
            next_state: &outcome.state,
            // A load goes on for ever: an episode's end is a cut, not a terminal state. A new
            // broker's state is nothing that the action led to, and must not speak for it.
            done: outcome.row.applied == LOST,
            truncated,
        })?;
        seat.state.clone_from(&outcome.state);
        Ok(())
    }

    fn end_episode(&mut self, env: usize) -> anyhow::Result<()> {
        self.episodes += 1;
        let row = self.progress_row(Some(env));
        self.logs.progress(&row)?;
        let seat = &mut self.seats[env];
        (seat.episode_steps, seat.episode_return) = (0, 0.0);
        (seat.episode_scored, seat.episode_score_sum) = (0, 0.0);
        Ok(())
    }

    fn progress_row(&mut self, env: Option<usize>) -> ProgressRow {
        let losses = std::mem::take(&mut self.losses);
        let mean_of = |of: fn(&Losses) -> Option<f32>| {
            let values: Vec<f64> = losses.iter().filter_map(of).map(f64::from).collect();
            mean(&values).unwrap_or(0.0)
        };
        let seat = env.map(|env| &self.seats[env]).cloned().unwrap_or_default();
        ProgressRow {
            step: self.steps,
            wall_s: self.wall_s(),
            episode: self.episodes,
            env,
            scenario: seat.scenario,
            episode_steps: seat.episode_steps,
            episode_return: seat.episode_return,
            episode_score_mean: (seat.episode_scored > 0)
                .then(|| seat.episode_score_sum / seat.episode_scored as f64),
            critic_loss: mean_of(|loss| Some(loss.critic)),
            actor_loss: mean_of(|loss| loss.actor.map(|actor| actor.loss)),
            q_mean: mean_of(|loss| Some(loss.q_mean)),
            noise_sigma: self.config.hyper.sigma(self.agent.observed()),
            replay_count: self.agent.replay_count(),
            updates: self.agent.updates(),
        }
    }

    /// How far the run is, by whichever of steps and time ends it first.
    fn show(&self, progress: &Progress) {
        let by_steps = (self.steps - self.steps_before) as f64
            / (self.config.steps - self.steps_before).max(1) as f64;
        let by_time = self.config.duration.map_or(0.0, |limit| {
            self.started.elapsed().as_secs_f64() / limit.as_secs_f64().max(f64::MIN_POSITIVE)
        });
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates, and the length is small"
        )]
        let position = (by_steps.max(by_time).min(1.0) * PROGRESS_LENGTH as f64) as u64;
        progress.set(position, self.so_far());
    }

    /// Steps taken, of those or of the time that the run has.
    fn so_far(&self) -> String {
        self.config.duration.map_or_else(
            || format!("{} of {} steps", self.steps, self.config.steps),
            |limit| {
                let elapsed_s = self.started.elapsed().as_secs();
                format!("{elapsed_s} of {} s, step {}", limit.as_secs(), self.steps)
            },
        )
    }

    /// A line for people, of one step a second at the most.
    fn report(&mut self, row: &ActionRow) {
        if self.told.is_some_and(|told| told.elapsed() < TELL_PERIOD) {
            return;
        }
        self.told = Some(Instant::now());
        let of = self.so_far();
        tracing::info!(
            env = row.env,
            scenario = row.scenario,
            applied = row.applied,
            score = row.score.map(|score| format!("{score:.3}")),
            reward = row.reward.map(|reward| format!("{reward:.3}")),
            "{of}"
        );
    }

    /// Judges the policy when its time has come, or at the end.
    fn validate(&mut self, is_end: bool) -> anyhow::Result<()> {
        let Some(validation) = &self.validation else { return Ok(()) };
        let is_due = self.steps.is_multiple_of(validation.every_steps);
        // The user waits; and nothing was learnt since the last one.
        let is_idle = (self.interrupted)() || self.validated == Some(self.steps);
        if is_end && is_idle || !is_due && !is_end {
            return Ok(());
        }
        self.validated = Some(self.steps);
        let score = (validation.score)(&self.agent)?;
        let (step, wall_s) = (self.steps, self.wall_s());
        self.logs.validation(&ValidationRow { step, wall_s, score })?;
        tracing::info!(step, score = format!("{score:.4}"), "validated");
        if self.best.as_ref().is_none_or(|best| score > best.score) {
            self.agent.save(&best_path(&self.config.out), Keep::Lessons)?;
            self.best = Some(Best { agent: self.agent.clone(), score, step });
        }
        Ok(())
    }

    fn checkpoint(&self) -> anyhow::Result<PathBuf> {
        let path =
            self.config.out.join(format!("{CHECKPOINT}{:08}.{EXTENSION}", self.agent.observed()));
        self.agent.save(&path, Keep::Everything)?;
        Ok(path)
    }

    /// Writes down what was learnt before the run ends with `error`.
    fn keep(&self, error: anyhow::Error) -> anyhow::Error {
        if !self.has_learnt {
            return error;
        }
        match self.checkpoint() {
            Ok(path) => error.context(format!(
                "training ended early; {} holds what was learnt, --resume goes on from it",
                path.display()
            )),
            Err(lost) => {
                error.context(format!("what was learnt is lost as well ({})", told(lost.as_ref())))
            }
        }
    }

    fn finish(mut self, ended: Ended) -> anyhow::Result<Trained> {
        let row = self.progress_row(None);
        self.logs.progress(&row)?;
        self.checkpoint()?;
        self.validate(true)?;
        let validation = self.best.as_ref().map(|best| (best.score, best.step));
        let last = &self.scores[self.scores.len() - self.scores.len().div_ceil(4)..];
        Ok(Trained {
            steps: self.steps,
            episodes: self.episodes,
            score_mean_last_quarter: mean(last),
            agent: self.best.map_or(self.agent, |best| best.agent),
            validation,
            ended,
        })
    }
}

/// The mean; `None` of nothing.
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
