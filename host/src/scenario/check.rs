//! From the file as written to a [`Scenario`]: ranges, defaults, and what must fit together.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::raw::{
    Maybe, RawBroker, RawBurst, RawOffline, RawPayload, RawPhase, RawPublish, RawScenario,
    RawSubscribe,
};
use super::{
    BrokerSetup, Burst, Fault, Offline, Phase, Protocol, PublishGroup, Qos, Rate, Scenario,
    SubscribeGroup, topic,
};

/// Largest payload of an MQTT publish that still is a valid value of the key.
const PAYLOAD_BYTES_MAX: i64 = 268_435_455;
/// Remaining Length of the fixed header (MQTT 2.2.3) covers topic, packet id, properties and
/// payload.
const REMAINING_LENGTH_MAX: u64 = 268_435_455;
/// Longest deadline and acknowledgement delay are minutes; longest wait is an hour.
const DEADLINE_MS: RangeInclusive<i64> = 1..=600_000;
const RECONNECT_MS: RangeInclusive<i64> = 0..=3_600_000;
/// Of the load's own name: a file's name, with an extension of its own.
const NAME_BYTES_MAX: usize = 200;
const CLIENTS: RangeInclusive<i64> = 1..=1_000_000;
const WEIGHT: RangeInclusive<f64> = 0.0..=1000.0;

/// Parses and checks; the error lists every fault found.
pub(super) fn scenario(text: &str) -> Result<Scenario, Vec<Fault>> {
    let raw: RawScenario = match toml::from_str(text) {
        Ok(raw) => raw,
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            return Err(vec![fault_at(text, &span, error.message().to_owned())]);
        }
    };
    let mut check = Check { text, faults: Vec::new(), deadline: Duration::ZERO };
    let scenario = check.scenario(raw);
    if check.faults.is_empty() { Ok(scenario) } else { Err(check.faults) }
}

struct Check<'t> {
    text: &'t str,
    faults: Vec<Fault>,
    deadline: Duration,
}

