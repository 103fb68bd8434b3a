//! Reading and writing little-endian fields. A [`Reader`] names the field and the byte at which it failed.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// Foreign bytes that do not say what they should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {found} at byte {at}, expected {expected}")]
pub struct FormatError {
    /// The object or field.
    pub what: &'static str,
    /// The offset inside it.
    pub at: usize,
    /// What stands there.
    pub found: String,
    /// What should.
    pub expected: String,
}

impl FormatError {
    /// An error for `what` at byte `at`.
    pub fn new(what: &'static str, at: usize, found: impl ToString, expected: impl ToString) -> Self {
        FormatError { what, at, found: found.to_string(), expected: expected.to_string() }
    }

    /// The same error, told from the start of what contains the bytes, `offset` bytes before them.
    pub fn shifted(self, offset: usize) -> Self {
        FormatError { at: self.at.saturating_add(offset), ..self }
    }
}

/// A cursor over foreign bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which errors will call `what`.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader { what, rest: bytes, at: 0 }
    }

    /// The offset of the next byte.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// An error at the current position.
    pub fn error(&self, found: impl ToString, expected: impl ToString) -> FormatError {
        FormatError::new(self.what, self.at, found, expected)
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.error(format!("{} bytes left", self.rest.len()), format!("{count} more")));
        };
        self.rest = rest;
        self.at = self.at.saturating_add(count);
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Refuses bytes that nobody read.
    pub fn finish(self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.error(format!("{} more bytes", self.rest.len()), "the end"))
    }
}

/// Fields in the order they are put.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Writer::default()
    }

    /// Appends `bytes`.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What was put.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
