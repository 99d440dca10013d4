//! The int8 grid, and the export of an agent's actor as a model file.

use super::adam::narrow;
use super::net::{Mlp, Tape, vectorised};
use super::{Agent, DdpgError};
use brokertuner_core::actor::{
    ACTIVATION_MAX, FAN_IN_MAX, INPUT_LIMIT, LAYER_COUNT, ONE, SHIFT_MAX, WEIGHT_MAX,
};
use brokertuner_core::features::Schema;
use brokertuner_core::knobs;
use brokertuner_core::model::{BoundsParts, Card, InputParts, LayerParts, Model, ModelParts};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

/// Random states, over the whole range of the input, that calibrate beside the caller's.
const RANDOM_STATES: usize = 2048;
/// Room above the largest activation that the calibration saw.
const HEADROOM: f64 = 1.5;
/// Largest magnitude of a bias: what the widest sum leaves free in an i32.
const BIAS_MAX: i64 =
    i32::MAX as i64 - ACTIVATION_MAX as i64 * WEIGHT_MAX as i64 * FAN_IN_MAX as i64;

/// Moves every weight of `master` to the int8 grid of its output channel; biases stay as they are.
pub(super) fn snap(master: &Mlp, snapped: &mut Mlp) {
    snapped.params.copy_from_slice(&master.params);
    for layer in 0..master.layers() {
        let (weights, _) = master.spans(layer);
        for row in snapped.params[weights].chunks_exact_mut(master.dims()[layer]) {
            let (scale, per_step) = grid(row);
            vectorised(
                #[inline(always)]
                || {
                    for weight in row {
                        *weight = step(*weight, per_step) as f32 * scale;
                    }
                },
            );
        }
    }
}

/// Width of a step of a channel's grid, and its reciprocal; both 0 where all weights are 0.
fn grid(row: &[f32]) -> (f32, f32) {
    let largest = row.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    let scale = largest / WEIGHT_MAX as f32;
    if scale < f32::MIN_POSITIVE { (0.0, 0.0) } else { (scale, scale.recip()) }
}

/// The step of the grid nearest to a weight.
#[allow(clippy::cast_possible_truncation, reason = "the quotient is at most 127 in magnitude")]
#[inline(always)]
fn step(weight: f32, per_step: f32) -> i32 {
    // The cast cuts towards 0, so that halves go away from it.
    let step = weight * per_step;
    ((step + 0.5f32.copysign(step)) as i32).clamp(-WEIGHT_MAX, WEIGHT_MAX)
}

/// Arrays of one quantised layer, as the model file has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct QuantisedLayer {
    weights: Vec<u8>,
    bias: Vec<u8>,
    multiplier: Vec<u8>,
    shift: Vec<u8>,
}

/// An actor in the integers of the model file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantisedActor {
    shape: [u16; LAYER_COUNT + 1],
    mean: Vec<u8>,
    inv_std: Vec<u8>,
    observed_min: Vec<u8>,
    observed_max: Vec<u8>,
    layers: [QuantisedLayer; LAYER_COUNT],
    seed: u64,
    steps: u64,
}

/// What a model file says beside the network. Seed and steps come from the agent.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Release counter.
    pub counter: u64,
    /// Schema of the states it was trained on.
    pub schema: Schema,
    /// Decision interval in milliseconds.
    pub step_ms: u32,
    /// Least and greatest value of each knob in training, in the broker's units.
    pub bounds: &'a [(u64, u64)],
    /// Bit k: knob k was tuned.
    pub tuned: u16,
    /// Scenarios trained on.
    pub scenarios: &'a str,
    /// Mosquitto versions trained on.
    pub broker_versions: &'a str,
    /// Scores at export.
    pub scores: &'a str,
}

/// How far the int8 actor is from the f32 one, in steps of 1/127 of an action's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// Over all states and outputs. At most 2 for a model that may be used.
    pub max_steps: f64,
    /// Mean over all states and outputs; 0.25 is what rounding alone costs.
    pub mean_steps: f64,
    /// States compared.
    pub states: usize,
}

