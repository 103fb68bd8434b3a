//! How a repository's secrets are found: slots, epochs, and the epochs that others make while a process runs.
//! A list finds slots and old epochs; the next epoch is looked for by its name, so that none is missed. Spec: formats/keys.md.

use super::error::RepoError;
use super::layout::{self, KeyObject};
use super::links::{self, Missing};
use super::repository::{Created, create_decided, exists, read_retrying};
use super::unseal::{self, Found};
use crate::base::clock::random_bytes;
use crate::base::{Env, ObjectKey, RepositoryId, SlotName};
use crate::codec::keyslot::{self, SlotCost, SlotPrivate, SlotPublic, Unlock};
use crate::codec::{EpochKeys, EpochObject, KeySlotError, KeySource, Keyring};
use crate::format::keyslot::{EpochLink, FIRST_EPOCH};
use crate::store::{Store, StoreError};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::Instant;

/// How long `init` waits at a time for another one that made the first slot.
const INIT_WAIT: Duration = Duration::from_secs(1);
/// How often it waits before it takes the other one for dead.
const INIT_WAITS: u32 = 10;
/// How long an epoch that was not to be had is not looked for again: a planted object must not make every read a search.
const MISSING_WAIT: Duration = Duration::from_secs(1);
/// The slot that `init` makes.
pub const FIRST_SLOT: &str = "main";

/// The slot that opened the repository, and the secrets that it gave so far.
#[derive(Debug)]
pub(super) struct HeldKeys {
    slot: SlotPrivate,
    ring: RwLock<Arc<Keyring>>,
    missing: Mutex<HashMap<u32, Instant>>,
}

impl HeldKeys {
    pub(super) fn new(slot: SlotPrivate, ring: Keyring) -> Self {
        HeldKeys { slot, ring: RwLock::new(Arc::new(ring)), missing: Mutex::default() }
    }

    pub(super) fn slot(&self) -> &SlotPublic {
        self.slot.public()
    }

    pub(super) fn ring(&self) -> Arc<Keyring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is held, unless that fails.
    fn update<E>(&self, change: impl FnOnce(&mut Keyring) -> Result<(), E>) -> Result<(), E> {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Keyring::clone(&ring);
        change(&mut next)?;
        *ring = Arc::new(next);
        Ok(())
    }

    /// Adds an epoch that was made here, with the link that leads to it.
    pub(super) fn insert(&self, keys: EpochKeys, link: &EpochLink) -> Result<(), KeySlotError> {
        self.update(|ring| {
            if ring.chain().key(keys.epoch).is_none() {
                ring.chain_mut().extend(link)?;
            }
            ring.insert(keys)
        })
    }

    /// Looks for epochs after the newest held. `Err` names the newest that is there when it was not given to our slot.
    pub(super) async fn follow(
        &self,
        store: &dyn Store,
        missing: Missing,
    ) -> Result<Result<u32, u32>, RepoError> {
        let held = self.ring().newest().epoch;
        let newest = self.follow_links(store, missing, u32::MAX).await?;
        for epoch in held.saturating_add(1)..=newest {
            if self.learn(store, epoch).await? {
                tracing::info!(epoch, "a new key epoch: what is stored from now on is sealed under it");
            }
        }
        Ok(if self.ring().newest().epoch == newest { Ok(newest) } else { Err(newest) })
    }

    /// Follows the links up to `until`. The last epoch that they lead to.
    async fn follow_links(&self, store: &dyn Store, missing: Missing, until: u32) -> Result<u32, RepoError> {
        let mut chain = self.ring().chain().clone();
        let before = chain.last();
        while chain.last() < until && links::step(store, &mut chain, missing).await? {}
        if chain.last() > before {
            self.update(|ring| ring.chain_mut().catch_up(&chain))
                .map_err(|source| RepoError::KeySlot { key: layout::epoch_link(chain.last()), source })?;
        }
        Ok(self.ring().chain().last())
    }

    /// The ring, with `epoch` in it if it is to be had and proved.
    pub(super) async fn with(&self, store: &dyn Store, epoch: u32) -> Result<Arc<Keyring>, RepoError> {
        let ring = self.ring();
        if ring.epoch_secret(epoch).is_some() || self.looked_for(epoch) {
            return Ok(ring);
        }
        self.follow_links(store, Missing::AskEpoch, epoch).await?;
        self.learn(store, epoch).await?;
        Ok(self.ring())
    }

    /// Takes `epoch`, if it is to be had and proved.
    async fn learn(&self, store: &dyn Store, epoch: u32) -> Result<bool, RepoError> {
        if self.looked_for(epoch) {
            return Ok(false);
        }
        let mut ring = Keyring::clone(&self.ring());
        let wrong = match unseal::find(store, &self.slot, epoch, ring.chain()).await? {
            Found::Keys(keys) => {
                let kept = keys.clone();
                match unseal::insert(store, &mut ring, *keys, &BTreeMap::new()).await? {
                    Ok(()) => {
                        let chain = ring.chain().clone();
                        let taken = self.update(|ring| {
                            ring.chain_mut().catch_up(&chain)?;
                            ring.insert(*kept)
                        });
                        let wrong = |source| RepoError::KeySlot { key: layout::epoch(epoch), source };
                        return taken.map(|()| true).map_err(wrong);
                    }
                    Err(error) => Some((layout::epoch(epoch), error)),
                }
            }
            Found::Wrong(key, error) => Some((key, error)),
            Found::NotGiven | Found::Absent => None,
        };
        if let Some((key, error)) = wrong {
            tracing::warn!(%key, %error, "key epoch {epoch} is not used");
        }
        self.missing().insert(epoch, Instant::now());
        Ok(false)
    }

