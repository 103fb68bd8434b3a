//! The links of key epochs in the store: reading, following, and storing them. A number's link decides which epoch has it: it is created
//! once and never removed, so an epoch that was destroyed is never made again by somebody who stalled. Spec: formats/keys.md.

use super::error::RepoError;
use super::keys::read_present;
use super::layout;
use super::repository::{Created, Repository, create_decided};
use crate::base::RepositoryId;
use crate::codec::link::{Chain, decode_link, make_link};
use crate::codec::{EpochObject, KeySlotError};
use crate::format::envelope::PlainObject;
use crate::format::keyslot::{EpochLink, FIRST_EPOCH};
use crate::store::{Store, StoreError};
use bytes::Bytes;

const NOT_SIGNED: &str = "the epoch before did not sign it: somebody planted it, or it is damaged; open the repository with a key slot that was given the \
     epoch before, or remove it, and do this again";

/// Where the link of an epoch is looked for when it has no object of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nowhere: there is no such epoch yet, or somebody is about to store the link.
    Ends,
    /// In the object that made the epoch: whoever made it may have died before it stored the link.
    AskEpoch,
}

/// The link in the object that made `epoch`, if it can be read.
pub(super) async fn of_epoch(
    store: &dyn Store,
    repository: RepositoryId,
    epoch: u32,
) -> Result<Option<EpochLink>, RepoError> {
    let made = read_present(store, &layout::epoch(epoch)).await?;
    Ok(made.and_then(|bytes| EpochObject::decode(&bytes, repository, epoch).ok()?.link()))
}

/// The link of `epoch` by itself; the inner error says what is wrong with its object.
pub(super) async fn read(
    store: &dyn Store,
    repository: RepositoryId,
    epoch: u32,
) -> Result<Option<Result<EpochLink, KeySlotError>>, RepoError> {
    let bytes = read_present(store, &layout::epoch_link(epoch)).await?;
    Ok(bytes.map(|bytes| decode_link(&bytes, repository, epoch)))
}

/// Extends `chain` by the epoch after its last. Whether there was one: a link that nobody with that epoch signed counts for nothing.
pub(super) async fn step(store: &dyn Store, chain: &mut Chain, missing: Missing) -> Result<bool, RepoError> {
    let Some(next) = chain.last().checked_add(1) else { return Ok(false) };
    let wrong = match read(store, chain.repository(), next).await? {
        Some(link) => match link.and_then(|link| chain.extend(&link)) {
            Ok(()) => return Ok(true),
            Err(error) => Some(error),
        },
        None if missing == Missing::Ends => return Ok(false),
        None => None,
    };
    let made = of_epoch(store, chain.repository(), next).await?;
    let extended = made.is_some_and(|link| chain.extend(&link).is_ok());
    if let Some(error) = wrong {
        let key = layout::epoch_link(next);
        tracing::warn!(%key, %error, "a link of a key epoch is damaged, or somebody planted it");
    }
    Ok(extended)
}

/// Stores `link`. Whether it is there now; not when the number was won by another epoch before, which may have been destroyed since.
pub(super) async fn store(repo: &Repository, link: &EpochLink) -> Result<bool, RepoError> {
    let (key, body) = (layout::epoch_link(link.epoch), Bytes::from(link.to_object()));
    let Created::Taken(theirs) = create_decided(&**repo.store(), &key, &body).await? else { return Ok(true) };
    let theirs = decode_link(&theirs, repo.id(), link.epoch);
    match theirs {
        Ok(theirs) if follows(repo, &theirs) => Ok(theirs.public == link.public),
        Ok(_) => Err(RepoError::damage(&key, NOT_SIGNED)),
        Err(error) => Err(RepoError::damage(&key, error)),
    }
}

/// Stores every link that is known and not there, or there and wrong, and that of `also`: made again, or by the object that made its
/// epoch.
///
/// # Errors
/// [`RepoError::Damage`] names a link that is there and wrong and cannot be made again, after all the others were looked at;
/// [`RepoError::Conflict`] says that the link of `also` is nowhere: without it, nothing later could be proved once its epoch is gone; or
/// that an epoch that we hold is void, since another has its number.
pub(super) async fn complete(repo: &Repository, also: Option<u32>) -> Result<(), RepoError> {
    let keys = repo.keys();
    let chain = keys.chain();
    let known = chain.first().saturating_add(1)..=chain.last();
    let also = also.filter(|epoch| *epoch != FIRST_EPOCH);
    let beyond = also.filter(|epoch| !known.contains(epoch));
    let mut wrong = Ok(());
    for epoch in known.chain(beyond) {
        let there = match is_stored(repo, epoch).await {
            Ok(true) => continue,
            Ok(false) => None,
            Err(error) if error.is_damage() => Some(error),
            Err(error) => return Err(error),
        };
        match (there, known_elsewhere(repo, epoch).await?) {
            (None, Some(link)) if store(repo, &link).await? => {}
            (None, Some(_)) => return Err(void(epoch)),
            // What stands in its place goes only for one that is proved.
            (Some(error), Some(link)) if chain.key(epoch) == Some(&link.public) && follows(repo, &link) => {
                match replace(repo, &link, error).await {
                    Err(error) if error.is_damage() => wrong = wrong.and(Err(error)),
                    replaced => replaced?,
                }
            }
            (Some(error), _) => wrong = wrong.and(Err(error)),
            (None, None) if also == Some(epoch) => return Err(lost(epoch)),
            (None, None) => {}
        }
    }
    wrong
}

