//! Checkpoints: one safetensors file with everything that a run needs to go on.
//!
//! The networks, optimiser moments and the replay buffer are tensors; the rest is JSON in the
//! file's metadata under [`META_KEY`]. The tensor `crc32` covers that text and all other tensors in
//! the order of their names. A file is written aside, synced and renamed, so that a crash leaves
//! the old one or the new one.

use super::agent::Critic;
use super::lessons::Lessons;
use super::net::Mlp;
use super::noise::Noise;
use super::normaliser::Normaliser;
use super::quantise::snap;
use super::replay::Pending;
use super::{Agent, DdpgError, Hyper};
use brokertuner_core::model::checksum;
use rand_pcg::Pcg32;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Key of the JSON text in the file's metadata.
const META_KEY: &str = "brokertuner";
/// Version of the tensors' names and of [`Meta`].
const CHECKPOINT_VERSION: u32 = 1;
/// Name of the checksum's tensor.
const CRC_NAME: &str = "crc32";
/// Names of the lessons' tensors.
const LESSONS: [&str; 4] =
    ["lessons.states", "lessons.trials", "lessons.state_ends", "lessons.trial_ends"];
/// Scalars of a pending transition: lane, steps, reward, discount.
const PENDING_SCALARS: usize = 4;

/// How much of an agent a file keeps beside its networks, optimisers and statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Networks,
    /// Its lessons: what another run can go on from.
    Lessons,
    /// The replay buffer too (4 bytes for each of `2 state_dim + action_dim + 2` numbers a
    /// transition): a run that is loaded again continues bit by bit as if it had not been
    /// interrupted.
    Everything,
}

/// Whatever is not a tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    version: u32,
    hyper: Hyper,
    state_dim: usize,
    action_dim: usize,
    seed: u64,
    observed: u64,
    updates: u64,
    actor_adam_steps: u64,
    critic_adam_steps: Vec<u64>,
    normaliser: Normaliser,
    noise: Noise,
    learn_rng: Pcg32,
    explore_rng: Pcg32,
    /// Whether the replay buffer is in the file.
    replay: bool,
    replay_cursor: usize,
}

/// Tensors by name; the order of the names is that of the checksum.
type Tensors = BTreeMap<String, Vec<u8>>;

impl Agent {
    /// Writes a checkpoint, over an older one at the same path only when it is complete.
    ///
    /// What is not kept begins empty when the file is loaded.
    ///
    /// # Errors
    /// [`DdpgError::Io`] or [`DdpgError::Checkpoint`].
    pub fn save(&self, path: &Path, keep: Keep) -> Result<(), DdpgError> {
        let refused = |reason: String| DdpgError::Checkpoint { path: path.to_path_buf(), reason };
        let meta =
            serde_json::to_string(&self.meta(keep)).map_err(|error| refused(error.to_string()))?;
        let bytes =
            assemble(meta, self.tensors(keep)).map_err(|error| refused(error.to_string()))?;
        write_aside(path, &bytes)
            .map_err(|source| DdpgError::Io { path: path.to_path_buf(), source })
    }

    /// Reads a checkpoint of [`Agent::save`].
    ///
    /// # Errors
    /// [`DdpgError::Io`], or [`DdpgError::Checkpoint`] with what is wrong in the file.
    pub fn load(path: &Path) -> Result<Self, DdpgError> {
        let bytes =
            fs::read(path).map_err(|source| DdpgError::Io { path: path.to_path_buf(), source })?;
        Self::from_checkpoint(&bytes)
            .map_err(|reason| DdpgError::Checkpoint { path: path.to_path_buf(), reason })
    }

