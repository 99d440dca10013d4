//! Which version of MQTT is spoken with the broker.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// MQTT 3.1.1: its CONNACK tells nothing of the broker's settings.
    #[serde(rename = "3.1.1")]
    V311,
    /// MQTT 5.
    #[serde(rename = "5")]
    V5,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V311 => "MQTT 3.1.1",
            Self::V5 => "MQTT 5",
        })
    }
}

/// Which version to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ProtocolChoice {
    /// 5, and 3.1.1 where the broker refuses that.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// 3.1.1 only.
    #[serde(rename = "3.1.1")]
    V311,
    /// 5 only.
    #[serde(rename = "5")]
    V5,
}

impl ProtocolChoice {
    /// What is tried first.
    #[must_use]
    pub fn first(self) -> Protocol {
        match self {
            Self::Auto | Self::V5 => Protocol::V5,
            Self::V311 => Protocol::V311,
        }
    }
}
