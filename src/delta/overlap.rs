//! What compressors of the LZ77 kind have in common: equal bytes at two places of one input, and copies from what came out before.

#![deny(clippy::indexing_slicing)]

/// Bytes that no compressor makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// The four bytes at `at`; zero where there are fewer.
#[inline]
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

/// How many bytes at `a` and `b` are equal, at most `most`. Reads up to seven bytes more than that, which have to be there.
#[inline]
pub fn common(bytes: &[u8], a: usize, b: usize, most: usize) -> usize {
    let (Some(a), Some(b)) = (bytes.get(a..), bytes.get(b..)) else { return 0 };
    let mut len = 0;
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        let differ = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differ != 0 {
            return most.min(len + differ.trailing_zeros() as usize / 8);
        }
        len += 8;
        if len >= most {
            break;
        }
    }
    most.min(len)
}

/// Appends `count` bytes from `distance` before the end of `to`, one after the other: those that were appended are copied again when the
/// distance is shorter. Refuses a distance of nothing, and one that leads before `start`.
#[inline]
pub fn copy(to: &mut Vec<u8>, start: usize, distance: usize, count: usize) -> Result<(), Broken> {
    let from = to.len().checked_sub(distance).filter(|from| *from >= start && distance > 0).ok_or(Broken)?;
    let mut left = count;
    while left > 0 {
        // What lies between is a multiple of the distance, so it repeats by itself.
        let piece = left.min(to.len() - from);
        to.extend_from_within(from..from + piece);
        left -= piece;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes of hexadecimal digits, for tests of compressors.
    pub fn unhex(digits: &str) -> Vec<u8> {
        assert!(digits.len().is_multiple_of(2));
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    /// What compressors are tried with: noise, runs and repetitions of any distance, of few or of all byte values.
    pub fn inputs() -> impl Strategy<Value = Vec<u8>> {
        let piece = (0u8..4, any::<u8>(), 1usize..300, 1usize..6000);
        (prop::collection::vec(piece, 0..60), prop::sample::select(vec![0x01u8, 0x83, 0xFF]), 0usize..8193)
            .prop_map(|(pieces, mask, len)| {
                let mut made: Vec<u8> = Vec::new();
                for (kind, byte, count, distance) in pieces {
                    match kind {
                        0 => made.extend(std::iter::repeat_n(byte & mask, count)),
                        1 => made
                            .extend((0..count).map(|at| ((at * at * usize::from(byte)) >> 3) as u8 & mask)),
                        _ => (0..count).for_each(|_| {
                            made.push(made.len().checked_sub(distance).map_or(byte, |from| made[from]));
                        }),
                    }
                }
                made.truncate(len);
                made
            })
    }

    proptest! {
        #[test]
        fn a_copy_is_made_byte_by_byte(start in 0usize..20, made in 1usize..40, distance in 0usize..60, count in 0usize..300) {
            let before: Vec<u8> = (0..start + made).map(|at| at as u8).collect();
            let mut to = before.clone();
            let done = copy(&mut to, start, distance, count);
            if distance == 0 || distance > made {
                prop_assert_eq!((done, to), (Err(Broken), before));
            } else {
                let mut slow = before;
                (0..count).for_each(|_| slow.push(slow[slow.len() - distance]));
                prop_assert_eq!((done, to), (Ok(()), slow));
            }
        }

        #[test]
        fn equal_bytes_are_counted(
            bytes in prop::collection::vec(0u8..2, 0..80),
            a in 0usize..40,
            b in 0usize..40,
            most in 0usize..60,
        ) {
            let padded = [&bytes[..], &[0; 160]].concat();
            let slow = padded[a..].iter().zip(&padded[b..]).take(most).take_while(|(a, b)| a == b).count();
            prop_assert_eq!(common(&padded, a, b, most), slow);
        }
    }
}
