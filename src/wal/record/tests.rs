//! Record headers and fragments, whole and hostile.

use super::*;
use proptest::prelude::*;

fn header(total_len: u32) -> RecordHeader {
    RecordHeader { total_len, xid: 7, prev: Lsn::new(0x100), info: 0, rmgr: rmgr::HEAP, crc: 0x1234_5678 }
}

fn fragments(version: WalVersion, body: &[u8], payload: usize) -> Result<Vec<Fragment>, FormatError> {
    let total_len = (RECORD_HEADER_BYTES + body.len() + payload) as u32;
    Fragments::new(version, total_len, body).collect()
}

fn relation(number: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0] = 1;
    bytes[4] = 2;
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// A block header with an image.
fn with_image(len: u16, hole_offset: u16, info: u8, hole_len: Option<u16>) -> Vec<u8> {
    let mut body = vec![0, 0x10, 0, 0];
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(&hole_offset.to_le_bytes());
    body.push(info);
    body.extend(hole_len.into_iter().flat_map(u16::to_le_bytes));
    body.extend_from_slice(&relation(3));
    body.extend_from_slice(&9u32.to_le_bytes());
    body
}

#[test]
fn headers_come_back() {
    let header = header(99);
    assert_eq!(RecordHeader::decode(&header.encode()), header);
}

#[test]
fn refuses_headers_that_no_server_writes() {
    let check = |header: RecordHeader, version| header.check(version, Lsn::new(0x200), Some(Lsn::new(0x100)));
    assert!(check(header(24), WalVersion::V14).is_ok());
    assert!(check(header(RECORD_BYTES_MAX), WalVersion::V14).is_ok());
    for total_len in [0, 23, RECORD_BYTES_MAX + 1, u32::MAX] {
        assert!(check(header(total_len), WalVersion::V18).is_err(), "{total_len}");
    }
    for (rmgr, version, fits) in [
        (21, WalVersion::V14, true),
        (22, WalVersion::V18, false),
        (127, WalVersion::V18, false),
        (128, WalVersion::V14, false),
        (255, WalVersion::V15, true),
    ] {
        assert_eq!(
            check(RecordHeader { rmgr, ..header(30) }, version).is_ok(),
            fits,
            "{rmgr} in {version:?}"
        );
    }
    assert!(check(RecordHeader { prev: Lsn::new(0xF8), ..header(30) }, WalVersion::V16).is_err());
    let unlinked = |prev| RecordHeader { prev, ..header(30) }.check(WalVersion::V16, Lsn::new(0x200), None);
    assert!(unlinked(Lsn::new(0x1F8)).is_ok() && unlinked(Lsn::new(0x200)).is_err());
}

#[test]
fn reads_blocks_that_share_a_relation() {
    let mut body = vec![0, 0x20, 5, 0];
    body.extend_from_slice(&relation(3));
    body.extend_from_slice(&11u32.to_le_bytes());
    body.extend_from_slice(&[4, 0xC2, 0, 0]);
    body.extend_from_slice(&12u32.to_le_bytes());
    body.extend_from_slice(&[253, 8, 0, 252, 77, 0, 0, 0, 255, 6]);
    let found = fragments(WalVersion::V17, &body, 5 + 6).unwrap();
    let [Fragment::Block(first), Fragment::Block(second), rest @ ..] = &found[..] else {
        panic!("{found:?}")
    };
    let shared = RelationRef { tablespace: 1, database: 2, relation: 3 };
    assert_eq!((first.relation, first.block, first.fork, first.data_len), (shared, 11, 0, 5));
    assert_eq!((second.relation, second.block, second.fork, second.id), (shared, 12, 2, 4));
    assert!(second.will_init && !first.will_init);
    assert_eq!(rest, [Fragment::Origin(8), Fragment::TopXid(77), Fragment::Main(6)]);
}

