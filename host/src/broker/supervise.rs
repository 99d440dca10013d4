//! What a service manager does for a broker: starts it again when it ends.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::lifecycle::{Lifecycle, Turn};
use super::process::Phase;

/// After so many starts that failed, or ends that were not clean, within [`WINDOW`] it is left
/// stopped: systemd's own limit.
pub(super) const UNCLEAN_ENDS_MAX: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);
/// systemd's `RestartSec`. A clean end, which is how a restart is asked for, is followed by a start
/// at once.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// How soon a request for a restart is seen while no broker runs.
const POLL: Duration = Duration::from_millis(10);

/// Watches over `life` until it is ended for good.
pub(super) fn start(life: Arc<Lifecycle>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("broker-supervisor".into()).spawn(move || {
        let mut supervisor = Supervisor { life: &life, unclean_ends: VecDeque::new() };
        while !supervisor.life.ended_for_good() {
            supervisor.wait();
            supervisor.act();
        }
    })
}

struct Supervisor<'a> {
    life: &'a Lifecycle,
    unclean_ends: VecDeque<Instant>,
}

impl Supervisor<'_> {
    /// Until the broker has ended or, where none runs, a request may have come.
    fn wait(&self) {
        if self.life.files.restart_request.exists() {
            return;
        }
        if self.life.phase() == Phase::Failed {
            thread::sleep(POLL);
        } else {
            self.life.wait_for_end();
        }
    }

    fn act(&mut self) {
        let life = self.life;
        let turn = life.turn();
        if life.ended_for_good() {
            return;
        }
        if turn.take_request() {
            self.unclean_ends.clear();
            turn.end(Signal::SIGTERM);
        } else if life.is_alive() || life.phase() == Phase::Failed {
            return;
        } else if !life.exit_status().is_some_and(|status| status.success()) {
            thread::sleep(RETRY_WAIT);
            self.note_unclean_end();
        }
        while !self.has_given_up(&turn) {
            match turn.start() {
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "The broker did not start.");
                    self.note_unclean_end();
                    thread::sleep(RETRY_WAIT);
                }
            }
        }
        turn.finish_request();
    }

    fn note_unclean_end(&mut self) {
        let now = Instant::now();
        self.unclean_ends.retain(|&then| now.duration_since(then) < WINDOW);
        self.unclean_ends.push_back(now);
    }

    fn has_given_up(&self, turn: &Turn<'_>) -> bool {
        let given_up =
            u32::try_from(self.unclean_ends.len()).unwrap_or(u32::MAX) >= UNCLEAN_ENDS_MAX;
        if given_up {
            turn.give_up();
        }
        given_up
    }
}
