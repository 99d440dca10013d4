//! What the agent must know after a crash or a power cut: one small file, always replaced whole.
//!
//! Layout: `BTES`, version u16, body length u32 (little endian), body (postcard of [`State`]),
//! CRC-32 (ISO-HDLC) over all before it.

use std::fmt;
use std::path::{Path, PathBuf};

use brokertuner_core::controller::{Health, Undoing};
use brokertuner_core::{Knob, Settings};
use crc::{CRC_32_ISO_HDLC, Crc};
use serde::{Deserialize, Serialize};

use crate::clock::Clocks;
use crate::fs::{self, Digest, FileError, Files, MODE_STATE};
use crate::pid::ProcessId;
use crate::quiet::CLOCK_SET_UNIX_S;

const MAGIC: [u8; 4] = *b"BTES";
const VERSION: u16 = 6;
/// Bytes of the fields that were added at the end since versions 1 to 5. The default of each is
/// zero bytes, so an older body is read with as many zeros behind it.
const ADDED_SINCE_1: usize = ADDED_SINCE_2 + 6;
const ADDED_SINCE_2: usize = ADDED_SINCE_3 + 1;
const ADDED_SINCE_3: usize = ADDED_SINCE_4 + 3;
const ADDED_SINCE_4: usize = ADDED_SINCE_5 + 2;
const ADDED_SINCE_5: usize = 1;
const HEADER_BYTES: usize = 10;
const CRC_BYTES: usize = 4;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// Restarts that are remembered: more than any budget per day.
pub const RESTARTS_MAX: usize = 64;
/// What a clock must be stepped by to be noticed.
pub const STEP_S_MIN: u64 = 60;
/// Changes that are verified together: of a restart and of reloads before it.
pub const WATCHED_MAX: usize = 8;
/// Starts of the agent that are remembered.
pub const STARTS_MAX: usize = 8;

/// The agent's memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// What the drop-in says; `None` where there is to be no drop-in.
    pub written: Option<Settings>,
    /// SHA-256 of the drop-in as it was written: another one means that someone edited it.
    pub written_sha256: Option<Digest>,
    /// The last drop-in that stood its verification; `None`: no drop-in.
    pub good: Option<Settings>,
    /// What the running broker has taken over, and which process that is.
    pub effective: Option<Effective>,
    /// A change that is under way; found at a start, it was cut short.
    pub intent: Option<Intent>,
    /// Changes in a row that had to be taken back.
    pub failures: u32,
    /// When the broker was restarted, in Unix seconds, oldest first, [`RESTARTS_MAX`] at most.
    pub restarts_unix_s: Vec<u64>,
    /// What the operator said last.
    pub standing: Standing,
    /// The drop-in that was good before `good`; `None`: no drop-in.
    pub good_before: Option<Settings>,
    /// Options that a person set over HTTP: the policy leaves them alone.
    pub pinned: Option<Settings>,
    /// What a person asked for over HTTP and that waits for a restart.
    pub scheduled: Option<Scheduled>,
    /// Number of the last decision that was carried out.
    pub last_decision: u64,
    /// When the agent was started without having ended in good order since, in Unix seconds.
    pub starts_unix_s: Vec<u64>,
    /// How the broker did before the change that has yet to stand its verification.
    pub before: Option<Before>,
    /// The change under way is a roll-back: what it comes from is never put back.
    pub rolls_back: bool,
    /// Roll-backs of the change that has yet to stand its verification, where they failed.
    pub undoing: Undoing,
    /// The clocks when a restart or a start was last noted.
    pub clocks: Clocks,
    /// Numbers of the changes that have yet to stand their verification, the oldest first,
    /// [`WATCHED_MAX`] at most.
    pub watched: Vec<u64>,
}

/// How the broker did, and when that was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Before {
    /// Unix time.
    pub at_unix_s: u64,
    /// What was seen.
    pub health: Health,
}

/// What the operator said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Nothing: the broker is tuned.
    #[default]
    Tuning,
    /// `edge pause`, or `edge rollback`.
    Paused,
    /// `edge off`.
    Off,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tuning => "tuning",
            Self::Paused => "paused",
            Self::Off => "off",
        })
    }
}

/// Settings that wait for a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// The number of the decision.
    pub id: u64,
    /// The options that were asked for; others stay as they are.
    pub settings: Settings,
}

