//! A thousand models of random weights, each at the helm for a week that a clock in the test passes:
//! never outside the envelope, never more restarts than the site's budget.
//!
//! A week is sampled once a minute, 10,080 times; every fiftieth model is asked every 5 s, as the
//! agent does by default, 120,960 times. Loads last from 10 minutes to 6 hours. Brokers die,
//! figures vanish, changes fail and make things worse.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]
#![allow(dead_code, reason = "the reference arithmetic is for tests/model.rs")]

mod common;

use std::thread;

use brokertuner_core::controller::{Controller, Decision, Health, Inputs, Outcome, Rules};
use brokertuner_core::envelope::{
    Bounds, MEMORY_HEADROOM_FACTOR, PACKET_HEADROOM_FACTOR, QUEUE_WINDOWS_MIN,
};
use brokertuner_core::features::{Schema, Targets, View};
use brokertuner_core::knobs::Apply;
use brokertuner_core::model::{Model, ModelParts};
use brokertuner_core::sample::{
    Meter, OwnTraffic, ProbeSample, ProcSample, SYS_COUNT, Sample, Sys, SysFrame,
};
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Envelope, Instant, KNOB_COUNT, Knob, KnobSet, Setting, Settings};
use common::{Lcg, OwnedModel};

const MODELS: u64 = 1000;
/// Under an emulator, some thirty times as slow, one in so many of them; prime, so that quiet
/// hours, sizes and short intervals are mixed as among all.
const EMULATED_EVERY: u64 = 19;
const WEEK_S: u64 = 7 * DAY_S;
const DAY_S: u64 = 24 * HOUR_S;
const HOUR_S: u64 = 3600;

/// A load and how the broker bears it.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    until_s: u64,
    clients: u64,
    offline: u64,
    received_per_s: u64,
    fan_out: u64,
    dropped_percent: u64,
    payload_bytes: u64,
    stored: u64,
    heap_bytes: u64,
    latency_us: u32,
    /// What restarts, quiet hours and saves depend on.
    state_at_risk: bool,
}

impl Load {
    /// Orders of magnitude count, not figures.
    fn draw(lcg: &mut Lcg, now_s: u64) -> Load {
        let mut power = |low: i64, high: i64| {
            let exponent = lcg.within(low, high) as u32;
            (1u64 << exponent) - 1 + lcg.within(0, 1 << exponent.min(20)) as u64
        };
        Load {
            until_s: now_s + 600 + power(0, 14),
            clients: power(0, 12),
            offline: power(0, 6),
            received_per_s: power(0, 15),
            fan_out: power(0, 4),
            dropped_percent: power(0, 6).min(100),
            payload_bytes: power(4, 21),
            stored: power(0, 18),
            heap_bytes: power(18, 28),
            latency_us: power(7, 22) as u32,
            state_at_risk: lcg.within(0, 5) == 0,
        }
    }
}

