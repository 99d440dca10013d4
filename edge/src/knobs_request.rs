//! What a person asks for over HTTP: the options of a JSON body, and what came of them.

use std::collections::BTreeMap;
use std::fmt;

use brokertuner_core::knobs::Scale;
use brokertuner_core::{KNOBS, Knob, KnobSet, Settings};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};

/// Which of two values was meant nobody knows.
const AGAIN: &str = "stands in the body more than once";

/// Why a key was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The key as it was given.
    pub key: String,
    /// The reason, and what would be accepted.
    pub reason: String,
}

impl Refusal {
    /// The refusal of an option.
    #[must_use]
    pub fn of(knob: Knob, reason: impl Into<String>) -> Self {
        Self { key: knob.to_string(), reason: reason.into() }
    }
}

/// A body of `POST /apply_knobs`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnobsRequest {
    /// The options that can be understood.
    pub settings: Settings,
    /// Those that can't. Where there is one, nothing is changed.
    pub refused: Vec<Refusal>,
    /// Leave held options alone instead of refusing them.
    pub skips_locked: bool,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnobsAnswer {
    /// In force; the held options that were left alone.
    Applied(KnobSet),
    /// Will be in force after a restart, as decision `id`.
    Scheduled {
        /// For `edge explain`.
        id: u64,
        /// The held options that were left alone.
        skipped: KnobSet,
    },
    /// Nothing was changed: one reason per refused key.
    Refused(Vec<Refusal>),
    /// Nothing may be changed now, and why.
    Held(String),
    /// It was tried and did not go through.
    Failed(String),
}

impl KnobsRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it as a whole.
    pub fn parse(body: &[u8], skips_locked: bool) -> Result<Self, String> {
        let Pairs(options) = serde_json::from_slice(body).map_err(|error| {
            if error.is_data() {
                "the body must be a JSON object of options and values".to_owned()
            } else {
                format!("the body is no JSON: {error}")
            }
        })?;
        if options.is_empty() {
            return Err("the body names no option".into());
        }
        let mut request = Self { skips_locked, ..Self::default() };
        let mut refused = BTreeMap::new();
        for (index, (key, value)) in options.iter().enumerate() {
            let is_again = options[..index].iter().any(|(earlier, _)| earlier == key);
            let taken = if is_again { Err(AGAIN.to_owned()) } else { request.take(key, value) };
            if let Err(reason) = taken {
                refused.insert(key.clone(), reason);
            }
        }
        let refusal = |(key, reason)| Refusal { key, reason };
        request.refused = refused.into_iter().map(refusal).collect();
        Ok(request)
    }

    fn take(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let Some(knob) = Knob::from_key(key) else {
            let keys = KNOBS.each_ref().map(|spec| spec.key);
            return Err(format!("no such option; there are {}", keys.join(", ")));
        };
        let number = match (knob.spec().scale, value) {
            (Scale::Switch, Value::Bool(on)) => u64::from(*on),
            (Scale::Switch, _) => return Err("must be true or false".into()),
            (Scale::Log2, Value::Number(number)) => number
                .as_u64()
                .ok_or_else(|| "must be a whole number that is not negative".to_owned())?,
            (Scale::Log2, _) => return Err("must be a number".into()),
        };
        self.settings.set(knob, number).map_err(|error| error.to_string())
    }
}

/// A JSON object with every pair that it has, as they stand there.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl KnobsAnswer {
    /// HTTP status and body.
    #[must_use]
    pub fn to_http(&self) -> (u16, Value) {
        let names = |set: &KnobSet| set.iter().map(|knob| knob.to_string()).collect::<Vec<_>>();
        let with_skipped = |mut body: Value, skipped: &KnobSet| {
            if let (false, Value::Object(body)) = (skipped.is_empty(), &mut body) {
                body.insert("skipped".into(), json!(names(skipped)));
            }
            body
        };
        match self {
            Self::Applied(skipped) => (200, with_skipped(json!({"status": "ok"}), skipped)),
            Self::Scheduled { id, skipped } => {
                (202, with_skipped(json!({"status": "scheduled", "id": id}), skipped))
            }
            Self::Refused(refused) => {
                let reasons: Map<String, Value> =
                    refused.iter().map(|r| (r.key.clone(), json!(r.reason))).collect();
                (422, json!({"status": "refused", "refused": reasons}))
            }
            Self::Held(reason) => (409, json!({"status": "held", "reason": reason})),
            Self::Failed(reason) => (500, json!({"status": "failed", "reason": reason})),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_key_has_its_own_reason() {
        let body = br#"{"max_inflight_messages": 100, "max_queued_messages": "200",
            "max_queued_bytes": -1, "max_inflight_bytes": 1.5, "set_tcp_nodelay": 1,
            "memory_limit": 5, "max_packet_size": 0, "max_connections": 7}"#;
        let request = KnobsRequest::parse(body, false).unwrap();
        assert_eq!(request.settings.get(Knob::InflightMessagesMax).value(), Some(100));
        let refused: Vec<_> =
            request.refused.iter().map(|r| format!("{}: {}", r.key, r.reason)).collect();
        let start = |key: &str| refused.iter().find(|text| text.starts_with(key)).unwrap().as_str();
        assert_eq!(refused.len(), 7);
        assert_eq!(start("max_queued_messages"), "max_queued_messages: must be a number");
        for key in ["max_queued_bytes", "max_inflight_bytes"] {
            let expected = format!("{key}: must be a whole number that is not negative");
            assert_eq!(start(key), expected);
        }
        assert_eq!(start("set_tcp_nodelay"), "set_tcp_nodelay: must be true or false");
        assert!(start("memory_limit").contains("outside 16777216 to 2147483648"));
        assert!(start("max_packet_size").contains("for no limit leave the line out"));
        assert!(start("max_connections").starts_with("max_connections: no such option; there are"));
    }

    #[test]
    fn an_option_that_stands_there_twice_is_refused() {
        for (again, reason) in [("400", AGAIN), ("300", AGAIN), ("true", AGAIN)] {
            let body = format!(
                "{{\"autosave_interval\": 300, \"set_tcp_nodelay\": true, \"autosave_interval\": {again}}}"
            );
            let request = KnobsRequest::parse(body.as_bytes(), false).unwrap();
            assert_eq!(request.refused, [Refusal::of(Knob::AutosaveInterval, reason)]);
        }
    }

    #[test]
    fn what_is_no_object_is_refused_as_a_whole() {
        for body in ["", "{", "[]", "7", "null", "{}", "\u{1}"] {
            assert!(KnobsRequest::parse(body.as_bytes(), false).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = KnobsRequest::parse(&body, true);
        }
    }
}
