//! Giving an epoch to one slot, in an object of its own, beside whoever destroys that epoch. Spec: formats/keys.md.

use super::error::RepoError;
use super::keys::KeyObjects;
use super::layout;
use super::repository::{Created, Repository, create_decided, exists};
use super::slots::{Standing, made, standing};
use crate::base::{ObjectKey, SlotName};
use crate::codec::EpochKeys;
use crate::codec::keyslot::{self, SlotPublic};
use bytes::Bytes;

/// What became of giving an epoch to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// The slot has it, and had it before.
    Before,
    /// The slot has it now.
    Now,
    /// The epoch was destroyed: nobody is given it any more.
    Destroyed,
}

/// Seals `epoch` to a slot in an object of its own, in the place of what an earlier slot of the name left behind; takes it back if the
/// epoch was destroyed meanwhile. Whoever destroys it looks again for what appeared: one of the two sees the other.
pub(super) async fn give(
    repo: &Repository,
    slot: &SlotPublic,
    epoch: &EpochKeys,
) -> Result<Given, RepoError> {
    let (store, key) = (&**repo.store(), layout::epoch_slot(epoch.epoch, slot.name()));
    let made_by = layout::epoch(epoch.epoch);
    let whole = made(repo, epoch.epoch).await?;
    let there = exists(store, &made_by).await?;
    if !there && !others_have(repo, epoch.epoch, slot.name()).await? {
        return Ok(Given::Destroyed);
    }
    if standing(repo, slot, epoch, whole.as_ref()).await? == Standing::Vouched {
        return Ok(Given::Before);
    }
    seal_own(repo, slot, epoch, &key).await?;
    let still = match there {
        true => exists(store, &made_by).await?,
        // That object was lost before we began.
        false => others_have(repo, epoch.epoch, slot.name()).await?,
    };
    if still {
        return Ok(Given::Now);
    }
    store.delete(&key).await?;
    Ok(Given::Destroyed)
}

/// Whether another slot than `but` has `epoch` in an object of its own.
pub(super) async fn others_have(repo: &Repository, epoch: u32, but: &SlotName) -> Result<bool, RepoError> {
    let objects = KeyObjects::list(&**repo.store()).await?;
    Ok(objects.sealed.iter().any(|(of, slot)| *of == epoch && slot != but))
}

async fn seal_own(
    repo: &Repository,
    slot: &SlotPublic,
    epoch: &EpochKeys,
    key: &ObjectKey,
) -> Result<(), RepoError> {
    let store = &**repo.store();
    loop {
        let body = Bytes::from(keyslot::seal_epoch(slot, epoch, &*repo.env().entropy));
        let Created::Taken(theirs) = create_decided(store, key, &body).await? else { return Ok(()) };
        if keyslot::check_voucher(slot, epoch, &theirs).is_ok() {
            return Ok(());
        }
        store.delete(key).await?;
    }
}
