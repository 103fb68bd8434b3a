//! Bytes that are not the WAL they should be.

use crate::base::Lsn;
use crate::format::FormatError;

/// Damage, or foreign bytes, at a place in the WAL. Reading goes on at the next page that starts a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("WAL at {at}: {what} is {found}, expected {expected}")]
pub struct WalError {
    /// The record's or page's start.
    pub at: Lsn,
    /// What is wrong.
    pub what: &'static str,
    /// What stands there.
    pub found: String,
    /// What should.
    pub expected: String,
}

impl WalError {
    /// An error at `at`.
    pub fn new(at: Lsn, what: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        WalError { at, what, found: found.to_string(), expected: expected.to_string() }
    }

    /// `error`, which a page or record at `at` gave.
    pub fn of(at: Lsn, error: FormatError) -> Self {
        WalError { at, what: error.what, found: error.found, expected: error.expected }
    }
}
