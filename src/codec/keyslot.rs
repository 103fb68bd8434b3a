//! Key slots: who may open a repository, and how the secrets of key epochs reach them. Spec: formats/keys.md.
//! No IO. A slot is an X25519 pair whose private half is wrapped by a passphrase or a key; epoch secrets are sealed to
//! public halves, so anyone who holds an epoch may rotate without knowing the others' passphrases.
//! Someone who can only write to the store can neither plant an epoch (anchor, chain of links) nor a slot (voucher).

use super::keyring::EpochKeys;
use super::link::{Chain, LinkKey, link_key};
use super::seal::{ChunkIdKey, EpochSecret, derive};
use super::wrap::{join, open, seal, split};
use crate::base::clock::random_bytes;
use crate::base::{Entropy, RepositoryId, SlotName};
use crate::format::FormatError;
use crate::format::envelope::PlainObject;
use crate::format::keyslot::{EpochSlot, KeySlot};
pub use crate::format::keyslot::{SlotCost, SlotKind};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use std::fmt;
use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

const PASSPHRASE_CONTEXT: &str = "walden v1 key slot passphrase";
const KEY_CONTEXT: &str = "walden v1 key slot key";
const ANCHOR_CONTEXT: &str = "walden v1 key slot anchor";
const EPOCH_CONTEXT: &str = "walden v1 epoch seal";
const VOUCHER_CONTEXT: &str = "walden v1 slot voucher";
const CRC_BYTES: usize = 4;
const VOUCHER_BYTES: usize = 32;

/// Why a key slot, or an epoch sealed to one, gives no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySlotError {
    /// Its bytes are wrong: restore the object from a copy of the repository, or use another slot.
    #[error(transparent)]
    Damaged(#[from] FormatError),
    /// Ask again: this passphrase or key does not open it.
    #[error("key slot {slot}: this {kind} does not open it")]
    WrongSecret {
        /// Which.
        slot: SlotName,
        /// What was given.
        kind: SlotKind,
    },
    /// Give the other: a passphrase where a key is needed, or a key where a passphrase is.
    #[error("key slot {slot} is opened by a {expected}, not by a {given}")]
    WrongKind {
        /// Which.
        slot: SlotName,
        /// What was given.
        given: SlotKind,
        /// What it needs.
        expected: SlotKind,
    },
    /// It stands in the place of another object.
    #[error("{what} is {found}, expected {expected}")]
    Misplaced {
        /// Which of its fields.
        what: &'static str,
        /// What it says.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// Nobody who holds this repository's secrets made it: the store was tampered with.
    #[error("key epoch {epoch} for slot {slot}: {reason}")]
    Forged {
        /// Which epoch.
        epoch: u32,
        /// Which slot.
        slot: SlotName,
        /// What gives it away.
        reason: &'static str,
    },
    /// Nobody shows that a holder of the epoch before made it: the store was tampered with, or links are lost.
    #[error("key epoch {epoch} is not proved: {reason}")]
    Unlinked {
        /// Which epoch.
        epoch: u32,
        /// What gives it away.
        reason: &'static str,
    },
    /// Choose another: an empty passphrase protects nothing.
    #[error("key slot {slot}: the passphrase is empty")]
    EmptyPassphrase {
        /// Which.
        slot: SlotName,
    },
    /// The machine has too little memory for the slot's argon2id cost.
    #[error("key slot {slot}: no {kib} KiB of memory to stretch its passphrase")]
    NoMemory {
        /// Which.
        slot: SlotName,
        /// How much it takes.
        kib: u32,
    },
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SlotKind::Passphrase => "passphrase",
            SlotKind::Key => "key",
        })
    }
}

/// What opens a slot.
#[derive(Clone)]
pub enum Unlock {
    /// A passphrase, byte for byte as given; not empty.
    Passphrase(Zeroizing<String>),
    /// 32 random bytes.
    Key(Zeroizing<[u8; 32]>),
}

impl Unlock {
    /// Which kind of slot it opens.
    pub fn kind(&self) -> SlotKind {
        match self {
            Unlock::Passphrase(_) => SlotKind::Passphrase,
            Unlock::Key(_) => SlotKind::Key,
        }
    }
}

impl fmt::Debug for Unlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unlock::{:?}(…)", self.kind())
    }
}

/// The public half of a slot: enough to seal epochs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPublic {
    repository: RepositoryId,
    name: SlotName,
    kind: SlotKind,
    public: [u8; 32],
}

impl SlotPublic {
    /// The repository it belongs to.
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// Its name.
    pub fn name(&self) -> &SlotName {
        &self.name
    }

    /// What opens it.
    pub fn kind(&self) -> SlotKind {
        self.kind
    }

