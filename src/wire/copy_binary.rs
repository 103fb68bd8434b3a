//! COPY's binary format (`sql-copy.html`, "Binary Format"): how raw bytes come out of SQL without being written as text.

use super::WireError;
use bytes::{Buf, Bytes};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Bits 16 to 31 of the flags are critical: an unknown one must not be passed over.
const FLAGS_CRITICAL: u32 = 0xffff_0000;

/// Takes a whole COPY apart: rows of values, which are slices of `bytes`.
pub fn decode(mut bytes: Bytes) -> Result<Vec<Vec<Option<Bytes>>>, WireError> {
    let malformed = |reason: &str| WireError::malformed("binary COPY", reason);
    if !bytes.starts_with(SIGNATURE) {
        return Err(malformed("the signature is missing"));
    }
    bytes.advance(SIGNATURE.len());
    let flags = bytes.try_get_u32().map_err(|_| malformed("cut short in its header"))?;
    if flags & FLAGS_CRITICAL != 0 {
        return Err(malformed("unknown critical flags"));
    }
    let extension = bytes.try_get_u32().map_err(|_| malformed("cut short in its header"))? as usize;
    if bytes.len() < extension {
        return Err(malformed("cut short in its header"));
    }
    bytes.advance(extension);
    let mut rows = Vec::new();
    loop {
        let columns = bytes.try_get_i16().map_err(|_| malformed("the end is missing"))?;
        if columns == -1 {
            return if bytes.is_empty() { Ok(rows) } else { Err(malformed("bytes after its end")) };
        }
        let Ok(columns) = usize::try_from(columns) else {
            return Err(malformed("a negative number of columns"));
        };
        if rows.len() >= super::limits::ROWS_MAX {
            return Err(malformed("too many rows"));
        }
        let mut row = Vec::new();
        for _ in 0..columns {
            let length = bytes.try_get_i32().map_err(|_| malformed("cut short in a row"))?;
            row.push(match usize::try_from(length) {
                Err(_) if length == -1 => None,
                Ok(length) if length <= bytes.len() => Some(bytes.split_to(length)),
                _ => return Err(malformed("a value has an impossible length")),
            });
        }
        rows.push(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn copy(body: &[u8]) -> Bytes {
        [SIGNATURE, &[0; 8], body].concat().into()
    }

    #[test]
    fn reads_rows_and_nulls() {
        let rows = decode(copy(b"\0\x02\0\0\0\x03abc\xff\xff\xff\xff\0\x01\0\0\0\0\xff\xff")).unwrap();
        assert_eq!(rows, [vec![Some(Bytes::from_static(b"abc")), None], vec![Some(Bytes::new())]]);
        assert!(decode(copy(b"\xff\xff")).unwrap().is_empty());
    }

    #[test]
    fn refuses_what_is_cut_or_goes_on() {
        for body in [
            &b""[..],
            b"\0",
            b"\0\x01",
            b"\0\x01\0\0\0\x05abc",
            b"\xff\xff\0",
            b"\xff\xfe",
            b"\0\x01\xff\xff\xff\xfe",
        ] {
            assert!(decode(copy(body)).is_err(), "{body:?}");
        }
        assert!(decode(Bytes::from_static(b"PGCOPY")).is_err());
        assert!(decode([SIGNATURE, &[0, 1, 0, 0, 0, 0, 0, 0], b"\xff\xff"].concat().into()).is_err());
        assert!(decode([SIGNATURE, &[0, 0, 0, 0, 0xff, 0, 0, 0], b"\xff\xff"].concat().into()).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_errors_not_panics(body in prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 0xff, 7]), 0..60)) {
            let _ = decode(copy(&body));
        }
    }
}
