//! The int8 policy network: integer-only from quantised features to int8 action.
//!
//! Three dense layers, `inputs -> hidden1 -> hidden2 -> outputs`, ReLU between them and tanh at the
//! end. Weights are int8 with one scale per output channel, activations int16, sums int32. No float
//! and no heap between the quantised input and the action, so the bits are the same on every
//! processor. `models/FORMAT.md` specifies the arithmetic; [`crate::model`] reads and checks the
//! bytes that the layers borrow.

use core::array::{from_mut, from_ref};

/// Most inputs that one layer may have: 512 products of 32767 and 127 still fit an i32.
pub const FAN_IN_MAX: usize = 512;
/// Layers of every actor: two hidden ones and the output.
pub const LAYER_COUNT: usize = 3;
/// Integer that stands for 1.0 in the quantised input and before the tanh table.
pub const ONE: i32 = 4096;
/// Normalised features are clamped to plus and minus this before they are quantised.
pub const INPUT_LIMIT: f32 = 8.0;
/// Largest magnitude of a weight; -128 is refused, so that the grid is symmetric.
pub const WEIGHT_MAX: i32 = 127;
/// Largest magnitude of an activation; -32768 does not occur.
pub const ACTIVATION_MAX: i32 = 32_767;
/// Largest right shift of a requantisation, so that product and rounding fit an i64.
pub const SHIFT_MAX: u8 = 62;
/// Largest magnitude of an action.
pub const ACTION_MAX: i32 = 127;

const _: () = assert!(
    ACTIVATION_MAX as i64 * WEIGHT_MAX as i64 * FAN_IN_MAX as i64 <= i32::MAX as i64,
    "the sum of the widest layer must fit an i32"
);

/// Steps of the tanh table per 1.0 before the tanh.
const TANH_STEPS_PER_ONE: usize = 32;
/// Width of a table step in units of 1 / [`ONE`], as a power of two: 4096 / 32 = 2^7.
const TANH_STEP_BITS: u32 = 7;
/// A table entry is 127 tanh(x) in units of 1 / 2^8.
const TANH_VALUE_BITS: u32 = 8;
/// Entries from 0 to 8 inclusive.
const TANH_ENTRIES: usize = 8 * TANH_STEPS_PER_ONE + 1;

const _: () = assert!((TANH_STEPS_PER_ONE << TANH_STEP_BITS) as i64 == ONE as i64);
const _: () = assert!((ACTIVATION_MAX >> TANH_STEP_BITS) as usize + 2 == TANH_ENTRIES);

/// 127 tanh(k / 32) x 256 for k = 0..=256; 514 bytes.
static TANH: [u16; TANH_ENTRIES] = tanh_table();

/// Builds the table at compile time from e^(2x), which is e^(1/16) multiplied up step by step.
#[allow(clippy::cast_possible_truncation, reason = "an entry is at most 127 x 256")]
const fn tanh_table() -> [u16; TANH_ENTRIES] {
    let step = 2.0 / TANH_STEPS_PER_ONE as f64;
    let mut factor = 1.0;
    let mut term = 1.0;
    let mut order = 1;
    while order < 20 {
        term = term * step / order as f64;
        factor += term;
        order += 1;
    }
    let mut table = [0u16; TANH_ENTRIES];
    let mut power = 1.0;
    let mut index = 0;
    while index < TANH_ENTRIES {
        let tanh = (power - 1.0) / (power + 1.0);
        let scaled = tanh * (ACTION_MAX << TANH_VALUE_BITS) as f64;
        table[index] = (scaled + 0.5) as u16;
        power *= factor;
        index += 1;
    }
    table
}

/// Turns one feature into the actor's input: `(value - mean) * inv_std`, clamped to ±8, in 1/4096.
///
/// Rounds half away from zero. Not a number becomes 0, which is the feature's mean; 8.0 and more
/// become 32767. The only float operations of the decision: one subtraction and one multiplication
/// in f32, the same bits wherever f32 is IEEE 754.
#[allow(clippy::cast_possible_truncation, reason = "clamped to 32768 before the cast")]
pub fn quantise_input(value: f32, mean: f32, inv_std: f32) -> i16 {
    let normalised = (value - mean) * inv_std;
    if normalised.is_nan() {
        return 0;
    }
    let clamped = normalised.clamp(-INPUT_LIMIT, INPUT_LIMIT);
    // A product with a power of two is exact, and at most 32768 in magnitude.
    saturate(i64::from(libm::roundf(clamped * ONE as f32) as i32))
}

