//! Vectors that must be refused: each is a good one with one thing wrong, and everything plain about it (checksums, trailer) made
//! to fit again where an attacker could.

use super::make::{Draft, Made, Seeded, chunk_id, flush, make_keys, pages_segment, root, slot_name};
use super::samples;
use super::vectors::{self, KEY, PASSPHRASE, REPOSITORY};
use walden::base::{ChunkId, RepositoryId};
use walden::codec::keyslot::{create_slot, seal_epoch};
use walden::codec::object::walk_frames;
use walden::codec::seal::ObjectKeys;
use walden::codec::{EpochKeys, EpochObject, EpochSecret, KeySource, ObjectWriter, SlotCost, Unlock};
use walden::format::directory::{Directory, FrameEntry};
use walden::format::envelope::PlainObject;
use walden::format::frame::{
    Codec, FRAME_HEAD_BYTES, FrameHead, FrameKind, TAG_BYTES, TRAILER_BYTES, Trailer,
};
use walden::format::header::{HEADER_BYTES, ObjectHeader, ObjectKind};
use walden::format::keyslot::{Epoch, EpochLink, EpochSlot, KeySlot};
use walden::format::marker::RepositoryMarker;
use walden::format::record::{Blob, Record};
use zeroize::Zeroizing;

pub fn all() -> Vec<Made> {
    let mut all = headers();
    all.extend(bounds());
    all.extend(frames());
    all.extend(records());
    all.extend(markers());
    all.extend(slots());
    all.extend(epochs());
    all.extend(made_epochs());
    all.extend(links());
    all
}

fn refused(
    draft: &Draft,
    file: &str,
    bytes: Vec<u8>,
    error: &'static str,
    says: &'static str,
    reason: &str,
) -> Made {
    Made { file: format!("refused/{file}.bin"), bytes, refused: Some((error, says)), ..draft.made(reason) }
}

/// Puts a changed header's CRC right.
fn header_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&bytes[..152]);
    bytes[152..156].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn changed(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes);
    bytes
}

/// The root as it would be with another header.
fn sealed_as(change: impl FnOnce(&mut ObjectHeader)) -> Vec<u8> {
    let mut header = root().header();
    change(&mut header);
    let secret = vectors::keyring().epoch_secret(2).unwrap();
    ObjectWriter::create(secret, &header).finish(samples::root().encode()).bytes.to_vec()
}

fn headers() -> Vec<Made> {
    let root = root();
    let good = root.bytes();
    let no = |file, bytes, error, says, reason| refused(&root, file, bytes, error, says, reason);
    let with = |at: usize, byte: u8| header_crc(changed(&good, |bytes| bytes[at] = byte));
    let other_secret = {
        let writer = ObjectWriter::create(&EpochSecret([0x99; 32]), &root.header());
        writer.finish(samples::root().encode()).bytes.to_vec()
    };
    vec![
        no("magic", with(0, b'V'), "format", "object header", "the magic is another program's"),
        no("major-version", with(6, 2), "newer", "object header", "major version 2 is not known"),
        no("kind-unknown", with(8, 200), "format", "a code of ObjectKind", "no kind has code 200"),
        no("reserved", with(9, 1), "format", "reserved bytes", "reserved bytes are zero in version 1"),
        no(
            "required-bit",
            sealed_as(|header| header.required = 1 << 31),
            "newer",
            "unknown required feature bits 0x80000000",
            "a required bit that the reader does not know, in an object that is good otherwise",
        ),
        no(
            "header-bit",
            changed(&good, |bytes| bytes[50] ^= 1),
            "format",
            "crc",
            "a bit of the header flipped: its CRC tells",
        ),
        no(
            "header-bit-crc",
            with(50, good[50] ^ 1),
            "wrong-key",
            "sealed with another secret",
            "a bit of the header changed and its CRC repaired: another key, so another commitment",
        ),
        no(
            "wrong-key",
            other_secret,
            "wrong-key",
            "another secret",
            "sealed with a secret that is not epoch 2's",
        ),
        no(
            "epoch-unknown",
            sealed_as(|header| header.key_epoch = 9),
            "no-key",
            "key epoch 9",
            "no slot gave the secret of epoch 9",
        ),
        no(
            "repository",
            sealed_as(|header| header.repository = RepositoryId([0xb8; 16])),
            "misplaced",
            "its repository",
            "an object of another repository, sealed with the same secret",
        ),
        no(
            "place",
            sealed_as(|header| header.place = [0x11; 16]),
            "misplaced",
            "its place",
            "an object that was made for another name",
        ),
        no(
            "kind",
            sealed_as(|header| header.kind = ObjectKind::Pending),
            "misplaced",
            "its kind",
            "pending work where a root should be",
        ),
        no(
            "lasting-root",
            sealed_as(|header| header.key_epoch = 0),
            "format",
            "Root under key epoch 0",
            "a root under the lasting key, which everybody has who ever held a slot",
        ),
        no(
            "fence-epoch",
            sealed_as(|header| header.kind = ObjectKind::Fence),
            "format",
            "Fence under key epoch 2",
            "a fence under an epoch, which would be needed for ever",
        ),
    ]
}

