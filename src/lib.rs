//! walden: a WAL-archiving storage engine for PostgreSQL 14 to 18.
//!
//! # Code map
//!
//! Imports go strictly downward; rooms on one floor do not import each other.
//!
//! ```text
//! tools/walden/     the command line      tools/inspect/  dump any object
//!   operate         configuration, schedule
//!   receive  logical  backup  restore  retain  verify  serve      workflows: a pure plan or machine, and a driver
//!   repo            what the objects mean: layout, roots, keys, streams, chunks, coverage, time index
//!   store  disk  net      the only IO: objects; journal and data directory; PostgreSQL connections
//!   codec  wal  wire      bytes in, bytes out: compress and seal; pages and records; protocol messages
//!   format          segments, roots, manifests: headers, frames, directories (specs in formats/)
//!   base            LSN, timeline, WAL file names, ids, clock
//! ```

#![deny(clippy::unwrap_used, clippy::expect_used)]

pub mod base;
pub mod format;

pub mod codec;
pub mod wal;
pub mod wire;

pub mod disk;
pub mod net;
pub mod store;

pub mod repo;

pub mod backup;
pub mod receive;
pub mod restore;
pub mod retain;
pub mod verify;

pub mod operate;

#[doc(hidden)]
pub mod fuzzing;
