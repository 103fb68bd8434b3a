//! What an operator does to the keys: adding and removing slots, rotating, and seeing what there is.
//! A rotation is the creation of one object; a slot is removed by an epoch that leaves it out, so that of any number of removals
//! one slot is always left. Each step can be stopped anywhere and done again. Spec: formats/keys.md.

use super::error::RepoError;
use super::keys::{self, KeyObjects, make_epoch, open_epochs, read_present};
use super::layout;
use super::repository::{Created, Repository, create_decided, exists};
use crate::base::planted::{Bug, planted};
use crate::base::{ObjectKey, SlotName};
use crate::codec::keyslot::{self, SlotCost, SlotPrivate, SlotPublic, Unlock};
use crate::codec::{EpochKeys, EpochObject, KeySlotError, KeySource};
use crate::format::keyslot::SLOTS_MAX;
use bytes::Bytes;
use std::collections::BTreeSet;
use subtle::ConstantTimeEq;

/// Rotations that a removal may lose before it gives up; each lost one is somebody else's.
const ROTATE_TRIES_MAX: u32 = 10;

/// A slot, to whoever gives it the next epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The newest epoch was given to it, by somebody who held it: the next one will be.
    Vouched,
    /// It was not, for this reason: the next one will not be.
    Unvouched(String),
}

/// A rotation that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The new epoch.
    pub epoch: u32,
    /// Whom it was given to.
    pub given: Vec<SlotName>,
    /// Slots that are there and got nothing, and why.
    pub passed_over: Vec<(SlotName, String)>,
    /// Whether another rotation made it at the same time.
    pub by_another: bool,
}

/// A slot that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Whether it was not there before.
    pub created: bool,
    /// Epochs that were sealed to it now.
    pub sealed: Vec<u32>,
    /// Epochs that it opens, by trying.
    pub opens: Vec<u32>,
}

/// A slot that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The rotation that leaves it out; none when the newest epoch was not given to it already.
    pub rotated: Option<Rotated>,
    /// Objects removed.
    pub objects: u64,
    /// Slots that are left.
    pub left: Vec<SlotName>,
}

fn conflict(reason: String) -> RepoError {
    RepoError::Conflict { reason }
}

fn wrong(key: ObjectKey) -> impl Fn(KeySlotError) -> RepoError {
    move |source| RepoError::KeySlot { key: key.clone(), source }
}

/// Follows to the newest epoch. Refuses when that was not given to our slot: we could neither read it nor make the next.
async fn newest(repo: &Repository) -> Result<u32, RepoError> {
    repo.follow_epochs().await?.map_err(|epoch| {
        let slot = repo.slot().name();
        conflict(format!(
            "key epoch {epoch} was not given to key slot {slot}, which opened the repository; open it with another slot"
        ))
    })
}

/// The public half of a slot; the inner error says why it has none.
async fn public(repo: &Repository, name: &SlotName) -> Result<Result<SlotPublic, String>, RepoError> {
    let Some(bytes) = read_present(&**repo.store(), &layout::slot(name)).await? else {
        return Ok(Err("it is gone".into()));
    };
    Ok(keyslot::slot_public(&bytes, repo.id(), name).map_err(|error| error.to_string()))
}

/// The object that made `epoch`, if it can be read.
async fn made(repo: &Repository, epoch: u32) -> Result<Option<EpochObject>, RepoError> {
    let bytes = read_present(&**repo.store(), &layout::epoch(epoch)).await?;
    Ok(bytes.and_then(|bytes| EpochObject::decode(&bytes, repo.id(), epoch).ok()))
}

/// Whether `epoch`, which we hold, was given to `slot` by somebody who held it.
async fn standing(
    repo: &Repository,
    slot: &SlotPublic,
    epoch: &EpochKeys,
    made: Option<&EpochObject>,
) -> Result<Standing, RepoError> {
    let own = read_present(&**repo.store(), &layout::epoch_slot(epoch.epoch, slot.name())).await?;
    let whole = made.and_then(|made| made.sealed_to(slot));
    if planted(Bug::VoucherNotChecked) {
        return Ok(Standing::Vouched);
    }
    let mut reason = format!("key epoch {} was not given to it", epoch.epoch);
    for bytes in whole.into_iter().chain(own.as_deref()) {
        match keyslot::check_voucher(slot, epoch, bytes) {
            Ok(()) => return Ok(Standing::Vouched),
            Err(error) => reason = error.to_string(),
        }
    }
    Ok(Standing::Unvouched(reason))
}

