//! The model file (`.btm`): reads it without copying, checks all of it, writes it.
//!
//! ```text
//! "BTM1" | format version u16 | body length u32 | body | CRC-32 u32 | [Ed25519 signature, 64 bytes]
//! ```
//! All integers little-endian; the body is postcard. `models/FORMAT.md` is the specification byte
//! by byte. A [`Model`] can only be had from parts that passed every check, so inference cannot
//! fail, overflow or index out of range.

mod answer;
mod check;
mod error;

pub use answer::{Answer, BEYOND_MARGIN, Beyond};
pub use error::{ModelError, Part};

use crate::actor::{self, ACTIVATION_MAX, Actor, FAN_IN_MAX, LAYER_COUNT, Layer, quantise_input};
use crate::features::Schema;
use crate::knobs::{self, KNOB_COUNT};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::vectors::Vectors as Inputs;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use actor::Inputs;
use serde::{Deserialize, Serialize};

/// First bytes of every model file.
pub const MAGIC: [u8; 4] = *b"BTM1";
/// The format version that this program reads and writes.
pub const FORMAT_VERSION: u16 = 1;
/// Magic, version and body length.
pub const HEADER_BYTES: usize = 10;
/// The checksum after the body.
pub const CHECKSUM_BYTES: usize = 4;
/// The Ed25519 signature after the checksum, where the model is signed.
pub const SIGNATURE_BYTES: usize = 64;
/// Most outputs: the tuned knobs are a 16-bit mask.
pub const OUTPUTS_MAX: u16 = 16;
/// Longest text of the card, in bytes.
pub const TEXT_BYTES_MAX: usize = 512;

/// [`LAYER_COUNT`] as it stands in the file.
const LAYER_COUNT_ON_WIRE: u8 = 3;
const _: () = assert!(LAYER_COUNT_ON_WIRE as usize == LAYER_COUNT);

/// CRC-32 as in zip, PNG and Ethernet.
static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// CRC-32 (ISO-HDLC) of `bytes`, as the model file uses it.
pub fn checksum(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes)
}

/// How features become the actor's input, and the range in which they were seen in training.
///
/// Each field holds one f32, little-endian, per input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputParts<'m> {
    /// Subtracted first; finite.
    pub mean: &'m [u8],
    /// Multiplied then; finite and not negative, 0 for a feature that the actor ignores.
    pub inv_std: &'m [u8],
    /// Smallest raw value seen in training.
    pub observed_min: &'m [u8],
    /// Largest raw value seen in training.
    pub observed_max: &'m [u8],
}

/// One dense layer of `outputs` channels with `inputs` weights each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerParts<'m> {
    /// Int8, one row of `inputs` per channel; -128 is refused.
    pub weights: &'m [u8],
    /// Int32 little-endian per channel, in the scale of the sum.
    pub bias: &'m [u8],
    /// Int32 little-endian per channel, at least 1.
    pub multiplier: &'m [u8],
    /// Right shift per channel, 1 to 62.
    pub shift: &'m [u8],
}

/// The operator bounds that the model was trained within, in knob-table order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundsParts<'m> {
    /// u64 little-endian per knob, in the broker's own units.
    pub min: &'m [u8],
    /// u64 little-endian per knob, at least `min`.
    pub max: &'m [u8],
    /// Bit k is set where knob k was tuned, clear where it was held.
    pub tuned: u16,
}

/// Where a model comes from; each text is at most [`TEXT_BYTES_MAX`] bytes without control
/// characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card<'m> {
    /// Seed of the training run.
    pub seed: u64,
    /// Environment steps trained.
    pub steps: u64,
    /// Scenarios trained on.
    pub scenarios: &'m str,
    /// Mosquitto versions trained on.
    pub broker_versions: &'m str,
    /// Scores measured when it was exported.
    pub scores: &'m str,
}

/// Everything a model file says, unchecked. [`Model::new`] checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelParts<'m> {
    /// Grows with every release of a model: against roll-back of signed ones.
    pub counter: u64,
    /// A signature follows the checksum.
    pub signed: bool,
    /// [`knobs::FINGERPRINT`] of the table it was made for.
    pub knob_fingerprint: u32,
    /// Id of the feature schema.
    pub schema_id: u8,
    /// Fingerprint of the feature schema.
    pub schema_fingerprint: u32,
    /// Decision interval it was trained with, in milliseconds; at least 1.
    pub step_ms: u32,
    /// Inputs, first hidden layer, second hidden layer, outputs.
    pub shape: [u16; LAYER_COUNT + 1],
    /// Normalisation and observed range of the features.
    pub input: InputParts<'m>,
    /// First hidden layer, second hidden layer, output layer.
    pub layers: [LayerParts<'m>; LAYER_COUNT],
    /// Operator bounds of the training.
    pub bounds: BoundsParts<'m>,
    /// The training card.
    pub card: Card<'m>,
}

