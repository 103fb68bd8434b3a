//! What a repository holds, read back by the library while other processes write it or lie dead; and what the server was
//! told of it.

use super::pg::Pg;
use super::walden::Place;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use walden::base::{Anonymous, Env, Lsn, LsnRange, Scratch, SegmentSize, TimelineId, WalFileName};
use walden::codec::keyslot::Unlock;
use walden::disk::{OsEntropy, SystemClock};
use walden::format::frame::Codec;
use walden::net::{ConnectOptions, Connection, ConnectionKind};
use walden::receive::compact::{Compacted, Compactor, DeltaOptions, Extent};
use walden::repo::epochs::NearPages;
use walden::repo::walmap::Snapshot;
use walden::repo::walread::Reading;
use walden::repo::{Cluster, RepoError, Repository, WalReader, walmap};
use walden::store::{self, StoreOptions};
use zeroize::Zeroizing;

/// Every stored byte of `timeline` equals the server's files; returns the range, and how many bytes had a file to be held
/// against.
pub async fn compare(
    repo: &Arc<Repository>,
    cluster: &str,
    pg: &Pg,
    timeline: TimelineId,
    size: SegmentSize,
) -> (LsnRange, u64) {
    let cluster = Cluster::open(repo.clone(), cluster.parse().unwrap()).await.unwrap();
    let snapshot = walmap::load(&cluster).await.unwrap();
    let ranges = snapshot.wal.ranges(timeline);
    assert_eq!(ranges.len(), 1, "one range without holes: {ranges:?}");
    let range = ranges[0];
    let mut reader = WalReader::new(cluster, snapshot.wal);
    let mut at = range.start;
    let mut compared = 0;
    while at < range.end {
        let segment = size.segment_at(at);
        let part = LsnRange::new(at, segment.range(size).end.min(range.end));
        let stored = reader.read(timeline, part).await.unwrap();
        let name = WalFileName::segment(timeline, segment, size).to_string();
        if let Ok(file) = fs::read(pg.data_dir().join("pg_wal").join(&name)) {
            let from = at.bytes_since(segment.range(size).start) as usize;
            assert!(stored == file[from..from + stored.len()], "{name} differs");
            compared += stored.len() as u64;
        }
        at = part.end;
    }
    (range, compared)
}

/// A place's repository, opened in this process.
pub struct Archive {
    runtime: tokio::runtime::Runtime,
    repo: Arc<Repository>,
}

impl Archive {
    /// Opens the repository that `place` made in a directory.
    pub fn open(place: &Place) -> Archive {
        Archive::open_within(place, Arc::new(Anonymous))
    }

    /// The same, with other room for pages.
    pub fn open_within(place: &Place, scratch: Arc<dyn Scratch>) -> Archive {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = store::open(&place.repo, &StoreOptions::default()).unwrap();
        let passphrase = fs::read_to_string(place.path("passphrase")).unwrap();
        let unlock = Unlock::Passphrase(Zeroizing::new(passphrase.trim_end().to_owned()));
        let env = Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch };
        let repo = runtime.block_on(Repository::open(store, &unlock, env)).unwrap();
        Archive { runtime, repo: Arc::new(repo) }
    }

    /// Compacts `cluster` as a receiver does, pass after pass.
    pub fn compactor(&self, cluster: &str, deltas: DeltaOptions) -> Compactor {
        let cluster = self.runtime.block_on(Cluster::open(self.repo.clone(), cluster.parse().unwrap()));
        Compactor::new(cluster.unwrap(), Some(deltas))
    }

    /// All that was received.
    pub fn compact_all(&self, compactor: &mut Compactor) -> Compacted {
        self.runtime.block_on(compactor.compact(Extent::All)).unwrap()
    }

    /// What `cluster` holds now; none before anything was stored.
    pub fn snapshot(&self, cluster: &str) -> Option<Snapshot> {
        self.runtime.block_on(async {
            match Cluster::open(self.repo.clone(), cluster.parse().unwrap()).await {
                Ok(cluster) => Some(walmap::load(&cluster).await.unwrap()),
                Err(RepoError::NotFound { .. }) => None,
                Err(error) => panic!("{error}"),
            }
        })
    }

    /// One past the last durable byte; zero before anything was stored.
    pub fn durable_end(&self, cluster: &str) -> Lsn {
        let snapshot = self.snapshot(cluster);
        snapshot.and_then(|found| found.wal.durable_end()).map_or(Lsn::ZERO, |end| end.lsn)
    }

    /// All WAL of `timeline`, decoded with pages from `near` where it has them.
    pub fn read_near(&self, cluster: &str, timeline: TimelineId, near: Box<dyn NearPages>) -> Vec<u8> {
        self.runtime.block_on(async {
            let cluster = Cluster::open(self.repo.clone(), cluster.parse().unwrap()).await.unwrap();
            let snapshot = walmap::load(&cluster).await.unwrap();
            let range = snapshot.wal.ranges(timeline)[0];
            let mut reader = WalReader::new(cluster, snapshot.wal).with_near_pages(near);
            reader.read(timeline, range).await.unwrap()
        })
    }

    /// `range` of `timeline` as who reads here and there gets it, asked for piece by piece; up to the first error.
    pub fn read_parts(
        &self,
        cluster: &str,
        timeline: TimelineId,
        range: LsnRange,
        piece: u64,
    ) -> (Vec<u8>, Option<RepoError>) {
        self.runtime.block_on(async {
            let cluster = Cluster::open(self.repo.clone(), cluster.parse().unwrap()).await.unwrap();
            let snapshot = walmap::load(&cluster).await.unwrap();
            let mut reader = WalReader::reading(cluster, snapshot.wal, Reading::Parts);
            let (mut read, mut at) = (Vec::new(), range.start);
            while at < range.end {
                let part = LsnRange::new(at, at.saturating_add(piece).min(range.end));
                match reader.read_some(timeline, part).await {
                    Ok(bytes) => read.extend_from_slice(&bytes),
                    Err(error) => return (read, Some(error)),
                }
                at = range.start.saturating_add(read.len() as u64);
            }
            (read, None)
        })
    }

    /// The records of `timeline` from `from` on, part after part as they are read, up to `parts` of them.
    pub fn records(
        &self,
        cluster: &str,
        timeline: TimelineId,
        from: Option<Lsn>,
        parts: usize,
    ) -> Result<Vec<(Lsn, Bytes)>, RepoError> {
        self.runtime.block_on(async {
            let cluster = Cluster::open(self.repo.clone(), cluster.parse().unwrap()).await.unwrap();
            let snapshot = walmap::load(&cluster).await.unwrap();
            let range = snapshot.wal.ranges(timeline)[0];
            let mut reader = WalReader::reading(cluster, snapshot.wal, Reading::Records);
            let (mut at, mut read) = (from.unwrap_or(range.start), Vec::new());
            while at < range.end && read.len() < parts {
                let part = reader.read_some(timeline, LsnRange::new(at, range.end)).await?;
                let next = at.saturating_add(part.len() as u64);
                read.push((std::mem::replace(&mut at, next), part));
            }
            Ok(read)
        })
    }

    /// The delta frames of `timeline` that begin at `starts`.
    pub fn delta_frames(&self, cluster: &str, timeline: TimelineId, starts: &[Lsn]) -> Vec<Vec<u8>> {
        self.runtime.block_on(async {
            let cluster = Cluster::open(self.repo.clone(), cluster.parse().unwrap()).await.unwrap();
            let snapshot = walmap::load(&cluster).await.unwrap();
            let mut reader = WalReader::new(cluster, snapshot.wal);
            let mut frames = Vec::new();
            for start in starts {
                let (packed, _) = reader.packed_frame(timeline, *start).await.unwrap();
                frames.extend((packed.codec == Codec::Delta).then_some(packed.bytes));
            }
            frames
        })
    }

    /// As [`compare`]; every byte must have a file. The server keeps them all.
    pub fn compare(&self, cluster: &str, pg: &Pg, timeline: TimelineId, size: SegmentSize) -> LsnRange {
        let (range, compared) = self.runtime.block_on(compare(&self.repo, cluster, pg, timeline, size));
        assert_eq!(compared, range.len(), "the server kept its WAL");
        range
    }
}

