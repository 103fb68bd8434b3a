//! Pages of the backup that was restored, read from its files, for WAL that is differences from them: what lies here need not be
//! fetched from the repository again.
//!
//! Recovery changes the files meanwhile. It changes a page when it replays a record, and the first record that changes one has its
//! image, so a page that WAL not yet handed out refers to is most often as it was restored. A page that is not has another check,
//! and comes from the repository.

use crate::base::BackupId;
use crate::base::limits::BLOCK_BYTES;
use crate::delta::{BlockId, Page, page_check};
use crate::format::wal::RelationRef;
use crate::repo::epochs::NearPages;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files kept open.
const FILES_MAX: usize = 256;
/// Blocks in one file of a relation.
const FILE_BLOCKS: u32 = 1 << 17;
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// Pages of a restored data directory.
#[derive(Debug)]
pub struct RestoredPages {
    backup: BackupId,
    data_dir: PathBuf,
    /// By relation, fork, and number of the file; `None` is one that is not here.
    files: HashMap<(RelationRef, u8, u32), Option<File>>,
}

impl RestoredPages {
    /// The pages of `backup`, which was restored to `data_dir`.
    pub fn new(backup: BackupId, data_dir: PathBuf) -> Self {
        RestoredPages { backup, data_dir, files: HashMap::new() }
    }

    fn path_of(&self, relation: RelationRef, fork: u8, number: u32) -> Option<PathBuf> {
        let RelationRef { tablespace, database, relation } = relation;
        let folder = match tablespace {
            GLOBAL_TABLESPACE => self.data_dir.join("global"),
            DEFAULT_TABLESPACE => self.data_dir.join("base").join(database.to_string()),
            _ => version_folder(&self.data_dir.join("pg_tblspc").join(tablespace.to_string()))?
                .join(database.to_string()),
        };
        let fork = match fork {
            0 => "",
            1 => "_fsm",
            2 => "_vm",
            3 => "_init",
            _ => return None,
        };
        let number = if number == 0 { String::new() } else { format!(".{number}") };
        Some(folder.join(format!("{relation}{fork}{number}")))
    }
}

/// The folder of the server's version in a tablespace.
fn version_folder(tablespace: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(tablespace).ok()?;
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("PG_"))
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).find(named)
}

impl NearPages for RestoredPages {
    fn backup(&self) -> &BackupId {
        &self.backup
    }

    fn page(&mut self, block: &BlockId, check: u32, page: &mut Page) -> bool {
        let place = (block.relation, block.fork, block.block / FILE_BLOCKS);
        if self.files.len() >= FILES_MAX && !self.files.contains_key(&place) {
            self.files.clear();
        }
        if !self.files.contains_key(&place) {
            let file = self.path_of(place.0, place.1, place.2).and_then(|path| File::open(path).ok());
            self.files.insert(place, file);
        }
        let Some(Some(file)) = self.files.get(&place) else { return false };
        let offset = u64::from(block.block % FILE_BLOCKS) * BLOCK_BYTES as u64;
        file.read_exact_at(page, offset).is_ok() && page_check(page) == check
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn block(tablespace: u32, block: u32) -> BlockId {
        BlockId { relation: RelationRef { tablespace, database: 5, relation: 16384 }, fork: 0, block }
    }

    #[test]
    fn a_page_is_given_only_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let folders = ["base/5", "pg_tblspc/77/PG_16_202307071/5"].map(|name| dir.path().join(name));
        let mut bytes = vec![1; BLOCK_BYTES];
        bytes.extend_from_slice(&[2; BLOCK_BYTES]);
        for folder in &folders {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("16384"), &bytes).unwrap();
        }
        let mut pages = RestoredPages::new("20261122T195501Z".parse().unwrap(), dir.path().to_owned());
        let mut page = [0; BLOCK_BYTES];
        for tablespace in [DEFAULT_TABLESPACE, 77] {
            let check = page_check(&[2; BLOCK_BYTES]);
            assert!(pages.page(&block(tablespace, 1), check, &mut page) && page == [2; BLOCK_BYTES]);
            assert!(!pages.page(&block(tablespace, 1), check + 1, &mut page), "changed meanwhile");
            assert!(!pages.page(&block(tablespace, 2), check, &mut page), "past the end");
            assert!(!pages.page(&block(tablespace, FILE_BLOCKS), check, &mut page), "no such file");
        }
        assert!(!pages.page(&block(78, 0), 0, &mut page), "no such tablespace");
    }
}
