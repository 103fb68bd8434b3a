//! Key slots by their promises: only the right secret opens, every change is told, nothing planted is taken.

use super::super::keyring::Keyring;
use super::super::link::{decode_link, make_link};
use super::super::seal::KeySource;
use super::*;
use crate::format::keyslot::EpochLink;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that never repeat, by BLAKE3 in counter mode.
#[derive(Debug)]
struct Seeded(AtomicU64);

impl Seeded {
    fn new() -> Self {
        Seeded(AtomicU64::new(1))
    }
}

impl Entropy for Seeded {
    fn fill(&self, buffer: &mut [u8]) {
        let count = self.0.fetch_add(1, Ordering::Relaxed);
        blake3::Hasher::new().update(&count.to_le_bytes()).finalize_xof().fill(buffer);
    }
}

const REPOSITORY: RepositoryId = RepositoryId([9; 16]);

fn name(text: &str) -> SlotName {
    text.parse().unwrap()
}

fn passphrase(text: &str) -> Unlock {
    Unlock::Passphrase(Zeroizing::new(text.to_owned()))
}

struct Made {
    entropy: Seeded,
    keys: EpochKeys,
    object: Vec<u8>,
    public: SlotPublic,
}

fn made(unlock: &Unlock) -> Made {
    let entropy = Seeded::new();
    let keys = EpochKeys::first(&entropy);
    let (object, public) =
        create_slot(unlock, REPOSITORY, &name("main"), &keys, SlotCost::LEAST, &entropy).unwrap();
    Made { entropy, keys, object, public }
}

fn opened(made: &Made, unlock: &Unlock) -> SlotPrivate {
    open_slot(&made.object, REPOSITORY, &name("main"), unlock).unwrap()
}

