//! What a list of the store shows, sorted. A list may be late: what it misses is asked for by name.
//! Memory: about 130 bytes an object.

use crate::base::ObjectKey;
use crate::store::ObjectMeta;

/// Objects of a repository, by name.
#[derive(Debug, Default)]
pub struct Listed(Vec<ObjectMeta>);

impl Listed {
    /// Sorts what was listed.
    pub fn new(mut metas: Vec<ObjectMeta>) -> Listed {
        metas.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        metas.dedup_by(|a, b| a.key == b.key);
        metas.shrink_to_fit();
        Listed(metas)
    }

    /// Names of the objects.
    pub fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.0.iter().map(|meta| &meta.key)
    }

    /// All of them.
    pub fn all(&self) -> &[ObjectMeta] {
        &self.0
    }

    /// One of them.
    pub fn find(&self, key: &ObjectKey) -> Option<&ObjectMeta> {
        self.0.binary_search_by(|meta| meta.key.cmp(key)).ok().and_then(|at| self.0.get(at))
    }

    /// Those whose names begin with `prefix` and `/`.
    pub fn under(&self, prefix: &str) -> &[ObjectMeta] {
        let prefix = format!("{prefix}/");
        let first = self.0.partition_point(|meta| meta.key.as_str() < prefix.as_str());
        let rest = self.0.get(first..).unwrap_or(&[]);
        let count = rest.partition_point(|meta| meta.key.as_str().starts_with(&prefix));
        rest.get(..count).unwrap_or(&[])
    }

    /// The newest Last-Modified; the least number when nothing is listed.
    pub fn newest_unix_micros(&self) -> i64 {
        self.0.iter().map(|meta| meta.modified_unix_micros).max().unwrap_or(i64::MIN)
    }
}

/// Bytes of `metas`.
pub fn bytes(metas: &[ObjectMeta]) -> u64 {
    metas.iter().map(|meta| meta.len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_whole_name() {
        let meta =
            |key: &str| ObjectMeta { key: ObjectKey::new(key).unwrap(), len: 1, modified_unix_micros: 0 };
        let listed = Listed::new(["a/c", "a-b/c", "a/b/c", "a0/c", "b"].map(meta).to_vec());
        let under: Vec<&str> = listed.under("a").iter().map(|meta| meta.key.as_str()).collect();
        assert_eq!(under, ["a/b/c", "a/c"]);
        assert!(listed.under("c").is_empty() && listed.find(&ObjectKey::new("b").unwrap()).is_some());
    }
}
