//! A broker and a disk in memory, with faults: a seeded share of failing operations, or death at
//! the n-th.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use brokertuner_core::knobs::Apply;
use brokertuner_core::{Knob, Settings, render};

use super::{Applier, Paths};
use crate::connack::{Connack, ConnackError};
use crate::control::{Broker, ControlError};
use crate::fs::Files;
use crate::mqtt::Protocol;
use crate::pid::{PidError, ProcessId};

pub(super) const DROP_IN: &str = "/etc/mosquitto/conf.d/zz-brokertuner.conf";

/// What the broker does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// It does not start with an inflight window above 2000, as with a refused configuration.
    RefusesWideWindows,
    /// It does not start with any inflight window, so not with settings that were good once either.
    RefusesWindows,
    /// It does not start at all.
    NeverStarts,
    /// A reload leaves it unable to answer, as `memory_limit` below the heap does.
    DisabledByReload,
    /// Another file overrides the inflight window.
    Overridden,
    /// The restart command does nothing.
    RestartIgnored,
    /// The reload command fails.
    ReloadFails,
    /// The state is not saved.
    NotSaved,
    /// It runs on, and has no room for one more connection.
    Full,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) fault: Fault,
    /// Operations so far.
    pub(super) operations: u64,
    /// From this operation on, the agent is dead: nothing it does happens.
    pub(super) dies_at: Option<u64>,
    /// One in this many operations fails, by a generator from `seed`.
    pub(super) fails_one_in: Option<u64>,
    pub(super) seed: u64,
    /// A directory with no room left.
    pub(super) full: Option<&'static str>,
    pub(super) pid: i32,
    pub(super) running: bool,
    pub(super) disabled: bool,
    pub(super) effective: Settings,
    pub(super) restarts: u32,
    /// Whatever the agent has done or asked so far.
    pub(super) ticks: u64,
    /// At this tick the broker ends, and its successor reads the drop-in; so many ticks later that one
    /// serves.
    pub(super) ends_at: Option<(u64, u64)>,
    /// The successor that does not serve yet: when it will, and what it has read.
    starting: Option<(u64, Settings)>,
    /// Renames and synced directories, in their order.
    pub(super) moves: Vec<PathBuf>,
}

impl World {
    /// Lets the time pass that one step of the agent takes.
    fn tick(&mut self) {
        self.ticks += 1;
        if let Some((at, takes)) = self.ends_at
            && at == self.ticks
        {
            self.running = false;
            self.starting = Some((at + takes, self.load()));
        }
        if self.starting.is_some_and(|(at, _)| at <= self.ticks) {
            self.serve();
        }
    }

    /// The successor that was starting serves.
    pub(super) fn serve(&mut self) {
        if let Some((_, settings)) = self.starting.take() {
            self.start_with(settings);
        }
    }

    /// Counts an operation of the agent.
    fn operation(&mut self) -> io::Result<()> {
        self.tick();
        let now = self.operations;
        self.operations += 1;
        if self.dies_at.is_some_and(|at| now >= at) {
            return Err(io::Error::other("the agent is dead"));
        }
        // SplitMix64.
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        match self.fails_one_in {
            Some(n) if mixed.is_multiple_of(n) => Err(match (mixed >> 40) % 3 {
                0 => io::Error::from(ErrorKind::StorageFull),
                1 => io::Error::from(ErrorKind::PermissionDenied),
                _ => io::Error::from_raw_os_error(5), // EIO
            }),
            _ => Ok(()),
        }
    }

    /// What a broker reads from the include directory; panics on a file that is not whole.
    fn load(&self) -> Settings {
        let Some(bytes) = self.files.get(Path::new(DROP_IN)) else { return Settings::UNWRITTEN };
        let text = std::str::from_utf8(bytes).expect("the drop-in is text");
        let settings = render::parse(text).expect("the drop-in is whole");
        assert_eq!(render::render(&settings).as_str(), text, "the drop-in is whole");
        settings
    }

    /// Starts or restarts the broker, whoever asked.
    pub(super) fn start(&mut self) {
        self.starting = None;
        self.start_with(self.load());
    }

    fn start_with(&mut self, settings: Settings) {
        let stated = settings.get(Knob::InflightMessagesMax).value();
        let window = stated.unwrap_or(20);
        self.pid += 1;
        self.restarts += 1;
        self.disabled = false;
        self.running = match self.fault {
            Fault::RefusesWideWindows => window <= 2000,
            Fault::RefusesWindows => stated.is_none(),
            Fault::NeverStarts => false,
            _ => true,
        };
        if self.running {
            self.effective = settings;
        }
    }
}

/// Handles to one world; the agent holds two, the test one.
#[derive(Clone)]
pub(super) struct Shared(pub(super) Arc<Mutex<World>>);

