//! The broker's own state: settings in force, counters, memory, saves, `$SYS`.

use super::calibration::Calibration;
use super::cpu::Budget;
use super::link::{Limits, Work};
use super::time::{Slice, Span};
use brokertuner_core::knobs::Apply;
use brokertuner_core::sample::{OwnTraffic, ProbeSample, ProcSample, Sample, Sys, SysFrame};
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Instant, Knob, Settings};

/// `$SYS` topics that are retained: what an idle broker of 2.0 stores.
const SYS_MESSAGES: u64 = 53;
/// Packets of one $SYS update that the agent's subscription is sent, about.
const SYS_UPDATE_PUBLISHES: u64 = 30;
/// To `$SYS` and to its probes' topic.
const OWN_SUBSCRIPTIONS: u32 = 2;
/// Context switches a second that have nothing to do with the load.
const SCHEDULED_PER_S: f64 = 15.0;

/// Counters since the process's start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) packets_received: u64,
    pub(super) packets_sent: u64,
    pub(super) publish_received: u64,
    pub(super) publish_sent: u64,
    pub(super) publish_dropped: u64,
    pub(super) publish_bytes_received: u64,
    pub(super) publish_bytes_sent: u64,
    pub(super) bytes_sent: u64,
}

/// What the broker holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Held {
    /// Distinct messages, and their payload bytes.
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// Entries in windows and queues.
    pub(super) entries: u64,
    pub(super) clients: u32,
    pub(super) clients_offline: u32,
    pub(super) subscriptions: u32,
}

/// Messages of clean sessions that a save has carried over a restart: nobody gets them, and nobody
/// drops them before the restart after that (measured: tests/semantics).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Orphans {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// One Mosquitto.
#[derive(Debug)]
pub(super) struct Broker {
    calibration: Calibration,
    site: SiteValues,
    /// In force.
    pub(super) settings: Settings,
    pub(super) limits: Limits,
    pub(super) budget: Budget,
    pub(super) counters: Counters,
    pub(super) held: Held,
    orphans: Orphans,
    pid: u32,
    started: Slice,
    down_until: Option<Slice>,
    /// Of the heap; 0: none.
    memory_limit_bytes: u64,
    /// A reload set the limit below what is held: it serves nobody until a restart.
    is_starved: bool,
    heap_bytes_max: u64,
    rss_bytes: u64,
    /// Packets of `$SYS` that the agent was sent.
    own_received: u64,
    saved: Slice,
    sys_period: Span,
    sys_next: Slice,
    frame: SysFrame,
    slice_us: u32,
}

impl Broker {
    pub(super) fn new(
        calibration: Calibration,
        site: SiteValues,
        settings: &Settings,
        cpu_share: Option<f64>,
        sys_interval_s: u32,
        slice_us: u32,
    ) -> Broker {
        // On 2.0 a second is added to the interval.
        let sys_period = Span::of_s(sys_interval_s + 1, slice_us);
        let mut broker = Broker {
            calibration,
            settings: *settings,
            limits: limits(settings, &site, &calibration),
            site,
            budget: Budget::new(slice_us, cpu_share),
            counters: Counters::default(),
            held: Held::default(),
            orphans: Orphans::default(),
            pid: 1,
            started: Slice::START,
            down_until: None,
            memory_limit_bytes: settings.effective(Knob::MemoryLimit, &site),
            is_starved: false,
            heap_bytes_max: 0,
            rss_bytes: calibration.rss_bytes_base,
            own_received: 0,
            saved: Slice::START,
            sys_period,
            sys_next: Slice::START + sys_period,
            frame: SysFrame::default(),
            slice_us,
        };
        broker.look_at_memory();
        broker
    }

    pub(super) fn is_up(&self, now: Slice) -> bool {
        self.down_until.is_none_or(|until| until <= now)
    }

    /// When connections are accepted again, where that is not now.
    pub(super) fn down_until(&self) -> Option<Slice> {
        self.down_until
    }

    pub(super) fn persists(&self) -> bool {
        self.settings.effective(Knob::Persistence, &self.site) != 0
    }

    pub(super) fn queues_qos0(&self) -> bool {
        self.settings.effective(Knob::QueueQos0, &self.site) != 0
    }

    /// Whether memory is limited.
    pub(super) fn has_memory_limit(&self) -> bool {
        self.memory_limit_bytes > 0
    }

