//! Every byte flipped, one at a time. `WALDEN_LONG=1` runs the whole product; otherwise each byte of a large object is only checked
//! by what reads that object alone, and every so manieth by everything.

use crate::bed::*;
use std::collections::BTreeSet;
use walden::base::ObjectKey;

/// Objects up to this long are always flipped in full.
const SMALL_BYTES: usize = 1000;
/// Of longer objects, one byte in so many is.
const STRIDE: usize = 127;
/// One flip in so many is restored from.
const RESTORE_STRIDE: usize = 397;

/// The bytes to flip of an object of `len` bytes.
fn flips(len: usize, stride: usize, offset: usize) -> impl Iterator<Item = usize> {
    let all = std::env::var_os("WALDEN_LONG").is_some();
    let stride = if all { 1 } else { stride };
    (offset % stride..len).step_by(stride)
}

fn bits(at: usize) -> u8 {
    1 << (at % 8)
}

/// The repository with one of its clusters.
fn whole() -> Damaged {
    Damaged::only(|key| kind(key).is_some())
}

#[test]
fn the_scene_has_every_kind_of_object_and_is_whole() {
    block_on(async {
        let kinds: BTreeSet<_> = scene().objects.keys().filter_map(kind).collect();
        assert!(kinds.len() >= 13, "{kinds:?}");
        let bytes: usize = scene().objects.values().map(bytes::Bytes::len).sum();
        println!("{} objects, {bytes} bytes", scene().objects.len());
        assert!(bytes < 2 << 20);
        for whole in [Damaged::nowhere(), whole()] {
            assert_eq!(verified(&whole).await.unwrap().findings, []);
            assert_eq!(verified_without_key(&whole).await.unwrap().findings, []);
            let (files, wal) = restored(&whole).await.unwrap();
            assert!(files == scene().backups[1] && wal == scene().wal);
        }
    });
}

#[test]
fn every_flipped_byte_is_named() {
    block_on(async {
        let whole = whole();
        for (number, (key, bytes)) in whole.objects().iter().enumerate() {
            let stride = if bytes.len() <= SMALL_BYTES { 1 } else { STRIDE };
            for at in flips(bytes.len(), stride, number) {
                let damaged = whole.clone().flipped(key, at, bits(at));
                let report =
                    verified(&damaged).await.unwrap_or_else(|error| panic!("{key} at {at}: {error}"));
                assert!(names(&report, key), "byte {at} of {key}: {:?}", report.findings);
            }
        }
    });
}

#[test]
fn every_flipped_byte_is_named_without_a_key() {
    block_on(async {
        for (key, bytes) in whole().objects().iter() {
            // The object, the marker and a slot alone: that the others do not hide it is shown above.
            let alone =
                Damaged::only(|other| other == key || matches!(other.as_str(), "walden" | "keys/main"));
            for at in 0..bytes.len() {
                let damaged = alone.clone().flipped(key, at, bits(at));
                let report = verified_without_key(&damaged).await.unwrap();
                assert!(names(&report, key), "byte {at} of {key}: {:?}", report.findings);
            }
        }
    });
}

#[test]
fn a_restore_from_flipped_bytes_fails_with_its_code_or_is_identical() {
    block_on(async {
        let (whole, mut identical, mut failed) = (whole(), 0, 0);
        for (number, (key, bytes)) in whole.objects().iter().enumerate() {
            for at in flips(bytes.len(), RESTORE_STRIDE, number * 31) {
                match restored(&whole.clone().flipped(key, at, bits(at))).await {
                    Ok((files, wal)) => {
                        assert!(files == scene().backups[1] && wal == scene().wal, "byte {at} of {key}");
                        identical += 1;
                    }
                    Err(failure) => {
                        assert!(code_fits(key, failure.exit.code()), "byte {at} of {key}: {failure:?}");
                        failed += 1;
                    }
                }
            }
        }
        println!("{identical} identical, {failed} failed");
        assert!(identical > 0 && failed > 0);
    });
}

/// Damage is 4; where no slot opens any more, it is 5.
fn code_fits(key: &ObjectKey, code: u8) -> bool {
    code == 4 || (key.as_str().starts_with("keys/") && code == 5)
}
