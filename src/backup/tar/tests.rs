//! Tar streams, whole, cut anywhere and hostile.

use super::testing::*;
use super::*;
use proptest::prelude::*;

/// Feeds `bytes` in pieces of the sizes given, over and over, and collects whole files.
fn read(bytes: &[u8], cuts: &[usize]) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
    let (mut reader, mut files, mut open) = (TarReader::new(), Vec::new(), None::<(TarEntry, Vec<u8>)>);
    let (mut rest, mut cuts) = (bytes, cuts.iter().cycle());
    while !rest.is_empty() {
        let count = (*cuts.next().unwrap_or(&1)).clamp(1, rest.len());
        reader.feed(Bytes::copy_from_slice(&rest[..count]));
        rest = &rest[count..];
        while let Some(event) = reader.next_event()? {
            match event {
                TarEvent::Entry(entry) => assert!(open.replace((entry, Vec::new())).is_none()),
                TarEvent::Data(piece) => open.as_mut().unwrap().1.extend_from_slice(&piece),
                TarEvent::EntryEnd => files.push(open.take().unwrap()),
            }
        }
        assert!(reader.buffered < TAR_BLOCK_BYTES, "the reader hoards its input");
    }
    reader.finish()?;
    Ok(files)
}

fn any_file() -> impl Strategy<Value = File> {
    let path = "[a-z0-9_]{1,12}(/[a-z0-9_.]{1,10}x){0,3}";
    (path, 0u8..8, 0usize..3000).prop_map(|(path, kind, len)| match kind {
        0 => File { kind: EntryKind::Directory, content: Vec::new(), ..file(&path, 0) },
        1 => {
            File { kind: EntryKind::Link, content: Vec::new(), link: "/mnt/fast/pg".into(), ..file(&path, 0) }
        }
        _ => file(&path, len),
    })
}

proptest! {
    #[test]
    fn gives_the_same_files_however_the_stream_is_cut(
        files in prop::collection::vec(any_file(), 0..12),
        cuts in prop::collection::vec(1usize..2000, 1..8),
        zero_blocks in 0usize..3,
    ) {
        let read = read(&archive(&files, zero_blocks), &cuts).unwrap();
        prop_assert_eq!(read.len(), files.len());
        for ((entry, content), file) in read.iter().zip(&files) {
            prop_assert_eq!(&entry.path, &file.path);
            prop_assert_eq!(entry.kind, file.kind);
            prop_assert_eq!(&entry.link, &file.link);
            prop_assert_eq!((entry.mode, entry.modified), (0o600, 1_795_377_301));
            prop_assert_eq!(entry.size, file.content.len() as u64);
            prop_assert_eq!(content, &file.content);
        }
    }

    #[test]
    fn never_panics_and_never_leaves_the_directory(
        files in prop::collection::vec(any_file(), 1..4),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = archive(&files, 2);
        for (at, byte) in hits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let header = at - at % 512;
            let block: &mut [u8; 512] = (&mut bytes[header..header + 512]).try_into().unwrap();
            if &block[257..262] == b"ustar" {
                seal(block);
            }
        }
        if let Ok(files) = read(&bytes, &[700]) {
            for (entry, _) in files {
                prop_assert!(!entry.path.starts_with('/'));
                prop_assert!(entry.path.split('/').all(|part| !part.is_empty() && part != ".."));
            }
        }
    }

    #[test]
    fn refuses_every_truncation_inside_an_entry(cut in 1usize..2048) {
        let bytes = archive(&[file("base/5/1249", 700), file("PG_VERSION", 3)], 0);
        let result = read(&bytes[..cut.min(bytes.len())], &[333]);
        let whole = cut >= bytes.len() || cut == 512 + 1024;
        prop_assert_eq!(result.is_ok(), whole, "cut at {}", cut);
    }
}

#[test]
fn reads_sizes_in_base_256() {
    let mut reader = TarReader::new();
    reader.feed(Bytes::copy_from_slice(&header("base/5/1", b'0', 40 << 30, "")));
    let Some(TarEvent::Entry(entry)) = reader.next_event().unwrap() else { panic!("no entry") };
    assert_eq!(entry.size, 40 << 30);
}

#[test]
fn hands_out_slices_of_its_input() {
    let piece = Bytes::from(archive(&[file("base/5/1249", 8192)], 2));
    let mut reader = TarReader::new();
    reader.feed(piece.clone());
    let mut data = None;
    while let Some(event) = reader.next_event().unwrap() {
        if let TarEvent::Data(bytes) = event {
            data = Some(bytes);
        }
    }
    assert_eq!(data.unwrap().as_ptr(), piece[512..].as_ptr());
}

#[test]
fn refuses_hostile_headers() {
    let mutated = |change: fn(&mut [u8; 512])| {
        let mut block = header("base/5/1", b'0', 0, "");
        change(&mut block);
        seal(&mut block);
        block
    };
    let cases: Vec<(&str, [u8; 512])> = vec![
        ("absolute path", header("/etc/passwd", b'0', 0, "")),
        ("path upward", header("base/../../etc/passwd", b'0', 0, "")),
        ("lone dots", header("..", b'5', 0, "")),
        ("a dot inside", header("base/./1", b'0', 0, "")),
        ("an empty part", header("base//1", b'0', 0, "")),
        ("no path", header("", b'0', 0, "")),
        ("a hard link", header("base/1", b'1', 0, "base/2")),
        ("a device", header("base/1", b'3', 0, "")),
        ("a pax header", header("base/1", b'x', 0, "")),
        ("a link without target", header("pg_tblspc/1", b'2', 0, "")),
        ("a file with target", header("pg_tblspc/1", b'0', 0, "/x")),
        ("a directory with content", header("base", b'5', 10, "")),
        ("more than any file holds", header("base/1", b'0', 1 << 45, "")),
        (
            "a size past 64 bits",
            mutated(|b| b[124..136].copy_from_slice(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ),
        ("a negative size", mutated(|b| b[124] = 0xff)),
        ("a size of letters", mutated(|b| b[124] = b'x')),
        ("a path that is not UTF-8", mutated(|b| b[0] = 0xc3)),
        ("upward through the prefix", mutated(|b| b[345..348].copy_from_slice(b"../"))),
        ("no magic", mutated(|b| b[257] = b'x')),
        ("a wrong checksum", {
            let mut block = header("base/5/1", b'0', 0, "");
            block[0] = b'c';
            block
        }),
    ];
    for (what, block) in cases {
        let mut reader = TarReader::new();
        reader.feed(Bytes::copy_from_slice(&block));
        assert!(reader.next_event().is_err(), "{what} was taken");
    }
}

#[test]
fn refuses_bytes_after_the_end() {
    let mut bytes = archive(&[file("PG_VERSION", 3)], 2);
    bytes.extend_from_slice(&archive(&[file("late", 3)], 0));
    assert!(read(&bytes, &[4096]).is_err());
}