/// Settings in force in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// The process.
    pub process: ProcessId,
    /// What it runs with, as far as the drop-in goes.
    pub settings: Settings,
}

/// How a change reaches the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// It reads its files again; nobody is disconnected.
    Reload,
    /// It ends and starts again; every client is disconnected.
    Restart,
}

/// A change under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The drop-in before; `None`: there was none.
    pub from: Option<Settings>,
    /// The drop-in after.
    pub to: Option<Settings>,
    /// The drop-in in between, that states the site's values of options about to be given up.
    pub interim: Option<Settings>,
    /// The same on the way back, should the change have to be taken back.
    pub interim_back: Option<Settings>,
    /// How it is made effective.
    pub how: How,
    /// The broker's process when the change began.
    pub before: ProcessId,
    /// The change failed and is being taken back.
    pub back: bool,
}

impl Intent {
    /// Whether the change or its undoing moves `memory_limit`, which may disable a broker for good.
    #[must_use]
    pub fn moves_memory_limit(&self) -> bool {
        let limit =
            |settings: Option<Settings>| settings.unwrap_or_default().get(Knob::MemoryLimit);
        limit(self.from) != limit(self.to)
    }
}

impl State {
    /// The drop-in to go back to; itself `None` where the present one is the only one ever.
    #[must_use]
    pub fn last_good(&self) -> Option<Option<Settings>> {
        let candidates = [self.good, self.good_before];
        candidates.into_iter().find(|&candidate| candidate != self.written)
    }

    /// The change under way has ended, one way or another.
    pub fn end_intent(&mut self) {
        (self.intent, self.rolls_back) = (None, false);
    }

    /// Dates what was noted since the boot by the clock on the wall as it goes now: a step of it within
    /// this boot makes nothing older or younger. What is of before the boot was dated by a clock of then.
    pub fn follow_clock(&mut self, now: Clocks) {
        let stepped_s = now.stepped_s(&self.clocks);
        let booted_unix_s = self.clocks.booted_unix_s();
        // The clock of the boot is read in whole seconds, and the other one is slewed.
        if stepped_s.unsigned_abs() > STEP_S_MIN {
            let dates = self.restarts_unix_s.iter_mut().chain(&mut self.starts_unix_s);
            let dates = dates.chain(self.before.as_mut().map(|before| &mut before.at_unix_s));
            for at in dates.filter(|at| booted_unix_s.is_some_and(|booted| **at >= booted)) {
                *at = at.saturating_add_signed(stepped_s);
            }
        }
        self.clocks = now;
    }

    /// The same state, dated by the clocks of now.
    #[must_use]
    pub fn followed(&self, now: Clocks) -> Self {
        let mut state = self.clone();
        state.follow_clock(now);
        state
    }

    /// How long before the clocks of the state each restart was, in seconds, oldest first. One in their
    /// future is of a clock that was set back: it counts as just made.
    pub fn restart_ages_s(&self) -> impl Iterator<Item = u64> {
        self.restarts_unix_s.iter().map(|&at| self.clocks.unix_s.saturating_sub(at))
    }

    /// Notes a start of the agent, and how many of them lie within `within_s` before it.
    pub fn note_start(&mut self, now: Clocks, within_s: u64) -> usize {
        self.follow_clock(now);
        let unix_s = now.unix_s;
        // One in the future is of a clock that was set back, as at every boot of a machine without
        // a battery for it: it counts as just made.
        self.starts_unix_s.iter_mut().for_each(|at| *at = unix_s.min(*at));
        // So does a restart of the broker, and one of before the clock was set: its age is not known.
        let is_set = unix_s >= CLOCK_SET_UNIX_S;
        for at in &mut self.restarts_unix_s {
            if *at > unix_s || (is_set && *at < CLOCK_SET_UNIX_S) {
                *at = unix_s;
            }
        }
        self.starts_unix_s.retain(|&at| unix_s - at <= within_s);
        if self.starts_unix_s.len() >= STARTS_MAX {
            self.starts_unix_s.remove(0);
        }
        self.starts_unix_s.push(unix_s);
        self.starts_unix_s.len()
    }

    /// Notes a restart, forgetting the oldest.
    pub fn note_restart(&mut self, now: Clocks) {
        self.follow_clock(now);
        if self.restarts_unix_s.len() >= RESTARTS_MAX {
            self.restarts_unix_s.remove(0);
        }
        self.restarts_unix_s.push(now.unix_s);
    }
}

