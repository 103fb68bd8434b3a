//! Generations before the current one: what of the servers before the newest can still be restored.

use super::{BackupInfo, Snapshot, WindowInfo, backups, window};
use crate::base::Timestamp;
use crate::operate::failure::Failure;
use crate::repo::Cluster;
use crate::repo::backups::state_now;
use crate::restore::archive;
use crate::restore::generations::generations_with_backups;
use serde::Serialize;

/// A generation that is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OlderInfo {
    /// Its number.
    pub generation: u32,
    /// PostgreSQL's system identifier, as text.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub major_version: u32,
    /// What of it can be restored.
    pub window: WindowInfo,
    /// Its backups, oldest first.
    pub backups: Vec<BackupInfo>,
}

/// Those that have backups, oldest first.
pub async fn look(cluster: &Cluster, snapshot: &Snapshot, now: Timestamp) -> Result<Vec<OlderInfo>, Failure> {
    let mut all = Vec::new();
    for generation in generations_with_backups(&snapshot.index.backups) {
        if generation == snapshot.root.generation {
            continue;
        }
        let mut loaded = archive::load(cluster, snapshot, generation).await?;
        let segment_size = loaded.archive.segment_size;
        for backup in &mut loaded.archive.backups {
            backup.state = state_now(backup, &loaded.wal, segment_size);
        }
        all.push(OlderInfo {
            generation: generation.0,
            system_identifier: loaded.record.system_id.to_string(),
            major_version: loaded.record.major_version,
            window: window(&loaded.archive.window()?, &loaded, &snapshot.index.expired),
            backups: backups(snapshot, &loaded, now),
        });
    }
    Ok(all)
}
