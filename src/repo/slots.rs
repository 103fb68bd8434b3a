//! What an operator does to the keys: adding and removing slots, rotating, and seeing what there is.
//! A rotation is the creation of one object; a slot is removed by an epoch that leaves it out, so that of any number of removals
//! one slot is always left. Each step can be stopped anywhere and done again. Spec: formats/keys.md.

use super::error::RepoError;
use super::giving::{Given, give, others_have};
use super::keys::{self, KeyObjects, make_epoch, read_present};
use super::layout;
use super::links;
use super::repository::{Created, Repository, create_decided, exists};
use super::unseal::open_epochs;
use crate::base::planted::{Bug, planted};
use crate::base::{ObjectKey, SlotName};
use crate::codec::keyslot::{self, SlotCost, SlotPrivate, SlotPublic, Unlock};
use crate::codec::{EpochKeys, EpochObject, KeySlotError, KeySource};
use crate::format::keyslot::{EpochLink, FIRST_EPOCH, SLOTS_MAX};
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

/// Follows to the newest epoch, and completes one whose maker died right after it made it.
///
/// # Errors
/// [`RepoError::Conflict`] when the newest was not given to our slot: we could neither read what is sealed under it, nor seal under it,
/// nor make the next.
pub async fn newest(repo: &Repository) -> Result<u32, RepoError> {
    let epoch = repo.follow_interrupted().await?.map_err(|epoch| {
        let slot = repo.slot().name();
        conflict(format!(
            "key epoch {epoch} was not given to key slot {slot}, which opened the repository; open it with another slot"
        ))
    })?;
    if epoch != FIRST_EPOCH && !exists(&**repo.store(), &layout::epoch_link(epoch)).await? {
        links::complete(repo, None).await?;
    }
    Ok(epoch)
}

/// The public half of a slot; the inner error says why it has none.
async fn public(repo: &Repository, name: &SlotName) -> Result<Result<SlotPublic, String>, RepoError> {
    let Some(bytes) = read_present(&**repo.store(), &layout::slot(name)).await? else {
        return Ok(Err("it is gone".into()));
    };
    Ok(keyslot::slot_public(&bytes, repo.id(), name).map_err(|error| error.to_string()))
}

/// The object that made `epoch`, if it can be read.
pub(super) async fn made(repo: &Repository, epoch: u32) -> Result<Option<EpochObject>, RepoError> {
    let bytes = read_present(&**repo.store(), &layout::epoch(epoch)).await?;
    Ok(bytes.and_then(|bytes| EpochObject::decode(&bytes, repo.id(), epoch).ok()))
}

/// Whether `epoch`, which we hold, was given to `slot` by somebody who held it.
pub(super) async fn standing(
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
    // Listed first: whatever was made of it by somebody who held the newest is followed to.
    let listed = KeyObjects::list(&**repo.store()).await?;
    let before = newest(repo).await?;
    if let Some(stray) = listed.epochs.union(&listed.links).find(|epoch| **epoch > before) {
        return Err(conflict(format!(
            "key epoch {stray} is there, and no links lead to it from epoch {before}: it is not proved. If it was planted, \
             `walden key destroy {stray}` removes it; if links below keys/epochs are lost, put them back from a copy, or open the \
             repository with a key slot that was made later"
        )));
    }
    // A rotation that was cut short left an epoch in one object alone.
    complete_or_say(repo).await?;
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
        return Err(conflict(for_nobody(before, without, &passed_over)));
    }
    if given.len() > SLOTS_MAX {
        return Err(conflict(format!("{} key slots; {SLOTS_MAX} at most", given.len())));
    }
    let Some(next) = keys.newest().next(&*repo.env().entropy) else {
        return Err(conflict("there are no more numbers for key epochs".into()));
    };
    let link = keys.newest().link_to(&next, repo.id());
    let (epoch, store) = (next.epoch, &**repo.store());
    let made = EpochObject::create(repo.id(), &next, Some(&link), &given, &*repo.env().entropy);
    if let Created::Taken(_) = make_epoch(store, &made).await? {
        return by_another(repo, epoch).await;
    }
    if !links::store(repo, &link).await? {
        // Its number was won before, and what was made under it destroyed since: ours is void.
        store.delete(&layout::epoch(epoch)).await?;
        return by_another(repo, epoch).await;
    }
    repo.hold(next, &link)?;
    keys::copies(store, &made, &given).await?;
    let names = given.iter().map(|slot| slot.name().clone()).collect();
    let mut rotated = Rotated { epoch, given: names, passed_over, by_another: false };
    give_to_late(repo, before, without, &mut rotated).await?;
    Ok(rotated)
}

