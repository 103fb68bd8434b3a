//! Connections to real servers: authentication, TLS, slots, streaming, timelines, base backups.

mod common;

#[path = "net/streaming.rs"]
mod streaming;
