//! Roots, floors, generations, pending entries: what makes up a cluster now. Spec: formats/root.md.

use super::record::{Blob, Extension, code, record};
use crate::base::{
    BackupId, ClusterName, Generation, Lsn, ObjectId, RepositoryId, StreamId, SystemId, TimelineId, Timestamp,
};

/// The most bytes a root's plaintext may take.
pub const ROOT_BYTES_MAX: usize = 16 << 10;

record! {
    /// What makes up a cluster now. Creating the next one is the only commit.
    pub struct Root {
        /// The cluster, repeated so that a root cannot stand in for another cluster's.
        pub cluster: ClusterName,
        /// Its number; the key's too.
        pub number: u64,
        /// When it was made, by its maker's clock; shown, never decided upon.
        pub made_at: Timestamp,
        /// The current generation.
        pub generation: Generation,
        /// The writer epoch: one more with every new stream.
        pub writer_epoch: u64,
        /// The floor known to its maker.
        pub floor: u64,
        /// Streams that hold WAL not yet compacted, oldest first; the last may be written to.
        pub streams: Vec<StreamEntry>,
        /// Flush objects that compaction replaced, and that collection has not removed yet.
        pub retired: Vec<RetiredFlush>,
        /// Work in progress that collection respects.
        pub pending: Vec<PendingEntry>,
        /// The newest index object; none in an empty cluster.
        pub index: Option<ObjectId>,
        /// When the cluster was deleted, by its maker's clock: nothing of it counts any more, and only the next generation's first
        /// root may follow.
        pub deleted_at: Option<Timestamp>,
        /// Later versions' fields.
        pub extensions: Vec<Extension>,
    }
}

/// The extension of a root that says when the index was made anew: the number of that root, a `u64`.
pub const EXTENSION_REBUILT: u16 = 1;
/// The extension of a copy's root that says what it is a copy of: a repository's id, and the cluster's name in it.
pub const EXTENSION_COPIED_FROM: u16 = 2;

/// The extension of a root that says on which timeline generations ended.
pub const EXTENSION_ENDED: u16 = 3;
/// Bytes of one of them: a generation, a timeline.
const ENDED_BYTES: usize = 8;

impl Root {
    /// The first root of `cluster`, in which nothing is.
    pub fn first(cluster: ClusterName, generation: Generation, made_at: Timestamp) -> Root {
        Root {
            cluster,
            number: 1,
            made_at,
            generation,
            writer_epoch: 0,
            floor: 0,
            streams: Vec::new(),
            retired: Vec::new(),
            pending: Vec::new(),
            index: None,
            deleted_at: None,
            extensions: Vec::new(),
        }
    }

    /// The root with which the index was last made anew out of what lay there (formats/index.md, "When it is lost"). A value that
    /// cannot be read counts as this root's number: then nothing that no index names is removed.
    pub fn rebuilt_at(&self) -> Option<u64> {
        let found = self.extensions.iter().find(|extension| extension.tag == EXTENSION_REBUILT)?;
        let number = found.value.0.as_slice().try_into().map(u64::from_le_bytes);
        Some(number.unwrap_or(self.number))
    }

    /// Says that the index was made anew with root `number`.
    pub fn set_rebuilt_at(&mut self, number: u64) {
        self.set_extension(EXTENSION_REBUILT, number.to_le_bytes().to_vec());
    }

    /// What the cluster was copied from, if it is a copy that says so.
    pub fn copied_from(&self) -> Option<(RepositoryId, ClusterName)> {
        let found = self.extensions.iter().find(|extension| extension.tag == EXTENSION_COPIED_FROM)?;
        let (id, name) = found.value.0.split_first_chunk()?;
        Some((RepositoryId(*id), std::str::from_utf8(name).ok()?.parse().ok()?))
    }

    /// Says what the cluster is a copy of.
    pub fn set_copied_from(&mut self, repository: RepositoryId, cluster: &ClusterName) {
        self.set_extension(EXTENSION_COPIED_FROM, [&repository.0, cluster.as_str().as_bytes()].concat());
    }

