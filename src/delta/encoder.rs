//! Raw WAL of one timeline, fed in order, into frames: delta frames where they come back bit for bit and are smaller, plain ones
//! otherwise. Spec: formats/deltas.md.
//!
//! Invariant: the frames cover what was fed without holes, and the image cache holds what a decoder of these frames holds.

use super::block::PageSource;
use super::cache::ImageCache;
use super::decode::FrameDecoder;
use super::encode::{Context, FrameEncoder, FrameStats};
use super::walk::{More, Next, Surprise, Walker};
use crate::base::limits::WAL_FRAME_BYTES;
use crate::base::{Lsn, LsnRange, SegmentSize};

/// Whether frames are decoded again before they are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// They are, and compared. What compaction uses.
    Decode,
    /// They are not. For measuring.
    Skip,
}

/// How an encoder works.
#[derive(Debug, Clone, Copy)]
pub struct EncoderOptions {
    /// The size of a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether frames are decoded again.
    pub verify: Verify,
    /// The key of the hashes that vouch for pages of the base.
    pub page_key: [u8; 32],
    /// The most images kept, and for each 1 KiB of changes. Decoders keep as much.
    pub cache_pages_max: usize,
}

/// A frame of WAL.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Where it lies.
    pub range: LsnRange,
    /// Its stored form.
    pub body: FrameBody,
}

/// The stored form of a frame.
#[derive(Debug, Clone)]
pub enum FrameBody {
    /// The raw bytes, which the caller compresses, and why they are plain.
    Plain(Vec<u8>, Surprise),
    /// A delta frame.
    Delta(Vec<u8>, Box<FrameStats>),
}

/// Encodes the WAL of one epoch.
#[derive(Debug)]
pub struct Encoder {
    options: EncoderOptions,
    at: Lsn,
    next: Next,
    buffer: Vec<u8>,
    walker: Walker,
    context: Context,
    frames: FrameEncoder,
    decoder: FrameDecoder,
    cache: ImageCache,
}

impl Encoder {
    /// An encoder whose first byte is at `start`: anywhere, also inside of a record.
    pub fn new(options: EncoderOptions, start: Lsn) -> Self {
        Encoder {
            options,
            at: start,
            next: Next::Unknown,
            buffer: Vec::new(),
            walker: Walker::new(options.segment_size),
            context: Context::default(),
            frames: FrameEncoder::new(options.page_key),
            decoder: FrameDecoder::new(),
            cache: ImageCache::new(options.cache_pages_max),
        }
    }

    /// Position of the next byte to feed.
    pub fn position(&self) -> Lsn {
        self.at.saturating_add(self.buffer.len() as u64)
    }

    /// The images kept so far.
    pub fn cache(&self) -> &ImageCache {
        &self.cache
    }

    /// The same, to be changed by tests of what happens then.
    #[doc(hidden)]
    pub fn cache_mut(&mut self) -> &mut ImageCache {
        &mut self.cache
    }

    /// Takes the next bytes. Take frames between calls: what was fed and not taken is held in memory.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, once enough was fed for one that does not depend on what comes later.
    pub fn next_frame(&mut self, pages: &mut dyn PageSource) -> Option<Frame> {
        (self.buffer.len() > WAL_FRAME_BYTES).then(|| self.frame(pages, More::Follows))
    }

    /// The next frame of what is left: the end of an object. More may be fed afterwards.
    pub fn flush_frame(&mut self, pages: &mut dyn PageSource) -> Option<Frame> {
        match self.buffer.len() {
            0 => None,
            len if len > WAL_FRAME_BYTES => Some(self.frame(pages, More::Follows)),
            _ => Some(self.frame(pages, More::Ends)),
        }
    }

    fn frame(&mut self, pages: &mut dyn PageSource, more: More) -> Frame {
        let window = self.buffer.get(..WAL_FRAME_BYTES).unwrap_or(&self.buffer);
        let cut = self.walker.cut(self.next, self.at, window, more);
        assert!(cut.len > 0 && cut.len <= window.len(), "a frame of {} bytes", cut.len);
        let raw = window.get(..cut.len).unwrap_or(window);
        let range = LsnRange::new(self.at, self.at.saturating_add(raw.len() as u64));
        let (body, marks) = (&self.walker.body, &self.walker.marks);
        let encoded = cut.parts.and_then(|parts| {
            let (frame, stats) =
                self.frames.encode(raw, &parts, body, marks, &mut self.context, &self.cache, pages)?;
            if self.options.verify == Verify::Decode
                && !self.decoder.gives(&frame, &self.cache, &mut &self.frames.used, raw)
            {
                return Err(Surprise::Differs);
            }
            self.frames.keep(&parts, body, marks, &mut self.cache);
            Ok((frame, stats))
        });
        let body = match encoded {
            Ok((frame, stats)) => FrameBody::Delta(frame, Box::new(stats)),
            Err(surprise) => FrameBody::Plain(raw.to_vec(), surprise),
        };
        self.at = range.end;
        self.next = cut.next;
        self.buffer.drain(..cut.len);
        Frame { range, body }
    }
}
