//! Round trips of the agent's own messages: sent at a low rate, matched by number when they come
//! back.

use brokertuner_core::sample::ProbeSample;
use brokertuner_core::{Duration, Instant};

/// Probes that are waited for; older ones are given up.
const OUTSTANDING_MAX: usize = 32;
/// A probe still out counts as slow after this; before, it is just young.
const OVERDUE: Duration = Duration::from_secs(1);
/// A probe still out after this is lost: QoS 0 may be.
const LOST: Duration = Duration::from_secs(30);
/// Payload: number (8 bytes, little endian), then the QoS.
pub(super) const PAYLOAD_BYTES: usize = 9;

/// One probe under way.
#[derive(Debug, Clone, Copy)]
struct Outstanding {
    number: u64,
    qos: u8,
    sent: Instant,
}

/// Probes under way and the worst since the last look.
#[derive(Debug, Default)]
pub(super) struct Probes {
    next: u64,
    outstanding: Vec<Outstanding>,
    worst: [Option<Duration>; 2],
    /// Whether one of that QoS ever came back. An ACL that swallows them looks like a stall, and
    /// is none.
    answered: [bool; 2],
}

impl Probes {
    /// The payload of a new probe of `qos` (0 or 1), sent now.
    pub(super) fn send(&mut self, qos: u8, now: Instant) -> Vec<u8> {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        if self.outstanding.len() >= OUTSTANDING_MAX {
            self.outstanding.remove(0);
        }
        self.outstanding.push(Outstanding { number, qos: qos.min(1), sent: now });
        let mut payload = number.to_le_bytes().to_vec();
        payload.push(qos);
        payload
    }

    /// A probe came back; strangers' messages on the topic are ignored.
    pub(super) fn receive(&mut self, payload: &[u8], now: Instant) {
        let Some((number, &[qos])) = payload.split_first_chunk() else { return };
        let number = u64::from_le_bytes(*number);
        let at = self.outstanding.iter().position(|p| p.number == number && p.qos == qos);
        let Some(at) = at else { return };
        let probe = self.outstanding.remove(at);
        self.answered[usize::from(probe.qos)] = true;
        self.note(probe.qos, now.saturating_duration_since(probe.sent));
    }

    fn note(&mut self, qos: u8, latency: Duration) {
        let worst = &mut self.worst[usize::from(qos)];
        *worst = (*worst).max(Some(latency));
    }

    /// The worst since the last call; an overdue probe counts with its age so far, where its like
    /// has come back before.
    pub(super) fn take(&mut self, now: Instant) -> ProbeSample {
        self.outstanding.retain(|p| now.saturating_duration_since(p.sent) < LOST);
        for index in 0..self.outstanding.len() {
            let Outstanding { qos, sent, .. } = self.outstanding[index];
            let age = now.saturating_duration_since(sent);
            if age >= OVERDUE && self.answered[usize::from(qos)] {
                self.note(qos, age);
            }
        }
        let [qos0, qos1] = std::mem::take(&mut self.worst);
        let latency_us = |worst: Duration| u32::try_from(worst.as_micros()).unwrap_or(u32::MAX);
        ProbeSample { latency_us_qos0: qos0.map(latency_us), latency_us_qos1: qos1.map(latency_us) }
    }

    /// The connection is gone, and what was under way with it.
    pub(super) fn clear(&mut self) {
        self.outstanding.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn the_worst_round_trip_since_the_last_look() {
        let mut probes = Probes::default();
        let (a, b) = (probes.send(0, at(0)), probes.send(1, at(0)));
        let c = probes.send(0, at(100));
        probes.receive(&a, at(7));
        probes.receive(&b, at(3));
        probes.receive(&c, at(102));
        let seen = probes.take(at(200));
        assert_eq!((seen.latency_us_qos0, seen.latency_us_qos1), (Some(7000), Some(3000)));
        assert_eq!(probes.take(at(300)), ProbeSample::default(), "nothing new is not zero");
    }

    #[test]
    fn a_stall_shows_while_it_lasts_and_a_lost_probe_is_given_up() {
        let mut probes = Probes::default();
        let soon = probes.send(0, at(0));
        probes.receive(&soon, at(0));
        assert_eq!(probes.take(at(0)).latency_us_qos0, Some(0));
        let late = probes.send(0, at(0));
        assert_eq!(probes.take(at(900)).latency_us_qos0, None);
        assert_eq!(probes.take(at(5000)).latency_us_qos0, Some(5_000_000));
        assert_eq!(probes.take(at(31_000)).latency_us_qos0, None);
        probes.receive(&late, at(32_000));
        assert_eq!(probes.take(at(33_000)).latency_us_qos0, None);
    }

    #[test]
    fn what_never_comes_back_is_no_latency() {
        let mut probes = Probes::default();
        let both = [0, 1].map(|qos| probes.send(qos, at(0)));
        assert_eq!(probes.take(at(5000)), ProbeSample::default());
        probes.receive(&both[1], at(6000));
        let seen = probes.take(at(7000));
        assert_eq!((seen.latency_us_qos0, seen.latency_us_qos1), (None, Some(6_000_000)));
    }

    #[test]
    fn strangers_and_repeats_count_for_nothing() {
        let mut probes = Probes::default();
        let ours = probes.send(1, at(0));
        for payload in [&b""[..], b"x", &[0; 8], &[0; PAYLOAD_BYTES], &[255; 4096]] {
            probes.receive(payload, at(1));
        }
        assert_eq!(probes.take(at(2)), ProbeSample::default());
        probes.receive(&ours, at(3));
        probes.receive(&ours, at(500));
        assert_eq!(probes.take(at(600)).latency_us_qos1, Some(3000));
    }

    #[test]
    fn what_is_waited_for_is_bounded() {
        let mut probes = Probes::default();
        for number in 0..1000 {
            probes.send(0, at(number));
        }
        assert_eq!(probes.outstanding.len(), OUTSTANDING_MAX);
    }
}