/// Scales an int32 sum: `acc * multiplier / 2^shift`, rounded half away from zero.
///
/// `shift` is 1 to [`SHIFT_MAX`]; the model's reader refuses any other.
#[inline]
pub fn requantise(acc: i32, multiplier: i32, shift: u8) -> i64 {
    // |acc| and |multiplier| are at most 2^31, so the product is at most 2^62 and half of 2^62 more
    // is still below 2^63.
    let product = i64::from(acc) * i64::from(multiplier);
    let rounded = (product.abs() + (1i64 << (shift - 1))) >> shift;
    if product < 0 { -rounded } else { rounded }
}

/// Int8 action of a pre-activation in units of 1 / [`ONE`]: `round(127 tanh(x / 4096))`.
///
/// Table with linear interpolation, odd, one rounding (half away from zero). Before that rounding
/// the value is within 1/16 of a step of the exact one.
pub fn tanh_action(pre_activation: i16) -> i8 {
    let magnitude = i32::from(pre_activation).unsigned_abs().min(ACTIVATION_MAX as u32);
    let index = (magnitude >> TANH_STEP_BITS) as usize;
    let fraction = magnitude & ((1 << TANH_STEP_BITS) - 1);
    // The assertion above the table keeps index + 1 inside it.
    let (below, above) = (u32::from(TANH[index]), u32::from(TANH[index + 1]));
    let fine = (below << TANH_STEP_BITS) + (above - below) * fraction;
    let bits = TANH_STEP_BITS + TANH_VALUE_BITS;
    let action = narrow_action((fine + (1 << (bits - 1))) >> bits);
    if pre_activation < 0 { -action } else { action }
}

/// The int8 of a magnitude that the table keeps at or below 127.
fn narrow_action(magnitude: u32) -> i8 {
    i8::try_from(magnitude).unwrap_or(i8::MAX)
}

/// The int16 nearest to `value`, at most 32767 in magnitude.
fn saturate(value: i64) -> i16 {
    let limit = i64::from(ACTIVATION_MAX);
    // The clamp makes the conversion exact.
    i16::try_from(value.clamp(-limit, limit)).unwrap_or(0)
}

/// A layer's input, whose length is known at run time only.
pub(crate) struct Inputs<'a>(&'a [i16]);

impl<'a> From<&'a [i16]> for Inputs<'a> {
    fn from(input: &'a [i16]) -> Self {
        Self(input)
    }
}

impl Inputs<'_> {
    /// `weights . input` of one row.
    ///
    /// The model's reader has proved that the sum fits an i32 for every input.
    pub(crate) fn dot(&self, weights: &[u8]) -> i32 {
        let products = weights.iter().zip(self.0);
        products.map(|(&weight, &value)| i32::from(value) * i32::from(weight.cast_signed())).sum()
    }
}

/// [`requantise`], saturated to 16 bits; in 32-bit steps for the shifts that exporters choose.
#[inline]
fn rescale(acc: i32, (multiplier, shift): ([u8; 4], u8)) -> i32 {
    let multiplier = i32::from_le_bytes(multiplier);
    let beyond = shift.wrapping_sub(33);
    if beyond > SHIFT_MAX - 33 || multiplier < 0 {
        return i32::from(rescale_in_full(acc, multiplier, shift));
    }
    // Half a unit is added where it stands at the end: the bits below do not reach it.
    let upper = upper_product(acc.unsigned_abs(), multiplier.unsigned_abs());
    let limited = (((upper >> beyond) + 1) >> 1).min(ACTIVATION_MAX.unsigned_abs());
    let magnitude = limited.cast_signed();
    if acc < 0 { -magnitude } else { magnitude }
}

#[cold]
#[inline(never)]
fn rescale_in_full(acc: i32, multiplier: i32, shift: u8) -> i16 {
    saturate(requantise(acc, multiplier, shift))
}