    /// Whether `sealed` was made for this slot: its name, and its public half.
    pub fn is_of(&self, sealed: &EpochSlot) -> bool {
        sealed.slot == self.name && sealed.slot_public == self.public
    }

    /// Reads the public half out of a slot. Refuses points of low order, whose shared secrets everyone knows.
    fn of(slot: &KeySlot) -> Result<Self, KeySlotError> {
        let probe = StaticSecret::from([1; 32]).diffie_hellman(&PublicKey::from(slot.public));
        if !probe.was_contributory() {
            let (found, expected) = ("a public half of low order", "a point of the curve's large subgroup");
            return Err(FormatError::new("KeySlot", 0, found, expected).into());
        }
        Ok(SlotPublic {
            repository: slot.repository,
            name: slot.name.clone(),
            kind: slot.kind,
            public: slot.public,
        })
    }
}

/// An opened slot.
pub struct SlotPrivate {
    public: SlotPublic,
    private: StaticSecret,
    anchor: Zeroizing<[u8; 32]>,
    start: (u32, LinkKey),
}

impl SlotPrivate {
    /// Its public half.
    pub fn public(&self) -> &SlotPublic {
        &self.public
    }

    /// What every epoch that it takes has to be linked to: the epoch that was the newest when it was made. Its wrapping binds that.
    pub fn chain(&self) -> Chain {
        Chain::new(self.public.repository, self.start.0, self.start.1)
    }
}

impl fmt::Debug for SlotPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotPrivate").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Makes a slot: the bytes of its `keys/<slot>` object, and its public half. `cost` is for passphrases.
/// `newest` is the newest epoch: the slot takes none that does not follow from it or lead to it, or has another chunk id key.
pub fn create_slot(
    unlock: &Unlock,
    repository: RepositoryId,
    name: &SlotName,
    newest: &EpochKeys,
    cost: SlotCost,
    entropy: &dyn Entropy,
) -> Result<(Vec<u8>, SlotPublic), KeySlotError> {
    if matches!(unlock, Unlock::Passphrase(passphrase) if passphrase.is_empty()) {
        return Err(KeySlotError::EmptyPassphrase { slot: name.clone() });
    }
    let private_bytes = Zeroizing::new(random_bytes::<32>(entropy));
    let private = StaticSecret::from(*private_bytes);
    let (memory_kib, passes, lanes) = match unlock {
        Unlock::Passphrase(_) => (cost.memory_kib(), cost.passes(), cost.lanes()),
        Unlock::Key(_) => (0, 0, 0),
    };
    let mut slot = KeySlot {
        repository,
        name: name.clone(),
        kind: unlock.kind(),
        public: PublicKey::from(&private).to_bytes(),
        start: newest.epoch,
        start_link: link_key(&newest.secret),
        salt: random_bytes(entropy),
        cost_memory_kib: memory_kib,
        cost_passes: passes,
        cost_lanes: lanes,
        wrapped: [0; 80],
    };
    let anchor = anchor(repository, &newest.chunk_id_key);
    let plain = Zeroizing::new(join::<64>(&[private_bytes.as_slice(), anchor.as_slice()]));
    let key = wrapping_key(&slot, unlock)?;
    slot.wrapped = seal(&key, &slot_associated(&slot), &plain);
    let public = SlotPublic::of(&slot)?;
    Ok((slot.to_object(), public))
}

/// The public half of the `keys/<name>` object `bytes` of `repository`.
pub fn slot_public(
    bytes: &[u8],
    repository: RepositoryId,
    name: &SlotName,
) -> Result<SlotPublic, KeySlotError> {
    SlotPublic::of(&read_slot(bytes, repository, name)?)
}

/// Opens the `keys/<name>` object `bytes` of `repository`. A passphrase takes a fifth of a second and 64 MiB by default.
pub fn open_slot(
    bytes: &[u8],
    repository: RepositoryId,
    name: &SlotName,
    unlock: &Unlock,
) -> Result<SlotPrivate, KeySlotError> {
    let slot = read_slot(bytes, repository, name)?;
    let public = SlotPublic::of(&slot)?;
    if slot.kind != unlock.kind() {
        return Err(KeySlotError::WrongKind { slot: slot.name, given: unlock.kind(), expected: slot.kind });
    }
    let key = wrapping_key(&slot, unlock)?;
    let plain: Zeroizing<[u8; 64]> = open(&key, &slot_associated(&slot), &slot.wrapped)
        .ok_or(KeySlotError::WrongSecret { slot: slot.name, kind: slot.kind })?;
    let [private_bytes, anchor] = split(&plain);
    let private = StaticSecret::from(*private_bytes);
    // The seal binds the public half, so only a faulty writer could have got here with another.
    if PublicKey::from(&private).to_bytes() != slot.public {
        return Err(
            FormatError::new("KeySlot", 0, "a public half of another pair", "the private half's").into()
        );
    }
    Ok(SlotPrivate { public, private, anchor, start: (slot.start, slot.start_link) })
}

