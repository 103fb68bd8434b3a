//! Base backups: BASE_BACKUP's stream in; chunks, a manifest and an index entry out.
//! Machines without IO ([`tar`], [`cutter`], [`label`], [`config`]), and a driver beside them ([`run`]).
//! Spec: formats/manifest.md.

pub mod config;
pub mod cutter;
mod error;
mod intake;
pub mod label;
mod run;
mod source;
pub mod tar;
pub mod upstream;
mod wal;

pub use crate::net::Checkpoint;
pub use error::BackupError;
pub use run::{BackupJob, BackupOptions, BackupReport, run};
pub use source::BlockRead;
pub use wal::{EnsureWal, ReceiverElsewhere, WalFailure, is_durable};
