//! WAL as it lies in a server's pg_wal.

use crate::common::pg::Pg;
use std::fs;
use walden::base::{Lsn, SegmentSize, TimelineId, WalFileName};
use walden::wal::{DecodeFrom, Decoder, Record, WalError};

/// A run of WAL.
pub struct Wal {
    pub segment_size: SegmentSize,
    pub start: Lsn,
    pub bytes: Vec<u8>,
}

impl Wal {
    /// The WAL of `timeline` in `pg_wal` from its first segment there up to `end`.
    pub fn read(pg: &Pg, segment_mib: u64, timeline: u32, end: Lsn) -> Wal {
        let segment_size = SegmentSize::new(segment_mib << 20).unwrap();
        let dir = pg.data_dir().join("pg_wal");
        let names =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let segments = names.filter_map(|name| name.parse::<WalFileName>().ok());
        let mut numbers: Vec<_> = segments
            .filter(|name| matches!(name, WalFileName::Segment { timeline: t, .. } if t.0 == timeline))
            .filter_map(|name| name.segment_no(segment_size))
            .filter(|number| number.range(segment_size).start < end)
            .collect();
        numbers.sort();
        let start = numbers[0].range(segment_size).start;
        let mut bytes = Vec::new();
        for (at, number) in numbers.iter().enumerate() {
            assert_eq!(number.0, numbers[0].0 + at as u64, "a segment is missing in {}", dir.display());
            let name = WalFileName::segment(TimelineId(timeline), *number, segment_size).to_string();
            bytes.extend(fs::read(dir.join(name)).unwrap());
        }
        bytes.truncate(end.bytes_since(start) as usize);
        Wal { segment_size, start, bytes }
    }

    /// All of its records, fed in pieces of `piece` bytes, and what could not be read.
    pub fn records(&self, piece: usize) -> (Vec<Record>, Vec<WalError>) {
        let mut decoder = Decoder::new(self.segment_size, self.start, DecodeFrom::Anywhere);
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for chunk in self.bytes.chunks(piece) {
            decoder.feed(decoder.position(), chunk);
            loop {
                match decoder.next() {
                    Ok(Some(record)) => records.push(record),
                    Ok(None) => break,
                    Err(error) => errors.push(error),
                }
            }
        }
        (records, errors)
    }
}

/// Where the server's next record will go.
pub fn insert_lsn(pg: &Pg) -> Lsn {
    pg.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap()
}
