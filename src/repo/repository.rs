//! One repository: its store, its keys, and the only way objects are created and read.
//! Spec: formats/layout.md, formats/keys.md.

use super::error::RepoError;
use super::keys::{self, HeldKeys};
use super::layout;
use super::links::Missing;
use super::unseal;
use crate::base::planted::{Bug, planted};
use crate::base::{ChunkId, ClusterName, Env, ObjectId, ObjectKey, RepositoryId};
use crate::codec::keyring::Keyring;
use crate::codec::keyslot::{SlotCost, SlotPublic, Unlock};
use crate::codec::object::{Expect, OpenObject, check_header};
use crate::codec::{EpochKeys, KeySource, ObjectWriter};
use crate::format::envelope::PlainObject;
use crate::format::header::{LASTING_EPOCH, ObjectHeader, ObjectKind};
use crate::format::keyslot::{EpochLink, FIRST_EPOCH};
use crate::format::marker::{REPOSITORY_VERSION, RepositoryMarker};
use crate::store::{Store, StoreError};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The first wait after a store did not say what happened.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a create is tried before the caller hears that its outcome is unknown.
const CREATE_PATIENCE: Duration = Duration::from_secs(300);
/// Tries of a read whose outcome is unknown, before the error is handed up.
const READ_TRIES: u32 = 6;

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
    keys: HeldKeys,
    /// The newest epoch of which it is known that everybody finds it.
    settled_epoch: AtomicU32,
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
        created |= keys::init(&*store, id, unlock, cost, &env).await?;
        Ok((Repository::open(store, unlock, env).await?, created))
    }

    /// Opens a repository with the first key slot that `unlock` opens.
    pub async fn open(store: Arc<dyn Store>, unlock: &Unlock, env: Env) -> Result<Repository, RepoError> {
        let id = read_marker(&*store).await?;
        let keys = unseal::open(&*store, id, unlock).await?;
        Ok(Repository { store, id, keys, settled_epoch: AtomicU32::new(FIRST_EPOCH), env })
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// The secrets held now.
    pub fn keys(&self) -> Arc<Keyring> {
        self.keys.ring()
    }

    /// The slot that opened it.
    pub fn slot(&self) -> &SlotPublic {
        self.keys.slot()
    }

    /// The id of `chunk`.
    pub fn chunk_id(&self, chunk: &[u8]) -> ChunkId {
        self.keys().chunk_id_key().chunk_id(chunk)
    }

    /// Looks for epochs that others made, by one request when there is none. New objects are sealed under the newest; if that was not
    /// given to our slot, they go on to be sealed under the newest we hold, and the error names it.
    pub async fn follow_epochs(&self) -> Result<Result<u32, u32>, RepoError> {
        self.keys.follow(&*self.store, Missing::Ends).await
    }

    /// [`Repository::follow_epochs`], which also finds an epoch whose maker died before it stored the link.
    pub(super) async fn follow_interrupted(&self) -> Result<Result<u32, u32>, RepoError> {
        self.keys.follow(&*self.store, Missing::AskEpoch).await
    }

    /// Whether it is known that everybody finds `epoch`.
    pub(super) fn is_settled(&self, epoch: u32) -> bool {
        self.settled_epoch.load(Ordering::Relaxed) >= epoch
    }

    pub(super) fn set_settled(&self, epoch: u32) {
        self.settled_epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Holds an epoch that was made here.
    pub(super) fn hold(&self, keys: EpochKeys, link: &EpochLink) -> Result<(), RepoError> {
        let key = layout::epoch(keys.epoch);
        self.keys.insert(keys, link).map_err(|source| RepoError::KeySlot { key, source })
    }

    /// The secrets to open the object at whose start `bytes` stands: with its epoch, if that is to be had.
    pub async fn keys_of(&self, bytes: &[u8]) -> Result<Arc<Keyring>, RepoError> {
        let any = Expect { repository: None, key: None, kind: None };
        match check_header(bytes, &any) {
            Ok((header, _)) => self.keys.with(&*self.store, header.key_epoch).await,
            // Whoever opens it says what is wrong with it.
            Err(_) => Ok(self.keys()),
        }
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

    /// The header of a new object at `key`, under the newest key epoch, or the lasting key.
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
            key_epoch: if kind.is_lasting() { LASTING_EPOCH } else { self.keys().newest().epoch },
            place: ObjectHeader::place_of(key),
            salt: keys::salt(&self.env),
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
        match self.keys().epoch_secret(header.key_epoch) {
            Some(secret) => ObjectWriter::create(secret, &header),
            None => unreachable!("the ring holds what it seals with"),
        }
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
        self.open_object(key, kind, bytes).await
    }

    /// Opens the bytes of a whole object that was read from `key`. One sealed under an epoch that is not held has it looked for.
    pub async fn open_object(
        &self,
        key: &ObjectKey,
        kind: ObjectKind,
        bytes: Bytes,
    ) -> Result<OpenObject, RepoError> {
        let expect = Expect { repository: Some(self.id), key: Some(key), kind: Some(kind) };
        let keys = self.keys_of(&bytes).await?;
        OpenObject::open(bytes, &*keys, &expect).map_err(|error| RepoError::open(key, error))
    }

    /// The store's clock: the Last-Modified of an object made now, in microseconds since 1970. Everything that anybody stores later
    /// has this one or a later one, as far as the store's hosts agree on the time.
    pub async fn store_now(&self) -> Result<i64, RepoError> {
        let key = layout::probe(&ObjectId::random(&*self.env.entropy).to_string());
        self.create_own(&key, &Bytes::from_static(b"walden clock")).await?;
        let meta = self.store.head(&key).await;
        self.store.delete(&key).await?;
        Ok(meta?.modified_unix_micros)
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

pub(super) async fn read_retrying(store: &dyn Store, key: &ObjectKey) -> Result<Bytes, RepoError> {
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
pub(super) async fn create_decided(
    store: &dyn Store,
    key: &ObjectKey,
    body: &Bytes,
) -> Result<Created, RepoError> {
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

/// The id of the repository in `store`, by its marker: no key is needed.
pub async fn read_marker(store: &dyn Store) -> Result<RepositoryId, RepoError> {
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
