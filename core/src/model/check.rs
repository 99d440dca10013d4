//! The checks that stand between decoded parts and a [`super::Model`].

use super::{
    BoundsParts, Card, InputParts, LayerParts, ModelError, ModelParts, OUTPUTS_MAX, Part,
    TEXT_BYTES_MAX, floats, longs, sum_worst,
};
use crate::actor::{FAN_IN_MAX, LAYER_COUNT, SHIFT_MAX};

/// [`FAN_IN_MAX`] in the type of the shape.
const WIDTH_MAX: u16 = 512;
const _: () = assert!(WIDTH_MAX as usize == FAN_IN_MAX);

/// Checks all parts against each other and against the arithmetic.
pub(super) fn parts(parts: &ModelParts<'_>) -> Result<(), ModelError> {
    let shape = shape(parts.shape)?;
    if parts.step_ms == 0 {
        return Err(value(Part::Head, "step_ms", 0, "at least 1"));
    }
    input(&parts.input, shape[0])?;
    for (index, layer_parts) in (0u8..).zip(&parts.layers) {
        let position = usize::from(index);
        layer(layer_parts, index, shape[position], shape[position + 1])?;
    }
    bounds(&parts.bounds, shape[LAYER_COUNT])?;
    card(&parts.card)
}

/// Every width is at least 1; fan-in and the knob mask limit them above.
fn shape(shape: [u16; LAYER_COUNT + 1]) -> Result<[usize; LAYER_COUNT + 1], ModelError> {
    for (index, &found) in (0u8..).zip(&shape) {
        let outputs = usize::from(index) == LAYER_COUNT;
        let max = if outputs { OUTPUTS_MAX } else { WIDTH_MAX };
        if found == 0 || found > max {
            return Err(ModelError::Width { index, found, max });
        }
    }
    Ok(shape.map(usize::from))
}

fn input(input: &InputParts<'_>, inputs: usize) -> Result<(), ModelError> {
    let part = Part::Input;
    let fields = [
        ("mean", input.mean),
        ("inv_std", input.inv_std),
        ("observed_min", input.observed_min),
        ("observed_max", input.observed_max),
    ];
    for (field, bytes) in fields {
        length(part, field, bytes, inputs * 4)?;
        if let Some(index) = floats(bytes).position(|number| !number.is_finite()) {
            return Err(value(part, field, index, "a finite number"));
        }
    }
    if let Some(index) = floats(input.inv_std).position(|number| number < 0.0) {
        return Err(value(part, "inv_std", index, "zero or more"));
    }
    let ranges = floats(input.observed_min).zip(floats(input.observed_max));
    match ranges.into_iter().position(|(min, max)| min > max) {
        Some(index) => Err(value(part, "observed_max", index, "at least observed_min")),
        None => Ok(()),
    }
}

fn layer(
    layer: &LayerParts<'_>,
    index: u8,
    inputs: usize,
    outputs: usize,
) -> Result<(), ModelError> {
    let part = Part::Layer(index);
    length(part, "weights", layer.weights, inputs * outputs)?;
    length(part, "bias", layer.bias, outputs * 4)?;
    length(part, "multiplier", layer.multiplier, outputs * 4)?;
    length(part, "shift", layer.shift, outputs)?;
    let reserved = |weight: &u8| weight.cast_signed() == i8::MIN;
    if let Some(at) = layer.weights.iter().position(reserved) {
        return Err(value(part, "weights", at, "-127 to 127"));
    }
    if let Some(at) = ints(layer.multiplier).position(|multiplier| multiplier < 1) {
        return Err(value(part, "multiplier", at, "at least 1"));
    }
    let legal = 1..=SHIFT_MAX;
    if let Some(at) = layer.shift.iter().position(|shift| !legal.contains(shift)) {
        return Err(value(part, "shift", at, "1 to 62"));
    }
    let max = u64::from(i32::MAX.unsigned_abs());
    let rows = layer.weights.chunks_exact(inputs).zip(ints(layer.bias));
    for (channel, (weights, bias)) in rows.enumerate() {
        let found = sum_worst(weights, bias);
        if found > max {
            return Err(ModelError::SumOverflow { layer: index, channel, found, max });
        }
    }
    Ok(())
}

fn bounds(bounds: &BoundsParts<'_>, outputs: usize) -> Result<(), ModelError> {
    let part = Part::Bounds;
    length(part, "min", bounds.min, outputs * 8)?;
    length(part, "max", bounds.max, outputs * 8)?;
    let mut ranges = longs(bounds.min).zip(longs(bounds.max));
    if let Some(index) = ranges.position(|(min, max)| min > max) {
        return Err(value(part, "max", index, "at least min"));
    }
    if u32::from(bounds.tuned) >> outputs != 0 {
        return Err(value(part, "tuned", 0, "a bit of an existing knob"));
    }
    Ok(())
}

/// Texts end up on terminals and in reports, so control characters are refused.
fn card(card: &Card<'_>) -> Result<(), ModelError> {
    let texts = [
        ("scenarios", card.scenarios),
        ("broker_versions", card.broker_versions),
        ("scores", card.scores),
    ];
    for (field, text) in texts {
        if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
            let expected = "a text of at most 512 bytes without control characters";
            return Err(value(Part::Card, field, 0, expected));
        }
    }
    Ok(())
}

fn length(
    part: Part,
    field: &'static str,
    bytes: &[u8],
    expected_bytes: usize,
) -> Result<(), ModelError> {
    let found_bytes = bytes.len();
    if found_bytes == expected_bytes {
        return Ok(());
    }
    Err(ModelError::PartBytes { part, field, found_bytes, expected_bytes })
}

fn value(part: Part, field: &'static str, index: usize, expected: &'static str) -> ModelError {
    ModelError::Value { part, field, index, expected }
}

/// The i32 values of a little-endian array.
fn ints(bytes: &[u8]) -> impl Iterator<Item = i32> + '_ {
    bytes.as_chunks().0.iter().map(|&number| i32::from_le_bytes(number))
}
