//! Opening a repository: the slot that a secret opens, the epochs that were given to it, and which of those are proved. Whatever else is
//! wrong with old epochs, or was planted beside them, is said and left aside. Spec: formats/keys.md.

use super::error::RepoError;
use super::keys::{HeldKeys, KeyObjects, read_present};
use super::layout;
use super::links::{self, Missing};
use crate::base::{ObjectKey, RepositoryId};
use crate::codec::keyslot::{self, SlotPrivate, Unlock};
use crate::codec::link::Chain;
use crate::codec::{EpochKeys, EpochObject, KeySlotError, Keyring};
use crate::format::keyslot::EpochLink;
use crate::store::Store;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};

/// Links read at once.
const READS_IN_FLIGHT: usize = 16;

/// What there is of an epoch for one slot.
pub(super) enum Found {
    Keys(Box<EpochKeys>),
    /// The epoch is there, and was not given to the slot.
    NotGiven,
    /// There is no such epoch: not yet, or not any more.
    Absent,
    /// What was given cannot be opened.
    Wrong(ObjectKey, KeySlotError),
}

/// Opens the first slot that `unlock` opens, and that gives what it should.
pub(super) async fn open(
    store: &dyn Store,
    id: RepositoryId,
    unlock: &Unlock,
) -> Result<HeldKeys, RepoError> {
    let objects = KeyObjects::list(store).await?;
    let (mut said, mut damaged, mut gone) = (Vec::new(), None, None);
    for name in &objects.slots {
        // Removed since it was listed.
        let Some(bytes) = read_present(store, &layout::slot(name)).await? else { continue };
        // Another slot may open: damage to this one is not the end.
        match keyslot::open_slot(&bytes, id, name, unlock) {
            Ok(slot) => match open_epochs(store, slot, &objects).await? {
                Ok(keys) => return Ok(keys),
                Err(Shut::Wrong(key, source)) => damaged = damaged.or(Some((key, source))),
                Err(Shut::Gone(epoch)) => gone = gone.or(Some(epoch)),
                Err(shut @ Shut::Nothing) => said.push(format!("key slot {name}: {shut}")),
            },
            Err(error) => said.push(error.to_string()),
        }
    }
    // The secret given is right: another one would not help.
    if let Some((key, source)) = damaged {
        return Err(RepoError::KeySlot { key, source });
    }
    if let Some(epoch) = gone {
        return Err(RepoError::damage(&layout::epoch(epoch), Shut::Gone(epoch)));
    }
    if said.is_empty() {
        said.push("the repository has no key slot".into());
    }
    Err(RepoError::Key { reason: said.join("; ") })
}

/// Why a slot that was opened does not open the repository.
#[derive(Debug, thiserror::Error)]
pub(super) enum Shut {
    /// What it was given of the newest epoch is damaged, or is another epoch.
    #[error("{0}: {1}")]
    Wrong(ObjectKey, KeySlotError),
    /// The newest epoch that links prove is gone. Whoever sealed under an older one instead would do so under one that somebody who was
    /// removed since may hold.
    #[error("it is gone, and links prove that key epoch {0} was made: put its objects back")]
    Gone(u32),
    /// It was given nothing.
    #[error("no key epoch that links prove is sealed to it")]
    Nothing,
}

/// The secrets that an opened slot gives; the inner error says why it gives none, or not those of the newest epoch, which are there.
pub(super) async fn open_epochs(
    store: &dyn Store,
    slot: SlotPrivate,
    objects: &KeyObjects,
) -> Result<Result<HeldKeys, Shut>, RepoError> {
    let name = slot.public().name().clone();
    let links = read_links(store, slot.public().repository(), &objects.links).await?;
    let mut chain = slot.chain();
    let start = chain.first();
    while links.get(&chain.last().saturating_add(1)).is_some_and(|link| chain.extend(link).is_ok()) {}
    while links::step(store, &mut chain, Missing::AskEpoch).await? {}
    let newest = chain.last();
    let mut given = Vec::new();
    let mut epochs = objects.epochs.clone();
    epochs.insert(newest);
    for epoch in epochs.into_iter().rev() {
        if epoch > newest {
            tracing::warn!(
                "key epoch {epoch} is not proved: no links lead to it from epoch {newest}, so it is not used; somebody planted it, or links below keys/epochs are lost"
            );
            continue;
        }
        match find(store, &slot, epoch, &chain).await? {
            Found::Keys(keys) => given.push(keys),
            Found::Wrong(key, error) if epoch == newest => {
                return Ok(Err(Shut::Wrong(key, error)));
            }
            Found::Wrong(key, error) => {
                tracing::warn!(%key, %error, "key slot {name} does not open key epoch {epoch}: what is sealed under it stays shut");
            }
            Found::Absent if epoch == newest => return Ok(Err(Shut::Gone(newest))),
            Found::NotGiven if epoch == newest => {
                tracing::warn!(
                    "key slot {name} was not given key epoch {newest}: what is sealed under it stays shut"
                );
            }
            Found::NotGiven | Found::Absent => {}
        }
    }
    let mut ring: Option<Keyring> = None;
    // The newest first: chain and links lead from there to older ones.
    for keys in given {
        let epoch = keys.epoch;
        match take(store, &mut chain, &mut ring, *keys, &links).await? {
            Ok(()) => {}
            Err(error) if epoch == newest => return Ok(Err(Shut::Wrong(layout::epoch(epoch), error))),
            Err(error) => tracing::warn!(%error, "key slot {name}: the epoch is not used"),
        }
    }
    Ok(match ring {
        // What a slot was not made for is for reading: somebody may hold it who was removed before the slot was made.
        Some(ring) if ring.newest().epoch >= start => Ok(HeldKeys::new(slot, ring)),
        _ => Err(Shut::Nothing),
    })
}

