//! Randomised sites: loads that nobody has written by hand, as text in the syntax of scenario
//! files, so that each can be read, kept, and run on a real broker too.
//!
//! The kinds are those that are found in the field; sizes, rates, delays, deadlines, sessions,
//! memory, CPU share and `$SYS` interval are drawn widely, evenly by their logarithm.

use crate::scenario::{Scenario, ScenarioError};
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use std::fmt::Write as _;

/// Deliveries a second that a whole core carries, about: saturating loads are drawn around it.
const DELIVERIES_PER_S: f64 = 150_000.0;
/// The same for publishes.
const PUBLISHES_PER_S: f64 = 60_000.0;
/// `max_inflight_messages` of a broker that nobody configured.
const DEFAULT_WINDOW: f64 = 20.0;

/// A site.
///
/// # Errors
/// [`ScenarioError`] where what was drawn is no valid scenario; a test draws thousands.
pub fn site(seed: u64) -> Result<Scenario, ScenarioError> {
    Scenario::parse(&text(seed), &format!("site {seed}"))
}

/// A site as the text of a scenario file; all of it follows from `seed`.
#[must_use]
pub fn text(seed: u64) -> String {
    let mut draw = Draw { rng: Pcg64Mcg::seed_from_u64(seed), text: String::new(), cpu_share: 1.0 };
    draw.site(seed);
    draw.text
}

/// What a phase is like.
#[derive(Clone, Copy)]
enum Kind {
    /// Field data to consumers behind links.
    Uplink,
    /// More, or nearly more, than the core carries.
    Saturation,
    /// The same over short links and within a short deadline: fresh messages matter, old ones do not.
    Overload,
    /// Durable consumers lose their link and come back.
    Outage,
    /// Large payloads and a slow reader of them.
    Bulk,
    /// Commands and answers within a short deadline.
    Command,
    /// Small groups of messages, latency is what counts.
    Idle,
}

/// Kinds with their share in a hundred.
const KINDS: [(Kind, u32); 7] = [
    (Kind::Uplink, 26),
    (Kind::Saturation, 21),
    (Kind::Overload, 12),
    (Kind::Outage, 11),
    (Kind::Bulk, 13),
    (Kind::Command, 7),
    (Kind::Idle, 10),
];

/// A publish group.
struct Publish {
    clients: u32,
    rate_hz: f64,
    bytes: (u32, u32),
    qos: u32,
    extra: String,
}

/// A subscribe group.
struct Subscribe<'a> {
    name: &'a str,
    clients: u32,
    filter: &'a str,
    qos: u32,
    ack_delay_ms: u32,
    extra: String,
}

struct Draw {
    rng: Pcg64Mcg,
    text: String,
    cpu_share: f64,
}