/// Why an epoch after `newest` would be given to nobody.
fn for_nobody(newest: u32, without: &BTreeSet<SlotName>, passed_over: &[(SlotName, String)]) -> String {
    let names = without.iter().map(SlotName::as_str).collect::<Vec<_>>().join(", ");
    let others = passed_over.iter().map(|(name, reason)| format!("key slot {name}: {reason}"));
    let others = others.collect::<Vec<_>>().join("; ");
    match without.is_empty() {
        true => format!(
            "no key slot shows that it was given key epoch {newest}, so the next would be for nobody: {others}"
        ),
        false if passed_over.is_empty() => {
            format!("without {names} no key slot would be left: everything stored would be lost for ever")
        }
        false => format!(
            "without {names} no key slot would be left that was given key epoch {newest}: everything stored would be lost for ever; {others}"
        ),
    }
}

/// The rotation that made `epoch`, or a later one, before ours did.
async fn by_another(repo: &Repository, epoch: u32) -> Result<Rotated, RepoError> {
    let newest = newest(repo).await?;
    if newest < epoch {
        let reason = "the epoch before it did not make it; somebody planted it, or it is damaged: remove it, and rotate again";
        return Err(wrong(layout::epoch(epoch))(KeySlotError::Unlinked { epoch, reason }));
    }
    let given = made(repo, newest).await?.map(|theirs| theirs.slots()).unwrap_or_default();
    Ok(Rotated { epoch: newest, given, passed_over: Vec::new(), by_another: true })
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
            give(repo, &slot, new).await?;
            rotated.passed_over.retain(|(other, _)| *other != name);
            rotated.given.push(name);
        }
    }
    Ok(())
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
    let has = loop {
        let (keys, mut has) = (repo.keys(), BTreeSet::new());
        let epochs: Vec<u32> = keys.epochs().map(|keys| keys.epoch).collect();
        for epoch in keys.epochs().collect::<Vec<_>>().into_iter().rev() {
            match give(repo, slot.public(), epoch).await? {
                Given::Destroyed => continue,
                Given::Now => sealed.push(epoch.epoch),
                Given::Before => {}
            }
            has.insert(epoch.epoch);
        }
        newest(repo).await?;
        if repo.keys().epochs().map(|keys| keys.epoch).eq(epochs) {
            break has;
        }
    };
    let opens = prove(repo, slot, has).await?;
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
            let made =
                keyslot::create_slot(unlock, repo.id(), name, keys.newest(), cost, &*repo.env().entropy);
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

