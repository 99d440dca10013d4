//! One publishing client's messages: what is due, what is in flight, what is sent again. No
//! sockets, no clock.

use std::collections::VecDeque;
use std::rc::Rc;

use super::codec::{self, PublishHead};
use super::payload;
use super::schedule::Schedule;
use crate::scenario::{Protocol, Qos};

/// Unsent messages that a publisher keeps; then it discards the oldest.
pub(super) const UNSENT_MAX: u64 = 10_000;
/// Bytes waiting for the socket beyond which nothing is added: the network is the window then.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// What a publisher sends in one run of a phase.
pub(super) struct Assignment {
    pub(super) instance: u16,
    /// Number among all publishers of the phase.
    pub(super) publisher: u32,
    /// Number within its group.
    pub(super) client: u32,
    pub(super) topic: Rc<str>,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) window: u16,
    pub(super) payload: payload::Sizes,
    pub(super) nonce: u32,
    pub(super) start_ns: u64,
    pub(super) schedule: Rc<Schedule>,
}

struct InFlight {
    packet_id: u16,
    k: u64,
    assignment: Rc<Assignment>,
}

/// State of one publisher; it outlives its connections.
#[derive(Default)]
pub(super) struct Publisher {
    assignment: Option<Rc<Assignment>>,
    /// Due and unsent: `next..due`.
    next: u64,
    due: u64,
    /// In order of sending; those from `resend_from` on have not been sent on this connection.
    inflight: VecDeque<InFlight>,
    resend_from: usize,
    broker_window: u16,
    last_packet_id: u16,
    /// Since when sending has been possible: the last acknowledgement that opened a full window,
    /// or the connection.
    open_since_ns: u64,
    pub(super) discarded: u64,
    pub(super) resent: u64,
}

impl Publisher {
    /// Starts a phase, or none: with an empty buffer; what is in flight goes on.
    pub(super) fn assign(&mut self, assignment: Option<Rc<Assignment>>) {
        self.assignment = assignment;
        (self.next, self.due) = (0, 0);
    }

    /// Whether nothing waits for an acknowledgement.
    pub(super) fn is_idle(&self) -> bool {
        self.inflight.is_empty()
    }

    /// The next message, number `k`, is due.
    pub(super) fn push(&mut self, k: u64, is_ready: bool) {
        self.due = k + 1;
        let keep = match self.qos() {
            Qos::AtMostOnce if !is_ready => 0,
            _ => UNSENT_MAX,
        };
        let oldest = self.due.saturating_sub(keep);
        if self.next < oldest {
            self.discarded += oldest - self.next;
            self.next = oldest;
        }
    }

    fn qos(&self) -> Qos {
        self.assignment.as_ref().map_or(Qos::AtMostOnce, |assignment| assignment.qos)
    }

    /// A new connection: everything in flight is to be sent again, within the broker's Receive
    /// Maximum.
    pub(super) fn connected(&mut self, broker_window: u16, now_ns: u64) {
        self.broker_window = broker_window;
        self.resend_from = 0;
        self.open_since_ns = now_ns;
    }

    /// The socket takes bytes again after it did not.
    pub(super) fn socket_open(&mut self, now_ns: u64) {
        self.open_since_ns = now_ns;
    }

    /// Appends what may be sent now; for each new message, `possible_ns` gets the earliest time it
    /// could have gone.
    pub(super) fn pump(
        &mut self,
        out: &mut Vec<u8>,
        protocol: Protocol,
        possible_ns: &mut Vec<u64>,
    ) {
        let window = |limit: u16| usize::from(limit.min(self.broker_window));
        while let Some(entry) = self.inflight.get(self.resend_from) {
            if self.resend_from >= window(entry.assignment.window) || out.len() > OUTPUT_BYTES_MAX {
                return;
            }
            put(out, protocol, &entry.assignment, entry.k, entry.packet_id, true);
            self.resend_from += 1;
            self.resent += 1;
        }
        let Some(assignment) = self.assignment.clone() else {
            return;
        };
        let window = window(assignment.window);
        while self.next < self.due && out.len() <= OUTPUT_BYTES_MAX {
            let k = self.next;
            let mut packet_id = 0;
            if assignment.qos != Qos::AtMostOnce {
                if self.inflight.len() >= window {
                    return;
                }
                packet_id = self.packet_id();
                self.inflight.push_back(InFlight {
                    packet_id,
                    k,
                    assignment: Rc::clone(&assignment),
                });
                self.resend_from = self.inflight.len();
            }
            put(out, protocol, &assignment, k, packet_id, false);
            let due_ns = assignment.start_ns + assignment.schedule.due_ns(assignment.client, k);
            possible_ns.push(due_ns.max(self.open_since_ns));
            self.next += 1;
        }
    }

    /// The next identifier that is not in flight; there is one, as windows are below 65536.
    fn packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            if self.inflight.iter().all(|entry| entry.packet_id != self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }

    /// PUBACK or PUBCOMP, or a PUBREC that refuses: the message is done. Until PUBCOMP a QoS 2
    /// message stays in flight and, if the connection goes, is sent anew: the broker may have
    /// lost it, and a second delivery is only a duplicate.
    pub(super) fn done(&mut self, packet_id: u16, now_ns: u64) {
        let Some(at) = self.inflight.iter().position(|entry| entry.packet_id == packet_id) else {
            return;
        };
        let window = self
            .assignment
            .as_ref()
            .map_or(u16::MAX, |assignment| assignment.window)
            .min(self.broker_window);
        if self.inflight.len() >= usize::from(window) {
            self.open_since_ns = now_ns;
        }
        self.inflight.remove(at);
        if at < self.resend_from {
            self.resend_from -= 1;
        }
    }
}

