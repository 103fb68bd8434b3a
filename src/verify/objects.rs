//! Every object of a repository as it lies: checksums, lengths and place always; seals and chunk ids with a key.

use crate::base::{ObjectKey, Progress, RepositoryId};
use crate::codec::Keyring;
use crate::codec::check::{check_header, check_without_key};
use crate::codec::read::{Expect, OpenObject};
use crate::format::envelope::PlainObject;
use crate::format::frame::Codec;
use crate::format::keyslot::{Epoch, EpochSlot, KeySlot};
use crate::format::marker::RepositoryMarker;
use crate::repo::layout::{self, KeyObject};
use crate::repo::{RepoError, Repository};
use crate::store::{ObjectMeta, Store, StoreError};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Objects being read at once: a segment takes up to 64 MiB of memory, compressed.
const READS_IN_FLIGHT: usize = 4;

/// What reading everything gave.
#[derive(Debug, Default)]
pub struct Read {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that are wrong, and why.
    pub damaged: Vec<(ObjectKey, String)>,
    /// Every object that was there.
    pub listed: BTreeSet<ObjectKey>,
}

/// Reads every object that a list shows; opens each when `repo` has the keys.
pub async fn read_all(
    store: &dyn Store,
    repo: Option<&Arc<Repository>>,
    progress: &dyn Progress,
) -> Result<Read, RepoError> {
    let mut read = Read::default();
    let marker = layout::marker();
    let id = match store.get(&marker).await {
        Ok(bytes) => match RepositoryMarker::from_object(&bytes) {
            Ok(marker) => Some(marker.id),
            Err(error) => {
                read.damaged.push((marker, error.to_string()));
                None
            }
        },
        Err(StoreError::NotFound { .. }) => {
            read.damaged.push((marker, "it is gone".into()));
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mut listed = store.list(layout::KEYS_PREFIX).await?;
    listed.extend(store.list(layout::CLUSTERS_PREFIX).await?);
    if listed.is_empty() && id.is_none() {
        return Err(RepoError::NotFound { what: "a walden repository".into(), url: store.url() });
    }
    progress.stage("reading objects", Some(listed.iter().map(|meta| meta.len).sum()));
    let reads = futures_util::stream::iter(listed)
        .map(|meta| async move { check(store, repo, id, meta).await })
        .buffer_unordered(READS_IN_FLIGHT);
    futures_util::pin_mut!(reads);
    let mut foreign = 0;
    while let Some(checked) = reads.next().await {
        let Some(Checked { key, len, says, verdict }) = checked? else { continue };
        read.objects += 1;
        read.bytes += len;
        progress.advance(len);
        foreign += u64::from(says.is_some() && says != id);
        read.listed.insert(key.clone());
        if let Err(reason) = verdict {
            read.damaged.push((key, reason));
        }
    }
    if id.is_some() && foreign > 0 && foreign == read.objects {
        read.damaged.push((layout::marker(), "it names another repository than every other object".into()));
    }
    Ok(read)
}

/// An object that was read.
struct Checked {
    key: ObjectKey,
    len: u64,
    /// The repository that it names.
    says: Option<RepositoryId>,
    verdict: Result<(), String>,
}

async fn check(
    store: &dyn Store,
    repo: Option<&Arc<Repository>>,
    id: Option<RepositoryId>,
    meta: ObjectMeta,
) -> Result<Option<Checked>, RepoError> {
    let bytes = match store.get(&meta.key).await {
        Ok(bytes) => bytes,
        // Collected since it was listed; what refers to it, if anything, is found out by following references.
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let len = bytes.len() as u64;
    // What is sealed under an epoch that came while this reads has its epoch looked for.
    let keys = match repo {
        Some(repo) => Some(repo.keys_of(&bytes).await?),
        None => None,
    };
    let key = meta.key;
    // Checksums, seals and decompression keep a core busy: off the runtime's threads.
    let checking = tokio::task::spawn_blocking(move || {
        let says = repository_of(&key, &bytes);
        let verdict = judge(&key, bytes, id, keys.as_deref());
        Some(Checked { key, len, says, verdict })
    });
    Ok(checking.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic())))
}

/// The repository that an object says it belongs to, if it says anything.
fn repository_of(key: &ObjectKey, bytes: &[u8]) -> Option<RepositoryId> {
    match layout::parse_key_object(key) {
        Some(KeyObject::Slot(_)) => KeySlot::from_object(bytes).ok().map(|slot| slot.repository),
        Some(KeyObject::Epoch(_)) => Epoch::from_object(bytes).ok().map(|epoch| epoch.repository),
        Some(KeyObject::EpochSlot(..)) => EpochSlot::from_object(bytes).ok().map(|epoch| epoch.repository),
        None => {
            let any = Expect { repository: None, key: None, kind: None };
            check_header(bytes, &any).ok().map(|(header, _)| header.repository)
        }
    }
}

fn judge(
    key: &ObjectKey,
    bytes: Bytes,
    id: Option<RepositoryId>,
    keys: Option<&Keyring>,
) -> Result<(), String> {
    if let Some(object) = layout::parse_key_object(key) {
        return judge_key_object(&object, &bytes, id);
    }
    let expect = Expect { repository: id, key: Some(key), kind: None };
    check_without_key(&bytes, &expect).map_err(|error| error.to_string())?;
    let Some(keys) = keys else { return Ok(()) };
    let object = OpenObject::open(bytes, keys, &expect).map_err(|error| error.to_string())?;
    for (number, frame) in object.directory().frames.iter().enumerate() {
        let opened = match frame.codec {
            // It needs others of its epoch: here its seal is looked at, and `deltas` decodes it.
            Codec::Delta => object.packed_chunk(number).map(drop),
            Codec::Raw | Codec::Zstd => object.chunk(number, keys).map(drop),
        };
        opened.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Slots and epochs are plain: they repeat where they belong.
fn judge_key_object(object: &KeyObject, bytes: &[u8], id: Option<RepositoryId>) -> Result<(), String> {
    let (repository, found) = match object {
        KeyObject::Slot(_) => {
            let slot = KeySlot::from_object(bytes).map_err(|error| error.to_string())?;
            (slot.repository, KeyObject::Slot(slot.name))
        }
        KeyObject::Epoch(_) => {
            let epoch = Epoch::from_object(bytes).map_err(|error| error.to_string())?;
            (epoch.repository, KeyObject::Epoch(epoch.epoch))
        }
        KeyObject::EpochSlot(..) => {
            let epoch = EpochSlot::from_object(bytes).map_err(|error| error.to_string())?;
            (epoch.repository, KeyObject::EpochSlot(epoch.epoch, epoch.slot))
        }
    };
    if id.is_some_and(|id| id != repository) {
        return Err(format!("its repository is {repository}"));
    }
    if found != *object {
        return Err(format!("it is {found:?}"));
    }
    Ok(())
}
