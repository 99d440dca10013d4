//! A value or nothing for every option.

use crate::envelope::Envelope;
use crate::knobs::{Apply, KNOB_COUNT, Knob, KnobSet, KnobValue, OutOfRange};

/// One actor output per option, -127..=127 for -1..=1; -128 reads as -127.
pub type Action = [i8; KNOB_COUNT];

/// Rounds an action in [-1, 1] to the int8 grid, half away from zero; NaN becomes 0.
#[must_use]
pub fn quantise_action(action: &[f32; KNOB_COUNT]) -> Action {
    action.map(|output| {
        let scaled = libm::roundf(output.clamp(-1.0, 1.0) * 127.0);
        // `as` saturates and maps NaN to 0, which is what is promised.
        #[allow(clippy::cast_possible_truncation, reason = "clamped to -127..=127, NaN to 0")]
        let raw = scaled as i8;
        raw
    })
}

/// What the drop-in says of one option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Setting {
    /// No line: the administrator's own, or the broker's default, stands.
    #[default]
    Unwritten,
    /// A line with this value.
    Value(KnobValue),
}

impl Setting {
    /// The value in the row's unit, if there is a line.
    #[must_use]
    pub fn value(self) -> Option<u64> {
        match self {
            Setting::Unwritten => None,
            Setting::Value(value) => Some(value.get()),
        }
    }
}

/// What the drop-in says of every option; the default says nothing.
///
/// Built by decoding an action ([`Settings::decode`]), by validated parsing
/// ([`crate::render::parse`]) or value by value through the table ([`Settings::set`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Settings([Setting; KNOB_COUNT]);

impl Settings {
    /// Nothing written.
    pub const UNWRITTEN: Settings = Settings([Setting::Unwritten; KNOB_COUNT]);

    /// The settings of an actor's output, inside the envelope whatever the bytes.
    #[must_use]
    pub fn decode(action: &Action, envelope: &Envelope) -> Settings {
        let mut settings = Settings::UNWRITTEN;
        for knob in Knob::ALL {
            if let Some(value) = knob.spec().decode(action[knob as usize]) {
                settings.0[knob as usize] = Setting::Value(value);
            }
        }
        envelope.confine(settings)
    }

    /// The action that lies nearest to these settings where `site` holds for unwritten options.
    #[must_use]
    pub fn encode(&self, site: &SiteValues) -> Action {
        let mut action = [0; KNOB_COUNT];
        for knob in Knob::ALL {
            let spec = knob.spec();
            let value = self.effective(knob, site);
            // A site's value outside the range counts as the nearest end of it.
            let inside = match spec.order(value) {
                u64::MAX => None,
                order => spec.value(order.clamp(spec.min, spec.max)).ok(),
            };
            action[knob as usize] = spec.encode(inside);
        }
        action
    }

    /// What is written for `knob`.
    #[must_use]
    pub const fn get(&self, knob: Knob) -> Setting {
        self.0[knob as usize]
    }

    /// The value that holds for `knob`: the written one, else the site's.
    #[must_use]
    pub fn effective(&self, knob: Knob, site: &SiteValues) -> u64 {
        self.get(knob).value().unwrap_or(site.0[knob as usize])
    }

    /// Writes `value` for `knob`.
    ///
    /// # Errors
    /// [`OutOfRange`] where the table does not permit it; nothing is changed then.
    pub fn set(&mut self, knob: Knob, value: u64) -> Result<(), OutOfRange> {
        self.0[knob as usize] = Setting::Value(knob.spec().value(value)?);
        Ok(())
    }

    /// These settings with what `other` says of `knob`.
    #[must_use]
    pub const fn with_that_of(self, knob: Knob, other: &Settings) -> Settings {
        self.with(knob, other.get(knob))
    }

    /// These settings with those of `other` for every option that it states.
    #[must_use]
    pub fn with_stated(self, other: &Settings) -> Settings {
        other.written().iter().fold(self, |settings, knob| settings.with_that_of(knob, other))
    }

    /// These settings with `setting` for `knob`, whose value must be the knob's own.
    #[must_use]
    pub(crate) const fn with(mut self, knob: Knob, setting: Setting) -> Settings {
        self.0[knob as usize] = setting;
        self
    }

    /// The options whose settings differ.
    #[must_use]
    pub fn differing(&self, other: &Settings) -> KnobSet {
        Knob::ALL
            .into_iter()
            .filter(|&knob| self.get(knob) != other.get(knob))
            .fold(KnobSet::EMPTY, KnobSet::with)
    }

    /// These settings with those of `other` for all options whose change takes `apply`.
    #[must_use]
    pub fn with_those_of(mut self, other: &Settings, apply: Apply) -> Settings {
        for knob in Knob::ALL.into_iter().filter(|knob| knob.spec().apply == apply) {
            self.0[knob as usize] = other.get(knob);
        }
        self
    }

    /// Option and setting of every row.
    pub fn iter(&self) -> impl Iterator<Item = (Knob, Setting)> + '_ {
        Knob::ALL.into_iter().map(|knob| (knob, self.get(knob)))
    }

    /// The options that have a line.
    #[must_use]
    pub fn written(&self) -> KnobSet {
        self.differing(&Settings::UNWRITTEN)
    }
}

/// What holds where the drop-in has no line: the main file's value, else the broker's default.
///
/// In the broker's own terms, so any number that it accepts; 0 is its special value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SiteValues(pub [u64; KNOB_COUNT]);

impl Default for SiteValues {
    /// The defaults of an empty `mosquitto.conf`.
    fn default() -> Self {
        SiteValues(Knob::ALL.map(|knob| knob.spec().default))
    }
}

impl SiteValues {
    /// The site's value of `knob`.
    #[must_use]
    pub const fn get(&self, knob: Knob) -> u64 {
        self.0[knob as usize]
    }
}