/// The first fields on the wire: what decides whether the rest can be read at all.
#[derive(Serialize, Deserialize)]
struct Head {
    counter: u64,
    signed: bool,
    #[serde(with = "postcard::fixint::le")]
    knob_fingerprint: u32,
    schema_id: u8,
    #[serde(with = "postcard::fixint::le")]
    schema_fingerprint: u32,
    step_ms: u32,
    layer_count: u8,
    shape: [u16; LAYER_COUNT + 1],
}

/// A checked model, borrowing the bytes of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model<'m> {
    parts: ModelParts<'m>,
    signature: Option<&'m [u8; SIGNATURE_BYTES]>,
}

impl<'m> Model<'m> {
    /// Checks `parts`; the model has no signature yet, even where `parts.signed` announces one.
    ///
    /// # Errors
    /// The first part that is not as the format demands. O(weights).
    pub fn new(parts: ModelParts<'m>) -> Result<Self, ModelError> {
        check::parts(&parts)?;
        Ok(Model { parts, signature: None })
    }

    /// Reads a model for this program's knob table and one of its feature schemas.
    ///
    /// # Errors
    /// As [`Model::parse`]; [`ModelError::KnobTable`], [`ModelError::UnknownSchema`] or
    /// [`ModelError::Schema`] where it was made for another program; [`ModelError::Shape`] where it
    /// does not have the schema's features and the table's knobs.
    pub fn read(bytes: &'m [u8]) -> Result<Self, ModelError> {
        let model = Self::parse(bytes)?;
        let parts = &model.parts;
        let (found, expected) = (parts.knob_fingerprint, knobs::FINGERPRINT);
        if found != expected {
            return Err(ModelError::KnobTable { found, expected });
        }
        let found = parts.schema_id;
        let schema = model.schema().ok_or(ModelError::UnknownSchema { found })?;
        let (found, expected) = (parts.schema_fingerprint, schema.fingerprint());
        if found != expected {
            return Err(ModelError::Schema { id: parts.schema_id, found, expected });
        }
        let found = parts.shape;
        let [_, hidden1, hidden2, _] = found.map(usize::from);
        let expected = [schema.len(), hidden1, hidden2, KNOB_COUNT];
        if found.map(usize::from) != expected {
            return Err(ModelError::Shape { found, expected });
        }
        Ok(model)
    }

    /// The feature schema it was made for, where this program knows it; always after
    /// [`Model::read`].
    pub fn schema(&self) -> Option<Schema> {
        Schema::from_id(self.parts.schema_id)
    }

    /// Reads a model whatever table and schema it was made for: for inspection. Never panics.
    ///
    /// # Errors
    /// The first byte or part that is not as the format demands.
    pub fn parse(bytes: &'m [u8]) -> Result<Self, ModelError> {
        let expected_bytes = HEADER_BYTES + CHECKSUM_BYTES;
        let too_short = ModelError::TooShort { found_bytes: bytes.len(), expected_bytes };
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or(too_short)?;
        if *magic != MAGIC {
            return Err(ModelError::Magic { found: *magic });
        }
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(too_short)?;
        let found = u16::from_le_bytes(*version);
        if found != FORMAT_VERSION {
            return Err(ModelError::Version { found, expected: FORMAT_VERSION });
        }
        let (body_bytes, rest) = rest.split_first_chunk::<4>().ok_or(too_short)?;
        let body_bytes = u32::from_le_bytes(*body_bytes);
        let unsigned_bytes = u64::from(body_bytes) + (HEADER_BYTES + CHECKSUM_BYTES) as u64;
        let wrong_length =
            |expected_bytes| ModelError::Length { found_bytes: bytes.len(), expected_bytes };
        let (body, rest) = usize::try_from(body_bytes)
            .ok()
            .and_then(|length| rest.split_at_checked(length))
            .ok_or(wrong_length(unsigned_bytes))?;
        let (stored, tail) =
            rest.split_first_chunk::<CHECKSUM_BYTES>().ok_or(wrong_length(unsigned_bytes))?;
        let expected = u32::from_le_bytes(*stored);
        let found = checksum(&bytes[..HEADER_BYTES + body.len()]);
        if found != expected {
            return Err(ModelError::Checksum { found, expected });
        }
        let parts = decode_body(body)?;
        let signature = match (parts.signed, <&[u8; SIGNATURE_BYTES]>::try_from(tail)) {
            (true, Ok(signature)) => Some(signature),
            (false, _) if tail.is_empty() => None,
            (signed, _) => {
                let extra = if signed { SIGNATURE_BYTES as u64 } else { 0 };
                return Err(wrong_length(unsigned_bytes + extra));
            }
        };
        Ok(Model { signature, ..Self::new(parts)? })
    }

