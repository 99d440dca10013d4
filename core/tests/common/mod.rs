//! Models for the tests, and the actor's arithmetic written a second time.

use brokertuner_core::knobs;
use brokertuner_core::model::{BoundsParts, Card, InputParts, LayerParts, ModelParts};

/// Numbers that are the same on every machine and in every version of every library.
pub(crate) struct Lcg(u64);

impl Lcg {
    pub(crate) fn new(seed: u64) -> Self {
        Lcg(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u32 {
        let state = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = state.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Uniform in `low..=high`.
    pub(crate) fn within(&mut self, low: i64, high: i64) -> i64 {
        low + i64::from(self.next()) % (high - low + 1)
    }
}

/// The arrays of one layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnedLayer {
    pub(crate) weights: Vec<i8>,
    pub(crate) bias: Vec<i32>,
    pub(crate) multiplier: Vec<i32>,
    pub(crate) shift: Vec<u8>,
    weight_bytes: Vec<u8>,
    bias_bytes: Vec<u8>,
    multiplier_bytes: Vec<u8>,
}

impl OwnedLayer {
    pub(crate) fn new(
        weights: Vec<i8>,
        bias: Vec<i32>,
        multiplier: Vec<i32>,
        shift: Vec<u8>,
    ) -> Self {
        let weight_bytes = weights.iter().map(|weight| *weight as u8).collect();
        let bias_bytes = bias.iter().flat_map(|value| value.to_le_bytes()).collect();
        let multiplier_bytes = multiplier.iter().flat_map(|value| value.to_le_bytes()).collect();
        OwnedLayer { weights, bias, multiplier, shift, weight_bytes, bias_bytes, multiplier_bytes }
    }

    pub(crate) fn parts(&self) -> LayerParts<'_> {
        LayerParts {
            weights: &self.weight_bytes,
            bias: &self.bias_bytes,
            multiplier: &self.multiplier_bytes,
            shift: &self.shift,
        }
    }
}

/// A model that owns what [`ModelParts`] borrows.
#[derive(Clone, Debug)]
pub(crate) struct OwnedModel {
    pub(crate) shape: [u16; 4],
    pub(crate) mean: Vec<f32>,
    pub(crate) inv_std: Vec<f32>,
    pub(crate) layers: [OwnedLayer; 3],
    pub(crate) signed: bool,
    mean_bytes: Vec<u8>,
    inv_std_bytes: Vec<u8>,
    observed_min: Vec<u8>,
    observed_max: Vec<u8>,
    bounds_min: Vec<u8>,
    bounds_max: Vec<u8>,
}

fn repeat_f32(value: f32, count: u16) -> Vec<u8> {
    value.to_le_bytes().repeat(count.into())
}

impl OwnedModel {
    pub(crate) fn new(
        shape: [u16; 4],
        mean: Vec<f32>,
        inv_std: Vec<f32>,
        layers: [OwnedLayer; 3],
    ) -> Self {
        let mean_bytes = mean.iter().flat_map(|value| value.to_le_bytes()).collect();
        let inv_std_bytes = inv_std.iter().flat_map(|value| value.to_le_bytes()).collect();
        OwnedModel {
            shape,
            mean,
            inv_std,
            layers,
            signed: false,
            mean_bytes,
            inv_std_bytes,
            observed_min: repeat_f32(-1.0, shape[0]),
            observed_max: repeat_f32(2.5, shape[0]),
            bounds_min: 1u64.to_le_bytes().repeat(shape[3].into()),
            bounds_max: 1000u64.to_le_bytes().repeat(shape[3].into()),
        }
    }

    /// Random weights with scales that put the activations somewhere between 0 and saturation.
    pub(crate) fn random(shape: [u16; 4], seed: u64) -> Self {
        let mut lcg = Lcg::new(seed);
        let mut float = |low: i64, high: i64| lcg.within(low, high) as f32 / 1024.0;
        let mean = (0..shape[0]).map(|_| float(-2048, 2048)).collect();
        let inv_std = (0..shape[0]).map(|_| float(0, 4096)).collect();
        let layers = std::array::from_fn(|index| {
            let (inputs, outputs) = (i64::from(shape[index]), i64::from(shape[index + 1]));
            let weights = (0..inputs * outputs).map(|_| lcg.within(-127, 127) as i8).collect();
            let bias = (0..outputs).map(|_| lcg.within(-1 << 16, 1 << 16) as i32).collect();
            let multiplier = (0..outputs).map(|_| lcg.within(1 << 30, 0x7fff_ffff) as i32);
            let multiplier = multiplier.collect();
            let shift = (0..outputs).map(|_| lcg.within(37, 42) as u8).collect();
            OwnedLayer::new(weights, bias, multiplier, shift)
        });
        Self::new(shape, mean, inv_std, layers)
    }

    pub(crate) fn parts(&self) -> ModelParts<'_> {
        let [first, second, third] = &self.layers;
        ModelParts {
            counter: 300,
            signed: self.signed,
            knob_fingerprint: knobs::FINGERPRINT,
            schema_id: 1,
            schema_fingerprint: 0x89ab_cdef,
            step_ms: 5000,
            shape: self.shape,
            input: InputParts {
                mean: &self.mean_bytes,
                inv_std: &self.inv_std_bytes,
                observed_min: &self.observed_min,
                observed_max: &self.observed_max,
            },
            layers: [first.parts(), second.parts(), third.parts()],
            bounds: BoundsParts { min: &self.bounds_min, max: &self.bounds_max, tuned: 0b1 },
            card: Card {
                seed: 7,
                steps: 150,
                scenarios: "wan-uplink",
                broker_versions: "2.0.21",
                scores: "wan-uplink 0.98",
            },
        }
    }

    /// The action by exact rational arithmetic in i128, channel by channel, from the
    /// specification in `models/FORMAT.md` and nothing of the code under test.
    pub(crate) fn reference(&self, features: &[f32]) -> Vec<i8> {
        let normalised = features.iter().zip(&self.mean).zip(&self.inv_std);
        let mut values: Vec<i128> = normalised
            .map(|((value, mean), inv_std)| match (value - mean) * inv_std {
                number if number.is_nan() => 0,
                number => (f64::from(number) * 4096.0).round().clamp(-32767.0, 32767.0) as i128,
            })
            .collect();
        for (index, layer) in self.layers.iter().enumerate() {
            let fan_in = values.len();
            let floor = if index == 2 { -32767 } else { 0 };
            let channel = |row: usize| {
                let mut sum = i128::from(layer.bias[row]);
                for (column, value) in values.iter().enumerate() {
                    sum += i128::from(layer.weights[row * fan_in + column]) * value;
                }
                let scaled = sum * i128::from(layer.multiplier[row]);
                divide_rounded(scaled, 1 << layer.shift[row]).clamp(floor, 32767)
            };
            values = (0..layer.bias.len()).map(channel).collect();
        }
        values.iter().map(|&value| tanh_reference(value)).collect()
    }
}

/// `numerator / denominator`, half away from zero.
fn divide_rounded(numerator: i128, denominator: i128) -> i128 {
    numerator.signum() * ((numerator.abs() * 2 + denominator) / (denominator * 2))
}

/// 127 tanh(value / 4096) between the table's points by exact rational interpolation.
fn tanh_reference(value: i128) -> i8 {
    let point = |index: i128| (32512.0 * (index as f64 / 32.0).tanh()).round() as i128;
    let (index, fraction) = (value.abs() / 128, value.abs() % 128);
    let sum = point(index) * (128 - fraction) + point(index + 1) * fraction;
    (value.signum() * divide_rounded(sum, 128 * 256)) as i8
}