impl Agent {
    /// Quantises the policy. `states` are raw states that were really seen, as
    /// [`Agent::states_seen`]; they and random ones find the range of the hidden activations.
    ///
    /// # Errors
    /// [`DdpgError::Length`] for a state of another length, [`DdpgError::NotFinite`] for a network
    /// that has diverged.
    pub fn quantise(&self, states: &[Vec<f32>]) -> Result<QuantisedActor, DdpgError> {
        if !self.snapped.params.iter().all(|weight| weight.is_finite()) {
            return Err(DdpgError::NotFinite { what: "a weight of the actor" });
        }
        let scales: Vec<(f32, f32)> =
            (0..self.state_dim).map(|index| self.normaliser.scale(index)).collect();
        let units = self.activation_units(states, &scales)?;
        let bytes = |numbers: &mut dyn Iterator<Item = f32>| -> Vec<u8> {
            numbers.flat_map(f32::to_le_bytes).collect()
        };
        let ranges = || (0..self.state_dim).map(|index| self.normaliser.range(index));
        let width = |layer: usize| u16::try_from(self.snapped.dims()[layer]).unwrap_or(u16::MAX);
        Ok(QuantisedActor {
            shape: std::array::from_fn(width),
            mean: bytes(&mut scales.iter().map(|scale| scale.0)),
            inv_std: bytes(&mut scales.iter().map(|scale| scale.1)),
            observed_min: bytes(&mut ranges().map(|range| range.0)),
            observed_max: bytes(&mut ranges().map(|range| range.1)),
            layers: std::array::from_fn(|layer| {
                quantise_layer(&self.actor, layer, units[layer], units[layer + 1])
            }),
            seed: self.seed,
            steps: self.observed,
        })
    }

    /// What the integer 1 stands for in the input, in both hidden layers and before the tanh.
    fn activation_units(
        &self,
        states: &[Vec<f32>],
        scales: &[(f32, f32)],
    ) -> Result<[f64; LAYER_COUNT + 1], DdpgError> {
        let batch = states.len() + RANDOM_STATES;
        let mut tape = Tape::new(&self.snapped, batch);
        for (index, state) in states.iter().enumerate() {
            DdpgError::check_length("features of a state", state.len(), self.state_dim)?;
            for (feature, value) in state.iter().enumerate() {
                tape.input()[feature * batch + index] = *value;
            }
        }
        self.normaliser.apply(tape.input(), batch);
        let mut rng = Pcg32::seed_from_u64(0);
        for (row, (_, inv_std)) in tape.input().chunks_exact_mut(batch).zip(scales) {
            // A feature that is ignored is 0, whatever it does.
            let limit = if *inv_std > 0.0 { INPUT_LIMIT } else { 0.0 };
            row[states.len()..].fill_with(|| rng.random_range(-limit..=limit));
        }
        self.snapped.forward(&mut tape);

        let one = f64::from(ONE).recip();
        let mut units = [one; LAYER_COUNT + 1];
        let mut bounds = vec![f64::from(INPUT_LIMIT); self.state_dim];
        for layer in 0..LAYER_COUNT - 1 {
            bounds = activation_bounds(&self.snapped, layer, &bounds);
            let possible = bounds.iter().fold(0.0f64, |most, bound| most.max(*bound));
            let seen = tape.values(layer + 1).iter().fold(0.0f32, |most, value| most.max(*value));
            let top = (f64::from(seen) * HEADROOM).min(possible);
            // Silent layers have no range of their own.
            let top = if top > 0.0 { top } else { 1.0 };
            units[layer + 1] = top / f64::from(ACTIVATION_MAX);
        }
        Ok(units)
    }
}

/// The largest value that each channel of a layer can have, given that of its inputs.
fn activation_bounds(net: &Mlp, layer: usize, inputs: &[f64]) -> Vec<f64> {
    let (weights, biases) = net.spans(layer);
    let rows = net.params[weights].chunks_exact(inputs.len()).zip(&net.params[biases]);
    let bound = |(row, bias): (&[f32], &f32)| {
        let products =
            row.iter().zip(inputs).map(|(weight, input)| f64::from(weight.abs()) * input);
        (products.sum::<f64>() + f64::from(*bias)).max(0.0)
    };
    rows.map(bound).collect()
}

/// Quantises one layer from the master weights, which gives the steps that [`snap`] found.
fn quantise_layer(net: &Mlp, layer: usize, unit_in: f64, unit_out: f64) -> QuantisedLayer {
    let (weights, biases) = net.spans(layer);
    let rows = net.params[weights].chunks_exact(net.dims()[layer]);
    let mut out = QuantisedLayer::default();
    for (row, &bias) in rows.zip(&net.params[biases]) {
        let (mut scale, mut per_step) = grid(row);
        // Where the weights are so small beside the bias that it would not fit: a coarser grid.
        let least = narrow(f64::from(bias.abs()) / (BIAS_MAX as f64 * unit_in) * 1.001);
        if scale < least.max(f32::MIN_POSITIVE) {
            scale = least.max(f32::MIN_POSITIVE);
            per_step = scale.recip();
        }
        let unit = f64::from(scale) * unit_in;
        let steps = row.iter().map(|&weight| step(weight, per_step).to_le_bytes()[0]);
        out.weights.extend(steps);
        out.bias.extend(rounded(f64::from(bias) / unit).to_le_bytes());
        let (multiplier, shift) = fixed_point(unit / unit_out);
        out.multiplier.extend(multiplier.to_le_bytes());
        out.shift.push(shift);
    }
    out
}