/// Opens the epochs that `slot` `has` with it alone, and holds them against what we hold. An epoch that was destroyed meanwhile is no
/// fault of it. The epochs that it opens.
async fn prove(repo: &Repository, slot: SlotPrivate, has: BTreeSet<u32>) -> Result<Vec<u32>, RepoError> {
    let (store, name) = (&**repo.store(), slot.public().name().clone());
    let (key, ours) = (layout::slot(&name), repo.keys());
    let mut objects = KeyObjects::list(store).await?;
    objects.epochs.extend(&has);
    let held = open_epochs(store, slot, &objects).await?;
    let theirs = held.map_err(|shut| RepoError::damage(&key, shut))?.ring();
    let mut opens = Vec::new();
    for keys in ours.epochs().filter(|keys| has.contains(&keys.epoch)) {
        let same =
            theirs.epoch_secret(keys.epoch).is_some_and(|secret| secret.0.ct_eq(&keys.secret.0).into());
        if same {
            opens.push(keys.epoch);
            continue;
        }
        if exists(store, &layout::epoch(keys.epoch)).await? || others_have(repo, keys.epoch, &name).await? {
            let reason = format!("the new slot does not open key epoch {}; do it again", keys.epoch);
            return Err(RepoError::damage(&key, reason));
        }
    }
    Ok(opens)
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

/// Makes sure that the newest epoch was given to none of `names`, and to somebody else. As long as one of them is there, it makes the
/// epoch itself: whoever is to be removed may have made the newest one, and know it without having been given it.
async fn leave_out(repo: &Repository, names: &BTreeSet<SlotName>) -> Result<Option<Rotated>, RepoError> {
    let mut there = false;
    for name in names {
        there |= exists(&**repo.store(), &layout::slot(name)).await?;
    }
    for _ in 0..ROTATE_TRIES_MAX {
        let epoch = newest(repo).await?;
        let made = made(repo, epoch).await?;
        let sealed = KeyObjects::list(&**repo.store()).await?.sealed;
        let has = |name: &SlotName| {
            sealed.contains(&(epoch, name.clone()))
                || made.as_ref().is_some_and(|made| made.slots().contains(name))
        };
        if !there && !names.iter().any(has) {
            return Ok(None);
        }
        let rotated = rotate_without(repo, names).await?;
        if !rotated.by_another {
            return Ok(Some(rotated));
        }
    }
    Err(conflict(format!("lost {ROTATE_TRIES_MAX} rotations to others")))
}

/// Sees to it that the newest epoch is there for everybody before anything is sealed under it: whoever made it may have died right after,
/// and then nobody who runs finds it, and one damaged object would lose it. Looks once; an epoch that was followed to by its link is known.
///
/// # Errors
/// [`RepoError::Conflict`] when it is void.
pub(super) async fn settle(repo: &Repository) -> Result<(), RepoError> {
    let newest = repo.keys().newest().epoch;
    if repo.is_settled(newest) {
        return Ok(());
    }
    if !exists(&**repo.store(), &layout::epoch_link(newest)).await? {
        tracing::warn!("the rotation that made key epoch {newest} was cut short; it is completed");
        complete_or_say(repo).await?;
    }
    repo.set_settled(newest);
    Ok(())
}

/// Stores again what of the newest epoch is gone or was never stored: a copy for each slot that it was made for, and the links that
/// lead to it.
pub async fn complete(repo: &Repository) -> Result<(), RepoError> {
    links::complete(repo, None).await?;
    let epoch = repo.keys().newest().epoch;
    let Some(made) = made(repo, epoch).await? else { return Ok(()) };
    let vouched = with_standing(repo).await?.into_iter();
    let vouched = vouched.filter(|(_, _, standing)| *standing == Standing::Vouched);
    let publics: Vec<SlotPublic> = vouched.filter_map(|(_, public, _)| public).collect();
    keys::copies(&**repo.store(), &made, &publics).await
}

/// [`complete`], as far as that goes: damage is said, and keeps nobody from working.
async fn complete_or_say(repo: &Repository) -> Result<(), RepoError> {
    match complete(repo).await {
        Err(error) if error.is_damage() => {
            tracing::warn!(%error, "the newest key epoch, or a link to it, is stored once instead of twice");
            Ok(())
        }
        completed => completed,
    }
}

/// Sees to it that the links are there by which whatever comes after `epoch` is proved without it.
///
/// # Errors
/// [`RepoError::Conflict`] when its own is nowhere.
pub async fn complete_links(repo: &Repository, epoch: u32) -> Result<(), RepoError> {
    links::complete(repo, Some(epoch)).await
}

/// The link of `epoch`, to be given to [`keep_link`]; none when it is nowhere.
pub async fn link(repo: &Repository, epoch: u32) -> Result<Option<EpochLink>, RepoError> {
    links::find(repo, epoch).await
}

/// Stores `link` if it is gone: whoever made it again may have stalled between deleting what was wrong and storing it, while the object
/// that made its epoch was destroyed.
pub async fn keep_link(repo: &Repository, link: &EpochLink) -> Result<(), RepoError> {
    links::store(repo, link).await.map(drop)
}
