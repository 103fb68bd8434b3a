//! What the records of a frame are, without their contents: kinds, transactions, blocks, lengths. Stored kind by kind, column by
//! column, as differences from the record before of the same kind. Spec: formats/deltas.md.

use super::block::BlockId;
use super::diff::Hole;
use super::limits::FRAME_KINDS_MAX;
use super::replay;
use super::varint::{self, Cursor};
use crate::base::limits::{BLOCK_BYTES, WAL_FRAME_BYTES};
use crate::format::FormatError;
use crate::format::delta::{DeltaTables, KindBlock, MainForm, RecordKind};
use crate::wal::WalVersion;
use crate::wal::record::{ImageCompression, RECORD_HEADER_BYTES};

/// Flags of a block reference.
pub mod flag {
    #![allow(missing_docs)]
    pub const FORK_MASK: u8 = 0x0F;
    pub const HAS_IMAGE: u8 = 0x10;
    pub const HAS_DATA: u8 = 0x20;
    pub const WILL_INIT: u8 = 0x40;
    pub const SAME_RELATION: u8 = 0x80;
    pub const IMAGE_HAS_HOLE: u8 = 0x01;
}

/// How the image is compressed by what `image_info` says; by the first of several, which no server writes.
pub fn compression(version: WalVersion, image_info: u8) -> ImageCompression {
    let (pglz, lz4, zstd) = if version == WalVersion::V14 { (2, 0, 0) } else { (4, 8, 16) };
    match image_info {
        info if info & pglz != 0 => ImageCompression::Pglz,
        info if info & lz4 != 0 => ImageCompression::Lz4,
        info if info & zstd != 0 => ImageCompression::Zstd,
        _ => ImageCompression::None,
    }
}

/// Whether `image_info` says that the image is compressed.
pub fn is_compressed(version: WalVersion, image_info: u8) -> bool {
    compression(version, image_info) != ImageCompression::None
}

/// Where the numbers of one block reference stand among the fields of its record.
#[derive(Debug, Clone, Copy)]
pub struct BlockFields {
    /// The block.
    pub block: usize,
    /// The length of its data.
    pub data: Option<usize>,
    /// The length of its image, followed by the hole's offset.
    pub image: Option<usize>,
    /// The length of the hole, where that does not follow from the image's.
    pub hole: Option<usize>,
}

/// Where a record of a split says which tuples it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitFields {
    /// The page that was split, among the block references.
    pub reference: usize,
    /// The new page, among them.
    pub new: usize,
    /// The length of the tuples that went to the new page.
    pub data: usize,
    /// The length of main data.
    pub main: usize,
}

/// The tuples that a split moved to its new page.
#[derive(Debug, Clone, Copy)]
pub struct MovedTuples {
    /// The record.
    pub record: usize,
    /// The page that was split.
    pub block: BlockId,
    /// The new page.
    pub new: BlockId,
    /// The field that has their length, in [`Structure::fields`].
    pub data: usize,
    /// The field that has the length of main data.
    pub main: usize,
}

/// Where the numbers of a kind's records stand, and what their headers take.
#[derive(Debug, Clone)]
pub struct FieldPlan {
    /// One for each block reference.
    pub blocks: Vec<BlockFields>,
    /// The top-level transaction.
    pub top_xid: Option<usize>,
    /// The length of main data.
    pub main: Option<usize>,
    /// How many numbers a record has.
    pub count: usize,
    /// Bytes of record header and fragment headers.
    pub header_bytes: usize,
    /// Lengths of what has contents: data of each block that has some, then main data.
    pub slots: Vec<usize>,
    /// Lengths of images.
    pub images: Vec<usize>,
    /// Where tuples are that are no rows.
    pub split: Option<SplitFields>,
}

