//! Pages whose checksum is wrong in a chunk that is as it was stored: which are damage. A page may have been torn when it was read, or
//! its file may have shrunk or gone meanwhile: then WAL between start and stop of the backup has all of it, or takes it away, and a
//! recovery never looks at it. What the backup itself calls damaged is no news. Looked into only when there is such a page.

use super::Finding;
use super::judge::Suspect;
use super::needs::Needs;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{ChunkId, LsnRange, ObjectKey, SegmentSize};
use crate::format::index::{BackupEntry, BackupState};
use crate::format::manifest::CHUNK_BYTES;
use crate::format::wal::RelationRef;
use crate::repo::backups::needed_wal;
use crate::repo::chunks::ChunkReader;
use crate::repo::manifest::Manifest;
use crate::repo::walmap::WalMap;
use crate::repo::{Cluster, RepoError, WalReader};
use crate::wal::checksum::{BLOCKS_PER_FILE, relation_file};
use crate::wal::record::rmgr;
use crate::wal::scan::DecodeFrom;
use crate::wal::{Decoder, Fact, Record};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;

/// The tablespaces that have no path of their own.
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;
/// XLOG_SMGR_TRUNCATE.
const INFO_TRUNCATE: u8 = 0x20;
/// SMGR_TRUNCATE_HEAP.
const TRUNCATE_HEAP: u32 = 1;
const MAIN_FORK: u8 = 0;

/// A block, by its file and by its relation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    path: String,
    block_in_file: u32,
    relation: RelationRef,
    fork: u8,
    block: u32,
}

/// What became of pages whose checksum is wrong.
#[derive(Debug, Default)]
pub struct Judged {
    /// Those that are damaged.
    pub findings: Vec<Finding>,
    /// Objects with some of which nothing can be said: WAL of the backup cannot be read, or it was removed meanwhile.
    pub undecided: Vec<ObjectKey>,
}

/// What is damaged of `suspects`.
pub async fn judge(
    cluster: &Cluster,
    map: &Arc<WalMap>,
    size: Option<SegmentSize>,
    backups: &[BackupEntry],
    needs: &Needs,
    chunks: &ChunkReader,
    suspects: &[Suspect],
) -> Result<Judged, RepoError> {
    let mut judged = Judged::default();
    for (number, (own, backup)) in needs.backups.iter().zip(backups).enumerate() {
        let of_backup: Vec<&Suspect> = suspects.iter().filter(|suspect| suspect.backup == number).collect();
        // Nothing is restored from a base: its pages are what deltas expect, as they are.
        if of_backup.is_empty() || backup.state == BackupState::Base {
            continue;
        }
        let undecided = || of_backup.iter().map(|suspect| suspect.key.clone());
        let mut found = match places(cluster, chunks, own, &of_backup).await {
            Ok(found) => found,
            // What is wrong with its manifest is told elsewhere; or it was removed since the index was read.
            Err(error) if error.is_damage() => {
                judged.undecided.extend(undecided());
                continue;
            }
            Err(error) => return Err(error),
        };
        found.retain(|(_, place)| !own.damaged.contains(&(place.path.clone(), place.block_in_file)));
        if !found.is_empty() && !excuse(cluster, map, size, backup, &mut found).await? {
            judged.undecided.extend(undecided());
            continue;
        }
        judged.findings.extend(found.into_iter().map(|(suspect, place)| Finding {
            key: suspect.key.to_string(),
            reason: format!(
                "block {} of {} in backup {}: its checksum is wrong (LSN {}), and no WAL of the backup replaces it",
                place.block_in_file, place.path, own.id, suspect.lsn
            ),
            cost: format!("that block in every backup that has it, {} first", own.id),
            backups: vec![own.id.clone()],
        }));
    }
    Ok(judged)
}

