//! Archives as PostgreSQL writes them, for tests.

use super::*;

#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) kind: EntryKind,
    pub(crate) content: Vec<u8>,
    pub(crate) link: String,
}

fn put_octal(block: &mut [u8], at: usize, len: usize, value: u64) {
    let digits = format!("{value:0width$o}", width = len - 1);
    block[at..at + len - 1].copy_from_slice(digits.as_bytes());
}

pub(crate) fn seal(block: &mut [u8; 512]) {
    let sum = header_sum(block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(crate) fn header(path: &str, kind: u8, size: u64, link: &str) -> [u8; 512] {
    let mut block = [0; 512];
    block[..path.len()].copy_from_slice(path.as_bytes());
    put_octal(&mut block, 100, 8, 0o600);
    put_octal(&mut block, 108, 8, 101);
    put_octal(&mut block, 116, 8, 104);
    if size < 1 << 33 {
        put_octal(&mut block, 124, 12, size);
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    put_octal(&mut block, 136, 12, 1_795_377_301);
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[265..273].copy_from_slice(b"postgres");
    seal(&mut block);
    block
}

pub(crate) fn archive(files: &[File], zero_blocks: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for file in files {
        let (kind, slash) = match file.kind {
            EntryKind::Regular => (b'0', ""),
            EntryKind::Directory => (b'5', "/"),
            EntryKind::Link => (b'2', "/"),
        };
        let path = format!("{}{slash}", file.path);
        bytes.extend_from_slice(&header(&path, kind, file.content.len() as u64, &file.link));
        bytes.extend_from_slice(&file.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + zero_blocks * 512, 0);
    bytes
}

pub(crate) fn file(path: &str, len: usize) -> File {
    let content = (0..len).map(|i| (i * 7 + len) as u8).collect();
    File { path: path.into(), kind: EntryKind::Regular, content, link: String::new() }
}
