//! Stores behind HTTP: S3 and what speaks like it, Google, Azure, through `object_store`.
//!
//! A create is one request, never repeated here. `object_store` repeats requests whose connection was cut before the answer was whole,
//! creates included; such a create may have been done, and its repetition is told that the object exists, by another as it seems.
//! Whoever knows the bytes decides: an unknown outcome is reported, read back, and repeated by the caller. Reads and removals
//! are repeated a few times with growing pauses, since repeating them tells no lie. So there are two clients of one store.

mod builders;
mod errors;
mod profile;

use super::options::RemoteUrl;
use super::{ObjectMeta, Store, StoreError, StoreOptions};
use crate::base::ObjectKey;
use async_trait::async_trait;
use bytes::Bytes;
use errors::{Asked, sort_out};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreExt, PutMode, RetryConfig};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Creates at a time, and reads at a time: each holds a connection and its bytes.
const REQUESTS_IN_FLIGHT_MAX: usize = 48;
/// Repetitions of a read or removal.
const READ_RETRIES_MAX: usize = 4;
/// How long after the first request a read or removal is still repeated.
const READ_RETRY_TIME: Duration = Duration::from_secs(30);

/// A store behind HTTP.
#[derive(Debug)]
pub struct RemoteStore {
    url: RemoteUrl,
    /// Repeats nothing.
    once: Arc<dyn ObjectStore>,
    /// Repeats reads and removals.
    repeating: Arc<dyn ObjectStore>,
    creates: Semaphore,
    reads: Semaphore,
    /// Creates look first and overwrite, where the operator vouches for being the only writer.
    creating: Creating,
}

#[derive(Debug)]
enum Creating {
    /// The store decides.
    Conditional,
    /// We look, one at a time, and then write.
    LookFirst(tokio::sync::Mutex<()>),
}

impl RemoteStore {
    /// The store at `url`. Reads files of credentials and certificates; asks nobody yet.
    pub(super) fn open(url: RemoteUrl, options: &StoreOptions) -> Result<Self, StoreError> {
        let never = RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(5),
            base: 2.,
        };
        let some = RetryConfig { max_retries: READ_RETRIES_MAX, retry_timeout: READ_RETRY_TIME, backoff };
        let once = builders::build(&url, options, never)?;
        let repeating = builders::build(&url, options, some)?;
        let creating = match options.single_writer {
            true => Creating::LookFirst(tokio::sync::Mutex::new(())),
            false => Creating::Conditional,
        };
        let (creates, reads) =
            (Semaphore::new(REQUESTS_IN_FLIGHT_MAX), Semaphore::new(REQUESTS_IN_FLIGHT_MAX));
        Ok(RemoteStore { url, once, repeating, creates, reads, creating })
    }

    fn path(&self, key: &ObjectKey) -> Path {
        let prefix = self.url.prefix.as_str();
        Path::from(if prefix.is_empty() { key.as_str().to_owned() } else { format!("{prefix}/{key}") })
    }

    fn sort_out(&self, asked: Asked, key: &ObjectKey, error: object_store::Error) -> StoreError {
        sort_out(&self.url, asked, key, error)
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let put = self.once.put_opts(&self.path(key), body.into(), mode.into()).await;
        put.map(drop).map_err(|error| self.sort_out(Asked::Create, key, error))
    }
}

/// A turn among `semaphore`'s, which is never closed.
async fn turn<'a>(
    semaphore: &'a Semaphore,
    key: &ObjectKey,
) -> Result<tokio::sync::SemaphorePermit<'a>, StoreError> {
    semaphore
        .acquire()
        .await
        .map_err(|error| StoreError::Unknown { key: key.clone(), reason: error.to_string() })
}

#[async_trait]
impl Store for RemoteStore {
    async fn create(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let _turn = turn(&self.creates, key).await?;
        match &self.creating {
            Creating::Conditional => self.put(key, body, PutMode::Create).await,
            Creating::LookFirst(one) => {
                let _one = one.lock().await;
                match self.once.head(&self.path(key)).await {
                    Ok(_) => Err(StoreError::AlreadyExists { key: key.clone() }),
                    Err(object_store::Error::NotFound { .. }) => {
                        self.put(key, body, PutMode::Overwrite).await
                    }
                    Err(error) => Err(self.sort_out(Asked::Create, key, error)),
                }
            }
        }
    }

    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        let _turn = turn(&self.reads, key).await?;
        let got = async { self.repeating.get(&self.path(key)).await?.bytes().await };
        got.await.map_err(|error| self.sort_out(Asked::Read, key, error))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.start >= range.end {
            // No backend takes an empty range; whether there is an object, this tells.
            let len = self.head(key).await?.len;
            let short = range.start > range.end || range.end > len;
            let short = short.then(|| StoreError::Short { key: key.clone(), wanted: range.end });
            return short.map_or(Ok(Bytes::new()), Err);
        }
        let _turn = turn(&self.reads, key).await?;
        let got = self.repeating.get_range(&self.path(key), range.clone()).await;
        let bytes = got.map_err(|error| self.sort_out(Asked::Range(range.end), key, error))?;
        // Stores answer a range that runs past the end with what there is.
        match bytes.len() as u64 == range.end - range.start {
            true => Ok(bytes),
            false => Err(StoreError::Short { key: key.clone(), wanted: range.end }),
        }
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let _turn = turn(&self.reads, key).await?;
        let head = self.repeating.head(&self.path(key)).await;
        let meta = head.map_err(|error| self.sort_out(Asked::Read, key, error))?;
        let modified_unix_micros = meta.last_modified.timestamp_micros();
        Ok(ObjectMeta { key: key.clone(), len: meta.size, modified_unix_micros })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let named = ObjectKey::new(if prefix.is_empty() { "repository" } else { prefix });
        let Some(key) = named else {
            let reason = format!("{prefix:?} is no prefix of object names");
            return Err(StoreError::Url { url: self.url(), reason });
        };
        let _turn = turn(&self.reads, &key).await?;
        let below = match prefix.is_empty() {
            true => Path::from(self.url.prefix.as_str()),
            false => self.path(&key),
        };
        let own = self.url.prefix.as_str();
        let listed = self.repeating.list(Some(&below)).try_filter_map(|meta| async move {
            let path = meta.location.as_ref();
            let relative = if own.is_empty() {
                Some(path)
            } else {
                path.strip_prefix(own).and_then(|p| p.strip_prefix('/'))
            };
            // What is no object's name is not ours.
            let key = relative.and_then(ObjectKey::new);
            let modified_unix_micros = meta.last_modified.timestamp_micros();
            Ok(key.map(|key| ObjectMeta { key, len: meta.size, modified_unix_micros }))
        });
        let mut found: Vec<_> =
            listed.try_collect().await.map_err(|error| self.sort_out(Asked::Read, &key, error))?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let _turn = turn(&self.reads, key).await?;
        match self.repeating.delete(&self.path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.sort_out(Asked::Delete, key, error)),
        }
    }

    fn url(&self) -> String {
        self.url.to_string()
    }
}

#[cfg(test)]
mod tests;
