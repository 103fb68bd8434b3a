//! What a vector holds, told from its bytes, the tables and the formulas of object.md and keys.md alone: a second reader that
//! shares no code with the first but the ciphers themselves.

use super::tables::{Pages, Value, hex};
use super::vectors::{self, Vector, last_part};
use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ed25519_dalek::{Signer, SigningKey};
use std::collections::BTreeSet;
use walden::codec::KeySource;
use x25519_dalek::x25519;

const X25519_BASE: [u8; 32] = {
    let mut base = [0; 32];
    base[0] = 9;
    base
};

/// The vector as text; notes the tables it went through.
pub fn tell(pages: &Pages, vector: &Vector, seen: &mut BTreeSet<String>) -> String {
    let bytes = vectors::read(&vector.file);
    let mut told = String::new();
    match vector.form.as_str() {
        "object" => tell_object(pages, vector, &bytes, seen, &mut told),
        "marker" => {
            tell_plain(pages, "RepositoryMarker", b"WALDREP\x01", &bytes, seen, &mut told);
        }
        "slot" => tell_slot(pages, vector, &bytes, seen, &mut told),
        "epoch" => tell_epoch(pages, vector, &bytes, seen, &mut told),
        "link" => tell_link(pages, &bytes, seen, &mut told),
        "made-epoch" => tell_made_epoch(pages, vector, &bytes, seen, &mut told),
        "journal" => super::journal::tell(pages, vector, &bytes, seen, &mut told),
        "delta" => super::deltas::tell(pages, &bytes, seen, &mut told),
        "deltas" => super::deltas::tell_all(pages, &bytes, seen, &mut told),
        other => panic!("{}: form = {other:?}", vector.file),
    }
    told
}

fn tell_object(pages: &Pages, vector: &Vector, bytes: &[u8], seen: &mut BTreeSet<String>, told: &mut String) {
    let header_bytes = &bytes[..160];
    let header = pages.decode("ObjectHeader", header_bytes, seen);
    header.tell("header", 0, told);
    assert_eq!(header.field("magic"), hex(b"WALDEN\x01\x1a"));
    assert_eq!(header.field("crc"), crc32fast::hash(&bytes[..152]).to_string());
    assert_eq!(header.field("place"), hex(&blake3::hash(vector.name.as_bytes()).as_bytes()[..16]));
    assert_eq!(header.field("kind"), vector.kind.as_deref().unwrap());
    let epoch: u32 = header.field("key_epoch").parse().unwrap();
    let secret = match epoch {
        0 => lasting_secret(),
        epoch => vectors::keyring().epoch_secret(epoch).unwrap().0,
    };
    let key = derive("walden v1 object key", &[&secret, &bytes[..120]]);
    assert_eq!(header.field("commitment"), hex(&derive("walden v1 key commitment", &[&key])));

    let trailer = pages.decode("Trailer", &bytes[bytes.len() - 32..], seen);
    let (mut at, mut frames) = (160, Vec::new());
    for number in 0u64.. {
        let head_bytes = &bytes[at..at + 16];
        let head = pages.decode("FrameHead", head_bytes, seen);
        let sealed_len: usize = head.field("sealed_len").parse().unwrap();
        let sealed = &bytes[at + 16..at + 16 + sealed_len];
        let crc = crc32fast::hash(&[&head_bytes[..12], sealed].concat());
        assert_eq!(head.field("crc"), crc.to_string());
        let mut nonce = [0; 24];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        let associated = [header_bytes, &number.to_le_bytes(), &head_bytes[..12]].concat();
        let body = open(&key, nonce, &associated, sealed);
        let plain_len: usize = head.field("plain_len").parse().unwrap();
        let chunk = match head.field("codec") {
            "Raw" => body,
            _ => zstd::decode_all(&body[..]).unwrap(),
        };
        assert_eq!(chunk.len(), plain_len);
        head.tell(&format!("frame {number} at {at}"), 0, told);
        if head.field("kind") == "Directory" {
            assert_eq!(trailer.field("directory_offset"), at.to_string());
            assert_eq!(trailer.field("frame_count"), (number + 1).to_string());
            tell_directory(pages, vector, &chunk, &frames, seen, told);
            at += 16 + sealed_len;
            break;
        }
        let chunk_id = blake3::keyed_hash(&vectors::keyring().chunk_id_key().0, &chunk);
        frames.push((at, *chunk_id.as_bytes()));
        match vector.frames[number as usize].as_str() {
            "raw" => {
                told.push_str(&format!("  chunk: {} bytes, BLAKE3 {}\n", plain_len, blake3::hash(&chunk)))
            }
            kind => pages.decode(kind, &chunk, seen).tell("chunk", 1, told),
        }
        at += 16 + sealed_len;
    }
    trailer.tell("trailer", 0, told);
    assert_eq!(trailer.field("object_len"), bytes.len().to_string());
    assert_eq!(trailer.field("crc"), crc32fast::hash(&bytes[at..at + 24]).to_string());
    assert_eq!(trailer.field("magic"), hex(b"\x1aEND"));
    assert_eq!(at + 32, bytes.len());
}

