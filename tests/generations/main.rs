//! Generations of a cluster: its upgrade to another server, and its deletion; simulated, stopped at every request, and on PostgreSQL
//! with a real pg_upgrade.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod bed;
mod delete;
mod server;
mod upgrade;