/// The object with its CRC made right again after a change: what an attacker would store.
fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - CRC_BYTES;
    let crc = crc32fast::hash(&bytes[..at]);
    bytes[at..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn a_passphrase_and_a_key_open_what_they_made() {
    for unlock in [passphrase("correct horse"), Unlock::Key(Zeroizing::new([3; 32]))] {
        let made = made(&unlock);
        assert_eq!(slot_public(&made.object, REPOSITORY, &name("main")).unwrap(), made.public);
        let sealed = seal_epoch(&made.public, &made.keys, &made.entropy);
        let keys = open_epoch(&opened(&made, &unlock), 1, &sealed).unwrap();
        assert_eq!(keys.secret.0, made.keys.secret.0);
        assert_eq!(keys.chunk_id_key.0, made.keys.chunk_id_key.0);
    }
}

#[test]
fn a_wrong_secret_is_told_apart_from_damage_and_from_the_wrong_kind() {
    let made = made(&passphrase("right"));
    let open =
        |unlock: &Unlock, bytes: &[u8]| open_slot(bytes, REPOSITORY, &name("main"), unlock).unwrap_err();
    assert!(matches!(open(&passphrase("wrong"), &made.object), KeySlotError::WrongSecret { .. }));
    let key = Unlock::Key(Zeroizing::new([0; 32]));
    assert!(matches!(
        open(&key, &made.object),
        KeySlotError::WrongKind { expected: SlotKind::Passphrase, .. }
    ));
    let mut damaged = made.object.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert!(matches!(open(&passphrase("right"), &damaged), KeySlotError::Damaged(_)));
}

#[test]
fn every_flipped_byte_of_a_slot_is_damage_and_never_opens_with_its_crc_repaired() {
    let unlock = Unlock::Key(Zeroizing::new([3; 32]));
    let made = made(&unlock);
    for at in 0..made.object.len() {
        let mut flipped = made.object.clone();
        flipped[at] ^= 0x10;
        let plain = open_slot(&flipped, REPOSITORY, &name("main"), &unlock);
        assert!(matches!(plain, Err(KeySlotError::Damaged(_))), "byte {at}");
        if at < made.object.len() - CRC_BYTES {
            assert!(open_slot(&with_crc(flipped), REPOSITORY, &name("main"), &unlock).is_err(), "byte {at}");
        }
    }
    for len in 0..made.object.len() {
        assert!(open_slot(&made.object[..len], REPOSITORY, &name("main"), &unlock).is_err(), "{len} bytes");
    }
}

#[test]
fn every_flipped_byte_of_a_sealed_epoch_is_refused_even_with_its_crc_repaired() {
    let unlock = Unlock::Key(Zeroizing::new([3; 32]));
    let made = made(&unlock);
    let slot = opened(&made, &unlock);
    let sealed = seal_epoch(&made.public, &made.keys, &made.entropy);
    for at in 0..sealed.len() {
        let mut flipped = sealed.clone();
        flipped[at] ^= 0x10;
        assert!(open_epoch(&slot, 1, &flipped).is_err(), "byte {at}");
        if at < sealed.len() - CRC_BYTES {
            assert!(open_epoch(&slot, 1, &with_crc(flipped)).is_err(), "byte {at}");
        }
    }
}

#[test]
fn a_slot_or_epoch_in_the_place_of_another_is_refused() {
    let unlock = Unlock::Key(Zeroizing::new([3; 32]));
    let made = made(&unlock);
    let other = RepositoryId([8; 16]);
    let misplaced = |result: Result<SlotPrivate, KeySlotError>| {
        assert!(matches!(result.unwrap_err(), KeySlotError::Misplaced { .. }));
    };
    misplaced(open_slot(&made.object, other, &name("main"), &unlock));
    misplaced(open_slot(&made.object, REPOSITORY, &name("spare"), &unlock));
    let slot = opened(&made, &unlock);
    let sealed = seal_epoch(&made.public, &made.keys, &made.entropy);
    assert!(matches!(open_epoch(&slot, 2, &sealed), Err(KeySlotError::Misplaced { .. })));
    let (_, spare) =
        create_slot(&unlock, REPOSITORY, &name("spare"), &made.keys, SlotCost::LEAST, &made.entropy).unwrap();
    let elsewhere = seal_epoch(&spare, &made.keys, &made.entropy);
    assert!(matches!(open_epoch(&slot, 1, &elsewhere), Err(KeySlotError::Misplaced { .. })));
}

#[test]
fn an_epoch_planted_by_an_outsider_is_refused() {
    let unlock = Unlock::Key(Zeroizing::new([3; 32]));
    let made = made(&unlock);
    // The outsider knows the slot's public half, and everything else is theirs.
    let planted = EpochKeys::first(&made.entropy);
    let sealed = seal_epoch(&made.public, &planted, &made.entropy);
    let error = open_epoch(&opened(&made, &unlock), 1, &sealed).unwrap_err();
    assert!(matches!(error, KeySlotError::Forged { .. }), "{error}");
}

/// Epochs 1 to `last`, and the links of all but the first.
fn epochs(entropy: &Seeded, last: u32) -> (Vec<EpochKeys>, BTreeMap<u32, EpochLink>) {
    let (mut all, mut links) = (vec![EpochKeys::first(entropy)], BTreeMap::new());
    while all.len() < last as usize {
        let before = all.last().unwrap();
        let next = before.next(entropy).unwrap();
        links.insert(next.epoch, before.link_to(&next, REPOSITORY));
        all.push(next);
    }
    (all, links)
}

#[test]
fn an_epoch_is_taken_when_links_lead_to_it_whatever_was_destroyed_in_between() {
    let entropy = Seeded::new();
    let (all, links) = epochs(&entropy, 5);
    let mut ring = Keyring::new(REPOSITORY, all[0].clone());
    assert!(ring.insert(all[4].clone()).is_err(), "no links yet");
    for link in links.values() {
        ring.chain_mut().extend(link).unwrap();
    }
    ring.insert(all[4].clone()).unwrap();
    ring.insert(all[2].clone()).unwrap();
    assert_eq!(ring.newest().epoch, 5);
    assert_eq!(ring.epoch_secret(3).unwrap().0, all[2].secret.0);
    assert!(ring.epoch_secret(2).is_none());
}

#[test]
fn older_epochs_are_led_back_to_from_where_a_slot_began() {
    let entropy = Seeded::new();
    let (all, links) = epochs(&entropy, 5);
    let mut chain = Chain::new(REPOSITORY, 4, link_key(&all[3].secret));
    chain.reach_back(&all[1], &links).unwrap();
    assert_eq!((chain.first(), chain.last()), (2, 4));
    chain.check(&all[2]).unwrap();
    let gap: BTreeMap<_, _> =
        links.iter().filter(|(epoch, _)| **epoch != 2).map(|(n, l)| (*n, l.clone())).collect();
    let error = chain.clone().reach_back(&all[0], &gap).unwrap_err();
    assert!(matches!(error, KeySlotError::Unlinked { epoch: 2, .. }), "{error}");
    // Somebody who held epoch 1 alone makes another one of this number, and a link to epoch 2.
    let planted = EpochKeys { epoch: 1, ..EpochKeys::first(&entropy) };
    let error = chain.clone().reach_back(&planted, &links).unwrap_err();
    assert!(matches!(error, KeySlotError::Unlinked { .. }), "{error}");
    chain.reach_back(&all[0], &links).unwrap();
    assert_eq!(chain.first(), 1);
}

#[test]
fn an_epoch_that_the_one_before_did_not_make_is_refused() {
    let entropy = Seeded::new();
    let (all, links) = epochs(&entropy, 3);
    let chain = {
        let mut chain = Chain::new(REPOSITORY, 1, link_key(&all[0].secret));
        links.values().for_each(|link| chain.extend(link).unwrap());
        chain
    };
    // Someone who held epoch 1, and was removed before epoch 2, makes others.
    let second = all[0].next(&entropy).unwrap();
    let third = second.next(&entropy).unwrap();
    let fourth = third.next(&entropy).unwrap();
    let fifth = fourth.next(&entropy).unwrap();
    for planted in [&second, &third, &fourth, &fifth] {
        let error = chain.check(planted).unwrap_err();
        assert!(matches!(error, KeySlotError::Unlinked { .. }), "{error}");
    }
    // They sign its link with what they hold, or leave a number out.
    let signed = |epoch: u32, by: &EpochKeys| {
        let by = EpochKeys { epoch: epoch - 1, ..by.clone() };
        make_link(REPOSITORY, &by, link_key(&fourth.secret))
    };
    for (what, link) in [
        ("by an epoch that was held", signed(4, &all[0])),
        ("by an epoch of their own", signed(4, &third)),
        ("a number left out", signed(5, &all[2])),
        ("another repository", make_link(RepositoryId([8; 16]), &all[2], link_key(&fourth.secret))),
        ("another epoch's link", EpochLink { epoch: 4, ..links[&3].clone() }),
    ] {
        let error = chain.clone().extend(&link).unwrap_err();
        assert!(matches!(error, KeySlotError::Unlinked { .. }), "{what}: {error}");
    }
    chain.clone().extend(&signed(4, &all[2])).unwrap();
}

#[test]
fn every_flipped_byte_of_a_link_is_refused_even_with_its_crc_repaired() {
    let entropy = Seeded::new();
    let (all, links) = epochs(&entropy, 2);
    let good = links[&2].to_object();
    let chain = Chain::new(REPOSITORY, 1, link_key(&all[0].secret));
    let takes = |bytes: &[u8]| decode_link(bytes, REPOSITORY, 2).and_then(|link| chain.clone().extend(&link));
    takes(&good).unwrap();
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        assert!(matches!(takes(&flipped), Err(KeySlotError::Damaged(_))), "byte {at}");
        if at < good.len() - CRC_BYTES {
            assert!(takes(&with_crc(flipped)).is_err(), "byte {at}");
        }
    }
}

