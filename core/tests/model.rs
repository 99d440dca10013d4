//! The model file: golden bytes, vectors, refusal of everything else, and the actor's bits.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]

mod common;

use brokertuner_core::features::Schema;
use brokertuner_core::model::{
    BoundsParts, CHECKSUM_BYTES, HEADER_BYTES, Model, ModelError, ModelParts, Part, checksum,
};
use common::{Lcg, OwnedLayer, OwnedModel};
use proptest::prelude::*;

const GOLDEN: &[u8] = include_bytes!("../../models/golden/v1.btm");
/// Name, model and vectors.
const SHIPPED: [(&str, &[u8], &str); 2] = [
    (
        "default",
        include_bytes!("../../models/default.btm"),
        include_str!("../../models/default-vectors.csv"),
    ),
    (
        "seed5",
        include_bytes!("../../models/seed5.btm"),
        include_str!("../../models/seed5-vectors.csv"),
    ),
];
const GOLDEN_VECTORS: &str = include_str!("../../models/golden/v1-vectors.csv");
const FORMAT: &str = include_str!("../../models/FORMAT.md");

/// The model of the golden file: small enough to read in hex.
fn golden() -> OwnedModel {
    let layers = [
        OwnedLayer::new(
            vec![127, -64, 0, 127, -127, 1],
            vec![4096, 0, -300],
            vec![0x4000_0000, 0x6000_0000, 0x7fff_ffff],
            vec![37, 37, 38],
        ),
        OwnedLayer::new(
            vec![100, -50, 127, -127, 3, 64],
            vec![0, 65_536],
            vec![0x5000_0000, 0x4800_0000],
            vec![37, 38],
        ),
        OwnedLayer::new(
            vec![127, -127, -20, 90],
            vec![-1000, 2000],
            vec![0x4000_0000, 0x7000_0000],
            vec![38, 37],
        ),
    ];
    OwnedModel::new([2, 3, 2, 2], vec![0.5, -1.0], vec![2.0, 0.25], layers)
}

/// The golden model's parts: its fingerprints are fixed, whatever the tables become.
fn golden_bytes() -> Vec<u8> {
    let owned = golden();
    let mut parts = owned.parts();
    parts.knob_fingerprint = 0x0123_4567;
    write(&Model::new(parts).unwrap())
}

fn write(model: &Model<'_>) -> Vec<u8> {
    let mut out = vec![0; 1 << 20];
    let length = model.write(&mut out).unwrap();
    out.truncate(length);
    out
}

/// Puts the right checksum behind a body that was tampered with.
fn mend_checksum(bytes: &mut [u8]) {
    let body_end = bytes.len() - CHECKSUM_BYTES;
    let crc = checksum(&bytes[..body_end]).to_le_bytes();
    bytes[body_end..].copy_from_slice(&crc);
}

fn infer(model: &Model<'_>, features: &[f32]) -> Vec<i8> {
    let mut action = vec![0; model.outputs()];
    model.infer(features, &mut action).unwrap();
    action
}

#[test]
fn golden_file_is_what_the_writer_writes() {
    assert_eq!(golden_bytes(), GOLDEN);
    let model = Model::parse(GOLDEN).unwrap();
    assert_eq!(write(&model), GOLDEN);
    assert_eq!(model.parts().card.scenarios, "wan-uplink");
    assert_eq!(model.parts().counter, 300);
    assert_eq!(model.observed_range().collect::<Vec<_>>(), [(-1.0, 2.5); 2]);
    assert_eq!(model.bounds().collect::<Vec<_>>(), [(1, 1000, true), (1, 1000, false)]);
    assert_eq!(model.signature(), None);
}

