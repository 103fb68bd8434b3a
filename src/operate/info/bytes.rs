//! What a cluster's objects are good for, by a list of the store: in use, waiting for removal, or never committed.

use crate::base::{ObjectKey, StreamId};
use crate::format::index::RemovedKind;
use crate::repo::walmap::Snapshot;
use crate::repo::{Cluster, RepoError, layout};
use crate::store::ObjectMeta;
use std::collections::{HashMap, HashSet};

/// Bytes of a cluster's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// In use.
    pub live: u64,
    /// Not in use any more, kept for the grace period.
    pub waiting: u64,
    /// Flush objects among those.
    pub flushes_waiting: u64,
    /// Never committed.
    pub unreferenced: u64,
}

/// Lists and judges the objects of a cluster.
pub async fn usage(cluster: &Cluster, snapshot: &Snapshot) -> Result<Usage, RepoError> {
    let objects = cluster.repo().store().list(&layout::cluster_prefix(cluster.name())).await?;
    Ok(judge(&objects, &References::of(cluster, snapshot)))
}

/// What the newest root and its index name.
struct References {
    live: HashSet<ObjectKey>,
    waiting: HashSet<ObjectKey>,
    /// Streams with the least number in use.
    streams: HashMap<StreamId, u64>,
    roots_prefix: String,
    /// Whatever is of these kinds is in use: floors, generations, what was verified.
    kept: Vec<String>,
}

impl References {
    fn of(cluster: &Cluster, snapshot: &Snapshot) -> References {
        let name = cluster.name();
        let (root, index) = (&snapshot.root, &snapshot.index);
        let mut live: HashSet<ObjectKey> = index.objects.iter().map(|id| layout::index(name, *id)).collect();
        live.insert(layout::root(name, root.number));
        live.extend(index.wal.iter().map(|entry| layout::segment(name, entry.id)));
        live.extend(index.pages.iter().map(|entry| layout::segment(name, entry.id)));
        live.extend(
            index.backups.iter().map(|entry| layout::manifest(name, &entry.id, entry.manifest_number)),
        );
        live.extend(root.pending.iter().map(|entry| layout::pending(name, entry.id)));
        let waiting = index.removed.iter().filter_map(|removed| match removed.kind {
            RemovedKind::Wal | RemovedKind::Pages => {
                removed.name.parse().ok().map(|id| layout::segment(name, id))
            }
            RemovedKind::Chunks => None,
            RemovedKind::Backup | RemovedKind::Manifest => layout::manifest_named(name, &removed.name),
        });
        let prefix = layout::cluster_prefix(name);
        References {
            live,
            waiting: waiting.collect(),
            streams: root.streams.iter().map(|stream| (stream.id, stream.low_water)).collect(),
            roots_prefix: layout::roots_prefix(name),
            kept: ["floors", "generations", "verifications"].map(|kind| format!("{prefix}/{kind}/")).to_vec(),
        }
    }
}

fn judge(objects: &[ObjectMeta], references: &References) -> Usage {
    let mut usage = Usage::default();
    // A fence is never removed: it is the last number of a stream that is not open any more.
    let mut last: HashMap<StreamId, u64> = HashMap::new();
    for (stream, number) in objects.iter().filter_map(|object| layout::parse_flush(&object.key)) {
        let newest = last.entry(stream).or_insert(number);
        *newest = number.max(*newest);
    }
    for object in objects {
        let key = object.key.as_str();
        let flush = layout::parse_flush(&object.key);
        let in_use = match flush {
            Some((stream, number)) => match references.streams.get(&stream) {
                Some(low_water) => number >= *low_water,
                None => last.get(&stream) == Some(&number),
            },
            None => {
                references.live.contains(&object.key)
                    || references.kept.iter().any(|kind| key.starts_with(kind))
            }
        };
        if in_use {
            usage.live += object.len;
        } else if let Some(_replaced) = flush {
            usage.waiting += object.len;
            usage.flushes_waiting += object.len;
        } else if references.waiting.contains(&object.key) || key.starts_with(&references.roots_prefix) {
            usage.waiting += object.len;
        } else {
            usage.unreferenced += object.len;
        }
    }
    usage
}