#[test]
fn a_slot_remembers_the_epoch_that_it_began_with() {
    let unlock = Unlock::Key(Zeroizing::new([3; 32]));
    let entropy = Seeded::new();
    let (all, links) = epochs(&entropy, 3);
    let (object, _) =
        create_slot(&unlock, REPOSITORY, &name("main"), &all[1], SlotCost::LEAST, &entropy).unwrap();
    let mut chain = open_slot(&object, REPOSITORY, &name("main"), &unlock).unwrap().chain();
    assert_eq!((chain.first(), chain.last()), (2, 2));
    chain.extend(&links[&3]).unwrap();
    chain.check(&all[2]).unwrap();
    // What it began with is bound by the seal: nobody puts an older epoch in its place.
    let mut older = KeySlot::from_object(&object).unwrap();
    (older.start, older.start_link) = (1, link_key(&all[0].secret));
    let error = open_slot(&older.to_object(), REPOSITORY, &name("main"), &unlock).unwrap_err();
    assert!(matches!(error, KeySlotError::WrongSecret { .. }), "{error}");
}

#[test]
fn a_ring_refuses_another_secret_and_another_repositorys_epoch() {
    let entropy = Seeded::new();
    let first = EpochKeys::first(&entropy);
    let mut ring = Keyring::new(REPOSITORY, first.clone());
    assert!(ring.insert(EpochKeys::first(&entropy)).is_err());
    let other = EpochKeys { secret: EpochSecret([1; 32]), ..first.clone() };
    assert!(ring.insert(other).is_err());
    let foreign = EpochKeys { chunk_id_key: ChunkIdKey([1; 32]), ..first.clone() };
    assert!(ring.insert(foreign).is_err());
    assert!(ring.insert(first).is_ok());
}

