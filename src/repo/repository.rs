//! One repository: its store, its keys, and the only way objects are created and read.
//! Spec: formats/layout.md, formats/keys.md.

use super::error::RepoError;
use super::layout::{self, KeyObject};
use crate::base::clock::random_bytes;
use crate::base::planted::{Bug, planted};
use crate::base::{ClusterName, Env, ObjectKey, RepositoryId, SlotName};
use crate::codec::ObjectWriter;
use crate::codec::keyring::{EpochKeys, Keyring};
use crate::codec::keyslot::{self, SlotCost, Unlock};
use crate::codec::object::{Expect, OpenObject};
use crate::format::envelope::PlainObject;
use crate::format::header::{ObjectHeader, ObjectKind};
use crate::format::marker::{REPOSITORY_VERSION, RepositoryMarker};
use crate::store::{Store, StoreError};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The first wait after a store did not say what happened.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a create is tried before the caller hears that its outcome is unknown.
const CREATE_PATIENCE: Duration = Duration::from_secs(300);
/// Tries of a read whose outcome is unknown, before the error is handed up.
const READ_TRIES: u32 = 6;
/// How long `init` waits at a time for another one that made the first slot.
const INIT_WAIT: Duration = Duration::from_secs(1);
/// How often it waits before it takes the other one for dead.
const INIT_WAITS: u32 = 10;
/// The slot that `init` makes.
pub const FIRST_SLOT: &str = "main";

/// What became of a create.
#[derive(Debug)]
pub enum Created {
    /// The object is there, and it is ours.
    Ours,
    /// Another object has the name; its bytes.
    Taken(Bytes),
}

/// An open repository.
#[derive(Debug)]
pub struct Repository {
    store: Arc<dyn Store>,
    id: RepositoryId,
    keys: Keyring,
    env: Env,
}

impl Repository {
    /// Makes a repository, or completes one that an interrupted `init` began; refuses one whose keys `unlock` does not
    /// open. Says whether anything was created. The caller has probed the store.
    pub async fn init(
        store: Arc<dyn Store>,
        unlock: &Unlock,
        cost: SlotCost,
        env: Env,
    ) -> Result<(Repository, bool), RepoError> {
        let marker =
            RepositoryMarker { version: REPOSITORY_VERSION, id: RepositoryId::random(&*env.entropy) };
        let body = Bytes::from(marker.to_object());
        let mut created = matches!(create_decided(&*store, &layout::marker(), &body).await?, Created::Ours);
        let id = read_marker(&*store).await?;
        if read_slots(&*store).await?.iter().all(|slot| slot.epochs.is_empty()) {
            created |= init_keys(&*store, id, unlock, cost, &env).await?;
        }
        Ok((Repository::open(store, unlock, env).await?, created))
    }