impl Check<'_> {
    fn scenario(&mut self, raw: RawScenario) -> Scenario {
        let _: u8 = self.whole(&raw.schema, 1..=1);
        self.file_name(&raw.name);
        self.deadline = self.millis(&raw.deadline_ms, DEADLINE_MS);
        let rss_limit_mib: u32 = self.whole(&raw.rss_limit_mib, 1..=65_536);
        let broker = self.broker(&raw.broker);
        let span = raw.phase.span();
        let phases: Vec<Phase> = raw
            .phase
            .into_inner()
            .into_iter()
            .map(|phase| self.phase(phase.into_inner()))
            .collect();
        if phases.is_empty() {
            self.fault(span, "at least one phase is needed".to_owned());
        } else if self.faults.is_empty() && !phases.iter().any(has_expectation) {
            self.fault(
                span,
                "nothing to score: no subscribe group's filter matches any topic of its phase"
                    .to_owned(),
            );
        }
        Scenario {
            name: raw.name.into_inner(),
            summary: raw.summary,
            deadline: self.deadline,
            rss_limit_bytes: u64::from(rss_limit_mib) << 20,
            broker,
            phases,
        }
    }

    fn broker(&mut self, raw: &RawBroker) -> BrokerSetup {
        BrokerSetup {
            persistence: raw.persistence.unwrap_or(true),
            sys_interval_s: self.whole_or(&raw.sys_interval_s, 1..=60, 1),
            cpu_share: raw.cpu_share.as_ref().map(|share| self.real(share, 0.01..=1.0)),
        }
    }

    fn phase(&mut self, raw: RawPhase) -> Phase {
        self.not_empty(&raw.name);
        let duration_s = self.whole(&raw.duration_s, 1..=86_400);
        let weight =
            raw.weight.as_ref().map_or(f64::from(duration_s), |weight| self.real(weight, WEIGHT));
        self.unique(raw.publish.iter().map(|group| &group.name), "publish");
        self.unique(raw.subscribe.iter().map(|group| &group.name), "subscribe");
        Phase {
            name: raw.name.into_inner(),
            duration_s,
            weight,
            publish: raw.publish.into_iter().map(|group| self.publish(group)).collect(),
            subscribe: raw
                .subscribe
                .into_iter()
                .map(|group| self.subscribe(group, duration_s))
                .collect(),
        }
    }

    fn publish(&mut self, raw: RawPublish) -> PublishGroup {
        self.not_empty(&raw.name);
        let clients = self.whole(&raw.clients, CLIENTS);
        let topic = self.topic(&raw.topic, raw.name.get_ref(), clients, topic::check_topic);
        let rate = self.rate(&raw);
        let (payload_bytes_min, payload_bytes_max) = self.payload(&raw.payload_bytes, topic.len());
        PublishGroup {
            name: raw.name.into_inner(),
            clients,
            topic: raw.topic.into_inner(),
            rate,
            payload_bytes_min,
            payload_bytes_max,
            qos: self.qos(&raw.qos),
            protocol: self.protocol(&raw.protocol),
            retain: raw.retain.unwrap_or(false),
            sync: raw.sync.unwrap_or(false),
            burst: raw.burst.as_ref().map(|burst| self.burst(burst)),
            inflight: self.whole_or(&raw.inflight, 1..=65_535, 100),
            reconnect: self.millis_or(&raw.reconnect_ms, RECONNECT_MS, 200),
        }
    }

    fn rate(&mut self, raw: &RawPublish) -> Rate {
        match (&raw.rate_hz, &raw.rate_x_capacity) {
            (Some(hz), None) => Rate::PerClientHz(self.real(hz, 0.0001..=1e6)),
            (None, Some(multiple)) => Rate::TimesCapacity(self.real(multiple, 0.01..=100.0)),
            (Some(_), Some(both)) => {
                self.fault(both.span(), "give rate_hz or rate_x_capacity, not both".to_owned());
                Rate::PerClientHz(1.0)
            }
            (None, None) => {
                self.fault(
                    raw.name.span(),
                    "this group needs rate_hz or rate_x_capacity".to_owned(),
                );
                Rate::PerClientHz(1.0)
            }
        }
    }

    fn payload(&mut self, raw: &Spanned<RawPayload>, topic_bytes: usize) -> (u32, u32) {
        let RawPayload { min, max } = *raw.get_ref();
        let min_bytes = self.in_range(min, raw.span(), 16..=PAYLOAD_BYTES_MAX);
        let max_bytes = self.in_range(max, raw.span(), 16..=PAYLOAD_BYTES_MAX);
        if min > max {
            self.fault(raw.span(), format!("[min, max] needs min <= max, found [{min}, {max}]"));
        }
        // Topic with its length, packet id, and the empty property list of MQTT 5.
        if u64::from(max_bytes) + topic_bytes as u64 + 2 + 2 + 1 > REMAINING_LENGTH_MAX {
            self.fault(
                raw.span(),
                format!("with its topic this is longer than an MQTT packet may be: {max} bytes"),
            );
        }
        (min_bytes, max_bytes)
    }

    fn burst(&mut self, raw: &Spanned<RawBurst>) -> Burst {
        let RawBurst { period_s, duty } = raw.get_ref();
        let duty_value = *duty.get_ref();
        if !(duty_value > 0.0 && duty_value <= 1.0) {
            self.fault(duty.span(), format!("must be above 0 and at most 1, found {duty_value}"));
        }
        Burst { period_s: self.real(period_s, 0.001..=86_400.0), duty: duty_value }
    }

    fn subscribe(&mut self, raw: RawSubscribe, duration_s: u32) -> SubscribeGroup {
        self.not_empty(&raw.name);
        let clients = self.whole(&raw.clients, CLIENTS);
        self.topic(&raw.filter, raw.name.get_ref(), clients, topic::check_filter);
        let protocol = self.protocol(&raw.protocol);
        let receive_maximum: u16 = self.whole_or(&raw.receive_maximum, 0..=65_535, 0);
        if let Some(value) = &raw.receive_maximum
            && receive_maximum > 0
            && protocol == Protocol::V4
        {
            self.fault(value.span(), "only MQTT 5 has it: set protocol = 5".to_owned());
        }
        let deadline = self.deadline;
        SubscribeGroup {
            name: raw.name.into_inner(),
            clients,
            filter: raw.filter.into_inner(),
            qos: self.qos(&raw.qos),
            protocol,
            reconnect: self.millis_or(&raw.reconnect_ms, RECONNECT_MS, 200),
            weight: raw.weight.as_ref().map_or(1.0, |weight| self.real(weight, WEIGHT)),
            deadline: raw
                .deadline_ms
                .as_ref()
                .map_or(deadline, |value| self.millis(value, DEADLINE_MS)),
            ack_delay: self.millis_or(&raw.ack_delay_ms, 0..=60_000, 0),
            clean_session: raw.clean_session.unwrap_or(true),
            receive_maximum: (receive_maximum > 0).then_some(receive_maximum),
            offline: raw.offline.as_ref().map(|offline| self.offline(offline, duration_s)),
        }
    }

    fn offline(&mut self, raw: &Spanned<RawOffline>, duration_s: u32) -> Offline {
        let length_s = f64::from(duration_s);
        let at_s = self.real(&raw.get_ref().at_s, 0.0..=length_s);
        let for_s = self.real(&raw.get_ref().for_s, 0.001..=length_s);
        if at_s + for_s > length_s {
            self.fault(
                raw.span(),
                format!("must end within the phase: {at_s} + {for_s} is after {duration_s} s"),
            );
        }
        Offline { at: Duration::from_secs_f64(at_s), lasts: Duration::from_secs_f64(for_s) }
    }

    fn qos(&mut self, raw: &Maybe<i64>) -> Qos {
        match self.whole_or::<u8>(raw, 0..=2, 0) {
            0 => Qos::AtMostOnce,
            1 => Qos::AtLeastOnce,
            _ => Qos::ExactlyOnce,
        }
    }

    fn protocol(&mut self, raw: &Maybe<i64>) -> Protocol {
        match self.whole_or::<u8>(raw, 4..=5, 4) {
            5 => Protocol::V5,
            _ => Protocol::V4,
        }
    }

    /// Checks the text as the last client has it, which has the longest number.
    fn topic(
        &mut self,
        template: &Spanned<String>,
        group: &str,
        clients: u32,
        check: fn(&str) -> Result<(), String>,
    ) -> String {
        let expanded = topic::expand(template.get_ref(), group, clients.saturating_sub(1));
        if let Err(reason) = check(&expanded) {
            self.fault(template.span(), reason);
        }
        expanded
    }

    fn unique<'n>(&mut self, names: impl Iterator<Item = &'n Spanned<String>>, direction: &str) {
        let mut seen = std::collections::HashSet::new();
        for name in names {
            if !seen.insert(name.get_ref()) {
                let reason =
                    format!("{:?} names two {direction} groups of this phase", name.get_ref());
                self.fault(name.span(), reason);
            }
        }
    }

    fn not_empty(&mut self, text: &Spanned<String>) {
        if text.get_ref().is_empty() {
            self.fault(text.span(), "must not be empty".to_owned());
        }
    }

    /// Results and settings for a load are files of its name.
    fn file_name(&mut self, text: &Spanned<String>) {
        let name = text.get_ref();
        let is_plain = !name.starts_with('.') && !name.contains(['/', '\\']);
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || name.contains(char::is_control)
            || !is_plain
        {
            let reason = format!(
                "must be 1 to {NAME_BYTES_MAX} bytes without /, \\ and control characters, and not begin with a dot: files are called by it"
            );
            self.fault(text.span(), reason);
        }
    }

    fn whole<T: TryFrom<i64> + Default>(
        &mut self,
        value: &Spanned<i64>,
        range: RangeInclusive<i64>,
    ) -> T {
        self.in_range(*value.get_ref(), value.span(), range)
    }

    fn whole_or<T: TryFrom<i64> + Default>(
        &mut self,
        value: &Maybe<i64>,
        range: RangeInclusive<i64>,
        default: T,
    ) -> T {
        value.as_ref().map_or(default, |value| self.whole(value, range))
    }

    fn in_range<T: TryFrom<i64> + Default>(
        &mut self,
        value: i64,
        span: Range<usize>,
        range: RangeInclusive<i64>,
    ) -> T {
        if !range.contains(&value) {
            self.out_of_range(span, &range, value);
        }
        T::try_from(value).unwrap_or_default()
    }

    fn real(&mut self, value: &Spanned<f64>, range: RangeInclusive<f64>) -> f64 {
        let number = *value.get_ref();
        if range.contains(&number) {
            return number;
        }
        self.out_of_range(value.span(), &range, number);
        *range.start()
    }

    fn out_of_range<T: Display>(
        &mut self,
        span: Range<usize>,
        range: &RangeInclusive<T>,
        found: T,
    ) {
        self.fault(span, format!("must be {} to {}, found {found}", range.start(), range.end()));
    }

    fn millis(&mut self, value: &Spanned<i64>, range: RangeInclusive<i64>) -> Duration {
        Duration::from_millis(self.whole(value, range))
    }

    fn millis_or(
        &mut self,
        value: &Maybe<i64>,
        range: RangeInclusive<i64>,
        default_ms: u64,
    ) -> Duration {
        Duration::from_millis(self.whole_or(value, range, default_ms))
    }

    fn fault(&mut self, span: Range<usize>, reason: String) {
        self.faults.push(fault_at(self.text, &span, reason));
    }
}