/// Every slot that a list shows, with its standing in the newest epoch that we hold.
pub async fn standings(repo: &Repository) -> Result<Vec<(SlotName, Standing)>, RepoError> {
    let with_publics = with_standing(repo).await?;
    Ok(with_publics.into_iter().map(|(name, _, standing)| (name, standing)).collect())
}

async fn with_standing(
    repo: &Repository,
) -> Result<Vec<(SlotName, Option<SlotPublic>, Standing)>, RepoError> {
    let keys = repo.keys();
    let made = made(repo, keys.newest().epoch).await?;
    let mut found = Vec::new();
    for name in KeyObjects::list(&**repo.store()).await?.slots {
        match public(repo, &name).await? {
            Ok(public) => {
                let standing = standing(repo, &public, keys.newest(), made.as_ref()).await?;
                found.push((name, Some(public), standing));
            }
            Err(reason) => found.push((name, None, Standing::Unvouched(reason))),
        }
    }
    Ok(found)
}

/// Makes the next epoch and gives it to every slot with a valid voucher. Its creation is one object: of rotations at the same time one
/// wins, and the others say so.
pub async fn rotate(repo: &Repository) -> Result<Rotated, RepoError> {
    rotate_without(repo, &BTreeSet::new()).await
}

async fn rotate_without(repo: &Repository, without: &BTreeSet<SlotName>) -> Result<Rotated, RepoError> {
    let before = newest(repo).await?;
    // A rotation that was cut short left an epoch in one object alone.
    match complete(repo).await {
        Err(error) if error.is_damage() => {
            tracing::warn!(%error, "the newest key epoch is stored once instead of twice");
        }
        completed => completed?,
    }
    let keys = repo.keys();
    let slots = with_standing(repo).await?;
    let (mut given, mut passed_over) = (Vec::new(), Vec::new());
    for (name, public, standing) in slots {
        match (public, standing) {
            _ if without.contains(&name) => {}
            (Some(public), Standing::Vouched) => given.push(public),
            (_, Standing::Unvouched(reason)) => passed_over.push((name, reason)),
            (None, Standing::Vouched) => unreachable!("who vouches for a slot names its public half"),
        }
    }
    if given.is_empty() {
        let names = without.iter().map(SlotName::as_str).collect::<Vec<_>>().join(", ");
        let reason =
            format!("without {names} no key slot would be left: everything stored would be lost for ever");
        return Err(conflict(reason));
    }
    if given.len() > SLOTS_MAX {
        return Err(conflict(format!("{} key slots; {SLOTS_MAX} at most", given.len())));
    }
    let Some(next) = keys.newest().next(repo.id(), &*repo.env().entropy) else {
        return Err(conflict("there are no more numbers for key epochs".into()));
    };
    let (epoch, store) = (next.epoch, &**repo.store());
    let names = given.iter().map(|slot| slot.name().clone()).collect();
    if let Created::Taken(bytes) = make_epoch(store, &next, &given, repo.env()).await? {
        let theirs = EpochObject::decode(&bytes, repo.id(), epoch).map_err(wrong(layout::epoch(epoch)))?;
        newest(repo).await?;
        return Ok(Rotated { epoch, given: theirs.slots(), passed_over: Vec::new(), by_another: true });
    }
    repo.hold(next)?;
    let mut rotated = Rotated { epoch, given: names, passed_over, by_another: false };
    give_to_late(repo, before, without, &mut rotated).await?;
    Ok(rotated)
}