/// The upper word of `a * b`; `a` is at most 2^31, `b` less.
#[inline]
fn upper_product(a: u32, b: u32) -> u32 {
    if NARROW {
        return upper_product_of_parts(a, b);
    }
    // What is left after the shift has 32 bits.
    u32::try_from((u64::from(a) * u64::from(b)) >> 32).unwrap_or(u32::MAX)
}

/// The same where a processor multiplies to 32 bits only (ARMv6-M). Parts of 15 bits, whose sums
/// carry nothing; the compiler takes parts of 16 for what they are and calls a 64-bit product.
#[inline]
fn upper_product_of_parts(a: u32, b: u32) -> u32 {
    let (a_high, a_low, b_high, b_low) = (a >> 15, a & 0x7fff, b >> 15, b & 0x7fff);
    // At most 2 (2^16 - 1) (2^15 - 1), and 2^15 more are still below 2^32.
    let middle = a_high * b_low + a_low * b_high;
    // The product without its lowest 30 bits: below 2^32.
    (a_high * b_high + ((middle + ((a_low * b_low) >> 15)) >> 15)) >> 2
}

/// A hidden channel: its sum requantised, ReLU and saturated.
#[inline]
pub(crate) fn hidden(acc: i32, scale: ([u8; 4], u8)) -> i16 {
    // Saturated already.
    i16::try_from(rectified(acc, scale)).unwrap_or(i16::MAX)
}

/// The same in 32 bits. What is not positive need not be scaled.
#[inline]
fn rectified(acc: i32, scale: ([u8; 4], u8)) -> i32 {
    if acc <= 0 { 0 } else { rescale(acc, scale).max(0) }
}

/// An output channel: its sum requantised, saturated, tanh.
#[inline]
pub(crate) fn output(acc: i32, scale: ([u8; 4], u8)) -> i8 {
    // Saturated already.
    tanh_action(i16::try_from(rescale(acc, scale)).unwrap_or(i16::MAX))
}

/// One dense layer from `I` inputs to `O` outputs, borrowing the model's bytes.
///
/// Built by [`crate::model::Model::actor`] only, from bytes that were checked.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'m, const I: usize, const O: usize> {
    /// Int8 weights, row = output channel.
    pub(crate) weights: &'m [[u8; I]; O],
    /// Int32 little-endian biases in the scale of the sum.
    pub(crate) bias: &'m [[u8; 4]; O],
    /// Int32 little-endian multipliers.
    pub(crate) multiplier: &'m [[u8; 4]; O],
    /// Right shifts.
    pub(crate) shift: &'m [u8; O],
}

impl<const I: usize, const O: usize> Layer<'_, I, O> {
    /// All channels, each passed through `activate` with its sum and scale.
    // In a function of its own, so that nothing of the caller takes a register.
    #[inline(never)]
    fn run<T>(&self, input: &[i32; I], activate: impl Fn(i32, ([u8; 4], u8)) -> T) -> [T; O] {
        let sums = self.sums(input);
        core::array::from_fn(|row| {
            let acc = i32::from_le_bytes(self.bias[row]) + sums[row];
            activate(acc, (self.multiplier[row], self.shift[row]))
        })
    }

    /// `weights . input` of every row.
    #[inline]
    fn sums(&self, input: &[i32; I]) -> [i32; O] {
        let mut sums = [0; O];
        let pairs = if PAIRS { paired(input) } else { [0; I] };
        let (blocks, rest) = self.weights.as_chunks::<ROWS>();
        let (block_sums, rest_sums) = sums.as_chunks_mut::<ROWS>();
        for (sums, rows) in block_sums.iter_mut().zip(blocks) {
            if PAIRS {
                dot_of_pairs(rows, &pairs, sums);
            } else if NARROW {
                dot_of_some(rows, input, sums);
            } else {
                dot(rows, input, sums);
            }
        }
        for (sum, row) in rest_sums.iter_mut().zip(rest) {
            dot(from_ref(row), input, from_mut(sum));
        }
        sums
    }
}

/// A processor of eight registers that multiplies to 32 bits only: ARMv6-M, which has no atomics.
const NARROW: bool = cfg!(all(target_arch = "arm", not(target_has_atomic = "32")));