    fn from_checkpoint(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let text = header.metadata().as_ref().and_then(|pairs| pairs.get(META_KEY));
        let text = text.ok_or("it is a safetensors file of another program")?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let mut tensors: Tensors =
            file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect();
        let stored = tensors.remove(CRC_NAME).ok_or("it has no checksum")?;
        let computed = crc_of(text, &tensors).to_le_bytes();
        if stored != computed {
            return Err(format!(
                "it is damaged: CRC-32 {computed:02x?}, the file says {stored:02x?}"
            ));
        }
        let version = serde_json::from_str::<Version>(text).map_err(|error| error.to_string())?;
        if version.version != CHECKPOINT_VERSION {
            let found = version.version;
            return Err(format!("it has version {found}, this program reads {CHECKPOINT_VERSION}"));
        }
        let meta: Meta = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Self::restore(meta, tensors)
    }

    fn restore(meta: Meta, mut tensors: Tensors) -> Result<Self, String> {
        let fresh = Agent::new(meta.hyper, meta.state_dim, meta.action_dim, meta.seed);
        let mut agent = fresh.map_err(|error| error.to_string())?;
        for (name, values) in agent.parameters() {
            *values = take(&mut tensors, &name, Some(values.len()))?;
        }
        if meta.critic_adam_steps.len() != agent.critics.len() {
            return Err("the optimisers do not fit the critics".to_owned());
        }
        for (critic, steps) in agent.critics.iter_mut().zip(meta.critic_adam_steps) {
            critic.adam.steps = steps;
        }
        agent.actor_adam.steps = meta.actor_adam_steps;
        if meta.normaliser.dim() != agent.state_dim {
            return Err("the normalisation does not fit the state".to_owned());
        }
        if meta.replay {
            agent.replay.rows = take(&mut tensors, "replay", None)?;
            let (stride, rows) = (agent.replay.stride(), &agent.replay.rows);
            let capacity = agent.hyper.replay_capacity;
            let fits = rows.len().is_multiple_of(stride) && rows.len() / stride <= capacity;
            if !fits || meta.replay_cursor >= capacity {
                return Err("the replay buffer does not fit its capacity".to_owned());
            }
            agent.replay.cursor = meta.replay_cursor;
            let pending = take(&mut tensors, "pending", None)?;
            agent.pending = unpack(&pending, agent.state_dim, agent.action_dim)?;
        }
        if tensors.contains_key(LESSONS[0]) {
            agent.lessons = lessons_of_tensors(&mut tensors, agent.state_dim, agent.action_dim)?;
        }
        if let Some(name) = tensors.keys().next() {
            return Err(format!("it has the unknown tensor `{name}`"));
        }
        agent.normaliser = meta.normaliser;
        agent.noise = meta.noise;
        agent.learn_rng = meta.learn_rng;
        agent.explore_rng = meta.explore_rng;
        agent.observed = meta.observed;
        agent.updates = meta.updates;
        snap(&agent.actor, &mut agent.snapped);
        Ok(agent)
    }

    fn meta(&self, keep: Keep) -> Meta {
        let with_replay = keep == Keep::Everything;
        Meta {
            version: CHECKPOINT_VERSION,
            hyper: self.hyper.clone(),
            state_dim: self.state_dim,
            action_dim: self.action_dim,
            seed: self.seed,
            observed: self.observed,
            updates: self.updates,
            actor_adam_steps: self.actor_adam.steps,
            critic_adam_steps: self.critics.iter().map(|critic| critic.adam.steps).collect(),
            normaliser: self.normaliser.clone(),
            noise: self.noise.clone(),
            learn_rng: self.learn_rng.clone(),
            explore_rng: self.explore_rng.clone(),
            replay: with_replay,
            replay_cursor: if with_replay { self.replay.cursor } else { 0 },
        }
    }

    fn tensors(&self, keep: Keep) -> Tensors {
        // The same list serves reading and writing; a copy is cheap beside the file.
        let mut copy = self.clone();
        let mut tensors: Tensors =
            copy.parameters().map(|(name, values)| (name, bytes_of(values))).collect();
        if keep != Keep::Networks && !self.lessons.is_empty() {
            tensors.extend(lessons_to_tensors(&self.lessons));
        }
        if keep == Keep::Everything {
            tensors.insert("replay".to_owned(), bytes_of(&self.replay.rows));
            let pending: Vec<f32> = self.pending.iter().flat_map(pack).collect();
            tensors.insert("pending".to_owned(), bytes_of(&pending));
        }
        tensors
    }

