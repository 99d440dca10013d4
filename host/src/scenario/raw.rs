//! The file as written: every value with its place in the text, nothing checked but types and keys.

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

pub(super) type Maybe<T> = Option<Spanned<T>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawScenario {
    pub(super) schema: Spanned<i64>,
    pub(super) name: Spanned<String>,
    pub(super) summary: String,
    pub(super) deadline_ms: Spanned<i64>,
    pub(super) rss_limit_mib: Spanned<i64>,
    #[serde(default)]
    pub(super) broker: RawBroker,
    pub(super) phase: Spanned<Vec<Spanned<RawPhase>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBroker {
    pub(super) persistence: Option<bool>,
    pub(super) sys_interval_s: Maybe<i64>,
    pub(super) cpu_share: Maybe<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPhase {
    pub(super) name: Spanned<String>,
    pub(super) duration_s: Spanned<i64>,
    pub(super) weight: Maybe<f64>,
    #[serde(default)]
    pub(super) publish: Vec<RawPublish>,
    #[serde(default)]
    pub(super) subscribe: Vec<RawSubscribe>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPublish {
    pub(super) name: Spanned<String>,
    pub(super) clients: Spanned<i64>,
    pub(super) topic: Spanned<String>,
    pub(super) rate_hz: Maybe<f64>,
    pub(super) rate_x_capacity: Maybe<f64>,
    pub(super) payload_bytes: Spanned<RawPayload>,
    pub(super) qos: Maybe<i64>,
    pub(super) protocol: Maybe<i64>,
    pub(super) retain: Option<bool>,
    pub(super) sync: Option<bool>,
    pub(super) burst: Maybe<RawBurst>,
    pub(super) inflight: Maybe<i64>,
    pub(super) reconnect_ms: Maybe<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBurst {
    pub(super) period_s: Spanned<f64>,
    pub(super) duty: Spanned<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSubscribe {
    pub(super) name: Spanned<String>,
    pub(super) clients: Spanned<i64>,
    pub(super) filter: Spanned<String>,
    pub(super) qos: Maybe<i64>,
    pub(super) protocol: Maybe<i64>,
    pub(super) reconnect_ms: Maybe<i64>,
    pub(super) weight: Maybe<f64>,
    pub(super) deadline_ms: Maybe<i64>,
    pub(super) ack_delay_ms: Maybe<i64>,
    pub(super) clean_session: Option<bool>,
    pub(super) receive_maximum: Maybe<i64>,
    pub(super) offline: Maybe<RawOffline>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOffline {
    pub(super) at_s: Spanned<f64>,
    pub(super) for_s: Spanned<f64>,
}

/// `n` or `[min, max]`.
pub(super) struct RawPayload {
    pub(super) min: i64,
    pub(super) max: i64,
}

impl<'de> Deserialize<'de> for RawPayload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PayloadVisitor)
    }
}

struct PayloadVisitor;

impl<'de> Visitor<'de> for PayloadVisitor {
    type Value = RawPayload;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a number of bytes or [min, max]")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<RawPayload, E> {
        Ok(RawPayload { min: value, max: value })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawPayload, A::Error> {
        let min = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        let max = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
        match seq.next_element::<i64>()? {
            None => Ok(RawPayload { min, max }),
            Some(_) => Err(de::Error::invalid_length(3, &self)),
        }
    }
}