/// Why the state can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bytes are no state of this program.
    #[error("{}: {reason}; edge goes on without it and changes nothing until `edge resume`; what it had written stays in the drop-in", path.display())]
    Corrupt {
        /// The state file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Written by a newer edge.
    #[error("{}: written by a newer edge (state version {found}, this one reads {VERSION}); install that edge again, or move the file away", path.display())]
    Version {
        /// The state file.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
}

/// The state file's bytes.
#[must_use]
pub fn encode(state: &State) -> Vec<u8> {
    // Postcard into a growing vector of types that all have a wire format: it has no way to fail.
    let body = postcard::to_allocvec(state).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + CRC_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(&CRC.checksum(&bytes).to_le_bytes());
    bytes
}

/// Reads a state file's bytes. Never panics.
///
/// # Errors
/// [`StateError::Corrupt`] or [`StateError::Version`], naming `path`.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<State, StateError> {
    let corrupt = |reason: &str| StateError::Corrupt { path: path.into(), reason: reason.into() };
    let (head, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(|| corrupt("too short"))?;
    let [m0, m1, m2, m3, v0, v1, l0, l1, l2, l3] = *head else { return Err(corrupt("too short")) };
    if [m0, m1, m2, m3] != MAGIC {
        return Err(corrupt("no state file of edge"));
    }
    let found = u16::from_le_bytes([v0, v1]);
    if found > VERSION {
        return Err(StateError::Version { path: path.into(), found });
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let (body, crc) = rest.split_at_checked(length).ok_or_else(|| corrupt("cut short"))?;
    let crc: [u8; CRC_BYTES] = crc.try_into().map_err(|_| corrupt("of the wrong length"))?;
    if CRC.checksum(&bytes[..HEADER_BYTES + length]) != u32::from_le_bytes(crc) {
        return Err(corrupt("checksum does not match: damaged"));
    }
    let mut body = body.to_vec();
    let added = match found {
        1 => ADDED_SINCE_1,
        2 => ADDED_SINCE_2,
        3 => ADDED_SINCE_3,
        4 => ADDED_SINCE_4,
        5 => ADDED_SINCE_5,
        _ => 0,
    };
    body.resize(length + added, 0);
    let state: State = postcard::from_bytes(&body).map_err(|e| corrupt(&e.to_string()))?;
    if state.settings().all(|settings| in_table(&settings)) {
        Ok(state)
    } else {
        Err(corrupt("it holds a setting that the knob table does not permit"))
    }
}

impl State {
    /// Every set of settings that is remembered.
    fn settings(&self) -> impl Iterator<Item = Settings> {
        let intent =
            self.intent.map(|intent| [intent.from, intent.to, intent.interim, intent.interim_back]);
        let scheduled = self.scheduled.map(|scheduled| scheduled.settings);
        let effective = self.effective.map(|effective| effective.settings);
        [self.written, self.good, effective, self.good_before, self.pinned, scheduled]
            .into_iter()
            .chain(intent.into_iter().flatten())
            .flatten()
    }
}

/// Deserialising goes round the table's own check; this is that check.
fn in_table(settings: &Settings) -> bool {
    settings.iter().all(|(knob, setting)| match setting.value() {
        Some(value) => knob.spec().value(value).is_ok(),
        None => true,
    })
}

/// Where the state lies.
#[derive(Debug, Clone)]
pub struct StateStore {
    path: PathBuf,
}

impl StateStore {
    /// The state file of a state directory.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("edge.state") }
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stored state; the default where none was stored yet.
    ///
    /// # Errors
    /// [`StateError`]; after [`StateError::Corrupt`] the caller may go on, carefully, from the
    /// default.
    pub fn load(&self, files: &dyn Files) -> Result<State, StateError> {
        match files.read(&self.path).map_err(fs::at("read", &self.path))? {
            Some(bytes) => decode(&self.path, &bytes),
            None => Ok(State::default()),
        }
    }

    /// Stores the state so that a crash leaves the old one or the new.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn save(&self, files: &dyn Files, state: &State) -> Result<(), FileError> {
        fs::replace(files, &self.path, Some(&encode(state)), MODE_STATE)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
pub(crate) mod tests {
    use super::*;
    use crate::clock::Boot;
    use proptest::prelude::*;

    fn some_state() -> State {
        let mut written = Settings::UNWRITTEN;
        written.set(Knob::InflightMessagesMax, 1000).unwrap();
        let process = ProcessId { pid: 7, start_ticks: 99 };
        let to = Some(written);
        let how = How::Restart;
        State {
            written: Some(written),
            written_sha256: Some([7; 32]),
            effective: Some(Effective { process, settings: written }),
            intent: Some(Intent {
                from: None,
                to,
                interim: None,
                interim_back: to,
                how,
                before: process,
                back: true,
            }),
            restarts_unix_s: vec![1, 2, 3],
            standing: Standing::Off,
            good_before: to,
            pinned: to,
            scheduled: Some(Scheduled { id: 12, settings: written }),
            last_decision: 12,
            starts_unix_s: vec![4],
            before: Some(Before { at_unix_s: 5, health: Health::default() }),
            rolls_back: true,
            undoing: Undoing { failures: 2, is_in_file: true },
            clocks: Clocks { unix_s: 6, boot: Some(Boot { id: u128::MAX, since_s: 7 }) },
            watched: vec![11, 12],
            ..State::default()
        }
    }

    /// A clock that only the wall has.
    fn wall(unix_s: u64) -> Clocks {
        Clocks { unix_s, boot: None }
    }

    /// Written by a version before: everything that it knew is read, the rest is the default.
    #[test]
    fn the_versions_before_are_read() {
        let of_5 = State { watched: Vec::new(), ..some_state() };
        let of_4 = State { clocks: Clocks::default(), ..of_5.clone() };
        let of_3 = State { rolls_back: false, undoing: Undoing::default(), ..of_4.clone() };
        let of_2 = State { before: None, ..of_3.clone() };
        let of_1 = State {
            standing: Standing::default(),
            good_before: None,
            pinned: None,
            scheduled: None,
            last_decision: 0,
            starts_unix_s: Vec::new(),
            ..of_2.clone()
        };
        for (version, added, state) in [
            (1, ADDED_SINCE_1, of_1),
            (2, ADDED_SINCE_2, of_2),
            (3, ADDED_SINCE_3, of_3),
            (4, ADDED_SINCE_4, of_4),
            (5, ADDED_SINCE_5, of_5),
        ] {
            let mut bytes = encode(&state);
            let body = bytes.len() - HEADER_BYTES - CRC_BYTES - added;
            assert_eq!(bytes[HEADER_BYTES + body..][..added], vec![0; added]);
            bytes.truncate(HEADER_BYTES + body);
            bytes[4] = version;
            bytes[6..10].copy_from_slice(&u32::try_from(body).unwrap().to_le_bytes());
            let crc = CRC.checksum(&bytes).to_le_bytes();
            bytes.extend_from_slice(&crc);
            assert_eq!(decode(Path::new("s"), &bytes).unwrap(), state, "version {version}");
        }
    }

    #[test]
    fn starts_are_counted_within_their_time_and_bounded() {
        let mut state = State::default();
        assert_eq!(state.note_start(wall(1000), 600), 1);
        assert_eq!(state.note_start(wall(1600), 600), 2);
        assert_eq!(state.note_start(wall(1601), 600), 2, "the first is 601 s old");
        assert_eq!(
            state.note_start(wall(100), 600),
            3,
            "the clock was set back: they count as just made"
        );
        assert_eq!((0..100).map(|_| state.note_start(wall(100), 600)).max(), Some(STARTS_MAX));
    }

    /// A machine without a battery for its clock boots in 1970, and is told the time later.
    #[test]
    fn a_restart_of_unknown_age_counts_as_just_made() {
        let now = CLOCK_SET_UNIX_S + 1_000_000;
        let mut state =
            State { restarts_unix_s: vec![30, now - 500, now + 500], ..State::default() };
        state.note_start(wall(now), 600);
        assert_eq!(state.restarts_unix_s, [now, now - 500, now]);
        state.note_start(wall(40), 600);
        assert_eq!(state.restarts_unix_s, [40; 3], "booted again, before the time was told");
        state.note_start(wall(now), 600);
        assert_eq!(state.restarts_unix_s, [now; 3]);
    }

    /// A day forward or back, by hand or by the network's time: restarts are as old as before.
    #[test]
    fn a_step_of_the_clock_makes_no_restart_older_or_younger() {
        let at = |unix_s, since_s| Clocks { unix_s, boot: Some(Boot { id: 1, since_s }) };
        let start = CLOCK_SET_UNIX_S + 1_000_000;
        for stepped_s in [-86_400, 86_400] {
            let mut state = State::default();
            state.note_restart(at(start, 100));
            state.before = Some(Before { at_unix_s: start, health: Health::default() });
            let later = at((start + 600).saturating_add_signed(stepped_s), 700);
            assert_eq!(ages_s(&state, later), [600]);
            assert_eq!(state.followed(later).before.unwrap().at_unix_s, later.unix_s - 600);
            state.note_start(later, 10);
            state.note_restart(later);
            assert_eq!(ages_s(&state, later), [600, 0]);
            let hour = Clocks { unix_s: later.unix_s + 3600, boot: None };
            assert_eq!(ages_s(&state, hour), [4200, 3600]);
        }
        // Another boot: only the clock on the wall is left. It comes up 8 hours ahead, and is set back.
        let mut state = State::default();
        state.note_restart(at(start, 100));
        let booted = |unix_s, since_s| Clocks { unix_s, boot: Some(Boot { id: 2, since_s }) };
        assert_eq!(ages_s(&state, booted(start + 900, 5)), [900]);
        state.note_start(booted(start + 900 + 8 * 3600, 5), 10);
        state.note_restart(booted(start + 905 + 8 * 3600, 10));
        assert_eq!(ages_s(&state, booted(start + 1000, 105)), [1000, 95]);
    }

    fn ages_s(state: &State, now: Clocks) -> Vec<u64> {
        state.followed(now).restart_ages_s().collect()
    }

    #[test]
    fn the_last_good_is_not_what_stands_there() {
        let settings = |value| {
            let mut settings = Settings::UNWRITTEN;
            settings.set(Knob::QueuedMessagesMax, value).unwrap();
            Some(settings)
        };
        let mut state = State::default();
        assert_eq!(state.last_good(), None, "never changed anything");
        state.written = settings(200);
        assert_eq!(state.last_good(), Some(None), "no drop-in");
        state.good = settings(200);
        assert_eq!(state.last_good(), Some(None), "before it");
        state.good_before = settings(100);
        assert_eq!(state.last_good(), Some(settings(100)));
        state.written = settings(300);
        assert_eq!(state.last_good(), Some(settings(200)));
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let state = some_state();
        assert_eq!(decode(Path::new("s"), &encode(&state)).unwrap(), state);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = encode(&some_state());
        for end in 0..bytes.len() {
            assert!(decode(Path::new("s"), &bytes[..end]).is_err(), "cut to {end} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(Path::new("s"), &damaged).is_err(), "bit {bit} flipped");
        }
    }

    #[test]
    fn a_value_outside_the_table_is_no_state_of_ours() {
        // The largest queue is 65536: three bytes of varint, the last of which is made larger.
        let mut written = Settings::UNWRITTEN;
        written.set(Knob::QueuedMessagesMax, 65_536).unwrap();
        let state = State { written: Some(written), ..State::default() };
        let mut bytes = encode(&state);
        let at = bytes.windows(3).position(|w| w == [0x80, 0x80, 0x04]).unwrap();
        bytes[at + 2] = 0x05;
        let end = bytes.len() - CRC_BYTES;
        let crc = CRC.checksum(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        let error = decode(Path::new("s"), &bytes).unwrap_err().to_string();
        assert!(error.contains("knob table"), "{error}");
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = encode(&State::default());
        bytes[4] = 9;
        assert!(matches!(
            decode(Path::new("s"), &bytes),
            Err(StateError::Version { found: 9, .. })
        ));
    }

    #[test]
    fn restarts_are_bounded() {
        let mut state = State::default();
        (0..1000).for_each(|second| state.note_restart(wall(second)));
        assert_eq!(state.restarts_unix_s.len(), RESTARTS_MAX);
        assert_eq!(state.restarts_unix_s.last(), Some(&999));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Path::new("s"), &body);
            let mut framed = b"BTES\x04\x00".to_vec();
            framed.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
            framed.extend_from_slice(&body);
            framed.extend_from_slice(&CRC.checksum(&framed).to_le_bytes());
            let _ = decode(Path::new("s"), &framed);
        }
    }
}