/// Rows whose sums are made together, so that one load of an activation serves them all. An ARMv6-M
/// has registers for two.
const ROWS: usize = if NARROW { 2 } else { 4 };

/// Whether two activations lie in one word. The other 32-bit ARMs multiply by either half of a
/// register: 20,943 instructions for the shipped shape on a Cortex-M4 instead of 22,272.
const PAIRS: bool = cfg!(all(target_arch = "arm", target_has_atomic = "32"));

/// The products of `R` rows with `input`, each summed.
// In a function of its own, so that nothing of the caller takes a register.
#[inline(never)]
fn dot<const R: usize, const I: usize>(rows: &[[u8; I]; R], input: &[i32; I], sums: &mut [i32; R]) {
    let mut found = [0; R];
    for (column, &value) in input.iter().enumerate() {
        for (sum, row) in found.iter_mut().zip(rows) {
            *sum += i32::from(row[column].cast_signed()) * value;
        }
    }
    *sums = found;
}

/// The same for [`NARROW`]: a column whose activation is zero, as ReLU leaves many, is passed over.
#[inline(never)]
fn dot_of_some<const R: usize, const I: usize>(
    rows: &[[u8; I]; R],
    input: &[i32; I],
    sums: &mut [i32; R],
) {
    // The longest step that leaves no column over.
    *sums = if I.is_multiple_of(16) {
        dot_in_steps::<16, R, I>(rows, input)
    } else if I.is_multiple_of(12) {
        dot_in_steps::<12, R, I>(rows, input)
    } else {
        dot_in_steps::<1, R, I>(rows, input)
    };
}

/// The products of `STEP` columns a round, so that a column's index is a constant.
#[inline]
fn dot_in_steps<const STEP: usize, const R: usize, const I: usize>(
    rows: &[[u8; I]; R],
    input: &[i32; I],
) -> [i32; R] {
    let mut found = [0; R];
    for (step, values) in input.as_chunks::<STEP>().0.iter().enumerate() {
        let weights = rows.each_ref().map(|row| &row.as_chunks::<STEP>().0[step]);
        for (column, &value) in values.iter().enumerate() {
            // The branch keeps a column's work together, too: without it the compiler takes row
            // after row of a step, and the activations meanwhile leave the registers.
            if value == 0 {
                continue;
            }
            for (sum, weights) in found.iter_mut().zip(weights) {
                *sum += i32::from(weights[column].cast_signed()) * value;
            }
        }
    }
    found
}

/// The same of an input from [`paired`].
#[inline(never)]
fn dot_of_pairs<const R: usize, const I: usize>(
    rows: &[[u8; I]; R],
    pairs: &[u32; I],
    sums: &mut [i32; R],
) {
    let mut found = [0; R];
    for (index, &pair) in pairs[..I / 2].iter().enumerate() {
        let (first, second) = halves(pair);
        for (sum, row) in found.iter_mut().zip(rows) {
            *sum += i32::from(row[2 * index].cast_signed()) * first;
            *sum += i32::from(row[2 * index + 1].cast_signed()) * second;
        }
    }
    if I % 2 == 1 {
        let (last, _) = halves(pairs[I / 2]);
        for (sum, row) in found.iter_mut().zip(rows) {
            *sum += i32::from(row[I - 1].cast_signed()) * last;
        }
    }
    *sums = found;
}

/// Activations two to a word, the first of them below; the rest is zero. (Half of the words would
/// do, but a length cannot be halved in a type.)
#[inline]
fn paired<const I: usize>(input: &[i32; I]) -> [u32; I] {
    let mut pairs = [0; I];
    for (pair, values) in pairs.iter_mut().zip(input.chunks(2)) {
        let second = values.get(1).map_or(0, |value| value.cast_unsigned());
        *pair = (values[0].cast_unsigned() & 0xffff) | (second << 16);
    }
    pairs
}

/// Both halves of a pair, with their signs.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn halves(pair: u32) -> (i32, i32) {
    (i32::from(pair.cast_signed() as i16), i32::from((pair >> 16).cast_signed() as i16))
}

