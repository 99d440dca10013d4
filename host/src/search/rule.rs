//! The rule of thumb: what a careful operator would write down who knows the load, from the
//! bandwidth-delay product, once for all phases.

use crate::scenario::{Phase, PublishGroup, Qos, Scenario, SubscribeGroup, topic};
use brokertuner_core::{Envelope, Knob, Settings, render};

/// What a link costs beside the acknowledgement delay, in seconds.
const LINK_S: f64 = 0.005;
/// Room over what is needed on average.
const HEADROOM: f64 = 2.0;
/// Deliveries a second above which one core is taken for saturated, and batching for worth its
/// delay.
const SATURATED_PER_S: f64 = 60_000.0;
/// Share of the memory limit that queues may fill.
const MEMORY_SHARE: f64 = 0.5;

/// The settings, inside `envelope`.
#[must_use]
pub fn settings(scenario: &Scenario, envelope: &Envelope) -> Settings {
    let needs: Vec<Need> = scenario.phases.iter().flat_map(Need::of_phase).collect();
    let most = |of: fn(&Need) -> f64| needs.iter().map(of).fold(0.0, f64::max);
    let window = most(|need| need.window).max(20.0);
    let queue = most(|need| need.queue).max(2.0 * window).max(100.0);
    let readers: f64 = most(|need| need.readers).max(1.0);
    let queue_bytes = scenario.rss_limit_bytes as f64 * MEMORY_SHARE / readers;
    let share = scenario.broker.cpu_share.unwrap_or(1.0);
    let is_saturated = most(|need| need.deliveries_per_s) > SATURATED_PER_S * share;
    let text = format!(
        "{} {:.0}\n{} {:.0}\n{} {:.0}\n{} {}\n",
        Knob::InflightMessagesMax.spec().key,
        window.min(60_000.0),
        Knob::QueuedMessagesMax.spec().key,
        queue.min(1e6),
        Knob::QueuedBytesMax.spec().key,
        queue_bytes,
        Knob::TcpNodelay.spec().key,
        !is_saturated,
    );
    // Four known options with plain numbers; where one is out of range, the defaults stand.
    envelope.confine(render::parse(&text).unwrap_or(Settings::UNWRITTEN))
}

/// What one subscribe group asks for.
struct Need {
    window: f64,
    queue: f64,
    readers: f64,
    /// Of its whole phase.
    deliveries_per_s: f64,
}

impl Need {
    fn of_phase(phase: &Phase) -> Vec<Need> {
        let rate = |readers: &SubscribeGroup| -> f64 {
            phase.publish.iter().map(|group| rate_hz(group, readers)).sum()
        };
        let deliveries_per_s: f64 =
            phase.subscribe.iter().map(|group| rate(group) * f64::from(group.clients)).sum();
        let readers: f64 = phase.subscribe.iter().map(|group| f64::from(group.clients)).sum();
        let of_group = |group: &SubscribeGroup| {
            let (rate, peak) = (rate(group), rate(group) * burstiness(phase));
            let round_trip_s = group.ack_delay.as_secs_f64() + LINK_S;
            let away_s = group.offline.map_or(0.0, |offline| offline.lasts.as_secs_f64());
            let is_acknowledged = group.qos != Qos::AtMostOnce;
            Need {
                window: if is_acknowledged { HEADROOM * peak * round_trip_s } else { 0.0 },
                queue: HEADROOM * (rate * away_s + peak * group.deadline.as_secs_f64()),
                readers,
                deliveries_per_s,
            }
        };
        phase.subscribe.iter().map(of_group).collect()
    }
}

/// Messages a second that one member of `readers` gets of a publish group.
fn rate_hz(group: &PublishGroup, readers: &SubscribeGroup) -> f64 {
    // A multiple of an unknown capacity: as much as a core carries.
    let per_client = group.rate.per_client_hz(group.clients, Some(SATURATED_PER_S)).unwrap_or(0.0);
    let filter = topic::expand(&readers.filter, &readers.name, 0);
    let matches =
        |client| topic::matches(&filter, &topic::expand(&group.topic, &group.name, client));
    let is_read = matches(0) || matches(group.clients - 1);
    if is_read { per_client * f64::from(group.clients) } else { 0.0 }
}

/// How much denser messages come than evenly.
fn burstiness(phase: &Phase) -> f64 {
    let of = |group: &PublishGroup| group.burst.map_or(1.0, |burst| burst.duty.recip());
    phase.publish.iter().map(of).fold(1.0, f64::max)
}
