//! Objects as they lie: checksums, lengths and place always; seals, chunk ids, page checksums and what the index says of them with a key.
//! An object that is gone is passed over: following references finds out whether anybody misses it.
//! Memory: `READS_IN_FLIGHT` objects, of 64 MiB at most.

use super::needs::{Needs, Use};
use crate::base::limits::BLOCK_BYTES;
use crate::base::{BackupId, ChunkId, ClusterName, Lsn, ObjectId, ObjectKey, Progress, RepositoryId};
use crate::codec::Keyring;
use crate::codec::check::{check_header, check_without_key};
use crate::codec::read::{Expect, OpenObject};
use crate::format::envelope::PlainObject;
use crate::format::frame::Codec;
use crate::format::header::ObjectKind;
use crate::format::index::{BackupEntry, PagesEntry, WalEntry, without_relations};
use crate::format::keyslot::{Epoch, EpochSlot, KeySlot};
use crate::format::manifest::ManifestMeta;
use crate::format::wal::WalMeta;
use crate::repo::layout::{self, KeyObject};
use crate::repo::{RepoError, Repository};
use crate::store::{ObjectMeta, Store, StoreError};
use crate::wal::checksum::{PageVerdict, judge_page};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;

/// Objects being read at once: a segment takes up to 64 MiB of memory, compressed.
const READS_IN_FLIGHT: usize = 4;
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

/// What objects are held against.
#[derive(Debug)]
pub struct Judge {
    /// The keys, if there are any.
    pub repo: Option<Arc<Repository>>,
    /// The repository that the marker names, if it can be read.
    pub id: Option<RepositoryId>,
    /// Of one cluster.
    pub expected: Option<(ClusterName, Expected)>,
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

/// What reading gave.
#[derive(Debug, Default)]
pub struct Read {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that are wrong, and why.
    pub damaged: Vec<(ObjectKey, Damaged)>,
    /// Pages whose checksum is wrong.
    pub suspects: Vec<Suspect>,
    /// Objects that name another repository than the marker.
    pub foreign: u64,
}

impl Read {
    /// Adds what was read elsewhere.
    pub fn add(&mut self, other: Read) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.damaged.extend(other.damaged);
        self.suspects.extend(other.suspects);
        self.foreign += other.foreign;
    }
}

/// Reads and judges objects in order, several at a time; `metas` is asked for the next one only when it is begun.
pub async fn read(
    store: &dyn Store,
    judge: &Arc<Judge>,
    metas: impl Iterator<Item = ObjectMeta>,
    progress: &dyn Progress,
) -> Result<Read, RepoError> {
    let mut read = Read::default();
    let reads = futures_util::stream::iter(metas)
        .map(|meta| check(store, judge.clone(), meta))
        .buffer_unordered(READS_IN_FLIGHT);
    futures_util::pin_mut!(reads);
    while let Some(checked) = reads.next().await {
        let Some(checked) = checked? else { continue };
        read.objects += 1;
        read.bytes += checked.len;
        progress.advance(checked.len);
        read.foreign += u64::from(checked.says.is_some() && checked.says != judge.id);
        read.suspects.extend(checked.suspects);
        if let Err(damaged) = checked.verdict {
            read.damaged.push((checked.key, damaged));
        }
    }
    Ok(read)
}

/// An object that was read.
struct Checked {
    key: ObjectKey,
    len: u64,
    /// The repository that it names.
    says: Option<RepositoryId>,
    suspects: Vec<Suspect>,
    verdict: Result<(), Damaged>,
}

async fn check(store: &dyn Store, judge: Arc<Judge>, meta: ObjectMeta) -> Result<Option<Checked>, RepoError> {
    let bytes = match store.get(&meta.key).await {
        Ok(bytes) => bytes,
        // Collected since it was listed; what refers to it, if anything, is found out by following references.
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (key, len) = (meta.key, bytes.len() as u64);
    // What is sealed under an epoch that came while this reads has its epoch looked for.
    let keys = match &judge.repo {
        Some(repo) => Some(repo.keys_of(&bytes).await?),
        None => None,
    };
    // Checksums, seals and decompression keep a core busy: off the runtime's threads.
    let checking = tokio::task::spawn_blocking(move || {
        let says = repository_of(&key, &bytes);
        let mut suspects = Vec::new();
        let verdict = judge.object(&key, bytes, keys.as_deref(), &mut suspects);
        Some(Checked { key, len, says, suspects, verdict })
    });
    Ok(checking.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic())))
}

