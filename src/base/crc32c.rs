//! CRC-32C (Castagnoli), PostgreSQL's checksum of WAL records, and ours of pages and files: over bytes, over more bytes behind
//! others, and of two parts from theirs. No state, no IO.

use crc_fast::{CrcAlgorithm, Digest};

/// The checksum of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The checksum of `bytes` behind others that have the checksum `before`.
pub fn crc32c_append(before: u32, bytes: &[u8]) -> u32 {
    // The register is the checksum's complement.
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!before));
    digest.update(bytes);
    digest.finalize() as u32
}

/// The checksum of two parts, from theirs and the length of the second in bytes.
pub fn crc32c_combine(first: u32, second: u32, second_len: u64) -> u32 {
    crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, first.into(), second.into(), second_len) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, by the reversed polynomial.
    fn by_bits(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
        })
    }

    #[test]
    fn any_length_at_any_place_has_the_checksum_of_its_bits() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        let bytes: Vec<u8> = (0..9000u32).map(|at| ((at * at) >> 5) as u8).collect();
        for len in (0..300).chain([511, 1024, 4097, 8192]) {
            let bytes = &bytes[len % 13..][..len];
            assert_eq!(crc32c(bytes), by_bits(bytes), "{len} bytes");
        }
    }

    #[test]
    fn parts_make_the_checksum_of_the_whole() {
        let whole: Vec<u8> = (0..3000u32).map(|at| ((at * at) >> 3) as u8).collect();
        for at in [0, 1, 20, 255, 1500, 2999, 3000] {
            let (first, second) = whole.split_at(at);
            assert_eq!(crc32c_append(crc32c(first), second), by_bits(&whole), "{at}");
            assert_eq!(
                crc32c_combine(crc32c(first), crc32c(second), second.len() as u64),
                by_bits(&whole),
                "{at}"
            );
        }
    }
}
