//! Reads what an index can be made of: manifests, the directories of segments, the chains of flush objects. Changes nothing.

use super::known::Known;
use super::rebuild::{Chunks, Found, FoundManifest, Inventory};
use super::{Options, Unreadable};
use crate::base::{LsnRange, ObjectId, ObjectKey, Progress};
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::root::Root;
use crate::format::wal::WalMeta;
use crate::repo::chain::{self, Losses};
use crate::repo::listed::{ListedSegment, manifest_of_name, open_listed_manifest, open_listed_segment};
use crate::repo::{Cluster, RepoError, layout};
use crate::store::StoreError;
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, HashSet};

/// Directories being read at once.
const DIRECTORIES_IN_FLIGHT: usize = 16;
/// Manifests being read at once: they are read whole.
const MANIFESTS_IN_FLIGHT: usize = 4;

/// Everything that lies there, beside what `known` says.
///
/// # Errors
/// An object whose key epoch is not held: it would be taken for nothing. A store that fails.
pub(super) async fn take(
    cluster: &Cluster,
    root: &Root,
    known: Known,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(Inventory, Vec<Unreadable>), RepoError> {
    let Known { index, unreadable, .. } = known;
    let inventory = Inventory { known: index, ..Inventory::default() };
    let mut taking = Taking { cluster, options, inventory, unreadable };
    // Manifests first: what they refer to was stored before them, and is among the segments that are listed afterwards.
    taking.manifests().await?;
    taking.segments(progress).await?;
    taking.chains(root).await?;
    let Taking { mut inventory, unreadable, .. } = taking;
    inventory.wal.sort_by_key(|found| found.id);
    inventory.pages.sort_by_key(|found| found.id);
    Ok((inventory, unreadable))
}

struct Taking<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    inventory: Inventory,
    unreadable: Vec<Unreadable>,
}

impl Taking<'_> {
    async fn manifests(&mut self) -> Result<(), RepoError> {
        let cluster = self.cluster;
        let listed = cluster.repo().store().list(&layout::manifests_prefix(cluster.name())).await?;
        let named = listed.into_iter().filter(|meta| manifest_of_name(cluster, &meta.key).is_some());
        let mut lens: BTreeMap<ObjectKey, u64> = named.map(|meta| (meta.key, meta.len)).collect();
        let known = &self.inventory.known.backups;
        let named: HashSet<ObjectKey> = known
            .iter()
            .map(|backup| layout::manifest(cluster.name(), &backup.id, backup.manifest_number))
            .collect();
        // A list may be late: what the index names is asked for by its name.
        for backup in known {
            let key = layout::manifest(cluster.name(), &backup.id, backup.manifest_number);
            lens.entry(key).or_insert(backup.manifest_len);
        }
        let reads = stream::iter(lens).map(|(key, len)| async move {
            let read = open_listed_manifest(cluster, &key, len).await;
            (key, len, read)
        });
        let mut reads = std::pin::pin!(reads.buffer_unordered(MANIFESTS_IN_FLIGHT));
        while let Some((key, object_len, read)) = reads.next().await {
            let Some((id, number)) = manifest_of_name(cluster, &key) else { continue };
            match read {
                Ok(meta) => self.inventory.manifests.push(FoundManifest { number, object_len, meta }),
                Err(error) if is_gone(&error) => {}
                Err(error) if error.is_damage() => {
                    let is_known = named.contains(&key);
                    if self.tell(key, &error, is_known) {
                        self.inventory.closed_manifests.insert((id, number));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn segments(&mut self, progress: &dyn Progress) -> Result<(), RepoError> {
        let cluster = self.cluster;
        let listed = cluster.repo().store().list(&layout::segments_prefix(cluster.name())).await?;
        progress.stage("reading directories", Some(listed.iter().map(|meta| meta.len).sum()));
        let mut lens: BTreeMap<ObjectKey, u64> =
            listed.into_iter().map(|meta| (meta.key, meta.len)).collect();
        let known = &self.inventory.known;
        let wal = known.wal.iter().map(|entry| (entry.id, entry.object_len));
        let named = wal.chain(known.pages.iter().map(|entry| (entry.id, entry.object_len)));
        let named: BTreeMap<ObjectId, u64> = named.collect();
        for (id, len) in &named {
            lens.entry(layout::segment(cluster.name(), *id)).or_insert(*len);
        }
        let reads = stream::iter(lens).map(|(key, len)| async move {
            let read = read_segment(cluster, &key, len).await;
            (key, len, read)
        });
        let mut reads = std::pin::pin!(reads.buffer_unordered(DIRECTORIES_IN_FLIGHT));
        while let Some((key, len, read)) = reads.next().await {
            progress.advance(len);
            let Ok(id) = key.file_name().parse::<ObjectId>() else { continue };
            match read {
                Ok(Segment::Wal(found)) => self.inventory.wal.push(*found),
                Ok(Segment::Pages(found)) => self.inventory.pages.push(found),
                Ok(Segment::Other) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) if error.is_damage() => {
                    if self.tell(key, &error, named.contains_key(&id)) {
                        self.inventory.closed_segments.insert(id);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The WAL of flush objects. Where a chain cannot be read, segments make up for it.
    async fn chains(&mut self, root: &Root) -> Result<(), RepoError> {
        for stream in &root.streams {
            let chain = chain::read(self.cluster, stream, Losses::PassedBy).await?;
            for object in &chain.objects {
                let range = LsnRange::new(object.meta.start, object.meta.end.max(object.meta.start));
                self.inventory.held.add((stream.generation, stream.timeline), range);
            }
            for lost in chain.lost {
                let error = RepoError::damage(&lost.key, lost.reason);
                self.unreadable.push(Unreadable::lead(lost.key, &error));
            }
        }
        Ok(())
    }

    /// Says that `key` does not open. Whether it stays named if it is known: unless it is to be left out.
    fn tell(&mut self, key: ObjectKey, error: &RepoError, is_known: bool) -> bool {
        let left_out = self.options.without.contains(key.file_name());
        self.unreadable.push(Unreadable::content(key, error, is_known, left_out));
        !left_out
    }
}

fn is_gone(error: &RepoError) -> bool {
    matches!(error, RepoError::Store(StoreError::NotFound { .. }))
}

/// What a segment turned out to be.
enum Segment {
    Wal(Box<Found<WalMeta>>),
    Pages(Found<Chunks>),
    Other,
}

async fn read_segment(cluster: &Cluster, key: &ObjectKey, len: u64) -> Result<Segment, RepoError> {
    let Some(opened) = open_listed_segment(cluster, key, len).await? else { return Ok(Segment::Other) };
    let ListedSegment { id, kind, object_len, directory_offset, directory } = opened;
    Ok(match kind {
        ObjectKind::WalSegment => {
            let what = WalMeta::decode(&directory.meta.0).map_err(|error| RepoError::damage(key, error))?;
            if what.end < what.start {
                let reason = format!("its range {}..{} runs backwards", what.start, what.end);
                return Err(RepoError::damage(key, reason));
            }
            Segment::Wal(Box::new(Found { id, object_len, directory_offset, what }))
        }
        _ => {
            let plain_bytes = directory.frames.iter().map(|frame| u64::from(frame.plain_len)).sum();
            let what = Chunks { count: directory.frames.len() as u32, plain_bytes };
            Segment::Pages(Found { id, object_len, directory_offset, what })
        }
    })
}
