//! Fuzzes `walden::fuzzing::directory`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::directory(bytes));