/// Gives a new epoch to slots that were added while it was made: their adding looked for it before it was there, so it is to be seen
/// now that they have the one before.
async fn give_to_late(
    repo: &Repository,
    before: u32,
    without: &BTreeSet<SlotName>,
    rotated: &mut Rotated,
) -> Result<(), RepoError> {
    let keys = repo.keys();
    let (Some(old), Some(new)) = (keys.epoch(before), keys.epoch(rotated.epoch)) else { return Ok(()) };
    let old_made = made(repo, before).await?;
    for name in KeyObjects::list(&**repo.store()).await?.slots {
        if rotated.given.contains(&name) || without.contains(&name) {
            continue;
        }
        let Ok(slot) = public(repo, &name).await? else { continue };
        if standing(repo, &slot, old, old_made.as_ref()).await? == Standing::Vouched {
            seal_own(repo, &slot, new).await?;
            rotated.passed_over.retain(|(other, _)| *other != name);
            rotated.given.push(name);
        }
    }
    Ok(())
}

/// Seals `epoch` to a slot in an object of its own, in the place of what an earlier slot of the name left behind.
async fn seal_own(repo: &Repository, slot: &SlotPublic, epoch: &EpochKeys) -> Result<(), RepoError> {
    let (store, key) = (&**repo.store(), layout::epoch_slot(epoch.epoch, slot.name()));
    loop {
        let body = Bytes::from(keyslot::seal_epoch(slot, epoch, &*repo.env().entropy));
        let Created::Taken(theirs) = create_decided(store, &key, &body).await? else { return Ok(()) };
        if keyslot::check_voucher(slot, epoch, &theirs).is_ok() {
            return Ok(());
        }
        store.delete(&key).await?;
    }
}

/// Makes slot `name`, or completes one that `unlock` opens and that was not given every epoch. Every epoch that is held is sealed to it,
/// the newest first, and it is opened before this says so.
///
/// # Errors
/// [`RepoError::Conflict`] when a slot of this name is there that `unlock` does not open.
pub async fn add(
    repo: &Repository,
    name: &SlotName,
    unlock: &Unlock,
    cost: SlotCost,
) -> Result<Added, RepoError> {
    newest(repo).await?;
    let (slot, created) = make_slot(repo, name, unlock, cost).await?;
    let mut sealed = Vec::new();
    // An epoch that another makes meanwhile may have been made before it knew of this slot.
    loop {
        let keys = repo.keys();
        let epochs: Vec<u32> = keys.epochs().map(|keys| keys.epoch).collect();
        for epoch in keys.epochs().collect::<Vec<_>>().into_iter().rev() {
            let made = made(repo, epoch.epoch).await?;
            if standing(repo, slot.public(), epoch, made.as_ref()).await? != Standing::Vouched {
                seal_own(repo, slot.public(), epoch).await?;
                sealed.push(epoch.epoch);
            }
        }
        newest(repo).await?;
        if repo.keys().epochs().map(|keys| keys.epoch).eq(epochs) {
            break;
        }
    }
    let opens = prove(repo, slot).await?;
    Ok(Added { created, sealed, opens })
}

/// The slot `name`, opened, and whether it was made now.
async fn make_slot(
    repo: &Repository,
    name: &SlotName,
    unlock: &Unlock,
    cost: SlotCost,
) -> Result<(SlotPrivate, bool), RepoError> {
    let (store, key) = (&**repo.store(), layout::slot(name));
    let (body, created) = match read_present(store, &key).await? {
        Some(there) => (there, false),
        None => {
            let slots = KeyObjects::list(store).await?.slots.len();
            if slots >= SLOTS_MAX {
                return Err(conflict(format!("there are {slots} key slots; {SLOTS_MAX} at most")));
            }
            let keys = repo.keys();
            let made = keyslot::create_slot(
                unlock,
                repo.id(),
                name,
                keys.chunk_id_key(),
                cost,
                &*repo.env().entropy,
            );
            let body = Bytes::from(made.map_err(wrong(key.clone()))?.0);
            match create_decided(store, &key, &body).await? {
                Created::Ours => (body, true),
                Created::Taken(theirs) => (theirs, false),
            }
        }
    };
    match keyslot::open_slot(&body, repo.id(), name, unlock) {
        Ok(slot) => Ok((slot, created)),
        Err(error) if created => Err(wrong(key)(error)),
        Err(KeySlotError::WrongSecret { .. } | KeySlotError::WrongKind { .. }) => Err(conflict(format!(
            "there is a key slot {name} already, and what was given does not open it; choose another name, or remove it first"
        ))),
        Err(error) => Err(wrong(key)(error)),
    }
}