/// The whole policy with its shape in the type: `I` features, two hidden layers, `O` actions.
///
/// Borrows the model's bytes; get one with [`crate::model::Model::actor`].
#[derive(Clone, Copy, Debug)]
pub struct Actor<'m, const I: usize, const H1: usize, const H2: usize, const O: usize> {
    /// f32 little-endian means of the features.
    pub(crate) mean: &'m [[u8; 4]; I],
    /// f32 little-endian reciprocal standard deviations of the features.
    pub(crate) inv_std: &'m [[u8; 4]; I],
    /// First hidden layer.
    pub(crate) first: Layer<'m, I, H1>,
    /// Second hidden layer.
    pub(crate) second: Layer<'m, H1, H2>,
    /// Output layer.
    pub(crate) third: Layer<'m, H2, O>,
}

impl<const I: usize, const H1: usize, const H2: usize, const O: usize> Actor<'_, I, H1, H2, O> {
    /// Normalises and quantises the features, in the order of the model's schema; see
    /// [`quantise_input`].
    pub fn quantise(&self, features: &[f32; I]) -> [i16; I] {
        core::array::from_fn(|index| {
            quantise_input(
                features[index],
                f32::from_le_bytes(self.mean[index]),
                f32::from_le_bytes(self.inv_std[index]),
            )
        })
    }

    /// Runs the actor once.
    ///
    /// `input`: `I` features in units of 1/4096, from [`Actor::quantise`]. Returns one int8 per
    /// knob, -127 to 127. Integer-only; never fails and never allocates; needs
    /// `4 (I + 2 H1 + 2 H2 + O) + O` bytes of stack, on a 32-bit ARM with atomics `4 max(I, H1, H2)`
    /// more, and `I H1 + H1 H2 + H2 O` multiply-accumulates.
    pub fn infer(&self, input: &[i16; I]) -> [i8; O] {
        const {
            assert!(I <= FAN_IN_MAX && H1 <= FAN_IN_MAX && H2 <= FAN_IN_MAX);
        }
        // Words: an ARMv6-M loads them with an offset, and halves of them only without.
        let first = self.first.run(&input.map(i32::from), rectified);
        let second = self.second.run(&first, rectified);
        self.third.run(&second, output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Round half away from zero in exact integers: the reference for every requantisation.
    fn rounded_quotient(numerator: i128, denominator: i128) -> i128 {
        let magnitude = (2 * numerator.abs() + denominator) / (2 * denominator);
        numerator.signum() * magnitude
    }

    #[test]
    fn requantise_matches_exact_rounding() {
        let accs = [0, 1, -1, 2, -3, 1_000_003, -1_000_003, i32::MAX, -i32::MAX];
        let multipliers = [1, 2, 3, 1 << 30, 0x5555_5555, i32::MAX];
        for acc in accs {
            for multiplier in multipliers {
                for shift in 1..=SHIFT_MAX {
                    let exact =
                        rounded_quotient(i128::from(acc) * i128::from(multiplier), 1i128 << shift);
                    assert_eq!(
                        i128::from(requantise(acc, multiplier, shift)),
                        exact,
                        "{acc} x {multiplier} >> {shift}"
                    );
                }
            }
        }
    }

    #[test]
    fn rescale_is_requantise_saturated() {
        let accs = [0, 1, -1, 77, -1_000_003, 0x4000_0000, i32::MAX, i32::MIN];
        let multipliers = [1, 3, 1 << 30, 0x5555_5555, i32::MAX, -5];
        for acc in accs {
            for multiplier in multipliers {
                for shift in 1..=SHIFT_MAX {
                    let expected = saturate(requantise(acc, multiplier, shift));
                    assert_eq!(
                        rescale(acc, (multiplier.to_le_bytes(), shift)),
                        i32::from(expected),
                        "{acc} x {multiplier} >> {shift}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_upper_product_of_parts_is_exact() {
        let corners = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x3fff_8000, 0x7fff_ffff, 0x8000_0000];
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 1
        };
        let pairs = corners.into_iter().flat_map(|a| corners.map(|b| (a, b)));
        let random = std::iter::repeat_with(|| (random(), random())).take(10_000);
        let allowed = |&(a, b): &(u32, u32)| a <= 1 << 31 && b < 1 << 31;
        for (a, b) in pairs.chain(random.collect::<std::vec::Vec<_>>()).filter(allowed) {
            let exact = (u64::from(a) * u64::from(b)) >> 32;
            assert_eq!(u64::from(upper_product_of_parts(a, b)), exact, "{a} x {b}");
        }
    }

    #[test]
    fn products_in_pairs_and_of_some_columns_are_products() {
        fn check<const I: usize>(random: &mut impl FnMut() -> u32) {
            let extremes = [-32_767, 32_767, 0, 1, -1];
            let input: [i32; I] = core::array::from_fn(|index| match random() % 3 {
                0 => extremes[index % extremes.len()],
                _ => random().cast_signed() % 65_535 - 32_767,
            });
            let rows: [[u8; I]; 4] = core::array::from_fn(|_| {
                core::array::from_fn(|_| random().to_le_bytes()[0].max(1))
            });
            let (mut plain, mut of_pairs, mut of_some) = ([0; 4], [0; 4], [0; 4]);
            dot(&rows, &input, &mut plain);
            dot_of_pairs(&rows, &paired(&input), &mut of_pairs);
            dot_of_some(&rows, &input, &mut of_some);
            assert_eq!((plain, plain), (of_pairs, of_some));
            let exact = rows.map(|row| {
                row.iter()
                    .zip(input)
                    .map(|(&w, x)| i64::from(w.cast_signed()) * i64::from(x))
                    .sum::<i64>()
            });
            assert_eq!(plain.map(i64::from), exact);
        }
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        for _ in 0..100 {
            check::<1>(&mut random);
            check::<2>(&mut random);
            check::<36>(&mut random);
            check::<37>(&mut random);
            check::<64>(&mut random);
            check::<512>(&mut random);
        }
    }

    #[test]
    fn tanh_is_odd_monotone_and_close_for_every_input() {
        let mut previous = -127;
        for raw in i16::MIN..=i16::MAX {
            let action = tanh_action(raw);
            assert!(action >= previous, "{raw}: not monotone");
            previous = action;
            assert_eq!(action, -tanh_action(raw.saturating_neg()), "{raw}: not odd");
            let exact = 127.0 * libm::tanh(f64::from(raw) / f64::from(ONE));
            // Half a step for the rounding itself, 1/16 for the table.
            let error = (f64::from(action) - exact).abs();
            assert!(error < 0.5 + 1.0 / 16.0, "{raw}: {action} for {exact}");
        }
        assert_eq!(tanh_action(0), 0);
        assert_eq!(tanh_action(i16::MAX), 127);
        assert_eq!(tanh_action(i16::MIN), -127);
    }

    #[test]
    fn tanh_table_holds_the_exact_values() {
        for (index, &entry) in TANH.iter().enumerate() {
            let exact = libm::tanh(index as f64 / TANH_STEPS_PER_ONE as f64) * 32_512.0;
            let error = (f64::from(entry) - exact).abs();
            assert!(error <= 0.5 + 1e-6, "{index}: {entry} for {exact}");
        }
    }

    #[test]
    fn input_rounding_saturation_and_not_a_number() {
        assert_eq!(quantise_input(1.5, 0.5, 2.0), 8192);
        assert_eq!(quantise_input(0.5 / 4096.0, 0.0, 1.0), 1, "half goes up");
        assert_eq!(quantise_input(-0.5 / 4096.0, 0.0, 1.0), -1, "half goes down");
        // The float just below one half must not round up.
        let below_half = f32::from_bits(0.5f32.to_bits() - 1);
        assert_eq!(quantise_input(below_half, 0.0, 1.0 / 4096.0), 0);
        for huge in [8.0, 1e30, f32::INFINITY] {
            assert_eq!(quantise_input(huge, 0.0, 1.0), 32_767);
            assert_eq!(quantise_input(-huge, 0.0, 1.0), -32_767);
        }
        for (value, inv_std) in [(f32::NAN, 1.0), (f32::INFINITY, 0.0)] {
            assert_eq!(quantise_input(value, 0.0, inv_std), 0);
        }
    }
}