impl Draw {
    fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability)
    }

    /// Even by the logarithm.
    fn between(&mut self, low: f64, high: f64) -> f64 {
        (self.rng.random_range(low.ln()..=high.ln())).exp()
    }

    /// The same, whole.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small, positive")]
    fn whole(&mut self, low: u32, high: u32) -> u32 {
        self.between(f64::from(low), f64::from(high)).round() as u32
    }

    fn kind(&mut self) -> Kind {
        KINDS.choose_weighted(&mut self.rng, |kind| kind.1).map_or(Kind::Uplink, |kind| kind.0)
    }

    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{key} = {value}");
    }

    fn site(&mut self, seed: u64) {
        let phases = if self.chance(0.65) { 1 } else { self.rng.random_range(2..=4) };
        let kinds: Vec<Kind> = (0..phases).map(|_| self.kind()).collect();
        let deadline_ms = match kinds.first() {
            Some(Kind::Command | Kind::Idle) if phases == 1 => self.whole(6, 60),
            Some(Kind::Bulk | Kind::Outage) if phases == 1 => self.whole(300, 4000),
            Some(Kind::Overload) if phases == 1 => self.whole(100, 600),
            _ => self.whole(80, 1500),
        };
        // Where payloads are large, memory is what counts: often there is little of it.
        let is_bulk = kinds.iter().any(|kind| matches!(kind, Kind::Bulk));
        let rss_limit_mib =
            if is_bulk && self.chance(0.5) { self.whole(18, 48) } else { self.whole(18, 128) };
        self.line("schema", 1);
        self.line("name", format!("\"site-{seed}\""));
        self.line("summary", "\"A randomised site\"");
        self.line("deadline_ms", deadline_ms);
        self.line("rss_limit_mib", rss_limit_mib);
        self.broker();
        for (number, kind) in kinds.into_iter().enumerate() {
            let duration_s = self.whole(30, 80);
            self.text += "[[phase]]\n";
            self.line("name", format!("\"{number}\""));
            self.line("duration_s", duration_s);
            self.phase(kind, deadline_ms, duration_s);
        }
    }

    fn broker(&mut self) {
        self.text += "[broker]\n";
        let sys_interval_s = match self.rng.random_range(0..4) {
            0 => 10,
            1 => self.whole(1, 60),
            _ => self.whole(1, 5),
        };
        self.line("sys_interval_s", sys_interval_s);
        if self.chance(0.35) {
            self.cpu_share = self.between(0.1, 1.0);
            self.line("cpu_share", format!("{:.3}", self.cpu_share));
        }
    }

    fn phase(&mut self, kind: Kind, deadline_ms: u32, duration_s: u32) {
        match kind {
            Kind::Uplink => self.uplink(),
            Kind::Saturation => self.saturation(deadline_ms),
            Kind::Overload => self.overload(deadline_ms),
            Kind::Outage => self.outage(duration_s),
            Kind::Bulk => self.bulk(),
            Kind::Command => self.command(),
            Kind::Idle => self.idle(),
        }
    }

    /// A delay of acknowledgements: often a round trip, sometimes none, sometimes a slow reader.
    fn delay_ms(&mut self) -> u32 {
        match self.rng.random_range(0..10) {
            0 | 1 => 0,
            2..=7 => self.whole(2, 150),
            _ => self.whole(100, 800),
        }
    }

    fn uplink(&mut self) {
        let clients = self.whole(1, 60);
        let readers = self.whole(1, 6);
        let carried = self.cpu_share * (DELIVERIES_PER_S / f64::from(readers)).min(PUBLISHES_PER_S);
        let ack_delay_ms = self.delay_ms();
        // Around and beyond what Mosquitto's default window passes: most others are no trouble.
        let window_hz = DEFAULT_WINDOW * 1000.0 / f64::from(ack_delay_ms.max(5));
        let wanted_hz = window_hz * self.between(0.4, 12.0);
        let total_hz = wanted_hz.clamp(10.0, 8000.0_f64.min(carried * 0.7));
        let bytes = self.payload(32, 2000);
        let qos = if self.chance(0.8) { 1 } else { 2 };
        let extra = self.rhythm();
        self.publish(
            "a",
            "s/a/{client}",
            Publish { clients, rate_hz: total_hz / f64::from(clients), bytes, qos, extra },
        );
        self.subscribe(Subscribe {
            name: "near",
            clients: readers,
            filter: "s/#",
            qos: 1,
            ack_delay_ms,
            extra: String::new(),
        });
        if self.chance(0.35) {
            let (clients, ack_delay_ms) = (self.whole(1, 3), self.delay_ms());
            let extra = format!("weight = {:.2}\n", self.between(0.3, 2.0));
            self.subscribe(Subscribe {
                name: "far",
                clients,
                filter: "s/#",
                qos: 1,
                ack_delay_ms,
                extra,
            });
        }
        if self.chance(0.2) {
            self.subscribe(Subscribe {
                name: "display",
                clients: 1,
                filter: "s/#",
                qos: 0,
                ack_delay_ms: 0,
                extra: String::new(),
            });
        }
    }

    fn saturation(&mut self, deadline_ms: u32) {
        let readers = self.whole(1, 20);
        let load = self.between(0.4, 4.0);
        let ack_delay_ms = if self.chance(0.5) { 0 } else { self.whole(1, 40) };
        self.feeds(readers, load, ack_delay_ms, deadline_ms);
    }

    fn overload(&mut self, deadline_ms: u32) {
        let readers = self.whole(2, 30);
        let load = self.between(0.6, 3.0);
        let ack_delay_ms = self.whole(1, 30);
        self.feeds(readers, load, ack_delay_ms, deadline_ms);
    }

    /// `load`: of what the core carries, about.
    fn feeds(&mut self, readers: u32, load: f64, ack_delay_ms: u32, deadline_ms: u32) {
        let clients = self.whole(2, 20);
        let carried = self.cpu_share * (DELIVERIES_PER_S / f64::from(readers)).min(PUBLISHES_PER_S);
        let total_hz = carried * load;
        let bytes = self.payload(24, 400);
        let extra = String::new();
        self.publish(
            "f",
            "s/f/{client}",
            Publish { clients, rate_hz: total_hz / f64::from(clients), bytes, qos: 1, extra },
        );
        let extra = if deadline_ms < 50 { "deadline_ms = 100\n".to_owned() } else { String::new() };
        self.subscribe(Subscribe {
            name: "readers",
            clients: readers,
            filter: "s/#",
            qos: 1,
            ack_delay_ms,
            extra,
        });
    }

    fn outage(&mut self, duration_s: u32) {
        let clients = self.whole(5, 60);
        let for_s = self.rng.random_range(5..=duration_s - 14);
        // Around and beyond what Mosquitto's default queue keeps.
        let kept = self.between(300.0, 20_000.0);
        let total_hz = (kept / f64::from(for_s)).clamp(10.0, 3000.0 * self.cpu_share);
        let bytes = self.payload(64, 2000);
        let publish = Publish {
            clients,
            rate_hz: total_hz / f64::from(clients),
            bytes,
            qos: 1,
            extra: String::new(),
        };
        self.publish("m", "s/m/{client}", publish);
        let at_s = self.rng.random_range(2..=6);
        let (clients, ack_delay_ms) = (self.whole(1, 4), self.delay_ms().min(200));
        let deadline_ms = self.whole(500, 4000);
        let extra = format!(
            "clean_session = false\ndeadline_ms = {deadline_ms}\noffline = {{ at_s = {at_s}, for_s = {for_s} }}\n"
        );
        self.subscribe(Subscribe {
            name: "historian",
            clients,
            filter: "s/m/#",
            qos: 1,
            ack_delay_ms,
            extra,
        });
        if self.chance(0.5) {
            self.subscribe(Subscribe {
                name: "display",
                clients: 2,
                filter: "s/#",
                qos: 0,
                ack_delay_ms: 0,
                extra: String::new(),
            });
        }
    }

    fn bulk(&mut self) {
        let clients = self.whole(1, 6);
        let bytes = self.payload(8_000, 150_000);
        let bytes_per_s = self.between(2e5, 4e6 * self.cpu_share.max(0.2));
        let rate_hz = bytes_per_s / f64::from(clients) / f64::from(bytes.0.midpoint(bytes.1));
        self.publish(
            "b",
            "bulk/{client}",
            Publish { clients, rate_hz, bytes, qos: 1, extra: String::new() },
        );
        let ack_delay_ms = self.whole(20, 1000);
        let extra = if self.chance(0.5) {
            format!("protocol = 5\nreceive_maximum = {}\n", self.whole(2, 20))
        } else {
            String::new()
        };
        self.subscribe(Subscribe {
            name: "archive",
            clients: 1,
            filter: "bulk/#",
            qos: 1,
            ack_delay_ms,
            extra,
        });
        let sensors = self.whole(4, 30);
        let total_hz = self.between(50.0, 1500.0 * self.cpu_share.max(0.2));
        let publish = Publish {
            clients: sensors,
            rate_hz: total_hz / f64::from(sensors),
            bytes: (128, 128),
            qos: 1,
            extra: String::new(),
        };
        self.publish("a", "s/a/{client}", publish);
        let (clients, ack_delay_ms) = (self.whole(1, 3), self.delay_ms());
        self.subscribe(Subscribe {
            name: "near",
            clients,
            filter: "s/#",
            qos: 1,
            ack_delay_ms,
            extra: String::new(),
        });
    }

    fn command(&mut self) {
        let (executors, rate_hz) = (self.whole(5, 40), self.between(5.0, 120.0));
        let bytes = self.payload(64, 800);
        self.publish(
            "server",
            "cmd/all",
            Publish { clients: 1, rate_hz, bytes, qos: 2, extra: String::new() },
        );
        let rate_hz = self.between(1.0, 10.0);
        let bytes = self.payload(64, 2000);
        self.publish(
            "a",
            "s/a/{client}",
            Publish { clients: executors, rate_hz, bytes, qos: 1, extra: String::new() },
        );
        let ack_delay_ms = self.whole(2, 60);
        let deadline_ms = self.whole(8, 60);
        let extra = format!("deadline_ms = {deadline_ms}\n");
        self.subscribe(Subscribe {
            name: "executors",
            clients: executors,
            filter: "cmd/#",
            qos: 2,
            ack_delay_ms,
            extra: extra.clone(),
        });
        self.subscribe(Subscribe {
            name: "near",
            clients: 1,
            filter: "s/#",
            qos: 1,
            ack_delay_ms,
            extra,
        });
    }

    fn idle(&mut self) {
        let (clients, rate_hz) = (self.whole(5, 100), self.between(0.5, 12.0));
        let bytes = self.payload(32, 512);
        let extra = if self.chance(0.6) { "sync = true\n".to_owned() } else { String::new() };
        self.publish("a", "s/a/{client}", Publish { clients, rate_hz, bytes, qos: 1, extra });
        let (clients, ack_delay_ms) = (self.whole(1, 6), self.delay_ms().min(150));
        let extra = format!("deadline_ms = {}\n", self.whole(6, 40));
        self.subscribe(Subscribe {
            name: "near",
            clients,
            filter: "s/#",
            qos: 1,
            ack_delay_ms,
            extra,
        });
    }

    /// One size, or a range.
    fn payload(&mut self, low: u32, high: u32) -> (u32, u32) {
        let (a, b) = (self.whole(low, high), self.whole(low, high));
        if self.chance(0.6) { (a, a) } else { (a.min(b), a.max(b)) }
    }

    /// Evenly, all at once, or in bursts.
    fn rhythm(&mut self) -> String {
        match self.rng.random_range(0..10) {
            0..=5 => String::new(),
            6 | 7 => "sync = true\n".to_owned(),
            _ => {
                let (period_s, duty) = (self.between(0.5, 6.0), self.between(0.05, 0.7));
                format!("burst = {{ period_s = {period_s:.2}, duty = {duty:.2} }}\n")
            }
        }
    }

    fn publish(&mut self, name: &str, topic: &str, group: Publish) {
        self.text += "[[phase.publish]]\n";
        self.line("name", format!("\"{name}\""));
        self.line("clients", group.clients);
        self.line("rate_hz", format!("{:.4}", group.rate_hz.max(0.01)));
        self.line("qos", group.qos);
        self.line("payload_bytes", format!("[{}, {}]", group.bytes.0, group.bytes.1));
        self.line("topic", format!("\"{topic}\""));
        self.text += &group.extra;
    }

    fn subscribe(&mut self, group: Subscribe<'_>) {
        self.text += "[[phase.subscribe]]\n";
        self.line("name", format!("\"{}\"", group.name));
        self.line("clients", group.clients);
        self.line("filter", format!("\"{}\"", group.filter));
        self.line("qos", group.qos);
        self.line("ack_delay_ms", group.ack_delay_ms);
        self.text += &group.extra;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn every_site_is_a_valid_scenario_and_repeats_for_its_seed() {
        let mut sys_intervals = Vec::new();
        for seed in 0..2000 {
            let site = site(seed).unwrap();
            assert_eq!(site, super::site(seed).unwrap());
            sys_intervals.push(site.broker.sys_interval_s);
        }
        let ten = sys_intervals.iter().filter(|&&seconds| seconds == 10).count();
        assert!((400..600).contains(&ten), "a quarter at Mosquitto's default: {ten}");
        assert!(sys_intervals.iter().any(|&seconds| seconds >= 30));
    }
}
