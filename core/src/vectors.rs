//! Eight products at once, on the 64-bit processors that always have a vector unit.
//!
//! The compiler vectorises loops only where it builds for speed, and not when it links a program for
//! size, as the gateway's is: one inference of 36-64-64-11 took 4.7 us there without these, and 1.0 us
//! with them on the same machine. The same bits as [`Inputs`].

use crate::actor::{FAN_IN_MAX, Inputs};
use wide::{bytemuck, i16x8, i32x4};

/// Weights that one load takes.
const COLUMNS: usize = 16;
/// Bits of a weight.
const WEIGHT_BITS: u32 = 8;

/// A layer's input, put in order once for all its rows.
pub(crate) struct Vectors<'a> {
    /// The even and the odd columns of each sixteen, as a load of int8 weights lies in int16 lanes.
    sixteens: [[i16x8; 2]; FAN_IN_MAX / COLUMNS],
    /// What is left over by the sixteens.
    rest: Inputs<'a>,
}

impl<'a> From<&'a [i16]> for Vectors<'a> {
    /// `input`: at most [`FAN_IN_MAX`] activations, none of them -32768. Takes 1 KiB.
    fn from(input: &'a [i16]) -> Self {
        let (chunks, rest) = input.as_chunks::<COLUMNS>();
        let mut sixteens = [[i16x8::ZERO; 2]; FAN_IN_MAX / COLUMNS];
        for (vectors, chunk) in sixteens.iter_mut().zip(chunks) {
            let pairs = chunk.as_chunks::<2>().0;
            let every_second = |first: usize| core::array::from_fn(|pair| pairs[pair][first]);
            *vectors = [0, 1].map(|first| i16x8::new(every_second(first)));
        }
        Self { sixteens, rest: Inputs::from(rest) }
    }
}

impl Vectors<'_> {
    /// `weights . input` of one row, whose sum is known to fit an i32 with any signs: so do those of
    /// its lanes.
    #[inline]
    pub(crate) fn dot(&self, weights: &[u8]) -> i32 {
        let (chunks, rest) = weights.as_chunks::<COLUMNS>();
        let mut sums = i32x4::ZERO;
        for (&chunk, [even, odd]) in chunks.iter().zip(&self.sixteens) {
            let pairs: i16x8 = bytemuck::cast(chunk);
            sums += ((pairs << WEIGHT_BITS) >> WEIGHT_BITS).dot(*even);
            sums += (pairs >> WEIGHT_BITS).dot(*odd);
        }
        sums.reduce_add() + self.rest.dot(rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    proptest! {
        #[test]
        fn a_row_has_the_sum_of_its_products(
            row in proptest::collection::vec((-127i8..=127, -32_767i16..=32_767), 1..=FAN_IN_MAX),
        ) {
            let (weights, input): (Vec<i8>, Vec<i16>) = row.into_iter().unzip();
            let weights: Vec<u8> = weights.into_iter().map(i8::cast_unsigned).collect();
            let expected = Inputs::from(&*input).dot(&weights);
            prop_assert_eq!(Vectors::from(&*input).dot(&weights), expected);
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        for width in [1u16, 15, 16, 17, 36, 64, 511, 512] {
            for (weight, value) in [(127, 32_767), (127, -32_767), (-127, 32_767), (-127, -32_767)]
            {
                let exact = i64::from(weight) * i64::from(value) * i64::from(width);
                let row = std::vec![i8::cast_unsigned(weight); usize::from(width)];
                let input = std::vec![value; usize::from(width)];
                let found = Vectors::from(&*input).dot(&row);
                assert_eq!(i64::from(found), exact, "{width} x {weight} x {value}");
            }
        }
    }
}
