//! Checks of what a manifest says, before anybody acts on it. Pure. A path never leaves its directory, a run is as long as
//! its chunks can be, runs add up to their file.

use crate::format::manifest::{
    BLOCK_MAP_CHUNKS_MAX, BlockMap, CHUNK_BYTES, ContentRun, FileEntry, FileKind, ManifestPage,
    PAGE_FILES_MAX, PageRef, RunKind,
};
use crate::format::record::Record;

/// Reads a page and checks it against what refers to it; `next` is the path at which the next page starts.
pub(super) fn decode_page(
    plain: &[u8],
    page: &PageRef,
    next: Option<&str>,
) -> Result<Vec<FileEntry>, String> {
    let files = ManifestPage::decode(plain).map_err(|error| error.to_string())?.files;
    if files.len() != page.file_count as usize || files.len() > PAGE_FILES_MAX {
        return Err(format!(
            "{} files in the page at {:?}, not {}",
            files.len(),
            page.first,
            page.file_count
        ));
    }
    if files.first().map(|file| &file.path) != Some(&page.first) {
        return Err(format!("the page at {:?} begins elsewhere", page.first));
    }
    let paths = files.iter().map(|file| file.path.as_str());
    let after = paths.clone().skip(1).chain(next);
    if let Some((before, after)) =
        paths.zip(after).find(|(before, after)| before.as_bytes() >= after.as_bytes())
    {
        return Err(format!("{after:?} comes after {before:?}"));
    }
    files.iter().try_for_each(check_entry)?;
    Ok(files)
}

/// Checks one entry: a path that stays inside, runs that add up.
pub fn check_entry(entry: &FileEntry) -> Result<(), String> {
    let path = &entry.path;
    let inside = path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
    if !inside {
        return Err(format!("{path:?} is no path inside a data directory"));
    }
    if entry.mode & !0o7777 != 0 {
        return Err(format!("{path:?} has mode {:o}", entry.mode));
    }
    let fits = match entry.kind {
        FileKind::Regular => entry.link.is_empty(),
        FileKind::Directory => entry.link.is_empty() && entry.len == 0,
        FileKind::Link => !entry.link.is_empty() && !entry.link.contains('\0') && entry.len == 0,
    };
    if !fits {
        return Err(format!(
            "{path:?}, {:?}, has {} bytes and target {:?}",
            entry.kind, entry.len, entry.link
        ));
    }
    check_runs(&entry.content, entry.len).map_err(|reason| format!("{path:?}: {reason}"))
}

/// Reads a block map that stands for `len` bytes.
pub fn block_map(plain: &[u8], len: u64) -> Result<Vec<ContentRun>, String> {
    let runs = BlockMap::decode(plain).map_err(|error| error.to_string())?.runs;
    let chunk_count: usize = runs.iter().map(|run| run.chunks.len()).sum();
    if chunk_count > BLOCK_MAP_CHUNKS_MAX || runs.iter().any(|run| run.kind == RunKind::Map) {
        return Err(format!("a block map of {chunk_count} chunks, or of other maps"));
    }
    check_runs(&runs, len)?;
    Ok(runs)
}

fn check_runs(runs: &[ContentRun], len: u64) -> Result<(), String> {
    let mut sum = 0u64;
    for run in runs {
        let room = (run.chunks.len() as u64).saturating_mul(CHUNK_BYTES as u64);
        let fits = match run.kind {
            RunKind::Chunks => run.len <= room && run.len.saturating_add(CHUNK_BYTES as u64) > room,
            RunKind::Map => run.chunks.len() == 1,
            RunKind::Zeros => run.chunks.is_empty(),
        };
        if !fits || run.len == 0 {
            return Err(format!(
                "a run of {} bytes in {} chunks ({:?})",
                run.len,
                run.chunks.len(),
                run.kind
            ));
        }
        sum = sum.checked_add(run.len).ok_or("runs of more bytes than 64 bits count")?;
    }
    if sum == len { Ok(()) } else { Err(format!("its runs hold {sum} bytes, not {len}")) }
}