impl FieldPlan {
    /// The plan of `kind`.
    pub fn of(kind: &RecordKind, version: WalVersion) -> FieldPlan {
        let mut count = 0;
        let mut next = |wanted: bool, fields: usize| {
            let at = count;
            if wanted {
                count += fields;
            }
            wanted.then_some(at)
        };
        let (mut blocks, mut slots, mut images) = (Vec::new(), Vec::new(), Vec::new());
        let mut header_bytes = RECORD_HEADER_BYTES;
        for block in &kind.blocks {
            let at = next(true, 1).unwrap_or(0);
            let data = next(block.flags & flag::HAS_DATA != 0, 1);
            let image = next(block.flags & flag::HAS_IMAGE != 0, 2);
            let own_hole = image.is_some()
                && block.image_info & flag::IMAGE_HAS_HOLE != 0
                && is_compressed(version, block.image_info);
            let hole = next(own_hole, 1);
            let relation = if block.flags & flag::SAME_RELATION == 0 { 12 } else { 0 };
            header_bytes +=
                4 + 4 + relation + if image.is_some() { 5 } else { 0 } + if own_hole { 2 } else { 0 };
            slots.extend(data);
            images.extend(image);
            blocks.push(BlockFields { block: at, data, image, hole });
        }
        header_bytes += if kind.origin.is_some() { 3 } else { 0 };
        let top_xid = next(kind.top_xid, 1);
        header_bytes += if kind.top_xid { 5 } else { 0 };
        let main = next(kind.main != MainForm::None, 1);
        header_bytes += match kind.main {
            MainForm::None => 0,
            MainForm::Short => 2,
            MainForm::Long => 5,
        };
        slots.extend(main);
        let of = |id: u8| kind.blocks.iter().position(|block| block.id == id);
        let data = |number: usize| blocks.get(number).and_then(|block: &BlockFields| block.data);
        let split = match (of(0), of(1), of(1).and_then(data), main) {
            (Some(reference), Some(new), Some(data), Some(main))
                if replay::is_split(kind.rmgr, kind.info) =>
            {
                Some(SplitFields { reference, new, data, main })
            }
            _ => None,
        };
        FieldPlan { blocks, top_xid, main, count, header_bytes, slots, images, split }
    }

    /// Lengths of the contents that are rows.
    pub fn row_slots(&self) -> impl Iterator<Item = usize> {
        let moved = self.split.map(|split| split.data);
        self.slots.iter().copied().filter(move |slot| Some(*slot) != moved)
    }

    /// The length of a record with these numbers.
    pub fn record_len(&self, fields: &[u32]) -> u64 {
        let of = |at: usize| u64::from(fields.get(at).copied().unwrap_or(0));
        let parts: u64 = self.slots.iter().chain(&self.images).map(|at| of(*at)).sum();
        self.header_bytes as u64 + parts
    }
}

/// An image in a record, as its header says.
#[derive(Debug, Clone, Copy)]
pub struct ImageShape {
    /// Whose.
    pub block: BlockId,
    /// Bytes in the record.
    pub len: usize,
    /// The hole.
    pub hole: Hole,
    /// How it is compressed.
    pub compression: ImageCompression,
}

/// The records of each kind, one kind behind the other.
#[derive(Debug, Clone, Default)]
pub struct ByKind {
    records: Vec<u32>,
    /// Where each kind's records end.
    ends: Vec<u32>,
}

impl ByKind {
    /// The records of each kind, kind by kind.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let records = self.records.get(start as usize..*end as usize);
            start = *end;
            records.unwrap_or(&[])
        })
    }
}

/// The records of a frame.
#[derive(Debug, Clone, Default)]
pub struct Structure {
    /// Relations and kinds.
    pub tables: DeltaTables,
    /// The kind of each record.
    pub kinds: Vec<u16>,
    /// The transaction of each.
    pub xids: Vec<u32>,
    /// The numbers of all, those of a record together, and those of a kind's records in order.
    pub fields: Vec<u32>,
    /// Where the numbers of each record begin.
    pub starts: Vec<usize>,
    /// By kind.
    pub plans: Vec<FieldPlan>,
}