/// What becomes of a broker, its counters and its process in a week.
struct World {
    lcg: Lcg,
    load: Load,
    counters: [u64; SYS_COUNT],
    up_since_s: u64,
    heap_max: u64,
    pid: u32,
    is_serving: bool,
    /// The last update of `$SYS`, which stays behind where it is silent.
    sys_at_s: u64,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            lcg: Lcg::new(seed),
            load: Load::default(),
            counters: [0; SYS_COUNT],
            up_since_s: 0,
            heap_max: 0,
            pid: 100,
            is_serving: true,
            sys_at_s: 0,
        }
    }

    fn one_in(&mut self, chances: i64) -> bool {
        self.lcg.within(1, chances) == 1
    }

    fn restart(&mut self, now_s: u64) {
        self.counters = [0; SYS_COUNT];
        (self.up_since_s, self.heap_max) = (now_s, 0);
        self.pid += 1;
    }

    /// Whether the broker ended by itself meanwhile.
    fn pass(&mut self, now_s: u64, step_s: u64) -> bool {
        if now_s >= self.load.until_s {
            self.load = Load::draw(&mut self.lcg, now_s);
        }
        let has_crashed = self.one_in(2000);
        if has_crashed {
            self.restart(now_s);
        }
        self.is_serving = !has_crashed && !self.one_in(500);
        let load = self.load;
        let received = load.received_per_s * step_s;
        let sent = received * load.fan_out;
        let dropped = sent * load.dropped_percent / 100;
        self.heap_max = self.heap_max.max(load.heap_bytes);
        let rates = [
            (Sys::MessagesReceived, received + load.clients),
            (Sys::MessagesSent, sent),
            (Sys::PublishReceived, received),
            (Sys::PublishSent, sent - dropped),
            (Sys::PublishDropped, dropped),
            (Sys::PublishBytesReceived, received * load.payload_bytes),
            (Sys::PublishBytesSent, sent * load.payload_bytes),
            (Sys::BytesReceived, received * (load.payload_bytes + 20)),
            (Sys::BytesSent, sent * (load.payload_bytes + 20)),
        ];
        for (sys, more) in rates {
            self.counters[sys as usize] += more;
        }
        let gauges = [
            (Sys::UptimeS, now_s - self.up_since_s),
            (Sys::ClientsConnected, load.clients + 1),
            (Sys::ClientsDisconnected, load.offline),
            (Sys::StoreMessages, load.stored),
            (Sys::StoreBytes, load.stored * load.payload_bytes),
            (Sys::HeapBytes, load.heap_bytes),
            (Sys::HeapBytesMax, self.heap_max),
        ];
        for (sys, value) in gauges {
            self.counters[sys as usize] = value;
        }
        has_crashed
    }

    fn sample(&mut self, now_s: u64) -> Sample {
        let at = Instant::from_secs(now_s);
        if !self.one_in(50) {
            self.sys_at_s = now_s;
        }
        let mut values = self.counters.map(Some);
        if self.one_in(200) {
            // Without memory tracking, or not yet published.
            values[Sys::HeapBytesMax as usize] = None;
        }
        let proc = ProcSample {
            pid: self.pid,
            start_ticks: self.up_since_s * 100,
            rss_bytes: self.heap_max + (4 << 20),
            cpu_us: self.counters[Sys::PublishSent as usize] * 20,
            context_switches: self.counters[Sys::PublishReceived as usize],
        };
        let latency_us = (!self.one_in(30)).then_some(self.load.latency_us);
        Sample {
            at,
            sys: SysFrame::new(values, Some(Instant::from_secs(self.sys_at_s))),
            proc: (!self.one_in(100)).then_some(proc),
            probe: ProbeSample { latency_us_qos0: latency_us, latency_us_qos1: latency_us },
            own: OwnTraffic { connections: 1, ..OwnTraffic::default() },
        }
    }
}

/// What an operator may have set; half of them opt in to everything.
fn envelope(lcg: &mut Lcg) -> Envelope {
    let mut envelope = Envelope::default();
    if lcg.within(0, 1) == 1 {
        envelope.opted_in = KnobSet::all();
    }
    for knob in Knob::ALL {
        let table = Bounds::of(knob);
        if lcg.within(0, 3) == 0 {
            let span = i64::try_from(table.max() - table.min()).unwrap();
            let (a, b) = (lcg.within(0, span) as u64, lcg.within(0, span) as u64);
            let (min, max) = (table.min() + a.min(b), table.min() + a.max(b));
            let unlimited = lcg.within(0, 1) == 1;
            envelope.bounds[knob as usize] = Bounds::narrowed(knob, min, max, unlimited).unwrap();
        }
    }
    envelope
}

/// What a decision is to answer for. A reload leaves the restart-only options as they stand in the
/// file: they were inside when they were chosen, and packets may have grown since. A reloadable
/// option that is given back to the site gets the site's own value once.
fn chosen(settings: &Settings, apply: Apply, site: &SiteValues) -> Settings {
    let mut chosen = Settings::UNWRITTEN;
    for (knob, setting) in settings.iter() {
        let Some(value) = setting.value() else { continue };
        let of = knob.spec().apply;
        let is_left = apply == Apply::Reload && of == Apply::Restart;
        let is_given_back = of == Apply::Reload && value == site.get(knob);
        if !is_left && !is_given_back {
            chosen.set(knob, value).unwrap();
        }
    }
    chosen
}

