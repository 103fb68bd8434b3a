//! What the objects of a repository mean: their names, keys, roots, streams, index, and which WAL is covered.
//! Everything that decides is here or in pure code below; every commit goes through [`Cluster::commit`].

pub mod backups;
pub mod base_pages;
pub mod chain;
pub mod chunks;
pub mod cluster;
pub mod cost;
pub mod epochs;
pub mod error;
pub mod fences;
pub mod generations;
mod giving;
pub mod hold;
pub mod index;
pub mod index_cache;
pub mod keys;
pub mod layout;
pub mod lineage;
mod links;
pub mod listed;
pub mod losses;
pub mod manifest;
pub mod pending;
pub mod repository;
pub mod roots;
pub mod slots;
pub mod spans;
mod unseal;
pub mod verifications;
pub mod walmap;
pub mod walread;

pub use base_pages::BasePages;
pub use cluster::{Cluster, RootChange};
pub use epochs::EpochDecoder;
pub use error::RepoError;
pub use index::Index;
pub use index_cache::IndexCache;
pub use pending::{PendingError, Registration};
pub use repository::{Created, Repository};
pub use walmap::{WalMap, WalPiece, WalSource};
pub use walread::WalReader;
