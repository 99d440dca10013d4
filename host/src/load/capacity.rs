//! How many messages a second the broker passes on this machine: the unit of `rate_x_capacity`.

use std::net::SocketAddr;
use std::time::Duration;

use super::score::Tally;
use super::{LoadConfig, LoadError, LoadGenerator};
use crate::scenario::{
    BrokerSetup, Phase, Protocol, PublishGroup, Qos, Rate, Scenario, SubscribeGroup,
};

/// A window and a queue that do not limit what is measured.
pub(crate) const SETTINGS: &str = "max_inflight_messages 1000\nmax_queued_messages 10000\n";
const PUBLISHERS: u32 = 4;
const PAYLOAD_BYTES: u32 = 64;
/// Rate of the first try, and the ends of the search.
const FIRST_MSGS_PER_S: f64 = 8_000.0;
const LOWEST_MSGS_PER_S: f64 = 50.0;
const HIGHEST_MSGS_PER_S: f64 = 2_000_000.0;
/// Bisection ends when the bracket is this narrow.
const BRACKET_RATIO: f64 = 1.02;
const LOSS_MAX: f64 = 0.01;
const TRY_S: u32 = 2;
const MEASUREMENTS: usize = 3;
/// A message later than this is lost: at a rate that the broker does not sustain, the excess of
/// [`TRY_S`] would else hide in its queue. An excess of 2 % has grown to this after the run.
const DEADLINE: Duration = Duration::from_millis(40);

/// Measures the broker's capacity: QoS 1 publishes of 64 bytes a second that it passes from 4
/// publishers to 1 subscriber that acknowledges at once, with at most 1 % loss. Open loop, bisected
/// to 2 %, median of 3; takes about a minute. The broker must have an inflight window of 1000 and a
/// queue of 10000.
///
/// # Errors
/// [`LoadError::NoCapacity`] where even the lowest rate does not pass; [`LoadError::Interrupted`]
/// after the try in which Ctrl-C came; else as [`LoadGenerator::start`].
pub fn capacity(
    addr: SocketAddr,
    seed: u64,
    pin_cores: Option<Vec<usize>>,
) -> Result<f64, LoadError> {
    let passes = |msgs_per_s: f64| is_passed(addr, seed, pin_cores.clone(), msgs_per_s);
    measure(crate::broker::interrupted, passes)
}

/// The median of [`MEASUREMENTS`] searches; asks between two tries whether it is to end.
fn measure(
    is_interrupted: impl Fn() -> bool,
    mut try_rate: impl FnMut(f64) -> Result<bool, LoadError>,
) -> Result<f64, LoadError> {
    let mut passes = |msgs_per_s: f64| {
        if is_interrupted() { Err(LoadError::Interrupted) } else { try_rate(msgs_per_s) }
    };
    let mut results = Vec::with_capacity(MEASUREMENTS);
    let mut first = FIRST_MSGS_PER_S;
    for _ in 0..MEASUREMENTS {
        let found = search(first, &mut passes)?;
        results.push(found);
        first = found;
    }
    results.sort_by(f64::total_cmp);
    Ok(results[MEASUREMENTS / 2])
}

