//! Keys of objects and the seal of frames: BLAKE3 derivation, XChaCha20-Poly1305. Spec: formats/object.md.
//! A key seals one object only: it is derived from the epoch's secret and the header, whose salt is new every time.

use crate::base::ChunkId;
use crate::base::planted::{Bug, planted};
use crate::format::frame::{FrameHead, TAG_BYTES};
use crate::format::header::{HEADER_BYTES, ObjectHeader};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const OBJECT_KEY_CONTEXT: &str = "walden v1 object key";
const COMMITMENT_CONTEXT: &str = "walden v1 key commitment";

/// The secret of one key epoch.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct EpochSecret(pub [u8; 32]);

impl std::fmt::Debug for EpochSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EpochSecret(…)")
    }
}

/// The key of chunk ids, one for the life of a repository.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ChunkIdKey(pub [u8; 32]);

impl ChunkIdKey {
    /// The id of `chunk`.
    pub fn chunk_id(&self, chunk: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.0, chunk).as_bytes())
    }
}

impl std::fmt::Debug for ChunkIdKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkIdKey(…)")
    }
}

/// Who holds the secrets of key epochs.
pub trait KeySource: Send + Sync {
    /// The secret of `epoch`, if held.
    fn epoch_secret(&self, epoch: u32) -> Option<&EpochSecret>;
    /// The key of chunk ids.
    fn chunk_id_key(&self) -> &ChunkIdKey;
}

/// The key of one object, bound to its header.
pub struct ObjectKeys {
    cipher: XChaCha20Poly1305,
    header: [u8; HEADER_BYTES],
}

/// The frame was not sealed with this key at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsealable;

impl ObjectKeys {
    /// Derives the key of a new object and completes its header with the commitment.
    pub fn create(secret: &EpochSecret, header: &ObjectHeader) -> Self {
        let (key, commitment) = object_key(secret, header);
        ObjectKeys { cipher: cipher(&key), header: header.encode(&commitment) }
    }

    /// Derives the key of a stored object; `None` when the commitment shows another secret sealed it.
    pub fn open(secret: &EpochSecret, header: &ObjectHeader, commitment: &[u8; 32]) -> Option<Self> {
        let (key, own) = object_key(secret, header);
        let matches: bool = own.ct_eq(commitment).into();
        matches.then(|| ObjectKeys { cipher: cipher(&key), header: header.encode(commitment) })
    }

    /// The header's bytes.
    pub fn header_bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.header
    }

    /// Seals `buffer` in place as frame `counter` and appends the tag. `head.sealed_len` counts the tag.
    pub fn seal(&self, counter: u64, head: &FrameHead, buffer: &mut Vec<u8>) {
        let tag = self.seal_slice(counter, head, buffer);
        buffer.extend_from_slice(&tag);
    }

    /// Seals `body` in place as frame `counter`; the tag is to follow it. `head.sealed_len` counts the tag.
    pub fn seal_slice(&self, counter: u64, head: &FrameHead, body: &mut [u8]) -> [u8; TAG_BYTES] {
        assert!(head.sealed_len as usize == body.len() + TAG_BYTES, "frame head and body disagree");
        let associated = self.associated(counter, head);
        let nonce = nonce(if planted(Bug::NonceReused) { 0 } else { counter });
        #[cfg(feature = "planted")]
        super::audit::sealed(&self.header, &nonce);
        match self.cipher.encrypt_inout_detached(&nonce, &associated, body.into()) {
            Ok(tag) => tag.into(),
            Err(_) => unreachable!("a frame is far below the cipher's limit of 256 GiB"),
        }
    }

    /// Opens frame `counter`.
    pub fn open_frame(&self, counter: u64, head: &FrameHead, sealed: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let mut buffer = Vec::new();
        self.open_frame_into(counter, head, sealed, &mut buffer)?;
        Ok(buffer)
    }

    /// Opens frame `counter` into `buffer`, whose content is replaced; it is empty after an error.
    pub fn open_frame_into(
        &self,
        counter: u64,
        head: &FrameHead,
        sealed: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<(), Unsealable> {
        buffer.clear();
        let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(Unsealable)?;
        buffer.extend_from_slice(body);
        let associated = self.associated(counter, head);
        let opened = self.cipher.decrypt_inout_detached(
            &nonce(counter),
            &associated,
            buffer.as_mut_slice().into(),
            &Tag::from(*tag),
        );
        opened.map_err(|_| {
            buffer.clear();
            Unsealable
        })
    }

    fn associated(&self, counter: u64, head: &FrameHead) -> [u8; HEADER_BYTES + 20] {
        let mut bytes = [0; HEADER_BYTES + 20];
        bytes[..HEADER_BYTES].copy_from_slice(&self.header);
        bytes[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&counter.to_le_bytes());
        bytes[HEADER_BYTES + 8..].copy_from_slice(&head.bound_bytes());
        bytes
    }
}

/// An object's key and the commitment to it.
fn object_key(secret: &EpochSecret, header: &ObjectHeader) -> (Zeroizing<[u8; 32]>, [u8; 32]) {
    let key = derive(OBJECT_KEY_CONTEXT, &[&secret.0, &header.derivation_bytes()]);
    let commitment = *derive(COMMITMENT_CONTEXT, &[key.as_slice()]);
    (key, commitment)
}

fn cipher(key: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.into())
}

/// BLAKE3's key derivation over `parts`, whose lengths but the last one's are fixed.
pub(super) fn derive(context: &str, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut hasher = Zeroizing::new(blake3::Hasher::new_derive_key(context));
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    Zeroizing::new(*hasher.finalize().as_bytes())
}

fn nonce(counter: u64) -> XNonce {
    let mut nonce = [0; 24];
    nonce[..8].copy_from_slice(&counter.to_le_bytes());
    nonce.into()
}