/// The hex dump in FORMAT.md: bytes stand between the offset and the bar of each line.
#[test]
fn format_document_shows_the_golden_file() {
    let block = FORMAT.split("```hex\n").nth(1).expect("a hex block in FORMAT.md");
    let block = block.split("```").next().unwrap();
    let mut bytes = Vec::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let (offset, rest) = line.split_once(' ').unwrap();
        assert_eq!(usize::from_str_radix(offset, 16), Ok(bytes.len()), "offset of {line}");
        let hex = rest.split('|').next().unwrap();
        bytes.extend(hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    assert_eq!(bytes, GOLDEN);
}

#[test]
fn golden_vectors() {
    let model = Model::parse(GOLDEN).unwrap();
    let actor = model.actor::<2, 3, 2, 2>().unwrap();
    let mut rows = 0;
    for line in GOLDEN_VECTORS.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let features: [f32; 2] = std::array::from_fn(|index| cells[index].parse().unwrap());
        let expected: [i8; 2] = std::array::from_fn(|index| cells[2 + index].parse().unwrap());
        assert_eq!(actor.infer(&actor.quantise(&features)), expected, "{line}");
        assert_eq!(infer(&model, &features), expected, "{line}");
        rows += 1;
    }
    assert!(rows >= 30, "{rows} vectors");
}

#[test]
#[ignore = "writes models/golden: by hand, and only together with a new format version"]
fn renew_golden_files() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/golden");
    std::fs::write(format!("{folder}/v1.btm"), golden_bytes()).unwrap();
    let mut lcg = Lcg::new(1);
    let mut text = String::from("feature_0,feature_1,action_0,action_1\n");
    let corners = [[0.0, 0.0], [0.5, -1.0], [f32::NAN, 0.0], [9.0, f32::INFINITY], [-9.0, -99.0]];
    let random = std::array::from_fn::<_, 35, _>(|_| {
        [0, 1].map(|_| lcg.within(-4096, 4096) as f32 / 1024.0)
    });
    for features in corners.into_iter().chain(random) {
        let [first, second] = features;
        let action = golden().reference(&features);
        text += &format!("{first},{second},{},{}\n", action[0], action[1]);
    }
    std::fs::write(format!("{folder}/v1-vectors.csv"), text).unwrap();
}

/// What the shipped models answer is the same on every processor.
#[test]
fn shipped_models_give_their_vectors() {
    for (name, bytes, vectors) in SHIPPED {
        let model = Model::parse(bytes).unwrap();
        let inputs = model.inputs();
        let mut rows = 0;
        for line in vectors.lines().skip(1) {
            let (features, actions) = vector(line, inputs);
            assert_eq!(infer(&model, &features), actions, "{name}: {line}");
            rows += 1;
        }
        assert!(rows >= 100, "{name}: {rows} vectors");
    }
}

/// Features and actions of a line of vectors; a cell without anything is a missing feature.
fn vector(line: &str, inputs: usize) -> (Vec<f32>, Vec<i8>) {
    let cells: Vec<&str> = line.split(',').collect();
    let (features, actions) = cells.split_at(inputs);
    let feature = |cell: &&str| if cell.is_empty() { f32::NAN } else { cell.parse().unwrap() };
    let action = |cell: &&str| cell.parse().unwrap();
    (features.iter().map(feature).collect(), actions.iter().map(action).collect())
}

