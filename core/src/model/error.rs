//! Why a model file is refused: every variant says what was found and what was expected.

use core::fmt;

/// A part of the model's body, named in errors as in `models/FORMAT.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The fields before the input part.
    Head,
    /// Input normalisation and observed range.
    Input,
    /// Layer 0 is the first hidden one, 2 the output.
    Layer(u8),
    /// The operator bounds.
    Bounds,
    /// The training card.
    Card,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Head => f.write_str("head"),
            Part::Input => f.write_str("input part"),
            Part::Layer(index) => write!(f, "layer {index}"),
            Part::Bounds => f.write_str("bounds"),
            Part::Card => f.write_str("card"),
        }
    }
}

/// Why a model was refused.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// Fewer bytes than the smallest file.
    TooShort {
        /// Bytes in the file.
        found_bytes: usize,
        /// Bytes of header and checksum alone.
        expected_bytes: usize,
    },
    /// Not a model file.
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A format version that this program does not read.
    Version {
        /// Version in the file.
        found: u16,
        /// The only version read.
        expected: u16,
    },
    /// The file is cut off or has something behind it.
    Length {
        /// Bytes in the file.
        found_bytes: usize,
        /// Bytes by the header's body length and the body's signed flag.
        expected_bytes: u64,
    },
    /// The bytes are not those that were written.
    Checksum {
        /// CRC-32 over the bytes that are there.
        found: u32,
        /// CRC-32 in the file.
        expected: u32,
    },
    /// The body does not follow the encoding.
    Encoding {
        /// Where the decoder stood.
        part: Part,
    },
    /// Bytes of the body that belong to no field.
    TrailingBytes {
        /// How many.
        found: usize,
    },
    /// Not the number of layers that an actor has.
    LayerCount {
        /// Layers in the file.
        found: u8,
        /// Layers of an actor.
        expected: u8,
    },
    /// A width of 0, or more than the arithmetic allows.
    Width {
        /// Which of inputs, hidden 1, hidden 2 and outputs.
        index: u8,
        /// Width in the file.
        found: u16,
        /// Largest width.
        max: u16,
    },
    /// An array whose length does not follow from the shape.
    PartBytes {
        /// Part that holds the array.
        part: Part,
        /// Its field.
        field: &'static str,
        /// Bytes in the file.
        found_bytes: usize,
        /// Bytes by the shape.
        expected_bytes: usize,
    },
    /// A value that no exporter writes.
    Value {
        /// Part that holds it.
        part: Part,
        /// Its field.
        field: &'static str,
        /// Element within the field.
        index: usize,
        /// What is allowed.
        expected: &'static str,
    },
    /// Weights and bias whose sum could leave the int32 range.
    SumOverflow {
        /// The layer.
        layer: u8,
        /// The output channel.
        channel: usize,
        /// Largest magnitude that the sum could reach.
        found: u64,
        /// Largest magnitude allowed.
        max: u64,
    },
    /// Made for another knob table.
    KnobTable {
        /// Fingerprint in the file.
        found: u32,
        /// Fingerprint of this program's table.
        expected: u32,
    },
    /// Made for a feature schema that this program does not have.
    UnknownSchema {
        /// Schema id in the file.
        found: u8,
    },
    /// Made for another version of a feature schema.
    Schema {
        /// Schema id.
        id: u8,
        /// Fingerprint in the file.
        found: u32,
        /// Fingerprint of this program's schema.
        expected: u32,
    },
    /// Another shape than the caller works with: inputs, hidden 1, hidden 2, outputs.
    Shape {
        /// Shape in the file.
        found: [u16; 4],
        /// Shape asked for.
        expected: [usize; 4],
    },
    /// Feature or action slices of another length than the model's.
    IoLength {
        /// Features and actions given.
        found: (usize, usize),
        /// Inputs and outputs of the model.
        expected: (usize, usize),
    },
    /// The output buffer is too small.
    BufferTooSmall {
        /// Its length.
        found_bytes: usize,
    },
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ModelError::TooShort { found_bytes, expected_bytes } => write!(
                f,
                "not a model file: {found_bytes} bytes, at least {expected_bytes} expected"
            ),
            ModelError::Magic { found } => write!(
                f,
                "not a model file: begins with {found:02x?}, expected 42 54 4d 31 (\"BTM1\")"
            ),
            ModelError::Version { found, expected } => write!(
                f,
                "model format version {found}, this program reads version {expected}: export it again"
            ),
            ModelError::Length { found_bytes, expected_bytes } => write!(
                f,
                "model file has {found_bytes} bytes, its header says {expected_bytes}: copy it again"
            ),
            ModelError::Checksum { found, expected } => write!(
                f,
                "model file is damaged: CRC-32 of its bytes is {found:08x}, it says {expected:08x}: copy it again"
            ),
            ModelError::Encoding { part } => {
                write!(f, "model file does not decode: its {part} is cut off or malformed")
            }
            ModelError::TrailingBytes { found } => {
                write!(f, "model body has {found} bytes after its last field, 0 expected")
            }
            ModelError::LayerCount { found, expected } => {
                write!(f, "model has {found} layers, {expected} expected")
            }
            ModelError::Width { index, found, max } => {
                write!(f, "model is {found} wide at shape position {index}, 1 to {max} expected")
            }
            ModelError::PartBytes { part, field, found_bytes, expected_bytes } => write!(
                f,
                "{part}: `{field}` has {found_bytes} bytes, its shape needs {expected_bytes}"
            ),
            ModelError::Value { part, field, index, expected } => {
                write!(f, "{part}: `{field}` number {index} is not {expected}")
            }
            ModelError::SumOverflow { layer, channel, found, max } => write!(
                f,
                "layer {layer}, channel {channel}: the sum could reach {found}, {max} is the limit"
            ),
            _ => self.fmt_misfit(f),
        }
    }
}

impl ModelError {
    /// The variants of a sound model that does not fit its user.
    fn fmt_misfit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ModelError::KnobTable { found, expected } => write!(
                f,
                "model was made for knob table {found:08x}, this program has {expected:08x}: \
                 train or export with the same version"
            ),
            ModelError::UnknownSchema { found } => write!(
                f,
                "model was made for feature schema {found}, which this program does not have: \
                 train or export with the same version"
            ),
            ModelError::Schema { id, found, expected } => write!(
                f,
                "model was made for feature schema {id} with fingerprint {found:08x}, this program \
                 has {expected:08x}: train or export with the same version"
            ),
            ModelError::Shape { found, expected } => {
                write!(f, "model has shape {found:?}, {expected:?} expected")
            }
            ModelError::IoLength { found, expected } => write!(
                f,
                "{} features and {} actions given, the model has {} and {}",
                found.0, found.1, expected.0, expected.1
            ),
            ModelError::BufferTooSmall { found_bytes } => {
                write!(f, "the model does not fit the output buffer of {found_bytes} bytes")
            }
            // Every other variant is written by the caller.
            _ => f.write_str("model refused"),
        }
    }
}

impl core::error::Error for ModelError {}
