//! The same network in crate `microflow`, for the bench: its own int8 layers, called with weights
//! of a generator. It has no tanh, and its activations have 8 bits where ours have 16.

use microflow::activation::FusedActivation;
use microflow::buffer::Buffer2D;
use microflow::ops::{FullyConnectedOptions, fully_connected};
use microflow::tensor::Tensor2D;
use nalgebra::ArrayStorage;

use crate::HIDDEN;
use brokertuner_core::KNOB_COUNT;
use brokertuner_core::features::Schema;

const INPUTS: usize = Schema::Edge.len();

type Weights<const I: usize, const O: usize> = Tensor2D<i8, I, O, 1>;

static FIRST: Weights<INPUTS, { HIDDEN[0] }> = weights(1);
static SECOND: Weights<{ HIDDEN[0] }, { HIDDEN[1] }> = weights(2);
static THIRD: Weights<{ HIDDEN[1] }, KNOB_COUNT> = weights(3);

const fn weights<const I: usize, const O: usize>(seed: u32) -> Weights<I, O> {
    let mut state = seed;
    let mut array = [[0i8; I]; O];
    let mut row = 0;
    while row < O {
        let mut column = 0;
        while column < I {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            array[row][column] = (state >> 24) as i8;
            column += 1;
        }
        row += 1;
    }
    Tensor2D::new(Buffer2D::from_array_storage(ArrayStorage(array)), [0.01], [0])
}

fn layer<const I: usize, const O: usize>(
    input: Tensor2D<i8, 1, I, 1>,
    weights: &Weights<I, O>,
    fused_activation: FusedActivation,
) -> Tensor2D<i8, 1, O, 1> {
    let options = FullyConnectedOptions { fused_activation };
    let constants = (Buffer2D::zeros(), 0.001, Buffer2D::zeros(), 0);
    fully_connected(input, weights, [0.05], [0], options, constants)
}

/// One inference.
pub fn infer(input: &[i8; INPUTS]) -> [i8; KNOB_COUNT] {
    let input = Tensor2D::new(Buffer2D::from_fn(|_, column| input[column]), [0.05], [0]);
    let first = layer(input, &FIRST, FusedActivation::Relu);
    let second = layer(first, &SECOND, FusedActivation::Relu);
    let third = layer(second, &THIRD, FusedActivation::None);
    core::array::from_fn(|knob| third.buffer[(0, knob)])
}
