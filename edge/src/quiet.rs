//! Times of day without restarts, by the site's own clock on the wall.

use std::path::Path;

use tz::TimeZone;

const MINUTES_PER_DAY: i64 = 24 * 60;
/// The machine's own time zone, `/etc/localtime`.
pub const MACHINES_ZONE: &str = "localtime";

/// The start of 2025: a machine without a battery for its clock boots before it, and shows the time
/// only once it has been told.
pub(crate) const CLOCK_SET_UNIX_S: u64 = 1_735_689_600;

/// A time of day, in minutes after midnight; may pass midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from_min: i64,
    to_min: i64,
}

impl Window {
    /// Reads `HH:MM-HH:MM`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once('-')?;
        let (from_min, to_min) = (minutes(from)?, minutes(to)?);
        (from_min != to_min).then_some(Self { from_min, to_min })
    }

    /// Whether a minute of the day lies inside.
    fn contains(self, minute: i64) -> bool {
        if self.from_min < self.to_min {
            (self.from_min..self.to_min).contains(&minute)
        } else {
            minute >= self.from_min || minute < self.to_min
        }
    }
}

fn minutes(text: &str) -> Option<i64> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let two_digits = |text: &str| -> Option<i64> {
        let plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        if plain { text.parse().ok() } else { None }
    };
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// The site's quiet hours in its time zone.
#[derive(Debug, Clone)]
pub struct QuietHours {
    windows: Vec<Window>,
    zone: TimeZone,
}

impl QuietHours {
    /// `windows` in `zone`: [`MACHINES_ZONE`], a name as in `Europe/Berlin`, or a POSIX rule.
    ///
    /// A machine without `/etc/localtime` runs on UTC, as the C library has it.
    ///
    /// # Errors
    /// What is wrong with the zone.
    pub fn new(windows: Vec<Window>, zone: &str) -> Result<Self, String> {
        let zone = match TimeZone::from_posix_tz(zone) {
            Ok(zone) => zone,
            Err(_) if zone == MACHINES_ZONE && !Path::new("/etc/localtime").exists() => {
                TimeZone::utc()
            }
            Err(error) => return Err(error.to_string()),
        };
        Ok(Self { windows, zone })
    }

    /// Whether a Unix second lies in one of the windows, as far as can be told: a clock that was
    /// never set does not tell, so that it is always quiet.
    #[must_use]
    pub fn contains(&self, unix_s: u64) -> bool {
        if self.windows.is_empty() {
            return false;
        }
        if unix_s < CLOCK_SET_UNIX_S {
            return true;
        }
        let unix_s = i64::try_from(unix_s).unwrap_or(i64::MAX);
        // A zone without an answer for this year is taken as UTC.
        let offset = self.zone.find_local_time_type(unix_s).map_or(0, |local| local.ut_offset());
        let minute =
            unix_s.saturating_add(offset.into()).div_euclid(60).rem_euclid(MINUTES_PER_DAY);
        self.windows.iter().any(|window| window.contains(minute))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// Central Europe, by rule: needs no file of the machine.
    const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";
    /// 2026-01-15 and 2026-07-15, midnight UTC.
    const JANUARY: u64 = 1_768_435_200;
    const JULY: u64 = 1_784_073_600;

    fn hours(windows: &[&str], zone: &str) -> QuietHours {
        let windows = windows.iter().map(|text| Window::parse(text).unwrap()).collect();
        QuietHours::new(windows, zone).unwrap()
    }

    #[test]
    fn windows_may_pass_midnight() {
        let (night, noon) = (hours(&["22:00-06:00"], "UTC0"), hours(&["12:00-13:30"], "UTC0"));
        for (minute, in_night, in_noon) in [
            (21 * 60 + 59, false, false),
            (22 * 60, true, false),
            (0, true, false),
            (5 * 60 + 59, true, false),
            (6 * 60, false, false),
            (12 * 60, false, true),
            (13 * 60 + 29, false, true),
            (13 * 60 + 30, false, false),
        ] {
            let at = JANUARY + minute * 60;
            assert_eq!((night.contains(at), noon.contains(at)), (in_night, in_noon), "{minute}");
        }
        let both = hours(&["22:00-06:00", "12:00-13:30"], "UTC0");
        assert!(both.contains(JANUARY) && both.contains(JANUARY + 12 * 3600));
    }

    /// 22:00 on the wall is 21:00 UTC in winter and 20:00 UTC in summer.
    #[test]
    fn the_clock_on_the_wall_counts_also_in_summer() {
        let night = hours(&["22:00-06:00"], BERLIN);
        for (day, utc_hour, is_quiet) in [
            (JANUARY, 20, false),
            (JANUARY, 21, true),
            (JANUARY, 4, true),
            (JANUARY, 5, false),
            (JULY, 19, false),
            (JULY, 20, true),
            (JULY, 3, true),
            (JULY, 4, false),
        ] {
            assert_eq!(night.contains(day + utc_hour * 3600), is_quiet, "{day} {utc_hour}:00 UTC");
        }
    }

    #[test]
    fn a_zone_that_does_not_exist_is_refused_and_the_machines_own_always_works() {
        assert!(QuietHours::new(Vec::new(), "Europe/Nowhere").is_err());
        assert!(!hours(&[], MACHINES_ZONE).contains(JANUARY));
        // No year of this world, and no panic.
        let _ = hours(&["22:00-06:00"], BERLIN).contains(u64::MAX);
    }

    #[test]
    fn a_clock_that_was_never_set_is_quiet_where_hours_are_configured() {
        for unix_s in [0, 12 * 3600, CLOCK_SET_UNIX_S - 1] {
            assert!(hours(&["22:00-06:00"], "UTC0").contains(unix_s), "{unix_s}");
            assert!(!hours(&[], "UTC0").contains(unix_s), "no hours are configured");
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for wrong in ["", "22:00", "22-06", "24:00-01:00", "1:00-2:00", "05:00-05:00", "a:b-c:d"] {
            assert_eq!(Window::parse(wrong), None, "{wrong}");
        }
    }
}