/// Whether any publish of the phase may be expected anywhere: clients that differ are taken to
/// match.
fn has_expectation(phase: &Phase) -> bool {
    phase.subscribe.iter().any(|reader| {
        let filter = topic::expand(&reader.filter, &reader.name, 0);
        phase.publish.iter().any(|writer| {
            let differ =
                topic::is_per_client(&reader.filter) || topic::is_per_client(&writer.topic);
            differ || topic::matches(&filter, &topic::expand(&writer.topic, &writer.name, 0))
        })
    })
}

fn fault_at(text: &str, span: &Range<usize>, reason: String) -> Fault {
    let line = text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1;
    let key = DeTable::parse(text).map(|root| key_at(root.get_ref(), span)).unwrap_or_default();
    Fault { line, key, reason }
}

/// Dotted key of the innermost entry that holds `span`, the entry's own name included.
fn key_at(table: &DeTable<'_>, span: &Range<usize>) -> String {
    for (name, value) in table {
        if covers(&name.span(), span) {
            return name.get_ref().to_string();
        }
        if let Some(below) = key_in(value, span) {
            return format!("{}{below}", name.get_ref());
        }
    }
    String::new()
}

/// The rest of the key below `value`: `.name`, `[index]`, nothing for a plain value; `None` where
/// it is elsewhere.
fn key_in(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
    match value.get_ref() {
        DeValue::Array(items) => {
            let inside = items
                .iter()
                .enumerate()
                .find_map(|(i, item)| Some(format!("[{i}]{}", key_in(item, span)?)));
            inside.or_else(|| covers(&value.span(), span).then(String::new))
        }
        DeValue::Table(inner) => {
            let below = key_at(inner, span);
            match below.as_str() {
                "" => covers(&value.span(), span).then(String::new),
                key => Some(format!(".{key}")),
            }
        }
        _ => covers(&value.span(), span).then(String::new),
    }
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}