/// Puts `link`, which is proved, in the place of what is `wrong`. If dropped: it is missing, and stored when this is done again, out of
/// the object that made its epoch; without that, nothing is deleted.
///
/// # Errors
/// [`RepoError::Damage`] when it stays wrong: there is no such object, or the store does not delete.
async fn replace(repo: &Repository, link: &EpochLink, wrong: RepoError) -> Result<(), RepoError> {
    let key = layout::epoch_link(link.epoch);
    let made = of_epoch(&**repo.store(), repo.id(), link.epoch).await?;
    if made.is_none_or(|made| made.public != link.public) {
        return Err(wrong);
    }
    // Somebody else may have put it in its place since it was looked at.
    match is_stored(repo, link.epoch).await {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) if error.is_damage() => match repo.store().delete(&key).await {
            Ok(()) => {}
            Err(error @ StoreError::Unknown { .. }) => return Err(error.into()),
            Err(error) => {
                return Err(RepoError::damage(&key, format!("{wrong}; it cannot be made again: {error}")));
            }
        },
        Err(error) => return Err(error),
    }
    if !store(repo, link).await? {
        return Err(void(link.epoch));
    }
    tracing::warn!(%key, "the link of key epoch {} was made again, in the place of what was wrong: {wrong}", link.epoch);
    Ok(())
}

/// The link of `epoch`, wherever it is, if it is right as far as that can be told.
pub(super) async fn find(repo: &Repository, epoch: u32) -> Result<Option<EpochLink>, RepoError> {
    let stored = read(&**repo.store(), repo.id(), epoch).await?.and_then(Result::ok);
    let link = match stored.filter(|link| follows(repo, link)) {
        Some(link) => Some(link),
        None => known_elsewhere(repo, epoch).await?,
    };
    Ok(link.filter(|link| follows(repo, link)))
}

/// The link of `epoch` without its own object: made again by who holds the epoch before, or by the object that made the epoch.
async fn known_elsewhere(repo: &Repository, epoch: u32) -> Result<Option<EpochLink>, RepoError> {
    let keys = repo.keys();
    let held = epoch.checked_sub(1).and_then(|before| keys.epoch(before)).zip(keys.chain().key(epoch));
    match held {
        Some((before, public)) => Ok(Some(make_link(repo.id(), before, *public))),
        None => of_epoch(&**repo.store(), repo.id(), epoch).await,
    }
}

/// Whether the link of `epoch` is there by itself, and right as far as that can be told.
async fn is_stored(repo: &Repository, epoch: u32) -> Result<bool, RepoError> {
    let key = layout::epoch_link(epoch);
    let link = match read(&**repo.store(), repo.id(), epoch).await? {
        None => return Ok(false),
        Some(read) => read.map_err(|error| RepoError::damage(&key, error))?,
    };
    match follows(repo, &link) {
        true => Ok(true),
        false => Err(RepoError::damage(&key, NOT_SIGNED)),
    }
}

/// Whether the epoch before signed `link`, as far as its link key is known.
fn follows(repo: &Repository, link: &EpochLink) -> bool {
    let keys = repo.keys();
    let before = link.epoch.saturating_sub(1);
    let known = keys.chain().key(before).copied();
    known.is_none_or(|known| Chain::new(repo.id(), before, known).extend(link).is_ok())
}

fn void(epoch: u32) -> RepoError {
    let reason = format!(
        "the number of key epoch {epoch} was won by another epoch, so what this process holds of it is void: nothing is sealed under it; do \
         this again"
    );
    RepoError::Conflict { reason }
}

fn lost(epoch: u32) -> RepoError {
    let key = layout::epoch_link(epoch);
    let reason = format!(
        "the link of key epoch {epoch}, {key}, is gone, and no other object has it: without it key slots that were made before \
         that epoch could not tell later epochs from planted ones; nothing was destroyed"
    );
    RepoError::Conflict { reason }
}
