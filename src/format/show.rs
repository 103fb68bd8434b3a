//! Decoded values as a tree that can be printed: what `walden-inspect` shows of a record. Field names are those of formats/*.md.

/// A value to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// An integer.
    Number(i128),
    /// Yes or no.
    Flag(bool),
    /// A text, an id, a position, a code's name.
    Text(String),
    /// Keys, hashes, seals.
    Bytes(Vec<u8>),
    /// Bytes that may be a text.
    Blob(Vec<u8>),
    /// No value.
    Nothing,
    /// Values of one type.
    List(Vec<Shown>),
    /// Named values.
    Record(Vec<(&'static str, Shown)>),
}

impl Shown {
    /// Something with a text of its own.
    pub fn text(value: impl std::fmt::Display) -> Shown {
        Shown::Text(value.to_string())
    }

    /// A count, a length, an offset.
    pub fn number(value: impl Into<i128>) -> Shown {
        Shown::Number(value.into())
    }
}
