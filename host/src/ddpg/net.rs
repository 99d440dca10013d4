//! Multi-layer perceptrons: forward and backward over whole batches.
//!
//! Activations are `features x batch` with the batch contiguous; weights are `outputs x inputs`,
//! row by row, as in the model file. The matrix products are faer's, on one thread, so that the
//! same numbers give the same bits.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rand::RngExt;
use rand_pcg::Pcg32;
use std::ops::Range;

/// Added to a sample's variance before its root is taken.
const LAYER_NORM_EPSILON: f32 = 1e-5;

/// A dense network: ReLU between its layers, a linear last one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mlp {
    /// Inputs, hidden widths, outputs.
    dims: Vec<usize>,
    /// Layer normalisation without gain and bias before each ReLU.
    layer_norm: bool,
    /// Per layer its weights, then its biases.
    pub(super) params: Vec<f32>,
}

/// What a forward pass leaves behind for the backward pass.
#[derive(Clone, Debug)]
pub(super) struct Tape {
    batch: usize,
    /// Input, activations of the hidden layers, output.
    values: Vec<Vec<f32>>,
    /// Gradient of the loss by each of `values`.
    grads: Vec<Vec<f32>>,
    /// Values between layer normalisation and ReLU, and 1 / deviation per sample.
    normed: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Mlp {
    /// Uniform weights and biases of half width `1 / sqrt(inputs)`, the last layer's `final_init`.
    pub(super) fn new(dims: &[usize], final_init: f32, layer_norm: bool, rng: &mut Pcg32) -> Self {
        let mut params = Vec::new();
        let layers = dims.len() - 1;
        for (index, pair) in dims.windows(2).enumerate() {
            let (inputs, outputs) = (pair[0], pair[1]);
            let last = index + 1 == layers;
            let width = if last { final_init } else { (inputs as f32).sqrt().recip() };
            let count = (inputs + 1) * outputs;
            params.extend((0..count).map(|_| rng.random_range(-width..=width)));
        }
        Mlp { dims: dims.to_vec(), layer_norm, params }
    }

    /// Inputs, hidden widths, outputs.
    pub(super) fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of layers.
    pub(super) fn layers(&self) -> usize {
        self.dims.len() - 1
    }

    /// Where the weights and the biases of a layer stand in `params`.
    pub(super) fn spans(&self, layer: usize) -> (Range<usize>, Range<usize>) {
        let sizes = self.dims.windows(2).map(|pair| (pair[0] + 1) * pair[1]);
        let start: usize = sizes.take(layer).sum();
        let weights = self.dims[layer] * self.dims[layer + 1];
        let middle = start + weights;
        (start..middle, middle..middle + self.dims[layer + 1])
    }

    /// Runs the network on the batch in [`Tape::input`].
    pub(super) fn forward(&self, tape: &mut Tape) {
        let batch = tape.batch;
        for layer in 0..self.layers() {
            let (inputs, outputs) = (self.dims[layer], self.dims[layer + 1]);
            let (weights, biases) = self.spans(layer);
            let (done, todo) = tape.values.split_at_mut(layer + 1);
            let out = &mut todo[0];
            matmul(
                MatMut::from_row_major_slice_mut(out, outputs, batch),
                Accum::Replace,
                MatRef::from_row_major_slice(&self.params[weights], outputs, inputs),
                MatRef::from_row_major_slice(&done[layer], inputs, batch),
                1.0f32,
                Par::Seq,
            );
            let hidden = layer + 1 < self.layers();
            let normed = hidden && self.layer_norm;
            let floor = if hidden && !normed { 0.0 } else { f32::NEG_INFINITY };
            let biases = &self.params[biases];
            let norm = if normed { tape.normed.get_mut(layer) } else { None };
            vectorised(
                #[inline(always)]
                || {
                    for (row, bias) in out.chunks_exact_mut(batch).zip(biases) {
                        row.iter_mut().for_each(|value| *value = (*value + bias).max(floor));
                    }
                    if let Some((kept, inv_std)) = norm {
                        layer_norm(out, kept, inv_std, batch);
                    }
                },
            );
        }
    }

    /// Takes the gradient from [`Tape::output_grad`] back to the parameters, where `param_grads` is
    /// given, and to the rows `input_rows` of the input, in [`Tape::input_grad`].
    pub(super) fn backward(
        &self,
        tape: &mut Tape,
        mut param_grads: Option<&mut [f32]>,
        input_rows: Range<usize>,
    ) {
        let batch = tape.batch;
        for layer in (0..self.layers()).rev() {
            let (inputs, outputs) = (self.dims[layer], self.dims[layer + 1]);
            let (weights, biases) = self.spans(layer);
            if layer + 1 < self.layers() {
                backward_activation(tape, layer);
            }
            let (below, above) = tape.grads.split_at_mut(layer + 1);
            let grad = MatRef::from_row_major_slice(&above[0], outputs, batch);
            if let Some(grads) = param_grads.as_deref_mut() {
                matmul(
                    MatMut::from_row_major_slice_mut(&mut grads[weights.clone()], outputs, inputs),
                    Accum::Replace,
                    grad,
                    MatRef::from_row_major_slice(&tape.values[layer], inputs, batch).transpose(),
                    1.0f32,
                    Par::Seq,
                );
                for (sum, row) in grads[biases].iter_mut().zip(above[0].chunks_exact(batch)) {
                    *sum = row_sum(row);
                }
            }
            let rows = if layer == 0 { input_rows.clone() } else { 0..inputs };
            if rows.is_empty() {
                continue;
            }
            let matrix = MatRef::from_row_major_slice(&self.params[weights], outputs, inputs);
            let target = &mut below[layer][rows.start * batch..rows.end * batch];
            matmul(
                MatMut::from_row_major_slice_mut(target, rows.len(), batch),
                Accum::Replace,
                matrix.subcols(rows.start, rows.len()).transpose(),
                grad,
                1.0f32,
                Par::Seq,
            );
        }
    }
}

impl Tape {
    /// Room for a batch through `net`.
    pub(super) fn new(net: &Mlp, batch: usize) -> Self {
        let values: Vec<Vec<f32>> = net.dims.iter().map(|dim| vec![0.0; dim * batch]).collect();
        let hidden = &net.dims[1..net.layers()];
        let normed = match net.layer_norm {
            true => hidden.iter().map(|dim| (vec![0.0; dim * batch], vec![0.0; batch])).collect(),
            false => Vec::new(),
        };
        Tape { batch, grads: values.clone(), values, normed }
    }

