//! Manifests as objects: writing one for a backup, reading its files back in order, walking every chunk it needs.
//! Spec: formats/manifest.md. What is read is checked: order, paths, lengths.
//! Memory of a builder: the encoded entries, about 100 bytes a file and 32 more for each chunk of a small one, so 150 MB for a
//! million files; of a reader: a few pages.

mod check;
mod runs;

pub use check::{block_map, check_entry};
pub use runs::RunBuilder;

use super::chunks::{ChunkReader, ChunkWriter};
use super::error::RepoError;
use super::repository::Created;
use super::{Cluster, layout};
use crate::base::{BackupId, ChunkId, ObjectKey, crc32c};
use crate::codec::object::Finished;
use crate::format::Reader;
use crate::format::header::ObjectKind;
use crate::format::manifest::{
    ContentRun, FRAME_PAGES_MAX, FileEntry, ManifestMeta, ManifestPage, ManifestPages, PAGE_FILES_MAX,
    PageRef, RunKind,
};
use crate::format::record::{Field, Record};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};

/// A page may end where the path says so once it has this many files: what is added or removed then moves few pages.
const PAGE_FILES_MIN: usize = 64;
/// One path in so many ends a page.
const PAGE_END_ODDS: u32 = 128;
/// Files that differ in every backup: each is a page of its own, so that an idle cluster's other pages stay.
const EVER_NEW: [&str; 2] = ["backup_label", "global/pg_control"];
/// Pages and maps read ahead.
const READ_AHEAD: usize = 8;

/// Collects the files of a backup in any order.
#[derive(Debug, Default)]
pub struct ManifestBuilder {
    encoded: Vec<u8>,
    starts: Vec<u64>,
}

impl ManifestBuilder {
    /// Adds a file.
    pub fn add(&mut self, entry: &FileEntry) {
        self.starts.push(self.encoded.len() as u64);
        self.encoded.extend_from_slice(&entry.encode());
    }

    /// Files so far.
    pub fn file_count(&self) -> u64 {
        self.starts.len() as u64
    }

    /// Sorts the files, and stores them as pages. The same files give the same pages, whatever their order was.
    ///
    /// # Errors
    /// What befell `chunks`. Two files of one path are [`RepoError::Conflict`].
    pub async fn finish(mut self, chunks: &mut ChunkWriter) -> Result<Vec<PageRef>, RepoError> {
        let encoded = std::mem::take(&mut self.encoded);
        let path_at = |start: &u64| path_of(encoded.get(*start as usize..).unwrap_or_default());
        self.starts.sort_unstable_by_key(path_at);
        let (mut pages, mut page) = (Vec::new(), Vec::new());
        for (number, start) in self.starts.iter().enumerate() {
            let entry = decode_at(&encoded, *start);
            let next = self.starts.get(number + 1).map(path_at);
            if next == Some(entry.path.as_bytes()) {
                return Err(RepoError::Conflict { reason: format!("the server sent {} twice", entry.path) });
            }
            let ends = next.is_none_or(|next| ends_page(page.len() + 1, &entry.path, next));
            page.push(entry);
            if ends {
                let files = std::mem::take(&mut page);
                let (file_count, first) =
                    (files.len() as u32, files.first().map(|f: &FileEntry| f.path.clone()));
                let chunk = chunks.put(Bytes::from(ManifestPage { files }.encode())).await?;
                pages.push(PageRef { chunk, file_count, first: first.unwrap_or_default() });
            }
        }
        Ok(pages)
    }
}

/// Whether a page of `files` files ends after `path`. Depends on the paths alone, so that the same files are cut alike.
fn ends_page(files: usize, path: &str, next: &[u8]) -> bool {
    let folder = |path: &[u8]| path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let (own, other) = (path.as_bytes(), next);
    let leaves = own.get(..folder(own)) != other.get(..folder(other));
    let chosen = crc32c::crc32c(own).is_multiple_of(PAGE_END_ODDS);
    let alone = |path: &[u8]| EVER_NEW.iter().any(|name| name.as_bytes() == path);
    files >= PAGE_FILES_MAX || alone(own) || alone(other) || (files >= PAGE_FILES_MIN && (leaves || chosen))
}

