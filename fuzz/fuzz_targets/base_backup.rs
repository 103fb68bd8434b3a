//! Fuzzes `walden::fuzzing::base_backup`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::base_backup(bytes));