#[test]
#[ignore = "writes models/*-vectors.csv: by hand, and only together with a new model"]
fn renew_vectors_of_shipped_models() {
    for (name, bytes, _) in SHIPPED {
        let model = Model::parse(bytes).unwrap();
        let names = |what: &str, count: usize| (0..count).map(|i| format!("{what}_{i}")).collect();
        let mut header: Vec<String> = names("feature", model.inputs());
        header.extend::<Vec<String>>(names("action", model.outputs()));
        let mut text = header.join(",") + "\n";
        let mut lcg = Lcg::new(7);
        for _ in 0..200 {
            // Within what training saw and somewhat beyond; one in ten is missing.
            let features: Vec<f32> = model
                .observed_range()
                .map(|(low, high)| match lcg.within(0, 9) {
                    0 => f32::NAN,
                    _ => low + (high - low) * lcg.within(-128, 1152) as f32 / 1024.0,
                })
                .collect();
            let mut cells: Vec<String> = features
                .iter()
                .map(|value| if value.is_nan() { String::new() } else { value.to_string() })
                .collect();
            cells.extend(infer(&model, &features).iter().map(ToString::to_string));
            text += &(cells.join(",") + "\n");
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models");
        std::fs::write(format!("{folder}/{name}-vectors.csv"), text).unwrap();
    }
}

/// The real shape: the bits of 1,000 actions, pinned. The same number on every processor.
#[test]
fn actions_of_a_full_size_model_are_pinned() {
    let owned = OwnedModel::random([37, 64, 64, 11], 42);
    let model = Model::new(owned.parts()).unwrap();
    let actor = model.actor::<37, 64, 64, 11>().unwrap();
    let mut lcg = Lcg::new(3);
    let mut actions = Vec::new();
    for _ in 0..1000 {
        let features: [f32; 37] = std::array::from_fn(|_| lcg.within(-8192, 8192) as f32 / 1024.0);
        let action = actor.infer(&actor.quantise(&features));
        assert_eq!(action.to_vec(), owned.reference(&features));
        actions.extend(action.map(i8::cast_unsigned));
    }
    let distinct: std::collections::BTreeSet<u8> = actions.iter().copied().collect();
    assert!(distinct.len() > 200, "{} different actions only", distinct.len());
    assert_eq!(checksum(&actions), 378_466_958);
}

/// The widest shape with the largest weights: the sum reaches its limit and does not wrap.
#[test]
fn largest_sum_does_not_overflow() {
    let shape = [512, 512, 1, 1];
    let layer = |inputs: usize, outputs: usize, bias: i32, shift: u8| {
        let (bias, multiplier) = (vec![bias; outputs], vec![i32::MAX; outputs]);
        OwnedLayer::new(vec![127; inputs * outputs], bias, multiplier, vec![shift; outputs])
    };
    let bias = i32::MAX - 32_767 * 127 * 512;
    let layers = [layer(512, 512, bias, 31), layer(512, 1, bias, 31), layer(1, 1, 0, 31)];
    let owned = OwnedModel::new(shape, vec![0.0; 512], vec![1.0; 512], layers);
    let model = Model::new(owned.parts()).unwrap();
    assert_eq!(infer(&model, &[8.0; 512]), owned.reference(&[8.0; 512]));
    assert_eq!(infer(&model, &[8.0; 512]), [127]);

    let mut beyond = owned;
    beyond.layers[1] = layer(512, 1, bias + 1, 31);
    let refused = Model::new(beyond.parts()).unwrap_err();
    let (found, max) = (1 << 31, (1 << 31) - 1);
    assert_eq!(refused, ModelError::SumOverflow { layer: 1, channel: 0, found, max });
}

#[test]
fn signature_is_carried_and_its_absence_is_noticed() {
    let mut owned = golden();
    owned.signed = true;
    let mut bytes = write(&Model::new(owned.parts()).unwrap());
    let unsigned_bytes = bytes.len();
    let stripped = ModelError::Length {
        found_bytes: unsigned_bytes,
        expected_bytes: unsigned_bytes as u64 + 64,
    };
    assert_eq!(Model::parse(&bytes).unwrap_err(), stripped);
    bytes.extend([0xa5; 64]);
    let model = Model::parse(&bytes).unwrap();
    assert_eq!(model.signature(), Some(&[0xa5; 64]));
    assert_eq!(write(&model), bytes);

    let mut uncalled = GOLDEN.to_vec();
    uncalled.extend([0xa5; 64]);
    assert!(matches!(Model::parse(&uncalled), Err(ModelError::Length { .. })));
}

#[test]
fn damaged_headers_are_named() {
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = GOLDEN.to_vec();
        change(&mut bytes);
        Model::parse(&bytes).unwrap_err()
    };
    let short = ModelError::TooShort { found_bytes: 0, expected_bytes: 14 };
    assert_eq!(refused(&|bytes| bytes.clear()), short);
    assert_eq!(refused(&|bytes| bytes[0] = b'X'), ModelError::Magic { found: *b"XTM1" });
    let version = ModelError::Version { found: 2, expected: 1 };
    assert_eq!(refused(&|bytes| bytes[4] = 2), version);
    let total = GOLDEN.len();
    let cut = ModelError::Length { found_bytes: total - 1, expected_bytes: total as u64 };
    assert_eq!(refused(&|bytes| bytes.truncate(total - 1)), cut);
    assert!(matches!(refused(&|bytes| bytes.push(0)), ModelError::Length { .. }));
    let huge = refused(&|bytes| bytes[6..10].fill(0xff));
    let expected_bytes = u64::from(u32::MAX) + 14;
    assert_eq!(huge, ModelError::Length { found_bytes: total, expected_bytes });
    assert!(matches!(refused(&|bytes| bytes[40] ^= 1), ModelError::Checksum { .. }));
}

