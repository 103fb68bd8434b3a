//! The secrets of key epochs that an opened slot gave, and how epochs follow each other. Spec: formats/keys.md.

use super::keyslot::KeySlotError;
use super::link::{self, Chain, unlinked};
use super::seal::{ChunkIdKey, EpochSecret, KeySource, derive};
use crate::base::clock::random_bytes;
use crate::base::{Entropy, RepositoryId};
use crate::format::header::LASTING_EPOCH;
use crate::format::keyslot::{EpochLink, FIRST_EPOCH};
use std::collections::BTreeMap;
use std::fmt;
use subtle::ConstantTimeEq;

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
}

impl EpochKeys {
    /// The first epoch of a new repository.
    pub fn first(entropy: &dyn Entropy) -> Self {
        let (secret, chunk_id_key) = (EpochSecret(random_bytes(entropy)), ChunkIdKey(random_bytes(entropy)));
        EpochKeys { epoch: FIRST_EPOCH, secret, chunk_id_key }
    }

    /// The epoch after this one, with a secret of its own. `None` after the last that 32 bits count.
    pub fn next(&self, entropy: &dyn Entropy) -> Option<Self> {
        let (secret, chunk_id_key) = (EpochSecret(random_bytes(entropy)), self.chunk_id_key.clone());
        Some(EpochKeys { epoch: self.epoch.checked_add(1)?, secret, chunk_id_key })
    }

    /// The link of `next`, the epoch after this one.
    pub fn link_to(&self, next: &EpochKeys, repository: RepositoryId) -> EpochLink {
        assert_eq!(Some(next.epoch), self.epoch.checked_add(1), "an epoch links the next one");
        link::make_link(repository, self, link::link_key(&next.secret))
    }
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochKeys").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The epochs at hand. Never empty; each is proved by the chain of links.
#[derive(Clone)]
pub struct Keyring {
    chain: Chain,
    chunk_id_key: ChunkIdKey,
    /// What seals objects that stay readable as long as the repository.
    lasting: EpochSecret,
    epochs: BTreeMap<u32, EpochKeys>,
    newest: u32,
}

impl Keyring {
    /// A ring of one epoch, which is trusted: what follows has to follow from it.
    pub fn new(repository: RepositoryId, keys: EpochKeys) -> Self {
        let chain = Chain::new(repository, keys.epoch, link::link_key(&keys.secret));
        Keyring::of(chain, keys)
    }

    /// A ring of one epoch that `chain` proves.
    pub fn proved(chain: Chain, keys: EpochKeys) -> Result<Self, KeySlotError> {
        chain.check(&keys)?;
        Ok(Keyring::of(chain, keys))
    }

    fn of(chain: Chain, keys: EpochKeys) -> Self {
        let (chunk_id_key, newest) = (keys.chunk_id_key.clone(), keys.epoch);
        let lasting = EpochSecret(*derive(LASTING_CONTEXT, &[&chunk_id_key.0, &chain.repository().0]));
        Keyring { chain, chunk_id_key, lasting, epochs: BTreeMap::from([(keys.epoch, keys)]), newest }
    }

    /// Adds an epoch, in any order. Refuses one that the chain does not prove, and one of another chunk id key.
    pub fn insert(&mut self, keys: EpochKeys) -> Result<(), KeySlotError> {
        let epoch = keys.epoch;
        if !bool::from(keys.chunk_id_key.0.ct_eq(&self.chunk_id_key.0)) {
            return Err(unlinked(epoch, "its chunk id key is not the repository's"));
        }
        self.chain.check(&keys)?;
        self.newest = self.newest.max(epoch);
        self.epochs.insert(epoch, keys);
        Ok(())
    }

    /// What is known of how epochs follow each other.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Learns more of it.
    pub fn chain_mut(&mut self) -> &mut Chain {
        &mut self.chain
    }

    /// The repository whose keys these are.
    pub fn repository(&self) -> RepositoryId {
        self.chain.repository()
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
        f.debug_struct("Keyring").field("repository", &self.repository()).field("epochs", &epochs).finish()
    }
}
