//! The WAL reader against real servers of every major: each record as pg_waldump sees it, and what transactions did.

#[path = "../common/mod.rs"]
mod common;

mod changes;
mod server;
mod waldump;
