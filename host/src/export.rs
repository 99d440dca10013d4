//! An agent to a model file: quantised, compared with what it was, written whole or not at all.

use crate::ddpg::{self, Agent, Deviation, QuantisedActor};
use anyhow::{Context as _, Result};
use brokertuner_core::features::Schema;
use brokertuner_core::model::{Model, ModelError, ModelParts};
use brokertuner_core::{KNOBS, KnobSet};
use brokertuner_edge::keys::SigningKey;
use std::io::Write as _;
use std::path::Path;

/// Raw states from the replay buffer that scales are chosen by.
const CALIBRATION_STATES: usize = 4096;
/// States on which the int8 policy is compared with the f32 one.
const COMPARED_STATES: usize = 10_000;

/// What a model says of itself. Seed and steps come from the agent.
#[derive(Clone, Debug)]
pub struct About {
    /// Schema of the states that it was trained on.
    pub schema: Schema,
    /// Options that it moves.
    pub tuned: KnobSet,
    /// Scenarios trained on.
    pub scenarios: String,
    /// Mosquitto versions trained on.
    pub broker_versions: String,
    /// Scores at export.
    pub scores: String,
}

impl About {
    /// A model for states of `schema` that moves the options that are tuned by default, of which
    /// nothing else is said yet.
    #[must_use]
    pub fn new(schema: Schema) -> About {
        About {
            schema,
            tuned: crate::env::trained(),
            scenarios: String::new(),
            broker_versions: String::new(),
            scores: String::new(),
        }
    }
}

/// Writes the model of `agent` to `path` and says how far it is from the f32 policy.
///
/// # Errors
/// As [`model_bytes`], and a file that cannot be written.
pub fn export(agent: &Agent, about: &About, path: &Path) -> Result<Deviation> {
    let (bytes, deviation) = model_bytes(agent, about)?;
    replace(path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(deviation)
}

/// The unsigned model file of `agent`, and how far it is from the f32 policy, on states that it
/// learnt from and random ones beside them.
///
/// # Errors
/// An agent that has diverged, texts that are too long.
pub fn model_bytes(agent: &Agent, about: &About) -> Result<(Vec<u8>, Deviation)> {
    let calibration = calibration_states(agent);
    let quantised = agent.quantise(&calibration)?;
    let bytes = to_bytes(agent, &quantised, about)?;
    let states = random_states(agent, &calibration);
    Ok((bytes, ddpg::deviation(agent, &quantised, &states)?))
}

/// The bytes of [`model_bytes`], without the comparison: for a look at a policy in training.
///
/// # Errors
/// As [`model_bytes`].
pub fn policy_bytes(agent: &Agent, about: &About) -> Result<Vec<u8>> {
    to_bytes(agent, &agent.quantise(&calibration_states(agent))?, about)
}

fn to_bytes(agent: &Agent, quantised: &QuantisedActor, about: &About) -> Result<Vec<u8>> {
    let bounds: Vec<(u64, u64)> = KNOBS.iter().map(|spec| (spec.min, spec.max)).collect();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a step is at most an hour and at least a millisecond (Hyper::validate)"
    )]
    let step_ms = (agent.hyper().step_s * 1000.0).round() as u32;
    Ok(quantised.to_bytes(&ddpg::About {
        counter: 0,
        schema: about.schema,
        step_ms,
        bounds: &bounds,
        tuned: about.tuned.bits(),
        scenarios: &about.scenarios,
        broker_versions: &about.broker_versions,
        scores: &about.scores,
    })?)
}

/// The model file with that counter and a signature.
///
/// # Errors
/// Bytes that are no model file.
pub fn signed(bytes: &[u8], key: &SigningKey, counter: u64) -> Result<Vec<u8>, ModelError> {
    let parts = ModelParts { counter, signed: true, ..*Model::parse(bytes)?.parts() };
    // The counter may take nine bytes more than the one it replaces.
    let mut out = vec![0; bytes.len() + 16];
    let length = Model::new(parts)?.write(&mut out)?;
    out.truncate(length);
    let signature = key.sign(&out);
    out.extend_from_slice(&signature);
    Ok(out)
}

/// States of the replay buffer; for an agent that has seen nothing, random ones.
fn calibration_states(agent: &Agent) -> Vec<Vec<f32>> {
    let seen = agent.states_seen(CALIBRATION_STATES);
    if seen.is_empty() { random_states(agent, &[]) } else { seen }
}

/// [`COMPARED_STATES`] states: each feature uniform over the range seen, widened by half of it, so
/// that states beyond training are compared too.
fn random_states(agent: &Agent, seen: &[Vec<f32>]) -> Vec<Vec<f32>> {
    use rand::{RngExt as _, SeedableRng as _};
    let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(agent.seed());
    let ranges: Vec<(f32, f32)> = (0..agent.state_dim())
        .map(|feature| {
            let values = seen.iter().map(|state| state[feature]).filter(|value| value.is_finite());
            let (low, high) = values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            });
            if low > high { (-1.0, 2.0) } else { (low, high) }
        })
        .collect();
    let mut state = || -> Vec<f32> {
        let draw = |&(low, high): &(f32, f32)| {
            let margin = (high - low) / 2.0;
            low - margin + (high - low + 2.0 * margin) * rng.random::<f32>()
        };
        ranges.iter().map(draw).collect()
    };
    (0..COMPARED_STATES).map(|_| state()).collect()
}

/// The schema of states of that length.
///
/// # Errors
/// Where there is none.
pub fn schema_of(state_dim: usize) -> Result<Schema> {
    let mut schemas = [Schema::Edge, Schema::Seed5].into_iter();
    schemas.find(|schema| schema.len() == state_dim).with_context(|| {
        format!("its states have {state_dim} features, which is no schema of this program")
    })
}

/// Writes aside, syncs, renames: the file is the old one or the new one, never half.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    // A model is no secret, and edge may run as another user.
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}
