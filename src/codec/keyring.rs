//! The secrets of key epochs that an opened slot gave, and how epochs follow each other. Spec: formats/keys.md.

use super::keyslot::KeySlotError;
use super::seal::{ChunkIdKey, EpochSecret, KeySource, derive};
use crate::base::clock::random_bytes;
use crate::base::{Entropy, RepositoryId};
use crate::format::header::LASTING_EPOCH;
use std::collections::BTreeMap;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

const LINK_CONTEXT: &str = "walden v1 epoch link";
const LASTING_CONTEXT: &str = "walden v1 lasting secret";

/// The secrets of one epoch.
#[derive(Clone)]
pub struct EpochKeys {
    /// Its number; the first is 1.
    pub epoch: u32,
    /// The secret that objects sealed in this epoch derive their keys from.
    pub secret: EpochSecret,
    /// The key of chunk ids: the same in every epoch of a repository.
    pub chunk_id_key: ChunkIdKey,
    /// Proof, under the secret of the epoch before, that its holder made this one; zero in the first.
    link: [u8; 32],
}

impl EpochKeys {
    /// The first epoch of a new repository.
    pub fn first(entropy: &dyn Entropy) -> Self {
        let (secret, chunk_id_key) = (EpochSecret(random_bytes(entropy)), ChunkIdKey(random_bytes(entropy)));
        EpochKeys { epoch: 1, secret, chunk_id_key, link: [0; 32] }
    }

    /// The epoch after this one, with a secret of its own. `None` after the last that 32 bits count.
    pub fn next(&self, repository: RepositoryId, entropy: &dyn Entropy) -> Option<Self> {
        let (secret, chunk_id_key) = (EpochSecret(random_bytes(entropy)), self.chunk_id_key.clone());
        let mut next = EpochKeys { epoch: self.epoch.checked_add(1)?, secret, chunk_id_key, link: [0; 32] };
        next.link = self.link_to(&next, repository);
        Some(next)
    }

    pub(super) fn from_parts(
        epoch: u32,
        secret: EpochSecret,
        chunk_id_key: ChunkIdKey,
        link: [u8; 32],
    ) -> Self {
        EpochKeys { epoch, secret, chunk_id_key, link }
    }

    pub(super) fn link(&self) -> &[u8; 32] {
        &self.link
    }

    fn link_to(&self, next: &EpochKeys, repository: RepositoryId) -> [u8; 32] {
        let key = derive(LINK_CONTEXT, &[&self.secret.0]);
        let mut hasher = Zeroizing::new(blake3::Hasher::new_keyed(&key));
        hasher.update(&repository.0);
        hasher.update(&next.epoch.to_le_bytes());
        hasher.update(&next.secret.0);
        hasher.update(&next.chunk_id_key.0);
        *hasher.finalize().as_bytes()
    }
}

impl Drop for EpochKeys {
    fn drop(&mut self) {
        self.link.zeroize();
    }
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochKeys").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The epochs at hand. Never empty; they follow each other by their links wherever neighbours are held.
#[derive(Clone)]
pub struct Keyring {
    repository: RepositoryId,
    chunk_id_key: ChunkIdKey,
    /// What seals objects that stay readable as long as the repository.
    lasting: EpochSecret,
    epochs: BTreeMap<u32, EpochKeys>,
    newest: u32,
}

impl Keyring {
    /// A ring of one epoch.
    pub fn new(repository: RepositoryId, keys: EpochKeys) -> Self {
        let (chunk_id_key, newest) = (keys.chunk_id_key.clone(), keys.epoch);
        let lasting = EpochSecret(*derive(LASTING_CONTEXT, &[&chunk_id_key.0, &repository.0]));
        Keyring { repository, chunk_id_key, lasting, epochs: BTreeMap::from([(keys.epoch, keys)]), newest }
    }

    /// Adds an epoch, in any order. Refuses one of another chunk id key, one that its neighbours' links do not
    /// confirm, and another secret for an epoch that is held.
    pub fn insert(&mut self, keys: EpochKeys) -> Result<(), KeySlotError> {
        let unlinked = |epoch, reason| Err(KeySlotError::Unlinked { epoch, reason });
        let epoch = keys.epoch;
        if !bool::from(keys.chunk_id_key.0.ct_eq(&self.chunk_id_key.0)) {
            return unlinked(epoch, "its chunk id key is not the repository's");
        }
        if self.epochs.get(&epoch).is_some_and(|held| !bool::from(held.secret.0.ct_eq(&keys.secret.0))) {
            return unlinked(epoch, "another secret of this epoch is held");
        }
        let before = epoch.checked_sub(1).and_then(|before| self.epochs.get(&before));
        if before.is_some_and(|before| !self.confirms(before, &keys)) {
            return unlinked(epoch, "the epoch before it did not make it");
        }
        let after = epoch.checked_add(1).and_then(|after| self.epochs.get(&after));
        if let Some(after) = after.filter(|after| !self.confirms(&keys, after)) {
            return unlinked(after.epoch, "the epoch before it did not make it");
        }
        self.newest = self.newest.max(epoch);
        self.epochs.insert(epoch, keys);
        Ok(())
    }

    /// The repository whose keys these are.
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// The newest epoch: the one that seals.
    pub fn newest(&self) -> &EpochKeys {
        match self.epochs.get(&self.newest) {
            Some(keys) => keys,
            None => unreachable!("the ring holds its newest epoch"),
        }
    }

    /// One epoch.
    pub fn epoch(&self, epoch: u32) -> Option<&EpochKeys> {
        self.epochs.get(&epoch)
    }

    /// Epochs held, oldest first.
    pub fn epochs(&self) -> impl Iterator<Item = &EpochKeys> {
        self.epochs.values()
    }

    fn confirms(&self, before: &EpochKeys, after: &EpochKeys) -> bool {
        before.link_to(after, self.repository).ct_eq(&after.link).into()
    }
}

impl KeySource for Keyring {
    fn epoch_secret(&self, epoch: u32) -> Option<&EpochSecret> {
        match epoch {
            LASTING_EPOCH => Some(&self.lasting),
            epoch => self.epochs.get(&epoch).map(|keys| &keys.secret),
        }
    }

    fn chunk_id_key(&self) -> &ChunkIdKey {
        &self.chunk_id_key
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epochs: Vec<u32> = self.epochs.keys().copied().collect();
        f.debug_struct("Keyring").field("repository", &self.repository).field("epochs", &epochs).finish()
    }
}
