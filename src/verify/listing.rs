//! What a list of the store shows, sorted. A list may be late: what it misses is asked for by name.
//! Memory: about 130 bytes an object.

use crate::base::ObjectKey;
use crate::store::ObjectMeta;

/// How far clocks of a store's hosts may be apart, and how coarse they are.
const CLOCKS_APART_MICROS: i64 = 2_000_000;

/// Up to which Last-Modified everything is on a list that was begun when the store's clock said `now`. A list takes minutes, and what
/// is stored meanwhile behind the place it has got to is not on it, though it may be older than what is.
pub fn seen_until(now_unix_micros: i64) -> i64 {
    now_unix_micros.saturating_sub(CLOCKS_APART_MICROS)
}

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

    #[test]
    fn what_is_stored_while_a_list_is_made_is_not_said_to_be_on_it() {
        // The clock said 10 s when the list began. An object stored at 11 s lies behind the place that the list had got to then.
        assert!(seen_until(10_000_000) < 11_000_000 && seen_until(10_000_000) < 10_000_000);
        assert_eq!(
            seen_until(10_000_000),
            8_000_000,
            "of a store that tells whole seconds, and whose hosts differ by one"
        );
        assert_eq!(seen_until(i64::MIN), i64::MIN);
    }
}