impl Shared {
    pub(super) fn new(fault: Fault) -> Self {
        Self(Arc::new(Mutex::new(World {
            files: BTreeMap::new(),
            fault,
            operations: 0,
            dies_at: None,
            fails_one_in: None,
            seed: 0,
            full: None,
            pid: 100,
            running: true,
            disabled: false,
            effective: Settings::UNWRITTEN,
            restarts: 0,
            ticks: 0,
            ends_at: None,
            starting: None,
            moves: Vec::new(),
        })))
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no test panics while holding it")
    }

    pub(super) fn applier(&self) -> Applier {
        let paths = Paths {
            drop_in: DROP_IN.into(),
            state_dir: "/var/lib/brokertuner".into(),
            database: None,
        };
        let (applier, damage) =
            Applier::open(Box::new(self.clone()), Box::new(self.clone()), paths).expect("opens");
        assert!(damage.is_none(), "{damage:?}");
        applier.with_patience(Duration::ZERO, Duration::ZERO)
    }

    pub(super) fn drop_in(&self) -> Option<Settings> {
        let world = self.world();
        world.files.contains_key(Path::new(DROP_IN)).then(|| world.load())
    }
}

impl Files for Shared {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.world().operation()?;
        Ok(self.world().files.get(path).cloned())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.read(path)?.is_some())
    }

    fn write_synced(&self, path: &Path, bytes: &[u8], _mode: u32) -> io::Result<()> {
        let was_dead = self.world().dies_at.is_some_and(|at| self.world_operations() > at);
        let is_full = self.world().full.is_some_and(|dir| path.starts_with(dir));
        let outcome = self.world().operation();
        let outcome = if is_full { Err(ErrorKind::StorageFull.into()) } else { outcome };
        if !was_dead {
            // A failure or death in the middle leaves a part.
            let kept = if outcome.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
            self.world().files.insert(path.to_path_buf(), kept.to_vec());
        }
        outcome
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.world().operation()?;
        let mut world = self.world();
        let bytes = world.files.remove(from).ok_or(ErrorKind::NotFound)?;
        world.files.insert(to.to_path_buf(), bytes);
        world.moves.push(to.to_path_buf());
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.world().operation()?;
        self.world().files.remove(path);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.world().operation()?;
        self.world().moves.push(dir.to_path_buf());
        Ok(())
    }
}

impl Shared {
    fn world_operations(&self) -> u64 {
        // Taken apart from other locks of the same expression.
        self.0.try_lock().map_or(0, |world| world.operations)
    }
}

impl Broker for Shared {
    fn process(&self) -> Result<ProcessId, PidError> {
        let mut world = self.world();
        world.tick();
        let pid = world.pid;
        if world.running {
            Ok(ProcessId { pid, start_ticks: 1 })
        } else {
            Err(PidError::Gone { pid, said_by: "the test".into() })
        }
    }

    fn reload(&self, process: ProcessId) -> Result<(), ControlError> {
        let mut world = self.world();
        let gone = ControlError::Gone { pid: process.pid };
        if world.operation().is_err() || world.fault == Fault::ReloadFails {
            return Err(gone);
        }
        let settings = world.load();
        // A deleted memory_limit line leaves the limit as it was.
        let before = world.effective;
        let is_stated = settings.get(Knob::MemoryLimit).value().is_some();
        let limits = if is_stated { settings } else { before };
        let memory_limit = limits.get(Knob::MemoryLimit);
        world.effective =
            before.with_those_of(&settings, Apply::Reload).with_that_of(Knob::MemoryLimit, &limits);
        // Saving is switched by a reload too, and the database with it.
        world.effective = world.effective.with_that_of(Knob::Persistence, &settings);
        world.disabled |= world.fault == Fault::DisabledByReload && memory_limit.value() > Some(0);
        Ok(())
    }

    fn restart(&self) -> Result<(), ControlError> {
        let mut world = self.world();
        if world.operation().is_err() {
            return Err(ControlError::Gone { pid: world.pid });
        }
        if world.fault != Fault::RestartIgnored {
            world.start();
        }
        Ok(())
    }

    fn save(&self, _process: ProcessId, database: &Path) -> Result<(), ControlError> {
        let world = self.world();
        if world.fault == Fault::NotSaved || world.disabled {
            return Err(ControlError::NotSaved { path: database.into(), timeout_s: 1 });
        }
        Ok(())
    }

    fn answer(&self) -> Result<Connack, ConnackError> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1883));
        let mut world = self.world();
        world.tick();
        if !world.running {
            return Err(ConnackError::Refused { address });
        }
        if world.disabled || world.fault == Fault::Full {
            return Err(ConnackError::Closed { address });
        }
        let window = match world.fault {
            Fault::Overridden => 20,
            _ => world.effective.get(Knob::InflightMessagesMax).value().unwrap_or(20),
        };
        Ok(Connack {
            protocol: Protocol::V5,
            reason: 0,
            receive_maximum: u16::try_from(window).ok(),
            packet_bytes_max: None,
        })
    }
}
