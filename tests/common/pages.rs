//! Pages out of a data directory that was copied: the base of delta tests and of their bench.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use walden::delta::{BlockId, Page, PageSource, Vouched, page_hash};

/// The key of the hashes that vouch for pages.
pub const PAGE_KEY: [u8; 32] = [7; 32];
/// Blocks of a relation file before the next one begins.
const RELATION_FILE_BLOCKS: u32 = 131_072;

/// Where a page is among those in memory, and its hash.
type Kept = Option<(usize, [u8; 32])>;

/// Pages of a data directory. Those asked for before are in memory, as a local cache would have them, with their hashes.
#[derive(Debug)]
pub struct DataDirectory {
    dir: PathBuf,
    files: HashMap<PathBuf, Option<File>>,
    pages: HashMap<BlockId, Kept>,
    /// One behind the other, as in a file.
    bytes: Vec<u8>,
}

impl DataDirectory {
    /// The data directory at `dir`.
    pub fn open(dir: &Path) -> Self {
        DataDirectory { dir: dir.to_owned(), files: HashMap::new(), pages: HashMap::new(), bytes: Vec::new() }
    }

    fn read(&mut self, block: &BlockId) -> Kept {
        let folder = match block.relation.tablespace {
            1663 => format!("base/{}", block.relation.database),
            1664 => "global".to_owned(),
            other => format!("pg_tblspc/{other}"),
        };
        let fork = ["", "_fsm", "_vm", "_init"].get(usize::from(block.fork))?;
        let part = match block.block / RELATION_FILE_BLOCKS {
            0 => String::new(),
            part => format!(".{part}"),
        };
        let path = self.dir.join(folder).join(format!("{}{fork}{part}", block.relation.relation));
        let file = self.files.entry(path.clone()).or_insert_with(|| File::open(path).ok()).as_ref()?;
        let mut page = [0; 8192];
        file.read_exact_at(&mut page, u64::from(block.block % RELATION_FILE_BLOCKS) * 8192).ok()?;
        self.bytes.extend_from_slice(&page);
        Some((self.bytes.len() - page.len(), page_hash(&PAGE_KEY, &page)))
    }

    fn page(&mut self, block: &BlockId) -> Option<(&Page, Vouched)> {
        let (at, hash) = match self.pages.get(block) {
            Some(known) => (*known)?,
            None => {
                let found = self.read(block);
                self.pages.insert(*block, found);
                found?
            }
        };
        Some((self.bytes.get(at..)?.first_chunk()?, Vouched::ByHash(hash)))
    }
}

impl PageSource for DataDirectory {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        let (kept, vouched) = self.page(block)?;
        *page = *kept;
        Some(vouched)
    }

    fn lend_page<'a>(
        &'a mut self,
        block: &BlockId,
        _expected: u32,
        _room: &'a mut Page,
    ) -> Option<(&'a Page, Vouched)> {
        self.page(block)
    }
}