/// Where the backup has the suspects' chunks.
async fn places<'a>(
    cluster: &Cluster,
    chunks: &ChunkReader,
    own: &super::needs::BackupNeeds,
    suspects: &[&'a Suspect],
) -> Result<Vec<(&'a Suspect, Place)>, RepoError> {
    let manifest = Manifest::open(cluster, &own.id, own.manifest_number).await?;
    let mut by_chunk: HashMap<ChunkId, Vec<&'a Suspect>> = HashMap::new();
    for suspect in suspects {
        by_chunk.entry(suspect.chunk).or_default().push(suspect);
    }
    let mut found = Vec::new();
    let mut pages = std::pin::pin!(manifest.files(chunks));
    while let Some(files) = pages.next().await {
        // A page that is damaged is told of elsewhere.
        let Ok(files) = files else { continue };
        for entry in &files {
            let (Some(file), Some((relation, fork))) = (relation_file(&entry.path), relation_of(&entry.path))
            else {
                continue;
            };
            let Ok(runs) = manifest.runs(chunks, entry).await else { continue };
            let mut offset: u64 = 0;
            for run in runs {
                for (at, id) in (0u64..).zip(&run.chunks) {
                    let first = ((offset + at * CHUNK_BYTES as u64) / BLOCK_BYTES as u64) as u32;
                    for suspect in by_chunk.get(id).into_iter().flatten() {
                        let block_in_file = suspect.block.wrapping_sub(file.wrapping_mul(BLOCKS_PER_FILE));
                        if (first..first + (CHUNK_BYTES / BLOCK_BYTES) as u32).contains(&block_in_file) {
                            let (path, block) = (entry.path.clone(), suspect.block);
                            found.push((*suspect, Place { path, block_in_file, relation, fork, block }));
                        }
                    }
                }
                offset = offset.saturating_add(run.len);
            }
        }
    }
    Ok(found)
}

/// The relation and the fork of a relation's file.
fn relation_of(path: &str) -> Option<(RelationRef, u8)> {
    let parts: Vec<&str> = path.split('/').collect();
    let (tablespace, database, name) = match parts.as_slice() {
        ["global", name] => (GLOBAL_TABLESPACE, 0, name),
        ["base", database, name] => (DEFAULT_TABLESPACE, database.parse().ok()?, name),
        ["pg_tblspc", oid, _, database, name] => (oid.parse().ok()?, database.parse().ok()?, name),
        _ => return None,
    };
    let stem = name.split('.').next()?;
    let (relation, fork) = match stem.split_once('_') {
        None => (stem, 0),
        Some((relation, "fsm")) => (relation, 1),
        Some((relation, "vm")) => (relation, 2),
        Some((relation, "init")) => (relation, 3),
        Some(_) => return None,
    };
    Some((RelationRef { tablespace, database, relation: relation.parse().ok()? }, fork))
}

/// Takes out what WAL of the backup replaces or takes away. Whether that WAL could be read: if not, nothing can be said.
async fn excuse(
    cluster: &Cluster,
    map: &Arc<WalMap>,
    size: Option<SegmentSize>,
    backup: &BackupEntry,
    found: &mut Vec<(&Suspect, Place)>,
) -> Result<bool, RepoError> {
    let Some(size) = size.filter(|_| backup.generation == map.generation()) else { return Ok(false) };
    let needed = needed_wal(backup, size);
    let mut reader = WalReader::new(cluster.clone(), map.clone());
    let mut decoder = Decoder::new(size, needed.start, DecodeFrom::Anywhere);
    let mut at = needed.start;
    while at < needed.end && !found.is_empty() {
        let bytes = match reader.read_some(backup.timeline, LsnRange::new(at, needed.end)).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_damage() || matches!(error, RepoError::NotFound { .. }) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        decoder.feed(at, &bytes);
        at = at.saturating_add(bytes.len() as u64);
        loop {
            match decoder.next() {
                Ok(Some(record)) => found.retain(|(_, place)| !takes_away(&record, place)),
                Ok(None) => break,
                // Told of elsewhere.
                Err(_) => {}
            }
        }
    }
    Ok(true)
}