fn put(
    out: &mut Vec<u8>,
    protocol: Protocol,
    assignment: &Assignment,
    k: u64,
    packet_id: u16,
    dup: bool,
) {
    let start = payload::encode(assignment.nonce, assignment.instance, assignment.publisher, k);
    let bytes = assignment.payload.of(assignment.publisher, k);
    // DUP is 0 at QoS 0 (MQTT 3.3.1.1), and nothing is in flight there.
    let head = PublishHead {
        protocol,
        dup,
        qos: assignment.qos,
        retain: assignment.retain,
        topic: &assignment.topic,
        packet_id,
    };
    codec::put_publish(out, &head, &start, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher(qos: Qos, window: u16) -> Publisher {
        let mut publisher = Publisher::default();
        publisher.assign(Some(Rc::new(Assignment {
            instance: 0,
            publisher: 0,
            client: 0,
            topic: "t".into(),
            qos,
            retain: false,
            window,
            payload: payload::Sizes { seed: 1, min: 16, max: 16 },
            nonce: 9,
            start_ns: 0,
            schedule: Rc::new(Schedule::new(1, 1e6, false, None, 1)),
        })));
        publisher.connected(u16::MAX, 0);
        publisher
    }

    /// What a pump sends: DUP flag and message number of each publish.
    fn pumped(publisher: &mut Publisher) -> Vec<(bool, u64)> {
        let mut out = Vec::new();
        publisher.pump(&mut out, Protocol::V4, &mut Vec::new());
        let mut sent = Vec::new();
        let mut rest = out.as_slice();
        while let Ok(Some((codec::Packet::Publish { payload, .. }, length))) =
            codec::decode(rest, Protocol::V4)
        {
            let number = payload::decode(9, payload).map_or(u64::MAX, |(_, _, k)| k);
            sent.push((rest[0] & 8 != 0, number));
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        sent
    }

    #[test]
    fn the_window_holds_back_and_an_acknowledgement_lets_the_next_go() {
        let mut publisher = publisher(Qos::AtLeastOnce, 2);
        (0..4).for_each(|k| publisher.push(k, true));
        assert_eq!(pumped(&mut publisher), [(false, 0), (false, 1)]);
        publisher.done(77, 5); // never sent
        assert!(pumped(&mut publisher).is_empty());
        publisher.done(2, 5);
        assert_eq!(pumped(&mut publisher), [(false, 2)]);
        publisher.done(1, 6);
        publisher.done(3, 6);
        assert_eq!(pumped(&mut publisher), [(false, 3)]);
        publisher.done(4, 7);
        assert!(publisher.is_idle());
    }

    #[test]
    fn a_reconnect_sends_again_within_the_brokers_window() {
        let mut publisher = publisher(Qos::AtLeastOnce, 3);
        (0..5).for_each(|k| publisher.push(k, true));
        assert_eq!(pumped(&mut publisher).len(), 3);
        publisher.connected(2, 10);
        assert_eq!(pumped(&mut publisher), [(true, 0), (true, 1)]);
        publisher.done(1, 11);
        assert_eq!(pumped(&mut publisher), [(true, 2)]);
        publisher.done(2, 12);
        assert_eq!(pumped(&mut publisher), [(false, 3)]);
        assert_eq!(publisher.resent, 3);
    }

    #[test]
    fn the_oldest_unsent_goes_when_ten_thousand_wait() {
        let mut publisher = publisher(Qos::AtLeastOnce, 1);
        (0..10_003).for_each(|k| publisher.push(k, false));
        assert_eq!(publisher.discarded, 3);
        assert_eq!(pumped(&mut publisher), [(false, 3)]);
    }

    #[test]
    fn qos_0_is_discarded_while_there_is_no_connection() {
        let mut publisher = publisher(Qos::AtMostOnce, 1);
        publisher.push(0, false);
        publisher.push(1, true);
        publisher.push(2, true);
        assert_eq!(pumped(&mut publisher), [(false, 1), (false, 2)]);
        assert_eq!(publisher.discarded, 1);
    }

    #[test]
    fn a_new_phase_starts_empty_and_completes_what_is_in_flight() {
        let mut publisher = publisher(Qos::ExactlyOnce, 1);
        (0..3).for_each(|k| publisher.push(k, true));
        assert_eq!(pumped(&mut publisher).len(), 1);
        publisher.assign(None);
        assert!(!publisher.is_idle());
        publisher.done(1, 5);
        assert!(publisher.is_idle() && pumped(&mut publisher).is_empty());
    }

    #[test]
    fn lag_counts_from_the_acknowledgement_that_opened_the_window() {
        let mut publisher = publisher(Qos::AtLeastOnce, 1);
        let mut possible_ns = Vec::new();
        (0..3).for_each(|k| publisher.push(k, true));
        publisher.pump(&mut Vec::new(), Protocol::V4, &mut possible_ns);
        publisher.done(1, 50_000);
        publisher.pump(&mut Vec::new(), Protocol::V4, &mut possible_ns);
        // Message 1 was due at 1 us; the window opened at 50 us.
        assert_eq!(possible_ns, [0, 50_000]);
    }

    #[test]
    fn packet_identifiers_wrap_past_zero_and_skip_those_in_flight() {
        let mut publisher = publisher(Qos::AtLeastOnce, 2);
        publisher.push(0, true);
        pumped(&mut publisher); // takes identifier 1, and keeps it
        publisher.last_packet_id = u16::MAX;
        publisher.push(1, true);
        pumped(&mut publisher);
        assert_eq!(publisher.last_packet_id, 2);
    }
}