    fn looked_for(&self, epoch: u32) -> bool {
        self.missing().get(&epoch).is_some_and(|at| at.elapsed() < MISSING_WAIT)
    }

    fn missing(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Instant>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Slots, and the epochs of which anything is there, by a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyObjects {
    /// Slots.
    pub slots: BTreeSet<SlotName>,
    /// Epochs.
    pub epochs: BTreeSet<u32>,
    /// Epochs that were sealed to a slot in an object of its own.
    pub sealed: BTreeSet<(u32, SlotName)>,
    /// Epochs whose link is there, also of those that were destroyed.
    pub links: BTreeSet<u32>,
}

impl KeyObjects {
    /// Lists them. A slot that the list misses cannot open, and nothing is decided by that; epochs after the newest listed are
    /// asked for by name.
    pub async fn list(store: &dyn Store) -> Result<KeyObjects, RepoError> {
        let mut found = KeyObjects::default();
        let listed = store.list(layout::KEYS_PREFIX).await?;
        for object in listed.iter().filter_map(|meta| layout::parse_key_object(&meta.key)) {
            match object {
                KeyObject::Slot(name) => drop(found.slots.insert(name)),
                KeyObject::Epoch(epoch) => drop(found.epochs.insert(epoch)),
                KeyObject::Link(epoch) => drop(found.links.insert(epoch)),
                KeyObject::EpochSlot(epoch, name) => {
                    found.epochs.insert(epoch);
                    found.sealed.insert((epoch, name));
                }
            }
        }
        let mut next = found.epochs.last().map_or(Some(FIRST_EPOCH), |newest| newest.checked_add(1));
        while let Some(epoch) = next
            && exists(store, &layout::epoch(epoch)).await?
        {
            found.epochs.insert(epoch);
            next = epoch.checked_add(1);
        }
        Ok(found)
    }
}

/// An object's bytes; `None` when it is not there.
pub(super) async fn read_present(store: &dyn Store, key: &ObjectKey) -> Result<Option<Bytes>, RepoError> {
    match read_retrying(store, key).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(RepoError::Store(StoreError::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the first slot and the first epoch, if there is no epoch. Only who made the slot makes the epoch: its secrets exist
/// nowhere else. Whether anything was made.
pub(super) async fn init(
    store: &dyn Store,
    id: RepositoryId,
    unlock: &Unlock,
    cost: SlotCost,
    env: &Env,
) -> Result<bool, RepoError> {
    if !KeyObjects::list(store).await?.epochs.is_empty() {
        return Ok(false);
    }
    let name: SlotName =
        FIRST_SLOT.parse().map_err(|error| RepoError::Configuration { reason: format!("{error}") })?;
    let key = layout::slot(&name);
    let epoch = EpochKeys::first(&*env.entropy);
    let (slot, public) = keyslot::create_slot(unlock, id, &name, &epoch, cost, &*env.entropy)
        .map_err(|source| RepoError::KeySlot { key: key.clone(), source })?;
    let slot = Bytes::from(slot);
    while let Created::Taken(theirs) = create_decided(store, &key, &slot).await? {
        for _ in 0..INIT_WAITS {
            tokio::time::sleep(INIT_WAIT).await;
            if !KeyObjects::list(store).await?.epochs.is_empty() {
                return Ok(false);
            }
        }
        // Whoever made that slot died before its epoch: nothing was ever sealed with it.
        if read_retrying(store, &key).await.is_ok_and(|now| now == theirs) {
            store.delete(&key).await?;
        }
    }
    let made = EpochObject::create(id, &epoch, None, std::slice::from_ref(&public), &*env.entropy);
    match make_epoch(store, &made).await? {
        Created::Ours => {
            copies(store, &made, &[public]).await?;
            Ok(true)
        }
        Created::Taken(_) => Err(RepoError::Conflict {
            reason:
                "another init ran at the same time and both made keys; remove the repository and init again"
                    .into(),
        }),
    }
}

/// Makes an epoch, unless another has its number.
pub(super) async fn make_epoch(store: &dyn Store, epoch: &EpochObject) -> Result<Created, RepoError> {
    create_decided(store, &layout::epoch(epoch.epoch()), &Bytes::from(epoch.to_object())).await
}

/// Gives each of `slots` a copy of its own of what `epoch` gave to it, unless something has its name: so no damage to one object loses an
/// epoch. Takes them back if the epoch was destroyed meanwhile.
pub(super) async fn copies(
    store: &dyn Store,
    epoch: &EpochObject,
    slots: &[SlotPublic],
) -> Result<(), RepoError> {
    let (number, mut made) = (epoch.epoch(), Vec::new());
    for slot in slots {
        let key = layout::epoch_slot(number, slot.name());
        if let Some(bytes) = epoch.sealed_to(slot)
            && let Created::Ours = create_decided(store, &key, &Bytes::copy_from_slice(bytes)).await?
        {
            made.push(key);
        }
    }
    // Whoever destroys an epoch looks again for what appeared after it removed the object that made it. One of the two sees the other.
    if !made.is_empty() && !exists(store, &layout::epoch(number)).await? {
        for key in made {
            store.delete(&key).await?;
        }
    }
    Ok(())
}

/// A salt for a new object.
pub(super) fn salt(env: &Env) -> [u8; 32] {
    random_bytes(&*env.entropy)
}