/// Opens everything with `slot` alone, and holds it against what we hold. The epochs that it opens.
async fn prove(repo: &Repository, slot: SlotPrivate) -> Result<Vec<u32>, RepoError> {
    let key = layout::slot(slot.public().name());
    let ours = repo.keys();
    let epochs: BTreeSet<u32> = ours.epochs().map(|keys| keys.epoch).collect();
    let held = open_epochs(&**repo.store(), slot, &epochs).await?;
    let theirs = held.map_err(|reason| RepoError::damage(&key, reason))?.ring();
    for keys in ours.epochs() {
        let same =
            theirs.epoch_secret(keys.epoch).is_some_and(|secret| secret.0.ct_eq(&keys.secret.0).into());
        if !same {
            let reason = format!("the new slot does not open key epoch {}; do it again", keys.epoch);
            return Err(RepoError::damage(&key, reason));
        }
    }
    Ok(epochs.into_iter().collect())
}

/// Removes slots: an epoch is made that leaves them out, then they and what was sealed to them go. Done again, it does what an earlier
/// one did not.
///
/// # Errors
/// [`RepoError::NotFound`] when nothing is there of a slot; [`RepoError::Conflict`] when none would be left.
pub async fn remove(repo: &Repository, names: &BTreeSet<SlotName>) -> Result<Removed, RepoError> {
    let store = &**repo.store();
    let objects = KeyObjects::list(store).await?;
    for name in names {
        let there = objects.slots.contains(name)
            || objects.sealed.iter().any(|(_, slot)| slot == name)
            || exists(store, &layout::slot(name)).await?;
        if !there {
            return Err(RepoError::NotFound { what: format!("key slot {name}"), url: store.url() });
        }
    }
    let rotated = leave_out(repo, names).await?;
    let left = standings(repo).await?.into_iter();
    let left = left.filter(|(name, standing)| !names.contains(name) && *standing == Standing::Vouched);
    let mut done = Removed { rotated, objects: 0, left: left.map(|(name, _)| name).collect() };
    // The slot first: what is sealed to it opens for nobody then.
    let slots = names.iter().map(layout::slot);
    let sealed = KeyObjects::list(store).await?.sealed;
    let sealed = sealed.iter().filter(|(_, slot)| names.contains(slot));
    for key in slots.chain(sealed.map(|(epoch, slot)| layout::epoch_slot(*epoch, slot))) {
        if exists(store, &key).await? {
            store.delete(&key).await?;
            done.objects += 1;
        }
    }
    Ok(done)
}

/// Makes sure that the newest epoch was given to none of `names`, and to somebody else.
async fn leave_out(repo: &Repository, names: &BTreeSet<SlotName>) -> Result<Option<Rotated>, RepoError> {
    for _ in 0..ROTATE_TRIES_MAX {
        let epoch = newest(repo).await?;
        let made = made(repo, epoch).await?;
        let sealed = KeyObjects::list(&**repo.store()).await?.sealed;
        let has = |name: &SlotName| {
            sealed.contains(&(epoch, name.clone()))
                || made.as_ref().is_some_and(|made| made.slots().contains(name))
        };
        if !names.iter().any(has) {
            return Ok(None);
        }
        let rotated = rotate_without(repo, names).await?;
        if !rotated.by_another {
            return Ok(Some(rotated));
        }
    }
    Err(conflict(format!("lost {ROTATE_TRIES_MAX} rotations to others")))
}

/// Stores again what of the newest epoch is gone or was never stored: a copy for each slot that it was made for.
pub async fn complete(repo: &Repository) -> Result<(), RepoError> {
    let epoch = repo.keys().newest().epoch;
    let Some(made) = made(repo, epoch).await? else { return Ok(()) };
    for (_, public, standing) in with_standing(repo).await? {
        if let (Some(public), Standing::Vouched) = (public, standing) {
            keys::copy(&**repo.store(), &made, epoch, &public).await?;
        }
    }
    Ok(())
}
