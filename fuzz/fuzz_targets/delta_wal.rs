//! Fuzzes `walden::fuzzing::delta_wal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::delta_wal(bytes));
