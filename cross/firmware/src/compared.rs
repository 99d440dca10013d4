//! The same network in crate `microflow`, for the bench.
