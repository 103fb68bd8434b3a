//! Giving back a moment: which backup and which record to stop at, writing the data directory, and serving WAL to the
//! PostgreSQL that recovers it. Spec: engine.md, "Restore".
//!
//! The pure part: a [`target::Request`] is resolved against an [`resolve::Archive`] before a byte is written.

pub mod archive;
pub mod backup_manifest;
pub mod config_files;
pub mod decode;
pub mod error;
pub mod files;
pub mod generations;
pub mod host;
mod lost_end;
pub mod place;
pub mod plan;
pub mod recovery_file;
pub mod resolve;
pub mod run;
pub mod scan;
pub mod settings;
pub mod target;
pub mod wal_fetch;

pub use error::RestoreError;
pub use target::{Boundary, Request, Target, TargetAction, TimelineChoice};