/// The path at the start of an encoded entry: its first field.
fn path_of(encoded: &[u8]) -> &[u8] {
    let Some((len, rest)) = encoded.split_first_chunk::<4>() else { return &[] };
    rest.get(..u32::from_le_bytes(*len) as usize).unwrap_or_default()
}

fn decode_at(encoded: &[u8], start: u64) -> FileEntry {
    let mut from = Reader::new("file entry", encoded.get(start as usize..).unwrap_or_default());
    match FileEntry::get(&mut from) {
        Ok(entry) => entry,
        Err(error) => unreachable!("encoded by ourselves: {error}"),
    }
}

/// A manifest: everything but the files, and where the files are.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Everything but the files.
    pub meta: ManifestMeta,
    /// The pages of files, in order.
    pub pages: Vec<PageRef>,
}

impl Manifest {
    /// Creates the manifest object of `self.meta.id`. Durable on return; commits nothing. Returns its length.
    ///
    /// # Errors
    /// [`RepoError::Conflict`] when another backup has the id.
    pub async fn create(&self, cluster: &Cluster) -> Result<u64, RepoError> {
        let taken = || RepoError::Conflict { reason: format!("another backup has the id {}", self.meta.id) };
        self.create_as(cluster, 0).await?.ok_or_else(taken)
    }

    /// Creates the manifest object `number` of `self.meta.id`. Durable on return; commits nothing. Returns its length; `None` when
    /// another has the name.
    pub async fn create_as(&self, cluster: &Cluster, number: u32) -> Result<Option<u64>, RepoError> {
        let key = layout::manifest(cluster.name(), &self.meta.id, number);
        let finished = self.seal(cluster, &key);
        match cluster.repo().create(&key, &finished.bytes).await? {
            Created::Ours => Ok(Some(finished.bytes.len() as u64)),
            Created::Taken(_) => Ok(None),
        }
    }

    fn seal(&self, cluster: &Cluster, key: &ObjectKey) -> Finished {
        let mut writer = cluster.repo().writer(ObjectKind::Manifest, key, [0; 16], 0, 0);
        for pages in self.pages.chunks(FRAME_PAGES_MAX) {
            let plain = ManifestPages { pages: pages.to_vec() }.encode();
            let id = cluster.repo().chunk_id(&plain);
            writer.add(&plain, id, 0);
        }
        writer.finish(self.meta.encode())
    }

    /// Reads the manifest of `id`; `number` is what the index says of it.
    pub async fn open(cluster: &Cluster, id: &BackupId, number: u32) -> Result<Manifest, RepoError> {
        let key = layout::manifest(cluster.name(), id, number);
        let object = cluster.repo().read_object(&key, ObjectKind::Manifest).await?;
        let meta: ManifestMeta = object.meta().map_err(|error| RepoError::open(&key, error))?;
        if meta.id != *id || meta.cluster != *cluster.name() {
            return Err(RepoError::damage(
                &key,
                format!("says it is backup {} of {}", meta.id, meta.cluster),
            ));
        }
        let mut pages = Vec::new();
        for number in 0..object.directory().frames.len() {
            let plain = object
                .chunk(number, &*cluster.repo().keys())
                .map_err(|error| RepoError::open(&key, error))?;
            pages
                .extend(ManifestPages::decode(&plain).map_err(|error| RepoError::damage(&key, error))?.pages);
        }
        let files: u64 = pages.iter().map(|page| u64::from(page.file_count)).sum();
        if files != meta.file_count {
            return Err(RepoError::damage(
                &key,
                format!("{files} files in its pages, not {}", meta.file_count),
            ));
        }
        Ok(Manifest { meta, pages })
    }

