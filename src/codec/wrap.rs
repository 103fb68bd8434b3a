//! Seals of a few secrets, each with a key that seals nothing else: what key slots wrap, and epochs sealed to them. Spec: formats/keys.md.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// What a seal adds.
pub(super) const TAG_BYTES: usize = 16;

/// Seals `plain` with a key that seals nothing else; its nonce is zero for that reason.
pub(super) fn seal<const P: usize, const S: usize>(
    key: &[u8; 32],
    associated: &[u8],
    plain: &[u8; P],
) -> [u8; S] {
    const { assert!(S == P + TAG_BYTES) };
    let mut sealed = [0; S];
    let (body, tag) = sealed.split_at_mut(P);
    body.copy_from_slice(plain);
    match XChaCha20Poly1305::new(key.into()).encrypt_inout_detached(
        &XNonce::default(),
        associated,
        body.into(),
    ) {
        Ok(made) => tag.copy_from_slice(&made),
        Err(_) => unreachable!("a hundred bytes are far below the cipher's limit"),
    }
    sealed
}

/// Undoes [`seal`].
pub(super) fn open<const P: usize, const S: usize>(
    key: &[u8; 32],
    associated: &[u8],
    sealed: &[u8; S],
) -> Option<Zeroizing<[u8; P]>> {
    const { assert!(S == P + TAG_BYTES) };
    let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>()?;
    let mut plain = Zeroizing::new([0; P]);
    plain.copy_from_slice(body);
    XChaCha20Poly1305::new(key.into())
        .decrypt_inout_detached(&XNonce::default(), associated, plain.as_mut_slice().into(), &Tag::from(*tag))
        .ok()?;
    Some(plain)
}

pub(super) fn join<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut joined = [0; N];
    let mut rest = joined.as_mut_slice();
    for part in parts {
        let (into, after) = rest.split_at_mut(part.len());
        into.copy_from_slice(part);
        rest = after;
    }
    assert!(rest.is_empty(), "parts do not fill {N} bytes");
    joined
}

/// Secrets of 32 bytes each, one after the other.
pub(super) fn split<const N: usize, const K: usize>(joined: &[u8; N]) -> [Zeroizing<[u8; 32]>; K] {
    const { assert!(N == K * 32) };
    std::array::from_fn(|at| {
        let mut part = Zeroizing::new([0; 32]);
        part.copy_from_slice(&joined[at * 32..at * 32 + 32]);
        part
    })
}
