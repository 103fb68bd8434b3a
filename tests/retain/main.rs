//! Retention: what is promised stays restorable, whatever a cluster went through; what goes can be missed by nobody; and no stop,
//! race or stalled process changes that.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod history;
mod promises;
mod races;
