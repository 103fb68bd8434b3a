//! Fuzzes `walden::fuzzing::index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::index(bytes));