    /// Every parameter and moment with the name of its tensor.
    fn parameters(&mut self) -> impl Iterator<Item = (String, &mut Vec<f32>)> {
        let actor = [
            ("actor".to_owned(), &mut self.actor.params),
            ("actor.target".to_owned(), &mut self.actor_target.params),
            ("actor.first_moment".to_owned(), &mut self.actor_adam.first),
            ("actor.second_moment".to_owned(), &mut self.actor_adam.second),
        ];
        let critics = self.critics.iter_mut().enumerate().flat_map(|(index, critic)| {
            let Critic { net: Mlp { params, .. }, target, adam } = critic;
            [
                (format!("critic{index}"), params),
                (format!("critic{index}.target"), &mut target.params),
                (format!("critic{index}.first_moment"), &mut adam.first),
                (format!("critic{index}.second_moment"), &mut adam.second),
            ]
        });
        actor.into_iter().chain(critics)
    }
}

/// The one field of [`Meta`] that every version has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// CRC-32 over the text and each tensor's name and bytes.
fn crc_of(meta: &str, tensors: &Tensors) -> u32 {
    let mut parts = vec![checksum(meta.as_bytes())];
    for (name, bytes) in tensors {
        parts.extend([checksum(name.as_bytes()), checksum(bytes)]);
    }
    let parts: Vec<u8> = parts.into_iter().flat_map(u32::to_le_bytes).collect();
    checksum(&parts)
}