fn bounds() -> Vec<Made> {
    let pages = pages_segment();
    let good = pages.bytes();
    let no = |file, bytes, error, says, reason| refused(&pages, file, bytes, error, says, reason);
    let trailer = |change: fn(&mut Trailer)| {
        changed(&good, |bytes| {
            let at = bytes.len() - TRAILER_BYTES;
            let mut trailer = Trailer::decode(&bytes[at..], bytes.len() as u64).unwrap();
            change(&mut trailer);
            let object_len = bytes.len() as u64;
            assert_eq!(trailer.object_len, object_len, "the length is not what is changed");
            bytes[at..].copy_from_slice(&trailer.encode());
        })
    };
    vec![
        no("empty", Vec::new(), "format", "object header", "no bytes at all"),
        no("cut-header", good[..100].to_vec(), "format", "object header", "cut in the header"),
        no("cut-frame", good[..HEADER_BYTES + 30].to_vec(), "format", "trailer", "cut in the first frame"),
        no("cut-trailer", good[..good.len() - 10].to_vec(), "format", "trailer", "cut in the trailer"),
        no(
            "trailing",
            changed(&good, |bytes| bytes.push(0)),
            "format",
            "trailer",
            "a byte after the trailer",
        ),
        no(
            "padded",
            changed(&good, |bytes| {
                let at = bytes.len() - TRAILER_BYTES;
                let trailer = bytes[at..].to_vec();
                bytes.extend_from_slice(&trailer);
            }),
            "format",
            "object of",
            "the trailer once more after itself: it says another length",
        ),
        no(
            "count-less",
            trailer(|t| t.frame_count -= 1),
            "broken",
            "frame 2",
            "the trailer counts a frame less",
        ),
        no(
            "count-more",
            trailer(|t| t.frame_count += 1),
            "broken",
            "frame 4",
            "the trailer counts a frame more",
        ),
        no(
            "count-zero",
            trailer(|t| t.frame_count = 0),
            "format",
            "no frames",
            "the trailer counts no frame",
        ),
        no(
            "directory-elsewhere",
            trailer(|t| t.directory_offset = HEADER_BYTES as u64),
            "content",
            "Data, expected Directory",
            "the trailer takes the first chunk for the directory",
        ),
        no(
            "directory-outside",
            trailer(|t| t.directory_offset = u64::MAX),
            "format",
            "directory at",
            "the directory would lie outside the object",
        ),
    ]
}

/// The stored frames of an object.
fn stored_frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    walk_frames(bytes)
        .map(|frame| frame.unwrap())
        .map(|frame| bytes[frame.offset as usize..frame.end() as usize].to_vec())
        .collect()
}

