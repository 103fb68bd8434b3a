//! What an object is held against: checksums, lengths and place always; seals, chunk ids, page checksums and what the index says of it
//! with a key. Pure. What an earlier run proved may be held against its seals alone: they prove that it is the same, several times as fast.

use super::key_objects::judge_key_object;
use super::needs::{Needs, Use};
use super::rotation;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{BackupId, ChunkId, ClusterName, Lsn, ObjectId, ObjectKey, RepositoryId};
use crate::codec::check::check_without_key;
use crate::codec::read::{Expect, OpenObject};
use crate::codec::{Keyring, OpenError};
use crate::format::frame::Codec;
use crate::format::header::ObjectKind;
use crate::format::index::{BackupEntry, PagesEntry, WalEntry, without_relations};
use crate::format::manifest::ManifestMeta;
use crate::format::verification::VerifiedArc;
use crate::format::wal::WalMeta;
use crate::repo::{Repository, layout};
use crate::store::ObjectMeta;
use crate::wal::checksum::{PageVerdict, judge_page};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Damaged frames of one object that are told apart; of one with more, all count as damaged.
const FRAMES_TOLD_MAX: usize = 64;
/// Pages with a wrong checksum of one object that are looked into.
const SUSPECTS_MAX: usize = 64;

/// What the index says of the objects of a cluster, and what backups need of them.
#[derive(Debug)]
pub struct Expected {
    /// Compacted WAL.
    pub wal: HashMap<ObjectId, WalEntry>,
    /// Segments of chunks, with their numbers in the chunk index; none for one that is not in it.
    pub pages: HashMap<ObjectId, (PagesEntry, Option<usize>)>,
    /// Backups.
    pub backups: HashMap<BackupId, BackupEntry>,
    /// Which blocks chunks are.
    pub needs: Needs,
}

impl Expected {
    /// The backup whose manifest lies at `key`: one of another number than the index names is from before it was sealed anew.
    fn manifest(&self, name: &ClusterName, key: &ObjectKey) -> Option<&BackupEntry> {
        let entry = self.backups.get(&key.file_name().split('-').next()?.parse::<BackupId>().ok()?)?;
        (layout::manifest(name, &entry.id, entry.manifest_number) == *key).then_some(entry)
    }
}

/// What objects are held against.
#[derive(Debug)]
pub struct Judge {
    /// The keys, if there are any.
    pub repo: Option<Arc<Repository>>,
    /// The repository that the marker names, if it can be read.
    pub id: Option<RepositoryId>,
    /// Key epochs of which anything is there: what is sealed under another one is lost.
    pub epochs: BTreeSet<u32>,
    /// Of one cluster.
    pub expected: Option<(ClusterName, Expected)>,
    /// Of what was proved before only seals are looked at; none where that does not count.
    pub proved: Option<Proved>,
}

/// What earlier runs proved.
#[derive(Debug)]
pub struct Proved {
    /// What they read.
    pub arcs: Vec<VerifiedArc>,
    /// Places of it that were not proved.
    pub in_doubt: BTreeSet<u64>,
}

impl Proved {
    fn has(&self, meta: &ObjectMeta) -> bool {
        let place = rotation::place_of(&meta.key);
        !self.in_doubt.contains(&place)
            && rotation::read_at(&self.arcs, place, meta.modified_unix_micros).is_some()
    }
}

/// An object that is wrong.
#[derive(Debug, Clone)]
pub struct Damaged {
    /// What is wrong.
    pub reason: String,
    /// The frames that are wrong, while everything else of it can be read; none when nothing of it can be relied on.
    pub frames: Vec<usize>,
}

/// A page whose checksum is wrong, in a chunk that is as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// The object.
    pub key: ObjectKey,
    /// The chunk.
    pub chunk: ChunkId,
    /// The number of the backup.
    pub backup: usize,
    /// The block, counted from the start of the relation.
    pub block: u32,
    /// The LSN on it.
    pub lsn: Lsn,
}

/// How far to look into an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Its frames are as they were sealed.
    Seals,
    /// And hold what they should.
    Content,
}

/// What is wrong with an object.
pub(super) enum Wrong {
    Damaged(Damaged),
    /// It is sealed under an epoch that is there, and was not given to our slot.
    NoKey(String),
}

impl<T: Into<Damaged>> From<T> for Wrong {
    fn from(damaged: T) -> Wrong {
        Wrong::Damaged(damaged.into())
    }
}

impl From<String> for Damaged {
    fn from(reason: String) -> Damaged {
        Damaged { reason, frames: Vec::new() }
    }
}

impl Judge {
    /// How far to look into an object.
    pub(super) fn look(&self, meta: &ObjectMeta) -> Look {
        match &self.proved {
            Some(proved) if proved.has(meta) => Look::Seals,
            _ => Look::Content,
        }
    }