    /// Opens a repository with the first key slot that `unlock` opens.
    pub async fn open(store: Arc<dyn Store>, unlock: &Unlock, env: Env) -> Result<Repository, RepoError> {
        let id = read_marker(&*store).await?;
        let mut said = Vec::new();
        for slot in read_slots(&*store).await? {
            match open_slot(&*store, id, &slot, unlock).await? {
                Ok(keys) => return Ok(Repository { store, id, keys, env }),
                Err(reason) => said.push(reason),
            }
        }
        if said.is_empty() {
            said.push("the repository has no key slot".into());
        }
        Err(RepoError::Key { reason: said.join("; ") })
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// The secrets held.
    pub fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// Time and chance.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Names of the clusters, by a list.
    pub async fn clusters(&self) -> Result<Vec<ClusterName>, RepoError> {
        let mut names: Vec<ClusterName> = Vec::new();
        for meta in self.store.list(layout::CLUSTERS_PREFIX).await? {
            let mut parts = meta.key.as_str().split('/').skip(1);
            let (Some(name), Some("generations")) = (parts.next(), parts.next()) else { continue };
            if let Ok(name) = name.parse()
                && names.last() != Some(&name)
            {
                names.push(name);
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The header of a new object at `key`, under the newest key epoch.
    pub fn header(
        &self,
        kind: ObjectKind,
        key: &ObjectKey,
        owner: [u8; 16],
        number: u64,
        writer_epoch: u64,
    ) -> ObjectHeader {
        ObjectHeader {
            kind,
            required: 0,
            repository: self.id,
            owner,
            number,
            writer_epoch,
            key_epoch: self.keys.newest().epoch,
            place: ObjectHeader::place_of(key),
            salt: random_bytes(&*self.env.entropy),
        }
    }

    /// Begins a new object at `key`.
    pub fn writer(
        &self,
        kind: ObjectKind,
        key: &ObjectKey,
        owner: [u8; 16],
        number: u64,
        writer_epoch: u64,
    ) -> ObjectWriter {
        let header = self.header(kind, key, owner, number, writer_epoch);
        ObjectWriter::create(&self.keys.newest().secret, &header)
    }

    /// Creates an object and finds out for certain whether it is ours. Sends the identical bytes until that is decided;
    /// gives up when the store refuses, or after five minutes with [`StoreError::Unknown`]: then the name must not be used
    /// for other bytes. Durable on `Ours`. If dropped: undecided.
    pub async fn create(&self, key: &ObjectKey, body: &Bytes) -> Result<Created, RepoError> {
        create_decided(&*self.store, key, body).await
    }

    /// Creates an object under a name that nobody else uses (a random id).
    pub async fn create_own(&self, key: &ObjectKey, body: &Bytes) -> Result<(), RepoError> {
        match self.create(key, body).await? {
            Created::Ours => Ok(()),
            Created::Taken(_) => Err(RepoError::damage(key, "another object has this random name")),
        }
    }

    /// Reads and opens a whole object. A missing one is [`StoreError::NotFound`].
    pub async fn read_object(&self, key: &ObjectKey, kind: ObjectKind) -> Result<OpenObject, RepoError> {
        let bytes = self.read(key).await?;
        self.open_object(key, kind, bytes)
    }

    /// Opens the bytes of a whole object that was read from `key`.
    pub fn open_object(
        &self,
        key: &ObjectKey,
        kind: ObjectKind,
        bytes: Bytes,
    ) -> Result<OpenObject, RepoError> {
        let expect = Expect { repository: Some(self.id), key: Some(key), kind: Some(kind) };
        OpenObject::open(bytes, &self.keys, &expect).map_err(|error| RepoError::open(key, error))
    }

    /// The bytes of an object, tried again while the outcome is unknown.
    pub async fn read(&self, key: &ObjectKey) -> Result<Bytes, RepoError> {
        read_retrying(&*self.store, key).await
    }

    /// The bytes of `range` of an object, tried again while the outcome is unknown.
    pub async fn read_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, RepoError> {
        retrying(|| self.store.get_range(key, range.clone())).await
    }
}

/// Whether the object is there, tried again while the outcome is unknown.
pub async fn exists(store: &dyn Store, key: &ObjectKey) -> Result<bool, RepoError> {
    match retrying(|| store.head(key)).await {
        Ok(_) => Ok(true),
        Err(RepoError::Store(StoreError::NotFound { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn read_retrying(store: &dyn Store, key: &ObjectKey) -> Result<Bytes, RepoError> {
    retrying(|| store.get(key)).await
}

/// Asks again, ever later, while nobody knows the outcome.
async fn retrying<T, F>(ask: impl Fn() -> F) -> Result<T, RepoError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut wait = RETRY_WAIT_MIN;
    let mut tries = 1;
    loop {
        match ask().await {
            Err(StoreError::Unknown { .. }) if tries < READ_TRIES => tries += 1,
            other => return Ok(other?),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_WAIT_MAX);
    }
}

/// Creates `key` with exactly `body`, whatever the store says, until it is certain who won.
/// A timeout proves nothing: what is there afterwards does, and absent means the same bytes are sent again.
async fn create_decided(store: &dyn Store, key: &ObjectKey, body: &Bytes) -> Result<Created, RepoError> {
    let mut wait = RETRY_WAIT_MIN;
    let deadline = tokio::time::Instant::now() + CREATE_PATIENCE;
    loop {
        let reason = match store.create(key, body.clone()).await {
            Ok(()) => return Ok(Created::Ours),
            Err(StoreError::AlreadyExists { .. }) => None,
            Err(StoreError::Unknown { .. }) if planted(Bug::TimeoutIsSuccess) => return Ok(Created::Ours),
            Err(StoreError::Unknown { reason, .. }) => Some(reason),
            Err(error) => return Err(error.into()),
        };
        match store.get(key).await {
            Ok(found) if found == *body => return Ok(Created::Ours),
            Ok(found) => return Ok(Created::Taken(found)),
            Err(StoreError::NotFound { .. } | StoreError::Unknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let reason = reason.unwrap_or_else(|| "it existed, then it was not found".into());
        if tokio::time::Instant::now() >= deadline {
            return Err(StoreError::Unknown { key: key.clone(), reason }.into());
        }
        tracing::warn!(%key, reason, "the store did not say what became of an object; sending it again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_WAIT_MAX);
    }
}

async fn read_marker(store: &dyn Store) -> Result<RepositoryId, RepoError> {
    let key = layout::marker();
    match read_retrying(store, &key).await {
        Ok(bytes) => {
            let marker =
                RepositoryMarker::from_object(&bytes).map_err(|error| RepoError::damage(&key, error))?;
            Ok(marker.id)
        }
        Err(RepoError::Store(StoreError::NotFound { .. })) => {
            Err(RepoError::NotFound { what: "a walden repository".into(), url: store.url() })
        }
        Err(error) => Err(error),
    }
}

struct SlotFound {
    name: SlotName,
    epochs: Vec<u32>,
}

/// Slots and the epochs sealed to each, by a list: a slot that it misses cannot open, and nothing is decided by that.
async fn read_slots(store: &dyn Store) -> Result<Vec<SlotFound>, RepoError> {
    let listed = store.list(layout::KEYS_PREFIX).await?;
    let parsed: Vec<KeyObject> =
        listed.iter().filter_map(|meta| layout::parse_key_object(&meta.key)).collect();
    let slots = parsed.iter().filter_map(|object| match object {
        KeyObject::Slot(name) => Some(name),
        KeyObject::Epoch(..) => None,
    });
    Ok(slots
        .map(|name| {
            let mut epochs: Vec<u32> = parsed
                .iter()
                .filter_map(|object| match object {
                    KeyObject::Epoch(epoch, slot) if slot == name => Some(*epoch),
                    _ => None,
                })
                .collect();
            epochs.sort_unstable();
            SlotFound { name: name.clone(), epochs }
        })
        .collect())
}

/// The secrets that one slot gives; the inner error says why it gives none to this `unlock`.
async fn open_slot(
    store: &dyn Store,
    id: RepositoryId,
    slot: &SlotFound,
    unlock: &Unlock,
) -> Result<Result<Keyring, String>, RepoError> {
    let key = layout::slot(&slot.name);
    let wrong = |key: ObjectKey| move |source| RepoError::KeySlot { key, source };
    let private = match keyslot::open_slot(&read_retrying(store, &key).await?, id, &slot.name, unlock) {
        Ok(private) => private,
        // Another slot may open: damage to this one is not the end.
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut keys: Option<Keyring> = None;
    for epoch in &slot.epochs {
        let key = layout::key_epoch(*epoch, &slot.name);
        let sealed = read_retrying(store, &key).await?;
        let opened = keyslot::open_epoch(&private, *epoch, &sealed).map_err(wrong(key.clone()))?;
        match &mut keys {
            Some(keys) => keys.insert(opened).map_err(wrong(key))?,
            None => keys = Some(Keyring::new(id, opened)),
        }
    }
    Ok(keys.ok_or_else(|| format!("key slot {}: no key epoch is sealed to it", slot.name)))
}

/// Makes the first slot and the first epoch. Only who made the slot makes the epoch: its secrets exist nowhere else.
async fn init_keys(
    store: &dyn Store,
    id: RepositoryId,
    unlock: &Unlock,
    cost: SlotCost,
    env: &Env,
) -> Result<bool, RepoError> {
    let name: SlotName =
        FIRST_SLOT.parse().map_err(|error| RepoError::Configuration { reason: format!("{error}") })?;
    let key = layout::slot(&name);
    let epoch = EpochKeys::first(&*env.entropy);
    let (slot, public) = keyslot::create_slot(unlock, id, &name, &epoch.chunk_id_key, cost, &*env.entropy)
        .map_err(|source| RepoError::KeySlot { key: key.clone(), source })?;
    let slot = Bytes::from(slot);
    while let Created::Taken(theirs) = create_decided(store, &key, &slot).await? {
        for _ in 0..INIT_WAITS {
            tokio::time::sleep(INIT_WAIT).await;
            if read_slots(store).await?.iter().any(|slot| !slot.epochs.is_empty()) {
                return Ok(false);
            }
        }
        // Whoever made that slot died before its epoch: nothing was ever sealed with it.
        if read_retrying(store, &key).await.is_ok_and(|now| now == theirs) {
            store.delete(&key).await?;
        }
    }
    let sealed = Bytes::from(keyslot::seal_epoch(&public, &epoch, &*env.entropy));
    match create_decided(store, &layout::key_epoch(epoch.epoch, &name), &sealed).await? {
        Created::Ours => Ok(true),
        Created::Taken(_) => Err(RepoError::Conflict {
            reason:
                "another init ran at the same time and both made keys; remove the repository and init again"
                    .into(),
        }),
    }
}
