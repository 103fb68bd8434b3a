//! Chunks: which are stored and where, adding those that are not, reading many of them fast.
//! Spec: formats/manifest.md. A chunk is found by its id alone; every byte read is checked against it.
//! Memory: 28 bytes a stored chunk (1 GiB per 10 TB), 16 a new one, and the bounds of writer and reader.

mod index;
mod reader;
mod writer;

pub use index::{ChunkIndex, Location, LostSegment};
pub use reader::ChunkReader;
pub use writer::{ChunkStats, ChunkWriter};

use crate::base::ChunkId;

/// The first bytes of a chunk's id. The id is a keyed hash: nobody finds two alike in half of it.
type Prefix = [u8; 16];

/// Sorted lists that share out all chunks by the first bits of their id, so that each stays small.
const SHARDS: usize = 4096;

fn prefix_of(id: &ChunkId) -> Prefix {
    let mut prefix = [0; 16];
    prefix.copy_from_slice(&id.0[..16]);
    prefix
}

/// The list that `prefix` belongs to: its first 12 bits.
fn shard_of(prefix: &Prefix) -> usize {
    usize::from(prefix[0]) << 4 | usize::from(prefix[1] >> 4)
}

#[cfg(test)]
pub(in crate::repo) mod bed;
#[cfg(test)]
mod tests;
