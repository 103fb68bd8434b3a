//! Fuzzes `walden::fuzzing::messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::messages(bytes));