/// The design's bounds, said a second time and without the code under test.
fn assert_inside(settings: &Settings, envelope: &Envelope, context: &str) {
    let in_force = |knob: Knob| settings.effective(knob, &envelope.site);
    let is_ours = |knob: Knob| settings.get(knob) != Setting::Unwritten;
    for (knob, setting) in settings.iter() {
        let Some(value) = setting.value() else { continue };
        assert!(envelope.opted_in.contains(knob), "{context}: {knob} {value} is held");
        let floor = match knob {
            Knob::MemoryLimit => envelope.heap_bytes_max.map(|heap| heap * MEMORY_HEADROOM_FACTOR),
            Knob::PacketSizeMax | Knob::MessageSizeMax => {
                envelope.packet_bytes_max.map(|size| size.saturating_mul(PACKET_HEADROOM_FACTOR))
            }
            _ => Some(0),
        };
        let bounds = envelope.bounds[knob as usize];
        let is_limit = (bounds.min()..=bounds.max()).contains(&value)
            && floor.is_some_and(|floor| value >= floor);
        let is_unlimited = value == 0 && bounds.unlimited();
        assert!(is_limit || is_unlimited, "{context}: {knob} {value} {bounds:?} {floor:?}");
    }
    let (queue, window) = (in_force(Knob::QueuedMessagesMax), in_force(Knob::InflightMessagesMax));
    if is_ours(Knob::QueuedMessagesMax) || is_ours(Knob::InflightMessagesMax) {
        assert!(queue >= 100 && window > 0, "{context}: queue {queue}, window {window}");
        assert!(queue >= QUEUE_WINDOWS_MIN * window, "{context}: queue {queue}, window {window}");
    }
    let is_unbounded = in_force(Knob::QueueQos0) != 0 && in_force(Knob::MemoryLimit) == 0;
    assert!(!is_unbounded || !is_ours(Knob::QueueQos0), "{context}: QoS 0 without a limit");
}

/// When the broker was restarted in a week, and whether that undid something.
#[derive(Debug, Default)]
struct Restarts(Vec<(u64, bool)>);

impl Restarts {
    /// A change needs room in the budget, and whatever was made counts; to undo the last one is
    /// permitted even where it has none.
    fn assert_within(&self, rules: &Rules, context: &str) {
        for (span_s, max) in
            [(HOUR_S, rules.restarts_per_hour_max), (DAY_S, rules.restarts_per_day_max)]
        {
            for (index, &(start, _)) in self.0.iter().enumerate() {
                let span = self.0[index..].iter().take_while(|(at, _)| *at < start + span_s);
                let (all, changes) = span.fold((0, 0), |(all, changes), (_, undoes)| {
                    (all + 1, changes + usize::from(!undoes))
                });
                let max = usize::from(max);
                assert!(changes <= max, "{context}: {changes} changes from {start} s");
                assert!(all <= max + 1, "{context}: {all} restarts from {start} s");
            }
        }
    }

    fn most_in_a_day(&self) -> usize {
        let from = |index: usize| {
            let start = self.0[index].0;
            self.0[index..].iter().take_while(|(at, _)| *at < start + DAY_S).count()
        };
        (0..self.0.len()).map(from).max().unwrap_or(0)
    }
}

/// A week of one model.
struct Week<'m> {
    model: Model<'m>,
    world: World,
    envelope: Envelope,
    rules: Rules,
    controller: Controller,
    meter: Meter,
    restarts: Restarts,
    roll_backs: usize,
    seed: u64,
}

impl<'m> Week<'m> {
    fn new(parts: ModelParts<'m>, seed: u64) -> Self {
        let mut lcg = Lcg::new(seed ^ 0x5eed);
        let (envelope, rules) = (envelope(&mut lcg), Rules::default());
        Week {
            model: Model::new(parts).unwrap(),
            world: World::new(seed),
            envelope,
            rules,
            controller: Controller::new(rules, Settings::UNWRITTEN),
            meter: Meter::default(),
            restarts: Restarts::default(),
            roll_backs: 0,
            seed,
        }
    }

    fn run(mut self) -> (Restarts, usize) {
        let step_s = if self.seed.is_multiple_of(50) { 5 } else { 60 };
        for now_s in (1000..1000 + WEEK_S).step_by(step_s as usize) {
            if self.world.pass(now_s, step_s) {
                self.controller.broker_restarted();
            }
            self.step(now_s);
            // Who looks after the site does so once a day.
            if now_s % DAY_S < step_s && self.controller.failures() >= self.rules.failures_max {
                self.controller.resume(Instant::from_secs(now_s));
            }
        }
        let context = format!("model {}", self.seed);
        self.restarts.assert_within(&self.rules, &context);
        (self.restarts, self.roll_backs)
    }