/// `factor` as `multiplier / 2^shift` with a multiplier of 31 bits where the shift allows.
fn fixed_point(factor: f64) -> (i32, u8) {
    let mut shift = 1;
    let mut scaled = factor * 2.0;
    while scaled < f64::from(1 << 30) && shift < SHIFT_MAX {
        scaled *= 2.0;
        shift += 1;
    }
    // 2^31 - 0.4 rounds up to 2^31, which the conversion brings back.
    (rounded(scaled).max(1), shift)
}

/// The i32 nearest to `value`.
#[allow(clippy::cast_possible_truncation, reason = "the cast saturates, which is wanted")]
fn rounded(value: f64) -> i32 {
    value.round() as i32
}

impl QuantisedActor {
    /// Features of a state and knobs of an action.
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        (self.shape[0].into(), self.shape[LAYER_COUNT].into())
    }

    /// The bytes of the unsigned model file.
    ///
    /// # Errors
    /// [`DdpgError::Export`], where `about` does not fit the network or a text is too long.
    pub fn to_bytes(&self, about: &About<'_>) -> Result<Vec<u8>, DdpgError> {
        let min: Vec<u8> = about.bounds.iter().flat_map(|bound| bound.0.to_le_bytes()).collect();
        let max: Vec<u8> = about.bounds.iter().flat_map(|bound| bound.1.to_le_bytes()).collect();
        let parts = ModelParts {
            counter: about.counter,
            knob_fingerprint: knobs::FINGERPRINT,
            schema_id: about.schema.id(),
            schema_fingerprint: about.schema.fingerprint(),
            step_ms: about.step_ms,
            bounds: BoundsParts { min: &min, max: &max, tuned: about.tuned },
            card: Card {
                seed: self.seed,
                steps: self.steps,
                scenarios: about.scenarios,
                broker_versions: about.broker_versions,
                scores: about.scores,
            },
            ..self.bare(&[], &[])
        };
        let model = Model::new(parts)?;
        let arrays: usize =
            self.layers.iter().map(|layer| layer.weights.len() + layer.bias.len() * 3).sum();
        let texts = about.scenarios.len() + about.broker_versions.len() + about.scores.len();
        // Arrays, four floats per input, two u64 per knob, texts, and the small fields.
        let mut bytes = vec![0; arrays + self.mean.len() * 4 + min.len() * 2 + texts + 512];
        let length = model.write(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Int8 actions for raw states, as the gateway computes them.
    ///
    /// # Errors
    /// [`DdpgError::Export`] for a state of another length.
    pub fn act(&self, states: &[Vec<f32>]) -> Result<Vec<Vec<i8>>, DdpgError> {
        let bounds = vec![0; self.dims().1 * 8];
        let model = Model::new(self.bare(&bounds, &bounds))?;
        let act = |state: &Vec<f32>| {
            let mut action = vec![0; model.outputs()];
            model.infer(state, &mut action)?;
            Ok(action)
        };
        states.iter().map(act).collect()
    }

    /// The network with nothing said about it.
    fn bare<'a>(&'a self, min: &'a [u8], max: &'a [u8]) -> ModelParts<'a> {
        let layer = |index: usize| LayerParts {
            weights: &self.layers[index].weights,
            bias: &self.layers[index].bias,
            multiplier: &self.layers[index].multiplier,
            shift: &self.layers[index].shift,
        };
        ModelParts {
            counter: 0,
            signed: false,
            knob_fingerprint: 0,
            schema_id: 0,
            schema_fingerprint: 0,
            step_ms: 1,
            shape: self.shape,
            input: InputParts {
                mean: &self.mean,
                inv_std: &self.inv_std,
                observed_min: &self.observed_min,
                observed_max: &self.observed_max,
            },
            layers: std::array::from_fn(layer),
            bounds: BoundsParts { min, max, tuned: 0 },
            card: Card::default(),
        }
    }
}

/// Compares the f32 policy with its int8 form on raw states.
///
/// # Errors
/// As [`QuantisedActor::act`], and [`DdpgError::Length`] where there is no state at all.
pub fn deviation(
    agent: &Agent,
    quantised: &QuantisedActor,
    states: &[Vec<f32>],
) -> Result<Deviation, DdpgError> {
    DdpgError::check_length("states", states.len(), states.len().max(1))?;
    let (mut max_steps, mut sum, mut count) = (0.0f64, 0.0f64, 0usize);
    for (state, quantised) in states.iter().zip(quantised.act(states)?) {
        for (exact, quantised) in agent.act(state).into_iter().zip(quantised) {
            let error = (f64::from(exact) * 127.0 - f64::from(quantised)).abs();
            max_steps = max_steps.max(error);
            sum += error;
            count += 1;
        }
    }
    Ok(Deviation { max_steps, mean_steps: sum / count as f64, states: states.len() })
}
