//! Raw WAL of one timeline, fed in order, into frames: delta frames where they come back bit for bit and are smaller, plain ones
//! otherwise. Spec: formats/deltas.md.
//!
//! Invariant: the frames cover what was fed without holes, and the image cache holds what a decoder of these frames holds.

use super::block::{BlockId, PageSource};
use super::cache::ImageCache;
use super::decode::FrameDecoder;
use super::encode::{Context, FrameEncoder, FrameStats};
use super::limits::WINDOW_WAL_BYTES;
use super::walk::{Cut, More, Next, Surprise, Walker};
use crate::base::limits::WAL_FRAME_BYTES;
use crate::base::{Lsn, LsnRange, SegmentSize};
use crate::wal::record::ImageCompression;

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
    /// The most images kept, and for each 1 KiB of changes. Decoders keep as much. For [`Encoder::resume`], what the cache has.
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
    /// The first frame's range of the buffer, once it was looked at; the walker and the splitter have what is in it.
    cut: Option<Cut>,
    context: Context,
    /// Where the first frame begins whose digits the next one may repeat.
    window_from: Lsn,
    frames: FrameEncoder,
    decoder: FrameDecoder,
    cache: ImageCache,
    /// There was no room for what a frame left: decoders have it, so no later frame can be made.
    broken: bool,
}

impl Encoder {
    /// An encoder whose first byte is at `start`: anywhere, also inside of a record.
    pub fn new(options: EncoderOptions, start: Lsn) -> Self {
        Encoder::resume(options, start, ImageCache::new(options.cache_pages_max))
    }

    /// An encoder of an epoch whose frames before `start` left `cache`, which has checks.
    pub fn resume(options: EncoderOptions, start: Lsn, cache: ImageCache) -> Self {
        assert!(cache.has_checks(), "an encoder goes on with a cache for decoding");
        Encoder {
            options,
            at: start,
            next: Next::Unknown,
            buffer: Vec::new(),
            walker: Walker::new(options.segment_size),
            cut: None,
            context: Context::default(),
            window_from: start,
            frames: FrameEncoder::new(options.page_key),
            decoder: FrameDecoder::new(),
            cache,
            broken: false,
        }
    }

    /// Goes on at `start`, which may leave out WAL that is stored otherwise, in another object: frames from there on repeat no digits of
    /// those before, so that an object has its records by itself. Everything fed was taken.
    pub fn seek(&mut self, start: Lsn) {
        assert!(self.buffer.is_empty(), "{} bytes were fed and not taken", self.buffer.len());
        self.window_from = start;
        if start != self.at {
            (self.at, self.next) = (start, Next::Unknown);
        }
    }

    /// The key of the hashes that vouch for pages of the base.
    pub fn page_key(&self) -> [u8; 32] {
        self.options.page_key
    }

    /// Whether it makes plain frames alone from now on, since there was no room for what its frames leave.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The blocks of the next frame's images and splits that the base may have a page for: those without an earlier image. What
    /// [`Self::next_frame`] will ask for, but for images that the frame itself repeats.
    pub fn base_blocks(&mut self) -> Vec<BlockId> {
        if self.buffer.is_empty() || self.broken {
            return Vec::new();
        }
        let cut = self.cut();
        let known = cut.parts.is_ok();
        self.cut = Some(cut);
        if !known {
            return Vec::new();
        }
        let images = self
            .frames
            .splitter
            .images
            .iter()
            .filter(|image| image.shape.compression != ImageCompression::Zstd);
        let moved = self.frames.splitter.moved.iter().map(|moved| moved.block);
        let mut blocks: Vec<BlockId> = images.map(|image| image.shape.block).chain(moved).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.retain(|block| self.cache.get(block).is_none());
        blocks
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

    /// The cache, for what comes after this encoder.
    pub fn into_cache(self) -> ImageCache {
        self.cache
    }

    /// Takes the next bytes. Take frames between calls: what was fed and not taken is held in memory.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.cut = None;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, once enough was fed for one that does not depend on what comes later.
    pub fn next_frame(&mut self, pages: &mut dyn PageSource) -> Option<Frame> {
        (self.buffer.len() > WAL_FRAME_BYTES).then(|| self.frame(pages))
    }

    /// The next frame of what is left: the end of an object. More may be fed afterwards.
    pub fn flush_frame(&mut self, pages: &mut dyn PageSource) -> Option<Frame> {
        (!self.buffer.is_empty()).then(|| self.frame(pages))
    }

    /// Cuts the first frame's range off the buffer and takes its records apart, unless that was done.
    fn cut(&mut self) -> Cut {
        if let Some(cut) = self.cut.take() {
            return cut;
        }
        let (more, window) = match self.buffer.get(..WAL_FRAME_BYTES) {
            Some(window) if self.buffer.len() > WAL_FRAME_BYTES => (More::Follows, window),
            _ => (More::Ends, self.buffer.as_slice()),
        };
        let cut = self.walker.cut(self.next, self.at, window, more);
        assert!(cut.len > 0 && cut.len <= window.len(), "a frame of {} bytes", cut.len);
        let parts = cut.parts.and_then(|parts| {
            if self.broken {
                return Err(Surprise::NoRoom);
            }
            self.frames.splitter.split(parts.version, &self.walker.body, &parts.records)?;
            Ok(parts)
        });
        Cut { parts, ..cut }
    }

    fn frame(&mut self, pages: &mut dyn PageSource) -> Frame {
        let cut = self.cut();
        let raw = self.buffer.get(..cut.len).unwrap_or(&self.buffer);
        let range = LsnRange::new(self.at, self.at.saturating_add(raw.len() as u64));
        if range.start.bytes_since(self.window_from) > WINDOW_WAL_BYTES {
            self.window_from = range.start;
        }
        let (body, marks) = (&self.walker.body, &self.walker.marks);
        let encoded = cut.parts.and_then(|parts| {
            let (frame, stats) = self.frames.encode(
                raw,
                &parts,
                body,
                marks,
                &mut self.context,
                self.window_from,
                &self.cache,
                pages,
            )?;
            if self.options.verify == Verify::Decode
                && !self.decoder.gives(
                    &frame,
                    &self.cache,
                    &mut &self.frames.used,
                    self.frames.known(body),
                    raw,
                )
            {
                return Err(Surprise::Differs);
            }
            self.broken = self.frames.keep(&parts, body, marks, &mut self.cache).is_err();
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
