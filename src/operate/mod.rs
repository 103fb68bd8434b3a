//! What stands between a person and the workflows: configuration, times as people write them, errors and exit codes.

pub mod analyze;
pub mod check;
pub mod clusters;
pub mod config;
pub mod daemon;
pub mod deletion;
pub mod exit;
pub mod failure;
pub mod info;
pub mod keys;
pub mod log;
pub mod own_wal;
pub mod retention;
pub mod settings;
pub mod units;
pub mod wal_get;
pub mod when;

pub use exit::Exit;
pub use failure::Failure;