fn tell_directory(
    pages: &Pages,
    vector: &Vector,
    chunk: &[u8],
    frames: &[(usize, [u8; 32])],
    seen: &mut BTreeSet<String>,
    told: &mut String,
) {
    let directory = pages.decode("Directory", chunk, seen);
    directory.tell("chunk", 1, told);
    let Value::Fields(_, fields) = &directory else { panic!("a directory is a record") };
    let Value::List(entries) = &fields[1].1 else { panic!("frames are a list") };
    assert_eq!(entries.len(), frames.len());
    for (entry, (offset, chunk_id)) in entries.iter().zip(frames) {
        assert_eq!(entry.field("offset"), offset.to_string());
        assert_eq!(entry.field("chunk"), hex(chunk_id));
    }
    if let Some(meta) = &vector.meta {
        let count = u32::from_le_bytes(chunk[..4].try_into().unwrap()) as usize;
        pages.decode(meta, &chunk[4..4 + count], seen).tell("meta", 1, told);
    }
}

/// Magic, required bits, record, CRC. Returns the record.
fn tell_plain(
    pages: &Pages,
    kind: &str,
    magic: &[u8; 8],
    bytes: &[u8],
    seen: &mut BTreeSet<String>,
    told: &mut String,
) -> Value {
    let (covered, crc) = bytes.split_at(bytes.len() - 4);
    assert_eq!(crc, crc32fast::hash(covered).to_le_bytes());
    assert_eq!(&covered[..8], magic);
    assert_eq!(covered[8..12], [0; 4]);
    let record = pages.decode(kind, &covered[12..], seen);
    record.tell("record", 0, told);
    record
}

fn tell_slot(pages: &Pages, vector: &Vector, bytes: &[u8], seen: &mut BTreeSet<String>, told: &mut String) {
    let record = tell_plain(pages, "KeySlot", b"WALDKEY\x01", bytes, seen, told);
    let (private, anchor) = unwrap_slot(&record, bytes);
    assert_eq!(record.field("public"), hex(&x25519(private, X25519_BASE)));
    assert_eq!(record.field("name"), format!("{:?}", last_part(&vector.name)));
    let chunk_id_key = &vectors::keyring().chunk_id_key().0;
    assert_eq!(anchor, derive("walden v1 key slot anchor", &[chunk_id_key, &vectors::REPOSITORY.0]));
    told.push_str(&format!("private half: {}\nanchor: {}\n", hex(&private), hex(&anchor)));
    let start: u32 = record.field("start").parse().unwrap();
    assert_eq!(record.field("start_link"), hex(&link_pair(start).verifying_key().to_bytes()));
}

/// The link keys of an epoch.
fn link_pair(epoch: u32) -> SigningKey {
    let secret = vectors::keyring().epoch_secret(epoch).unwrap();
    SigningKey::from_bytes(&derive("walden v1 epoch link", &[&secret.0]))
}

fn tell_link(pages: &Pages, bytes: &[u8], seen: &mut BTreeSet<String>, told: &mut String) {
    let record = tell_plain(pages, "EpochLink", b"WALDEPL\x01", bytes, seen, told);
    let epoch: u32 = record.field("epoch").parse().unwrap();
    let public = link_pair(epoch).verifying_key().to_bytes();
    assert_eq!(record.field("public"), hex(&public));
    let repository = &vectors::REPOSITORY.0;
    let message = [b"walden v1 epoch link".as_slice(), repository, &epoch.to_le_bytes(), &public].concat();
    assert_eq!(record.field("signature"), hex(&link_pair(epoch - 1).sign(&message).to_bytes()));
}

