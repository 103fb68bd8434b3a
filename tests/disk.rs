//! The simulated disk does what it says, and the journal survives it: whatever was said to be durable is there after any crash,
//! byte for byte; and what was damaged is said to be so.

mod common;

use bytes::Bytes;
use common::sim_disk::{DiskFaults, DiskOp, SimDisk};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use walden::base::{Entropy, Generation, Lsn, RepositoryId, StreamId, TimelineId, Timestamp};
use walden::codec::{ChunkIdKey, EpochSecret, KeySource};
use walden::disk::Disk;
use walden::disk::journal::{
    Journal, JournalError, JournalOptions, JournalPosition, JournalRecord, Recovery,
};

#[path = "disk/journal_crashes.rs"]
mod journal_crashes;
#[path = "disk/journal_damage.rs"]
mod journal_damage;
#[path = "disk/sim.rs"]
mod sim;

const DIR: &str = "/var/lib/walden/shop";

struct OneKey(EpochSecret, ChunkIdKey);

impl KeySource for OneKey {
    fn epoch_secret(&self, epoch: u32) -> Option<&EpochSecret> {
        (epoch == 0).then_some(&self.0)
    }

    fn chunk_id_key(&self) -> &ChunkIdKey {
        &self.1
    }
}

#[derive(Debug)]
struct Seeded(std::sync::Mutex<fastrand::Rng>);

impl Entropy for Seeded {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap().fill(buffer);
    }
}

async fn open_with(
    disk: &SimDisk,
    budget_bytes: u64,
    seed: u64,
) -> Result<(Journal, Recovery), JournalError> {
    let keys = Arc::new(OneKey(EpochSecret([1; 32]), ChunkIdKey([2; 32])));
    let entropy = Arc::new(Seeded(std::sync::Mutex::new(fastrand::Rng::with_seed(seed))));
    let (repository, cluster) = (RepositoryId([3; 16]), "shop".parse().unwrap());
    let options = JournalOptions { repository, cluster, budget_bytes };
    let (mut journal, recovery) =
        Journal::open(Arc::new(disk.clone()), Path::new(DIR), options, keys, entropy).await?;
    journal.begin_stream(StreamId([7; 16]), 5, Generation(1)).await?;
    Ok((journal, recovery))
}

async fn open(disk: &SimDisk) -> (Journal, Recovery) {
    open_with(disk, 1 << 20, 99).await.unwrap()
}

/// The byte of WAL at an LSN: any misplaced run is noticed.
fn wal_byte(lsn: u64) -> u8 {
    (lsn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u8
}

fn record(start: u64, len: u64) -> JournalRecord {
    JournalRecord {
        timeline: TimelineId(1),
        start: Lsn::new(start),
        server_time: Timestamp::from_micros(start as i64),
        wal: (start..start + len).map(wal_byte).collect(),
    }
}

fn at(lsn: u64) -> JournalPosition {
    JournalPosition { timeline: TimelineId(1), lsn: Lsn::new(lsn) }
}

/// Reads everything back, checks every byte, and returns the runs.
async fn runs(journal: &Journal) -> Vec<(u64, u64)> {
    let (mut reader, mut runs) = (journal.read_from(None), Vec::<(u64, u64)>::new());
    while let Some(found) = reader.next().await.unwrap() {
        let start = found.start.get();
        assert_eq!(found.wal, record(start, found.wal.len() as u64).wal, "other bytes at {}", found.start);
        let end = start + found.wal.len() as u64;
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}
