//! Fuzzes `walden::fuzzing::wal_meta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::wal_meta(bytes));
