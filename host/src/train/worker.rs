//! One thread per environment: the trainer sends what to do, the thread answers when it is done.

use crate::env::{Environment, StepOutcome};
use anyhow::anyhow;
use brokertuner_core::Action;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;

/// What the trainer asks of an environment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Build the world of that episode.
    Reset(u64),
    /// One step.
    Step(Action),
}

/// What an environment answers.
#[derive(Debug)]
pub(super) enum Answer {
    /// First state of an episode, and the load's name.
    Started {
        /// The state.
        state: Vec<f32>,
        /// The load of the episode.
        scenario: String,
    },
    /// A step is done.
    Stepped(Box<StepOutcome>),
    /// The environment cannot go on.
    Failed(anyhow::Error),
}

/// The threads of all environments. Dropping it ends them, each within the step that it is in.
pub(super) struct Workers {
    orders: Vec<Sender<Order>>,
    answers: Receiver<(usize, Answer)>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts a thread for each environment.
    pub(super) fn start(envs: Vec<Box<dyn Environment>>) -> Workers {
        let (answer, answers) = channel();
        let (mut orders, mut threads) = (Vec::new(), Vec::new());
        for (index, env) in envs.into_iter().enumerate() {
            let (order, inbox) = channel();
            let answer = answer.clone();
            orders.push(order);
            threads.push(std::thread::spawn(move || serve(index, env, &inbox, &answer)));
        }
        Workers { orders, answers, threads }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.orders.len()
    }

    /// Sends an order; an environment that has ended has said why already.
    pub(super) fn send(&self, env: usize, order: Order) {
        let _ = self.orders[env].send(order);
    }

    /// The next answer, if one comes within `timeout`.
    ///
    /// # Errors
    /// Where no environment is left that could answer.
    pub(super) fn receive(
        &self,
        timeout: std::time::Duration,
    ) -> anyhow::Result<Option<(usize, Answer)>> {
        match self.answers.recv_timeout(timeout) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("every environment has ended")),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // A closed channel is the signal to end.
        self.orders.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an environment's thread panicked");
            }
        }
    }
}

fn serve(
    index: usize,
    mut env: Box<dyn Environment>,
    inbox: &Receiver<Order>,
    answer: &Sender<(usize, Answer)>,
) {
    while let Ok(order) = inbox.recv() {
        // The environment is dropped after a panic, so that nobody sees what it left half done.
        let result = catch_unwind(AssertUnwindSafe(|| follow(env.as_mut(), order)));
        let panicked = result.is_err();
        let result =
            result.unwrap_or_else(|payload| Err(anyhow!("panicked: {}", said(payload.as_ref()))));
        let answered = answer.send((index, result.unwrap_or_else(Answer::Failed)));
        if answered.is_err() || panicked {
            return;
        }
    }
}

fn follow(env: &mut dyn Environment, order: Order) -> anyhow::Result<Answer> {
    match order {
        Order::Reset(episode) => {
            let state = env.reset(episode)?;
            Ok(Answer::Started { state, scenario: env.scenario().to_owned() })
        }
        Order::Step(action) => Ok(Answer::Stepped(Box::new(env.step(&action)?))),
    }
}

/// What a panic said.
fn said(payload: &(dyn Any + Send)) -> &str {
    let literal = payload.downcast_ref::<&str>().copied();
    let formatted = || payload.downcast_ref::<String>().map(String::as_str);
    literal.or_else(formatted).unwrap_or("without a word")
}