    /// Writes the file into `out` and returns its length.
    ///
    /// Where `parts.signed` is set and there is no signature yet, the bytes written are exactly
    /// those to be signed: append the 64 bytes of the signature to them.
    ///
    /// # Errors
    /// [`ModelError::BufferTooSmall`].
    pub fn write(&self, out: &mut [u8]) -> Result<usize, ModelError> {
        let small = ModelError::BufferTooSmall { found_bytes: out.len() };
        let parts = &self.parts;
        let head = Head {
            counter: parts.counter,
            signed: parts.signed,
            knob_fingerprint: parts.knob_fingerprint,
            schema_id: parts.schema_id,
            schema_fingerprint: parts.schema_fingerprint,
            step_ms: parts.step_ms,
            layer_count: LAYER_COUNT_ON_WIRE,
            shape: parts.shape,
        };
        let body = (head, parts.input, parts.layers, parts.bounds, parts.card);
        let room = out.get_mut(HEADER_BYTES..).ok_or(small)?;
        let body_bytes = postcard::to_slice(&body, room).map_err(|_| small)?.len();
        let length = u32::try_from(body_bytes).map_err(|_| small)?;
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[6..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
        let body_end = HEADER_BYTES + body_bytes;
        let crc = checksum(&out[..body_end]).to_le_bytes();
        let crc_end = body_end + CHECKSUM_BYTES;
        out.get_mut(body_end..crc_end).ok_or(small)?.copy_from_slice(&crc);
        let Some(signature) = self.signature else {
            return Ok(crc_end);
        };
        let end = crc_end + SIGNATURE_BYTES;
        out.get_mut(crc_end..end).ok_or(small)?.copy_from_slice(signature);
        Ok(end)
    }

    /// Everything the file says.
    pub fn parts(&self) -> &ModelParts<'m> {
        &self.parts
    }

    /// The raw Ed25519 signature over all bytes before it. **Not verified here.**
    pub fn signature(&self) -> Option<&'m [u8; SIGNATURE_BYTES]> {
        self.signature
    }

    /// Features that the actor takes, in the order of its schema.
    pub fn inputs(&self) -> usize {
        self.parts.shape[0].into()
    }

    /// Actions that the actor gives, in the order of the knob table.
    pub fn outputs(&self) -> usize {
        self.parts.shape[LAYER_COUNT].into()
    }

    /// Smallest and largest raw value of each input in training.
    pub fn observed_range(&self) -> impl Iterator<Item = (f32, f32)> + use<'m> {
        floats(self.parts.input.observed_min).zip(floats(self.parts.input.observed_max))
    }

    /// Least and greatest value of each knob in training, and whether it was tuned.
    pub fn bounds(&self) -> impl Iterator<Item = (u64, u64, bool)> + use<'m> {
        let BoundsParts { min, max, tuned } = self.parts.bounds;
        let pairs = longs(min).zip(longs(max)).enumerate();
        pairs.map(move |(knob, (min, max))| (min, max, tuned >> knob & 1 == 1))
    }

    /// The actor with its shape in the type, borrowing the same bytes.
    ///
    /// # Errors
    /// [`ModelError::Shape`] where the model has another shape.
    pub fn actor<const I: usize, const H1: usize, const H2: usize, const O: usize>(
        &self,
    ) -> Result<Actor<'m, I, H1, H2, O>, ModelError> {
        let found = self.parts.shape;
        let misfit = ModelError::Shape { found, expected: [I, H1, H2, O] };
        let [first, second, third] = &self.parts.layers;
        Ok(Actor {
            mean: chunks(self.parts.input.mean).ok_or(misfit)?,
            inv_std: chunks(self.parts.input.inv_std).ok_or(misfit)?,
            first: typed(first).ok_or(misfit)?,
            second: typed(second).ok_or(misfit)?,
            third: typed(third).ok_or(misfit)?,
        })
    }

    /// Runs the actor on raw features, with the shape known at run time only; the same arithmetic
    /// and the same bits as [`Model::actor`]. Takes 3 KiB of stack.
    ///
    /// # Errors
    /// [`ModelError::IoLength`] where a slice has another length than the model.
    pub fn infer(&self, features: &[f32], action: &mut [i8]) -> Result<(), ModelError> {
        let (found, expected) = ((features.len(), action.len()), (self.inputs(), self.outputs()));
        if found != expected {
            return Err(ModelError::IoLength { found, expected });
        }
        let [inputs, hidden1, hidden2, _] = self.parts.shape.map(usize::from);
        let (mut even, mut odd) = ([0i16; FAN_IN_MAX], [0i16; FAN_IN_MAX]);
        let input = &self.parts.input;
        let scales = floats(input.mean).zip(floats(input.inv_std));
        for ((quantised, &value), (mean, inv_std)) in even.iter_mut().zip(features).zip(scales) {
            *quantised = quantise_input(value, mean, inv_std);
        }
        let [first, second, third] = &self.parts.layers;
        run(first, &even[..inputs], &mut odd[..hidden1], actor::hidden);
        run(second, &odd[..hidden1], &mut even[..hidden2], actor::hidden);
        run(third, &even[..hidden2], action, actor::output);
        Ok(())
    }
}

