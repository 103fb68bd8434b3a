//! What long work tells whoever watches. Libraries never print: a tool draws a bar, a test counts.

use std::fmt;

/// Watches one piece of work. Called from several tasks at once; returns at once.
pub trait Progress: Send + Sync + fmt::Debug {
    /// A stage begins: `reading files`, `waiting for WAL`. `bytes_total` is how long it is, when that is known;
    /// it may turn out wrong by what the server wrote meanwhile.
    fn stage(&self, name: &str, bytes_total: Option<u64>);

    /// `bytes` more of the stage are done.
    fn advance(&self, bytes: u64);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn stage(&self, _name: &str, _bytes_total: Option<u64>) {}

    fn advance(&self, _bytes: u64) {}
}