/// Whether replaying `record` leaves nothing of the page at `place`.
fn takes_away(record: &Record, place: &Place) -> bool {
    let whole = |block: &crate::wal::record::BlockRef| {
        block.will_init || block.image.is_some_and(|image| image.apply)
    };
    let mut blocks = record.blocks.iter();
    if blocks
        .any(|b| b.relation == place.relation && b.fork == place.fork && b.block == place.block && whole(b))
    {
        return true;
    }
    if record.header.rmgr == rmgr::SMGR && record.header.rmgr_info() == INFO_TRUNCATE {
        // xl_smgr_truncate: the new length of the main fork, the relation, and which forks are cut (storage_xlog.h). How long the
        // others become does not stand there: they are not excused by it.
        let (main, relation) = (record.main_data(), place.relation);
        let named = (main.u32(4), main.u32(8), main.u32(12));
        let cut = main.u32(16).is_some_and(|flags| flags & TRUNCATE_HEAP != 0)
            && main.u32(0).is_some_and(|blocks| place.block >= blocks);
        return place.fork == MAIN_FORK
            && cut
            && named == (Some(relation.tablespace), Some(relation.database), Some(relation.relation));
    }
    match Fact::of(record) {
        Ok(Some(Fact::Finished(finished))) => finished.dropped.contains(&place.relation),
        Ok(Some(Fact::DatabaseDropped { database, .. } | Fact::DatabaseCreated { database, .. })) => {
            database == place.relation.database
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Lsn, SystemId, TimelineId};
    use crate::wal::{Synth, WalVersion};

    #[test]
    fn files_name_their_relations() {
        let of = |tablespace, database, relation| RelationRef { tablespace, database, relation };
        for (path, relation, fork) in [
            ("base/5/16390", of(1663, 5, 16390), 0),
            ("base/5/16390.2", of(1663, 5, 16390), 0),
            ("base/5/16390_fsm", of(1663, 5, 16390), 1),
            ("base/5/16390_vm.1", of(1663, 5, 16390), 2),
            ("global/1262", of(1664, 0, 1262), 0),
            ("pg_tblspc/16400/PG_15_202209061/5/16390_init", of(16400, 5, 16390), 3),
        ] {
            assert_eq!(relation_of(path), Some((relation, fork)), "{path}");
        }
        assert_eq!(relation_of("pg_xact/0000"), None);
    }

    /// The records of a piece of synthetic WAL.
    fn records(make: impl FnOnce(&mut Synth)) -> Vec<Record> {
        let start = Lsn::new(0x100_0000);
        let mut synth = Synth::new(WalVersion::V15, SegmentSize::DEFAULT, SystemId(1), TimelineId(1), start);
        make(&mut synth);
        let mut decoder = Decoder::new(SegmentSize::DEFAULT, start, DecodeFrom::RecordStart(WalVersion::V15));
        decoder.feed(start, &synth.take());
        std::iter::from_fn(|| decoder.next().unwrap()).collect()
    }

    #[test]
    fn an_image_a_truncation_and_a_drop_take_a_page_away_and_a_change_does_not() {
        let image = records(|synth| {
            synth.page_image(700, 5);
        });
        let block = image[0].blocks[0];
        let place =
            Place { path: "base/5/1".into(), block_in_file: 5, relation: block.relation, fork: 0, block: 5 };
        let other = Place { block: 6, block_in_file: 6, ..place.clone() };
        assert!(takes_away(&image[0], &place) && !takes_away(&image[0], &other));
        let change = records(|synth| {
            synth.insert(700, 5, 50);
        });
        assert_eq!(change[0].blocks[0].relation, place.relation);
        assert!(!takes_away(&change[0], &place));
        let truncated = |blocks: u32, relation: &RelationRef, flags: u32| {
            let words = [blocks, relation.tablespace, relation.database, relation.relation, flags];
            let main = words.iter().flat_map(|word| u32::to_le_bytes(*word)).collect::<Vec<u8>>();
            records(|synth| {
                synth.main_record(rmgr::SMGR, INFO_TRUNCATE, 700, &main);
            })
            .remove(0)
        };
        // A relation of five blocks has none of number 5; one of six has it still.
        for (blocks, gone) in [(0, true), (4, true), (5, true), (6, false), (7, false)] {
            let record = truncated(blocks, &place.relation, 7);
            assert_eq!(takes_away(&record, &place), gone, "cut to {blocks} blocks");
            for fork in [1, 2, 3] {
                let other_fork = Place { fork, ..place.clone() };
                assert!(!takes_away(&record, &other_fork), "the length of fork {fork} does not stand there");
            }
        }
        assert!(!takes_away(&truncated(5, &place.relation, 6), &place), "the other forks alone are cut");
        let elsewhere = RelationRef { relation: 1, ..place.relation };
        assert!(!takes_away(&truncated(5, &elsewhere, 7), &place));
    }
}
