//! Fuzzes `walden::fuzzing::replication`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::replication(bytes));
