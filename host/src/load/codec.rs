//! The part of MQTT 3.1.1 and 5 that a load generator speaks: encoders that append, and a decoder
//! that borrows.
//!
//! Section numbers are those of the OASIS standards. The decoder is total: it never panics on any
//! bytes.

use crate::scenario::{Protocol, Qos};

/// Why bytes from the broker are not an MQTT packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Remaining Length of more than four bytes (2.2.3).
    #[error("remaining length of more than four bytes")]
    Length,
    /// The packet ends before its fields do.
    #[error("packet type {packet_type} of {bytes} bytes ends before its fields do")]
    Short {
        /// Upper four bits of the first byte.
        packet_type: u8,
        /// Remaining Length.
        bytes: usize,
    },
    /// A packet that a broker does not send.
    #[error("packet type {0} from a broker")]
    Type(u8),
    /// A property that is not in the standard (2.2.2 of MQTT 5).
    #[error("unknown property {0:#x}")]
    Property(u8),
    /// QoS 3, or a packet identifier of zero.
    #[error("malformed PUBLISH")]
    Publish,
}

/// A packet from the broker; text and payload borrow from the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Answer to CONNECT.
    ConnAck {
        /// The broker kept the session.
        session_present: bool,
        /// 0: accepted.
        code: u8,
        /// Receive Maximum of the broker; 65535 where it sends none.
        receive_maximum: u16,
    },
    /// A delivery.
    Publish {
        /// Quality of service of the delivery.
        qos: Qos,
        /// Sent because of a subscription, from the retained messages.
        retain: bool,
        /// 0 at QoS 0.
        packet_id: u16,
        /// Application bytes.
        payload: &'a [u8],
    },
    /// Answer to a QoS 1 PUBLISH.
    PubAck(u16),
    /// Answer to a QoS 2 PUBLISH; `refused`: the exchange ends here (MQTT 5 reason code of 0x80 and
    /// above).
    PubRec {
        /// Packet identifier.
        packet_id: u16,
        /// The broker will not take the message.
        refused: bool,
    },
    /// Second step of a QoS 2 delivery.
    PubRel(u16),
    /// Last step of a QoS 2 publish.
    PubComp(u16),
    /// Answer to SUBSCRIBE with its one reason code; 0x80 and above: refused.
    SubAck(u8),
    /// Answer to PINGREQ.
    PingResp,
    /// MQTT 5: the broker closes, with its reason code.
    Disconnect(u8),
}

/// Takes one packet from the front of `bytes`: the packet and its length, or `None` while it is
/// incomplete.
///
/// # Errors
/// [`DecodeError`] where the bytes can never become a packet.
pub fn decode(
    bytes: &[u8],
    protocol: Protocol,
) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let Some((length, header_bytes)) = remaining_length(&bytes[1..])? else {
        return Ok(None);
    };
    let start = 1 + header_bytes;
    let Some(body) = bytes.get(start..start + length) else {
        return Ok(None);
    };
    let short = DecodeError::Short { packet_type: first >> 4, bytes: length };
    let packet = body_of(first, Fields { rest: body, short }, protocol)?;
    Ok(Some((packet, start + length)))
}

/// Bytes of the whole packet at the front of `bytes`, once its length is known.
#[must_use]
pub fn packet_bytes(bytes: &[u8]) -> Option<usize> {
    match remaining_length(bytes.get(1..)?) {
        Ok(Some((length, header_bytes))) => Some(1 + header_bytes + length),
        _ => None,
    }
}

/// Value and byte count of a Variable Byte Integer (MQTT 5, 1.5.5).
fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut value = 0;
    for (i, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= 4 { Err(DecodeError::Length) } else { Ok(None) }
}

fn body_of(
    first: u8,
    mut fields: Fields<'_>,
    protocol: Protocol,
) -> Result<Packet<'_>, DecodeError> {
    let v5 = protocol == Protocol::V5;
    Ok(match first >> 4 {
        2 => conn_ack(&mut fields, v5)?,
        3 => publish(first, fields, v5)?,
        4 => Packet::PubAck(fields.u16()?),
        5 => {
            let packet_id = fields.u16()?;
            Packet::PubRec { packet_id, refused: v5 && fields.u8().is_ok_and(|code| code >= 0x80) }
        }
        6 => Packet::PubRel(fields.u16()?),
        7 => Packet::PubComp(fields.u16()?),
        9 => {
            fields.u16()?;
            if v5 {
                fields.properties()?;
            }
            Packet::SubAck(fields.u8()?)
        }
        13 => Packet::PingResp,
        // The reason code may be left out, which means 0 (3.14.2.1).
        14 if v5 => Packet::Disconnect(fields.u8().unwrap_or(0)),
        other => return Err(DecodeError::Type(other)),
    })
}

