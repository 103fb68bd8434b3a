//! The WAL dialects walden reads: one per major version, told apart by the magic number of every page.

/// A major version's WAL (`access/xlog_internal.h`, XLOG_PAGE_MAGIC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalVersion {
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl WalVersion {
    /// Every version, oldest first.
    pub const ALL: [WalVersion; 5] =
        [WalVersion::V14, WalVersion::V15, WalVersion::V16, WalVersion::V17, WalVersion::V18];

    /// The magic number of its pages.
    pub const fn magic(self) -> u16 {
        match self {
            WalVersion::V14 => 0xD10D,
            WalVersion::V15 => 0xD110,
            WalVersion::V16 => 0xD113,
            WalVersion::V17 => 0xD116,
            WalVersion::V18 => 0xD118,
        }
    }

    /// The version whose pages bear `magic`.
    pub fn from_magic(magic: u16) -> Option<Self> {
        WalVersion::ALL.into_iter().find(|version| version.magic() == magic)
    }

    /// The major version as a number.
    pub const fn major(self) -> u32 {
        match self {
            WalVersion::V14 => 14,
            WalVersion::V15 => 15,
            WalVersion::V16 => 16,
            WalVersion::V17 => 17,
            WalVersion::V18 => 18,
        }
    }

    /// The version with this major number.
    pub fn from_major(major: u32) -> Option<Self> {
        WalVersion::ALL.into_iter().find(|version| version.major() == major)
    }
}
