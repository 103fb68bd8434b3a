//! The journal on a real disk. What crashes do to it is tested on a simulated one, in tests/disk.rs.

use super::*;
use crate::base::LsnRange;
use crate::codec::ChunkIdKey;
use crate::disk::{OsDisk, OsEntropy};
use tempfile::TempDir;

struct OneKey(EpochSecret, ChunkIdKey);

impl KeySource for OneKey {
    fn epoch_secret(&self, epoch: u32) -> Option<&EpochSecret> {
        (epoch == 0).then_some(&self.0)
    }

    fn chunk_id_key(&self) -> &ChunkIdKey {
        &self.1
    }
}

const STREAM: StreamId = StreamId([7; 16]);

fn options(budget_bytes: u64) -> JournalOptions {
    let (repository, cluster) = (RepositoryId([3; 16]), "shop".parse().unwrap());
    JournalOptions { repository, cluster, budget_bytes }
}

async fn open(dir: &TempDir, budget_bytes: u64) -> (Journal, Recovery) {
    let keys = Arc::new(OneKey(EpochSecret([1; 32]), ChunkIdKey([2; 32])));
    let (disk, entropy) = (Arc::new(OsDisk), Arc::new(OsEntropy));
    let path = dir.path().join("journal");
    let (mut journal, found) =
        Journal::open(disk, &path, options(budget_bytes), keys, entropy).await.unwrap();
    journal.begin_stream(STREAM, 5, Generation(1)).await.unwrap();
    (journal, found)
}

fn record(start: u64, len: usize) -> JournalRecord {
    let wal = (start..start + len as u64).map(|at| (at % 251) as u8).collect::<Vec<_>>();
    JournalRecord {
        timeline: TimelineId(1),
        start: Lsn::new(start),
        server_time: Timestamp::from_micros(start as i64),
        wal: wal.into(),
    }
}

fn at(lsn: u64) -> JournalPosition {
    JournalPosition { timeline: TimelineId(1), lsn: Lsn::new(lsn) }
}

async fn read_all(journal: &Journal, from: Option<JournalPosition>) -> Vec<(u64, Vec<u8>)> {
    let (mut reader, mut runs) = (journal.read_from(from), Vec::<(u64, Vec<u8>)>::new());
    while let Some(record) = reader.next().await.unwrap() {
        match runs.last_mut() {
            Some((start, bytes)) if *start + bytes.len() as u64 == record.start.get() => {
                bytes.extend(&record.wal)
            }
            _ => runs.push((record.start.get(), record.wal.to_vec())),
        }
    }
    runs
}

#[tokio::test]
async fn what_was_appended_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, found) = open(&dir, 64 << 20).await;
    assert_eq!(found, Recovery::default());
    assert_eq!(journal.sync().await.unwrap(), None);
    for start in (1000..3_001_000).step_by(100_000) {
        journal.append(&record(start, 100_000)).await.unwrap();
    }
    assert_eq!(journal.sync().await.unwrap(), Some(at(3_001_000)));
    journal.append(&record(3_001_000, 10)).await.unwrap();
    assert_eq!((journal.synced(), journal.end()), (Some(at(3_001_000)), Some(at(3_001_010))));
    assert_eq!(read_all(&journal, None).await, [(1000, record(1000, 3_000_000).wal.to_vec())]);
    drop(journal);
    let (journal, found) = open(&dir, 64 << 20).await;
    assert_eq!(journal.end(), Some(at(3_001_000)));
    assert_eq!(found.found.len(), 1);
    assert_eq!(found.found[0].range, LsnRange::new(Lsn::new(1000), Lsn::new(3_001_000)));
    assert_eq!((found.found[0].stream, found.found[0].writer_epoch), (STREAM, 5));
    assert_eq!(
        read_all(&journal, Some(at(2_000_123))).await,
        [(2_000_123, record(2_000_123, 1_000_877).wal.to_vec())]
    );
}

#[tokio::test]
async fn files_are_numbered_filled_and_trimmed_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(&dir, 4 << 20).await;
    let mut start = 0;
    let full = loop {
        match journal.append(&record(start, 100_000)).await {
            Ok(()) => start += 100_000,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, JournalError::Full { .. }), "{full}");
    assert_eq!(journal.sync().await.unwrap(), Some(at(start)), "a full journal lost what it took");
    let names = || {
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path().join("journal")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names().len(), 4);
    journal.trim(at(900_000)).await.unwrap();
    assert_eq!(names().len(), 4, "a file went whose records are not all durable elsewhere");
    journal.trim(at(2_000_000)).await.unwrap();
    assert_eq!(names().len(), 3);
    journal.append(&record(start, 100_000)).await.unwrap();
    journal.trim(at(start)).await.unwrap();
    assert!(names().len() <= 2);
    let rest = read_all(&journal, None).await;
    assert_eq!(rest.last().map(|(start, bytes)| start + bytes.len() as u64), Some(start));
}

#[tokio::test]
async fn trimming_what_lies_before_a_reader_does_not_disturb_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(&dir, 4 << 20).await;
    for start in (0..2_500_000).step_by(100_000) {
        journal.append(&record(start, 100_000)).await.unwrap();
    }
    journal.sync().await.unwrap();
    assert!(journal.left.len() > 1);
    let read_to = journal.left[0].end.unwrap();
    let mut reader = journal.read_from(Some(read_to));
    journal.trim(read_to).await.unwrap();
    let next = reader.next().await.unwrap().unwrap();
    assert_eq!(next.start, read_to.lsn);
}

#[tokio::test]
async fn one_process_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&dir, 4 << 20).await;
    let keys = Arc::new(OneKey(EpochSecret([1; 32]), ChunkIdKey([2; 32])));
    let path = dir.path().join("journal");
    let again = Journal::open(Arc::new(OsDisk), &path, options(4 << 20), keys, Arc::new(OsEntropy)).await;
    assert!(matches!(again, Err(JournalError::Busy { .. })));
    drop(journal);
    open(&dir, 4 << 20).await;
}

#[tokio::test]
async fn another_cluster_or_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(&dir, 4 << 20).await;
    journal.append(&record(0, 100)).await.unwrap();
    journal.finish().await.unwrap();
    for (cluster, secret) in [("other", 1), ("shop", 9)] {
        let keys = Arc::new(OneKey(EpochSecret([secret; 32]), ChunkIdKey([2; 32])));
        let options = JournalOptions { cluster: cluster.parse().unwrap(), ..options(4 << 20) };
        let path = dir.path().join("journal");
        let refused = Journal::open(Arc::new(OsDisk), &path, options, keys, Arc::new(OsEntropy)).await;
        assert!(matches!(refused, Err(JournalError::Closed { .. })), "{cluster} {secret}");
    }
}

#[tokio::test]
async fn timelines_and_jumps_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(&dir, 4 << 20).await;
    journal.append(&record(100, 50)).await.unwrap();
    journal.append(&record(1000, 50)).await.unwrap();
    journal.append(&JournalRecord { timeline: TimelineId(2), ..record(800, 50) }).await.unwrap();
    journal.finish().await.unwrap();
    let (_, found) = open(&dir, 4 << 20).await;
    let runs: Vec<_> =
        found.found.iter().map(|f| (f.timeline.0, f.range.start.get(), f.range.end.get())).collect();
    assert_eq!(runs, [(1, 100, 150), (1, 1000, 1050), (2, 800, 850)]);
    assert!(found.torn.is_empty());
}
