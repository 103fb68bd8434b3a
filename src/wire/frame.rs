//! Frames: a type byte, a big-endian length that counts itself, a body. Bytes are cut out of the read buffer without
//! copying; a frame holds its buffer alive until it is dropped.

use super::WireError;
use bytes::{Buf, Bytes, BytesMut};

/// Type byte and length.
pub const FRAME_HEADER_BYTES: usize = 5;

/// One whole message, header included.
#[derive(Debug)]
pub struct Frame {
    tag: u8,
    bytes: BytesMut,
}

impl Frame {
    /// The type byte.
    pub fn tag(&self) -> u8 {
        self.tag
    }

    /// The message after its header.
    pub fn into_body(self) -> Bytes {
        let mut body = self.bytes.freeze();
        body.advance(FRAME_HEADER_BYTES);
        body
    }

    /// The whole message with its header.
    pub fn into_bytes(self) -> BytesMut {
        self.bytes
    }
}

/// What [`take_frame`] found.
#[derive(Debug)]
pub enum Taken {
    /// A whole message, cut off the front of the buffer.
    Frame(Frame),
    /// At least so many bytes more are needed.
    Need(usize),
}

/// Cuts the next message off `buffer`. A length above `body_bytes_max` is refused before anything is reserved for it.
#[inline]
pub fn take_frame(buffer: &mut BytesMut, body_bytes_max: usize) -> Result<Taken, WireError> {
    let Some(&[tag, a, b, c, d]) = buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(Taken::Need(FRAME_HEADER_BYTES.saturating_sub(buffer.len())));
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length < 4 || length.saturating_sub(4) > body_bytes_max {
        let most = (body_bytes_max as u64).saturating_add(4);
        return Err(WireError::Length { tag, found: length as u64, least: 4, most });
    }
    let whole = length.saturating_add(1);
    match whole.checked_sub(buffer.len()) {
        None | Some(0) => Ok(Taken::Frame(Frame { tag, bytes: buffer.split_to(whole) })),
        Some(missing) => Ok(Taken::Need(missing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cuts_messages_without_copying() {
        let mut buffer = BytesMut::from(&b"d\0\0\0\x07abcZ\0\0\0\x05Id\0\0"[..]);
        let at = buffer.as_ptr();
        let Taken::Frame(frame) = take_frame(&mut buffer, 16).unwrap() else { panic!("a frame is there") };
        assert_eq!(frame.tag(), b'd');
        let body = frame.into_body();
        assert_eq!(&body[..], b"abc");
        assert_eq!(body.as_ptr(), at.wrapping_add(5));
        let Taken::Frame(frame) = take_frame(&mut buffer, 16).unwrap() else { panic!("a frame is there") };
        assert_eq!((frame.tag(), &frame.into_body()[..]), (b'Z', &b"I"[..]));
        assert!(matches!(take_frame(&mut buffer, 16), Ok(Taken::Need(2))));
        assert_eq!(&buffer[..], b"d\0\0");
    }

    #[test]
    fn refuses_lengths_outside_the_bound_before_reserving() {
        for header in [&b"d\0\0\0\x03"[..], b"d\0\0\0\0", b"d\xff\xff\xff\xff", b"d\0\0\0\x15"] {
            let mut buffer = BytesMut::from(header);
            let error = take_frame(&mut buffer, 16).unwrap_err();
            assert!(matches!(error, WireError::Length { tag: b'd', .. }), "{error}");
        }
        assert!(matches!(take_frame(&mut BytesMut::from(&b"d\0\0\0\x14"[..]), 16), Ok(Taken::Need(16))));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20), cut in 1usize..40) {
            let mut stream = Vec::new();
            for body in &bodies {
                stream.push(b'd');
                stream.extend((body.len() as u32 + 4).to_be_bytes());
                stream.extend(body);
            }
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Taken::Frame(frame) = take_frame(&mut buffer, 64).unwrap() {
                    found.push(frame.into_body().to_vec());
                }
            }
            prop_assert_eq!(found, bodies);
            prop_assert!(buffer.is_empty());
        }
    }
}
