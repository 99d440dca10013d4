//! Puts the model and the trace beside the program, and the board's memory where the linker looks.
//!
//! The model is models/default.btm where the tree has one, else one with random weights of the size
//! that training gives; the trace is traces/mixed-day.btt.

use std::path::{Path, PathBuf};
use std::{env, fs};

use brokertuner_core::KNOB_COUNT;
use brokertuner_core::features::Schema;
use brokertuner_core::knobs::{self, Knob};
use brokertuner_core::model::{BoundsParts, Card, InputParts, LayerParts, Model, ModelParts};

/// The hidden layers of `host train`.
const HIDDEN: [u16; 2] = [128, 64];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let shipped = Path::new("../../models/default.btm");
    println!("cargo::rerun-if-changed=../../models");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=memory");
    let model = fs::read(shipped).unwrap_or_else(|_| random_model());
    let read = Model::read(&model).expect("models/default.btm is of this program's tables");
    let [inputs, hidden1, hidden2, _] = read.parts().shape;
    let shape = format!(
        "/// Widths of the model's two hidden layers.\npub const HIDDEN: [usize; 2] = [{hidden1}, {hidden2}];\n"
    );
    assert_eq!(usize::from(inputs), Schema::Edge.len(), "a model of the schema `edge`");
    fs::write(out.join("model.btm"), &model).expect("OUT_DIR can be written");
    fs::copy("traces/mixed-day.btt", out.join("trace.btt")).expect("traces/mixed-day.btt");
    println!("cargo::rerun-if-changed=traces");
    let clock =
        format!("/// Clock of the board, in Hz.\npub const CLOCK_HZ: u32 = {};\n", clock_hz());
    fs::write(out.join("shape.rs"), shape + &clock).expect("OUT_DIR can be written");

    if env::var_os("CARGO_FEATURE_BOARD").is_some() {
        let target = env::var("TARGET").expect("cargo sets TARGET");
        // The bench is built for speed, which takes more stack: of the nRF51822 there is one with 32 KiB.
        let is_bench = env::var_os("CARGO_FEATURE_COMPARED").is_some();
        let larger = if is_bench && target == "thumbv6m-none-eabi" { "-32k" } else { "" };
        let memory = format!("memory/{target}{larger}.x");
        fs::copy(&memory, out.join("memory.x")).unwrap_or_else(|error| panic!("{memory}: {error}"));
        println!("cargo::rustc-link-search={}", out.display());
        for argument in ["-Tlink.x", "-Tdefmt.x", "--nmagic"] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}

/// The clock of the boards in memory/, as QEMU shows them; another board has another one.
fn clock_hz() -> u32 {
    match env::var("TARGET").expect("cargo sets TARGET").as_str() {
        "thumbv6m-none-eabi" => 16_000_000,
        // After a reset, from its oscillator of 200 MHz.
        "thumbv7m-none-eabi" => 12_500_000,
        _ => 25_000_000,
    }
}

/// Bytes from a fixed generator, so that every build has the same model.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as u32
    }

    fn within(&mut self, low: i32, high: i32) -> i32 {
        low + (self.next() % (high - low + 1) as u32) as i32
    }

    fn array<const N: usize>(
        &mut self,
        count: u16,
        bytes: impl Fn(&mut Self) -> [u8; N],
    ) -> Vec<u8> {
        (0..count).flat_map(|_| bytes(self)).collect()
    }
}

struct OwnedLayer {
    weights: Vec<u8>,
    bias: Vec<u8>,
    multiplier: Vec<u8>,
    shift: Vec<u8>,
}

fn random_model() -> Vec<u8> {
    let mut random = Random(7);
    let inputs = Schema::Edge.len() as u16;
    let shape = [inputs, HIDDEN[0], HIDDEN[1], KNOB_COUNT as u16];
    let layers: [OwnedLayer; 3] = std::array::from_fn(|index| {
        let (fan_in, channels) = (shape[index], shape[index + 1]);
        OwnedLayer {
            weights: random.array(fan_in * channels, |r| [r.within(-127, 127) as u8]),
            bias: random.array(channels, |r| r.within(-65_536, 65_536).to_le_bytes()),
            multiplier: random.array(channels, |r| r.within(1 << 30, i32::MAX).to_le_bytes()),
            shift: random.array(channels, |r| [r.within(37, 41) as u8]),
        }
    });
    let f32s = |value: f32| value.to_le_bytes().repeat(inputs.into());
    let (mean, inv_std) = (f32s(0.25), f32s(2.0));
    let (observed_min, observed_max) = (f32s(-1.0), f32s(2.0));
    let longs = |value: fn(Knob) -> u64| Knob::ALL.map(|knob| value(knob).to_le_bytes()).concat();
    let (min, max) = (longs(|knob| knob.spec().min), longs(|knob| knob.spec().max));
    let part = |layer: usize| LayerParts {
        weights: &layers[layer].weights,
        bias: &layers[layer].bias,
        multiplier: &layers[layer].multiplier,
        shift: &layers[layer].shift,
    };
    let parts = ModelParts {
        counter: 0,
        signed: false,
        knob_fingerprint: knobs::FINGERPRINT,
        schema_id: Schema::Edge.id(),
        schema_fingerprint: Schema::Edge.fingerprint(),
        step_ms: 10_000,
        shape,
        input: InputParts {
            mean: &mean,
            inv_std: &inv_std,
            observed_min: &observed_min,
            observed_max: &observed_max,
        },
        layers: [part(0), part(1), part(2)],
        bounds: BoundsParts { min: &min, max: &max, tuned: 0x7ff },
        card: Card { scenarios: "none: random weights", ..Card::default() },
    };
    let mut out = vec![0; 65_536];
    let model = Model::new(parts).expect("the parts are sound");
    let length = model.write(&mut out).expect("the buffer is large enough");
    out.truncate(length);
    out
}