    /// Its files page by page, in order of path, read ahead. Every entry is checked: safe paths, strictly ascending, and
    /// runs that add up. After an error the stream goes on with the next page.
    pub fn files<'a>(
        &'a self,
        chunks: &'a ChunkReader,
    ) -> impl Stream<Item = Result<Vec<FileEntry>, RepoError>> + 'a {
        let read = move |number: usize| self.page(number, chunks);
        stream::iter((0..self.pages.len()).map(read)).buffered(READ_AHEAD)
    }

    /// The files of page `number`; none of a page that is not there.
    pub async fn page(&self, number: usize, chunks: &ChunkReader) -> Result<Vec<FileEntry>, RepoError> {
        let Some(page) = self.pages.get(number) else { return Ok(Vec::new()) };
        let next = self.pages.get(number + 1).map(|page| page.first.as_str());
        let plain = chunks.read(page.chunk).await?;
        check::decode_page(&plain, page, next).map_err(|reason| self.damage(chunks, reason))
    }

    /// The runs of the block map `id`, which stands for `len` bytes.
    pub async fn map(
        &self,
        id: ChunkId,
        len: u64,
        chunks: &ChunkReader,
    ) -> Result<Vec<ContentRun>, RepoError> {
        let map = chunks.read(id).await?;
        block_map(&map, len).map_err(|reason| self.damage(chunks, format!("block map {id}: {reason}")))
    }

    /// The first file whose path is `from` or comes after it.
    pub async fn first_from(&self, chunks: &ChunkReader, from: &str) -> Result<Option<FileEntry>, RepoError> {
        let at = self.pages.partition_point(|page| page.first.as_str() <= from).saturating_sub(1);
        // The file may be the first of the page after.
        for (number, page) in self.pages.iter().enumerate().skip(at).take(2) {
            let next = self.pages.get(number + 1).map(|page| page.first.as_str());
            let plain = chunks.read(page.chunk).await?;
            let files =
                check::decode_page(&plain, page, next).map_err(|reason| self.damage(chunks, reason))?;
            if let Some(found) = files.into_iter().find(|file| file.path.as_str() >= from) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What `entry` is made of, block maps resolved: runs of chunks and zeros in order.
    pub async fn runs(&self, chunks: &ChunkReader, entry: &FileEntry) -> Result<Vec<ContentRun>, RepoError> {
        let resolve = |run: &ContentRun| {
            let run = run.clone();
            async move {
                match (run.kind, run.chunks.first()) {
                    (RunKind::Map, Some(id)) => {
                        let map = chunks.read(*id).await?;
                        block_map(&map, run.len)
                            .map_err(|reason| self.damage(chunks, format!("{}: {reason}", entry.path)))
                    }
                    _ => Ok(vec![run]),
                }
            }
        };
        let resolved: Vec<Vec<ContentRun>> =
            stream::iter(entry.content.iter().map(resolve)).buffered(READ_AHEAD).try_collect().await?;
        Ok(resolved.into_iter().flatten().collect())
    }

    /// Every chunk the backup needs: pages, block maps, content; some more than once.
    pub async fn visit_chunks(
        &self,
        chunks: &ChunkReader,
        mut visit: impl FnMut(&ChunkId),
    ) -> Result<(), RepoError> {
        self.pages.iter().for_each(|page| visit(&page.chunk));
        let mut pages = std::pin::pin!(self.files(chunks));
        while let Some(files) = pages.next().await {
            for entry in files? {
                entry.content.iter().flat_map(|run| &run.chunks).for_each(&mut visit);
                if entry.content.iter().any(|run| run.kind == RunKind::Map) {
                    let runs = self.runs(chunks, &entry).await?;
                    runs.iter().flat_map(|run| &run.chunks).for_each(&mut visit);
                }
            }
        }
        Ok(())
    }

    fn damage(&self, chunks: &ChunkReader, reason: String) -> RepoError {
        RepoError::damage(&layout::manifest(chunks.cluster().name(), &self.meta.id, 0), reason)
    }
}

#[cfg(test)]
mod tests;
