//! Streams that lost roots named. Whoever took a cluster over had its stream named by a root before it wrote anything, so that a stream
//! with WAL that no root names was named by one that is lost, unless it is closed, compacted, and out of the root for that. A takeover
//! leaves its traces in the writer epoch of its objects, and in the fences that it made in the streams before.

use crate::base::limits::{CHAIN_GETS_IN_FLIGHT, FLUSHES_IN_FLIGHT_MAX};
use crate::base::{LsnRange, ObjectKey, StreamId};
use crate::codec::check::check_header;
use crate::codec::object::Expect;
use crate::format::header::{HEADER_BYTES, ObjectHeader, ObjectKind};
use crate::format::root::{Root, StreamEntry};
use crate::format::wal::WalMeta;
use crate::repo::chain::{self, Chain, ChainEnd, Losses, Numbered};
use crate::repo::cluster::object_is_gone;
use crate::repo::spans::Spans;
use crate::repo::{Cluster, RepoError, layout};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};

/// The numbers that are there, by stream.
pub(super) type Listed = BTreeMap<StreamId, BTreeSet<u64>>;

/// A stream that a lost root may have named, and of which no flush object opens: no root can name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadStream {
    /// Which.
    pub id: StreamId,
    /// What is wrong with the last of its flush objects.
    pub reason: String,
}

/// How a root names a stream.
enum Entry {
    Of(StreamEntry),
    /// None of its flush objects opens.
    Unread(String),
    /// It has no flush objects.
    Empty,
}

/// What chains say.
#[derive(Debug)]
pub(super) struct Streams {
    /// Streams that lost roots named, oldest first.
    pub found: Vec<StreamEntry>,
    /// Those that no root can name.
    pub unread: Vec<UnreadStream>,
    /// WAL of all streams, those that the root names too.
    pub held: Spans,
    /// The highest writer epoch that was seen; 0 when there was none.
    pub epoch_max: u64,
}

/// What there is of every stream.
pub(super) async fn list(cluster: &Cluster) -> Result<Listed, RepoError> {
    let mut listed = Listed::new();
    for meta in cluster.repo().store().list(&layout::flushes_prefix(cluster.name())).await? {
        if let Some((stream, number)) = layout::parse_flush(&meta.key) {
            listed.entry(stream).or_default().insert(number);
        }
    }
    Ok(listed)
}

/// Reads the chains of the streams that `root` names, and of those that it should: what was `listed`, and the successors that fences tell.
///
/// # Errors
/// A key epoch that is not held, a store that fails.
pub(super) async fn follow(cluster: &Cluster, root: &Root, listed: &Listed) -> Result<Streams, RepoError> {
    let mut known: BTreeSet<StreamId> = root.streams.iter().map(|stream| stream.id).collect();
    let unnamed: Vec<StreamId> = listed.keys().filter(|id| !known.contains(id)).copied().collect();
    let judged = stream::iter(unnamed).map(|id| async move {
        Ok::<_, RepoError>(may_be_lost(cluster, root, id, listed).await?.then_some(id))
    });
    let suspects: Vec<Option<StreamId>> = judged.buffer_unordered(CHAIN_GETS_IN_FLIGHT).try_collect().await?;
    let mut suspects: Vec<StreamId> = suspects.into_iter().flatten().collect();
    let (found, unread, held) = (Vec::new(), Vec::new(), Spans::default());
    let mut streams = Streams { found, unread, held, epoch_max: root.writer_epoch };
    for named in &root.streams {
        if let Some(chain) = read(cluster, named).await? {
            suspects.extend(streams.add(&chain));
        }
    }
    while let Some(id) = suspects.pop() {
        if !known.insert(id) {
            continue;
        }
        let entry = match entry_of(cluster, id, listed.get(&id)).await? {
            Entry::Of(entry) => entry,
            Entry::Unread(reason) if may_be_lost(cluster, root, id, listed).await? => {
                streams.unread.push(UnreadStream { id, reason });
                continue;
            }
            Entry::Unread(_) | Entry::Empty => continue,
        };
        let chain = read(cluster, &entry).await?;
        let is_open = match &chain {
            Some(chain) => matches!(chain.end, ChainEnd::Open { .. }),
            None => may_be_lost(cluster, root, id, listed).await?,
        };
        // Named whether or not its chain can be read: whoever reads it says what is lost of it, and a stream that no root names is
        // missed by nobody.
        if entry.writer_epoch > root.writer_epoch || is_open {
            streams.epoch_max = streams.epoch_max.max(entry.writer_epoch);
            suspects.extend(chain.and_then(|chain| streams.add(&chain)));
            streams.found.push(entry);
        }
    }
    streams.found.sort_by_key(|stream| (stream.writer_epoch, stream.id));
    Ok(streams)
}

