//! What lies between two drop-ins, and what CONNACK shows of one.

use brokertuner_core::knobs::Apply;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, KnobSet, Setting, Settings};

use super::{ApplyError, Restored};
use crate::connack::Connack;
use crate::state::{How, Intent};

/// The drop-in between `from` and `to`: the site's values for reloadable options that are given up.
pub(crate) fn interim(
    from: Option<Settings>,
    to: Option<Settings>,
    site: &SiteValues,
) -> Option<Settings> {
    let (from, target) = (from?, to.unwrap_or_default());
    let mut interim = target;
    for knob in from.written().iter().filter(|knob| knob.spec().apply == Apply::Reload) {
        if target.get(knob) == Setting::Unwritten {
            // A site's value that the table does not permit is left to the main file.
            let _ = interim.set(knob, site.get(knob));
        }
    }
    (interim != target).then_some(interim)
}

/// What CONNACK shows to be in force, 0 for no limit; that of MQTT 3.1.1 shows nothing.
fn limits(connack: &Connack) -> impl Iterator<Item = (Knob, u64)> {
    let limits = [
        (Knob::InflightMessagesMax, connack.receive_maximum.map_or(0, u64::from)),
        (Knob::PacketSizeMax, connack.packet_bytes_max.map_or(0, u64::from)),
    ];
    limits.into_iter().filter(|_| connack.shows_limits())
}

/// `settings` with what CONNACK shows of a written value: in force, whatever was asked of the
/// broker. Where it shows another value than `settings` have, that one, as far as it can be said.
pub(super) fn shown(settings: Settings, written: Settings, connack: &Connack) -> Settings {
    limits(connack).fold(settings, |settings, (knob, found)| {
        if written.get(knob).value() == Some(found) {
            settings.with_that_of(knob, &written)
        } else if settings.get(knob).value().is_some_and(|value| value != found) {
            let mut other = Settings::UNWRITTEN;
            // A value that the table does not permit is none of ours: no line then.
            let _ = other.set(knob, found);
            settings.with_that_of(knob, &other)
        } else {
            settings
        }
    })
}

/// What a broker that was just started has in force: what was written, unless an option that nobody but
/// us sets shows that it did not read that.
pub(super) fn started_with(written: Settings, ours: KnobSet, connack: &Connack) -> Settings {
    let is_other = |(knob, found): (Knob, u64)| {
        ours.contains(knob) && written.get(knob).value().is_some_and(|value| value != found)
    };
    let has_read = !limits(connack).any(is_other);
    shown(if has_read { written } else { Settings::UNWRITTEN }, written, connack)
}

/// After a restart, what CONNACK shows must be what was written; that of MQTT 3.1.1 shows nothing.
pub(super) fn read_back(intent: &Intent, connack: &Connack) -> Result<(), ApplyError> {
    if intent.how != How::Restart {
        return Ok(());
    }
    let to = intent.to.unwrap_or_default();
    for (knob, found) in limits(connack) {
        if let Some(wanted) = to.get(knob).value()
            && wanted != found
        {
            let restored = Restored::NotTold;
            return Err(ApplyError::NotEffective { knob, wanted, found, restored });
        }
    }
    Ok(())
}

/// Whether CONNACK shows that the broker was started with the new settings of `intent`, not with those
/// of before.
pub(super) fn shows_new(intent: &Intent, connack: &Connack) -> bool {
    let (from, to) = (intent.from.unwrap_or_default(), intent.to.unwrap_or_default());
    limits(connack).any(|(knob, found)| match from.get(knob).value() {
        Some(old) => old != found,
        None => to.get(knob).value() == Some(found),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::mqtt::Protocol;

    /// Two options of ours, of which CONNACK shows one, and one that it does not.
    fn written() -> Settings {
        let mut settings = Settings::UNWRITTEN;
        settings.set(Knob::InflightMessagesMax, 600).unwrap();
        settings.set(Knob::QueuedMessagesMax, 5000).unwrap();
        settings
    }

    fn shows(receive_maximum: u16) -> Connack {
        let receive_maximum = Some(receive_maximum);
        Connack { protocol: Protocol::V5, reason: 0, receive_maximum, packet_bytes_max: None }
    }

    #[test]
    fn a_broker_that_shows_other_limits_did_not_read_the_drop_in() {
        let all = KnobSet::all();
        assert_eq!(started_with(written(), all, &shows(600)), written());
        assert_eq!(started_with(written(), all, &shows(20)), Settings::UNWRITTEN);
        let silent = Connack { protocol: Protocol::V311, receive_maximum: None, ..shows(20) };
        assert_eq!(started_with(written(), all, &silent), written(), "3.1.1 shows nothing");
    }

    #[test]
    fn an_option_that_another_file_sets_is_no_sign_and_is_taken_as_shown() {
        let ours = KnobSet::all().without(Knob::InflightMessagesMax);
        let mut expected = written();
        expected.set(Knob::InflightMessagesMax, 300).unwrap();
        assert_eq!(started_with(written(), ours, &shows(300)), expected);
        expected = written().with_that_of(Knob::InflightMessagesMax, &Settings::UNWRITTEN);
        assert_eq!(started_with(written(), ours, &shows(60_000)), expected, "beyond the table");
    }
}
