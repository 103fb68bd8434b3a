//! Pages of the backup that was restored, read from its files, for WAL that is differences from them: what lies here need not be
//! fetched from the repository again.
//!
//! Recovery changes the files meanwhile. It changes a page when it replays a record, and the first record that changes one has its
//! image, so a page that WAL not yet handed out refers to is most often as it was restored. A page that is not has another check,
//! and comes from the repository.

use crate::base::BackupId;
use crate::delta::{BlockId, Page, page_check};
use crate::repo::base_pages::RelationFile;
use crate::repo::epochs::NearPages;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files kept open.
const FILES_MAX: usize = 256;

/// Pages of a restored data directory.
#[derive(Debug)]
pub struct RestoredPages {
    backup: BackupId,
    data_dir: PathBuf,
    /// `None` is one that is not here.
    files: HashMap<RelationFile, Option<File>>,
}

impl RestoredPages {
    /// The pages of `backup`, which was restored to `data_dir`.
    pub fn new(backup: BackupId, data_dir: PathBuf) -> Self {
        RestoredPages { backup, data_dir, files: HashMap::new() }
    }

    fn open(&self, file: &RelationFile) -> Option<File> {
        let folder = match file.tablespace() {
            Some(tablespace) => Some(version_folder(&self.data_dir, tablespace)?),
            None => None,
        };
        File::open(self.data_dir.join(file.path(folder.as_deref())?)).ok()
    }
}

/// The folder of the server's version in a tablespace.
fn version_folder(data_dir: &Path, tablespace: u32) -> Option<String> {
    let folder = format!("pg_tblspc/{tablespace}");
    let entries = std::fs::read_dir(data_dir.join(&folder)).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("PG_")).map(|name| format!("{folder}/{name}")).next()
}

impl NearPages for RestoredPages {
    fn backup(&self) -> &BackupId {
        &self.backup
    }

    fn page(&mut self, block: &BlockId, check: u32, page: &mut Page) -> bool {
        let (place, offset) = RelationFile::of(block);
        if self.files.len() >= FILES_MAX && !self.files.contains_key(&place) {
            self.files.clear();
        }
        if !self.files.contains_key(&place) {
            let file = self.open(&place);
            self.files.insert(place, file);
        }
        let Some(Some(file)) = self.files.get(&place) else { return false };
        file.read_exact_at(page, offset).is_ok() && page_check(page) == check
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::BLOCK_BYTES;
    use crate::format::wal::RelationRef;
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
        for tablespace in [1663, 77] {
            let check = page_check(&[2; BLOCK_BYTES]);
            assert!(pages.page(&block(tablespace, 1), check, &mut page) && page == [2; BLOCK_BYTES]);
            assert!(!pages.page(&block(tablespace, 1), check + 1, &mut page), "changed meanwhile");
            assert!(!pages.page(&block(tablespace, 2), check, &mut page), "past the end");
            assert!(!pages.page(&block(tablespace, 1 << 17), check, &mut page), "no such file");
        }
        assert!(!pages.page(&block(78, 0), 0, &mut page), "no such tablespace");
    }
}