#[test]
fn image_flags_changed_their_meaning_with_15() {
    let image = |version, body: &[u8], payload| match fragments(version, body, payload).unwrap()[..] {
        [Fragment::Block(BlockRef { image: Some(image), .. })] => image,
        ref other => panic!("{other:?}"),
    };
    // 0x02: compressed in 14, to be applied since.
    let whole = with_image(8192, 0, 2, None);
    assert_eq!(image(WalVersion::V15, &whole, 8192).compression, ImageCompression::None);
    assert!(image(WalVersion::V15, &whole, 8192).apply);
    assert!(fragments(WalVersion::V14, &whole, 8192).is_err(), "compressed, and not shorter");
    let squeezed = with_image(700, 0, 2, None);
    let image_14 = image(WalVersion::V14, &squeezed, 700);
    assert_eq!((image_14.compression, image_14.apply, image_14.hole_len), (ImageCompression::Pglz, false, 0));
    // 0x04: to be applied in 14, pglz since.
    let with_hole = with_image(8000, 100, 1 | 4, None);
    let image_14 = image(WalVersion::V14, &with_hole, 8000);
    assert_eq!((image_14.hole_offset, image_14.hole_len, image_14.apply), (100, 192, true));
    for (info, compression) in
        [(4, ImageCompression::Pglz), (8, ImageCompression::Lz4), (16, ImageCompression::Zstd)]
    {
        let body = with_image(900, 50, 1 | 2 | info, Some(3000));
        for version in [WalVersion::V15, WalVersion::V16, WalVersion::V17, WalVersion::V18] {
            let image = image(version, &body, 900);
            assert_eq!((image.compression, image.hole_len, image.apply), (compression, 3000, true));
        }
    }
}

#[test]
fn refuses_fragments_that_no_server_writes() {
    let block = |id: u8, flags: u8, data_len: u16| {
        let mut body = vec![id, flags];
        body.extend_from_slice(&data_len.to_le_bytes());
        body.extend_from_slice(&relation(3));
        body.extend_from_slice(&[0; 4]);
        body
    };
    let two = |first: u8, second: u8| [block(first, 0, 0), block(second, 0, 0)].concat();
    for (what, body, payload) in [
        ("blocks out of order", two(1, 0), 0),
        ("a block twice", two(1, 1), 0),
        ("an id between", vec![33, 0, 0, 0], 0),
        ("data without the flag", block(0, 0, 4), 4),
        ("the flag without data", block(0, 0x20, 0), 0),
        ("nothing to share", vec![0, 0x80, 0, 0, 1, 0, 0, 0], 0),
        ("more data than there is", block(0, 0x20, 9), 8),
        ("main data that is cut", vec![255, 9], 8),
        ("bytes after main data", vec![255, 9], 10),
        ("a hole at the beginning", with_image(8000, 0, 1 | 2, None), 8000),
        ("a hole past the end", with_image(100, 200, 1 | 2, None), 100),
        ("no hole but its place", with_image(8192, 8, 2, None), 8192),
        ("half an image", with_image(4096, 0, 2, None), 4096),
        ("two methods", with_image(400, 0, 2 | 4 | 8, None), 400),
        ("an unknown flag", with_image(8192, 0, 2 | 32, None), 8192),
    ] {
        let found = fragments(WalVersion::V16, &body, payload);
        assert!(found.is_err(), "{what}: {found:?}");
    }
    assert_eq!(fragments(WalVersion::V16, &[255, 9], 9), Ok(vec![Fragment::Main(9)]));
    assert_eq!(fragments(WalVersion::V16, &[], 0), Ok(vec![]));
}

#[test]
fn main_data_knows_what_was_not_kept() {
    let main = MainData { head: &[1, 2, 3, 4, 5], tail: &[8, 9], len: 9 };
    assert_eq!(main.bytes(1, 4), Some(&[2, 3, 4, 5][..]));
    assert_eq!(main.bytes(7, 2), Some(&[8, 9][..]));
    for (offset, count) in [(4, 2), (5, 1), (6, 2), (8, 2), (9, 1), (usize::MAX, 1)] {
        assert_eq!(main.bytes(offset, count), None, "{offset} {count}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200), total_len in any::<u32>()) {
        for version in WalVersion::ALL {
            prop_assert!(Fragments::new(version, total_len, &body).count() <= 300);
        }
    }
}
