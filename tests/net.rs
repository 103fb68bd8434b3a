//! Connections to real servers: authentication, TLS, slots, streaming, timelines, base backups.

mod common;

#[path = "net/base_backups.rs"]
mod base_backups;
#[path = "net/fake.rs"]
mod fake;
#[path = "net/hostile.rs"]
mod hostile;
#[path = "net/logins.rs"]
mod logins;
#[path = "net/servers.rs"]
mod servers;
#[path = "net/streaming.rs"]
mod streaming;
#[path = "net/tls.rs"]
mod tls;
