//! From a repository's URL to its store.

use super::options::{Cloud, RemoteUrl, unescape};
use super::remote::RemoteStore;
use super::{LocalStore, Store, StoreError, StoreOptions};
use std::path::PathBuf;
use std::sync::Arc;

/// Opens the store of `url`: a path, `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
/// Nothing is created, and nobody asked, yet; [`probe_start`](super::probe_start) does that.
pub fn open(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    let refuse = |reason: String| StoreError::Url { url: url.to_owned(), reason };
    let local = |path: PathBuf| -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(LocalStore::open(&path).map_err(|error| refuse(error.to_string()))?))
    };
    let remote = |cloud| -> Result<Arc<dyn Store>, StoreError> {
        let mut options = options.clone();
        let url = RemoteUrl::parse(cloud, url, &mut options)?;
        Ok(Arc::new(RemoteStore::open(url, &options)?))
    };
    match url.split_once("://") {
        None if url.is_empty() => Err(refuse("is empty".into())),
        None => local(PathBuf::from(url)),
        Some(("file", path)) => local(local_path(path).map_err(refuse)?),
        Some(("s3", _)) => remote(Cloud::S3),
        Some(("gs", _)) => remote(Cloud::Google),
        Some(("az", _)) => remote(Cloud::Azure),
        Some((scheme, _)) => {
            let reason = format!("{scheme}:// is no kind of store; expected a path, file, s3, gs or az");
            Err(StoreError::Url { url: format!("{scheme}://…"), reason })
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
    let bytes =
        unescape(path).ok_or("% is not followed by two hexadecimal digits of a byte that paths may hold")?;
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
        for bad in ["", "ftp://host/x", "file://relative", "s4://bucket", "s3://"] {
            assert!(matches!(open(bad, &StoreOptions::default()), Err(StoreError::Url { .. })), "{bad:?}");
        }
    }

    #[test]
    fn urls_are_told_back_without_their_like() {
        let told = |url: &str| open(url, &StoreOptions::default()).unwrap().url();
        assert_eq!(told("/srv/walden"), "file:///srv/walden");
        assert_eq!(told("s3://b/p/?region=eu-1"), "s3://b/p?region=eu-1");
    }
}
