//! Fuzzes `walden::fuzzing::wal_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::wal_record(bytes));
