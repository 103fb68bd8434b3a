//! walden: a WAL-archiving storage engine for PostgreSQL 14 to 18.
//!
//! # Code map
//!
//! Imports go strictly downward; rooms on one floor do not import each other (`tests/house.rs` holds the code to that).
//!
//! ```text
//! tools/walden/     the command line      tools/inspect/  dump any object
//!   operate         configuration, failures and exit codes, the daemon of one cluster
//!   receive  backup  restore  copy  retain  verify  rekey  repair     workflows: a pure plan or machine, and a driver
//!   repo            what the objects mean: layout, roots, streams, index, chunks, coverage
//!   store  disk  net      the only IO: objects; journal and host; PostgreSQL connections
//!   delta           raw WAL into columns and differences of images, and back
//!   codec  wal  wire      bytes in, bytes out: compress and seal; pages and records; protocol messages
//!   format          headers, frames, directories, records (specs in formats/)
//!   base            LSN, timeline, WAL file names, ids, clock
//! ```
//!
//! # Invariants
//!
//! - Objects are created if absent, never overwritten; every decision is the creation of a numbered object.
//! - Only the contiguous, linked prefix of a stream is acknowledged, and only when it is durable as configured.
//! - A stream has one writer; its successor fences it before it continues.
//! - Data, then index, then root; out of the root, grace, then deletion.
//! - A key seals one object; a nonce is used once under it.
//! - What is decoded is checked: seal, chunk id, length, place.
//!
//! # The way of one byte
//!
//! There: `net` reads it off the walsender, `receive::session` compares it with what is stored already and hands it to
//! `receive::pipeline`, which journals it if there is a journal; `receive::machine` decides when a flush object leaves,
//! `receive::seal` makes one with `codec`, linked to the one before, `repo::Repository::create` stores it and finds out for
//! certain that it is there; the machine moves the acknowledged position, and a task of its own tells the server.
//! `receive::compact` replaces flush objects by segments, in which `delta` makes WAL into columns and differences from pages that
//! `repo::BasePages` has of a backup or that came before; `retain::gc` removes the flush objects a grace period later.
//!
//! Back: `restore` resolves a target against `repo::WalMap`, writes files from `repo::chunks`, and leaves a
//! `restore_command`; PostgreSQL asks it for WAL segments, which `repo::WalReader` puts together from whatever holds them,
//! `repo::EpochDecoder` undoing the differences in order.

#![deny(clippy::unwrap_used, clippy::expect_used)]

pub mod base;
pub mod format;

pub mod codec;
pub mod wal;
pub mod wire;

pub mod delta;

pub mod disk;
pub mod net;
pub mod store;

pub mod repo;

pub mod backup;
pub mod copy;
pub mod receive;
pub mod rekey;
pub mod repair;
pub mod restore;
pub mod retain;
pub mod verify;

pub mod operate;

#[doc(hidden)]
pub mod fuzzing;