/// Finds the highest rate that passes, to [`BRACKET_RATIO`], with steps that widen away from
/// `first`.
fn search(
    first: f64,
    passes: &mut impl FnMut(f64) -> Result<bool, LoadError>,
) -> Result<f64, LoadError> {
    let mut step = 1.25;
    let (mut low, mut high) = (None, None);
    let mut rate = first;
    while low.is_none() || high.is_none() {
        if passes(rate)? {
            low = Some(rate);
            if rate >= HIGHEST_MSGS_PER_S {
                return Ok(rate);
            }
            rate = (rate * step).min(HIGHEST_MSGS_PER_S);
        } else {
            high = Some(rate);
            if rate <= LOWEST_MSGS_PER_S {
                return Err(LoadError::NoCapacity { msgs_per_s: rate });
            }
            rate = (rate / step).max(LOWEST_MSGS_PER_S);
        }
        step *= 1.25;
    }
    let (mut low, mut high) =
        (low.unwrap_or(LOWEST_MSGS_PER_S), high.unwrap_or(HIGHEST_MSGS_PER_S));
    while high / low > BRACKET_RATIO {
        let middle = (low * high).sqrt();
        if passes(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// As [`capacity`], of whatever `passes` a load.
pub(crate) fn highest_passed(mut passes: impl FnMut(Scenario) -> bool) -> Result<f64, LoadError> {
    search(FIRST_MSGS_PER_S, &mut |msgs_per_s| Ok(passes(scenario(msgs_per_s))))
}

/// Whether a run of it lost little enough.
pub(crate) fn is_little_lost(tally: &Tally) -> bool {
    let lost = tally.expected.saturating_sub(tally.in_time);
    lost as f64 <= LOSS_MAX * tally.expected as f64
}

fn is_passed(
    addr: SocketAddr,
    seed: u64,
    pin_cores: Option<Vec<usize>>,
    msgs_per_s: f64,
) -> Result<bool, LoadError> {
    let config = LoadConfig { seed, pin_cores, ..LoadConfig::new(scenario(msgs_per_s), addr) };
    let tally = LoadGenerator::start(config)?.join()?.tally;
    Ok(is_little_lost(&tally))
}

/// The load that a broker passes or not.
pub(crate) fn scenario(msgs_per_s: f64) -> Scenario {
    let reconnect = Duration::from_millis(200);
    let publish = PublishGroup {
        name: "publishers".to_owned(),
        clients: PUBLISHERS,
        topic: "capacity/{client}".to_owned(),
        rate: Rate::PerClientHz(msgs_per_s / f64::from(PUBLISHERS)),
        payload_bytes_min: PAYLOAD_BYTES,
        payload_bytes_max: PAYLOAD_BYTES,
        qos: Qos::AtLeastOnce,
        protocol: Protocol::V4,
        retain: false,
        sync: false,
        burst: None,
        inflight: 100,
        reconnect,
    };
    let subscribe = SubscribeGroup {
        name: "subscriber".to_owned(),
        clients: 1,
        filter: "capacity/#".to_owned(),
        qos: Qos::AtLeastOnce,
        protocol: Protocol::V4,
        reconnect,
        weight: 1.0,
        deadline: DEADLINE,
        ack_delay: Duration::ZERO,
        clean_session: true,
        receive_maximum: None,
        offline: None,
    };
    Scenario {
        name: "capacity".to_owned(),
        summary: "How much the broker passes".to_owned(),
        deadline: DEADLINE,
        rss_limit_bytes: u64::MAX,
        broker: BrokerSetup { persistence: false, sys_interval_s: 1, cpu_share: None },
        phases: vec![Phase {
            name: "try".to_owned(),
            duration_s: TRY_S,
            weight: 1.0,
            publish: vec![publish],
            subscribe: vec![subscribe],
        }],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_the_edge_from_both_sides() {
        for edge in [60.0, 5_000.0, 8_000.0, 123_456.0] {
            let found = search(FIRST_MSGS_PER_S, &mut |rate| Ok(rate <= edge)).unwrap();
            assert!(found <= edge && edge / found <= BRACKET_RATIO, "{edge} {found}");
        }
    }

    #[test]
    fn an_interrupt_ends_the_measurement_before_the_next_try() {
        let tries = std::cell::Cell::new(0);
        let passes = |rate: f64| {
            tries.set(tries.get() + 1);
            Ok(rate <= 5_000.0)
        };
        let error = measure(|| tries.get() == 3, passes).unwrap_err();
        assert!(matches!(error, LoadError::Interrupted), "{error}");
        assert_eq!(tries.get(), 3);
    }

    #[test]
    fn the_search_ends_where_everything_or_nothing_passes() {
        assert!(matches!(search(100.0, &mut |_| Ok(false)), Err(LoadError::NoCapacity { .. })));
        assert_eq!(search(100.0, &mut |_| Ok(true)).unwrap(), HIGHEST_MSGS_PER_S);
    }
}
