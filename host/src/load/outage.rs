//! When each client was without a connection that the scenario wants.

/// Outages kept per client; older ones are forgotten, which matters to repeating runs only.
const OUTAGES_MAX: usize = 256;

/// Intervals without connection, by slot. Scheduled absences are not among them.
#[derive(Default)]
pub(super) struct Outages {
    slots: Vec<SlotOutages>,
}

#[derive(Default)]
struct SlotOutages {
    past_ns: Vec<(u64, u64)>,
    since_ns: Option<u64>,
}

impl Outages {
    /// The slot is down from now on; nothing changes where it is already.
    pub(super) fn begin(&mut self, slot: usize, now_ns: u64) {
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, SlotOutages::default);
        }
        self.slots[slot].since_ns.get_or_insert(now_ns);
    }

    /// The slot is connected, or is no longer meant to be.
    pub(super) fn end(&mut self, slot: usize, now_ns: u64) {
        let Some(outages) = self.slots.get_mut(slot) else {
            return;
        };
        if let Some(since_ns) = outages.since_ns.take() {
            if outages.past_ns.len() >= OUTAGES_MAX {
                outages.past_ns.remove(0);
            }
            outages.past_ns.push((since_ns, now_ns));
        }
    }

    /// Whether no client was ever down.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(|outages| outages.past_ns.is_empty() && outages.since_ns.is_none())
    }

    /// Whether any of the slots was ever down.
    pub(super) fn ever(&self, slots: [usize; 2]) -> bool {
        self.any(slots, 0, u64::MAX)
    }

    /// Whether any of the slots was down at some time in `[from_ns, to_ns]`.
    pub(super) fn any(&self, slots: [usize; 2], from_ns: u64, to_ns: u64) -> bool {
        slots.iter().filter_map(|slot| self.slots.get(*slot)).any(|outages| {
            outages.since_ns.is_some_and(|since_ns| since_ns <= to_ns)
                || outages
                    .past_ns
                    .iter()
                    .rev()
                    .any(|(start_ns, end_ns)| *start_ns <= to_ns && *end_ns >= from_ns)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_touches_what_overlaps_it() {
        let mut outages = Outages::default();
        assert!(outages.is_empty() && !outages.any([0, 1], 0, 100));
        outages.begin(1, 10);
        outages.begin(1, 15);
        assert!(
            outages.any([0, 1], 0, 10)
                && !outages.any([0, 1], 0, 9)
                && !outages.any([0, 0], 0, 100)
        );
        outages.end(1, 20);
        outages.end(1, 25);
        assert!(
            outages.any([0, 1], 20, 30) && !outages.any([0, 1], 21, 30) && outages.ever([1, 0])
        );
        assert!(!outages.is_empty());
    }

    #[test]
    fn only_the_latest_are_kept() {
        let mut outages = Outages::default();
        for i in 0..300 {
            outages.begin(0, 10 * i);
            outages.end(0, 10 * i + 1);
        }
        assert!(!outages.any([0, 0], 0, 9) && outages.any([0, 0], 2990, 2990));
    }
}