    /// Looks at one object. Keeps a core busy for as long as it takes to decompress it.
    pub(super) fn object(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        keys: Option<&Keyring>,
        look: Look,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(), Wrong> {
        if let Some(object) = layout::parse_key_object(key) {
            return Ok(judge_key_object(&object, &bytes, self.id)?);
        }
        let expect = Expect { repository: self.id, key: Some(key), kind: None };
        let Some(keys) = keys else {
            return match check_without_key(&bytes, &expect) {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string().into()),
            };
        };
        let len = bytes.len() as u64;
        let object = match OpenObject::open(bytes, keys, &expect) {
            Ok(object) => object,
            Err(error @ OpenError::NoKey { epoch }) if self.epochs.contains(&epoch) => {
                return Err(Wrong::NoKey(error.to_string()));
            }
            Err(error) => return Err(error.to_string().into()),
        };
        self.against_index(key, &object, len)?;
        let segment = self.segment_number(key);
        let (mut damaged, mut chunk) = (None::<Damaged>, Vec::new());
        for (number, frame) in object.directory().frames.iter().enumerate() {
            let opened = match (frame.codec, look) {
                // It needs others of its epoch: here its seal is looked at, and decoding WAL does the rest.
                (Codec::Delta, _) | (_, Look::Seals) => object.packed_chunk(number).map(drop),
                (Codec::Raw | Codec::Zstd, Look::Content) => {
                    object.chunk_into(number, keys, &mut chunk).map(|()| {
                        if let Some(segment) = segment {
                            self.pages(key, (segment, number), frame.chunk, &chunk, suspects);
                        }
                    })
                }
            };
            if let Err(error) = opened {
                let damaged = damaged.get_or_insert_with(|| error.to_string().into());
                damaged.frames.push(number);
            }
        }
        match damaged {
            None => Ok(()),
            Some(many) if many.frames.len() > FRAMES_TOLD_MAX => {
                Err(Damaged { frames: Vec::new(), ..many }.into())
            }
            Some(damaged) => Err(damaged.into()),
        }
    }

    /// The number of a segment of chunks in the chunk index.
    fn segment_number(&self, key: &ObjectKey) -> Option<usize> {
        let (name, expected) = self.expected.as_ref()?;
        let id: ObjectId = key.file_name().parse().ok()?;
        let (_, number) = expected.pages.get(&id).filter(|_| *key == layout::segment(name, id))?;
        *number
    }

    /// Judges the pages of a chunk that is part of a relation.
    fn pages(
        &self,
        key: &ObjectKey,
        (segment, frame): (usize, usize),
        id: ChunkId,
        chunk: &[u8],
        suspects: &mut Vec<Suspect>,
    ) {
        let Some((_, expected)) = &self.expected else { return };
        let Some((Use { block, backup }, needs)) = expected.needs.use_of(segment, frame) else { return };
        let (pages, _) = chunk.as_chunks::<BLOCK_BYTES>();
        for (page, block) in pages.iter().zip(block..) {
            if judge_page(page, block, needs.start) == PageVerdict::Bad && suspects.len() < SUSPECTS_MAX {
                suspects.push(Suspect {
                    key: key.clone(),
                    chunk: id,
                    backup: usize::from(backup),
                    block,
                    lsn: crate::wal::checksum::page_lsn(page),
                });
            }
        }
    }

    /// Whether the object is what the index says of it.
    fn against_index(&self, key: &ObjectKey, object: &OpenObject, len: u64) -> Result<(), Damaged> {
        let Some((name, expected)) = &self.expected else { return Ok(()) };
        match object.header().kind {
            ObjectKind::WalSegment => {
                let Ok(id) = key.file_name().parse::<ObjectId>() else { return Ok(()) };
                let Some(entry) = expected.wal.get(&id).filter(|_| *key == layout::segment(name, id)) else {
                    return Ok(());
                };
                let meta: WalMeta = object.meta().map_err(|error| error.to_string())?;
                same("generation", &meta.generation, &entry.generation)?;
                same("timeline", &meta.timeline, &entry.timeline)?;
                same("start", &meta.start, &entry.start)?;
                same("end", &meta.end, &entry.end)?;
                // A copy of a source with heartbeats behind the segment says a later one.
                if entry.server_time < meta.server_time {
                    same("server time", &meta.server_time, &entry.server_time)?;
                }
                same("deltas", &Debugged(&meta.deltas), &Debugged(&entry.deltas))?;
                same("summary", &Debugged(&without_relations(&meta.summary)), &Debugged(&entry.summary))?;
                same("length", &len, &entry.object_len)
            }
            ObjectKind::PagesSegment => {
                let Ok(id) = key.file_name().parse::<ObjectId>() else { return Ok(()) };
                let Some((entry, _)) = expected.pages.get(&id) else { return Ok(()) };
                let frames = &object.directory().frames;
                let plain: u64 = frames.iter().map(|frame| u64::from(frame.plain_len)).sum();
                same("count of chunks", &(frames.len() as u64), &u64::from(entry.chunk_count))?;
                same("sum of chunks", &plain, &entry.plain_bytes)?;
                same("length", &len, &entry.object_len)
            }
            ObjectKind::Manifest => {
                let Some(entry) = expected.manifest(name, key) else { return Ok(()) };
                let meta: ManifestMeta = object.meta().map_err(|error| error.to_string())?;
                same("timeline", &meta.timeline, &entry.timeline)?;
                same("redo", &meta.redo, &entry.redo)?;
                same("start", &meta.start, &entry.start)?;
                same("stop", &meta.stop, &entry.stop)?;
                same("generation", &meta.generation, &entry.generation)?;
                same("sum of files", &meta.bytes_raw, &entry.bytes_raw)?;
                same("length", &len, &entry.manifest_len)
            }
            ObjectKind::Flush
            | ObjectKind::Fence
            | ObjectKind::LogicalSegment
            | ObjectKind::Index
            | ObjectKind::Root
            | ObjectKind::Floor
            | ObjectKind::Generation
            | ObjectKind::Pending
            | ObjectKind::Journal
            | ObjectKind::Verification => Ok(()),
        }
    }
}

