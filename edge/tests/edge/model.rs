//! A model that always wants the same: its weights are zero, its output biases the answer.

use std::path::Path;

use brokertuner_core::KNOB_COUNT;
use brokertuner_core::features::Schema;
use brokertuner_core::knobs;
use brokertuner_core::model::{BoundsParts, Card, InputParts, LayerParts, Model, ModelParts};
use brokertuner_core::settings::{Action, SiteValues};
use brokertuner_core::{Knob, Settings};

/// Writes a model whose action is that of `values`.
pub(crate) fn write(path: &Path, values: &[(Knob, u64)]) {
    write_wide(path, values, 1);
}

/// The same with `hidden` neurons in each hidden layer: more work for the same answer.
pub(crate) fn write_wide(path: &Path, values: &[(Knob, u64)], hidden: usize) {
    let mut settings = Settings::UNWRITTEN;
    for &(knob, value) in values {
        settings.set(knob, value).unwrap();
    }
    std::fs::write(path, bytes(&settings.encode(&SiteValues::default()), hidden)).unwrap();
}

fn bytes(action: &Action, hidden: usize) -> Vec<u8> {
    let inputs = Schema::Edge.len();
    // An eighth, in the way that exported models scale: others take a longer path.
    let (eighth, shift) = ((1i32 << 30).to_le_bytes(), 33);
    let zeros = vec![0; inputs.max(hidden) * hidden.max(KNOB_COUNT) * 8];
    let bias: Vec<u8> = action.iter().flat_map(|&raw| bias(raw).to_le_bytes()).collect();
    let width = hidden.max(KNOB_COUNT);
    let (multiplier, shift) = (eighth.repeat(width), vec![shift; width]);
    let layer = |inputs: usize, outputs: usize| LayerParts {
        weights: &zeros[..inputs * outputs],
        bias: &zeros[..outputs * 4],
        multiplier: &multiplier[..outputs * 4],
        shift: &shift[..outputs],
    };
    let last = LayerParts { bias: &bias, ..layer(hidden, KNOB_COUNT) };
    let hidden_wire = u16::try_from(hidden).unwrap();
    let flat = &zeros[..inputs * 4];
    let parts = ModelParts {
        counter: 0,
        signed: false,
        knob_fingerprint: knobs::FINGERPRINT,
        schema_id: Schema::Edge.id(),
        schema_fingerprint: Schema::Edge.fingerprint(),
        step_ms: 5000,
        shape: [u16::try_from(inputs).unwrap(), hidden_wire, hidden_wire, 11],
        input: InputParts { mean: flat, inv_std: flat, observed_min: flat, observed_max: flat },
        layers: [layer(inputs, hidden), layer(hidden, hidden), last],
        bounds: BoundsParts {
            min: &zeros[..KNOB_COUNT * 8],
            max: &zeros[..KNOB_COUNT * 8],
            tuned: 0x7FF,
        },
        card: Card { seed: 1, steps: 0, scenarios: "", broker_versions: "", scores: "" },
    };
    let mut out = vec![0; 64 * 1024];
    let length = Model::new(parts).unwrap().write(&mut out).unwrap();
    out.truncate(length);
    out
}

/// The accumulator that comes out as `raw`: divided by eight, in 1/4096, through tanh.
fn bias(raw: i8) -> i32 {
    let target = (f64::from(raw) / 127.0).clamp(-0.9999, 0.9999);
    #[allow(clippy::cast_possible_truncation, reason = "at most 5 times 32768")]
    let bias = (target.atanh() * 4096.0 * 8.0).round() as i32;
    bias
}