#[test]
fn misfits_are_named() {
    let found = 0x0123_4567;
    let expected = brokertuner_core::knobs::FINGERPRINT;
    let refused = Model::read(GOLDEN).unwrap_err();
    assert_eq!(refused, ModelError::KnobTable { found, expected });
    assert!(refused.to_string().contains("01234567"), "{refused}");

    let schema = Schema::Seed5;
    let inputs = u16::try_from(schema.len()).unwrap();
    let reread = |shape: [u16; 4], change: &dyn Fn(&mut ModelParts<'_>)| {
        let owned = OwnedModel::random(shape, 1);
        let mut parts = owned.parts();
        (parts.schema_id, parts.schema_fingerprint) = (schema.id(), schema.fingerprint());
        change(&mut parts);
        let bytes = write(&Model::new(parts).unwrap());
        Model::read(&bytes).map(|model| model.schema())
    };
    assert_eq!(reread([inputs, 4, 4, 11], &|_| ()), Ok(Some(schema)));
    let unknown = reread([inputs, 4, 4, 11], &|parts| parts.schema_id = 99);
    assert_eq!(unknown, Err(ModelError::UnknownSchema { found: 99 }));
    let other = reread([inputs, 4, 4, 11], &|parts| parts.schema_fingerprint ^= 1);
    assert!(matches!(other, Err(ModelError::Schema { .. })));
    for shape in [[inputs + 1, 4, 4, 11], [inputs, 4, 4, 10]] {
        let expected = [inputs.into(), 4, 4, 11];
        let misshapen = ModelError::Shape { found: shape, expected };
        assert_eq!(reread(shape, &|_| ()), Err(misshapen));
    }

    let owned = OwnedModel::random([5, 4, 4, 11], 1);
    let model = Model::new(owned.parts()).unwrap();
    let shape = ModelError::Shape { found: [5, 4, 4, 11], expected: [5, 4, 5, 11] };
    assert_eq!(model.actor::<5, 4, 5, 11>().unwrap_err(), shape);
    let io = ModelError::IoLength { found: (4, 11), expected: (5, 11) };
    assert_eq!(model.infer(&[0.0; 4], &mut [0; 11]), Err(io));
}

#[test]
fn impossible_values_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut OwnedModel)| {
        let mut owned = OwnedModel::random([3, 4, 4, 2], 5);
        change(&mut owned);
        let OwnedModel { shape, mean, inv_std, layers, .. } = owned;
        let owned = OwnedModel::new(shape, mean, inv_std, layers.map(rebuilt));
        Model::new(owned.parts()).unwrap_err()
    };
    let value = |part, field, index| {
        move |error: ModelError| match error {
            ModelError::Value { part: at, field: name, index: number, .. } => {
                assert_eq!((at, name, number), (part, field, index), "{error}");
            }
            other => panic!("{other}"),
        }
    };
    value(Part::Layer(1), "weights", 5)(refused(&|m| m.layers[1].weights[5] = -128));
    value(Part::Layer(0), "multiplier", 2)(refused(&|m| m.layers[0].multiplier[2] = 0));
    value(Part::Layer(2), "shift", 1)(refused(&|m| m.layers[2].shift[1] = 0));
    value(Part::Layer(2), "shift", 0)(refused(&|m| m.layers[2].shift[0] = 63));
    value(Part::Input, "mean", 1)(refused(&|m| m.mean[1] = f32::NAN));
    value(Part::Input, "inv_std", 0)(refused(&|m| m.inv_std[0] = -1.0));
    let width = |index, found, max| ModelError::Width { index, found, max };
    assert_eq!(refused(&|m| m.shape[1] = 513), width(1, 513, 512));
    assert_eq!(refused(&|m| m.shape[0] = 0), width(0, 0, 512));
    assert_eq!(refused(&|m| m.shape[3] = 17), width(3, 17, 16));
    let wrong = refused(&|m| m.shape[2] = 3);
    assert!(matches!(wrong, ModelError::PartBytes { part: Part::Layer(1), .. }), "{wrong}");
}

fn rebuilt(layer: OwnedLayer) -> OwnedLayer {
    OwnedLayer::new(layer.weights, layer.bias, layer.multiplier, layer.shift)
}

