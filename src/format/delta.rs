//! The head and the tables of a delta frame: WAL as record columns and differences of page images. Spec: formats/deltas.md.

use super::record::{Blob, code, record};
use super::wal::RelationRef;
use crate::base::{Lsn, SystemId, TimelineId};

/// The first four bytes of a delta frame, as an integer: `WDL`, major version 1.
pub const DELTA_MAGIC: u32 = u32::from_le_bytes(*b"WDL\x01");

record! {
    /// What a delta frame begins with.
    pub struct DeltaHead {
        /// `DELTA_MAGIC`.
        pub magic: u32,
        /// The first byte of the WAL that the frame holds.
        pub start: Lsn,
        /// How many bytes of WAL it holds.
        pub raw_len: u32,
        /// BLAKE3 of them.
        pub raw_hash: [u8; 32],
        /// The magic of WAL pages.
        pub page_magic: u16,
        /// The size of a WAL segment in bytes.
        pub segment_bytes: u32,
        /// The timeline in page headers.
        pub timeline: TimelineId,
        /// The system identifier in the headers of a segment's first page.
        pub system_id: SystemId,
        /// Whether page headers bear BKP_REMOVABLE.
        pub removable: bool,
        /// Start of the record before the first that begins here.
        pub prev: Lsn,
        /// Zeros that the frame begins with: the rest of a segment after a switch.
        pub zero_len: u32,
        /// Bytes of a record begun before, after those.
        pub head_len: u32,
        /// Whole records, after those.
        pub record_count: u32,
        /// Bytes of a record that ends later, after those.
        pub tail_len: u32,
        /// Bytes of the record in the head, if nothing follows it here, or else the tail, that come after the frame.
        pub rest_len: u32,
        /// The sections, in the order of `SectionKind`.
        pub sections: Vec<SectionEntry>,
    }
}

record! {
    /// How a section is stored.
    pub struct SectionEntry {
        /// How it is compressed.
        pub codec: SectionCodec,
        /// Its length once decompressed.
        pub plain_len: u32,
        /// Its length as stored.
        pub stored_len: u32,
    }
}

code! {
    /// How a section is compressed.
    pub enum SectionCodec {
        /// Not at all.
        Raw = 0,
        /// One zstd frame.
        Zstd = 1,
        /// CRC-32C of the window, how far back it begins, and one zstd frame with the window as its dictionary. `Digits` alone.
        Window = 2,
    }
}

code! {
    /// The sections of a delta frame, in stored order.
    pub enum SectionKind {
        /// A `DeltaTables`.
        Tables = 0,
        /// The kind of each record.
        Kinds = 1,
        /// The transaction of each record.
        Xids = 2,
        /// Blocks and lengths, kind by kind.
        Numbers = 3,
        /// What each image was made of.
        Sources = 4,
        /// Checks and distances of the pages referred to.
        References = 5,
        /// Lengths of literals in images.
        LiteralLens = 6,
        /// Lengths of copies in images.
        CopyLens = 7,
        /// From where copies come, where that changes.
        Shifts = 8,
        /// Literals of images.
        Literals = 9,
        /// Images as they are.
        Stored = 10,
        /// How the columns of block data and main data are stored.
        Layouts = 11,
        /// Columns of one value.
        Constants = 12,
        /// Columns.
        Columns = 13,
        /// Columns of differences.
        Differences = 14,
        /// Bytes that stay together, row by row.
        Rows = 15,
        /// Hexadecimal digits.
        Digits = 16,
        /// The head, then the tail.
        Edges = 17,
    }
}

impl SectionKind {
    /// Those that hold images.
    pub const OF_IMAGES: [SectionKind; 7] = [
        SectionKind::Sources,
        SectionKind::References,
        SectionKind::LiteralLens,
        SectionKind::CopyLens,
        SectionKind::Shifts,
        SectionKind::Literals,
        SectionKind::Stored,
    ];
}

record! {
    /// What the records of a frame have in common.
    #[derive(Default)]
    pub struct DeltaTables {
        /// The relations they change.
        pub relations: Vec<RelationRef>,
        /// The kinds of records.
        pub kinds: Vec<RecordKind>,
        /// Page headers that are not as expected.
        pub page_headers: Vec<PageHeaderEntry>,
    }
}

record! {
    /// Records that have all this in common.
    #[derive(Hash)]
    pub struct RecordKind {
        /// `xl_rmid`.
        pub rmgr: u8,
        /// `xl_info`.
        pub info: u8,
        /// Their block references.
        pub blocks: Vec<KindBlock>,
        /// The replication origin.
        pub origin: Option<u16>,
        /// Whether they name a top-level transaction.
        pub top_xid: bool,
        /// How they give the length of their main data.
        pub main: MainForm,
    }
}

record! {
    /// A block reference.
    #[derive(Hash)]
    pub struct KindBlock {
        /// Its number in the record.
        pub id: u8,
        /// `fork_flags`.
        pub flags: u8,
        /// `bimg_info` of its image, 0 where it has none.
        pub image_info: u8,
        /// Which of the relations.
        pub relation: u16,
    }
}

code! {
    /// How a record gives the length of its main data.
    pub enum MainForm {
        /// It has none.
        None = 0,
        /// In one byte.
        Short = 1,
        /// In four bytes.
        Long = 2,
    }
}

record! {
    /// A page header as it is.
    pub struct PageHeaderEntry {
        /// Which of the page headers in the frame, from 0.
        pub page: u32,
        /// Its bytes.
        pub bytes: Blob,
    }
}

code! {
    /// What an image was made of.
    pub enum ImageSource {
        /// Nothing: all of it is literals.
        Nothing = 0,
        /// The page of the epoch's base backup.
        Base = 1,
        /// An earlier image of the block.
        Image = 2,
        /// The image is as the record has it.
        Stored = 3,
    }
}

code! {
    /// How a run of columns is stored.
    pub enum ColumnForm {
        /// One value in all rows.
        Constant = 0,
        /// Column by column.
        Column = 1,
        /// Column by column, each byte less the one above.
        Difference = 2,
        /// Row by row.
        Row = 3,
        /// Row by row, hexadecimal digits.
        Digit = 4,
    }
}
