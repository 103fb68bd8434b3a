//! How files are cut into chunks, one test each.

use super::*;
use crate::backup::tar::testing::{File, archive, file};
use proptest::prelude::*;

/// Whole files, and the lengths of the parts they came in.
fn cut(bytes: &[u8], oid: Option<u32>, pieces: &[usize]) -> Vec<(TarEntry, Vec<u8>, Vec<usize>)> {
    let (mut cutter, mut files, mut open) = (Cutter::new(oid), Vec::new(), None);
    let (mut rest, mut sizes) = (bytes, pieces.iter().cycle());
    while !rest.is_empty() {
        let count = rest.len().min(*sizes.next().unwrap());
        cutter.feed(Bytes::copy_from_slice(&rest[..count]));
        rest = &rest[count..];
        while let Some(piece) = cutter.next_piece().unwrap() {
            match piece {
                Piece::Begin(entry) => assert!(open.replace((entry, Vec::new(), Vec::new())).is_none()),
                Piece::Part(part) => {
                    let (_, content, parts) = open.as_mut().unwrap();
                    parts.push(part.len());
                    content.extend_from_slice(&part);
                }
                Piece::End => files.push(open.take().unwrap()),
            }
        }
    }
    cutter.finish().unwrap();
    files
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn files_are_cut_from_their_own_start(
        lens in prop::collection::vec(prop_oneof![Just(0), 1usize..700_000, Just(CHUNK_BYTES), Just(2 * CHUNK_BYTES)], 1..5),
        pieces in prop::collection::vec(1usize..70_000, 1..5),
    ) {
        let files: Vec<File> = lens.iter().enumerate().map(|(n, len)| file(&format!("base/5/{}", n + 1), *len)).collect();
        let read = cut(&archive(&files, 2), Some(16384), &pieces);
        prop_assert_eq!(read.len(), files.len());
        for ((entry, content, parts), file) in read.iter().zip(&files) {
            prop_assert_eq!(&entry.path, &format!("pg_tblspc/16384/{}", file.path));
            prop_assert_eq!(content, &file.content);
            prop_assert_eq!(parts.len(), content.len().div_ceil(CHUNK_BYTES));
            prop_assert!(parts.iter().rev().skip(1).all(|len| *len == CHUNK_BYTES));
        }
    }

    #[test]
    fn zeros_are_told_from_anything_else(len in 0usize..1000, at in 0usize..1000) {
        let mut content = vec![0; len];
        prop_assert!(is_zero(&content));
        if let Some(byte) = content.get_mut(at) {
            *byte = 0x40;
            prop_assert!(!is_zero(&content));
        }
    }
}
