//! The bytes to show, and the keys to open them with.

use crate::cli::Cli;
use bytes::Bytes;
use std::io;
use std::path::Path;
use std::sync::Arc;
use walden::base::{Anonymous, Env, ObjectKey};
use walden::codec::{Keyring, Unlock};
use walden::disk::{OsEntropy, SystemClock};
use walden::format::envelope::PlainObject;
use walden::format::keyslot::KeySlot;
use walden::operate::settings::{Given, Settings};
use walden::operate::{Exit, Failure, config};
use walden::repo::Repository;
use walden::store::{self, Store};

/// The longest file that is read. No object of ours comes near it.
const FILE_BYTES_MAX: u64 = 2 << 30;

/// What is to be shown.
pub struct Loaded {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its name in the repository, as far as the path says.
    pub key: Option<ObjectKey>,
    /// What was given to open key slots with.
    pub unlock: Option<Unlock>,
    /// The secrets of the repository.
    pub keys: Option<Keyring>,
}

/// Reads the file, from the disk or else from the repository, and opens the repository's keys when a secret was given.
pub async fn load(cli: &Cli) -> Result<Loaded, Failure> {
    let environment = Given::from_env(&|name| std::env::var(name).ok());
    let settings = Settings::resolve(&cli.given(), &environment, &config::load(cli.config.as_deref())?)?;
    let repository = settings.repository().ok();
    let store = match repository {
        Some(table) => Some(store::open(&table.url, &table.store_options())?),
        None => None,
    };
    let (bytes, key) = read(&cli.file, store.as_deref()).await?;
    let source = repository.and_then(|table| table.secret.clone()).or_else(|| cli.secret());
    let unlock = match source {
        Some(source) => Some(source.unlock()?),
        None => None,
    };
    let is_slot = bytes.starts_with(&KeySlot::MAGIC);
    let keys = match (&store, &unlock) {
        // A slot is opened by itself; the repository may have none that opens.
        (Some(store), Some(unlock)) if !is_slot => {
            let env = Env {
                clock: Arc::new(SystemClock),
                entropy: Arc::new(OsEntropy),
                scratch: Arc::new(Anonymous),
            };
            let repository = Repository::open(Arc::clone(store), unlock, env).await?;
            Some(Keyring::clone(&*repository.keys_of(&bytes).await?))
        }
        _ => None,
    };
    Ok(Loaded { bytes, key, unlock, keys })
}

async fn read(file: &str, store: Option<&dyn Store>) -> Result<(Bytes, Option<ObjectKey>), Failure> {
    let failed = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Usage,
        };
        Failure::new(exit, format!("{file}: {error}"))
    };
    match std::fs::metadata(file) {
        Ok(meta) if !meta.is_file() => Err(Failure::new(Exit::Usage, format!("{file} is not a file"))),
        Ok(meta) if meta.len() > FILE_BYTES_MAX => {
            Err(Failure::new(Exit::Usage, format!("{file} has {} bytes: no object is so long", meta.len())))
        }
        Ok(_) => Ok((std::fs::read(file).map_err(failed)?.into(), key_of(Path::new(file)))),
        Err(error) => match (store, ObjectKey::new(file)) {
            (Some(store), Some(key)) => Ok((store.get(&key).await?, Some(key))),
            _ => Err(failed(error)),
        },
    }
}

/// The name of an object by the path of its file: what follows the last `clusters` or `keys`.
fn key_of(path: &Path) -> Option<ObjectKey> {
    let parts: Vec<&str> = path.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
    let start = parts.iter().rposition(|part| matches!(*part, "clusters" | "keys"))?;
    ObjectKey::new(parts.get(start..)?.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_where_in_the_repository_it_lies() {
        let key = |path: &str| key_of(Path::new(path)).map(|key| key.to_string());
        assert_eq!(key("/srv/clusters/a/clusters/shop/roots/1"), Some("clusters/shop/roots/1".into()));
        assert_eq!(key("keys/epochs/1/main"), Some("keys/epochs/1/main".into()));
        assert_eq!(key("/tmp/root.bin"), None);
    }
}