fn conn_ack<'a>(fields: &mut Fields<'a>, v5: bool) -> Result<Packet<'a>, DecodeError> {
    let session_present = fields.u8()? & 1 == 1;
    let code = fields.u8()?;
    let receive_maximum = if v5 { fields.properties()?.unwrap_or(u16::MAX) } else { u16::MAX };
    Ok(Packet::ConnAck { session_present, code, receive_maximum: receive_maximum.max(1) })
}

fn publish(first: u8, mut fields: Fields<'_>, v5: bool) -> Result<Packet<'_>, DecodeError> {
    let qos = match (first >> 1) & 3 {
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        2 => Qos::ExactlyOnce,
        _ => return Err(DecodeError::Publish),
    };
    let topic_bytes = fields.u16()?;
    fields.take(usize::from(topic_bytes))?;
    let packet_id = if qos == Qos::AtMostOnce { 0 } else { fields.u16()? };
    if qos != Qos::AtMostOnce && packet_id == 0 {
        return Err(DecodeError::Publish);
    }
    if v5 {
        fields.properties()?;
    }
    Ok(Packet::Publish { qos, retain: first & 1 == 1, packet_id, payload: fields.rest })
}

/// Reads fields off the front of a packet's body.
struct Fields<'a> {
    rest: &'a [u8],
    short: DecodeError,
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(self.short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.rest.split_first().ok_or(self.short)?;
        self.rest = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn skip_text(&mut self) -> Result<(), DecodeError> {
        let bytes = self.u16()?;
        self.take(usize::from(bytes)).map(drop)
    }

    /// Skips a property list (MQTT 5, 2.2.2) and returns its Receive Maximum, if any.
    fn properties(&mut self) -> Result<Option<u16>, DecodeError> {
        let (length, header_bytes) = remaining_length(self.rest)?.ok_or(self.short)?;
        self.take(header_bytes)?;
        let mut list = Fields { rest: self.take(length)?, short: self.short };
        let mut receive_maximum = None;
        while !list.rest.is_empty() {
            match list.u8()? {
                0x21 => receive_maximum = Some(list.u16()?),
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => drop(list.take(1)?),
                0x13 | 0x22 | 0x23 => drop(list.take(2)?),
                0x02 | 0x11 | 0x18 | 0x27 => drop(list.take(4)?),
                0x0b => {
                    let (_, bytes) = remaining_length(list.rest)?.ok_or(list.short)?;
                    list.take(bytes)?;
                }
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => list.skip_text()?,
                0x26 => {
                    list.skip_text()?;
                    list.skip_text()?;
                }
                other => return Err(DecodeError::Property(other)),
            }
        }
        Ok(receive_maximum)
    }
}

/// Fields of a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Version.
    pub protocol: Protocol,
    /// Client identifier.
    pub client_id: &'a str,
    /// Clean session, or clean start without session expiry.
    pub clean_session: bool,
    /// Keep alive.
    pub keep_alive_s: u16,
    /// MQTT 5 Receive Maximum, if it is to be sent.
    pub receive_maximum: Option<u16>,
}

/// Appends a CONNECT. A durable MQTT 5 session never expires.
pub fn put_connect(out: &mut Vec<u8>, connect: &Connect<'_>) {
    let mut body = Vec::with_capacity(64);
    put_bytes(&mut body, b"MQTT");
    body.push(if connect.protocol == Protocol::V5 { 5 } else { 4 });
    body.push(if connect.clean_session { 2 } else { 0 });
    body.extend(connect.keep_alive_s.to_be_bytes());
    if connect.protocol == Protocol::V5 {
        let mut properties = Vec::with_capacity(8);
        if !connect.clean_session {
            properties.push(0x11);
            properties.extend(u32::MAX.to_be_bytes());
        }
        if let Some(maximum) = connect.receive_maximum {
            properties.push(0x21);
            properties.extend(maximum.to_be_bytes());
        }
        put_length(&mut body, properties.len());
        body.append(&mut properties);
    }
    put_bytes(&mut body, connect.client_id.as_bytes());
    put_header(out, 0x10, body.len());
    out.append(&mut body);
}

