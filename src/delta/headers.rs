//! The bytes of a record before its contents: its header and its fragment headers. Those of one kind differ in few places, so they
//! are made once for the kind, and filled in for each record, or compared with it and its numbers read. Refuses numbers that have no
//! room there. Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use super::structure::{FieldPlan, flag};
use crate::format::FormatError;
use crate::format::delta::{MainForm, RecordKind};
use crate::format::wal::RelationRef;
use crate::wal::record::{RECORD_HEADER_BYTES, RecordHeader};

/// How many bytes a number has.
#[derive(Debug, Clone, Copy)]
enum Width {
    One,
    Two,
    Four,
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
        }
    }

    /// Its bits of the four bytes that begin with it.
    fn mask(self) -> u32 {
        match self {
            Width::One => 0xFF,
            Width::Two => 0xFFFF,
            Width::Four => u32::MAX,
        }
    }
}

/// Where a number of the record goes.
#[derive(Debug, Clone, Copy)]
struct Blank {
    at: usize,
    field: usize,
    width: Width,
}

/// The headers of a kind's records, with blanks.
#[derive(Debug)]
pub struct KindHeaders {
    bytes: Vec<u8>,
    blanks: Vec<Blank>,
}

/// What tells whether a record has the fragment headers of a kind: words of them, and which of their bits are no blanks.
#[derive(Debug)]
pub struct HeaderMask {
    words: Vec<[u64; 2]>,
    blanks: Vec<Blank>,
}