/// An object of these stored frames, and the trailer that fits them.
fn assembled(header: &[u8], frames: &[Vec<u8>]) -> Vec<u8> {
    let (directory, chunks) = frames.split_last().unwrap();
    let mut bytes = [header, &chunks.concat()].concat();
    let directory_offset = bytes.len() as u64;
    bytes.extend_from_slice(directory);
    let object_len = (bytes.len() + TRAILER_BYTES) as u64;
    bytes.extend_from_slice(
        &Trailer { directory_offset, frame_count: frames.len() as u32, object_len }.encode(),
    );
    bytes
}

fn frame_crc(mut frame: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&[&frame[..12], &frame[16..]].concat());
    frame[12..16].copy_from_slice(&crc.to_le_bytes());
    frame
}

fn frames() -> Vec<Made> {
    let flush = flush();
    let good = flush.bytes();
    let no = |file, bytes, error, says, reason| refused(&flush, file, bytes, error, says, reason);
    let (header, own) = (&good[..HEADER_BYTES], stored_frames(&good));
    // The same content under another salt.
    let other = stored_frames(&Draft { file: "flush-other", ..self::flush() }.bytes());
    let arranged = |frames: &[&Vec<u8>]| {
        let frames: Vec<Vec<u8>> = frames.iter().map(|frame| frame.to_vec()).collect();
        assembled(header, &frames)
    };
    let head_changed = |change: fn(&mut [u8])| {
        let mut first = own[0].clone();
        change(&mut first);
        arranged(&[&frame_crc(first), &own[1], &own[2]])
    };
    let (a, b, directory) = (&own[0], &own[1], &own[2]);
    vec![
        no(
            "frame-bit",
            changed(&good, |bytes| bytes[300] ^= 1),
            "format",
            "crc",
            "a bit of a frame flipped: its CRC tells",
        ),
        no(
            "frame-bit-crc",
            head_changed(|f| f[100] ^= 1),
            "broken",
            "frame 0",
            "a bit of a frame changed and its CRC repaired: its seal tells",
        ),
        no(
            "frame-codec",
            head_changed(|f| f[4..10].copy_from_slice(&[255, 127, 0, 0, 1, 1])),
            "content",
            "expected Data frame",
            "a frame's plain length was changed: the directory tells first, the seal would too",
        ),
        no(
            "frame-length",
            head_changed(|f| f[4..8].copy_from_slice(&(17u32 << 20).to_le_bytes())),
            "format",
            "a possible chunk length",
            "no chunk has 17 MiB",
        ),
        no(
            "frame-raw-length",
            head_changed(|f| f[9] = 0),
            "format",
            "a possible frame length",
            "a raw frame whose lengths do not fit each other",
        ),
        no(
            "reordered",
            arranged(&[b, a, directory]),
            "content",
            "expected Data frame",
            "two frames changed places",
        ),
        no(
            "dropped",
            arranged(&[a, directory]),
            "broken",
            "frame 1",
            "a frame is missing, and the trailer fits the rest",
        ),
        no("repeated", arranged(&[a, b, b, directory]), "broken", "frame 3", "a frame is there twice"),
        no(
            "mixed",
            arranged(&[a, &other[1], directory]),
            "broken",
            "frame 1",
            "a frame of another object of the same content",
        ),
        no(
            "mixed-directory",
            arranged(&[a, b, &other[2]]),
            "broken",
            "frame 2",
            "the directory of another object of the same content",
        ),
        no(
            "between",
            assembled(header, &[a.clone(), [b.as_slice(), &[0; 40]].concat(), directory.clone()]),
            "content",
            "expected one from byte",
            "bytes between the last chunk and the directory",
        ),
    ]
}

/// A root with these bytes as its record, sealed as a writer would.
fn root_of(meta: Vec<u8>) -> Vec<u8> {
    let root = root();
    let secret = vectors::keyring().epoch_secret(root.key_epoch).unwrap();
    ObjectWriter::create(secret, &root.header()).finish(meta).bytes.to_vec()
}