    /// The input, `features x batch`.
    pub(super) fn input(&mut self) -> &mut [f32] {
        &mut self.values[0]
    }

    /// The output, `outputs x batch`.
    pub(super) fn output(&self) -> &[f32] {
        self.values.last().map_or(&[], Vec::as_slice)
    }

    /// The input, a hidden layer's activations or the output, `features x batch`.
    pub(super) fn values(&self, layer: usize) -> &[f32] {
        &self.values[layer]
    }

    /// Gradient of the loss by the output: set it before the backward pass.
    pub(super) fn output_grad(&mut self) -> &mut [f32] {
        self.grads.last_mut().map_or(&mut [], Vec::as_mut_slice)
    }

    /// Gradient of the loss by the input, in the rows that were asked for.
    pub(super) fn input_grad(&self) -> &[f32] {
        &self.grads[0]
    }
}

/// Gradient through the ReLU, and the layer normalisation, of a hidden layer; in place.
fn backward_activation(tape: &mut Tape, layer: usize) {
    let (grad, values) = (&mut tape.grads[layer + 1], &tape.values[layer + 1]);
    let (norm, batch) = (tape.normed.get(layer), tape.batch);
    vectorised(
        #[inline(always)]
        || {
            for (grad, value) in grad.iter_mut().zip(values) {
                *grad = if *value > 0.0 { *grad } else { 0.0 };
            }
            if let Some((normed, inv_std)) = norm {
                layer_norm_backward(grad, normed, inv_std, batch);
            }
        },
    );
}

/// Normalises each sample over the layer, keeps that, and applies the ReLU.
#[inline(always)]
fn layer_norm(values: &mut [f32], kept: &mut [f32], inv_std: &mut [f32], batch: usize) {
    let scale = (values.len() as f32 / batch as f32).recip();
    let mut mean = vec![0.0f32; batch];
    for row in values.chunks_exact(batch) {
        mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value * scale);
    }
    inv_std.fill(0.0);
    for (row, kept) in values.chunks_exact(batch).zip(kept.chunks_exact_mut(batch)) {
        for (((kept, value), mean), sum) in kept.iter_mut().zip(row).zip(&mean).zip(&mut *inv_std) {
            *kept = value - mean;
            *sum += *kept * *kept * scale;
        }
    }
    inv_std.iter_mut().for_each(|sum| *sum = (*sum + LAYER_NORM_EPSILON).sqrt().recip());
    for (row, kept) in values.chunks_exact_mut(batch).zip(kept.chunks_exact_mut(batch)) {
        for ((value, kept), inv_std) in row.iter_mut().zip(kept).zip(&*inv_std) {
            *kept *= inv_std;
            *value = kept.max(0.0);
        }
    }
}