/// Appends a SUBSCRIBE with one filter and packet identifier 1.
pub fn put_subscribe(out: &mut Vec<u8>, protocol: Protocol, filter: &str, qos: Qos) {
    let property_bytes = usize::from(protocol == Protocol::V5);
    put_header(out, 0x82, 2 + property_bytes + 2 + filter.len() + 1);
    out.extend([0, 1]);
    if protocol == Protocol::V5 {
        out.push(0);
    }
    put_bytes(out, filter.as_bytes());
    out.push(qos as u8);
}

/// Fields of a PUBLISH before its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishHead<'a> {
    /// Version.
    pub protocol: Protocol,
    /// Sent before.
    pub dup: bool,
    /// Quality of service.
    pub qos: Qos,
    /// RETAIN flag.
    pub retain: bool,
    /// Topic name, at most 65535 bytes.
    pub topic: &'a str,
    /// Not sent at QoS 0.
    pub packet_id: u16,
}

/// Appends a PUBLISH whose payload is `start`, filled up with zeros to `payload_bytes`.
pub fn put_publish(out: &mut Vec<u8>, head: &PublishHead<'_>, start: &[u8], payload_bytes: usize) {
    let id_bytes = if head.qos == Qos::AtMostOnce { 0 } else { 2 };
    let property_bytes = usize::from(head.protocol == Protocol::V5);
    let payload_bytes = payload_bytes.max(start.len());
    let flags = u8::from(head.dup) << 3 | (head.qos as u8) << 1 | u8::from(head.retain);
    put_header(out, 0x30 | flags, 2 + head.topic.len() + id_bytes + property_bytes + payload_bytes);
    put_bytes(out, head.topic.as_bytes());
    if head.qos != Qos::AtMostOnce {
        out.extend(head.packet_id.to_be_bytes());
    }
    if head.protocol == Protocol::V5 {
        out.push(0);
    }
    out.extend_from_slice(start);
    out.resize(out.len() + payload_bytes - start.len(), 0);
}

/// The four acknowledgements, by the first byte of their packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ack {
    /// Ends a QoS 1 publish.
    PubAck = 0x40,
    /// Takes a QoS 2 publish.
    PubRec = 0x50,
    /// Releases it.
    PubRel = 0x62,
    /// Ends it.
    PubComp = 0x70,
}

/// Appends an acknowledgement; reason code 0 and no properties are left out, which both versions
/// allow.
pub fn put_ack(out: &mut Vec<u8>, ack: Ack, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend([ack as u8, 2, high, low]);
}

/// Appends a PINGREQ.
pub fn put_ping(out: &mut Vec<u8>) {
    out.extend([0xc0, 0]);
}

/// Appends a DISCONNECT with reason 0.
pub fn put_disconnect(out: &mut Vec<u8>) {
    out.extend([0xe0, 0]);
}

fn put_header(out: &mut Vec<u8>, first: u8, length: usize) {
    out.push(first);
    put_length(out, length);
}

/// Appends a Variable Byte Integer; lengths are below 2^28 because scenarios are checked for it.
fn put_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = u8::try_from(length & 0x7f).unwrap_or_default(); // seven bits fit
        length >>= 7;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

