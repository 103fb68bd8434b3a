//! How a repository's secrets are found: slots, epochs, and the epochs that others make while a process runs.
//! A list finds slots and old epochs; the next epoch is looked for by its name, so that none is missed. Spec: formats/keys.md.

use super::error::RepoError;
use super::layout::{self, KeyObject};
use super::repository::{Created, create_decided, exists, read_retrying};
use crate::base::clock::random_bytes;
use crate::base::{Env, ObjectKey, RepositoryId, SlotName};
use crate::codec::keyslot::{self, SlotCost, SlotPrivate, SlotPublic, Unlock};
use crate::codec::{EpochKeys, EpochObject, KeySlotError, KeySource, Keyring};
use crate::store::{Store, StoreError};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
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

/// What there is of an epoch for one slot.
enum Found {
    Keys(Box<EpochKeys>),
    /// The epoch is there, and was not given to the slot.
    NotGiven,
    /// There is no such epoch: not yet, or not any more.
    Absent,
}

impl HeldKeys {
    fn new(slot: SlotPrivate, ring: Keyring) -> Self {
        HeldKeys { slot, ring: RwLock::new(Arc::new(ring)), missing: Mutex::default() }
    }

    pub(super) fn slot(&self) -> &SlotPublic {
        self.slot.public()
    }

    pub(super) fn ring(&self) -> Arc<Keyring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds an epoch, unless another task did.
    pub(super) fn insert(&self, keys: EpochKeys) -> Result<(), KeySlotError> {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Keyring::clone(&ring);
        next.insert(keys)?;
        *ring = Arc::new(next);
        Ok(())
    }

    /// Looks for epochs after the newest held. `Err` names the first that is there and was not given to our slot.
    pub(super) async fn follow(&self, store: &dyn Store) -> Result<Result<u32, u32>, RepoError> {
        loop {
            let newest = self.ring().newest().epoch;
            let Some(next) = newest.checked_add(1) else { return Ok(Ok(newest)) };
            if !exists(store, &layout::epoch(next)).await? {
                return Ok(Ok(newest));
            }
            if !self.learn(store, next).await? {
                return Ok(Err(next));
            }
            tracing::info!(epoch = next, "a new key epoch: what is stored from now on is sealed under it");
        }
    }

    /// The ring, with `epoch` in it if it is to be had.
    pub(super) async fn with(&self, store: &dyn Store, epoch: u32) -> Result<Arc<Keyring>, RepoError> {
        let ring = self.ring();
        if ring.epoch_secret(epoch).is_some() || self.looked_for(epoch) {
            return Ok(ring);
        }
        if !self.learn(store, epoch).await? {
            self.missing().insert(epoch, Instant::now());
        }
        Ok(self.ring())
    }

    async fn learn(&self, store: &dyn Store, epoch: u32) -> Result<bool, RepoError> {
        match find(store, &self.slot, epoch).await? {
            Found::Keys(keys) => {
                let wrong = |source| RepoError::KeySlot { key: layout::epoch(epoch), source };
                self.insert(*keys).map_err(wrong)?;
                Ok(true)
            }
            Found::NotGiven | Found::Absent => Ok(false),
        }
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
                KeyObject::EpochSlot(epoch, name) => {
                    found.epochs.insert(epoch);
                    found.sealed.insert((epoch, name));
                }
            }
        }
        let mut next = found.epochs.last().map_or(1, |newest| newest.saturating_add(1));
        while exists(store, &layout::epoch(next)).await? {
            found.epochs.insert(next);
            next = next.saturating_add(1);
        }
        Ok(found)
    }
}

/// Opens the first slot that `unlock` opens.
pub(super) async fn open(
    store: &dyn Store,
    id: RepositoryId,
    unlock: &Unlock,
) -> Result<HeldKeys, RepoError> {
    let objects = KeyObjects::list(store).await?;
    let mut said = Vec::new();
    for name in &objects.slots {
        // Removed since it was listed.
        let Some(bytes) = read_present(store, &layout::slot(name)).await? else { continue };
        // Another slot may open: damage to this one is not the end.
        let opened = match keyslot::open_slot(&bytes, id, name, unlock) {
            Ok(slot) => open_epochs(store, slot, &objects.epochs).await?,
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok(keys) => return Ok(keys),
            Err(reason) => said.push(reason),
        }
    }
    if said.is_empty() {
        said.push("the repository has no key slot".into());
    }
    Err(RepoError::Key { reason: said.join("; ") })
}

