//! Fuzzes `walden::fuzzing::delta_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::delta_frame(bytes));