/// Private half and anchor of a slot.
fn unwrap_slot(record: &Value, bytes: &[u8]) -> ([u8; 32], [u8; 32]) {
    let salt = unhex(record.field("salt"));
    let number = |field| record.field(field).parse().unwrap();
    let wrapping = match record.field("kind") {
        "Passphrase" => {
            let (memory, passes) = (number("cost_memory_kib"), number("cost_passes"));
            let params = Params::new(memory, passes, number("cost_lanes"), Some(32)).unwrap();
            let mut stretched = [0; 32];
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(vectors::PASSPHRASE.as_bytes(), &salt, &mut stretched)
                .unwrap();
            derive("walden v1 key slot passphrase", &[&stretched, &salt])
        }
        _ => derive("walden v1 key slot key", &[&vectors::KEY, &salt]),
    };
    let associated = &bytes[..bytes.len() - 4 - 80];
    let opened = open(&wrapping, [0; 24], associated, &unhex(record.field("wrapped")));
    (opened[..32].try_into().unwrap(), opened[32..].try_into().unwrap())
}

/// Each blob is a whole object for one slot; that of slot `main` is opened.
fn tell_made_epoch(
    pages: &Pages,
    vector: &Vector,
    bytes: &[u8],
    seen: &mut BTreeSet<String>,
    told: &mut String,
) {
    tell_plain(pages, "Epoch", b"WALDEPA\x01", bytes, seen, told);
    // Past magic, required bits, repository and epoch: whether there is a link, its length, and so many bytes.
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(bytes[32], 1);
    let (link, after) = (&bytes[37..37 + number(33)], 37 + number(33));
    tell_link(pages, link, seen, told);
    // Then a count, and for each slot a length and so many bytes.
    let (count, mut at) = (number(after), after + 4);
    for _ in 0..count {
        let sealed = &bytes[at + 4..at + 4 + number(at)];
        at += 4 + sealed.len();
        let record = pages.decode("EpochSlot", &sealed[12..sealed.len() - 4], seen);
        let name = format!("keys/epochs/2/{}", record.field("slot").trim_matches('"'));
        let mut one = vector.clone();
        one.name = name;
        tell_epoch(pages, &one, sealed, seen, told);
    }
    assert_eq!(at, bytes.len() - 4);
}

fn tell_epoch(pages: &Pages, vector: &Vector, bytes: &[u8], seen: &mut BTreeSet<String>, told: &mut String) {
    let record = tell_plain(pages, "EpochSlot", b"WALDEPO\x01", bytes, seen, told);
    let slot_name = last_part(&vector.name);
    let slot_bytes = vectors::read(&format!("keys/{slot_name}.bin"));
    let slot = pages.decode("KeySlot", &slot_bytes[12..slot_bytes.len() - 4], seen);
    let (private, _) = unwrap_slot(&slot, &slot_bytes);
    let (ours, theirs) = (unhex(record.field("slot_public")), unhex(record.field("ephemeral_public")));
    let shared = x25519(private, theirs.clone().try_into().unwrap());
    let epoch = record.field("epoch").parse::<u32>().unwrap().to_le_bytes();
    let repository = &vectors::REPOSITORY.0;
    let key =
        derive("walden v1 epoch seal", &[&shared, repository, &epoch, &ours, &theirs, slot_name.as_bytes()]);
    let associated = &bytes[..bytes.len() - 4 - 32 - 80];
    let opened = open(&key, [0; 24], associated, &unhex(record.field("sealed")));
    let (secret, chunk_id_key) = (&opened[..32], &opened[32..]);
    told.push_str(&format!("epoch secret: {}\nchunk id key: {}\n", hex(secret), hex(chunk_id_key)));
    assert_eq!(chunk_id_key, vectors::keyring().chunk_id_key().0);
    let key = derive("walden v1 slot voucher", &[secret]);
    let voucher = mac(&key, &[repository, &epoch, &ours, slot_name.as_bytes()]);
    assert_eq!(record.field("voucher"), hex(&voucher));
}

/// What seals objects of epoch 0.
pub(super) fn lasting_secret() -> [u8; 32] {
    derive("walden v1 lasting secret", &[&vectors::keyring().chunk_id_key().0, &vectors::REPOSITORY.0])
}

pub(super) fn derive(context: &str, parts: &[&[u8]]) -> [u8; 32] {
    blake3::derive_key(context, &parts.concat())
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    *blake3::keyed_hash(key, &parts.concat()).as_bytes()
}

pub(super) fn open(key: &[u8; 32], nonce: [u8; 24], associated: &[u8], sealed: &[u8]) -> Vec<u8> {
    let payload = Payload { msg: sealed, aad: associated };
    XChaCha20Poly1305::new(key.into()).decrypt(&XNonce::from(nonce), payload).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
