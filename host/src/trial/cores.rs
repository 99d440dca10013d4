//! Which core the broker gets, and which ones are for everything else.

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, to the system.
const THIS: Pid = Pid::from_raw(0);

/// Numbers of cores, rising. In a container, or below `taskset`, they are not 0 to n.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cores(Vec<usize>);

impl Cores {
    /// Those that this thread may run on.
    pub(super) fn allowed() -> anyhow::Result<Cores> {
        let set = sched_getaffinity(THIS).context("cannot read the CPU affinity")?;
        Ok(Cores((0..CpuSet::count()).filter(|core| set.is_set(*core) == Ok(true)).collect()))
    }

    /// The last for the broker, the others for all else; `None` where there is only one.
    pub(super) fn split(&self) -> Option<(usize, Cores)> {
        match &self.0[..] {
            [others @ .., last] if !others.is_empty() => Some((*last, Cores(others.to_vec()))),
            _ => None,
        }
    }

    fn confine(&self) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        for core in &self.0 {
            set.set(*core).context("cannot name a core")?;
        }
        sched_setaffinity(THIS, &set)
            .context("cannot pin the load to its cores; run where sched_setaffinity is allowed")
    }
}

/// Gives the thread its cores back.
#[derive(Debug)]
pub(super) struct RestoreAffinity(Cores);

impl RestoreAffinity {
    /// Confines this thread, and whatever it starts, to `cores` until it gets `before` back.
    pub(super) fn confine_to(cores: &Cores, before: Cores) -> anyhow::Result<RestoreAffinity> {
        cores.confine()?;
        Ok(RestoreAffinity(before))
    }
}

impl Drop for RestoreAffinity {
    fn drop(&mut self) {
        // Fails only where the cores went away meanwhile; the thread then stays where it is.
        let _ = self.0.confine();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_broker_gets_the_last_of_the_cores_that_are_there() {
        assert_eq!(Cores(vec![4, 6, 9]).split(), Some((9, Cores(vec![4, 6]))));
        assert_eq!(Cores(vec![3]).split(), None);
        assert_eq!(Cores(vec![]).split(), None);
    }

    #[test]
    fn the_thread_is_confined_and_let_go_among_its_own_cores() {
        // A thread of its own: the affinity is the thread's.
        let thread = std::thread::spawn(|| {
            let allowed = Cores::allowed().unwrap();
            let last = Cores(vec![*allowed.0.last().unwrap()]);
            let restore = RestoreAffinity::confine_to(&last, allowed.clone()).unwrap();
            assert_eq!(Cores::allowed().unwrap(), last);
            assert_eq!(last.split(), None, "a thread on core n has no core 0");
            drop(restore);
            assert_eq!(Cores::allowed().unwrap(), allowed);
        });
        thread.join().unwrap();
    }
}
