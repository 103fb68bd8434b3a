//! Whole objects: what goes in comes out; what was cut, moved, reordered, mixed or changed does not.

use super::*;
use crate::base::{ObjectKey, RepositoryId};
use crate::codec::{ChunkIdKey, KeySource};
use crate::format::header::{HEADER_BYTES, ObjectKind};

struct OneKey {
    secret: EpochSecret,
    chunk_id_key: ChunkIdKey,
}

impl KeySource for OneKey {
    fn epoch_secret(&self, epoch: u32) -> Option<&EpochSecret> {
        (epoch == 1).then_some(&self.secret)
    }

    fn chunk_id_key(&self) -> &ChunkIdKey {
        &self.chunk_id_key
    }
}

fn keys() -> OneKey {
    OneKey { secret: EpochSecret([1; 32]), chunk_id_key: ChunkIdKey([2; 32]) }
}

fn key() -> ObjectKey {
    ObjectKey::new("clusters/shop/segments/01").unwrap()
}

fn header(salt: u8) -> ObjectHeader {
    ObjectHeader {
        kind: ObjectKind::PagesSegment,
        required: 0,
        repository: RepositoryId([3; 16]),
        owner: [4; 16],
        number: 5,
        writer_epoch: 6,
        key_epoch: 1,
        place: ObjectHeader::place_of(&key()),
        salt: [salt; 32],
    }
}

const ANY: Expect<'static> = Expect { repository: None, key: None, kind: None };

fn object(salt: u8, chunks: &[&[u8]]) -> Finished {
    let keys = keys();
    let mut writer = ObjectWriter::create(&keys.secret, &header(salt));
    for (chunk, position) in chunks.iter().zip(100..) {
        writer.add(chunk, keys.chunk_id_key.chunk_id(chunk), position);
    }
    writer.finish(b"meta".to_vec())
}

const CHUNKS: [&[u8]; 3] = [&[7; 3000], b"short", &[8; 3000]];

#[test]
fn chunks_come_back() {
    let made = object(1, &CHUNKS);
    let open = OpenObject::open(made.bytes.clone(), &keys(), &ANY).unwrap();
    assert_eq!(open.directory(), &made.directory);
    assert_eq!(open.directory().meta.0, b"meta");
    for (number, chunk) in CHUNKS.iter().enumerate() {
        assert_eq!(open.chunk(number, &keys()).unwrap(), *chunk);
    }
    assert!(matches!(open.chunk(3, &keys()), Err(OpenError::Content { .. })));
    assert_eq!(check_without_key(&made.bytes, &ANY).unwrap().1, 4);
    assert_eq!(open.link(), made.link());
}

#[test]
fn packing_elsewhere_makes_the_same_object() {
    let keys = keys();
    let mut writer = ObjectWriter::create(&keys.secret, &header(1));
    for (chunk, position) in CHUNKS.iter().zip(100..) {
        writer.add_packed(&PackedChunk::pack(chunk, keys.chunk_id_key.chunk_id(chunk)), position);
    }
    assert_eq!(writer.finish(b"meta".to_vec()).bytes, object(1, &CHUNKS).bytes);
}

/// Opens everything there is in an object.
fn open_all(bytes: &[u8]) -> Result<Vec<Vec<u8>>, OpenError> {
    let open = OpenObject::open(Bytes::copy_from_slice(bytes), &keys(), &ANY)?;
    (0..open.directory().frames.len()).map(|number| open.chunk(number, &keys())).collect()
}

#[test]
fn every_flipped_bit_is_noticed_with_and_without_key() {
    let made = object(1, &CHUNKS).bytes;
    for at in 0..made.len() * 8 {
        let mut flipped = made.to_vec();
        flipped[at / 8] ^= 1 << (at % 8);
        assert!(open_all(&flipped).is_err(), "bit {at} with key");
        assert!(check_without_key(&flipped, &ANY).is_err(), "bit {at} without");
    }
}

#[test]
fn every_cut_and_every_addition_is_noticed() {
    let made = object(1, &CHUNKS).bytes;
    for len in 0..made.len() {
        assert!(open_all(&made[..len]).is_err(), "{len} bytes with key");
        assert!(check_without_key(&made[..len], &ANY).is_err(), "{len} bytes without");
    }
    let longer = [&made[..], &[0]].concat();
    assert!(open_all(&longer).is_err());
    assert!(check_without_key(&longer, &ANY).is_err());
}

