//! Round trips of the agent's own messages: sent at a low rate, matched by number when they come
//! back.

use brokertuner_core::sample::ProbeSample;
use brokertuner_core::{Duration, Instant};

use super::latency::{Latencies, Latency};

/// Probes that are waited for; older ones are given up.
const OUTSTANDING_MAX: usize = 32;
/// A probe still out counts as slow after this; before, it is just young.
const OVERDUE: Duration = Duration::from_secs(1);
/// The latest round trip says nothing any more after this: two rounds by default.
const LATEST_MAX: Duration = Duration::from_secs(6);
/// A probe still out after this is lost: QoS 0 may be.
const LOST: Duration = Duration::from_secs(30);
/// Payload: number (8 bytes, little endian), then the QoS.
pub(super) const PAYLOAD_BYTES: usize = 9;

/// Which probe is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// By the timer: the first of a round, or the second that still waits for the first to come
    /// back.
    Next,
    /// The first is back.
    Second,
}

/// One probe under way.
#[derive(Debug, Clone, Copy)]
struct Outstanding {
    number: u64,
    qos: u8,
    sent: Instant,
}

/// Probes under way, the worst since the last look, and the latest.
#[derive(Debug, Default)]
pub(super) struct Probes {
    next: u64,
    outstanding: Vec<Outstanding>,
    worst: [Option<Duration>; 2],
    /// What a look sees that comes before the next probe of that QoS is back, and of when it is.
    latest: [Option<(Instant, Duration)>; 2],
    /// The first of the present round is out, and the second has not gone.
    is_second_due: bool,
    latencies: Latencies,
    /// Whether one of that QoS ever came back. An ACL that swallows them looks like a stall, and
    /// is none.
    answered: [bool; 2],
}

impl Probes {
    /// QoS and payload of a new probe, sent now. A round is one of QoS 0, then one of QoS 1.
    pub(super) fn send(&mut self, round: Round, now: Instant) -> (u8, Vec<u8>) {
        let qos = u8::from(self.is_second_due || round == Round::Second);
        self.is_second_due = qos == 0;
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        if self.outstanding.len() >= OUTSTANDING_MAX {
            self.outstanding.remove(0);
        }
        self.outstanding.push(Outstanding { number, qos, sent: now });
        let mut payload = number.to_le_bytes().to_vec();
        payload.push(qos);
        (qos, payload)
    }