    /// Whether the limit leaves no room for another message.
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.has_memory_limit() && self.heap_bytes() >= self.memory_limit_bytes
    }

    /// Whether a reload left it without memory: its process lives and serves nobody.
    pub(super) fn is_starved(&self) -> bool {
        self.is_starved
    }

    /// New settings by a reload: only what is reloadable takes effect. The memory limit stays where
    /// its line goes, and one below what is held can't be undone by another reload (mosquitto.md 3,
    /// 5.1).
    pub(super) fn reload(&mut self, settings: &Settings) {
        if self.is_starved {
            return;
        }
        self.settings = self.settings.with_those_of(settings, Apply::Reload);
        let limit = settings.get(Knob::MemoryLimit).value().unwrap_or(self.memory_limit_bytes);
        let is_other = std::mem::replace(&mut self.memory_limit_bytes, limit) != limit;
        if is_other && self.is_out_of_memory() {
            self.is_starved = true;
            self.down_until = Some(Slice::NEVER);
        }
    }

    /// New settings by a restart; all connections are gone until the broker is up. `clean` is what
    /// only clean sessions wait for.
    pub(super) fn restart(&mut self, now: Slice, settings: &Settings, clean: Orphans) {
        // A save takes memory as well.
        let was_saved = self.persists() && !self.is_starved;
        let mib = self.held.bytes as f64 / 1_048_576.0;
        let saves = if was_saved { mib * self.calibration.save_us_per_mib } else { 0.0 };
        let us = self.calibration.restart_us + 2.0 * saves;
        self.settings = *settings;
        self.memory_limit_bytes = settings.effective(Knob::MemoryLimit, &self.site);
        self.is_starved = false;
        self.orphans = if was_saved && self.persists() { clean } else { Orphans::default() };
        self.limits = limits(settings, &self.site, &self.calibration);
        self.counters = Counters::default();
        // A gateway forgets what the broker before has told it (edge/src/sampler).
        self.frame = SysFrame::default();
        self.pid += 1;
        self.started = now + Span::of_us(us as u64, self.slice_us);
        self.down_until = Some(self.started);
        self.rss_bytes = self.calibration.rss_bytes_base;
        self.heap_bytes_max = 0;
        self.own_received = 0;
        self.saved = self.started;
        self.sys_next = self.started + self.sys_period;
    }

    /// Counts what `members` connections did alike, and takes the time that it took.
    pub(super) fn account(&mut self, work: &Work, members: u32) -> f64 {
        let times = u64::from(members);
        self.counters.packets_sent += u64::from(work.writes) * times;
        self.counters.publish_sent += u64::from(work.publishes) * times;
        self.counters.publish_bytes_sent += work.bytes * times;
        self.counters.bytes_sent += (work.bytes + 20 * u64::from(work.writes)) * times;
        self.counters.publish_dropped += u64::from(work.dropped) * times;
        self.calibration.costs.of_work(work, members)
    }

    /// Packets arrive, each by itself.
    pub(super) fn wake(&mut self, packets: u32) {
        self.budget.wake(packets, self.calibration.costs.wake_us);
    }

    pub(super) fn costs(&self) -> &super::cpu::Costs {
        &self.calibration.costs
    }

    /// Housekeeping of a slice: saves and `$SYS`.
    pub(super) fn keep_house(&mut self, now: Slice) {
        if !self.is_up(now) {
            return;
        }
        let interval_s = self.settings.effective(Knob::AutosaveInterval, &self.site);
        let interval_s = u32::try_from(interval_s).unwrap_or(u32::MAX);
        let is_due = now.since(self.saved) > Span::of_s(interval_s, self.slice_us);
        if self.persists() && interval_s > 0 && is_due {
            self.saved = now;
            let mib = self.held.bytes as f64 / 1_048_576.0;
            self.budget
                .spend(self.calibration.save_us_base + mib * self.calibration.save_us_per_mib);
        }
        if now >= self.sys_next {
            self.sys_next = self.sys_next + self.sys_period;
            self.publish_sys(now);
        }
    }

    /// Follows the memory: what is freed is given back in part only.
    pub(super) fn look_at_memory(&mut self) {
        let c = &self.calibration;
        let heap = self.heap_bytes();
        self.heap_bytes_max = self.heap_bytes_max.max(heap);
        let grown = c.rss_bytes_base + (heap - c.heap_bytes_base);
        let peak = c.rss_bytes_base + (self.heap_bytes_max - c.heap_bytes_base);
        let kept = peak as f64 * c.rss_kept_share;
        self.rss_bytes = grown.max(kept as u64).max(c.rss_bytes_base);
    }

    /// Resident memory.
    pub(super) fn rss_bytes(&self) -> u64 {
        self.rss_bytes
    }

    fn heap_bytes(&self) -> u64 {
        let (c, held, orphans) = (&self.calibration, &self.held, &self.orphans);
        let stored = (held.bytes + orphans.bytes) as f64 * c.payload_factor
            + (held.messages + orphans.messages) as f64 * c.bytes_per_message
            + held.entries as f64 * c.bytes_per_entry;
        c.heap_bytes_base + stored as u64 + u64::from(held.clients) * c.bytes_per_client
    }

    fn publish_sys(&mut self, now: Slice) {
        let c = self.counters;
        let uptime_s =
            u64::from(now.since(self.started).slices()) * u64::from(self.slice_us) / 1_000_000;
        let values = [
            (Sys::UptimeS, uptime_s),
            // The agent's own connection is one more, and its two subscriptions.
            (Sys::ClientsConnected, u64::from(self.held.clients) + 1),
            (Sys::ClientsDisconnected, u64::from(self.held.clients_offline)),
            (Sys::MessagesReceived, c.packets_received),
            (Sys::MessagesSent, c.packets_sent),
            (Sys::PublishReceived, c.publish_received),
            (Sys::PublishSent, c.publish_sent),
            (Sys::PublishDropped, c.publish_dropped),
            (Sys::PublishBytesReceived, c.publish_bytes_received),
            (Sys::PublishBytesSent, c.publish_bytes_sent),
            (Sys::BytesReceived, c.publish_bytes_received + 20 * c.publish_received),
            (Sys::BytesSent, c.bytes_sent),
            (Sys::StoreMessages, self.held.messages + self.orphans.messages + SYS_MESSAGES),
            (Sys::StoreBytes, self.held.bytes + self.orphans.bytes + SYS_MESSAGES * 8),
            (Sys::RetainedMessages, SYS_MESSAGES),
            (Sys::Subscriptions, u64::from(self.held.subscriptions + OWN_SUBSCRIPTIONS)),
            (Sys::HeapBytes, self.heap_bytes()),
            (Sys::HeapBytesMax, self.heap_bytes_max),
        ];
        let mut start = SysFrame::default();
        start.at = Some(self.instant(now));
        self.frame = values.into_iter().fold(start, |frame, (sys, value)| frame.with(sys, value));
        self.counters.publish_sent += SYS_UPDATE_PUBLISHES;
        self.own_received += SYS_UPDATE_PUBLISHES;
    }

    pub(super) fn instant(&self, now: Slice) -> Instant {
        let us = u64::from(now.since(Slice::START).slices()) * u64::from(self.slice_us);
        Instant::from_micros(us)
    }

    /// A process that always has something to read is never switched away from but by the
    /// scheduler: 20 times a second under fanout-saturation, where it reads 180,000 packets.
    fn context_switches(&self, now: Slice) -> u64 {
        let up_s = self.instant(now).as_micros() as f64 / 1e6;
        (self.budget.wakes() + up_s * SCHEDULED_PER_S) as u64
    }

    /// What the agent sees now.
    pub(super) fn sample(&self, now: Slice) -> Sample {
        let probe_us = |packets: f64| {
            let us = self.calibration.probe_us + packets * self.budget.wait_us();
            self.is_up(now).then_some(us as u32)
        };
        Sample {
            at: self.instant(now),
            sys: self.frame,
            proc: (self.is_up(now) || self.is_starved).then(|| ProcSample {
                pid: self.pid,
                start_ticks: u64::from(self.started.since(Slice::START).slices()),
                rss_bytes: self.rss_bytes,
                cpu_us: self.budget.used_us() as u64,
                context_switches: self.context_switches(now),
            }),
            probe: ProbeSample { latency_us_qos0: probe_us(1.0), latency_us_qos1: probe_us(1.0) },
            // Its probes are in no counter here, nor are the bytes of `$SYS`.
            own: OwnTraffic {
                connections: 1,
                subscriptions: OWN_SUBSCRIPTIONS,
                publish_received: self.own_received,
                ..OwnTraffic::default()
            },
        }
    }
}

fn limits(settings: &Settings, site: &SiteValues, calibration: &Calibration) -> Limits {
    let value = |knob| settings.effective(knob, site);
    let count = |knob| match value(knob) {
        0 => u32::MAX,
        limit => u32::try_from(limit).unwrap_or(u32::MAX),
    };
    let bytes = |knob| match value(knob) {
        0 => u64::MAX,
        limit => limit,
    };
    // On 2.0.11 the window grows while acknowledgements come back.
    let window = match count(Knob::InflightMessagesMax) {
        1 => 1,
        _ if !calibration.window_holds => u32::MAX,
        window => window,
    };
    Limits {
        window,
        window_bytes: bytes(Knob::InflightBytesMax),
        queue: count(Knob::QueuedMessagesMax),
        queue_bytes: bytes(Knob::QueuedBytesMax),
        nodelay: value(Knob::TcpNodelay) != 0,
    }
}