/// Appends bytes with their two-byte length; scenarios and client ids are checked to fit.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend(length.to_be_bytes());
    out.extend_from_slice(&bytes[..usize::from(length)]);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A delivery has the form of a publish, so the encoder makes valid input for the decoder.
    fn publish_bytes(protocol: Protocol, qos: Qos, packet_id: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let head =
            PublishHead { protocol, dup: false, qos, retain: false, topic: "a/b", packet_id };
        put_publish(&mut out, &head, payload, payload.len());
        out
    }

    #[test]
    fn connect_bytes_are_those_of_the_standard() {
        let mut connect = Connect {
            protocol: Protocol::V4,
            client_id: "ab",
            clean_session: true,
            keep_alive_s: 60,
            receive_maximum: Some(9),
        };
        let mut out = Vec::new();
        put_connect(&mut out, &connect);
        assert_eq!(out, [0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 2, b'a', b'b']);
        connect = Connect { protocol: Protocol::V5, clean_session: false, ..connect };
        out.clear();
        put_connect(&mut out, &connect);
        let properties = [8, 0x11, 255, 255, 255, 255, 0x21, 0, 9];
        assert_eq!(out[..12], [0x10, 23, 0, 4, b'M', b'Q', b'T', b'T', 5, 0, 0, 60]);
        assert_eq!(out[12..21], properties);
    }

    #[test]
    fn publish_fills_up_and_carries_its_flags() {
        let head = PublishHead {
            protocol: Protocol::V5,
            dup: true,
            qos: Qos::ExactlyOnce,
            retain: true,
            topic: "t",
            packet_id: 258,
        };
        let mut out = Vec::new();
        put_publish(&mut out, &head, &[7, 8], 4);
        assert_eq!(out, [0x3d, 10, 0, 1, b't', 1, 2, 0, 7, 8, 0, 0]);
    }

    #[test]
    fn each_packet_of_a_broker_decodes() {
        let v4: [(&[u8], Packet<'_>); 7] = [
            (
                &[0x20, 2, 1, 0],
                Packet::ConnAck { session_present: true, code: 0, receive_maximum: 65_535 },
            ),
            (&[0x40, 2, 1, 2], Packet::PubAck(258)),
            (&[0x50, 2, 0, 3], Packet::PubRec { packet_id: 3, refused: false }),
            (&[0x62, 2, 0, 4], Packet::PubRel(4)),
            (&[0x70, 2, 0, 5], Packet::PubComp(5)),
            (&[0x90, 3, 0, 1, 0x80], Packet::SubAck(0x80)),
            (&[0xd0, 0], Packet::PingResp),
        ];
        for (bytes, packet) in v4 {
            assert_eq!(decode(bytes, Protocol::V4), Ok(Some((packet, bytes.len()))));
        }
        let v5: [(&[u8], Packet<'_>); 4] = [
            (
                &[0x20, 11, 0, 0, 8, 0x22, 0, 10, 0x21, 0, 20, 0x25, 1],
                Packet::ConnAck { session_present: false, code: 0, receive_maximum: 20 },
            ),
            (&[0x50, 3, 0, 3, 0x97], Packet::PubRec { packet_id: 3, refused: true }),
            (&[0x90, 4, 0, 1, 0, 1], Packet::SubAck(1)),
            (&[0xe0, 1, 0x8b], Packet::Disconnect(0x8b)),
        ];
        for (bytes, packet) in v5 {
            assert_eq!(decode(bytes, Protocol::V5), Ok(Some((packet, bytes.len()))));
        }
    }

    #[test]
    fn what_cannot_be_a_packet_is_refused() {
        assert_eq!(decode(&[0x30, 0xff, 0xff, 0xff, 0xff], Protocol::V4), Err(DecodeError::Length));
        assert_eq!(decode(&[0x10, 0], Protocol::V4), Err(DecodeError::Type(1)));
        assert_eq!(decode(&[0x36, 3, 0, 0, 1], Protocol::V4), Err(DecodeError::Publish));
        assert_eq!(decode(&[0x32, 4, 0, 0, 0, 0], Protocol::V4), Err(DecodeError::Publish));
        assert!(matches!(
            decode(&[0x40, 1, 0], Protocol::V4),
            Err(DecodeError::Short { packet_type: 4, bytes: 1 })
        ));
        assert_eq!(
            decode(&[0x30, 5, 0, 0, 2, 0x7f, 0], Protocol::V5),
            Err(DecodeError::Property(0x7f))
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for protocol in [Protocol::V4, Protocol::V5] {
                if let Ok(Some((_, length))) = decode(&bytes, protocol) {
                    prop_assert!(length <= bytes.len());
                    prop_assert_eq!(packet_bytes(&bytes), Some(length));
                }
            }
        }

        #[test]
        fn every_prefix_waits_and_the_whole_decodes(
            v5: bool, level in 0..3u8, packet_id in 1..=u16::MAX, payload in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let protocol = if v5 { Protocol::V5 } else { Protocol::V4 };
            let qos = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][usize::from(level)];
            let bytes = publish_bytes(protocol, qos, packet_id, &payload);
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut], protocol), Ok(None));
            }
            let id = if qos == Qos::AtMostOnce { 0 } else { packet_id };
            let expected = Packet::Publish { qos, retain: false, packet_id: id, payload: &payload };
            prop_assert_eq!(decode(&bytes, protocol), Ok(Some((expected, bytes.len()))));
        }
    }
}
