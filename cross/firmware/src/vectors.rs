//! Inputs from a fixed generator, and one digest over all that a decision makes of them.
//!
//! Features (their bits), action, decoded settings and rendered drop-in of every input go into the
//! digest: where it is the same, two processors decide the same.

use brokertuner_core::features::{Schema, Targets, View};
use brokertuner_core::model::{Model, ModelError};
use brokertuner_core::sample::Metrics;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Envelope, KNOB_COUNT, KnobSet, Settings, render};

use crate::HIDDEN;

/// Inputs that go into the digest.
pub const COUNT: u32 = 10_000;

const INPUTS: usize = Schema::Edge.len();

/// xorshift64*: integers only, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// An order of magnitude first, then a value of it; missing now and then.
    fn gauge(&mut self) -> Option<f32> {
        let octaves = self.next() % 32;
        (!self.next().is_multiple_of(16)).then(|| (self.next() >> octaves) as f32)
    }

    /// 0 to 2.
    fn share(&mut self) -> Option<f32> {
        (!self.next().is_multiple_of(16)).then(|| (self.next() >> 16) as f32 / 32_768.0)
    }

    fn metrics(&mut self) -> Metrics {
        Metrics {
            sys_period_s: self.share(),
            clients_connected: self.gauge(),
            clients_others: self.gauge(),
            clients_offline: self.gauge(),
            subscriptions: self.gauge(),
            packets_received_per_s: self.gauge(),
            packets_others_per_s: self.gauge(),
            publish_received_per_s: self.gauge(),
            publish_sent_per_s: self.gauge(),
            publish_dropped_per_s: self.gauge(),
            publish_bytes_received_per_s: self.gauge(),
            bytes_received_per_s: self.gauge(),
            bytes_sent_per_s: self.gauge(),
            backlog_messages: self.gauge(),
            store_bytes: self.gauge(),
            heap_bytes: self.gauge(),
            heap_bytes_max: self.gauge(),
            rss_bytes: self.gauge(),
            cpu_share: self.share(),
            context_switches: self.gauge(),
            context_switches_per_s: self.gauge(),
            probe_latency_us_qos0: self.gauge(),
            probe_latency_us_qos1: self.gauge(),
        }
    }

    fn envelope(&mut self) -> Envelope {
        let bits = self.next();
        let known = |bytes: u32, is_known: bool| is_known.then_some(u64::from(bytes));
        Envelope {
            opted_in: KnobSet::from_bits((bits & 0xffff) as u16),
            heap_bytes_max: known(self.next() >> 4, bits >> 16 & 1 == 1),
            packet_bytes_max: known(self.next() >> 8, bits >> 17 & 1 == 1),
            ..Envelope::default()
        }
    }
}

/// FNV-1a, 64 bits.
struct Digest(u64);

impl Digest {
    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The digest over [`COUNT`] inputs of `model`.
///
/// # Errors
/// As [`Model::answer`]; never for the model in flash.
///
/// # Panics
/// Where the typed actor and the model's own inference differ.
pub fn digest(model: &Model<'_>) -> Result<u64, ModelError> {
    let actor = model.actor::<INPUTS, { HIDDEN[0] }, { HIDDEN[1] }, KNOB_COUNT>()?;
    let (mut random, mut digest) = (Random(0x9e37_79b9_7f4a_7c15), Digest(0xcbf2_9ce4_8422_2325));
    let site = SiteValues::default();
    let mut effective = Settings::UNWRITTEN;
    for _ in 0..COUNT {
        let (metrics, envelope) = (random.metrics(), random.envelope());
        let targets = Targets {
            deadline_ms: random.next() % 10_000 + 1,
            rss_limit_mib: random.next() % 1024 + 1,
        };
        let view =
            View { metrics: &metrics, effective: &effective, site: &site, targets: &targets };
        let answer = model.answer(&view, &envelope)?;
        let features = answer.features.as_slice().try_into().unwrap_or(&[0.0; INPUTS]);
        let action = actor.infer(&actor.quantise(features));
        assert_eq!(action, answer.action, "typed and untyped inference");
        for feature in &answer.features {
            digest.take(&feature.to_bits().to_le_bytes());
        }
        digest.take(&action.map(i8::cast_unsigned));
        for (_, setting) in answer.settings.iter() {
            digest.take(&setting.value().unwrap_or(u64::MAX).to_le_bytes());
        }
        digest.take(render::render(&answer.settings).as_bytes());
        effective = answer.settings;
    }
    Ok(digest.0)
}
