//! How key epochs follow each other. Each epoch has a pair of link keys, which follows from its secret; the public one is signed with
//! the private one of the epoch before. So whoever knows the public key of one epoch can tell, without any secret, which later epochs
//! were made by somebody who held the one before each of them, also when those in between were destroyed. No IO. Spec: formats/keys.md.

use super::keyring::EpochKeys;
use super::keyslot::{KeySlotError, misplaced};
use super::seal::{EpochSecret, derive};
use crate::base::RepositoryId;
use crate::base::planted::{Bug, planted};
use crate::format::envelope::PlainObject;
use crate::format::keyslot::EpochLink;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::collections::BTreeMap;

const LINK_CONTEXT: &str = "walden v1 epoch link";

/// A public link key.
pub type LinkKey = [u8; 32];

/// The public link key of the epoch whose secret this is.
pub fn link_key(secret: &EpochSecret) -> LinkKey {
    pair(secret).verifying_key().to_bytes()
}

/// The link of the epoch after `before`, whose public link key is `public`. The same every time it is made.
pub fn make_link(repository: RepositoryId, before: &EpochKeys, public: LinkKey) -> EpochLink {
    let epoch = before.epoch.saturating_add(1);
    let signature = pair(&before.secret).sign(&message(repository, epoch, &public)).to_bytes();
    EpochLink { repository, epoch, public, signature }
}

/// Reads the `keys/epochs/<epoch>/_link` object `bytes` of `repository`. Whether it is right is for [`Chain::extend`] to say.
pub fn decode_link(bytes: &[u8], repository: RepositoryId, epoch: u32) -> Result<EpochLink, KeySlotError> {
    let link = EpochLink::from_object(bytes)?;
    if link.repository != repository {
        return Err(misplaced("the link's repository", &link.repository, &repository));
    }
    if link.epoch != epoch {
        return Err(misplaced("the link's epoch", &link.epoch, &epoch));
    }
    Ok(link)
}

fn pair(secret: &EpochSecret) -> SigningKey {
    SigningKey::from_bytes(&derive(LINK_CONTEXT, &[&secret.0]))
}

fn message(repository: RepositoryId, epoch: u32, public: &LinkKey) -> Vec<u8> {
    [LINK_CONTEXT.as_bytes(), &repository.0, &epoch.to_le_bytes(), public].concat()
}

/// Whether the holder of the epoch with link key `before` signed `link`.
fn signed(before: &LinkKey, link: &EpochLink) -> bool {
    let message = message(link.repository, link.epoch, &link.public);
    let key = VerifyingKey::from_bytes(before);
    key.is_ok_and(|key| key.verify_strict(&message, &Signature::from_bytes(&link.signature)).is_ok())
}

/// The link keys of epochs that follow each other, without a hole. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    repository: RepositoryId,
    keys: BTreeMap<u32, LinkKey>,
}

impl Chain {
    /// A chain that begins with `epoch`, whose link key is trusted to be `key`.
    pub fn new(repository: RepositoryId, epoch: u32, key: LinkKey) -> Chain {
        Chain { repository, keys: BTreeMap::from([(epoch, key)]) }
    }

    /// The repository.
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// The first epoch whose link key is known.
    pub fn first(&self) -> u32 {
        self.ends().0
    }

    /// The last one: there may be later ones that nobody told us of.
    pub fn last(&self) -> u32 {
        self.ends().1
    }

    /// The link key of `epoch`.
    pub fn key(&self, epoch: u32) -> Option<&LinkKey> {
        self.keys.get(&epoch)
    }

    /// Adds the epoch after the last.
    ///
    /// # Errors
    /// [`KeySlotError::Unlinked`] when the last one's holder did not sign `link`, or it is of another epoch.
    pub fn extend(&mut self, link: &EpochLink) -> Result<(), KeySlotError> {
        let last = self.last();
        let follows = last.checked_add(1) == Some(link.epoch) && link.repository == self.repository;
        if !follows || !self.key(last).is_some_and(|before| signed(before, link)) {
            return Err(unlinked(link.epoch, "its link was not signed by the epoch before"));
        }
        self.keys.insert(link.epoch, link.public);
        Ok(())
    }

    /// Takes over what `other`, which is longer, knows.
    ///
    /// # Errors
    /// [`KeySlotError::Unlinked`] when the two do not agree.
    pub fn catch_up(&mut self, other: &Chain) -> Result<(), KeySlotError> {
        for (epoch, key) in &other.keys {
            if self.key(*epoch).is_some_and(|known| known != key) {
                return Err(unlinked(*epoch, "two links lead to two epochs of this number"));
            }
        }
        self.keys.extend(&other.keys);
        Ok(())
    }

    /// Adds `keys`, of an epoch before the first, by the `links` from there on: they have to arrive at the key that is known.
    ///
    /// # Errors
    /// [`KeySlotError::Unlinked`] when they do not.
    pub fn reach_back(
        &mut self,
        keys: &EpochKeys,
        links: &BTreeMap<u32, EpochLink>,
    ) -> Result<(), KeySlotError> {
        let mut before = Chain::new(self.repository, keys.epoch, link_key(&keys.secret));
        while before.last() < self.first() {
            let next = before.last().saturating_add(1);
            let link = links.get(&next).ok_or_else(|| unlinked(next, "its link is gone"))?;
            before.extend(link)?;
        }
        let meets = before.last();
        if before.key(meets) != self.key(meets) {
            return Err(unlinked(keys.epoch, "the epochs after it do not follow from it"));
        }
        self.keys.append(&mut before.keys);
        Ok(())
    }

    /// Whether `keys` are those of their epoch.
    ///
    /// # Errors
    /// [`KeySlotError::Unlinked`] when they are not, or nothing is known of that epoch.
    pub fn check(&self, keys: &EpochKeys) -> Result<(), KeySlotError> {
        match self.key(keys.epoch) {
            None => {
                Err(unlinked(keys.epoch, "no links lead to it from the epoch that the key slot began with"))
            }
            Some(_) if planted(Bug::LinksNotChecked) => Ok(()),
            Some(key) if *key == link_key(&keys.secret) => Ok(()),
            Some(_) => Err(unlinked(keys.epoch, "the epoch before it did not make it")),
        }
    }

    fn ends(&self) -> (u32, u32) {
        match (self.keys.first_key_value(), self.keys.last_key_value()) {
            (Some((first, _)), Some((last, _))) => (*first, *last),
            _ => unreachable!("a chain begins with an epoch"),
        }
    }
}

pub(super) fn unlinked(epoch: u32, reason: &'static str) -> KeySlotError {
    KeySlotError::Unlinked { epoch, reason }
}
