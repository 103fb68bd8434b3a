//! A folder of WAL files: `pg_wal` of a server, or what an `archive_command` collected.

use super::{Analysis, Read, STEP_BYTES, Tally};
use crate::base::{Lsn, LsnRange, SegmentNo, SegmentSize, TimelineId, WalFileName};
use crate::operate::{Exit, Failure};
use crate::wal::{DecodeFrom, Decoder};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Reads the WAL files of `dir`, those of the newest timeline where several have one segment. Blocks.
///
/// # Errors
/// A folder without WAL, files of different sizes, or one that cannot be read.
pub fn folder(dir: &Path, shown: usize) -> Result<Analysis, Failure> {
    let (size, files) = list(dir)?;
    let mut tally = Tally::default();
    let mut decoder: Option<Decoder> = None;
    let mut timeline = TimelineId(1);
    for (number, (newest, path)) in &files {
        let start = number.range(size).start;
        let begin = || Decoder::new(size, start, DecodeFrom::Anywhere);
        // Where files are missing, reading begins anew; a record that crosses the hole goes unread.
        let follows = decoder.as_ref().is_some_and(|decoder| decoder.position() == start);
        let open = if follows { decoder.get_or_insert_with(begin) } else { decoder.insert(begin()) };
        feed(open, &mut tally, path, start)?;
        timeline = timeline.max(*newest);
    }
    let ranges = files.keys().map(|number| number.range(size));
    let (Some(first), Some(last)) = (ranges.clone().next(), ranges.clone().next_back()) else {
        return Err(nothing(dir));
    };
    // A server's folder has files that wait to be written over.
    let end = tally.end().unwrap_or(last.end);
    let bytes = ranges.map(|range| range.end.min(end).bytes_since(range.start)).sum();
    let (source, range) = (dir.display().to_string(), LsnRange::new(first.start, end));
    Ok(tally.finish(Read { source, timeline, range, bytes, stored: None }, shown))
}

fn feed(decoder: &mut Decoder, tally: &mut Tally, path: &Path, start: Lsn) -> Result<(), Failure> {
    let failed = |error| cannot_read(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let mut at = start;
    let mut piece = Vec::new();
    loop {
        piece.clear();
        if file.by_ref().take(STEP_BYTES).read_to_end(&mut piece).map_err(failed)? == 0 {
            return Ok(());
        }
        tally.feed(decoder, at, &piece);
        at = at.saturating_add(piece.len() as u64);
    }
}

type Files = BTreeMap<SegmentNo, (TimelineId, PathBuf)>;

fn list(dir: &Path) -> Result<(SegmentSize, Files), Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| cannot_read(dir, error))? {
        let entry = entry.map_err(|error| cannot_read(dir, error))?;
        let name = entry.file_name().into_string().ok().and_then(|name| name.parse::<WalFileName>().ok());
        if let Some(name @ WalFileName::Segment { timeline, .. }) = name {
            let path = entry.path();
            let len = fs::metadata(&path).map_err(|error| cannot_read(&path, error))?.len();
            found.push((name, timeline, path, len));
        }
    }
    let Some((_, _, first, len)) = found.first() else { return Err(nothing(dir)) };
    let size = SegmentSize::new(*len).map_err(|error| {
        Failure::new(Exit::Damage, format!("{}: {error}", first.display())).hint(WHOLE_FILES)
    })?;
    let mut files = Files::new();
    for (name, timeline, path, len) in found {
        let Some(number) = name.segment_no(size).filter(|_| len == size.bytes()) else {
            let what = format!("{} has {len} bytes, other WAL files have {}", path.display(), size.bytes());
            return Err(Failure::new(Exit::Damage, what).hint(WHOLE_FILES));
        };
        if files.get(&number).is_none_or(|(other, _)| *other < timeline) {
            files.insert(number, (timeline, path));
        }
    }
    Ok((size, files))
}

const WHOLE_FILES: &str = "give a folder of whole WAL files, not compressed, into which nobody copies";

fn nothing(dir: &Path) -> Failure {
    Failure::new(Exit::NotFound, format!("{} holds no WAL file", dir.display()))
        .hint("WAL files are named like 000000010000000000000001")
}

fn cannot_read(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display()))
}