#[test]
fn impossible_bounds_and_cards_are_refused() {
    let owned = golden();
    let mut parts = owned.parts();
    parts.bounds.tuned = 0b100;
    assert!(matches!(Model::new(parts), Err(ModelError::Value { field: "tuned", .. })));
    let mut parts = owned.parts();
    parts.bounds = BoundsParts { min: parts.bounds.max, max: parts.bounds.min, tuned: 0 };
    assert!(matches!(Model::new(parts), Err(ModelError::Value { field: "max", .. })));
    let mut parts = owned.parts();
    parts.card.scores = "\u{1b}[2J";
    assert!(matches!(Model::new(parts), Err(ModelError::Value { part: Part::Card, .. })));
    let mut parts = owned.parts();
    parts.step_ms = 0;
    assert!(matches!(Model::new(parts), Err(ModelError::Value { field: "step_ms", .. })));
}

#[test]
fn writer_refuses_every_buffer_that_is_too_small() {
    let mut owned = golden();
    owned.signed = true;
    let mut signed = write(&Model::new(owned.parts()).unwrap());
    signed.extend([1; 64]);
    let model = Model::parse(&signed).unwrap();
    for length in 0..signed.len() {
        let refused = model.write(&mut vec![0; length]);
        assert_eq!(refused, Err(ModelError::BufferTooSmall { found_bytes: length }));
    }
}

/// Every single flipped bit of a file is noticed by the checksum or an earlier check.
#[test]
fn no_flipped_bit_goes_unnoticed() {
    for bit in 0..GOLDEN.len() * 8 {
        let mut bytes = GOLDEN.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Model::parse(&bytes).is_err(), "bit {bit}");
    }
}

/// With the checksum mended, the body's own checks stand alone: refuse, or infer without a panic.
#[test]
fn flipped_bits_under_a_mended_checksum_never_panic() {
    for bit in HEADER_BYTES * 8..(GOLDEN.len() - CHECKSUM_BYTES) * 8 {
        let mut bytes = GOLDEN.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        mend_checksum(&mut bytes);
        exercise(&bytes);
    }
}

/// Reads and, where that succeeds, runs a model from doubtful bytes.
fn exercise(bytes: &[u8]) {
    match Model::parse(bytes) {
        Ok(model) => {
            let mut action = vec![0; model.outputs()];
            for value in [0.0, -9.0, 9.0, f32::NAN, f32::MIN_POSITIVE] {
                let features = vec![value; model.inputs()];
                model.infer(&features, &mut action).unwrap();
                assert!(action.iter().all(|&value| value != i8::MIN));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        exercise(&bytes);
        let mut framed = GOLDEN[..6].to_vec();
        framed.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
        framed.extend(&bytes);
        framed.extend([0; CHECKSUM_BYTES]);
        mend_checksum(&mut framed);
        exercise(&framed);
    }

    #[test]
    fn tampered_bodies_never_panic(edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        let mut bytes = GOLDEN.to_vec();
        let body = GOLDEN.len() - HEADER_BYTES - CHECKSUM_BYTES;
        for (position, value) in edits {
            bytes[HEADER_BYTES + usize::from(position) % body] = value;
        }
        mend_checksum(&mut bytes);
        exercise(&bytes);
    }

    #[test]
    fn actor_matches_the_reference(
        seed in any::<u64>(),
        shape in [1..40u16, 1..40u16, 1..40u16, 1..16u16],
        scale in -12..12i32,
    ) {
        let owned = OwnedModel::random(shape, seed);
        let bytes = write(&Model::new(owned.parts()).unwrap());
        let model = Model::parse(&bytes).unwrap();
        prop_assert_eq!(model.parts(), &owned.parts());
        let mut lcg = Lcg::new(seed);
        for _ in 0..20 {
            let features: Vec<f32> =
                (0..shape[0]).map(|_| lcg.next() as i32 as f32 * (scale - 31).exp2()).collect();
            prop_assert_eq!(infer(&model, &features), owned.reference(&features));
        }
    }
}

/// 2 to a whole power.
trait Exp2 {
    fn exp2(self) -> f32;
}

impl Exp2 for i32 {
    fn exp2(self) -> f32 {
        (self as f32).exp2()
    }
}
