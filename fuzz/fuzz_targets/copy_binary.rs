//! Fuzzes `walden::fuzzing::copy_binary`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::copy_binary(bytes));