impl Structure {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        let Structure { tables, kinds, xids, fields, starts, plans } = self;
        *tables = DeltaTables::default();
        kinds.clear();
        xids.clear();
        fields.clear();
        starts.clear();
        plans.clear();
    }

    /// The numbers of record `record`, whose plan is `plan`.
    pub fn numbers(&self, record: usize, plan: &FieldPlan) -> &[u32] {
        let start = self.starts.get(record).copied().unwrap_or(0);
        self.fields.get(start..start + plan.count).unwrap_or(&[])
    }

    /// The records of each kind, in order.
    pub fn by_kind(&self) -> ByKind {
        let mut ends = vec![0u32; self.tables.kinds.len()];
        for kind in &self.kinds {
            if let Some(count) = ends.get_mut(usize::from(*kind)) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for end in &mut ends {
            // The start of each kind, which becomes its end as its records are put down.
            (*end, sum) = (sum, sum + *end);
        }
        let mut records = vec![0u32; self.kinds.len()];
        for (record, kind) in self.kinds.iter().enumerate() {
            if let Some(end) = ends.get_mut(usize::from(*kind))
                && let Some(place) = records.get_mut(*end as usize)
            {
                *place = record as u32;
                *end += 1;
            }
        }
        ByKind { records, ends }
    }

    /// The kind and the plan of record `record`.
    pub fn kind_of(&self, record: usize) -> Option<(&RecordKind, &FieldPlan)> {
        let kind = usize::from(*self.kinds.get(record)?);
        Some((self.tables.kinds.get(kind)?, self.plans.get(kind)?))
    }

    /// The tuples that splits moved, kind by kind.
    ///
    /// # Errors
    /// More of them than a page has room for, which is what no server writes.
    pub fn moved(&self, by_kind: &ByKind) -> Result<Vec<MovedTuples>, FormatError> {
        let mut moved = Vec::new();
        for ((records, plan), kind) in by_kind.iter().zip(&self.plans).zip(&self.tables.kinds) {
            let Some(SplitFields { reference, new, data, main }) = plan.split else { continue };
            let [Some(split), Some(new)] =
                [reference, new].map(|number| Some((kind.blocks.get(number)?, plan.blocks.get(number)?)))
            else {
                continue;
            };
            for record in records {
                let record = *record as usize;
                let fields = self.numbers(record, plan);
                let of = |at: usize| fields.get(at).copied().unwrap_or(0);
                if of(data) as usize > BLOCK_BYTES {
                    let found = format!("a split that moves {} bytes", of(data));
                    return Err(FormatError::new("delta frame", 0, found, format!("{BLOCK_BYTES} at most")));
                }
                let start = self.starts.get(record).copied().unwrap_or(0);
                let id = |(block, at): (&KindBlock, &BlockFields)| self.known_block(block, of(at.block));
                let (block, new) = (id(split)?, id(new)?);
                moved.push(MovedTuples { record, block, new, data: start + data, main: start + main });
            }
        }
        Ok(moved)
    }

    /// The block of a block reference, if its relation is in the table.
    pub fn block(&self, block: &KindBlock, number: u32) -> Option<BlockId> {
        let relation = *self.tables.relations.get(usize::from(block.relation))?;
        Some(BlockId { relation, fork: block.flags & flag::FORK_MASK, block: number })
    }

    fn known_block(&self, block: &KindBlock, number: u32) -> Result<BlockId, FormatError> {
        self.block(block, number).ok_or_else(|| {
            let found = format!("relation {}", block.relation);
            FormatError::new("delta frame kind", 0, found, "one in the table")
        })
    }

    /// The image of block reference `number` of a record with these `fields`, if it has one.
    pub fn image(
        &self,
        version: WalVersion,
        block: &KindBlock,
        plan: &BlockFields,
        fields: &[u32],
    ) -> Result<Option<ImageShape>, FormatError> {
        let Some(at) = plan.image else { return Ok(None) };
        let of = |at: usize| fields.get(at).copied().unwrap_or(0) as usize;
        let (len, offset) = (of(at), of(at + 1));
        let compression = compression(version, block.image_info);
        let hole_len = match (block.image_info & flag::IMAGE_HAS_HOLE != 0, plan.hole) {
            (false, _) => 0,
            (true, Some(hole)) => of(hole),
            (true, None) => BLOCK_BYTES.saturating_sub(len),
        };
        let fits = compression != ImageCompression::None || len + hole_len == BLOCK_BYTES;
        if !fits || offset + hole_len > BLOCK_BYTES || len > BLOCK_BYTES {
            let found = format!("{len} bytes with a hole of {hole_len} at {offset}");
            return Err(FormatError::new("delta frame image", 0, found, "an image of 8192 bytes"));
        }
        let id = self.known_block(block, fields.get(plan.block).copied().unwrap_or(0))?;
        Ok(Some(ImageShape { block: id, len, hole: Hole { offset, len: hole_len }, compression }))
    }

    /// Appends the kinds, low bytes first, then high bytes.
    pub fn put_kinds(&self, to: &mut Vec<u8>) {
        to.extend(self.kinds.iter().map(|kind| *kind as u8));
        to.extend(self.kinds.iter().map(|kind| (*kind >> 8) as u8));
    }

    /// Appends the transactions: 0 that of the last record that had one, 1 none, otherwise the zigzag difference plus 1.
    pub fn put_xids(&self, to: &mut Vec<u8>) {
        let mut last = 0;
        for xid in &self.xids {
            match *xid {
                0 => varint::put(1, to),
                xid if xid == last => varint::put(0, to),
                xid => {
                    let less = varint::difference(xid, last);
                    varint::put((((less << 1) ^ (less >> 63)) as u64) + 1, to);
                    last = xid;
                }
            }
        }
    }

    /// Appends the numbers, kind by kind, column by column.
    pub fn put_numbers(&self, by_kind: &ByKind, to: &mut Vec<u8>) {
        for (records, plan) in by_kind.iter().zip(&self.plans) {
            for column in 0..plan.count {
                let mut last = 0;
                for record in records {
                    let start = self.starts.get(*record as usize).copied().unwrap_or(0);
                    let value = self.fields.get(start + column).copied().unwrap_or(0);
                    varint::put_signed(varint::difference(value, last), to);
                    last = value;
                }
            }
        }
    }

    /// Reads the structure of `count` records.
    pub fn read(
        tables: DeltaTables,
        version: WalVersion,
        count: usize,
        [kinds, xids, numbers]: [&[u8]; 3],
    ) -> Result<(Structure, ByKind), FormatError> {
        let refuse = |found: String, expected: &str| Err(FormatError::new("delta frame", 0, found, expected));
        if count > WAL_FRAME_BYTES / RECORD_HEADER_BYTES || kinds.len() != 2 * count {
            return refuse(format!("{count} records, {} bytes of kinds", kinds.len()), "two bytes a record");
        }
        if tables.kinds.len() > FRAME_KINDS_MAX || tables.relations.len() > FRAME_KINDS_MAX {
            return refuse(format!("{} kinds", tables.kinds.len()), "65536 at most");
        }
        let (low, high) = kinds.split_at(count);
        let kinds: Vec<u16> =
            low.iter().zip(high).map(|(low, high)| u16::from_le_bytes([*low, *high])).collect();
        if let Some(kind) = kinds.iter().find(|kind| usize::from(**kind) >= tables.kinds.len()) {
            return refuse(format!("kind {kind}"), "one in the table");
        }
        let plans: Vec<FieldPlan> = tables.kinds.iter().map(|kind| FieldPlan::of(kind, version)).collect();
        let mut structure = Structure {
            tables,
            kinds,
            xids: read_xids(xids, count)?,
            fields: Vec::new(),
            starts: Vec::new(),
            plans,
        };
        let by_kind = structure.by_kind();
        structure.read_numbers(&by_kind, numbers)?;
        Ok((structure, by_kind))
    }

    fn read_numbers(&mut self, by_kind: &ByKind, numbers: &[u8]) -> Result<(), FormatError> {
        let total: usize =
            by_kind.iter().zip(&self.plans).map(|(records, plan)| records.len() * plan.count).sum();
        // Every number takes a byte at least, so no count makes us reserve more than four times what is there.
        if total > numbers.len() {
            let found = format!("{} bytes of numbers", numbers.len());
            return Err(FormatError::new("delta frame", 0, found, format!("{total} numbers")));
        }
        self.fields.resize(total, 0);
        self.starts.resize(self.kinds.len(), 0);
        let mut from = Cursor::new("delta frame numbers", numbers);
        let (mut start, mut rest) = (0, self.fields.as_mut_slice());
        for (records, plan) in by_kind.iter().zip(&self.plans) {
            for (turn, record) in records.iter().enumerate() {
                if let Some(to) = self.starts.get_mut(*record as usize) {
                    *to = start + turn * plan.count;
                }
            }
            let (of_kind, others) = rest.split_at_mut(records.len() * plan.count);
            for column in 0..plan.count {
                let mut last = 0;
                for field in of_kind.iter_mut().skip(column).step_by(plan.count) {
                    last = from.after(last)?;
                    *field = last;
                }
            }
            start += of_kind.len();
            rest = others;
        }
        from.finish()
    }
}

fn read_xids(bytes: &[u8], count: usize) -> Result<Vec<u32>, FormatError> {
    let mut from = Cursor::new("delta frame xids", bytes);
    let (mut xids, mut last) = (Vec::with_capacity(count), 0u32);
    for _ in 0..count {
        xids.push(match from.varint()? {
            0 => last,
            1 => 0,
            zigzag => {
                let zigzag = zigzag - 1;
                let less = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
                let xid = i64::from(last).checked_add(less).and_then(|xid| u32::try_from(xid).ok());
                last =
                    xid.ok_or_else(|| from.error(format!("{last} and {less}"), "a transaction of 32 bits"))?;
                last
            }
        });
    }
    from.finish()?;
    Ok(xids)
}