/// The repository that an object says it belongs to, if it says anything.
fn repository_of(key: &ObjectKey, bytes: &[u8]) -> Option<RepositoryId> {
    match layout::parse_key_object(key) {
        Some(KeyObject::Slot(_)) => KeySlot::from_object(bytes).ok().map(|slot| slot.repository),
        Some(KeyObject::Epoch(_)) => Epoch::from_object(bytes).ok().map(|epoch| epoch.repository),
        Some(KeyObject::EpochSlot(..)) => EpochSlot::from_object(bytes).ok().map(|epoch| epoch.repository),
        None => {
            let any = Expect { repository: None, key: None, kind: None };
            check_header(bytes, &any).ok().map(|(header, _)| header.repository)
        }
    }
}

impl From<String> for Damaged {
    fn from(reason: String) -> Damaged {
        Damaged { reason, frames: Vec::new() }
    }
}

impl Judge {
    fn object(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        keys: Option<&Keyring>,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(), Damaged> {
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
            Err(error) => return Err(error.to_string().into()),
        };
        self.against_index(key, &object, len)?;
        let segment = self.segment_number(key);
        let (mut damaged, mut chunk) = (None::<Damaged>, Vec::new());
        for (number, frame) in object.directory().frames.iter().enumerate() {
            let opened = match frame.codec {
                // It needs others of its epoch: here its seal is looked at, and decoding WAL does the rest.
                Codec::Delta => object.packed_chunk(number).map(drop),
                Codec::Raw | Codec::Zstd => object.chunk_into(number, keys, &mut chunk).map(|()| {
                    if let Some(segment) = segment {
                        self.pages(key, (segment, number), frame.chunk, &chunk, suspects);
                    }
                }),
            };
            if let Err(error) = opened {
                let damaged = damaged.get_or_insert_with(|| error.to_string().into());
                damaged.frames.push(number);
            }
        }
        match damaged {
            None => Ok(()),
            Some(many) if many.frames.len() > FRAMES_TOLD_MAX => Err(Damaged { frames: Vec::new(), ..many }),
            Some(damaged) => Err(damaged),
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
                same("server time", &meta.server_time, &entry.server_time)?;
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
                let Ok(id) = key.file_name().parse::<BackupId>() else { return Ok(()) };
                let Some(entry) = expected.backups.get(&id) else { return Ok(()) };
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

/// Slots and epochs are plain: they repeat where they belong.
fn judge_key_object(object: &KeyObject, bytes: &[u8], id: Option<RepositoryId>) -> Result<(), String> {
    let (repository, found) = match object {
        KeyObject::Slot(_) => {
            let slot = KeySlot::from_object(bytes).map_err(|error| error.to_string())?;
            (slot.repository, KeyObject::Slot(slot.name))
        }
        KeyObject::Epoch(_) => {
            let epoch = Epoch::from_object(bytes).map_err(|error| error.to_string())?;
            (epoch.repository, KeyObject::Epoch(epoch.epoch))
        }
        KeyObject::EpochSlot(..) => {
            let epoch = EpochSlot::from_object(bytes).map_err(|error| error.to_string())?;
            (epoch.repository, KeyObject::EpochSlot(epoch.epoch, epoch.slot))
        }
    };
    if id.is_some_and(|id| id != repository) {
        return Err(format!("its repository is {repository}"));
    }
    if found != *object {
        return Err(format!("it is {found:?}"));
    }
    Ok(())
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
            expected: Some((
                name.clone(),
                Expected {
                    wal: HashMap::new(),
                    pages: HashMap::new(),
                    backups: HashMap::new(),
                    needs: Needs::of_one_chunk(block, start),
                },
            )),
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
}