/// The frames of an object, stored bytes of each.
fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    walk_frames(bytes)
        .map(|f| f.unwrap())
        .map(|f| bytes[f.offset as usize..f.end() as usize].to_vec())
        .collect()
}

/// An object of these frames, with a trailer that fits them: what someone without the key can make.
fn reassembled(header: &[u8], frames: &[Vec<u8>]) -> Vec<u8> {
    let (directory, chunks) = frames.split_last().unwrap();
    let mut bytes = [header, &chunks.concat()].concat();
    let directory_offset = bytes.len() as u64;
    bytes.extend_from_slice(directory);
    let object_len = (bytes.len() + TRAILER_BYTES) as u64;
    let trailer = Trailer { directory_offset, frame_count: frames.len() as u32, object_len };
    bytes.extend_from_slice(&trailer.encode());
    bytes
}

#[test]
fn frames_reordered_dropped_repeated_or_mixed_are_refused() {
    let (made, other) = (object(1, &CHUNKS).bytes, object(2, &CHUNKS).bytes);
    let (own, foreign) = (frames(&made), frames(&other));
    let rebuilt = |order: &[&Vec<u8>]| {
        let order: Vec<Vec<u8>> = order.iter().map(|frame| frame.to_vec()).collect();
        reassembled(&made[..HEADER_BYTES], &order)
    };
    let [a, b, c, directory] = [&own[0], &own[1], &own[2], &own[3]];
    assert_eq!(rebuilt(&[a, b, c, directory]), made);
    for order in [
        vec![c, b, a, directory],
        vec![a, b, directory],
        vec![a, a, b, c, directory],
        vec![a, b, &foreign[2], directory],
        vec![a, b, c, &foreign[3]],
        vec![directory],
    ] {
        let bytes = rebuilt(&order);
        check_without_key(&bytes, &ANY).unwrap();
        assert!(open_all(&bytes).is_err());
    }
}

#[test]
fn bytes_between_the_frames_are_refused() {
    let made = object(1, &CHUNKS).bytes;
    let mut own = frames(&made);
    let last = own.len() - 1;
    own[last - 1].extend_from_slice(&[0; 40]);
    assert!(OpenObject::open(reassembled(&made[..HEADER_BYTES], &own).into(), &keys(), &ANY).is_err());
}

#[test]
fn the_wrong_repository_place_kind_and_key_are_told_apart() {
    let made = object(1, &CHUNKS).bytes;
    let open = |keys: &OneKey, expect: &Expect<'_>| OpenObject::open(made.clone(), keys, expect).unwrap_err();
    let elsewhere = ObjectKey::new("clusters/shop/segments/02").unwrap();
    for expect in [
        Expect { repository: Some(RepositoryId([9; 16])), ..ANY },
        Expect { key: Some(&elsewhere), ..ANY },
        Expect { kind: Some(ObjectKind::Root), ..ANY },
    ] {
        assert!(matches!(open(&keys(), &expect), OpenError::Misplaced { .. }));
    }
    let wrong = OneKey { secret: EpochSecret([9; 32]), ..keys() };
    assert_eq!(open(&wrong, &ANY), OpenError::WrongKey { epoch: 1 });
    let mut later = header(1);
    later.key_epoch = 2;
    let later = ObjectWriter::create(&keys().secret, &later).finish(Vec::new());
    assert_eq!(OpenObject::open(later.bytes, &keys(), &ANY).unwrap_err(), OpenError::NoKey { epoch: 2 });
}

#[test]
fn a_chunk_id_that_is_not_the_chunks_is_refused() {
    let mut writer = ObjectWriter::create(&keys().secret, &header(1));
    writer.add(b"chunk", ChunkId([0; 32]), 0);
    assert!(matches!(open_all(&writer.finish(Vec::new()).bytes), Err(OpenError::Content { frame: 0, .. })));
}

#[test]
fn a_cut_object_is_read_as_far_as_it_is_good() {
    let made = object(1, &CHUNKS).bytes;
    let second = walk_frames(&made).nth(1).unwrap().unwrap();
    let cut = &made[..second.end() as usize + 20];
    let walked: Vec<_> = walk_frames(cut).collect();
    assert!(matches!(walked[..], [Ok(_), Ok(_), Err(_)]));
    let reader = ObjectReader::open(cut, &keys(), &ANY).unwrap();
    let salvaged = reader.frame(1, FrameKind::Data, &cut[second.offset as usize..]).unwrap();
    assert_eq!(salvaged, CHUNKS[1]);
}
