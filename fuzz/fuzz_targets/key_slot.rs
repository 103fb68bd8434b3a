//! Fuzzes `walden::fuzzing::key_slot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::key_slot(bytes));
