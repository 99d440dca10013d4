//! What lies between two drop-ins, and what CONNACK shows of one.

use brokertuner_core::knobs::Apply;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, Setting, Settings};

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

/// `settings` with what CONNACK shows of a written value: in force, whatever was asked of the
/// broker.
pub(super) fn shown(settings: Settings, written: Settings, connack: &Connack) -> Settings {
    let shown = [
        (Knob::InflightMessagesMax, connack.receive_maximum.map(u64::from)),
        (Knob::PacketSizeMax, connack.packet_bytes_max.map(u64::from)),
    ];
    let mut settings = settings;
    for (knob, value) in shown {
        if connack.shows_limits() && value.is_some() && value == written.get(knob).value() {
            settings = settings.with_that_of(knob, &written);
        }
    }
    settings
}

/// After a restart, what CONNACK shows must be what was written; that of MQTT 3.1.1 shows nothing.
pub(super) fn read_back(intent: &Intent, connack: &Connack) -> Result<(), ApplyError> {
    if intent.how != How::Restart || !connack.shows_limits() {
        return Ok(());
    }
    let to = intent.to.unwrap_or_default();
    let shown = [
        (Knob::InflightMessagesMax, connack.receive_maximum.map_or(0, u64::from)),
        (Knob::PacketSizeMax, connack.packet_bytes_max.map_or(0, u64::from)),
    ];
    for (knob, found) in shown {
        if let Some(wanted) = to.get(knob).value()
            && wanted != found
        {
            let restored = Restored::NotTold;
            return Err(ApplyError::NotEffective { knob, wanted, found, restored });
        }
    }
    Ok(())
}
