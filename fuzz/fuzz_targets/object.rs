//! Fuzzes `walden::fuzzing::object`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walden::fuzzing::object(bytes));