/// An object of one frame, sealed by hand: its head, body and directory may say anything.
fn by_hand(draft: &Draft, head: FrameHead, mut body: Vec<u8>, directory: &Directory) -> Vec<u8> {
    let keys = ObjectKeys::create(vectors::keyring().epoch_secret(draft.key_epoch).unwrap(), &draft.header());
    let mut frames = Vec::new();
    keys.seal(0, &head, &mut body);
    frames.push([&head.encode(&body)[..], &body].concat());
    frames.push(sealed_raw(&keys, 1, FrameKind::Directory, directory.encode()));
    assembled(keys.header_bytes(), &frames)
}

fn sealed_raw(keys: &ObjectKeys, number: u64, kind: FrameKind, mut body: Vec<u8>) -> Vec<u8> {
    let plain_len = body.len() as u32;
    let head = FrameHead { sealed_len: plain_len + TAG_BYTES as u32, plain_len, kind, codec: Codec::Raw };
    keys.seal(number, &head, &mut body);
    [&head.encode(&body)[..], &body].concat()
}

fn records() -> Vec<Made> {
    let root = root();
    let good = samples::root().encode();
    let no = |file, bytes, error, says, reason| refused(&root, file, bytes, error, says, reason);
    let meta = |change: fn(&mut Vec<u8>)| root_of(changed(&good, change));
    // Root: 4 + 4 bytes of cluster, then 8 number, 8 made_at, 4 generation, 8 writer_epoch, 8 floor; then the streams' count.
    const STREAMS_AT: usize = 8 + 36;
    let mut all = vec![
        no(
            "count",
            meta(|m| m[STREAMS_AT..STREAMS_AT + 4].fill(255)),
            "format",
            "4294967295 items",
            "a list that claims 4 billion items: nothing is reserved for them",
        ),
        no(
            "text-length",
            meta(|m| m[..4].fill(255)),
            "format",
            "4294967295 more",
            "a text that claims 4 GiB",
        ),
        no("leftover", meta(|m| m.push(0)), "format", "the end", "a byte after the record"),
        no("record-cut", meta(|m| m.truncate(50)), "format", "more", "a record that ends early"),
        no("not-utf8", meta(|m| m[4] = 0xff), "format", "not UTF-8", "a text that is not UTF-8"),
        no(
            "name",
            meta(|m| m[4] = b'/'),
            "format",
            "/hop",
            "a cluster name with a character that would leave its folder",
        ),
        no(
            "bool",
            meta(|m| m[STREAMS_AT + 44] = 2),
            "format",
            "0 or 1",
            "an option that is neither none nor a value",
        ),
        no(
            "code",
            meta(|m| {
                let at = m.windows(16).position(|part| part == [0x61; 16]).unwrap() + 16;
                m[at] = 77;
            }),
            "format",
            "a code of PendingKind",
            "a kind of pending work that is not known",
        ),
    ];
    all.extend(directories());
    all
}

fn directories() -> Vec<Made> {
    let pages = Draft { frames: vec![("raw", vec![7; 3000], 0)], ..pages_segment() };
    let no = |file, bytes, error, says, reason| refused(&pages, file, bytes, error, says, reason);
    let (chunk, packed) = (vec![7; 3000], walden::codec::object::compress(&[7; 3000]).1);
    let head = FrameHead {
        sealed_len: (packed.len() + TAG_BYTES) as u32,
        plain_len: 3000,
        kind: FrameKind::Data,
        codec: Codec::Zstd,
    };
    let entry = FrameEntry {
        offset: HEADER_BYTES as u64,
        sealed_len: head.sealed_len,
        plain_len: head.plain_len,
        kind: head.kind,
        codec: head.codec,
        chunk: chunk_id(&chunk),
        position: 0,
    };
    let of = |entry: FrameEntry| Directory { meta: Blob::default(), frames: vec![entry] };
    let longer = FrameHead { plain_len: 3001, ..head };
    let keys = ObjectKeys::create(vectors::keyring().epoch_secret(2).unwrap(), &pages.header());
    let hostile = [&[0; 4][..], &[255; 4]].concat();
    vec![
        no(
            "chunk-id",
            by_hand(
                &pages,
                head,
                packed.clone(),
                &of(FrameEntry { chunk: ChunkId([0; 32]), ..entry.clone() }),
            ),
            "content",
            "expected 0000",
            "the directory names another chunk than the frame holds",
        ),
        no(
            "entry-offset",
            by_hand(&pages, head, packed.clone(), &of(FrameEntry { offset: 200, ..entry.clone() })),
            "content",
            "a chunk at byte 160",
            "the directory's entries do not lie one after the other",
        ),
        no(
            "unpacked-length",
            by_hand(&pages, longer, packed, &of(FrameEntry { plain_len: 3001, ..entry })),
            "content",
            "3000 bytes",
            "a frame that unpacks to another length than its head says",
        ),
        no(
            "directory-count",
            assembled(keys.header_bytes(), &[sealed_raw(&keys, 0, FrameKind::Directory, hostile)]),
            "format",
            "4294967295 items",
            "a directory that claims 4 billion frames",
        ),
    ]
}

