//! Payloads of `$SYS`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| brokertuner_fuzz::sys(bytes));
