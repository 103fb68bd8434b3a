//! The names of objects. Spec: formats/layout.md. No other module spells a key.

use crate::base::{BackupId, ClusterName, Generation, ObjectId, ObjectKey, SlotName, StreamId};

/// Keys are built of parts that are safe by their types.
fn key(text: String) -> ObjectKey {
    match ObjectKey::new(text) {
        Some(key) => key,
        None => unreachable!("every part of a key is of a type that allows only safe characters"),
    }
}

/// The repository's marker.
pub fn marker() -> ObjectKey {
    key("walden".to_owned())
}

/// The prefix of key slots and epochs.
pub const KEYS_PREFIX: &str = "keys";
/// The prefix of clusters.
pub const CLUSTERS_PREFIX: &str = "clusters";

/// A key slot.
pub fn slot(name: &SlotName) -> ObjectKey {
    key(format!("{KEYS_PREFIX}/{name}"))
}

/// The object that makes key epoch `epoch`. No slot has its name: they begin with a letter or digit.
pub fn epoch(epoch: u32) -> ObjectKey {
    key(format!("{KEYS_PREFIX}/epochs/{epoch}/_epoch"))
}

/// The secrets of key epoch `epoch`, sealed to slot `slot` after the epoch was made.
pub fn epoch_slot(epoch: u32, slot: &SlotName) -> ObjectKey {
    key(format!("{KEYS_PREFIX}/epochs/{epoch}/{slot}"))
}

/// The link of key epoch `epoch`: that it follows from the one before. It stays when the epoch is destroyed.
pub fn epoch_link(epoch: u32) -> ObjectKey {
    key(format!("{KEYS_PREFIX}/epochs/{epoch}/_link"))
}

/// What the part of a key under [`KEYS_PREFIX`] names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyObject {
    /// A slot.
    Slot(SlotName),
    /// An epoch, and whom it was given to when it was made.
    Epoch(u32),
    /// An epoch's secrets, for a slot that came later.
    EpochSlot(u32, SlotName),
    /// That an epoch follows from the one before.
    Link(u32),
}

/// Reads a key under [`KEYS_PREFIX`]; `None` for anything else.
pub fn parse_key_object(key: &ObjectKey) -> Option<KeyObject> {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    match parts.as_slice() {
        [KEYS_PREFIX, slot] => Some(KeyObject::Slot(slot.parse().ok()?)),
        [KEYS_PREFIX, "epochs", epoch, "_epoch"] => Some(KeyObject::Epoch(epoch.parse().ok()?)),
        [KEYS_PREFIX, "epochs", epoch, "_link"] => Some(KeyObject::Link(epoch.parse().ok()?)),
        [KEYS_PREFIX, "epochs", epoch, slot] => {
            Some(KeyObject::EpochSlot(epoch.parse().ok()?, slot.parse().ok()?))
        }
        _ => None,
    }
}

/// The cluster that an object belongs to.
pub fn cluster_of(key: &ObjectKey) -> Option<ClusterName> {
    let mut parts = key.as_str().split('/');
    (parts.next()? == CLUSTERS_PREFIX).then(|| parts.next()?.parse().ok()).flatten()
}

/// The prefix of everything of a cluster.
pub fn cluster_prefix(cluster: &ClusterName) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}")
}

/// A generation.
pub fn generation(cluster: &ClusterName, generation: Generation) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/generations/{:06}", generation.0))
}

/// A root.
pub fn root(cluster: &ClusterName, number: u64) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/roots/{number:020}"))
}

/// Whether `key` is of a root.
pub fn is_root(key: &ObjectKey) -> bool {
    matches!(key.as_str().split('/').collect::<Vec<_>>().as_slice(), [CLUSTERS_PREFIX, _, "roots", _])
}

/// The prefix of roots.
pub fn roots_prefix(cluster: &ClusterName) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}/roots")
}

/// A floor.
pub fn floor(cluster: &ClusterName, number: u64) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/floors/{number:020}"))
}

/// A flush object, or the fence that ends the stream.
pub fn flush(cluster: &ClusterName, stream: StreamId, number: u64) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/wal/{stream}/{number:020}"))
}

/// The prefix of flush objects of all streams.
pub fn flushes_prefix(cluster: &ClusterName) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}/wal")
}

/// The prefix of flush objects of one stream.
pub fn stream_prefix(cluster: &ClusterName, stream: StreamId) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}/wal/{stream}")
}

/// An index object.
pub fn index(cluster: &ClusterName, id: ObjectId) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/index/{id}"))
}

/// The prefix of index objects.
pub fn index_prefix(cluster: &ClusterName) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}/index")
}

/// Whether `key` is of an index object.
pub fn is_index(key: &ObjectKey) -> bool {
    matches!(key.as_str().split('/').collect::<Vec<_>>().as_slice(), [CLUSTERS_PREFIX, _, "index", _])
}

/// A segment: compacted WAL, chunks, logical changes.
pub fn segment(cluster: &ClusterName, id: ObjectId) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/segments/{id}"))
}

/// The prefix of segments.
pub fn segments_prefix(cluster: &ClusterName) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}/segments")
}

/// Where all segments are, for errors about what is in none of them.
pub fn segments(cluster: &ClusterName) -> ObjectKey {
    key(segments_prefix(cluster))
}

/// The manifest object `number` of a backup.
pub fn manifest(cluster: &ClusterName, id: &BackupId, number: u32) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/backups/{}", manifest_name(id, number)))
}

/// The last part of the name of a backup's manifest object `number`.
pub fn manifest_name(id: &BackupId, number: u32) -> String {
    match number {
        0 => id.to_string(),
        _ => format!("{id}-{number}"),
    }
}

/// The manifest object whose last part of its name is `name`.
pub fn manifest_named(cluster: &ClusterName, name: &str) -> Option<ObjectKey> {
    let (id, number) = match name.split_once('-') {
        Some((id, number)) => (id, number.parse().ok()?),
        None => (name, 0),
    };
    Some(manifest(cluster, &id.parse().ok()?, number))
}

/// The prefix of manifests.
pub fn manifests_prefix(cluster: &ClusterName) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}/backups")
}

/// Work in progress.
pub fn pending(cluster: &ClusterName, id: ObjectId) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/pending/{id}"))
}

/// The prefix of work in progress.
pub fn pending_prefix(cluster: &ClusterName) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}/pending")
}

/// What verification found.
pub fn verification(cluster: &ClusterName, number: u64) -> ObjectKey {
    key(format!("{CLUSTERS_PREFIX}/{cluster}/verifications/{number:020}"))
}

/// The prefix of what verification found.
pub fn verifications_prefix(cluster: &ClusterName) -> String {
    format!("{CLUSTERS_PREFIX}/{cluster}/verifications")
}

/// Reads `clusters/<name>/wal/<stream>/<number>`.
pub fn parse_flush(key: &ObjectKey) -> Option<(StreamId, u64)> {
    let mut parts = key.as_str().rsplit('/');
    let number = parts.next()?.parse().ok()?;
    let stream = parts.next()?.parse().ok()?;
    (parts.next()? == "wal").then_some((stream, number))
}

/// A throw-away object: the probe of conditional creates, and the store's clock.
pub fn probe(name: &str) -> ObjectKey {
    assert!(!name.contains('/'), "a probe is one part");
    key(format!("probe/{name}"))
}
