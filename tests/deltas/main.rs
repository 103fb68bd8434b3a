//! WAL deltas: what is encoded comes back bit for bit, on generated, damaged and real WAL; and planted faults are noticed.

/// Of what integration tests share, what needs no archive.
#[allow(dead_code)]
#[path = "../common"]
mod common {
    pub mod pages;
    pub mod pg;
}

/// The compressors as the formats page describes them.
#[path = "../formats/packing.rs"]
mod packing;

mod bed;
mod faults;
mod generated;
mod packed;
mod parts;
mod servers;
mod splits;
mod windows;
