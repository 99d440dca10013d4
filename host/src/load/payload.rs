//! What a payload carries: run, run of the phase, publisher and number, in 16 bytes; the rest is
//! filling.

/// Bytes that [`encode`] needs; the smallest payload of a scenario.
pub(super) const HEAD_BYTES: usize = 16;
/// Publishers that a payload can tell apart.
pub(super) const PUBLISHERS_MAX: u32 = 1 << 24;

/// Message number `k` of a publisher: nonce (4 bytes), instance (2), publisher (3), number (7),
/// big-endian.
pub(super) fn encode(nonce: u32, instance: u16, publisher: u32, k: u64) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[..4].copy_from_slice(&nonce.to_be_bytes());
    bytes[4..6].copy_from_slice(&instance.to_be_bytes());
    bytes[6..9].copy_from_slice(&publisher.to_be_bytes()[1..]);
    bytes[9..].copy_from_slice(&k.to_be_bytes()[1..]);
    bytes
}

/// Instance, publisher and number, or `None` where the message is not of the run `nonce`.
pub(super) fn decode(nonce: u32, bytes: &[u8]) -> Option<(u16, u32, u64)> {
    let head = bytes.first_chunk::<HEAD_BYTES>()?;
    let number = |range: std::ops::Range<usize>| {
        head[range].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if number(0..4) != u64::from(nonce) {
        return None;
    }
    Some((u16::try_from(number(4..6)).ok()?, u32::try_from(number(6..9)).ok()?, number(9..16)))
}

/// Payload sizes of a group: uniform, and the same again for the same message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) seed: u64,
    pub(super) min: u32,
    pub(super) max: u32,
}

impl Sizes {
    /// Size of a publisher's message `k`.
    pub(super) fn of(self, publisher: u32, k: u64) -> usize {
        let span = u64::from(self.max.saturating_sub(self.min)) + 1;
        let random =
            mix(self.seed ^ mix(u64::from(publisher)) ^ k.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Multiply-shift: the upper half of a 32-bit random number times the span, below the span.
        let above_min = ((random >> 32) * span) >> 32;
        self.min as usize + usize::try_from(above_min).unwrap_or(0)
    }
}

/// Finaliser of SplitMix64 (Steele et al. 2014): every bit of the input reaches every bit of the
/// output.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes() {
        let bytes = encode(0xdead_beef, 65_535, PUBLISHERS_MAX - 1, (1 << 56) - 1);
        assert_eq!(decode(0xdead_beef, &bytes), Some((65_535, PUBLISHERS_MAX - 1, (1 << 56) - 1)));
        assert_eq!(decode(1, &bytes), None);
        assert_eq!(decode(0xdead_beef, &bytes[..15]), None);
        assert_eq!(decode(7, &encode(7, 0, 1, 2)), Some((0, 1, 2)));
    }

    #[test]
    fn sizes_cover_their_range_evenly_and_repeat() {
        let sizes = Sizes { seed: 7, min: 16, max: 25 };
        let mut counts = [0; 10];
        for k in 0..10_000 {
            let bytes = sizes.of(3, k);
            assert_eq!(bytes, sizes.of(3, k));
            counts[bytes - 16] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert_eq!(Sizes { seed: 1, min: 64, max: 64 }.of(0, 5), 64);
    }
}
