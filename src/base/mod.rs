//! The words everything else is written in: positions, timelines, WAL file names, ids, keys, time.
//! No IO, no clock, no chance: time and randomness come in through the traits of [`clock`].

pub mod clock;
pub mod crc32c;
pub mod ids;
pub mod key;
pub mod limits;
pub mod lsn;
pub mod planted;
pub mod progress;
pub mod scratch;
pub mod walfile;

pub use clock::{Clock, Entropy, Env, Timestamp};
pub use ids::{
    BackupId, ChunkId, ClusterName, Generation, ObjectId, RepositoryId, SlotName, StreamId, SystemId,
};
pub use key::ObjectKey;
pub use lsn::{Lsn, LsnRange, TimelineId};
pub use progress::{Progress, Unwatched};
pub use scratch::{Anonymous, Memory, Scratch};
pub use walfile::{SegmentNo, SegmentSize, WalFileName};
