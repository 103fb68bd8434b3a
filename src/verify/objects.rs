//! Objects as they lie: checksums, lengths and place always; seals, chunk ids, page checksums and what the index says of them with a key.
//! An object that is gone is passed over: following references finds out whether anybody misses it. One that the store does not give,
//! or that is sealed under a key epoch that the slot was not given, is told apart: nothing is said of it.
//! Memory: `READS_IN_FLIGHT` objects, of `OBJECT_BYTES_MAX` at most, and `SUSPECTS_ALL_MAX` pages.

use super::key_objects::{judge_key_object, repository_of};
use super::needs::{Needs, Use};
use crate::base::limits::{self, BLOCK_BYTES};
use crate::base::{BackupId, ChunkId, ClusterName, Lsn, ObjectId, ObjectKey, Progress, RepositoryId};
use crate::codec::check::check_without_key;
use crate::codec::read::{Expect, OpenObject};
use crate::codec::{Keyring, OpenError};
use crate::format::frame::{Codec, DIRECTORY_PLAIN_BYTES_MAX};
use crate::format::header::ObjectKind;
use crate::format::index::{BackupEntry, PagesEntry, WalEntry, without_relations};
use crate::format::manifest::ManifestMeta;
use crate::format::wal::WalMeta;
use crate::repo::layout;
use crate::repo::{RepoError, Repository};
use crate::store::{ObjectMeta, Store, StoreError};
use crate::wal::checksum::{PageVerdict, judge_page};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Objects being read at once: a segment takes up to 64 MiB of memory, compressed.
const READS_IN_FLIGHT: usize = 4;
/// Damaged frames of one object that are told apart; of one with more, all count as damaged.
const FRAMES_TOLD_MAX: usize = 64;
/// Pages with a wrong checksum of one object that are looked into.
const SUSPECTS_MAX: usize = 64;
/// Pages with a wrong checksum of all objects that are looked into.
const SUSPECTS_ALL_MAX: usize = 4096;
/// Bytes of the longest object that is read: as many as its frames and its directory may have, compressed badly, and then some.
const OBJECT_BYTES_MAX: u64 = limits::WAL_SEGMENT_BYTES_MAX + 2 * DIRECTORY_PLAIN_BYTES_MAX as u64;
/// Tries to read an object that the store does not give.
const TRIES_MAX: u32 = 4;
/// The wait before the second one; each is twice as long as the one before.
const TRY_WAIT: Duration = Duration::from_millis(250);
/// Objects that a store may fail to give before it is the store that fails.
const UNREAD_MAX: usize = 16;

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
    /// Objects with such pages that are not among them: there are too many.
    pub unjudged: BTreeSet<ObjectKey>,
    /// Objects that were listed and are gone.
    pub gone: HashSet<ObjectKey>,
    /// Objects that could not be looked at, and why: nothing is known of them.
    pub unread: Vec<Unread>,
    /// Objects that name another repository than the marker.
    pub foreign: u64,
}

impl Read {
    /// Adds what was read elsewhere.
    pub fn add(&mut self, other: Read) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.damaged.extend(other.damaged);
        for suspect in other.suspects {
            self.suspect(suspect);
        }
        self.unjudged.extend(other.unjudged);
        self.gone.extend(other.gone);
        self.unread.extend(other.unread);
        self.foreign += other.foreign;
    }

    fn suspect(&mut self, suspect: Suspect) {
        match self.suspects.len() < SUSPECTS_ALL_MAX {
            true => self.suspects.push(suspect),
            false => drop(self.unjudged.insert(suspect.key)),
        }
    }
}

/// An object of which nothing can be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Which.
    pub key: ObjectKey,
    /// What hinders.
    pub reason: String,
    /// Whose fault it is.
    pub fault: Fault,
}

/// Why an object could not be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store did not give it.
    Store,
    /// The key slot was not given the epoch that it is sealed under.
    Key,
}

