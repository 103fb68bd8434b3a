//! Sealed objects: header, frames, directory, trailer, and the records in them.

use crate::journal;
use crate::load::Loaded;
use crate::report::Report;
use walden::base::{Lsn, ObjectKey};
use walden::codec::Keyring;
use walden::codec::check::FrameAt;
use walden::codec::object::{Expect, ObjectReader, OpenError, read_trailer, walk_frames};
use walden::delta::{DeltaError, FrameDecoder, Window};
use walden::format::directory::Directory;
use walden::format::frame::{Codec, FrameKind};
use walden::format::header::{HEADER_BYTES, ObjectHeader, ObjectKind};
use walden::format::index::{IndexMeta, IndexPage};
use walden::format::manifest::{ManifestMeta, ManifestPages};
use walden::format::record::{Field, Record};
use walden::format::root::{Floor, GenerationRecord, Pending, Root};
use walden::format::show::Shown;
use walden::format::verification::Verification;
use walden::format::wal::{FenceMeta, WalMeta};
use walden::format::{FormatError, Reader};
use walden::operate::{Exit, Failure};

const ANY: Expect<'static> = Expect { repository: None, key: None, kind: None };

/// Says what an object holds, as far as it is good and the keys go.
pub fn report(loaded: &Loaded, frames: bool) -> Report {
    let mut report = Report::default();
    let bytes = &loaded.bytes;
    let header = match ObjectHeader::decode(bytes) {
        Ok((header, _)) => header,
        Err(error) => {
            report.add("file", Shown::text(format!("{} bytes", bytes.len())));
            report.damage(error);
            return report;
        }
    };
    report.add("file", Shown::text(format!("object {:?}, {} bytes", header.kind, bytes.len())));
    let shown = show_header(&header, loaded.key.as_ref(), &mut report);
    report.add("header", shown);
    let reader = loaded.keys.as_ref().and_then(|keys| match ObjectReader::open(bytes, keys, &ANY) {
        Ok(reader) => Some((reader, keys)),
        Err(error) => {
            report.problem(Failure::new(Exit::Key, error));
            None
        }
    });
    if header.kind == ObjectKind::Journal {
        journal::tell(loaded, frames, &mut report);
        return report;
    }
    let found = walk(bytes, &mut report);
    let directory =
        reader.as_ref().and_then(|(reader, keys)| open_all(reader, keys, bytes, &found, &mut report));
    report.add("frames", Shown::List(show_frames(&found, directory.as_ref())));
    match read_trailer(bytes) {
        Ok(trailer) => report.add(
            "trailer",
            Shown::Record(vec![
                ("directory_offset", Shown::number(trailer.directory_offset)),
                ("frame_count", Shown::number(trailer.frame_count)),
                ("object_len", Shown::number(trailer.object_len)),
            ]),
        ),
        Err(error) => report.damage(error),
    }
    if let Err(error) = walden::codec::object::check_without_key(bytes, &ANY) {
        report.damage(error);
    }
    if let (Some((reader, _)), Some(directory)) = (&reader, &directory) {
        show_meta(header.kind, &directory.meta.0, &mut report);
        if frames {
            show_records(header.kind, reader, bytes, &found, &mut report);
        }
    }
    report
}

/// The plaintext of one frame.
pub fn frame(loaded: &Loaded, number: u64) -> Result<Vec<u8>, Failure> {
    let hint = "give --repo, and --passphrase-file, --passphrase-command, --key-file or --key-command";
    let no_keys = || Failure::new(Exit::Key, "a frame's plaintext needs the repository's keys").hint(hint);
    let keys = loaded.keys.as_ref().ok_or_else(no_keys)?;
    let damaged = |error: OpenError| Failure::new(Exit::Damage, error);
    let reader = ObjectReader::open(&loaded.bytes, keys, &ANY).map_err(damaged)?;
    for frame in walk_frames(&loaded.bytes) {
        let frame = frame.map_err(|error| damaged(error.into()))?;
        if frame.number == number && frame.head.codec == Codec::Delta {
            let what = format!(
                "frame {number} is a delta frame, which is WAL again only after those before it in its epoch"
            );
            return Err(Failure::new(Exit::Usage, what)
                .hint("`walden verify` decodes them all, and a restored server gets them as WAL"));
        }
        if frame.number == number {
            return reader.frame(number, frame.head.kind, at(&loaded.bytes, &frame)).map_err(damaged);
        }
    }
    Err(Failure::new(Exit::NotFound, format!("there is no frame {number}")))
}

