//! Fuzzes `walden::fuzzing::wal_bytes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::wal_bytes(bytes));
