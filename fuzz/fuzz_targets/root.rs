//! Fuzzes `walden::fuzzing::root`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::root(bytes));