/// `grad` by the normalised values becomes that by the values before: with n its mean over the
/// layer, `(grad - n(grad) - normed n(grad normed)) / deviation`.
#[inline(always)]
fn layer_norm_backward(grad: &mut [f32], normed: &[f32], inv_std: &[f32], batch: usize) {
    let scale = (grad.len() as f32 / batch as f32).recip();
    let (mut mean, mut along) = (vec![0.0f32; batch], vec![0.0f32; batch]);
    for (grad, normed) in grad.chunks_exact(batch).zip(normed.chunks_exact(batch)) {
        for (((grad, normed), mean), along) in
            grad.iter().zip(normed).zip(&mut mean).zip(&mut along)
        {
            *mean += grad * scale;
            *along += grad * normed * scale;
        }
    }
    for (grad, normed) in grad.chunks_exact_mut(batch).zip(normed.chunks_exact(batch)) {
        let statistics = mean.iter().zip(&along).zip(inv_std);
        for ((grad, normed), ((mean, along), inv_std)) in
            grad.iter_mut().zip(normed).zip(statistics)
        {
            *grad = (*grad - mean - normed * along) * inv_std;
        }
    }
}

/// Sum of a row in eight interleaved parts, in an order that does not depend on the processor.
pub(super) fn row_sum(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<8>();
    let mut parts = [0.0f32; 8];
    for chunk in chunks {
        parts.iter_mut().zip(chunk).for_each(|(part, value)| *part += value);
    }
    parts.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// tanh of every element.
pub(super) fn tanh_into(slots: &mut [f32], values: &[f32]) {
    vectorised(
        #[inline(always)]
        || slots.iter_mut().zip(values).for_each(|(slot, &value)| *slot = tanh(value)),
    );
}

/// Runs `op` compiled for the widest vectors of this processor. Sums keep their order and nothing
/// is fused, so the bits are the same on all of them.
#[inline(always)]
pub(super) fn vectorised<R>(op: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(op)
}

/// tanh within 1e-6, as a quotient of polynomials that the compiler can vectorise.
///
/// Coefficients of Eigen's `generic_fast_tanh_float`; beyond ±7.9 it is 1 in f32.
#[inline(always)]
pub(super) fn tanh(value: f32) -> f32 {
    const ODD: [f32; 7] = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619e-4,
        4.893_524_6e-3,
    ];
    const EVEN: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    let value = value.clamp(-7.905_311, 7.905_311);
    let square = value * value;
    let polynomial = |coefficients: &[f32]| {
        coefficients.iter().fold(0.0f32, |sum, coefficient| sum * square + coefficient)
    };
    (value * polynomial(&ODD) / polynomial(&EVEN)).clamp(-1.0, 1.0)
}