/// What came of reading one object.
enum Got {
    Checked(Box<Checked>),
    Gone(ObjectKey),
    Unread(Unread),
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
    let mut failed = 0;
    while let Some(got) = reads.next().await {
        let checked = match got? {
            Got::Checked(checked) => *checked,
            Got::Gone(key) => {
                read.gone.insert(key);
                continue;
            }
            Got::Unread(unread) => {
                failed += usize::from(unread.fault == Fault::Store);
                if failed > UNREAD_MAX {
                    return Err(StoreError::Unknown { key: unread.key, reason: unread.reason }.into());
                }
                read.unread.push(unread);
                continue;
            }
        };
        read.objects += 1;
        read.bytes += checked.len;
        progress.advance(checked.len);
        read.foreign += u64::from(checked.says.is_some() && checked.says != judge.id);
        for suspect in checked.suspects {
            read.suspect(suspect);
        }
        match checked.verdict {
            Ok(()) => {}
            Err(Wrong::Damaged(damaged)) => read.damaged.push((checked.key, damaged)),
            Err(Wrong::NoKey(reason)) => {
                read.unread.push(Unread { key: checked.key, reason, fault: Fault::Key });
            }
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
    verdict: Result<(), Wrong>,
}

/// What is wrong with an object.
enum Wrong {
    Damaged(Damaged),
    /// It is sealed under an epoch that is there, and was not given to our slot.
    NoKey(String),
}

impl<T: Into<Damaged>> From<T> for Wrong {
    fn from(damaged: T) -> Wrong {
        Wrong::Damaged(damaged.into())
    }
}

async fn check(store: &dyn Store, judge: Arc<Judge>, meta: ObjectMeta) -> Result<Got, RepoError> {
    if meta.len > OBJECT_BYTES_MAX {
        let reason =
            format!("{} bytes, no object has more than {OBJECT_BYTES_MAX}; it was not read", meta.len);
        let (says, suspects, verdict) = (None, Vec::new(), Err(Damaged::from(reason).into()));
        return Ok(Got::Checked(Box::new(Checked { key: meta.key, len: 0, says, suspects, verdict })));
    }
    let bytes = match get(store, &meta.key).await {
        Ok(bytes) => bytes,
        // Collected since it was listed; what refers to it, if anything, is found out by following references.
        Err(StoreError::NotFound { key }) => return Ok(Got::Gone(key)),
        Err(StoreError::Unknown { key, reason }) => {
            return Ok(Got::Unread(Unread { key, reason, fault: Fault::Store }));
        }
        Err(error @ (StoreError::Unreadable { .. } | StoreError::Short { .. })) => {
            let (says, suspects) = (None, Vec::new());
            let verdict = Err(Damaged::from(error.to_string()).into());
            return Ok(Got::Checked(Box::new(Checked { key: meta.key, len: 0, says, suspects, verdict })));
        }
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
        Got::Checked(Box::new(Checked { key, len, says, suspects, verdict }))
    });
    Ok(checking.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic())))
}

/// The bytes of an object, asked for again while the store does not say whether it has them.
async fn get(store: &dyn Store, key: &ObjectKey) -> Result<Bytes, StoreError> {
    let mut wait = TRY_WAIT;
    for _ in 1..TRIES_MAX {
        match store.get(key).await {
            Err(StoreError::Unknown { .. }) => tokio::time::sleep(wait).await,
            other => return other,
        }
        wait *= 2;
    }
    store.get(key).await
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

    #[tokio::test]
    async fn what_is_too_long_for_an_object_is_named_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::LocalStore::open(dir.path()).unwrap();
        let judge = Arc::new(Judge { repo: None, id: None, epochs: BTreeSet::new(), expected: None });
        let key = ObjectKey::new("clusters/shop/segments/dump").unwrap();
        let meta = |len| ObjectMeta { key: key.clone(), len, modified_unix_micros: 0 };
        let metas = [meta(OBJECT_BYTES_MAX), meta(200 << 30)];
        let read = read(&store, &judge, metas.into_iter(), &crate::base::Unwatched).await.unwrap();
        // The first one was asked for, and is not there.
        assert_eq!((read.gone.len(), read.damaged.len(), read.bytes), (1, 1, 0));
        assert!(read.damaged[0].1.reason.contains("it was not read"), "{}", read.damaged[0].1.reason);
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
