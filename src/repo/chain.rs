//! The chain of flush objects of one stream: numbered without holes, each linked to the one before, ended by a fence.
//! Only what the chain covers from its low-water number on is durable. Spec: formats/wal.md.

use super::cluster::Cluster;
use super::error::RepoError;
use super::fences::FENCE_BYTES_MAX;
use super::layout;
use crate::base::{Lsn, ObjectKey, StreamId, limits};
use crate::codec::check::check_without_key;
use crate::codec::object::{Expect, OpenObject};
use crate::format::header::{ObjectHeader, ObjectKind};
use crate::format::root::StreamEntry;
use crate::format::wal::{FenceMeta, WalMeta};
use crate::store::StoreError;
use bytes::Bytes;
use futures_util::StreamExt;

/// One flush object of a chain, checked.
#[derive(Debug, Clone)]
pub struct ChainObject {
    /// Its number.
    pub number: u64,
    /// Its key.
    pub key: ObjectKey,
    /// What its directory says.
    pub meta: WalMeta,
    /// Its bytes in the store.
    pub object_len: u64,
    /// The BLAKE3 of the whole object.
    pub link: [u8; 32],
    /// The key epoch that it is sealed under.
    pub key_epoch: u32,
}

/// How a chain ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainEnd {
    /// At the first absent number: its writer may go on.
    Open {
        /// That number.
        next: u64,
    },
    /// At a fence: it is closed.
    Fenced {
        /// The fence's number.
        number: u64,
        /// Who closed it.
        fence: FenceMeta,
    },
}

/// The chain of one stream from its low-water number on.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The stream, as the root names it.
    pub stream: StreamEntry,
    /// Its objects.
    pub objects: Vec<ChainObject>,
    /// Where it ends.
    pub end: ChainEnd,
    /// Objects that were durable and are missing or damaged.
    pub lost: Vec<Lost>,
}

/// An object of a chain that was durable and cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Its number.
    pub number: u64,
    /// Its key.
    pub key: ObjectKey,
    /// What is wrong.
    pub reason: String,
    /// Whether it may be the fence: it is as short, and its header does not say what it is.
    pub may_be_fence: bool,
    /// Where the WAL before it ends, if there is any.
    pub from: Option<Lsn>,
    /// Where WAL begins again after it, if there is any.
    pub to: Option<Lsn>,
}

impl Chain {
    /// One past the last byte, when the stream has any object or a compacted past.
    pub fn end_lsn(&self) -> Option<Lsn> {
        self.objects.last().map(|object| object.meta.end).or(self.stream.low_water_lsn)
    }

    /// The link that the next object carries.
    pub fn end_link(&self) -> [u8; 32] {
        self.objects.last().map_or(self.stream.low_water_link, |object| object.link)
    }

    /// The number at which it ends: the next one, or the fence's.
    pub fn end_number(&self) -> u64 {
        match &self.end {
            ChainEnd::Open { next } => *next,
            ChainEnd::Fenced { number, .. } => *number,
        }
    }
}

/// What stands at a number of a stream.
#[derive(Debug)]
pub enum Numbered {
    /// A flush object.
    Flush(Box<OpenObject>),
    /// The fence.
    Fence(FenceMeta),
}

/// Opens what stands at `number` of `stream`, whose bytes were read from its key.
pub async fn open_numbered(
    cluster: &Cluster,
    stream: StreamId,
    number: u64,
    bytes: Bytes,
) -> Result<Numbered, RepoError> {
    let key = layout::flush(cluster.name(), stream, number);
    let repo = cluster.repo();
    let expect = Expect { repository: Some(repo.id()), key: Some(&key), kind: None };
    // All of it, so that damage is told of the object that has it, not of the one that is linked to it.
    let (header, _) = check_without_key(&bytes, &expect).map_err(|error| RepoError::open(&key, error))?;
    if header.owner != stream.0 || header.number != number {
        return Err(RepoError::damage(&key, "its header names another stream or number"));
    }
    let kind = match header.kind {
        ObjectKind::Fence => ObjectKind::Fence,
        _ => ObjectKind::Flush,
    };
    let object = repo.open_object(&key, kind, bytes).await?;
    match kind {
        ObjectKind::Fence => {
            Ok(Numbered::Fence(object.meta().map_err(|error| RepoError::open(&key, error))?))
        }
        _ => Ok(Numbered::Flush(Box::new(object))),
    }
}

/// What an object that is missing or damaged does to the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    /// The chain ends before it.
    End,
    /// It costs the WAL that it held.
    PassedBy,
}

/// The object at `number` is not there: what shows that it was, if anything does. An object so far ahead was written only after this
/// one was durable.
async fn later_than(
    cluster: &Cluster,
    stream: &StreamEntry,
    number: u64,
) -> Result<Option<ObjectKey>, RepoError> {
    let later = layout::flush(cluster.name(), stream.id, number + limits::FLUSHES_IN_FLIGHT_MAX as u64);
    Ok(exists(cluster, &later).await?.then_some(later))
}

