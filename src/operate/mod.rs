//! What stands between a person and the workflows: configuration, times as people write them, exit codes.

pub mod config;
pub mod settings;
pub mod units;
pub mod when;