/// Seals an epoch to a slot: the bytes of `keys/epochs/<epoch>/<slot>`.
pub fn seal_epoch(slot: &SlotPublic, keys: &EpochKeys, entropy: &dyn Entropy) -> Vec<u8> {
    let ephemeral_bytes = Zeroizing::new(random_bytes::<32>(entropy));
    let ephemeral = StaticSecret::from(*ephemeral_bytes);
    let mut object = EpochSlot {
        repository: slot.repository,
        epoch: keys.epoch,
        slot: slot.name.clone(),
        slot_public: slot.public,
        ephemeral_public: PublicKey::from(&ephemeral).to_bytes(),
        sealed: [0; 80],
        voucher: voucher(slot.repository, &slot.name, &slot.public, keys),
    };
    let shared = ephemeral.diffie_hellman(&PublicKey::from(slot.public));
    assert!(shared.was_contributory(), "a slot's public half is checked when it is read");
    let plain = Zeroizing::new(join::<64>(&[&keys.secret.0, &keys.chunk_id_key.0]));
    object.sealed = seal(&epoch_key(shared.as_bytes(), &object), &epoch_associated(&object), &plain);
    object.to_object()
}

/// Opens the `keys/epochs/<epoch>/<slot>` object `bytes`. Refuses one that stands in another's place, and one that
/// nobody who ever had this repository's secrets made. Whether a holder of the epoch before did is for [`Chain`] to say.
pub fn open_epoch(slot: &SlotPrivate, epoch: u32, bytes: &[u8]) -> Result<EpochKeys, KeySlotError> {
    let object = read_epoch(&slot.public, epoch, bytes)?;
    let forged = |reason| KeySlotError::Forged { epoch, slot: slot.public.name.clone(), reason };
    let shared = slot.private.diffie_hellman(&PublicKey::from(object.ephemeral_public));
    if !shared.was_contributory() {
        return Err(forged("its ephemeral key is of low order"));
    }
    let key = epoch_key(shared.as_bytes(), &object);
    let plain: Zeroizing<[u8; 64]> =
        open(&key, &epoch_associated(&object), &object.sealed).ok_or_else(|| forged("the seal is broken"))?;
    let [secret, chunk_id_key] = split(&plain);
    let (secret, chunk_id_key) = (EpochSecret(*secret), ChunkIdKey(*chunk_id_key));
    let keys = EpochKeys { epoch, secret, chunk_id_key };
    let own_anchor = anchor(slot.public.repository, &keys.chunk_id_key);
    if !bool::from(own_anchor.ct_eq(slot.anchor.as_slice())) {
        return Err(forged("its chunk id key is not the one the slot was made with"));
    }
    if !vouched(&object, &keys) {
        return Err(forged("its voucher is wrong"));
    }
    Ok(keys)
}

/// Whether the `keys/epochs/<epoch>/<slot>` object `bytes` shows that a holder of `keys` gave this slot the epoch.
/// Rotation seals the next epoch only to slots that pass: a slot planted in the store does not.
pub fn check_voucher(slot: &SlotPublic, keys: &EpochKeys, bytes: &[u8]) -> Result<(), KeySlotError> {
    let object = read_epoch(slot, keys.epoch, bytes)?;
    if vouched(&object, keys) {
        return Ok(());
    }
    let reason = "nobody who holds the epoch vouches for this slot";
    Err(KeySlotError::Forged { epoch: keys.epoch, slot: slot.name.clone(), reason })
}

fn read_slot(bytes: &[u8], repository: RepositoryId, name: &SlotName) -> Result<KeySlot, KeySlotError> {
    let slot = KeySlot::from_object(bytes)?;
    same("the key slot's repository", &slot.repository, &repository)?;
    same("the key slot's name", &slot.name, name)?;
    Ok(slot)
}

fn read_epoch(slot: &SlotPublic, epoch: u32, bytes: &[u8]) -> Result<EpochSlot, KeySlotError> {
    let object = EpochSlot::from_object(bytes)?;
    same("the sealed epoch's repository", &object.repository, &slot.repository)?;
    same("the sealed epoch's number", &object.epoch, &epoch)?;
    same("the sealed epoch's slot", &object.slot, &slot.name)?;
    if object.slot_public != slot.public {
        let expected = format!("slot {}", slot.name);
        return Err(misplaced("the sealed epoch's public half", &"another slot's of that name", &expected));
    }
    Ok(object)
}

