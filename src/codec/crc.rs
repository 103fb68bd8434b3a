//! CRC-32C of files put together from those of their chunks, in whatever order these were computed. No IO.

use crate::base::crc32c;
use crate::format::manifest::CHUNK_BYTES;
use std::sync::LazyLock;

/// What each bit of a checksum becomes when a whole chunk follows: moving a checksum is linear.
static OVER_A_CHUNK: LazyLock<[u32; 32]> =
    LazyLock::new(|| std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, CHUNK_BYTES as u64)));

/// The checksum of two parts, from theirs and the length of the second in bytes.
pub fn combine(first: u32, second: u32, second_len: u64) -> u32 {
    if first == 0 {
        return second;
    }
    if second_len != CHUNK_BYTES as u64 {
        return crc32c::crc32c_combine(first, second, second_len);
    }
    // Nearly every part is a whole chunk, and the general way takes as long as checksumming it anew.
    let moved = OVER_A_CHUNK.iter().enumerate().filter(|(bit, _)| first >> bit & 1 == 1);
    moved.fold(second, |sum, (_, moved)| sum ^ moved)
}

/// The checksum of `len` zero bytes, by doubling.
pub fn of_zeros(len: u64) -> u32 {
    let (mut crc, mut power, mut power_len, mut left) = (0, crc32c::crc32c(&[0]), 1u64, len);
    while left > 0 {
        if left & 1 == 1 {
            crc = combine(crc, power, power_len);
        }
        left >>= 1;
        if left > 0 {
            power = combine(power, power, power_len);
            power_len *= 2;
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_any_length_make_the_checksum_of_the_whole() {
        let whole: Vec<u8> = (0..3 * CHUNK_BYTES + 100).map(|n| (n * n % 251) as u8).collect();
        for at in [0, 1, 100, CHUNK_BYTES, 2 * CHUNK_BYTES + 100, whole.len()] {
            let (first, second) = whole.split_at(at);
            let combined = combine(crc32c::crc32c(first), crc32c::crc32c(second), second.len() as u64);
            assert_eq!(combined, crc32c::crc32c(&whole), "{at}");
        }
    }

    #[test]
    fn a_whole_chunk_moves_a_checksum_as_any_length_does() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100 {
            let (first, second) = (rng.u32(..), rng.u32(..));
            let expected = crc32c::crc32c_combine(first, second, CHUNK_BYTES as u64);
            assert_eq!(combine(first, second, CHUNK_BYTES as u64), expected);
        }
    }

    #[test]
    fn zeros_have_the_checksum_of_zeros() {
        for len in [0u64, 1, 7, 8192, 262_144, 1_000_003] {
            assert_eq!(of_zeros(len), crc32c::crc32c(&vec![0; len as usize]), "{len}");
        }
        // A hole of a terabyte is as quick.
        of_zeros(1 << 40);
    }
}