    /// Whether one is under way.
    pub(super) fn are_out(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// A probe came back; strangers' messages on the topic are ignored. True where it is the first
    /// of its round, and the second has not gone.
    pub(super) fn receive(&mut self, payload: &[u8], now: Instant) -> bool {
        let Some((number, &[qos])) = payload.split_first_chunk() else { return false };
        let number = u64::from_le_bytes(*number);
        let at = self.outstanding.iter().position(|p| p.number == number && p.qos == qos);
        let Some(at) = at else { return false };
        let probe = self.outstanding.remove(at);
        self.answered[usize::from(probe.qos)] = true;
        let latency = now.saturating_duration_since(probe.sent);
        self.note(probe.qos, latency, now);
        self.latencies.note(probe.qos, latency, now);
        probe.qos == 0 && std::mem::take(&mut self.is_second_due)
    }

    fn note(&mut self, qos: u8, latency: Duration, now: Instant) {
        let worst = &mut self.worst[usize::from(qos)];
        *worst = (*worst).max(Some(latency));
        self.latest[usize::from(qos)] = Some((now, latency));
    }

    /// The worst since the last call, or the latest of a moment ago where none came back since:
    /// looks may follow each other faster than probes. An overdue probe counts with its age so far,
    /// where its like has come back before.
    pub(super) fn take(&mut self, now: Instant) -> ProbeSample {
        let (answered, latencies) = (self.answered, &mut self.latencies);
        let latest = &mut self.latest;
        self.outstanding.retain(|probe| {
            let is_young = now.saturating_duration_since(probe.sent) < LOST;
            if !is_young && answered[usize::from(probe.qos)] {
                latencies.note(probe.qos, LOST, now);
                latest[usize::from(probe.qos)] = None;
            }
            is_young
        });
        for index in 0..self.outstanding.len() {
            let Outstanding { qos, sent, .. } = self.outstanding[index];
            let age = now.saturating_duration_since(sent);
            if age >= OVERDUE && self.answered[usize::from(qos)] {
                self.note(qos, age, now);
            }
        }
        let [qos0, qos1] = std::mem::take(&mut self.worst);
        let [latest0, latest1] = self.latest.map(|latest| {
            let is_young = |at| now.saturating_duration_since(at) < LATEST_MAX;
            latest.filter(|(at, _)| is_young(*at)).map(|(_, latency)| latency)
        });
        let latency_us = |latency: Duration| u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        ProbeSample {
            latency_us_qos0: qos0.or(latest0).map(latency_us),
            latency_us_qos1: qos1.or(latest1).map(latency_us),
        }
    }

    /// The round trips of the last minutes by QoS 0 and 1.
    pub(super) fn latencies(&self) -> [Option<Latency>; 2] {
        [self.latencies.of(0), self.latencies.of(1)]
    }

    /// The connection is gone, and what was under way with it.
    pub(super) fn clear(&mut self) {
        self.outstanding.clear();
        self.latest = [None; 2];
        self.is_second_due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    /// A round whose second probe goes at `ms` as well, with the payloads of both.
    fn round(probes: &mut Probes, ms: u64) -> [Vec<u8>; 2] {
        [Round::Next, Round::Second].map(|round| {
            probes.is_second_due &= round == Round::Second;
            probes.send(round, at(ms)).1
        })
    }

    #[test]
    fn the_second_of_a_round_follows_the_first_or_the_timer() {
        let mut probes = Probes::default();
        let (qos, first) = probes.send(Round::Next, at(0));
        assert_eq!(qos, 0);
        assert!(probes.receive(&first, at(1)), "the second may go");
        let (qos, second) = probes.send(Round::Second, at(1));
        assert_eq!(qos, 1);
        assert!(!probes.receive(&second, at(2)));
        let (qos, lost) = probes.send(Round::Next, at(100));
        assert_eq!(qos, 0, "a new round");
        assert_eq!(probes.send(Round::Next, at(200)).0, 1, "the first may have been dropped");
        assert!(!probes.receive(&lost, at(201)), "the second has gone already");
        assert_eq!(probes.send(Round::Next, at(300)).0, 0);
    }

    #[test]
    fn the_worst_round_trip_since_the_last_look() {
        let mut probes = Probes::default();
        let [a, b] = round(&mut probes, 0);
        let (_, c) = probes.send(Round::Next, at(100));
        probes.receive(&a, at(7));
        probes.receive(&b, at(3));
        probes.receive(&c, at(102));
        let seen = probes.take(at(200));
        assert_eq!((seen.latency_us_qos0, seen.latency_us_qos1), (Some(7000), Some(3000)));
    }

    /// (While an agent waits for `$SYS`, it looks every half second. One that saw no probe at the
    /// first look with rates let that decision pass.)
    #[test]
    fn looks_may_follow_each_other_faster_than_probes() {
        let mut probes = Probes::default();
        assert_eq!(probes.take(at(0)), ProbeSample::default(), "nothing yet is not zero");
        for payload in [round(&mut probes, 0), round(&mut probes, 100)].concat() {
            probes.receive(&payload, at(107));
        }
        let us = |seen: ProbeSample| (seen.latency_us_qos0, seen.latency_us_qos1);
        assert_eq!(us(probes.take(at(200))), (Some(107_000), Some(107_000)), "the worst");
        assert_eq!(us(probes.take(at(300))), (Some(7000), Some(7000)), "the latest");
        probes.send(Round::Next, at(3000));
        assert_eq!(us(probes.take(at(3100))), (Some(7000), Some(7000)), "the next is young");
        assert_eq!(us(probes.take(at(5000))), (Some(2_000_000), Some(7000)), "it is overdue");
        assert_eq!(us(probes.take(at(6200))), (Some(3_200_000), None), "that one is old");
        probes.clear();
        assert_eq!(probes.take(at(4600)), ProbeSample::default(), "another connection");
    }

    #[test]
    fn a_stall_shows_while_it_lasts_and_a_lost_probe_is_given_up() {
        let mut probes = Probes::default();
        let [soon, second] = round(&mut probes, 0);
        probes.receive(&soon, at(0));
        probes.receive(&second, at(0));
        assert_eq!(probes.take(at(0)).latency_us_qos0, Some(0));
        let (_, late) = probes.send(Round::Next, at(0));
        assert_eq!(probes.take(at(900)).latency_us_qos0, Some(0), "it is young");
        assert_eq!(probes.take(at(5000)).latency_us_qos0, Some(5_000_000));
        assert_eq!(probes.take(at(31_000)).latency_us_qos0, None);
        let [of_qos0, of_qos1] = probes.latencies().map(Option::unwrap);
        assert_eq!((of_qos0.count, of_qos1.count), (2, 1), "one of them is the lost one");
        assert!(of_qos0.us_max >= 29_000_000, "{of_qos0}");
        probes.receive(&late, at(32_000));
        assert_eq!(probes.take(at(33_000)).latency_us_qos0, None);
    }

    #[test]
    fn what_never_comes_back_is_no_latency() {
        let mut probes = Probes::default();
        let both = round(&mut probes, 0);
        assert_eq!(probes.take(at(5000)), ProbeSample::default());
        probes.receive(&both[1], at(6000));
        let seen = probes.take(at(7000));
        assert_eq!((seen.latency_us_qos0, seen.latency_us_qos1), (None, Some(6_000_000)));
    }

    #[test]
    fn strangers_and_repeats_count_for_nothing() {
        let mut probes = Probes::default();
        let [_, ours] = round(&mut probes, 0);
        for payload in [&b""[..], b"x", &[0; 8], &[7; PAYLOAD_BYTES], &[255; 4096]] {
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
            probes.send(Round::Next, at(number));
        }
        assert_eq!(probes.outstanding.len(), OUTSTANDING_MAX);
    }
}