/// The secrets that an opened slot gives; the inner error says why it gives none.
pub(super) async fn open_epochs(
    store: &dyn Store,
    slot: SlotPrivate,
    epochs: &BTreeSet<u32>,
) -> Result<Result<HeldKeys, String>, RepoError> {
    let mut ring: Option<Keyring> = None;
    for epoch in epochs {
        let Found::Keys(keys) = find(store, &slot, *epoch).await? else { continue };
        match &mut ring {
            Some(ring) => {
                let wrong = |source| RepoError::KeySlot { key: layout::epoch(*epoch), source };
                ring.insert(*keys).map_err(wrong)?;
            }
            None => ring = Some(Keyring::new(slot.public().repository(), *keys)),
        }
    }
    let name = slot.public().name();
    let Some(ring) = ring else { return Ok(Err(format!("key slot {name}: no key epoch is sealed to it"))) };
    if let Some(newest) = epochs.last().filter(|newest| **newest > ring.newest().epoch) {
        tracing::warn!(
            "key slot {name} was not given key epoch {newest}: what is sealed under it stays shut"
        );
    }
    Ok(Ok(HeldKeys::new(slot, ring)))
}

/// What there is of `epoch` for `slot`: in the object that made it, or in one for this slot alone. Either will do.
async fn find(store: &dyn Store, slot: &SlotPrivate, epoch: u32) -> Result<Found, RepoError> {
    let public = slot.public();
    let (whole_key, own_key) = (layout::epoch(epoch), layout::epoch_slot(epoch, public.name()));
    let mut first_wrong = None;
    let whole = match read_present(store, &whole_key).await? {
        None => None,
        Some(bytes) => match EpochObject::decode(&bytes, public.repository(), epoch) {
            Ok(whole) => Some(whole),
            Err(source) => {
                first_wrong = Some((whole_key.clone(), source));
                None
            }
        },
    };
    if let Some(bytes) = whole.as_ref().and_then(|whole| whole.sealed_to(public)) {
        match keyslot::open_epoch(slot, epoch, bytes) {
            Ok(keys) => return Ok(Found::Keys(Box::new(keys))),
            Err(source) => first_wrong = Some((whole_key, source)),
        }
    }
    let own = read_present(store, &own_key).await?;
    let own_wrong = match own.as_ref().map(|bytes| keyslot::open_epoch(slot, epoch, bytes)) {
        Some(Ok(keys)) => return Ok(Found::Keys(Box::new(keys))),
        // Left behind by a slot of this name that was removed.
        Some(Err(KeySlotError::Misplaced { .. })) if whole.is_some() => None,
        Some(Err(source)) => Some((own_key, source)),
        None => None,
    };
    match first_wrong.or(own_wrong) {
        Some((key, source)) => Err(RepoError::KeySlot { key, source }),
        None if whole.is_some() || own.is_some() => Ok(Found::NotGiven),
        None => Ok(Found::Absent),
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
    let (slot, public) = keyslot::create_slot(unlock, id, &name, &epoch.chunk_id_key, cost, &*env.entropy)
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
    match make_epoch(store, &epoch, &[public], env).await? {
        Created::Ours => Ok(true),
        Created::Taken(_) => Err(RepoError::Conflict {
            reason:
                "another init ran at the same time and both made keys; remove the repository and init again"
                    .into(),
        }),
    }
}

/// Makes an epoch for `slots`, unless another has its number. Then each slot gets a copy of its own, so that no damage to one object
/// loses an epoch.
pub(super) async fn make_epoch(
    store: &dyn Store,
    keys: &EpochKeys,
    slots: &[SlotPublic],
    env: &Env,
) -> Result<Created, RepoError> {
    let Some(repository) = slots.first().map(SlotPublic::repository) else {
        return Err(RepoError::Conflict { reason: "an epoch without a slot would open nothing".into() });
    };
    let made = EpochObject::create(repository, keys, slots, &*env.entropy);
    let body = Bytes::from(made.to_object());
    let created = create_decided(store, &layout::epoch(keys.epoch), &body).await?;
    if matches!(created, Created::Ours) {
        for slot in slots {
            copy(store, &made, keys.epoch, slot).await?;
        }
    }
    Ok(created)
}

/// Stores the copy of what `epoch` gave to `slot`, unless something has its name.
pub(super) async fn copy(
    store: &dyn Store,
    epoch: &EpochObject,
    number: u32,
    slot: &SlotPublic,
) -> Result<(), RepoError> {
    if let Some(bytes) = epoch.sealed_to(slot) {
        let body = Bytes::copy_from_slice(bytes);
        create_decided(store, &layout::epoch_slot(number, slot.name()), &body).await?;
    }
    Ok(())
}

/// A salt for a new object.
pub(super) fn salt(env: &Env) -> [u8; 32] {
    random_bytes(&*env.entropy)
}