    /// The timeline that each generation was on when the next one began, as far as that is known.
    pub fn ended(&self) -> Vec<(Generation, TimelineId)> {
        let found = self.extensions.iter().find(|extension| extension.tag == EXTENSION_ENDED);
        let (each, rest) = found.map_or(&[][..], |found| &found.value.0).as_chunks::<ENDED_BYTES>();
        if !rest.is_empty() {
            return Vec::new();
        }
        let number = |bytes: &[u8; ENDED_BYTES], at: usize| {
            bytes
                .get(at..)
                .and_then(|bytes| bytes.first_chunk())
                .map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        each.iter().map(|bytes| (Generation(number(bytes, 0)), TimelineId(number(bytes, 4)))).collect()
    }

    /// Says that `generation` was on `timeline` when the next one began; what was said of it before stays.
    pub fn set_ended(&mut self, generation: Generation, timeline: TimelineId) {
        let mut ended = self.ended();
        if ended.iter().any(|(known, _)| *known == generation) {
            return;
        }
        ended.push((generation, timeline));
        ended.sort_unstable();
        let bytes = ended.iter().flat_map(|(generation, timeline)| {
            [generation.0.to_le_bytes(), timeline.0.to_le_bytes()].concat()
        });
        self.set_extension(EXTENSION_ENDED, bytes.collect());
    }

    fn set_extension(&mut self, tag: u16, value: Vec<u8>) {
        match self.extensions.iter_mut().find(|extension| extension.tag == tag) {
            Some(known) => known.value = Blob(value),
            None => self.extensions.push(Extension { tag, value: Blob(value) }),
        }
    }
}

record! {
    /// One stream.
    pub struct StreamEntry {
        /// Its id.
        pub id: StreamId,
        /// Generation of the cluster it comes from.
        pub generation: Generation,
        /// The timeline it streams.
        pub timeline: TimelineId,
        /// The epoch of its writer.
        pub writer_epoch: u64,
        /// The least number that is not compacted.
        pub low_water: u64,
        /// Where that object starts; `None` while the stream has not got its number 0.
        pub low_water_lsn: Option<Lsn>,
        /// The BLAKE3 of the object before it, zero when there is none.
        pub low_water_link: [u8; 32],
        /// The key epoch of the object before it: its writer has not sealed under an older one since. 0 when there is none.
        pub low_water_key_epoch: u32,
    }
}

record! {
    /// Flush objects below a number, replaced by compacted WAL in a root.
    pub struct RetiredFlush {
        /// Their stream.
        pub stream: StreamId,
        /// The first number.
        pub from: u64,
        /// One past the last.
        pub to: u64,
        /// The root from which they are unreferenced: its Last-Modified starts the grace period.
        pub root: u64,
    }
}

code! {
    /// Kinds of pending work.
    pub enum PendingKind {
        /// A backup that writes segments.
        Backup = 1,
        /// A restore that reads them.
        Restore = 2,
        /// A compaction that writes segments.
        Compaction = 3,
        /// A collection that writes segments anew without what nothing refers to.
        Collection = 4,
    }
}

record! {
    /// Work in progress: its `pending/<id>` object's Last-Modified says how old it is.
    pub struct PendingEntry {
        /// Which.
        pub id: ObjectId,
        /// What kind.
        pub kind: PendingKind,
        /// The first root it may refer to.
        pub root: u64,
    }
}

record! {
    /// A `pending/<id>` object: who does the work, for people.
    pub struct Pending {
        /// Which.
        pub id: ObjectId,
        /// What kind.
        pub kind: PendingKind,
        /// When it began, by its maker's clock.
        pub began_at: Timestamp,
        /// The backup it makes or reads.
        pub backup: Option<BackupId>,
        /// Host and process, for people.
        pub holder: String,
    }
}

record! {
    /// The least root that stays. Never deleted.
    pub struct Floor {
        /// The cluster.
        pub cluster: ClusterName,
        /// Its number; the key's too.
        pub number: u64,
        /// The least root that stays.
        pub root: u64,
    }
}

record! {
    /// One generation of a cluster.
    pub struct GenerationRecord {
        /// The cluster.
        pub cluster: ClusterName,
        /// Which.
        pub generation: Generation,
        /// PostgreSQL's system identifier.
        pub system_id: SystemId,
        /// Its major version.
        pub major_version: u32,
        /// Bytes of a WAL segment.
        pub segment_size: u32,
        /// Bytes of a block, 8192.
        pub block_size: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_that_ended_are_told_in_order_and_once() {
        let mut root = Root::first("shop".parse().unwrap(), Generation(3), Timestamp::from_micros(0));
        assert_eq!(root.ended(), []);
        root.set_ended(Generation(2), TimelineId(7));
        root.set_ended(Generation(1), TimelineId(2));
        root.set_ended(Generation(2), TimelineId(9));
        assert_eq!(root.ended(), [(Generation(1), TimelineId(2)), (Generation(2), TimelineId(7))]);
        root.set_rebuilt_at(5);
        assert_eq!((root.rebuilt_at(), root.ended().len(), root.extensions.len()), (Some(5), 2, 2));
        let of_ended = |extension: &&mut Extension| extension.tag == EXTENSION_ENDED;
        root.extensions.iter_mut().find(of_ended).unwrap().value.0.pop();
        assert_eq!(root.ended(), [], "a value that is none says nothing");
    }
}
