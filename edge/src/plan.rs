//! A change: what, how and why.

use std::fmt;

use brokertuner_core::knobs::Scale;
use brokertuner_core::{Knob, Setting, Settings};

use crate::state::How;

/// A change: what, how and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The drop-in before.
    pub from: Settings,
    /// The drop-in after.
    pub to: Settings,
    /// How it is made effective.
    pub how: How,
    /// Why.
    pub why: String,
    /// It undoes an earlier change.
    pub is_roll_back: bool,
    /// A person asked for it over HTTP: no input weighed.
    pub is_asked_for: bool,
    /// It changes no setting, but belongs to the change before it: it sheds what that one's restart
    /// carried over.
    pub is_unloading: bool,
}

/// One line per option that changes from `from` to `to`, as in `max_inflight_messages 20 -> 1000`.
#[must_use]
pub fn diff(from: &Settings, to: &Settings) -> Vec<String> {
    let shown = |knob: Knob, setting: Setting| match (setting.value(), knob.spec().scale) {
        (None, _) => "(no line)".to_owned(),
        (Some(value), Scale::Switch) => (value != 0).to_string(),
        (Some(value), Scale::Log2) => value.to_string(),
    };
    let line = |knob: Knob| {
        let (from, to) = (from.get(knob), to.get(knob));
        format!("{knob} {} -> {}", shown(knob, from), shown(knob, to))
    };
    from.differing(to).iter().map(line).collect()
}

impl Plan {
    /// One line per option that changes, as in `max_inflight_messages 20 -> 1000`.
    #[must_use]
    pub fn diff(&self) -> Vec<String> {
        diff(&self.from, &self.to)
    }

    /// The same in one line.
    #[must_use]
    pub fn what(&self) -> String {
        let diff = self.diff();
        if diff.is_empty() { "the same settings".into() } else { diff.join(", ") }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} ({})", self.what(), self.how, self.why)
    }
}