/// What a server was told is flushed, by replication slot: looked at as often as it answers.
pub struct Told {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    looked: Mutex<BTreeMap<String, Lsn>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What was seen of one slot, look after look.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Where the slot was made: not our word.
    first: Lsn,
    newest: Lsn,
    /// The first time that less was said than before.
    back: Option<(Lsn, Lsn)>,
}

/// A slot keeps the last that it was told; its connection, while there is one, too.
const TOLD: &str = "SELECT coalesce(string_agg(s.slot_name || ' ' || greatest(s.restart_lsn, r.flush_lsn), ','), '') \
    FROM pg_replication_slots AS s LEFT JOIN pg_stat_replication AS r ON r.pid = s.active_pid \
    WHERE s.restart_lsn IS NOT NULL";

impl Told {
    /// Begins to look.
    pub fn watch(pg: &Pg) -> Told {
        let (seen, stop) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(AtomicBool::new(false)));
        let (to, stopping, conninfo) = (seen.clone(), stop.clone(), pg.conninfo());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let options = ConnectOptions::parse(&conninfo, &|_| None).unwrap();
                let mut sql = Connection::connect(&options, ConnectionKind::Sql, "told").await.unwrap();
                while !stopping.load(Ordering::Relaxed) {
                    // The server ends before the last look, now and then.
                    let Ok(row) = sql.query_one(TOLD).await else { return };
                    note(&mut to.lock().unwrap(), row.get(0).unwrap_or_default());
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            });
        });
        Told { seen, looked: Mutex::default(), stop, thread: Some(thread) }
    }

    /// Looks once more, after whoever told it is gone.
    pub fn look(&self, pg: &Pg) {
        self.looked.lock().unwrap().extend(told_in(&pg.sql(TOLD)));
    }

    /// The most that the server was ever told by way of `slot`; zero before anything was said. It was never told less
    /// afterwards.
    pub fn of(&self, slot: &str) -> Lsn {
        let Some(seen) = self.seen.lock().unwrap().get(slot).copied() else { return Lsn::ZERO };
        if let Some((from, to)) = seen.back {
            panic!("{slot} was told {from}, and then {to}");
        }
        let looked = self.looked.lock().unwrap().get(slot).copied();
        let newest = seen.newest.max(looked.unwrap_or(Lsn::ZERO));
        if newest > seen.first { newest } else { Lsn::ZERO }
    }
}

fn told_in(row: &str) -> impl Iterator<Item = (String, Lsn)> {
    let entries = row.split(',').filter_map(|entry| entry.split_once(' '));
    entries.map(|(slot, lsn)| (slot.to_owned(), lsn.parse().unwrap()))
}

fn note(seen: &mut BTreeMap<String, Seen>, row: &str) {
    for (slot, lsn) in told_in(row) {
        let known = seen.entry(slot).or_insert(Seen { first: lsn, newest: lsn, back: None });
        if lsn < known.newest && known.newest > known.first {
            known.back.get_or_insert((known.newest, lsn));
        }
        known.newest = known.newest.max(lsn);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
