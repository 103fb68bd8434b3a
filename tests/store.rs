//! Stores: the simulated one does what it says, and every real one keeps the same promises.

mod common;

use bytes::Bytes;
use common::sim_store::{Chances, Lie, Request, SimStore, StoreFaults, Verdict};
use common::stores::StoreServer;
use std::time::Duration;
use walden::base::{Entropy, ObjectKey};
use walden::store::{Credentials, Store, StoreError, probe_init, probe_start};

#[path = "store/conformance.rs"]
mod conformance;
#[path = "store/power_cut.rs"]
mod power_cut;
#[path = "store/sim.rs"]
mod sim;

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

#[derive(Debug)]
struct Chance;

impl Entropy for Chance {
    fn fill(&self, buffer: &mut [u8]) {
        fastrand::fill(buffer);
    }
}
