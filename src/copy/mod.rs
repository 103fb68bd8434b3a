//! Copying a cluster, or one backup with its WAL, into another repository with other keys. Commands: `walden copy`.
//!
//! **What is copied how.** Ids of chunks are keyed, so every chunk is read, checked against its id and named anew; what the destination
//! holds under that name is not stored again. Block maps, pages and manifests are made anew of these names. WAL goes over in its
//! segments: frames as they are packed, delta frames too, under new ids, for which their epochs are decoded. So the copy takes as
//! much room as what it is of, and every byte was proved on the way: by seal and id, delta frames by the hash of what they give.
//!
//! **Order.** Histories; then WAL in its order, each backup before the first WAL that it needs or that refers to it. A backup is
//! pending until its WAL is there (formats/index.md). So a copy that was cut short is a shorter archive, and a whole one. Gaps come with
//! the WAL behind them.
//!
//! **Again.** What is there is not copied again: [`plan`] compares both sides. An interrupted copy goes on, a finished one follows its
//! source when it is run again. WAL that is not compacted yet becomes plain segments, which the source's own take the place of once
//! it has compacted them. What the destination's retention let go does not come back.
//!
//! **Damage.** What the source cannot read is left out, and everything else is copied: see [`lost`] for WAL. A damaged backup is given up
//! at once when the damaged object is where it was, and read once more when it may have moved; chunks that were proved stay known.
//!
//! **Who else.** The copy is registered in the destination as a backup is, and its source as a restore is, where that may be written to;
//! where not, it looks again when something has moved. A copy that a receiver has written to is a cluster of its own: nothing is copied
//! into it any more. Nor is anything of another server put beside what is there: see `same`. Epochs that were copied have root 0, and end
//! where any backup is; backups that were copied have root 0, and end no epoch that begins later: so a receiver goes on behind the
//! copy, with an epoch of its own.

mod backup;
mod chunks;
mod destination;
pub mod error;
mod fit;
pub mod lost;
pub mod plan;
pub mod run;
mod same;
pub mod selection;
pub mod source;
pub mod stretch;
mod table;
mod units;
mod wal;

pub use error::CopyError;
pub use lost::Missing;
pub use run::{COMMIT_BYTES, Copied, CopyJob, CopyOptions, copy};
pub use selection::{BackupWal, Scope};
