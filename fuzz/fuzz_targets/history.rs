//! Fuzzes `walden::fuzzing::history`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::history(bytes));