    fn step(&mut self, now_s: u64) {
        let sample = self.world.sample(now_s);
        let metrics = self.meter.measure(&sample);
        let targets = Targets::default();
        let health = Health::of(&metrics, &targets, self.world.is_serving);
        let envelope = self.envelope.measured(&sample, &self.meter);
        let effective = *self.controller.effective();
        let view = View {
            metrics: &metrics,
            effective: &effective,
            site: &envelope.site,
            targets: &targets,
        };
        let wanted = self.model.answer(&view, &envelope).unwrap().settings;
        let quiet_hours = self.seed.is_multiple_of(2) && now_s % DAY_S < 8 * HOUR_S;
        let state_at_risk = self.world.load.state_at_risk;
        let stored_share = metrics.store_bytes.map(|bytes| targets.memory_share(bytes));
        let inputs = Inputs { wanted, envelope, health, stored_share, state_at_risk, quiet_hours };
        let decision = self.controller.step(sample.at, &inputs);
        let (settings, apply, undoes) = match &decision {
            Decision::Hold(_) => return,
            Decision::Change { settings, apply } => (settings, *apply, false),
            Decision::RollBack { settings, apply, .. } => (settings, *apply, true),
        };
        let context = format!("model {} at {now_s} s: {decision:?} of {inputs:?}", self.seed);
        let before = *self.controller.written();
        let left = before.differing(settings).iter().all(|knob| knob.spec().apply == Apply::Reload);
        // It may say in the file what is in force already.
        let is_said = settings.with_those_of(self.controller.effective(), Apply::Restart);
        assert!(apply == Apply::Restart || left || is_said == *settings, "{context}");
        let chosen = chosen(settings, apply, &envelope.site);
        assert_inside(&chosen, &envelope, &context);
        let violations = envelope.check(&chosen);
        assert!(violations.is_empty(), "{context}: {violations:?}");
        if apply == Apply::Restart {
            if !undoes {
                assert!(!quiet_hours && !state_at_risk, "{context}");
            }
            self.restarts.0.push((now_s, undoes));
            self.world.restart(now_s);
        }
        self.roll_backs += usize::from(undoes);
        // A change that fails is as good as undone; one that undoes is tried again.
        let fails = !undoes && self.world.one_in(20);
        let outcome = if fails { Outcome::Restored } else { Outcome::Done };
        self.controller.applied(sample.at, &decision, outcome, health);
        assert!(self.controller.dormant().is_empty(), "{context}");
    }
}

fn week_of(seed: u64) -> (Restarts, usize) {
    let inputs = Schema::Edge.len() as u16;
    let hidden = 4 + (seed % 13) as u16;
    let owned = OwnedModel::random([inputs, hidden, hidden, KNOB_COUNT as u16], seed);
    let mut parts = owned.parts();
    parts.schema_id = Schema::Edge.id();
    parts.schema_fingerprint = Schema::Edge.fingerprint();
    parts.bounds.tuned = 0x7ff;
    Week::new(parts, seed).run()
}

#[test]
fn a_thousand_hostile_models_keep_envelope_and_budget() {
    let threads = thread::available_parallelism().map_or(2, usize::from) as u64;
    let is_emulated = std::env::var_os("BROKERTUNER_TEST_RUNNER").is_some();
    let every = if is_emulated { EMULATED_EVERY } else { 1 };
    let models = MODELS / every;
    let week = |index: u64| week_of(index * every);
    let weeks: Vec<(Restarts, usize)> = thread::scope(|scope| {
        let run = |first: u64| (first..models).step_by(threads as usize).map(week).collect();
        let lanes: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || -> Vec<_> { run(first) })).collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
    });
    assert_eq!(weeks.len() as u64, models);
    let restarts: usize = weeks.iter().map(|(restarts, _)| restarts.0.len()).sum();
    let roll_backs: usize = weeks.iter().map(|(_, roll_backs)| roll_backs).sum();
    let at_budget = weeks
        .iter()
        .filter(|(restarts, _)| {
            restarts.most_in_a_day() >= usize::from(Rules::default().restarts_per_day_max)
        })
        .count();
    println!("{restarts} restarts, {roll_backs} changes undone, {at_budget} at the day's budget");
    // Else nothing was put to the test.
    let few = (models as usize / 20, models as usize);
    assert!(at_budget > few.0 && roll_backs > few.1, "{at_budget} {roll_backs}");
}
