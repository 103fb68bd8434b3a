//! Fuzzes `walden::fuzzing::conninfo`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::conninfo(bytes));