impl HeaderMask {
    /// That of `headers`.
    pub fn of(headers: KindHeaders) -> Self {
        let mut fixed = vec![0xFF; headers.bytes.len()];
        for blank in &headers.blanks {
            fixed.iter_mut().skip(blank.at).take(blank.width.bytes()).for_each(|byte| *byte = 0);
        }
        let words = |bytes: &[u8]| -> Vec<u64> {
            let fragments = bytes.get(RECORD_HEADER_BYTES..).unwrap_or(&[]).chunks(8);
            fragments
                .map(|part| part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
                .collect()
        };
        let words =
            words(&headers.bytes).into_iter().zip(words(&fixed)).map(|(word, mask)| [word, mask]).collect();
        HeaderMask { words, blanks: headers.blanks }
    }

    /// Puts the numbers of a record into `fields`, which has as many as it has, if it has these fragment headers. `from` are its bytes
    /// and any that follow: without enough of these nothing is compared.
    pub fn read(&self, from: &[u8], fields: &mut [u32]) -> bool {
        let fragments = from.get(RECORD_HEADER_BYTES..).unwrap_or(&[]);
        // A number is read as four bytes, whatever its width.
        if fragments.len() < 8 * self.words.len() + 4 {
            return false;
        }
        let differs =
            |(found, [word, mask]): (&[u8; 8], &[u64; 2])| (u64::from_le_bytes(*found) ^ word) & mask != 0;
        if fragments.as_chunks::<8>().0.iter().zip(&self.words).any(differs) {
            return false;
        }
        for Blank { at, field, width } in &self.blanks {
            let bytes = from.get(*at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
            if let Some(to) = fields.get_mut(*field) {
                *to = u32::from_le_bytes(bytes) & width.mask();
            }
        }
        true
    }
}

impl KindHeaders {
    /// Those of `kind`, whose plan is `plan`.
    pub fn of(kind: &RecordKind, plan: &FieldPlan, relations: &[RelationRef]) -> Result<Self, FormatError> {
        let mut headers = KindHeaders { bytes: vec![0; RECORD_HEADER_BYTES], blanks: Vec::new() };
        for (block, at) in kind.blocks.iter().zip(&plan.blocks) {
            headers.bytes.extend_from_slice(&[block.id, block.flags]);
            match at.data {
                Some(data) => headers.blank(data, Width::Two),
                None => headers.bytes.extend_from_slice(&[0, 0]),
            }
            if let Some(image) = at.image {
                headers.blank(image, Width::Two);
                headers.blank(image + 1, Width::Two);
                headers.bytes.push(block.image_info);
                if let Some(hole) = at.hole {
                    headers.blank(hole, Width::Two);
                }
            }
            if block.flags & flag::SAME_RELATION == 0 {
                let relation = relations.get(usize::from(block.relation)).ok_or_else(|| {
                    let found = format!("relation {}", block.relation);
                    FormatError::new("delta frame kind", 0, found, "one in the table")
                })?;
                for number in [relation.tablespace, relation.database, relation.relation] {
                    headers.bytes.extend_from_slice(&number.to_le_bytes());
                }
            }
            headers.blank(at.block, Width::Four);
        }
        if let Some(origin) = kind.origin {
            headers.bytes.push(253);
            headers.bytes.extend_from_slice(&origin.to_le_bytes());
        }
        if let Some(top_xid) = plan.top_xid {
            headers.bytes.push(252);
            headers.blank(top_xid, Width::Four);
        }
        if let Some(main) = plan.main {
            let (id, width) = match kind.main {
                MainForm::Long => (254, Width::Four),
                MainForm::Short | MainForm::None => (255, Width::One),
            };
            headers.bytes.push(id);
            headers.blank(main, width);
        }
        Ok(headers)
    }

    fn blank(&mut self, field: usize, width: Width) {
        let at = self.bytes.len();
        self.blanks.push(Blank { at, field, width });
        self.bytes.resize(at + width.bytes(), 0);
    }

    /// Appends those of the record with `header` and the numbers `fields` to `to`.
    pub fn put(&self, header: &RecordHeader, fields: &[u32], to: &mut Vec<u8>) -> Result<(), FormatError> {
        let start = to.len();
        to.extend_from_slice(&self.bytes);
        let made = to.get_mut(start..).unwrap_or(&mut []);
        if let Some(first) = made.first_chunk_mut() {
            *first = header.encode();
        }
        for Blank { at, field, width } in &self.blanks {
            let value = fields.get(*field).copied().unwrap_or(0);
            let refuse = |expected| Err(FormatError::new("delta frame numbers", *field, value, expected));
            let Some(room) = made.get_mut(*at..) else { continue };
            match width {
                Width::One => match (u8::try_from(value), room.first_mut()) {
                    (Ok(value), Some(byte)) => *byte = value,
                    _ => return refuse("a length of 8 bits"),
                },
                Width::Two => match (u16::try_from(value), room.first_chunk_mut()) {
                    (Ok(value), Some(bytes)) => *bytes = value.to_le_bytes(),
                    _ => return refuse("a number of 16 bits"),
                },
                Width::Four => {
                    if let Some(bytes) = room.first_chunk_mut() {
                        *bytes = value.to_le_bytes();
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::base::Lsn;
    use crate::format::delta::KindBlock;
    use crate::wal::WalVersion;

    fn kind(main: MainForm, flags: u8, relation: u16) -> RecordKind {
        let block = KindBlock { id: 1, flags, image_info: 0, relation };
        RecordKind { rmgr: 10, info: 0x20, blocks: vec![block], origin: Some(7), top_xid: true, main }
    }

    fn put(kind: &RecordKind, fields: &[u32]) -> Result<Vec<u8>, FormatError> {
        let plan = FieldPlan::of(kind, WalVersion::V17);
        let relation = RelationRef { tablespace: 1, database: 2, relation: 3 };
        let headers = KindHeaders::of(kind, &plan, &[relation])?;
        let header = RecordHeader { total_len: 9, xid: 8, prev: Lsn::new(7), info: 6, rmgr: 5, crc: 4 };
        let mut bytes = vec![0xEE; 5];
        headers.put(&header, fields, &mut bytes)?;
        assert_eq!(bytes.drain(..5).as_slice(), [0xEE; 5]);
        assert_eq!((bytes.len(), &bytes[..24]), (plan.header_bytes, &header.encode()[..]));
        Ok(bytes.split_off(24))
    }

    #[test]
    fn numbers_stand_in_their_blanks() {
        let block = [1, 0x20, 4, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 5, 1, 0, 0];
        let rest = [253, 7, 0, 252, 6, 0, 1, 0];
        let short = put(&kind(MainForm::Short, 0x20, 0), &[0x105, 4, 0x1_0006, 9]).unwrap();
        assert_eq!(short, [&block[..], &rest, &[255, 9]].concat());
        let long = put(&kind(MainForm::Long, 0x20, 0), &[0x105, 4, 0x1_0006, 0x109]).unwrap();
        assert_eq!(long, [&block[..], &rest, &[254, 9, 1, 0, 0]].concat());
        let same = put(&kind(MainForm::None, 0x80, 9), &[0x105, 0x1_0006]).unwrap();
        assert_eq!(same, [&[1, 0x80, 0, 0, 5, 1, 0, 0][..], &rest].concat());
    }

    #[test]
    fn numbers_are_read_out_of_headers_of_the_kind_alone() {
        let relation = RelationRef { tablespace: 1, database: 2, relation: 3 };
        for (main, last) in [(MainForm::Short, 0x99), (MainForm::Long, 0x1099)] {
            let kind = kind(main, 0x20, 0);
            let plan = FieldPlan::of(&kind, WalVersion::V17);
            let mask = HeaderMask::of(KindHeaders::of(&kind, &plan, &[relation]).unwrap());
            let expected = [0x105, 0xABCD, 0xFFFF_0006, last];
            let mut record = [&[0xEE; 24][..], &put(&kind, &expected).unwrap(), &[0xEE; 11]].concat();
            let mut fields = [0; 4];
            assert!(mask.read(&record, &mut fields) && fields == expected);
            // Too few bytes to compare, then other ones where there is no blank: a relation, an origin.
            assert!(!mask.read(&record[..plan.header_bytes], &mut fields));
            for at in [24, 28, 36, 44, 47] {
                record[at] ^= 0x40;
                assert!(!mask.read(&record, &mut fields), "{at}");
                record[at] ^= 0x40;
            }
        }
    }

    #[test]
    fn refuses_numbers_without_room_and_relations_that_are_not_there() {
        assert!(put(&kind(MainForm::Short, 0x20, 0), &[0, 4, 0, 256]).is_err());
        assert!(put(&kind(MainForm::Short, 0x20, 0), &[0, 65_536, 0, 9]).is_err());
        assert!(put(&kind(MainForm::Short, 0x20, 1), &[0, 4, 0, 9]).is_err());
    }
}
