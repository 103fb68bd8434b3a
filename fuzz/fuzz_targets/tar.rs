//! Fuzzes `walden::fuzzing::tar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::tar(bytes));