/// One layer with lengths known at run time.
fn run<T>(
    layer: &LayerParts<'_>,
    input: &[i16],
    out: &mut [T],
    activate: impl Fn(i32, ([u8; 4], u8)) -> T,
) {
    let rows = layer.weights.chunks_exact(input.len());
    let inputs = Inputs::from(input);
    let (bias, multiplier) = (layer.bias.as_chunks().0, layer.multiplier.as_chunks().0);
    let scales = bias.iter().zip(multiplier).zip(layer.shift);
    for ((slot, weights), ((&bias, &multiplier), &shift)) in out.iter_mut().zip(rows).zip(scales) {
        let sum = i32::from_le_bytes(bias) + inputs.dot(weights);
        *slot = activate(sum, (multiplier, shift));
    }
}

/// Gives a layer its shape, where it has that one.
fn typed<'m, const I: usize, const O: usize>(parts: &LayerParts<'m>) -> Option<Layer<'m, I, O>> {
    Some(Layer {
        weights: chunks(parts.weights)?,
        bias: chunks(parts.bias)?,
        multiplier: chunks(parts.multiplier)?,
        shift: parts.shift.try_into().ok()?,
    })
}

/// `N` arrays of `S` bytes, where `bytes` has exactly that length.
fn chunks<const S: usize, const N: usize>(bytes: &[u8]) -> Option<&[[u8; S]; N]> {
    match bytes.as_chunks::<S>() {
        (chunks, []) => chunks.try_into().ok(),
        _ => None,
    }
}

/// The f32 values of a little-endian array.
fn floats(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value))
}

/// The u64 values of a little-endian array.
fn longs(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    bytes.as_chunks().0.iter().map(|&value| u64::from_le_bytes(value))
}

/// Decodes the parts in their order on the wire; nothing is checked yet but the layer count.
fn decode_body(body: &[u8]) -> Result<ModelParts<'_>, ModelError> {
    let (head, rest) = take::<Head>(body, Part::Head)?;
    let (found, expected) = (head.layer_count, LAYER_COUNT_ON_WIRE);
    if found != expected {
        return Err(ModelError::LayerCount { found, expected });
    }
    let (input, rest) = take(rest, Part::Input)?;
    let (first, rest) = take(rest, Part::Layer(0))?;
    let (second, rest) = take(rest, Part::Layer(1))?;
    let (third, rest) = take(rest, Part::Layer(2))?;
    let (bounds, rest) = take(rest, Part::Bounds)?;
    let (card, rest) = take(rest, Part::Card)?;
    if !rest.is_empty() {
        return Err(ModelError::TrailingBytes { found: rest.len() });
    }
    Ok(ModelParts {
        counter: head.counter,
        signed: head.signed,
        knob_fingerprint: head.knob_fingerprint,
        schema_id: head.schema_id,
        schema_fingerprint: head.schema_fingerprint,
        step_ms: head.step_ms,
        shape: head.shape,
        input,
        layers: [first, second, third],
        bounds,
        card,
    })
}

/// Decodes one part from the front of `bytes`.
fn take<'m, T: Deserialize<'m>>(bytes: &'m [u8], part: Part) -> Result<(T, &'m [u8]), ModelError> {
    postcard::take_from_bytes(bytes).map_err(|_| ModelError::Encoding { part })
}

/// Largest magnitude that the sum of a channel can reach, whatever its input.
fn sum_worst(weights: &[u8], bias: i32) -> u64 {
    let weights = weights.iter().map(|weight| u64::from(weight.cast_signed().unsigned_abs()));
    weights.sum::<u64>() * u64::from(ACTIVATION_MAX.unsigned_abs()) + u64::from(bias.unsigned_abs())
}
