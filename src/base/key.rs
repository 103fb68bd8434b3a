//! The name of an object in a repository: segments of safe characters joined by `/`, relative to the repository.
//! Spec: formats/layout.md. Which names exist is decided by `repo::layout` alone.

use std::fmt;

/// An object's name, relative to the repository's prefix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Checks `key`: parts of `a-z A-Z 0-9 _ -` joined by single `/`. `None` for anything else.
    pub fn new(key: impl Into<String>) -> Option<Self> {
        let key = key.into();
        let sane = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let parts_sane = key.split('/').all(|part| !part.is_empty() && part.bytes().all(sane));
        parts_sane.then_some(ObjectKey(key))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last `/`.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_inside_the_repository() {
        assert!(ObjectKey::new("clusters/shop/roots/00000000000000000001").is_some());
        for key in ["", "/", "a//b", "/a", "a/", "..", "a/../b", "a b", "a\0b"] {
            assert!(ObjectKey::new(key).is_none(), "{key:?}");
        }
    }
}