async fn exists(cluster: &Cluster, key: &ObjectKey) -> Result<bool, RepoError> {
    match cluster.repo().store().head(key).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads the chain of `stream` to its end. What is lost of it is told by [`Chain::lost`]: objects that do not open, that are not linked to
/// the one before, or that are missing while much later ones are there.
pub async fn read(cluster: &Cluster, stream: &StreamEntry, losses: Losses) -> Result<Chain, RepoError> {
    let end = ChainEnd::Open { next: stream.low_water };
    let mut chain = Chain { stream: stream.clone(), objects: Vec::new(), end, lost: Vec::new() };
    let reads = futures_util::stream::iter(stream.low_water..)
        .map(|number| async move {
            let key = layout::flush(cluster.name(), stream.id, number);
            (number, cluster.repo().read(&key).await)
        })
        .buffered(limits::CHAIN_GETS_IN_FLIGHT);
    futures_util::pin_mut!(reads);
    while let Some((number, mut read)) = reads.next().await {
        let key = layout::flush(cluster.name(), stream.id, number);
        let mut reason = None;
        if read.as_ref().is_err_and(super::cluster::object_is_gone)
            && let Some(later) = later_than(cluster, stream, number).await?
        {
            // The writer may have gone on between the two looks.
            read = cluster.repo().read(&key).await;
            reason = Some(format!("it is missing, though {later} is there"));
        }
        let bytes = match (read, reason) {
            (Err(error), Some(reason)) if super::cluster::object_is_gone(&error) => {
                chain.lose(number, key, reason, false);
                if losses == Losses::PassedBy {
                    continue;
                }
                chain.end = ChainEnd::Open { next: number };
                break;
            }
            (Err(error), None) if super::cluster::object_is_gone(&error) => {
                chain.end = ChainEnd::Open { next: number };
                break;
            }
            (read, _) => read?,
        };
        // Nobody knows what a fence ended that cannot be read: its number stays taken, and nothing behind it counts.
        let header = ObjectHeader::decode(&bytes).map(|(header, _)| header.kind);
        let is_fence = header == Ok(ObjectKind::Fence);
        let may_be_fence = header.is_err() && bytes.len() as u64 <= FENCE_BYTES_MAX;
        match chain.add(cluster, number, bytes).await {
            Ok(false) => {}
            Ok(true) => break,
            Err(RepoError::Damage { reason, .. }) if !is_fence => {
                chain.lose(number, key, reason, may_be_fence);
                if losses == Losses::End {
                    chain.end = ChainEnd::Open { next: number };
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(chain)
}

impl Chain {
    /// Adds what stands at `number`, and says whether that ends the chain.
    async fn add(&mut self, cluster: &Cluster, number: u64, bytes: Bytes) -> Result<bool, RepoError> {
        let (stream, object_len) = (self.stream.id, bytes.len() as u64);
        match open_numbered(cluster, stream, number, bytes).await? {
            // Whatever it is linked to: an object before it may have been lost when it was made, and be back.
            Numbered::Fence(fence) => {
                self.end = ChainEnd::Fenced { number, fence };
                Ok(true)
            }
            Numbered::Flush(object) => {
                let key = layout::flush(cluster.name(), stream, number);
                let meta: WalMeta = object.meta().map_err(|error| RepoError::open(&key, error))?;
                let key_epoch = object.header().key_epoch;
                let next = ChainObject { number, key, meta, object_len, link: object.link(), key_epoch };
                check_link(self, &next)?;
                let from = self.lost.iter().rposition(|lost| lost.to.is_some()).map_or(0, |at| at + 1);
                self.lost.iter_mut().skip(from).for_each(|lost| lost.to = Some(next.meta.start));
                self.objects.push(next);
                Ok(false)
            }
        }
    }

    fn lose(&mut self, number: u64, key: ObjectKey, reason: String, may_be_fence: bool) {
        let from = self.end_lsn();
        self.lost.push(Lost { number, key, reason, may_be_fence, from, to: None });
    }

    /// Whether the object before `number` was read, or compacted: the next one is linked to it.
    fn reaches(&self, number: u64) -> bool {
        self.lost.last().is_none_or(|lost| lost.number + 1 != number)
    }
}

/// Number 0 of a stream begins anywhere; every later object continues where the one before ended.
fn check_link(chain: &Chain, next: &ChainObject) -> Result<(), RepoError> {
    let damage = |reason: String| Err(RepoError::damage(&next.key, reason));
    if next.meta.timeline != chain.stream.timeline {
        return damage(format!("timeline {}, its stream has {}", next.meta.timeline, chain.stream.timeline));
    }
    if next.meta.generation != chain.stream.generation {
        return damage(format!(
            "generation {}, its stream has {}",
            next.meta.generation, chain.stream.generation
        ));
    }
    if next.meta.end < next.meta.start {
        return damage(format!("its range {}..{} runs backwards", next.meta.start, next.meta.end));
    }
    if next.number == 0 {
        return Ok(());
    }
    if !chain.reaches(next.number) {
        return match chain.end_lsn() {
            Some(end) if next.meta.start < end => {
                damage(format!("starts at {}, an object before it ends at {end}", next.meta.start))
            }
            _ => Ok(()),
        };
    }
    if next.meta.previous_link != chain.end_link() {
        return damage("it is not linked to the object before it".into());
    }
    match chain.end_lsn() {
        Some(end) if end != next.meta.start => {
            damage(format!("starts at {}, the object before it ends at {end}", next.meta.start))
        }
        _ => Ok(()),
    }
}
