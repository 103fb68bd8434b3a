//! Records into columns: each record is taken apart into its kind, its numbers and the bytes that are its contents. Spec: formats/deltas.md.

use super::block::BlockId;
use super::columns::{ColumnWriter, Columns};
use super::diff::Hole;
use super::framing::Stretch;
use super::headers::{HeaderMask, KindHeaders};
use super::limits::{FRAME_IMAGES_MAX, FRAME_KINDS_MAX};
use super::structure::{ByKind, FieldPlan, ImageShape, MovedTuples, Structure, flag, is_compressed};
use super::walk::Surprise;
use crate::format::delta::{KindBlock, MainForm, RecordKind};
use crate::format::wal::RelationRef;
use crate::wal::WalVersion;
use crate::wal::record::{Fragment, Fragments, RECORD_HEADER_BYTES, RecordHeader};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// An image and where its bytes are.
#[derive(Debug, Clone, Copy)]
pub struct ImageAt {
    /// What its header says.
    pub shape: ImageShape,
    /// The record that has it.
    pub record: usize,
    /// Its first byte in the body.
    pub start: usize,
}

/// A hasher for tables of kinds, relations and blocks: who makes keys collide makes his own WAL slow.
#[derive(Debug, Default)]
pub struct QuickHasher(u64);

