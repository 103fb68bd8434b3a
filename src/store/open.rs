//! From a repository's URL to its store. Refuses what it does not understand; secrets never come in a URL, nor leave in an error.

use super::{LocalStore, Store, StoreError};
use std::path::PathBuf;
use std::sync::Arc;

/// What a URL does not say.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// The operator declares that one process at a time writes here, so that a store without conditional creation will do.
    pub single_writer: bool,
}

/// Opens the store of `url`: a path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
/// Nothing is created or asked yet; `probe_start` does that.
pub fn open(url: &str, _options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    let refuse = |reason: String| StoreError::Url { url: url.to_owned(), reason };
    match url.split_once("://") {
        None if url.is_empty() => Err(refuse("is empty".into())),
        None => {
            Ok(Arc::new(LocalStore::open(&PathBuf::from(url)).map_err(|error| refuse(error.to_string()))?))
        }
        Some(("file", path)) => {
            let path = local_path(path).map_err(refuse)?;
            Ok(Arc::new(LocalStore::open(&path).map_err(|error| refuse(error.to_string()))?))
        }
        Some((scheme, _)) => {
            Err(refuse(format!("{scheme}:// is no kind of store; expected a path, file, s3, gs or az")))
        }
    }
}

/// The path of a `file://` URL, whose host is empty or `localhost` and whose bytes may be written as `%20`.
fn local_path(rest: &str) -> Result<PathBuf, String> {
    use std::os::unix::ffi::OsStringExt;
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err("file:// needs an absolute path, like file:///srv/walden".into());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| (b as char).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) if high << 4 | low != 0 => bytes.push((high << 4 | low) as u8),
            _ => {
                return Err(
                    "% is not followed by two hexadecimal digits of a byte that paths may hold".into()
                );
            }
        }
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_urls_name_absolute_paths() {
        assert_eq!(local_path("/srv/a%20b%2525"), Ok("/srv/a b%25".into()));
        assert_eq!(local_path("localhost/srv"), Ok("/srv".into()));
        for bad in ["srv", "", "host/srv", "/a%2", "/a%zz", "/a%00"] {
            assert!(local_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_store() {
        for bad in ["", "ftp://host/x", "file://relative", "s4://bucket"] {
            assert!(matches!(open(bad, &StoreOptions::default()), Err(StoreError::Url { .. })), "{bad:?}");
        }
    }
}
