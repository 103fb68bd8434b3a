//! `walden wal-fetch`: the other end of `restore_command`.
//!
//! Two processes. The [`client`] is what PostgreSQL runs for each file: it takes the file from the staging directory by a
//! rename, which takes a few milliseconds with everything, or asks the [`server`] for it. The server is started by the first
//! client, opens the keys once, and stages what comes next. Both know only the recovery file.
//!
//! The exit code is what keeps a server from being promoted early: 1 means "not in the archive" to PostgreSQL, so it is
//! used only when the index proved that; everything else that is not success exits with 255, a panic too.

pub mod archive;
pub mod client;
pub mod compose;
pub mod pages;
pub mod server;
pub mod stage;

/// The socket's name in the staging directory.
pub const SOCKET: &str = "socket";
/// What a server says to a client that waits, as long as it works.
pub const WORKING: &str = "working";
/// The lock file's name in the staging directory: who holds it serves.
pub const LOCK: &str = "lock";
/// The log's name in the staging directory.
pub const LOG: &str = "wal-fetch.log";
/// The argument that makes the process a server.
pub const SERVE_ARGUMENT: &str = "--serve";