impl QuickHasher {
    fn mix(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.mix(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// How many kinds are remembered that were met last, a power of two.
const RECENT_KINDS: usize = 256;

/// Kinds met last.
#[derive(Debug)]
struct RecentKinds([u16; RECENT_KINDS]);

impl Default for RecentKinds {
    fn default() -> Self {
        RecentKinds([u16::MAX; RECENT_KINDS])
    }
}

impl RecentKinds {
    /// The kind of the last record like `record`: of the same operation, and, if it has a block reference without an image, with one
    /// of the same flags and relation.
    fn of(&mut self, header: &RecordHeader, record: &[u8]) -> &mut u16 {
        let mut hasher = QuickHasher::default();
        let mut word = u64::from(header.rmgr) << 8 | u64::from(header.info);
        if let Some([id @ 0..=32, flags, rest @ ..]) =
            record.get(RECORD_HEADER_BYTES..).and_then(|rest| rest.first_chunk::<16>())
        {
            let relation = rest.last_chunk().copied().map_or(0, u32::from_le_bytes);
            word |= u64::from(*id) << 24 | u64::from(*flags) << 16 | u64::from(relation) << 32;
        }
        hasher.write_u64(word);
        &mut self.0[hasher.finish() as usize % RECENT_KINDS]
    }
}

/// The records of a body, taken apart.
#[derive(Debug, Default)]
pub struct RecordSplitter {
    /// Everything but contents.
    pub structure: Structure,
    /// The images, in order.
    pub images: Vec<ImageAt>,
    /// The tuples that splits moved, kind by kind.
    pub moved: Vec<MovedTuples>,
    /// The same records kind by kind.
    pub by_kind: ByKind,
    /// Where contents begin in the body, by the field that has their length.
    pub contents: Vec<u32>,
    /// What is made for one kind, image or group after the other.
    blocks: Vec<KindBlock>,
    shapes: Vec<Option<ImageShape>>,
    groups: Groups,
    rows: Vec<u8>,
    kinds: HashMap<RecordKind, u16, BuildHasherDefault<QuickHasher>>,
    /// By kind: what tells that a record is of it, unless it has images.
    masks: Vec<Option<HeaderMask>>,
    /// Kinds met last, by what tells most of them apart.
    recent: RecentKinds,
    relations: HashMap<RelationRef, u16, BuildHasherDefault<QuickHasher>>,
}

impl RecordSplitter {
    /// Takes the records of `body` at `stretches` apart.
    pub fn split(&mut self, version: WalVersion, body: &[u8], stretches: &[Stretch]) -> Result<(), Surprise> {
        self.structure.clear();
        self.images.clear();
        self.contents.clear();
        self.kinds.clear();
        self.masks.clear();
        self.recent.0.fill(u16::MAX);
        self.relations.clear();
        for (number, stretch) in stretches.iter().enumerate() {
            if self.known(body, *stretch).is_some() {
                continue;
            }
            let record = body.get(stretch.start..stretch.end).ok_or(Surprise::Record)?;
            self.record(version, number, stretch.start, record)?;
            if self.kinds.len() >= FRAME_KINDS_MAX {
                return Err(Surprise::TooMuch);
            }
        }
        self.by_kind = self.structure.by_kind();
        self.moved = self.structure.moved(&self.by_kind).map_err(|_| Surprise::Record)?;
        if self.images.len() + self.moved.len() > FRAME_IMAGES_MAX {
            return Err(Surprise::TooMuch);
        }
        Ok(())
    }

    /// The bytes in `body` of the content whose length is number `field` of all.
    pub fn content<'a>(&self, body: &'a [u8], field: usize) -> &'a [u8] {
        let [start, len] =
            [&self.contents, &self.structure.fields].map(|of| of.get(field).copied().unwrap_or(0) as usize);
        body.get(start..start + len).unwrap_or(&[])
    }

    /// Takes a record apart that is of a kind met lately and has no image: all that is asked of a record that is parsed holds then
    /// when its lengths sum up. Otherwise nothing is done.
    fn known(&mut self, body: &[u8], stretch: Stretch) -> Option<()> {
        let record = body.get(stretch.start..)?;
        let header = RecordHeader::decode(record.first_chunk()?);
        let number = *self.recent.of(&header, record);
        let mask = self.masks.get(usize::from(number))?.as_ref()?;
        let (kind, plan) = (
            self.structure.tables.kinds.get(usize::from(number))?,
            self.structure.plans.get(usize::from(number))?,
        );
        if (kind.rmgr, kind.info) != (header.rmgr, header.info) {
            return None;
        }
        let all = &mut self.structure.fields;
        let start = all.len();
        all.resize(start + plan.count, 0);
        let fields = all.get_mut(start..)?;
        // Data of no bytes would have no flag.
        let whole = mask.read(record, fields)
            && plan.record_len(fields) == u64::from(header.total_len)
            && plan
                .blocks
                .iter()
                .all(|block| block.data.is_none_or(|data| fields.get(data).is_some_and(|len| *len > 0)));
        if !whole {
            all.truncate(start);
            return None;
        }
        self.structure.starts.push(start);
        self.structure.kinds.push(number);
        self.structure.xids.push(header.xid);
        self.contents.resize(start + plan.count, 0);
        let mut place = stretch.start + plan.header_bytes;
        for slot in &plan.slots {
            if let (Some(content), Some(len)) =
                (self.contents.get_mut(start + slot), self.structure.fields.get(start + slot))
            {
                *content = place as u32;
                place += *len as usize;
            }
        }
        Some(())
    }

    fn record(
        &mut self,
        version: WalVersion,
        number: usize,
        at: usize,
        record: &[u8],
    ) -> Result<(), Surprise> {
        let (header, rest) = record.split_first_chunk::<RECORD_HEADER_BYTES>().ok_or(Surprise::Record)?;
        let header = RecordHeader::decode(header);
        let mut kind = RecordKind {
            rmgr: header.rmgr,
            info: header.info,
            blocks: std::mem::take(&mut self.blocks),
            origin: None,
            top_xid: false,
            main: MainForm::None,
        };
        kind.blocks.clear();
        self.shapes.clear();
        let fields_from = self.structure.fields.len();
        let (mut top_xid, mut main, mut taken) = (None, None, RECORD_HEADER_BYTES as u64);
        for fragment in Fragments::new(version, header.total_len, rest) {
            match fragment.map_err(|_| Surprise::Record)? {
                Fragment::Block(block) => {
                    // Blocks come first; an order that no server writes is not reproduced.
                    if kind.origin.is_some() || top_xid.is_some() {
                        return Err(Surprise::Record);
                    }
                    let relation = self.relation(block.relation)?;
                    let fields = &mut self.structure.fields;
                    fields.push(block.block);
                    if block.flags & flag::HAS_DATA != 0 {
                        fields.push(u32::from(block.data_len));
                    }
                    let image_info = block.image.map_or(0, |image| image.info);
                    if let Some(image) = block.image {
                        fields.push(u32::from(image.len));
                        fields.push(u32::from(image.hole_offset));
                        if image_info & flag::IMAGE_HAS_HOLE != 0 && is_compressed(version, image_info) {
                            fields.push(u32::from(image.hole_len));
                        }
                    }
                    let relation_bytes = if block.flags & flag::SAME_RELATION == 0 { 12 } else { 0 };
                    taken += 8 + relation_bytes + u64::from(block.data_len);
                    if let Some(image) = block.image {
                        let own_hole =
                            image_info & flag::IMAGE_HAS_HOLE != 0 && is_compressed(version, image_info);
                        taken += if own_hole { 7 } else { 5 } + u64::from(image.len);
                    }
                    kind.blocks.push(KindBlock { id: block.id, flags: block.flags, image_info, relation });
                    self.shapes.push(block.image.map(|image| ImageShape {
                        block: BlockId { relation: block.relation, fork: block.fork, block: block.block },
                        len: usize::from(image.len),
                        hole: Hole {
                            offset: usize::from(image.hole_offset),
                            len: usize::from(image.hole_len),
                        },
                        compression: image.compression,
                    }));
                }
                Fragment::Origin(origin) => {
                    if kind.origin.is_some() || top_xid.is_some() {
                        return Err(Surprise::Record);
                    }
                    kind.origin = Some(origin);
                    taken += 3;
                }
                Fragment::TopXid(xid) => {
                    if top_xid.replace(xid).is_some() {
                        return Err(Surprise::Record);
                    }
                    kind.top_xid = true;
                    taken += 5;
                }
                Fragment::Main(len) => main = Some(len),
            }
        }
        self.structure.fields.extend(top_xid);
        self.structure.fields.extend(main);
        // Whether the main data's length takes one byte or four follows from what the record has room for.
        kind.main = match main {
            None => MainForm::None,
            Some(len) => match u64::from(header.total_len).checked_sub(taken + u64::from(len)) {
                Some(2) => MainForm::Short,
                Some(5) => MainForm::Long,
                _ => return Err(Surprise::Record),
            },
        };
        let known = self.kind(kind, version)?;
        *self.recent.of(&header, record) = known;
        self.structure.starts.push(fields_from);
        self.structure.kinds.push(known);
        self.structure.xids.push(header.xid);
        let plan = self.structure.plans.get(usize::from(known)).ok_or(Surprise::Record)?;
        let fields = &self.structure.fields[fields_from..];
        if plan.record_len(fields) != u64::from(header.total_len) {
            return Err(Surprise::Record);
        }
        self.contents.resize(self.structure.fields.len(), 0);
        let contents = &mut self.contents[fields_from..];
        let mut place = at + plan.header_bytes;
        for (block, image) in plan.blocks.iter().zip(&self.shapes) {
            if let Some(shape) = image {
                self.images.push(ImageAt { shape: *shape, record: number, start: place });
                place += shape.len;
            }
            if let Some(data) = block.data {
                contents[data] = place as u32;
                place += fields[data] as usize;
            }
        }
        if let Some(main) = plan.main {
            contents[main] = place as u32;
        }
        Ok(())
    }

    fn relation(&mut self, relation: RelationRef) -> Result<u16, Surprise> {
        if let Some(known) = self.relations.get(&relation) {
            return Ok(*known);
        }
        let number = u16::try_from(self.relations.len()).map_err(|_| Surprise::TooMuch)?;
        self.relations.insert(relation, number);
        self.structure.tables.relations.push(relation);
        Ok(number)
    }

    fn kind(&mut self, kind: RecordKind, version: WalVersion) -> Result<u16, Surprise> {
        if let Some(known) = self.kinds.get(&kind) {
            self.blocks = kind.blocks;
            return Ok(*known);
        }
        let number = self.kinds.len() as u16;
        let plan = FieldPlan::of(&kind, version);
        let headers =
            KindHeaders::of(&kind, &plan, &self.structure.tables.relations).map_err(|_| Surprise::Record)?;
        self.masks.push(plan.images.is_empty().then(|| HeaderMask::of(headers)));
        self.structure.plans.push(plan);
        self.structure.tables.kinds.push(kind.clone());
        self.kinds.insert(kind, number);
        Ok(number)
    }

    /// Appends the contents of the records of `body` that are rows: kind by kind, what has the same place in them and the same length together.
    pub fn put_contents(&mut self, body: &[u8], writer: &mut ColumnWriter, to: &mut Columns) {
        for (records, plan) in self.by_kind.iter().zip(&self.structure.plans) {
            for field in plan.row_slots() {
                for group in self.groups.of(&self.structure, records, field) {
                    let len = group.first().map_or(0, |first| first.len as usize);
                    self.rows.clear();
                    for content in group {
                        let start = self.contents[content.field as usize] as usize;
                        self.rows.extend_from_slice(&body[start..start + len]);
                    }
                    writer.put(&self.rows, len, to);
                }
            }
        }
    }
}

/// A content: its length, and the field that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    /// Its bytes.
    pub len: u32,
    /// The number of the field in [`Structure::fields`]: that of a later record is greater.
    pub field: u32,
}

/// Finds contents of one length. Keeps its memory.
#[derive(Debug, Default)]
pub struct Groups(Vec<Content>);

impl Groups {
    /// The contents whose length is number `field` of `records`, by that length; in order inside.
    pub fn of(
        &mut self,
        structure: &Structure,
        records: &[u32],
        field: usize,
    ) -> impl Iterator<Item = &[Content]> {
        self.0.clear();
        self.0.extend(records.iter().map(|record| {
            let field = structure.starts.get(*record as usize).copied().unwrap_or(0) + field;
            let len = structure.fields.get(field).copied().unwrap_or(0);
            Content { len, field: field as u32 }
        }));
        if !self.0.is_sorted() {
            self.0.sort_unstable();
        }
        self.0.chunk_by(|a, b| a.len == b.len)
    }
}
