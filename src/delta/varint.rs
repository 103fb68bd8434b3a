//! Integers of as many bytes as they need: seven bits a byte, the lowest first, the top bit on all but the last.
//! Signed ones are zigzag: 0, -1, 1, -2. Spec: formats/deltas.md.

use crate::format::FormatError;

/// Most bytes of one.
const BYTES_MAX: u32 = 10;

/// Appends `value`.
pub fn put(value: u64, to: &mut Vec<u8>) {
    let mut rest = value;
    while rest >= 0x80 {
        to.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    to.push(rest as u8);
}

/// Appends `value`, signed.
pub fn put_signed(value: i64, to: &mut Vec<u8>) {
    put(((value << 1) ^ (value >> 63)) as u64, to);
}

/// The difference of two numbers of 32 bits, as a signed one.
pub fn difference(value: u32, before: u32) -> i64 {
    i64::from(value) - i64::from(before)
}

/// Bytes of one section, read in order.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Reads `bytes`, which errors call `what`.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Cursor { what, bytes, at: 0 }
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let end = self.at.saturating_add(count);
        let Some(taken) = self.bytes.get(self.at..end) else {
            let found = format!("{} bytes left", self.bytes.len().saturating_sub(self.at));
            return Err(self.error(found, format!("{count} more")));
        };
        self.at = end;
        Ok(taken)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, FormatError> {
        match self.bytes.get(self.at) {
            Some(byte) => {
                self.at += 1;
                Ok(*byte)
            }
            None => Err(self.error("no byte left", "one more")),
        }
    }

    /// The next integer. Refuses one of more than 64 bits.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, FormatError> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7F);
        for index in 1..BYTES_MAX {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            let shift = 7 * index;
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.error("an integer of more than 64 bits", "one of 64"))
    }

    /// The next integer, which is at most `max`.
    pub fn bounded(&mut self, max: u64) -> Result<u64, FormatError> {
        match self.varint()? {
            value if value <= max => Ok(value),
            value => Err(self.error(value, format!("{max} at most"))),
        }
    }

    /// The next signed integer.
    pub fn signed(&mut self) -> Result<i64, FormatError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// `before` and the next signed integer, as 32 bits.
    pub fn after(&mut self, before: u32) -> Result<u32, FormatError> {
        let value = self.signed()?;
        let sum = i64::from(before).checked_add(value).and_then(|sum| u32::try_from(sum).ok());
        sum.ok_or_else(|| self.error(format!("{before} and {value}"), "a number of 32 bits"))
    }

    /// An error here.
    pub fn error(&self, found: impl ToString, expected: impl ToString) -> FormatError {
        FormatError::new(self.what, self.at, found, expected)
    }

    /// Refuses bytes that nobody read.
    pub fn finish(self) -> Result<(), FormatError> {
        match self.bytes.len().saturating_sub(self.at) {
            0 => Ok(()),
            left => Err(self.error(format!("{left} more bytes"), "the end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_come_back() {
        let values = [0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        let mut bytes = Vec::new();
        values.iter().for_each(|value| put(*value, &mut bytes));
        let signed = [0, -1, 1, i64::MIN, i64::MAX, -64, 63];
        signed.iter().for_each(|value| put_signed(*value, &mut bytes));
        let mut from = Cursor::new("test", &bytes);
        assert!(values.iter().all(|value| from.varint() == Ok(*value)));
        assert!(signed.iter().all(|value| from.signed() == Ok(*value)));
        assert!(from.finish().is_ok());
    }

    #[test]
    fn refuses_integers_too_long_and_cut() {
        assert!(Cursor::new("test", &[0x80; 11]).varint().is_err());
        let mut long = vec![0xFF; 9];
        long.push(2);
        assert!(Cursor::new("test", &long).varint().is_err());
        assert!(Cursor::new("test", &[0x80]).varint().is_err());
        let mut bytes = Vec::new();
        put_signed(-5, &mut bytes);
        assert!(Cursor::new("test", &bytes).after(4).is_err());
        assert!(Cursor::new("test", &[9]).bounded(8).is_err());
    }
}
