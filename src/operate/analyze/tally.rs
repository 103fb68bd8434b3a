//! Adding up records. Pure.

use super::{Analysis, RELATIONS_MAX, Read, RelationBytes, RmgrBytes, UNREAD_MAX};
use crate::base::Lsn;
use crate::format::wal::RelationRef;
use crate::operate::log::relation_text;
use crate::wal::record::{ImageCompression, rmgr};
use crate::wal::{Decoder, Record};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// The top four bits of `xl_info` of the two checkpoint records (`catalog/pg_control.h`).
const INFO_CHECKPOINTS: [u8; 2] = [0x00, 0x10];

/// What records came to so far.
#[derive(Debug, Default)]
pub struct Tally {
    rmgrs: BTreeMap<u8, Sum>,
    relations: HashMap<RelationRef, Sum>,
    /// Bytes of relations beyond [`RELATIONS_MAX`].
    others: u64,
    end: Option<Lsn>,
    bytes_switches: u64,
    images_compressed: u64,
    checkpoints: u64,
    unread_count: u64,
    unread: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    records: u64,
    /// Without images.
    bytes: u64,
    images: u64,
    bytes_images: u64,
}

impl Tally {
    /// Decodes the next piece of WAL, the first byte of which is at `at`, and adds what it completes.
    pub fn feed(&mut self, decoder: &mut Decoder, at: Lsn, bytes: &[u8]) {
        decoder.feed(at, bytes);
        loop {
            match decoder.next() {
                Ok(Some(record)) => self.add(&record),
                Ok(None) => return,
                Err(error) => {
                    self.unread_count += 1;
                    if self.unread.len() < UNREAD_MAX {
                        self.unread.push(error.to_string());
                    }
                }
            }
        }
    }

    fn add(&mut self, record: &Record) {
        let header = &record.header;
        let mut images = Sum::default();
        for (number, block) in record.blocks.iter().enumerate() {
            let known = self.relations.len() < RELATIONS_MAX || self.relations.contains_key(&block.relation);
            let mut unknown = Sum::default();
            let sum = if known { self.relations.entry(block.relation).or_default() } else { &mut unknown };
            let named = record.blocks.iter().take(number).any(|before| before.relation == block.relation);
            sum.records += u64::from(!named);
            sum.bytes += u64::from(block.data_len);
            if let Some(image) = &block.image {
                sum.images += 1;
                sum.bytes_images += u64::from(image.len);
                images.images += 1;
                images.bytes_images += u64::from(image.len);
                self.images_compressed += u64::from(image.compression != ImageCompression::None);
            }
            self.others += unknown.bytes + unknown.bytes_images;
        }
        let sum = self.rmgrs.entry(header.rmgr).or_default();
        sum.records += 1;
        sum.bytes += u64::from(header.total_len).saturating_sub(images.bytes_images);
        sum.images += images.images;
        sum.bytes_images += images.bytes_images;
        if record.header.is_switch() {
            self.bytes_switches +=
                record.end.bytes_since(record.start).saturating_sub(header.total_len.into());
        }
        let checkpoint = header.rmgr == rmgr::XLOG && INFO_CHECKPOINTS.contains(&header.rmgr_info());
        self.checkpoints += u64::from(checkpoint);
        self.end = Some(record.end);
    }

    /// Where the last record ends.
    pub fn end(&self) -> Option<Lsn> {
        self.end
    }

    /// The document; `shown` relations of it.
    pub fn finish(self, read: Read, shown: usize) -> Analysis {
        let total = self.rmgrs.values().fold(Sum::default(), |total, sum| Sum {
            records: total.records + sum.records,
            bytes: total.bytes + sum.bytes,
            images: total.images + sum.images,
            bytes_images: total.bytes_images + sum.bytes_images,
        });
        let mut by_rmgr: Vec<RmgrBytes> = self.rmgrs.iter().map(|(&id, sum)| rmgr_bytes(id, sum)).collect();
        by_rmgr.sort_by_key(|rmgr| Reverse(rmgr.bytes_records + rmgr.bytes_images));
        let mut relations: Vec<_> = self.relations.into_iter().collect();
        relations.sort_by_key(|(name, sum)| (Reverse(sum.bytes + sum.bytes_images), *name));
        let left_out = relations.get(shown..).unwrap_or(&[]);
        let bytes_left_out: u64 = left_out.iter().map(|(_, sum)| sum.bytes + sum.bytes_images).sum();
        let accounted = total.bytes + total.bytes_images + self.bytes_switches;
        Analysis {
            source: read.source,
            timeline: read.timeline.0,
            start_lsn: read.range.start.to_string(),
            end_lsn: read.range.end.to_string(),
            bytes_raw: read.bytes,
            bytes_stored: read.stored.map(|stored| stored.sum()),
            stored: read.stored,
            records: total.records,
            bytes_images: total.bytes_images,
            bytes_records: total.bytes,
            bytes_switches: self.bytes_switches,
            bytes_overhead: read.bytes.saturating_sub(accounted),
            images: total.images,
            images_compressed: self.images_compressed,
            checkpoints: self.checkpoints,
            by_rmgr,
            relations: relations.iter().take(shown).map(relation_bytes).collect(),
            relations_left_out: left_out.len() as u64,
            bytes_relations_left_out: bytes_left_out + self.others,
            unread_count: self.unread_count,
            unread: self.unread,
        }
    }
}

fn rmgr_bytes(id: u8, sum: &Sum) -> RmgrBytes {
    let rmgr = match rmgr::NAMES.get(usize::from(id)) {
        Some(name) => (*name).to_owned(),
        None => format!("custom{id}"),
    };
    let &Sum { records, bytes, images, bytes_images } = sum;
    RmgrBytes { rmgr, records, bytes_records: bytes, images, bytes_images }
}

fn relation_bytes((relation, sum): &(RelationRef, Sum)) -> RelationBytes {
    let &Sum { records, bytes, images, bytes_images } = sum;
    RelationBytes { relation: relation_text(relation), records, bytes_data: bytes, images, bytes_images }
}
