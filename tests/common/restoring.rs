//! A restore of everything into a directory, without a server.

use std::path::Path;
use walden::disk::SecretSource;
use walden::restore::place::Existing;
use walden::restore::run::{ReachedBy, RestoreOptions};
use walden::restore::settings::Harmful;
use walden::restore::{Boundary, Request, Target, TimelineChoice};

/// Everything, on the newest timeline, into an empty directory.
pub fn options(target_dir: &Path) -> RestoreOptions {
    RestoreOptions {
        request: Request {
            target: Target::Latest,
            boundary: Boundary::Inclusive,
            timeline: TimelineChoice::Newest,
            backup: None,
        },
        target_dir: target_dir.to_owned(),
        wal_dir: None,
        config_dir: None,
        tablespaces: Vec::new(),
        action: None,
        existing: Existing::Refuse,
        harmful: Harmful::Disarm,
        repository: ReachedBy {
            url: "/srv/repo".into(),
            endpoint: None,
            region: None,
            secret: Some(SecretSource::KeyFile("/srv/key".into())),
        },
        binary: "/usr/bin/walden".into(),
        threads: 1,
    }
}