/// The bytes of the file.
fn assemble(meta: String, mut tensors: Tensors) -> Result<Vec<u8>, SafeTensorError> {
    let crc = crc_of(&meta, &tensors).to_le_bytes().to_vec();
    tensors.insert(CRC_NAME.to_owned(), crc);
    let views = tensors.iter().map(|(name, bytes)| {
        let dtype = if name == CRC_NAME { Dtype::U32 } else { Dtype::F32 };
        TensorView::new(dtype, vec![bytes.len() / 4], bytes).map(|view| (name, view))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, Some(HashMap::from([(META_KEY.to_owned(), meta)])))
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Takes a tensor of `expected` floats out of the map.
fn take(tensors: &mut Tensors, name: &str, expected: Option<usize>) -> Result<Vec<f32>, String> {
    let bytes = tensors.remove(name).ok_or_else(|| format!("the tensor `{name}` is missing"))?;
    let (floats, rest) = bytes.as_chunks();
    let found = floats.len();
    let expected = expected.unwrap_or(found);
    if !rest.is_empty() || found != expected {
        return Err(format!("the tensor `{name}` has {found} numbers, {expected} expected"));
    }
    Ok(floats.iter().map(|&float| f32::from_le_bytes(float)).collect())
}

fn lessons_to_tensors(lessons: &Lessons) -> impl Iterator<Item = (String, Vec<u8>)> {
    let bits = |numbers: &[usize]| {
        let number = |&number| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        numbers.iter().flat_map(number).collect()
    };
    let parts = [
        bytes_of(&lessons.states),
        bytes_of(&lessons.trials),
        bits(&lessons.state_ends),
        bits(&lessons.trial_ends),
    ];
    LESSONS.map(str::to_owned).into_iter().zip(parts)
}

fn lessons_of_tensors(
    tensors: &mut Tensors,
    state_dim: usize,
    action_dim: usize,
) -> Result<Lessons, String> {
    let [states, trials, state_ends, trial_ends] = LESSONS;
    let mut ends = |name| {
        let floats = take(tensors, name, None)?;
        Ok::<_, String>(floats.iter().map(|float| float.to_bits() as usize).collect())
    };
    let (state_ends, trial_ends) = (ends(state_ends)?, ends(trial_ends)?);
    let states = take(tensors, states, None)?;
    let trials = take(tensors, trials, None)?;
    let lessons = Lessons { state_dim, action_dim, states, trials, state_ends, trial_ends };
    lessons
        .is_sound()
        .then_some(lessons)
        .ok_or_else(|| "the lessons do not fit together".to_owned())
}

/// A pending transition as floats. Lane and steps keep their bits.
fn pack(item: &Pending) -> impl Iterator<Item = f32> + '_ {
    let index = |number: usize| f32::from_bits(u32::try_from(number).unwrap_or(u32::MAX));
    let scalars = [index(item.lane), index(item.steps), item.reward, item.discount];
    scalars.into_iter().chain(item.state.iter().copied()).chain(item.action.iter().copied())
}

fn unpack(floats: &[f32], state_dim: usize, action_dim: usize) -> Result<Vec<Pending>, String> {
    let rows = floats.chunks_exact(PENDING_SCALARS + state_dim + action_dim);
    if !rows.remainder().is_empty() {
        return Err("the tensor `pending` ends within a row".to_owned());
    }
    let item = |row: &[f32]| {
        let (scalars, rest) = row.split_at(PENDING_SCALARS);
        let (state, action) = rest.split_at(state_dim);
        Pending {
            lane: scalars[0].to_bits() as usize,
            steps: scalars[1].to_bits() as usize,
            reward: scalars[2],
            discount: scalars[3],
            state: state.to_vec(),
            action: action.to_vec(),
        }
    };
    Ok(rows.map(item).collect())
}

/// Writes beside `path`, syncs, renames, and syncs the folder.
fn write_aside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new().prefix(".checkpoint-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ddpg::Trial;

    /// What `change` makes of the parts of a sound checkpoint, with a checksum that fits.
    fn refusal(change: impl FnOnce(&mut String, &mut Tensors)) -> String {
        let mut agent = Agent::new(Hyper::default(), 3, 2, 1).unwrap();
        let (states, action) = (vec![vec![0.5; 3]; 2], vec![1.0, -1.0]);
        agent.teach(&[Trial { states, action, value: 2.0 }]).unwrap();
        let mut meta = serde_json::to_string(&agent.meta(Keep::Everything)).unwrap();
        let mut tensors = agent.tensors(Keep::Everything);
        change(&mut meta, &mut tensors);
        match Agent::from_checkpoint(&assemble(meta, tensors).unwrap()) {
            Ok(_) => "accepted".to_owned(),
            Err(reason) => reason,
        }
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        assert_eq!(refusal(|_, _| ()), "accepted");
        let next = |meta: &mut String| *meta = meta.replace("\"version\":1", "\"version\":2");
        let reason = refusal(|meta, _| next(meta));
        assert_eq!(reason, "it has version 2, this program reads 1");
        let wider = |meta: &mut String| *meta = meta.replace("\"state_dim\":3", "\"state_dim\":4");
        assert!(refusal(|meta, _| wider(meta)).contains("`actor` has"));
        let missing = refusal(|_, tensors| drop(tensors.remove("critic0.target")));
        assert_eq!(missing, "the tensor `critic0.target` is missing");
        let extra = refusal(|_, tensors| drop(tensors.insert("critic7".to_owned(), vec![])));
        assert_eq!(extra, "it has the unknown tensor `critic7`");
        let ragged = refusal(|_, tensors| drop(tensors.insert("replay".to_owned(), vec![0; 12])));
        assert_eq!(ragged, "the replay buffer does not fit its capacity");
        let range = |meta: &mut String| *meta = meta.replace("\"tau\":0.005", "\"tau\":5.0");
        assert!(refusal(|meta, _| range(meta)).contains("tau"));
        let lost = refusal(|_, tensors| drop(tensors.remove("lessons.trials")));
        assert_eq!(lost, "the tensor `lessons.trials` is missing");
        let torn = |tensors: &mut Tensors| tensors.insert("lessons.trials".to_owned(), vec![0; 4]);
        assert_eq!(refusal(|_, tensors| drop(torn(tensors))), "the lessons do not fit together");
    }
}
