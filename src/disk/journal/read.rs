//! Reading WAL back out of journal files, frame by frame.

use super::cursor::{Begin, Cursor, Step, open_begin};
use super::{Journal, JournalError, JournalKeys, JournalOptions, JournalPosition, JournalRecord};
use crate::codec::journal::JournalOpener;
use crate::codec::read::Expect;
use crate::disk::Disk;
use crate::format::header::ObjectKind;
use crate::format::journal::{
    JOURNAL_BEGIN_BYTES, JOURNAL_HEAD_BYTES, JournalFrame, JournalFrameKind, journal_file_name, journal_place,
};
use bytes::Bytes;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

/// Yields the records of a journal, as far as they were durable or recovered when it was made. It stands apart from the journal:
/// appending goes on beside it; a file that is trimmed meanwhile is an error when it is reached.
pub struct JournalReader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: JournalOptions,
    keys: JournalKeys,
    /// Numbers of the files to come, and how much of each counts.
    files: VecDeque<(u64, u64)>,
    open: Option<(Box<JournalOpener>, Cursor)>,
    from: Option<JournalPosition>,
}

impl std::fmt::Debug for JournalReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalReader")
            .field("dir", &self.dir)
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

impl JournalReader {
    pub(super) fn new(journal: &Journal, files: VecDeque<(u64, u64)>, from: Option<JournalPosition>) -> Self {
        JournalReader {
            disk: journal.disk.clone(),
            dir: journal.dir.clone(),
            options: journal.options.clone(),
            keys: journal.keys.0.clone(),
            files,
            open: None,
            from,
        }
    }

    /// The next record that ends past `from`, cut to begin there; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<JournalRecord>, JournalError> {
        loop {
            let Some((opener, cursor)) = &mut self.open else {
                match self.files.pop_front() {
                    Some((number, limit)) => self.open = self.open_file(number, limit).await?,
                    None => return Ok(None),
                }
                continue;
            };
            match cursor.next(opener).await? {
                Step::End => self.open = None,
                Step::NotWhole { offset, error } => {
                    return Err(JournalError::damage(
                        cursor.path(),
                        offset,
                        error,
                        "a frame that was whole before",
                    ));
                }
                Step::Frame { offset, plain } => {
                    let path = cursor.path();
                    let frame = JournalFrame::decode(&plain)
                        .map_err(|error| JournalError::damage(path, offset, error, "a journal frame"))?;
                    let (head, is_wal) = (frame.head.clone(), frame.head.kind == JournalFrameKind::Wal);
                    let record = JournalRecord {
                        timeline: head.timeline,
                        start: head.start,
                        server_time: head.server_time,
                        wal: Bytes::from(plain).slice(JOURNAL_HEAD_BYTES..),
                    };
                    if let Some(record) = record.past(self.from).filter(|_| is_wal) {
                        // A file may repeat what the one before it held past its last vouched byte.
                        self.from = Some(record.end());
                        return Ok(Some(record));
                    }
                }
            }
        }
    }

    async fn open_file(
        &self,
        number: u64,
        limit: u64,
    ) -> Result<Option<(Box<JournalOpener>, Cursor)>, JournalError> {
        if limit <= JOURNAL_BEGIN_BYTES as u64 {
            return Ok(None);
        }
        let path = self.dir.join(journal_file_name(number));
        let place = journal_place(&self.options.cluster, number);
        let expect = Expect {
            repository: Some(self.options.repository),
            key: Some(&place),
            kind: Some(ObjectKind::Journal),
        };
        match open_begin(&*self.disk, &path, limit, &*self.keys, &expect).await? {
            Begin::Whole(opener) => Ok(Some((opener, Cursor::new(self.disk.clone(), path, limit)))),
            Begin::Torn => {
                Err(JournalError::damage(&path, 0, "no whole beginning", "the one that was there before"))
            }
        }
    }
}

impl JournalRecord {
    /// What of it lies past `from`, if anything.
    fn past(mut self, from: Option<JournalPosition>) -> Option<JournalRecord> {
        let Some(from) = from else { return Some(self) };
        if self.end() <= from {
            return None;
        }
        if self.timeline == from.timeline && self.start < from.lsn {
            let skip = from.lsn.bytes_since(self.start) as usize;
            self.wal = self.wal.slice(skip..);
            self.start = from.lsn;
        }
        Some(self)
    }
}