#[test]
fn a_planted_slot_has_no_voucher() {
    let unlock = Unlock::Key(Zeroizing::new([3; 32]));
    let made = made(&unlock);
    let real = seal_epoch(&made.public, &made.keys, &made.entropy);
    check_voucher(&made.public, &made.keys, &real).unwrap();
    // A slot of the attacker's, and an epoch object that claims it was given epoch 1.
    let theirs = EpochKeys::first(&made.entropy);
    let evil = name("evil");
    let (_, planted) =
        create_slot(&unlock, REPOSITORY, &evil, &theirs, SlotCost::LEAST, &made.entropy).unwrap();
    let claim = seal_epoch(&planted, &theirs, &made.entropy);
    assert!(matches!(check_voucher(&planted, &made.keys, &claim), Err(KeySlotError::Forged { .. })));
    // The same slot name with another public half.
    let replaced = SlotPublic { public: planted.public, ..made.public.clone() };
    assert!(matches!(check_voucher(&replaced, &made.keys, &real), Err(KeySlotError::Misplaced { .. })));
}

#[test]
fn points_of_low_order_are_refused() {
    let unlock = Unlock::Key(Zeroizing::new([3; 32]));
    let made = made(&unlock);
    let mut order_eight = [0; 32];
    let digits = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
    order_eight.copy_from_slice(&crate::base::ids::hex_bytes::<32>(digits).unwrap());
    for point in [[0; 32], join(&[&[1], &[0; 31]]), order_eight] {
        let mut slot = KeySlot::from_object(&made.object).unwrap();
        slot.public = point;
        let error = slot_public(&slot.to_object(), REPOSITORY, &name("main")).unwrap_err();
        assert!(matches!(error, KeySlotError::Damaged(_)), "{error}");
        let mut epoch = EpochSlot::from_object(&seal_epoch(&made.public, &made.keys, &made.entropy)).unwrap();
        epoch.ephemeral_public = point;
        let error = open_epoch(&opened(&made, &unlock), 1, &epoch.to_object()).unwrap_err();
        assert!(error.to_string().contains("low order"), "{error}");
    }
}

#[test]
fn hostile_costs_are_refused_before_any_memory_is_taken() {
    let made = made(&passphrase("p"));
    for (memory, passes, lanes) in
        [(u32::MAX, 1, 1), (64 << 10, u32::MAX, 1), (8, 1, 0), (8, 0, 1), (8, 1, 2)]
    {
        let mut slot = KeySlot::from_object(&made.object).unwrap();
        (slot.cost_memory_kib, slot.cost_passes, slot.cost_lanes) = (memory, passes, lanes);
        let result = open_slot(&slot.to_object(), REPOSITORY, &name("main"), &passphrase("p"));
        assert!(matches!(result, Err(KeySlotError::Damaged(_))), "{memory} {passes} {lanes}");
        assert_eq!(SlotCost::new(memory, passes, lanes), None);
    }
    assert_eq!(SlotCost::new(64 << 10, 3, 1), Some(SlotCost::DEFAULT));
}

#[test]
fn an_empty_passphrase_is_refused() {
    let entropy = Seeded::new();
    let keys = EpochKeys::first(&entropy);
    let slot = create_slot(&passphrase(""), REPOSITORY, &name("main"), &keys, SlotCost::LEAST, &entropy);
    assert!(matches!(slot, Err(KeySlotError::EmptyPassphrase { .. })));
}

#[test]
fn nothing_secret_is_printed() {
    let unlock = passphrase("hunter2");
    let made = made(&unlock);
    let slot = opened(&made, &unlock);
    let ring = Keyring::new(REPOSITORY, made.keys.clone());
    let secret = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    let printed = format!("{unlock:?} {slot:?} {:?} {:#?} {ring:?}", made.keys, made.public);
    for hidden in [
        "hunter2".to_owned(),
        secret(&made.keys.secret.0),
        secret(&made.keys.chunk_id_key.0),
        secret(&*slot.anchor),
    ] {
        assert!(!printed.contains(&hidden), "{printed}");
    }
}