fn same<T: PartialEq + fmt::Display>(
    what: &'static str,
    found: &T,
    expected: &T,
) -> Result<(), KeySlotError> {
    if found == expected { Ok(()) } else { Err(misplaced(what, found, expected)) }
}

pub(super) fn misplaced(
    what: &'static str,
    found: &dyn fmt::Display,
    expected: &dyn fmt::Display,
) -> KeySlotError {
    KeySlotError::Misplaced { what, found: found.to_string(), expected: expected.to_string() }
}

/// The key that wraps a slot's private half. The salt is new for every slot, so no key wraps twice.
fn wrapping_key(slot: &KeySlot, unlock: &Unlock) -> Result<Zeroizing<[u8; 32]>, KeySlotError> {
    let (context, secret) = match unlock {
        Unlock::Passphrase(passphrase) => (PASSPHRASE_CONTEXT, stretch(slot, passphrase)?),
        Unlock::Key(key) => (KEY_CONTEXT, key.clone()),
    };
    Ok(derive(context, &[secret.as_slice(), &slot.salt]))
}

/// argon2id of a passphrase. The memory is reserved first, so that a lack of it is an error and not an abort.
fn stretch(slot: &KeySlot, passphrase: &str) -> Result<Zeroizing<[u8; 32]>, KeySlotError> {
    let kib = slot.cost_memory_kib;
    let no_memory = || KeySlotError::NoMemory { slot: slot.name.clone(), kib };
    let cost =
        slot.cost().ok_or_else(|| FormatError::new("KeySlot", 0, "an argon2id cost", "one within bounds"))?;
    let params = Params::new(cost.memory_kib(), cost.passes(), cost.lanes(), Some(32));
    let params = params.map_err(|error| FormatError::new("KeySlot", 0, error, "an argon2id cost"))?;
    let mut memory = Zeroizing::new(Vec::<Block>::new());
    memory.try_reserve_exact(params.block_count()).map_err(|_| no_memory())?;
    memory.resize(params.block_count(), Block::new());
    let mut stretched = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(
            passphrase.as_bytes(),
            &slot.salt,
            stretched.as_mut_slice(),
            memory.as_mut_slice(),
        )
        .map_err(|error| FormatError::new("KeySlot", 0, error, "what argon2id takes"))?;
    Ok(stretched)
}

/// What a slot remembers of the repository it was made in.
fn anchor(repository: RepositoryId, chunk_id_key: &ChunkIdKey) -> Zeroizing<[u8; 32]> {
    derive(ANCHOR_CONTEXT, &[&chunk_id_key.0, &repository.0])
}

/// The key of one sealed epoch: the ephemeral pair is new every time, so no key seals twice.
fn epoch_key(shared: &[u8; 32], object: &EpochSlot) -> Zeroizing<[u8; 32]> {
    let epoch = object.epoch.to_le_bytes();
    let ids: [&[u8]; 4] = [&object.repository.0, &epoch, &object.slot_public, &object.ephemeral_public];
    let [repository, epoch, slot, ephemeral] = ids;
    derive(EPOCH_CONTEXT, &[shared, repository, epoch, slot, ephemeral, object.slot.as_str().as_bytes()])
}

fn voucher(repository: RepositoryId, slot: &SlotName, public: &[u8; 32], keys: &EpochKeys) -> [u8; 32] {
    let key = derive(VOUCHER_CONTEXT, &[&keys.secret.0]);
    let mut hasher = Zeroizing::new(blake3::Hasher::new_keyed(&key));
    hasher.update(&repository.0);
    hasher.update(&keys.epoch.to_le_bytes());
    hasher.update(public);
    hasher.update(slot.as_str().as_bytes());
    *hasher.finalize().as_bytes()
}

/// Whether a holder of `keys` made this sealed epoch for the slot it names.
pub fn vouched(object: &EpochSlot, keys: &EpochKeys) -> bool {
    voucher(object.repository, &object.slot, &object.slot_public, keys).ct_eq(&object.voucher).into()
}

/// A slot object up to `wrapped`: what its seal binds.
fn slot_associated(slot: &KeySlot) -> Vec<u8> {
    cut(slot.to_object(), slot.wrapped.len() + CRC_BYTES)
}

/// A sealed epoch's object up to `sealed`: what its seal binds.
fn epoch_associated(object: &EpochSlot) -> Vec<u8> {
    cut(object.to_object(), object.sealed.len() + VOUCHER_BYTES + CRC_BYTES)
}

fn cut(mut bytes: Vec<u8>, from_end: usize) -> Vec<u8> {
    bytes.truncate(bytes.len() - from_end);
    bytes
}

#[cfg(test)]
mod tests;
