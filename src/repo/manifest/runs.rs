//! What a file is made of, collected while its chunks come: a few runs in place, or block maps.
//! Maps end at fixed offsets of the file, so that a change moves no other map.

use crate::base::ChunkId;
use crate::format::manifest::{
    BLOCK_MAP_CHUNKS_MAX, BlockMap, CHUNK_BYTES, ContentRun, INLINE_CHUNKS_MAX, RunKind,
};
use crate::format::record::Record;
use crate::repo::RepoError;
use crate::repo::chunks::ChunkWriter;
use bytes::Bytes;

/// Collects the runs of one file.
#[derive(Debug, Default)]
pub struct RunBuilder {
    maps: Vec<ContentRun>,
    runs: Vec<ContentRun>,
    /// Chunks and as many zeros as a chunk holds, since the last map.
    slots: usize,
    chunk_count: usize,
}

impl RunBuilder {
    /// The next chunk of the file: [`CHUNK_BYTES`] of it, or its last bytes.
    pub async fn chunk(
        &mut self,
        id: ChunkId,
        len: usize,
        chunks: &mut ChunkWriter,
    ) -> Result<(), RepoError> {
        self.chunk_count += 1;
        match self.runs.last_mut() {
            Some(run) if run.kind == RunKind::Chunks => {
                run.len += len as u64;
                run.chunks.push(id);
            }
            _ => self.runs.push(ContentRun { kind: RunKind::Chunks, len: len as u64, chunks: vec![id] }),
        }
        self.slot(chunks).await
    }

    /// The next [`CHUNK_BYTES`] of the file, or its last bytes, are zeros.
    pub async fn zeros(&mut self, len: usize, chunks: &mut ChunkWriter) -> Result<(), RepoError> {
        match self.runs.last_mut() {
            Some(run) if run.kind == RunKind::Zeros => run.len += len as u64,
            _ => self.runs.push(ContentRun { kind: RunKind::Zeros, len: len as u64, chunks: Vec::new() }),
        }
        self.slot(chunks).await
    }

    async fn slot(&mut self, chunks: &mut ChunkWriter) -> Result<(), RepoError> {
        self.slots += 1;
        if self.slots == BLOCK_MAP_CHUNKS_MAX { self.end_map(chunks).await } else { Ok(()) }
    }

    async fn end_map(&mut self, chunks: &mut ChunkWriter) -> Result<(), RepoError> {
        self.slots = 0;
        let map = BlockMap { runs: std::mem::take(&mut self.runs) };
        let len = map.runs.iter().map(|run| run.len).sum();
        match map.runs.as_slice() {
            [] => {}
            // All zeros say so themselves.
            [run] if run.kind == RunKind::Zeros => match self.maps.last_mut() {
                Some(last) if last.kind == RunKind::Zeros => last.len += len,
                _ => self.maps.push(run.clone()),
            },
            _ => {
                let id = chunks.put(Bytes::from(map.encode())).await?;
                self.maps.push(ContentRun { kind: RunKind::Map, len, chunks: vec![id] });
            }
        }
        Ok(())
    }

    /// The end of the file.
    pub async fn finish(mut self, chunks: &mut ChunkWriter) -> Result<Vec<ContentRun>, RepoError> {
        if self.maps.is_empty() && self.chunk_count <= INLINE_CHUNKS_MAX {
            return Ok(self.runs);
        }
        self.end_map(chunks).await?;
        Ok(self.maps)
    }
}

const _: () = assert!(INLINE_CHUNKS_MAX < BLOCK_MAP_CHUNKS_MAX);
const _: () =
    assert!(BLOCK_MAP_CHUNKS_MAX * CHUNK_BYTES == 1 << 30, "one map for a whole file of a relation");