impl Streams {
    /// Adds what a chain holds; says which stream followed it.
    fn add(&mut self, chain: &Chain) -> Option<StreamId> {
        let place = (chain.stream.generation, chain.stream.timeline);
        for object in &chain.objects {
            self.held.add(place, LsnRange::new(object.meta.start, object.meta.end.max(object.meta.start)));
        }
        self.epoch_max = self.epoch_max.max(chain.stream.writer_epoch);
        let ChainEnd::Fenced { fence, .. } = &chain.end else { return None };
        self.epoch_max = self.epoch_max.max(fence.writer_epoch);
        Some(fence.successor)
    }
}

/// A chain; `None` when it does not read to its end: a fence that is damaged, an object on a bad sector. Then nobody can say what
/// followed it.
async fn read(cluster: &Cluster, stream: &StreamEntry) -> Result<Option<Chain>, RepoError> {
    match chain::read(cluster, stream, Losses::PassedBy).await {
        Ok(chain) => Ok(Some(chain)),
        Err(error) if error.is_damage() => {
            tracing::error!(%error, "stream {} does not read to its end, and nobody can say what followed it", stream.id);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether a stream that `root` does not name holds WAL that counts, by the headers of its first and last objects. What is left of a
/// stream that is done with is its fence, perhaps objects that wait for collection before it, or void ones above it.
async fn may_be_lost(
    cluster: &Cluster,
    root: &Root,
    stream: StreamId,
    listed: &Listed,
) -> Result<bool, RepoError> {
    let numbers: Vec<u64> = listed.get(&stream).into_iter().flatten().copied().collect();
    let read = async |number: Option<&u64>| match number {
        Some(number) => header(cluster, &layout::flush(cluster.name(), stream, *number)).await,
        None => Ok(None),
    };
    let is_fence =
        |header: &Option<ObjectHeader>| header.as_ref().is_some_and(|h| h.kind == ObjectKind::Fence);
    let first = read(numbers.first()).await?;
    if is_fence(&first) {
        return Ok(false);
    }
    if first.is_some_and(|header| header.writer_epoch > root.writer_epoch) {
        return Ok(true);
    }
    for number in numbers.iter().rev().take(FLUSHES_IN_FLIGHT_MAX + 1) {
        let header = read(Some(number)).await?;
        if is_fence(&header) {
            return Ok(header.is_some_and(|fence| fence.writer_epoch > root.writer_epoch));
        }
    }
    Ok(true)
}

/// The header of an object, if it is there and can be read.
async fn header(cluster: &Cluster, key: &ObjectKey) -> Result<Option<ObjectHeader>, RepoError> {
    let repo = cluster.repo();
    match repo.read_range(key, 0..HEADER_BYTES as u64).await {
        Ok(head) => {
            let expect = Expect { repository: Some(repo.id()), key: Some(key), kind: None };
            Ok(check_header(&head, &expect).ok().map(|(header, _)| header))
        }
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// How a root names `stream`, of which nothing is compacted: by the first of its flush objects that opens.
async fn entry_of(
    cluster: &Cluster,
    stream: StreamId,
    listed: Option<&BTreeSet<u64>>,
) -> Result<Entry, RepoError> {
    let first = BTreeSet::from([0]);
    let mut unread = None;
    for number in first.union(listed.unwrap_or(&first)) {
        match entry_by(cluster, stream, *number).await {
            Ok(Some(entry)) => return Ok(Entry::Of(entry)),
            Ok(None) => {}
            Err(error) if object_is_gone(&error) => {}
            Err(error) if error.is_damage() => unread = Some(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(unread.map_or(Entry::Empty, Entry::Unread))
}

/// How a root names `stream` by what stands at `number`; `None` for a fence.
async fn entry_by(
    cluster: &Cluster,
    stream: StreamId,
    number: u64,
) -> Result<Option<StreamEntry>, RepoError> {
    let key = layout::flush(cluster.name(), stream, number);
    let bytes = cluster.repo().read(&key).await?;
    let Numbered::Flush(object) = chain::open_numbered(cluster, stream, number, bytes).await? else {
        return Ok(None);
    };
    let meta: WalMeta = object.meta().map_err(|error| RepoError::open(&key, error))?;
    Ok(Some(StreamEntry {
        id: stream,
        generation: meta.generation,
        timeline: meta.timeline,
        writer_epoch: object.header().writer_epoch,
        low_water: 0,
        low_water_lsn: None,
        low_water_link: [0; 32],
        low_water_key_epoch: 0,
    }))
}
