//! Requests over HTTP.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| brokertuner_fuzz::http(bytes));
