//! Objects: created if absent, read, listed, deleted, never overwritten.
//! The trait says what walden needs of a store and no more; one adapter serves every backend, and simulations bring their own.

mod local;
mod mapped;
mod open;
mod options;
mod probe;
mod remote;

pub use local::LocalStore;
pub use mapped::MappedObject;
pub use open::open;
pub use options::{Credentials, REQUEST_TIMEOUT, StoreOptions};
pub use probe::{probe_init, probe_start};
pub use remote::RemoteStore;

use crate::base::ObjectKey;
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;
use std::ops::Range;

/// What a store knows about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its name.
    pub key: ObjectKey,
    /// Its bytes.
    pub len: u64,
    /// Last-Modified, by the store's clock, in microseconds since 1970.
    pub modified_unix_micros: i64,
}

/// Why a store did not do what it was asked, by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("object {key}: not found")]
    NotFound {
        /// Which.
        key: ObjectKey,
    },
    /// `create` found one there.
    #[error("object {key}: exists already")]
    AlreadyExists {
        /// Which.
        key: ObjectKey,
    },
    /// Nobody knows whether it was done: a timeout, a cut connection, a 5xx. Read back before believing either.
    #[error("object {key}: outcome unknown: {reason}")]
    Unknown {
        /// Which.
        key: ObjectKey,
        /// What happened.
        reason: String,
    },
    /// The object ends before the bytes that were asked for: it is damaged, or what refers to it is.
    #[error("object {key}: ends before byte {wanted}, which a reference names")]
    Short {
        /// Which.
        key: ObjectKey,
        /// One past the last byte asked for.
        wanted: u64,
    },
    /// The object is there, and the medium under it does not give its bytes: damage, that a repair of the disk may undo.
    #[error("object {key}: cannot be read: {reason}")]
    Unreadable {
        /// Which.
        key: ObjectKey,
        /// What the operating system said.
        reason: String,
    },
    /// The store has no room.
    #[error("object {key}: no space left in the store: {reason}")]
    NoSpace {
        /// Which.
        key: ObjectKey,
        /// What the store said.
        reason: String,
    },
    /// The store refuses us; trying again will not help.
    #[error("store refuses access to {key}: {reason}")]
    Denied {
        /// Which.
        key: ObjectKey,
        /// What the store said.
        reason: String,
    },
    /// The URL or its options make no store.
    #[error("repository URL {url}: {reason}")]
    Url {
        /// The URL, without secrets.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store does not do what walden rests on.
    #[error("store {url}: {reason}")]
    Unfit {
        /// The URL, without secrets.
        url: String,
        /// What it did.
        reason: String,
    },
}

/// A repository's store.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Creates an object if there is none. Durable on `Ok`. `AlreadyExists` is the store's word; `Unknown` may be either.
    /// If dropped: no object, or the whole one.
    async fn create(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError>;

    /// The whole object.
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError>;

    /// The bytes of `range`, which lies inside the object.
    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Length and Last-Modified.
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError>;

    /// Objects whose key begins with `prefix` and `/`. For people, collection and `verify`; nothing that decides what is durable trusts it.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError>;

    /// Removes an object; `Ok` when there is none.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// The URL, without secrets.
    fn url(&self) -> String;
}
