//! Settings to the drop-in's text, and back; inverse of each other.
//!
//! Strict on purpose: the file is ours, and whatever we would not have written is someone's edit.

use crate::knobs::{Knob, OutOfRange, Scale};
use crate::settings::{Setting, Settings};
use core::fmt::{self, Write as _};

/// First line of every drop-in.
pub const HEADER: &str = "# Written by BrokerTuner. Edit it and the agent lets go of it.";

/// Longest text: the header and eleven lines of the longest key and value (asserted in the tests).
pub const CONF_BYTES_MAX: usize = 512;

/// A drop-in's text: ASCII, blanks, plain decimals.
pub type ConfText = heapless::String<CONF_BYTES_MAX>;

/// Writes the drop-in: a line for every option that has a value, in table order.
#[must_use]
pub fn render(settings: &Settings) -> ConfText {
    let mut text = ConfText::new();
    // Cannot fail: the capacity holds the longest text.
    let _ = writeln!(text, "{HEADER}");
    for (knob, setting) in settings.iter() {
        if let Setting::Value(value) = setting {
            let _ = match (knob.spec().scale, value.get()) {
                (Scale::Switch, 0) => writeln!(text, "{knob} false"),
                (Scale::Switch, _) => writeln!(text, "{knob} true"),
                (Scale::Log2, number) => writeln!(text, "{knob} {number}"),
            };
        }
    }
    text
}

/// What is wrong with a line, numbered from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ParseError {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong with it.
    pub reason: ParseReason,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ParseReason {
    /// Not `key value` with one blank between.
    Shape,
    /// The key is none of the eleven.
    UnknownKey,
    /// The key stands twice.
    Twice(Knob),
    /// A switch that is neither `true` nor `false`.
    NotASwitch(Knob),
    /// Not a plain decimal number.
    NotANumber(Knob),
    /// A number that the table does not permit.
    OutOfRange(OutOfRange),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        match self.reason {
            ParseReason::Shape => f.write_str("expected `key value` with one blank between"),
            ParseReason::UnknownKey => f.write_str("not an option that BrokerTuner knows"),
            ParseReason::Twice(knob) => write!(f, "{knob} stands twice"),
            ParseReason::NotASwitch(knob) => write!(f, "{knob} must be true or false"),
            ParseReason::NotANumber(knob) => write!(f, "{knob} must be a plain decimal number"),
            ParseReason::OutOfRange(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ParseError {}

/// Reads a drop-in: comments, empty lines and `key value` lines of the eleven options.
///
/// # Errors
/// [`ParseError`] with the first line that [`render`] would not have written for some settings.
pub fn parse(text: &str) -> Result<Settings, ParseError> {
    let mut settings = Settings::UNWRITTEN;
    for (index, line) in text.lines().enumerate() {
        let fail =
            |reason| ParseError { line: u32::try_from(index + 1).unwrap_or(u32::MAX), reason };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (knob, value) = parse_line(line).map_err(fail)?;
        if settings.get(knob) != Setting::Unwritten {
            return Err(fail(ParseReason::Twice(knob)));
        }
        settings.set(knob, value).map_err(|error| fail(ParseReason::OutOfRange(error)))?;
    }
    Ok(settings)
}

fn parse_line(line: &str) -> Result<(Knob, u64), ParseReason> {
    let (key, value) = line.split_once(' ').ok_or(ParseReason::Shape)?;
    let knob = Knob::from_key(key).ok_or(ParseReason::UnknownKey)?;
    let value = match (knob.spec().scale, value) {
        (Scale::Switch, "false") => 0,
        (Scale::Switch, "true") => 1,
        (Scale::Switch, _) => return Err(ParseReason::NotASwitch(knob)),
        (Scale::Log2, digits) => plain_decimal(digits).ok_or(ParseReason::NotANumber(knob))?,
    };
    Ok((knob, value))
}

/// Digits only and no leading zero: 2.1 reads `010` as octal, 2.0 as ten.
fn plain_decimal(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    if plain && !leading_zero { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::envelope::Envelope;
    use crate::knobs::{KNOBS, KnobSet};
    use crate::settings::Action;
    use proptest::prelude::*;
    use std::string::ToString;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn decode_render_parse_is_the_identity(action in any::<Action>(), heap in any::<u32>()) {
            let envelope = Envelope {
                opted_in: KnobSet::all(),
                heap_bytes_max: Some(u64::from(heap)),
                packet_bytes_max: Some(u64::from(heap >> 8)),
                ..Envelope::default()
            };
            let settings = Settings::decode(&action, &envelope);
            prop_assert_eq!(parse(&render(&settings)), Ok(settings));
        }

        #[test]
        fn no_text_panics(text in "(?s).{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn near_misses_do_not_panic(
            text in "(max_queued_messages|persistence|memory_limit|x)[ \t]{0,2}[-+0-9a-z]{0,24}\r?\n?"
        ) {
            if let Ok(settings) = parse(&text) {
                prop_assert_eq!(parse(&render(&settings)), Ok(settings));
            }
        }
    }

    #[test]
    fn the_longest_text_fits() {
        let lines: usize =
            KNOBS.iter().map(|spec| spec.key.len() + 2 + spec.max.to_string().len().max(5)).sum();
        assert!(HEADER.len() + 1 + lines <= CONF_BYTES_MAX);
    }

    #[test]
    fn golden_text() {
        let mut settings = Settings::UNWRITTEN;
        for (knob, value) in [
            (Knob::InflightMessagesMax, 1000),
            (Knob::QueuedMessagesMax, 2000),
            (Knob::QueuedBytesMax, 0),
            (Knob::Persistence, 0),
            (Knob::TcpNodelay, 1),
        ] {
            settings.set(knob, value).unwrap();
        }
        assert_eq!(
            render(&settings).as_str(),
            "# Written by BrokerTuner. Edit it and the agent lets go of it.\n\
             max_inflight_messages 1000\n\
             max_queued_messages 2000\n\
             max_queued_bytes 0\n\
             persistence false\n\
             set_tcp_nodelay true\n"
        );
    }

    #[test]
    fn refusals_name_line_and_reason() {
        for (text, expected) in [
            ("\nmax_queued_messages", "line 2: expected `key value` with one blank between"),
            ("listener 1883", "line 1: not an option that BrokerTuner knows"),
            ("set_tcp_nodelay yes", "line 1: set_tcp_nodelay must be true or false"),
            ("memory_limit 10M", "line 1: memory_limit must be a plain decimal number"),
            ("memory_limit 010", "line 1: memory_limit must be a plain decimal number"),
            ("persistence true\npersistence true", "line 2: persistence stands twice"),
            (
                "max_inflight_messages 0",
                "line 1: max_inflight_messages 0 is outside 8 to 4096 messages",
            ),
            ("max_inflight_messages\t20", "line 1: expected `key value` with one blank between"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text:?}");
        }
    }
}