fn at<'a>(bytes: &'a [u8], frame: &FrameAt) -> &'a [u8] {
    bytes.get(frame.offset as usize..frame.end() as usize).unwrap_or_default()
}

fn show_header(header: &ObjectHeader, key: Option<&ObjectKey>, report: &mut Report) -> Shown {
    let place = match key {
        Some(key) if ObjectHeader::place_of(key) == header.place => format!("{key}"),
        Some(key) => {
            report.damage(format!("it lies at {key}, and was made for another place"));
            format!("not {key}")
        }
        None => header.place.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    Shown::Record(vec![
        ("kind", header.kind.show()),
        ("required", Shown::number(header.required)),
        ("repository", header.repository.show()),
        ("owner", header.owner.show()),
        ("number", Shown::number(header.number)),
        ("writer_epoch", Shown::number(header.writer_epoch)),
        ("key_epoch", Shown::number(header.key_epoch)),
        ("place", Shown::Text(place)),
    ])
}

/// Frames up to the first that is not good.
fn walk(bytes: &[u8], report: &mut Report) -> Vec<FrameAt> {
    let mut found: Vec<FrameAt> = Vec::new();
    for frame in walk_frames(bytes) {
        match frame {
            Ok(frame) => found.push(frame),
            Err(error) => {
                let good = found.last().map_or(HEADER_BYTES as u64, FrameAt::end);
                report.damage(format!("good up to byte {good} of {}: {error}", bytes.len()));
            }
        }
    }
    found
}

/// Opens every frame that was found, and answers with the directory if it is there.
fn open_all(
    reader: &ObjectReader,
    keys: &Keyring,
    bytes: &[u8],
    found: &[FrameAt],
    report: &mut Report,
) -> Option<Directory> {
    let last = found.last().filter(|frame| frame.head.kind == FrameKind::Directory);
    let directory = last.and_then(|frame| {
        let count = u32::try_from(frame.number + 1).unwrap_or(u32::MAX);
        reader.directory(count, at(bytes, frame)).map_err(|error| report.damage(error)).ok()
    });
    let first = directory.as_ref().and_then(|directory| directory.frames.first());
    let mut deltas = Deltas::new(first.map(|first| Lsn::new(first.position)));
    for frame in found.iter().filter(|frame| frame.head.kind == FrameKind::Data) {
        let entry = directory.as_ref().and_then(|directory| directory.frames.get(frame.number as usize));
        let opened = match entry {
            _ if frame.head.codec == Codec::Delta => deltas.check(reader, frame.number, at(bytes, frame)),
            Some(entry) => reader.chunk(frame.number, entry, at(bytes, frame), keys),
            None => reader.frame(frame.number, FrameKind::Data, at(bytes, frame)),
        };
        if let Err(error) = opened {
            report.damage(error);
        }
    }
    directory
}

/// Decodes the records of an object's delta frames: their images are for who has the frames before it.
struct Deltas {
    decoder: FrameDecoder,
    window: Window,
    /// From where on all frames before the next one are here and good: none are when the last one was not.
    good_from: Option<Lsn>,
}

impl Deltas {
    /// Of an object whose first frame begins at `first`.
    fn new(first: Option<Lsn>) -> Deltas {
        Deltas { decoder: FrameDecoder::new(), window: Window::default(), good_from: first }
    }

    fn check(&mut self, reader: &ObjectReader, number: u64, bytes: &[u8]) -> Result<Vec<u8>, OpenError> {
        let good_from = self.good_from.take();
        let (_, frame) = reader.packed_frame(number, bytes)?;
        let mut records = Vec::new();
        match self.decoder.decode_records(&frame, &mut self.window, &mut records) {
            Ok(range) => self.good_from = good_from.or(Some(range.start)),
            // Its digits repeat those of a frame that is not good, which was told of, or of another object, which this one was cut from in
            // a copy: its seal is enough.
            Err(DeltaError::WrongWindow { from, .. }) if good_from.is_none_or(|good| from < good) => {}
            Err(error) => {
                let (found, expected) = (error.to_string(), "a delta frame".into());
                return Err(OpenError::Content { frame: number, found, expected });
            }
        }
        Ok(records)
    }
}

fn show_frames(found: &[FrameAt], directory: Option<&Directory>) -> Vec<Shown> {
    let show = |frame: &FrameAt| {
        let mut fields = vec![
            ("offset", Shown::number(frame.offset)),
            ("sealed_len", Shown::number(frame.head.sealed_len)),
            ("plain_len", Shown::number(frame.head.plain_len)),
            ("kind", frame.head.kind.show()),
            ("codec", frame.head.codec.show()),
        ];
        if let Some(entry) = directory.and_then(|directory| directory.frames.get(frame.number as usize)) {
            fields.push(("chunk", entry.chunk.show()));
            if entry.position > 0 {
                fields.push(("position", Shown::text(Lsn::new(entry.position))));
            }
        }
        Shown::Record(fields)
    };
    found.iter().map(show).collect()
}

fn show_meta(kind: ObjectKind, meta: &[u8], report: &mut Report) {
    fn record<T: Record>(meta: &[u8]) -> Result<Option<Shown>, FormatError> {
        T::decode(meta).map(|record| Some(record.show()))
    }
    let shown = match kind {
        ObjectKind::Flush | ObjectKind::WalSegment => record::<WalMeta>(meta),
        ObjectKind::Fence => record::<FenceMeta>(meta),
        ObjectKind::Index => record::<IndexMeta>(meta),
        ObjectKind::Root => record::<Root>(meta),
        ObjectKind::Floor => record::<Floor>(meta),
        ObjectKind::Generation => record::<GenerationRecord>(meta),
        ObjectKind::Manifest => record::<ManifestMeta>(meta),
        ObjectKind::Pending => record::<Pending>(meta),
        ObjectKind::Verification => record::<Verification>(meta),
        ObjectKind::PagesSegment | ObjectKind::LogicalSegment | ObjectKind::Journal => {
            Reader::new("directory meta", meta).finish().map(|()| None)
        }
    };
    match shown {
        Ok(Some(shown)) => report.add("meta", shown),
        Ok(None) => {}
        Err(error) => report.damage(error),
    }
}

/// The records that frames of some kinds hold.
fn show_records(
    kind: ObjectKind,
    reader: &ObjectReader,
    bytes: &[u8],
    found: &[FrameAt],
    report: &mut Report,
) {
    let decode = match kind {
        ObjectKind::Index => |plain: &[u8]| IndexPage::decode(plain).map(|page| page.show()),
        ObjectKind::Manifest => |plain: &[u8]| ManifestPages::decode(plain).map(|pages| pages.show()),
        ObjectKind::Flush
        | ObjectKind::Fence
        | ObjectKind::WalSegment
        | ObjectKind::PagesSegment
        | ObjectKind::LogicalSegment
        | ObjectKind::Root
        | ObjectKind::Floor
        | ObjectKind::Generation
        | ObjectKind::Pending
        | ObjectKind::Verification
        | ObjectKind::Journal => return,
    };
    let mut shown = Vec::new();
    for frame in found.iter().filter(|frame| frame.head.kind == FrameKind::Data) {
        // What does not open was told already.
        let Ok(plain) = reader.frame(frame.number, FrameKind::Data, at(bytes, frame)) else { continue };
        match decode(&plain) {
            Ok(record) => shown.push(record),
            Err(error) => report.damage(format!("frame {}: {error}", frame.number)),
        }
    }
    report.add("records", Shown::List(shown));
}