fn plain(
    form: &'static str,
    file: &str,
    name: &str,
    bytes: Vec<u8>,
    error: &'static str,
    says: &'static str,
    reason: &str,
) -> Made {
    Made {
        file: format!("refused/{file}.bin"),
        form,
        page: if form == "marker" { "layout.md" } else { "keys.md" },
        name: name.to_owned(),
        kind: None,
        meta: None,
        frames: Vec::new(),
        refused: Some((error, says)),
        reason: reason.to_owned(),
        bytes,
    }
}

/// Puts a changed plain object's CRC right.
fn plain_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..at]);
    bytes[at..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn markers() -> Vec<Made> {
    let marker = |version| RepositoryMarker { version, id: REPOSITORY }.to_object();
    let good = marker(1);
    let no = |file, bytes, says, reason| plain("marker", file, "walden", bytes, "format", says, reason);
    vec![
        no("marker-version", marker(2), "repository version 2", "a repository of a later version"),
        no("marker-bit", changed(&good, |b| b[20] ^= 1), "crc", "a bit flipped"),
        no("marker-cut", good[..20].to_vec(), "crc", "cut"),
        no(
            "marker-trailing",
            plain_crc([&good[..], &[0; 4]].concat()),
            "the end",
            "bytes after the record, checksum and all",
        ),
        no(
            "marker-required",
            plain_crc(changed(&good, |b| b[8] = 1)),
            "feature bits 0x1",
            "an unknown required bit",
        ),
        no("marker-magic", plain_crc(changed(&good, |b| b[7] = 2)), "RepositoryMarker", "major version 2"),
        no(
            "marker-long",
            plain_crc([&good[..], &[0; 5000]].concat()),
            "at most 4096",
            "no plain object is this long",
        ),
    ]
}

fn slots() -> Vec<Made> {
    let keys = make_keys();
    let (good, _) = &keys.main;
    let no = |file, bytes, error, says, reason| plain("slot", file, "keys/main", bytes, error, says, reason);
    let with = |change: fn(&mut KeySlot)| {
        let mut slot = KeySlot::from_object(good).unwrap();
        change(&mut slot);
        slot.to_object()
    };
    let made_with = |unlock: Unlock| {
        let entropy = Seeded::new("other slot");
        create_slot(&unlock, REPOSITORY, &slot_name("main"), &keys.first, SlotCost::LEAST, &entropy)
            .unwrap()
            .0
    };
    let other_passphrase = made_with(Unlock::Passphrase(Zeroizing::new(format!("{PASSPHRASE}!"))));
    let by_key = made_with(Unlock::Key(Zeroizing::new(KEY)));
    vec![
        no(
            "slot-bit",
            changed(good, |b| b[60] ^= 1),
            "format",
            "crc",
            "a bit flipped: told apart from a wrong passphrase",
        ),
        no(
            "slot-passphrase",
            other_passphrase,
            "wrong-secret",
            "this passphrase does not open it",
            "made with another passphrase",
        ),
        no(
            "slot-kind",
            by_key,
            "wrong-kind",
            "opened by a key",
            "made with a key, and a passphrase is given",
        ),
        no(
            "slot-wrapped",
            with(|s| s.wrapped[3] ^= 1),
            "wrong-secret",
            "does not open it",
            "what is wrapped was changed, and the CRC repaired",
        ),
        no(
            "slot-public",
            with(|s| s.public = [9; 32]),
            "wrong-secret",
            "does not open it",
            "another public half under a known name: the seal binds it",
        ),
        no(
            "slot-start",
            with(|s| s.start_link[0] ^= 1),
            "wrong-secret",
            "does not open it",
            "another epoch to begin with: the seal binds it",
        ),
        no(
            "slot-low-order",
            with(|s| s.public = [0; 32]),
            "format",
            "low order",
            "a public half whose shared secrets everyone knows",
        ),
        no(
            "slot-cost",
            with(|s| s.cost_memory_kib = u32::MAX),
            "format",
            "argon2id cost of 4294967295 KiB",
            "4 TiB of memory to try a passphrase",
        ),
        no(
            "slot-cost-key",
            with(|s| (s.kind, s.cost_passes) = (walden::format::keyslot::SlotKind::Key, 1)),
            "format",
            "no cost for a key",
            "a key has no cost",
        ),
        no(
            "slot-repository",
            with(|s| s.repository = RepositoryId([1; 16])),
            "misplaced",
            "repository",
            "a slot of another repository",
        ),
        no(
            "slot-name",
            with(|s| s.name = slot_name("spare")),
            "misplaced",
            "name",
            "a slot under another's name",
        ),
        no(
            "slot-reserved-name",
            plain_crc(changed(good, |b| {
                b.splice(28..36, *b"\x06\0\0\0epochs");
            })),
            "format",
            "not \"epochs\"",
            "a slot named epochs: its object would hide the folder of the epochs",
        ),
    ]
}

fn made_epochs() -> Vec<Made> {
    let keys = make_keys();
    let entropy = Seeded::new("other made epochs");
    let slots = [keys.main.1.clone(), keys.spare.1.clone()];
    let link = keys.first.link_to(&keys.second, REPOSITORY);
    let good = EpochObject::create(REPOSITORY, &keys.second, Some(&link), &slots, &entropy).to_object();
    let no = |file, name: &str, bytes, error, says, reason| {
        plain("made-epoch", file, name, bytes, error, says, reason)
    };
    let with = |change: fn(&mut Epoch)| {
        let mut epoch = Epoch::from_object(&good).unwrap();
        change(&mut epoch);
        epoch.to_object()
    };
    const SECOND: &str = "keys/epochs/2/_epoch";
    vec![
        no("made-epoch-bit", SECOND, changed(&good, |b| b[200] ^= 1), "format", "crc", "a bit flipped"),
        no(
            "made-epoch-empty",
            SECOND,
            with(|epoch| epoch.slots.clear()),
            "format",
            "0 slots",
            "an epoch for nobody",
        ),
        no(
            "made-epoch-unlinked",
            SECOND,
            with(|epoch| epoch.link = None),
            "format",
            "a link in every epoch but the first",
            "nothing to show that it follows from the first",
        ),
        no(
            "made-epoch-number",
            "keys/epochs/3/_epoch",
            good.clone(),
            "misplaced",
            "number",
            "epoch 2 under the name of epoch 3",
        ),
        no(
            "made-epoch-repository",
            SECOND,
            with(|epoch| epoch.repository = RepositoryId([1; 16])),
            "misplaced",
            "repository",
            "an epoch of another repository",
        ),
    ]
}

fn epochs() -> Vec<Made> {
    let keys = make_keys();
    let entropy = Seeded::new("other epochs");
    let no =
        |file, name: &str, bytes, error, says, reason| plain("epoch", file, name, bytes, error, says, reason);
    let second = seal_epoch(&keys.main.1, &keys.second, &entropy);
    let with = |change: fn(&mut EpochSlot)| {
        let mut epoch = EpochSlot::from_object(&second).unwrap();
        change(&mut epoch);
        epoch.to_object()
    };
    let planted = seal_epoch(&keys.main.1, &EpochKeys::first(&Seeded::new("attacker")), &entropy);
    // Made by someone who knows the chunk id key of this repository, and made no link of this one: a slot removed long ago.
    let unlinked = {
        let unlinked = keys.first.next(&Seeded::new("removed")).unwrap();
        seal_epoch(&keys.main.1, &unlinked, &entropy)
    };
    const SECOND: &str = "keys/epochs/2/main";
    vec![
        no("epoch-bit", SECOND, changed(&second, |b| b[200] ^= 1), "format", "crc", "a bit flipped"),
        no(
            "epoch-sealed",
            SECOND,
            with(|e| e.sealed[0] ^= 1),
            "forged",
            "the seal is broken",
            "what is sealed was changed, and the CRC repaired",
        ),
        no(
            "epoch-voucher",
            SECOND,
            with(|e| e.voucher[0] ^= 1),
            "forged",
            "voucher",
            "the voucher was changed",
        ),
        no(
            "epoch-low-order",
            SECOND,
            with(|e| e.ephemeral_public = [0; 32]),
            "forged",
            "low order",
            "an ephemeral key of low order",
        ),
        no(
            "epoch-planted",
            "keys/epochs/1/main",
            planted,
            "forged",
            "chunk id key",
            "made by someone who never held this repository's secrets",
        ),
        no(
            "epoch-unlinked",
            SECOND,
            unlinked,
            "unlinked",
            "the epoch before it did not make it",
            "made by someone who did not hold the epoch before",
        ),
        no(
            "epoch-number",
            "keys/epochs/3/main",
            second.clone(),
            "misplaced",
            "number",
            "epoch 2 under the name of epoch 3",
        ),
        no(
            "epoch-slot",
            SECOND,
            seal_epoch(&keys.spare.1, &keys.second, &entropy),
            "misplaced",
            "slot",
            "sealed to slot spare",
        ),
        no(
            "epoch-repository",
            SECOND,
            with(|e| e.repository = RepositoryId([1; 16])),
            "misplaced",
            "repository",
            "an epoch of another repository",
        ),
    ]
}

fn links() -> Vec<Made> {
    let keys = make_keys();
    let good = keys.first.link_to(&keys.second, REPOSITORY);
    const SECOND: &str = "keys/epochs/2/_link";
    let no =
        |file, name: &str, bytes, error, says, reason| plain("link", file, name, bytes, error, says, reason);
    let with = |change: fn(&mut EpochLink)| {
        let mut link = good.clone();
        change(&mut link);
        link.to_object()
    };
    let unsigned = "its link was not signed by the epoch before";
    let other = EpochKeys::first(&Seeded::new("attacker"));
    let elsewhere = keys.first.link_to(&keys.second, RepositoryId([1; 16]));
    let elsewhere = EpochLink { repository: REPOSITORY, ..elsewhere };
    vec![
        no("link-bit", SECOND, changed(&good.to_object(), |b| b[100] ^= 1), "format", "crc", "a bit flipped"),
        no("link-key", SECOND, with(|l| l.public[0] ^= 1), "unlinked", unsigned, "another epoch's link key"),
        no(
            "link-signature",
            SECOND,
            with(|l| l.signature[0] ^= 1),
            "unlinked",
            unsigned,
            "the signature was changed, and the CRC repaired",
        ),
        no(
            "link-planted",
            SECOND,
            other.link_to(&keys.second, REPOSITORY).to_object(),
            "unlinked",
            unsigned,
            "signed by someone who did not hold the epoch before",
        ),
        no(
            "link-elsewhere",
            SECOND,
            elsewhere.to_object(),
            "unlinked",
            unsigned,
            "signed for another repository",
        ),
        no(
            "link-number",
            "keys/epochs/3/_link",
            good.to_object(),
            "misplaced",
            "epoch",
            "the link of epoch 2 under the name of epoch 3",
        ),
        no(
            "link-repository",
            SECOND,
            with(|l| l.repository = RepositoryId([1; 16])),
            "misplaced",
            "repository",
            "a link of another repository",
        ),
    ]
}

const _: () = assert!(FRAME_HEAD_BYTES == 16);