/// Takes `keys` into the ring if the chain proves them.
async fn take(
    store: &dyn Store,
    chain: &mut Chain,
    ring: &mut Option<Keyring>,
    keys: EpochKeys,
    links: &BTreeMap<u32, EpochLink>,
) -> Result<Result<(), KeySlotError>, RepoError> {
    if let Some(ring) = ring {
        return insert(store, ring, keys, links).await;
    }
    if keys.epoch < chain.first()
        && let Err(error) = reach_back(store, chain, &keys, links).await?
    {
        return Ok(Err(error));
    }
    Ok(Keyring::proved(chain.clone(), keys).map(|proved| *ring = Some(proved)))
}

/// Adds an epoch to the ring if links prove it: those at hand, or else those in the store.
pub(super) async fn insert(
    store: &dyn Store,
    ring: &mut Keyring,
    keys: EpochKeys,
    links: &BTreeMap<u32, EpochLink>,
) -> Result<Result<(), KeySlotError>, RepoError> {
    if keys.epoch < ring.chain().first()
        && let Err(error) = reach_back(store, ring.chain_mut(), &keys, links).await?
    {
        return Ok(Err(error));
    }
    Ok(ring.insert(keys))
}

/// Extends `chain` back to an epoch that is older than what it began with.
async fn reach_back(
    store: &dyn Store,
    chain: &mut Chain,
    keys: &EpochKeys,
    at_hand: &BTreeMap<u32, EpochLink>,
) -> Result<Result<(), KeySlotError>, RepoError> {
    let mut links = BTreeMap::new();
    for epoch in keys.epoch.saturating_add(1)..=chain.first() {
        let link = match at_hand.get(&epoch) {
            Some(link) => Some(link.clone()),
            None => links::read(store, chain.repository(), epoch).await?.and_then(Result::ok),
        };
        let link = match link {
            Some(link) => Some(link),
            None => links::of_epoch(store, chain.repository(), epoch).await?,
        };
        // Without it the way ends here.
        let Some(link) = link else { break };
        links.insert(epoch, link);
    }
    Ok(chain.reach_back(keys, &links))
}

/// The links that a list shows and that can be read.
async fn read_links(
    store: &dyn Store,
    id: RepositoryId,
    listed: &BTreeSet<u32>,
) -> Result<BTreeMap<u32, EpochLink>, RepoError> {
    let mut reads = futures_util::stream::iter(listed.iter().copied())
        .map(|epoch| async move { (epoch, links::read(store, id, epoch).await) })
        .buffered(READS_IN_FLIGHT);
    let mut found = BTreeMap::new();
    while let Some((epoch, link)) = reads.next().await {
        if let Some(Ok(link)) = link? {
            found.insert(epoch, link);
        }
    }
    Ok(found)
}

/// What there is of `epoch` for `slot`: in the object that made it, or in one for this slot alone. Either will do, but for one that
/// `chain` says is another epoch's.
pub(super) async fn find(
    store: &dyn Store,
    slot: &SlotPrivate,
    epoch: u32,
    chain: &Chain,
) -> Result<Found, RepoError> {
    let public = slot.public();
    let open = |bytes: &[u8]| {
        let keys = keyslot::open_epoch(slot, epoch, bytes)?;
        // Older ones are led back to by whoever takes them.
        if epoch >= chain.first() {
            chain.check(&keys)?;
        }
        Ok(keys)
    };
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
        match open(bytes) {
            Ok(keys) => return Ok(Found::Keys(Box::new(keys))),
            Err(source) => first_wrong = Some((whole_key, source)),
        }
    }
    let own = read_present(store, &own_key).await?;
    let own_wrong = match own.as_ref().map(|bytes| open(bytes)) {
        Some(Ok(keys)) => return Ok(Found::Keys(Box::new(keys))),
        // Left behind by a slot of this name that was removed.
        Some(Err(KeySlotError::Misplaced { .. })) if whole.is_some() => None,
        Some(Err(source)) => Some((own_key, source)),
        None => None,
    };
    Ok(match first_wrong.or(own_wrong) {
        Some((key, source)) => Found::Wrong(key, source),
        None if whole.is_some() || own.is_some() => Found::NotGiven,
        None => Found::Absent,
    })
}