/// What has no form for people.
#[derive(PartialEq)]
struct Debugged<T>(T);

impl<T: std::fmt::Debug> std::fmt::Display for Debugged<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = format!("{:?}", self.0);
        if let Some((end, _)) = text.char_indices().nth(200) {
            text.truncate(end);
            text.push('…');
        }
        f.write_str(&text)
    }
}

fn same<T: PartialEq + std::fmt::Display>(what: &str, object: &T, index: &T) -> Result<(), Damaged> {
    if object == index {
        return Ok(());
    }
    Err(format!("its {what} is {object}, and the index says {index}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::checksum::page_checksum;

    #[test]
    fn pages_are_judged_by_their_place_in_the_relation_and_the_start_of_the_backup() {
        let (name, key): (ClusterName, _) =
            ("shop".parse().unwrap(), layout::segment(&"shop".parse().unwrap(), ObjectId([1; 16])));
        let start = Lsn::new(0x300_0000);
        let judge = |block| Judge {
            repo: None,
            id: None,
            epochs: BTreeSet::new(),
            expected: Some((
                name.clone(),
                Expected {
                    wal: HashMap::new(),
                    pages: HashMap::new(),
                    backups: HashMap::new(),
                    needs: Needs::of_one_chunk(block, start),
                },
            )),
            proved: None,
        };
        // Block 7 is right, block 8 was changed after the start and is torn, block 9 is new, block 10 is wrong.
        let page = |lsn: u64, block: u32| {
            let mut page = [3; BLOCK_BYTES];
            page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
            page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
            let sum = page_checksum(&page, block);
            page[8..10].copy_from_slice(&sum.to_le_bytes());
            page
        };
        let (mut torn, mut wrong) = (page(0x300_0000, 8), page(0x200_0000, 10));
        torn[5000] ^= 1;
        wrong[5000] ^= 1;
        let chunk = [page(0x200_0000, 7), torn, [0; BLOCK_BYTES], wrong].concat();
        let suspects = |first: u32| {
            let mut suspects = Vec::new();
            judge(first).pages(&key, (0, 0), ChunkId([2; 32]), &chunk, &mut suspects);
            suspects.iter().map(|suspect| suspect.block).collect::<Vec<_>>()
        };
        assert_eq!(suspects(7), [10]);
        assert_eq!(
            suspects(8),
            [8, 11],
            "elsewhere nothing but what was changed since, and what is new, fits"
        );
    }

    #[test]
    fn a_manifest_is_held_against_the_index_by_its_number_too() {
        let (name, id): (ClusterName, BackupId) =
            ("shop".parse().unwrap(), "20261122T195501Z".parse().unwrap());
        let lsn = Lsn::new(0x300_0000);
        let at = crate::base::Timestamp::from_micros(0);
        let entry = |manifest_number| BackupEntry {
            id: id.clone(),
            generation: crate::base::Generation(1),
            timeline: crate::base::TimelineId(1),
            redo: lsn,
            start: lsn,
            stop: lsn,
            started_at: at,
            stopped_at: at,
            bytes_raw: 0,
            bytes_stored: 0,
            bytes_new: 0,
            manifest_len: 0,
            manifest_number,
            damaged_blocks: 0,
            root: 0,
            state: crate::format::index::BackupState::Complete,
        };
        for (named, lies, held) in
            [(0, 0, true), (0, 12, false), (12, 0, false), (12, 12, true), (12, 11, false)]
        {
            let expected = Expected {
                wal: HashMap::new(),
                pages: HashMap::new(),
                backups: HashMap::from([(id.clone(), entry(named))]),
                needs: Needs::of_one_chunk(0, lsn),
            };
            let found = expected.manifest(&name, &layout::manifest(&name, &id, lies));
            assert_eq!(found.is_some(), held, "the index names {named}, {lies} lies there");
        }
    }
}
