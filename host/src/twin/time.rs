//! Time in the twin: whole slices since its start.

use std::ops::Add;

/// An instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slice(u32);

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span(u32);

impl Slice {
    pub(super) const START: Slice = Slice(0);
    pub(super) const NEVER: Slice = Slice(u32::MAX);

    /// The slice of that number.
    #[cfg(test)]
    pub(super) const fn nth(number: u32) -> Slice {
        Slice(number)
    }

    /// Of this slice, as a coin would fall: the finaliser of MurmurHash3.
    pub(super) const fn coin(self) -> bool {
        let mixed = (self.0 ^ (self.0 >> 16)).wrapping_mul(0x85eb_ca6b);
        let mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
        mixed >> 31 == 1
    }

    /// From `earlier` to here; nothing where it lies later.
    pub(super) fn since(self, earlier: Slice) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Span {
    pub(super) const NONE: Span = Span(0);
    pub(super) const ONE: Span = Span(1);

    /// The nearest whole number of slices.
    pub(super) fn of_us(us: u64, slice_us: u32) -> Span {
        let slices = us.saturating_add(u64::from(slice_us / 2)) / u64::from(slice_us.max(1));
        Span(u32::try_from(slices).unwrap_or(u32::MAX))
    }

    /// Whole seconds.
    pub(super) fn of_s(seconds: u32, slice_us: u32) -> Span {
        Span(seconds.saturating_mul(1_000_000 / slice_us.max(1)))
    }

    pub(super) const fn slices(self) -> u32 {
        self.0
    }
}

impl Add<Span> for Slice {
    type Output = Slice;

    fn add(self, span: Span) -> Slice {
        Slice(self.0.saturating_add(span.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_and_more_is_as_long_as_it_is() {
        assert_eq!(Span::of_us(5_000_000_000, 1000).slices(), 5_000_000);
        assert_eq!(Span::of_us(1499, 1000), Span::ONE);
        assert_eq!(Span::of_us(u64::MAX, 1000).slices(), u32::MAX);
    }
}
