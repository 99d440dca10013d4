//! `host knobs`: the knob table as text, JSON and Markdown (`core/KNOBS.md`).

use brokertuner_core::knobs::{Apply, FINGERPRINT, KNOBS, KnobSpec, Tuned, ZERO_FROM, Zero};
use serde::Serialize;
use std::fmt::Write as _;

/// One row of `host knobs --json`.
#[derive(Debug, Serialize)]
struct Row {
    index: usize,
    key: &'static str,
    unit: String,
    min: u64,
    max: u64,
    broker_default: u64,
    scale: &'static str,
    zero: &'static str,
    effect: &'static str,
    tuned_by_default: bool,
    why: &'static str,
    source: &'static str,
}

/// The document of `host knobs --json`, version 1.
#[derive(Debug, Serialize)]
struct Document {
    version: u32,
    fingerprint: u32,
    knobs: Vec<Row>,
}

fn zero_text(spec: &KnobSpec) -> &'static str {
    match spec.zero {
        Zero::Unlimited => "no limit",
        Zero::Unwritten => "not allowed; no limit = line left out",
        Zero::Never => "never written",
        Zero::False => "false",
    }
}

fn effect_text(spec: &KnobSpec) -> &'static str {
    match spec.apply {
        Apply::Reload => "reload",
        Apply::Restart => "restart",
    }
}

fn row(index: usize, spec: &KnobSpec) -> Row {
    Row {
        index,
        key: spec.key,
        unit: spec.unit.to_string(),
        min: spec.min,
        max: spec.max,
        broker_default: spec.default,
        scale: match spec.scale {
            brokertuner_core::knobs::Scale::Log2 => "log2",
            brokertuner_core::knobs::Scale::Switch => "switch",
        },
        zero: zero_text(spec),
        effect: effect_text(spec),
        tuned_by_default: spec.tuned == Tuned::ByDefault,
        why: spec.why,
        source: spec.source,
    }
}

/// The table as one JSON document with a trailing newline.
///
/// # Errors
/// None in practice: the document holds plain numbers and texts.
pub fn json() -> serde_json::Result<String> {
    let knobs = KNOBS.iter().enumerate().map(|(index, spec)| row(index, spec)).collect();
    let document = Document { version: 1, fingerprint: FINGERPRINT, knobs };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// The table as plain text for a terminal.
#[must_use]
pub fn text() -> String {
    let mut out = String::new();
    for (index, spec) in KNOBS.iter().enumerate() {
        let row = row(index, spec);
        let held = if row.tuned_by_default { "tuned" } else { "held until opted in" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{index:2} {:<22} {} to {} {}, default {}, 0: {}; {}; {held}\n   {}",
            row.key, row.min, row.max, row.unit, row.broker_default, row.zero, row.effect, row.why
        );
    }
    out
}

/// `core/KNOBS.md`; a test compares the file in the tree with this.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Knobs\n\nWritten by `host knobs --markdown` from the table in `src/knobs.rs`; change it there.\n\n\
         | # | option | unit | range | broker's default | 0 means | effect of a change | on the gateway |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for (index, spec) in KNOBS.iter().enumerate() {
        let row = row(index, spec);
        let held = if row.tuned_by_default { "tuned" } else { "held until opted in" };
        let _ = writeln!(
            out,
            "| {index} | `{}` | {} | {}..{} | {} | {} | {} | {held} |",
            row.key, row.unit, row.min, row.max, row.broker_default, row.zero, row.effect
        );
    }
    out.push_str("\n## Why, and where it is from\n\n");
    for spec in &KNOBS {
        let _ = writeln!(out, "- `{}`: {}. Source: {}.", spec.key, spec.why, spec.source);
    }
    let _ = write!(
        out,
        "\n{ENVELOPE}Actor outputs of {ZERO_FROM} and above (of 127) mean \"no limit\" where the option has one.\nTable fingerprint: {FINGERPRINT:#010x}.\n\n{KEPT}"
    );
    out
}

const ENVELOPE: &str = "\
## Rules between options

- `max_queued_messages` is at least 100 and at least twice `max_inflight_messages`: it also caps the
  send buffer, and below the window it swallows control packets.
- `queue_qos0_messages true` only with a `memory_limit`: no queue limit bounds it.
- `memory_limit` is 0 or at least twice the largest heap seen; unknown heap: 0.
- `max_packet_size` and `message_size_limit` are unlimited or at least four times the largest packet seen.
- `persistence` changes only together with a restart.

";

const KEPT: &str = "\
## What a broker keeps

Measured on 2.0.11 and 2.0.21 (tests/semantics), and not in the man page:

- While a subscriber is connected, `max_inflight_messages` and `max_inflight_bytes` are added to the limits
  of its queue; `max_inflight_bytes 0` adds nothing. On 2.0.11 what is in flight counts as queued too.
- With `persistence true`, a restart keeps in memory every message that clean sessions were waiting for,
  although nobody gets it, until the restart after that. Memory that a restart was to free comes back
  with it.
";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    /// Renew with `cargo run --bin host -- knobs --markdown > core/KNOBS.md`.
    #[test]
    fn the_file_in_the_tree_is_the_table() {
        assert_eq!(include_str!("../../core/KNOBS.md"), super::markdown());
    }

    #[test]
    fn json_has_every_row() {
        let document: serde_json::Value = serde_json::from_str(&super::json().unwrap()).unwrap();
        assert_eq!(document["knobs"].as_array().unwrap().len(), 11);
        assert_eq!(document["knobs"][2]["key"], "max_queued_messages");
    }

    #[test]
    fn text_names_every_option() {
        let text = super::text();
        for spec in &super::KNOBS {
            assert!(text.contains(spec.key));
        }
    }
}
