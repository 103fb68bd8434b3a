//! Opening a journal: which files count, how far each is whole, and what that leaves. Damage is told apart from the torn tail of a
//! crash by what later frames, and later files, knew to be durable.

use super::cursor::{Begin, Cursor, Step, frame_that_knew, open_begin};
use super::{
    JOURNAL_BUDGET_BYTES_MIN, Journal, JournalError, JournalKeys, JournalOptions, JournalPosition, Keys,
    LeftFile,
};
use crate::base::{Entropy, LsnRange, StreamId, TimelineId, Timestamp};
use crate::codec::journal::JournalOpener;
use crate::codec::read::Expect;
use crate::disk::Disk;
use crate::format::header::ObjectKind;
use crate::format::journal::{
    JOURNAL_BEGIN_BYTES, JournalFrame, JournalFrameKind, JournalPrevious, journal_file_name,
    journal_file_number, journal_place,
};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A run of WAL found in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The file's number.
    pub file_number: u64,
    /// The stream it was received for, and its writer's epoch.
    pub stream: StreamId,
    /// The writer's epoch.
    pub writer_epoch: u64,
    /// The timeline.
    pub timeline: TimelineId,
    /// The bytes.
    pub range: LsnRange,
    /// The server's clock when it sent the last of them.
    pub server_time: Timestamp,
}

/// What was found when a journal was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The runs, in order; runs of neighbouring files may join.
    pub found: Vec<Recovered>,
    /// Files that do not end with their last whole frame, and the byte at which that ends: what a crash leaves.
    pub torn: Vec<(PathBuf, u64)>,
    /// Whether the disk was too full to write the newest tail anew. It is in `found` and can be read, but lies past
    /// [`Journal::synced`]: it is to be stored elsewhere, or appended again.
    pub tail_not_durable: bool,
}

impl Journal {
    /// Opens the journal in `dir`, which is made when it is not there, and says what it holds. Everything found is durable again on
    /// return, but see [`Recovery::tail_not_durable`].
    pub async fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        mut options: JournalOptions,
        keys: JournalKeys,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Journal, Recovery), JournalError> {
        options.budget_bytes = options.budget_bytes.max(JOURNAL_BUDGET_BYTES_MIN);
        disk.create_dir(dir).await.map_err(|error| JournalError::io(dir, "making the directory", error))?;
        let lock = disk.lock(dir).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => JournalError::Busy { dir: dir.to_owned() },
            _ => JournalError::io(dir, "locking the directory", error),
        })?;
        let files = Files { disk: disk.clone(), dir, options: &options, keys: &keys };
        let (begun, mut left, number_next) = files.list().await?;
        let chain = link(dir, begun, &mut left)?;
        of_one_generation(&chain)?;
        let mut scan = Scan::default();
        for (file, limit) in &chain {
            files.scan(file, *limit, &mut scan).await?;
        }
        left.append(&mut scan.left);
        left.sort_by_key(|file| file.number);
        let newest = chain.last().map(|(file, _)| file);
        let mut journal = Journal {
            disk,
            dir: dir.to_owned(),
            keys: Keys(keys),
            entropy,
            _lock: lock,
            stream: newest.map(|file| {
                let header = file.opener.header();
                (StreamId(header.owner), header.writer_epoch)
            }),
            generation: newest.map(|file| file.opener.generation()),
            left: VecDeque::from(left),
            previous: JournalPrevious { number: newest.map_or(0, |file| file.number), len: scan.durable_len },
            number_next,
            current: None,
            pending: None,
            end: scan.durable_end,
            synced: scan.durable_end,
            busy: false,
            options,
        };
        let mut recovery = Recovery { found: scan.found, torn: scan.torn, tail_not_durable: false };
        if scan.end > scan.durable_end {
            journal.write_tail_anew(&mut recovery, scan.durable_end).await?;
        }
        Ok((journal, recovery))
    }

    /// Appends to a new file what no later sync vouches for. On a full disk it stays where it is, for whoever reads it.
    async fn write_tail_anew(
        &mut self,
        recovery: &mut Recovery,
        durable_end: Option<JournalPosition>,
    ) -> Result<(), JournalError> {
        let mut reader = self.read_from(durable_end);
        let written: Result<_, JournalError> = async {
            while let Some(record) = reader.next().await? {
                self.take_in(&record).await?;
            }
            self.sync().await?;
            self.leave_in_order().await
        }
        .await;
        match written {
            Err(JournalError::NoSpace { .. }) => {
                recovery.tail_not_durable = true;
                Ok(())
            }
            other => other,
        }
    }
}

/// A file whose beginning is whole.
struct BegunFile {
    number: u64,
    path: PathBuf,
    file_len: u64,
    opener: Box<JournalOpener>,
}

impl BegunFile {
    fn holds_nothing(&self) -> bool {
        self.file_len <= JOURNAL_BEGIN_BYTES as u64
    }
}

/// The directory's files.
struct Files<'a> {
    disk: Arc<dyn Disk>,
    dir: &'a Path,
    options: &'a JournalOptions,
    keys: &'a JournalKeys,
}

impl Files<'_> {
    /// Files that are begun, oldest first; those that are not, which hold nothing; and the next number.
    async fn list(&self) -> Result<(Vec<BegunFile>, Vec<LeftFile>, u64), JournalError> {
        let names =
            self.disk.list(self.dir).await.map_err(|e| JournalError::io(self.dir, "listing it", e))?;
        let (mut begun, mut torn, mut next) = (Vec::new(), Vec::new(), 1);
        for number in names.iter().filter_map(|name| journal_file_number(name.to_str()?)) {
            let path = self.dir.join(journal_file_name(number));
            let place = journal_place(&self.options.cluster, number);
            let expect = Expect {
                repository: Some(self.options.repository),
                key: Some(&place),
                kind: Some(ObjectKind::Journal),
            };
            let len = self.disk.len(&path).await;
            let file_len = len.map_err(|error| JournalError::io(&path, "looking at it", error))?;
            match open_begin(&*self.disk, &path, file_len, &**self.keys, &expect).await? {
                Begin::Whole(opener) => begun.push(BegunFile { number, path, file_len, opener }),
                Begin::Torn => torn.push(LeftFile { number, disk_bytes: file_len, limit: 0, end: None }),
            }
            next = next.max(number.saturating_add(1));
        }
        begun.sort_by_key(|file| file.number);
        Ok((begun, torn, next))
    }

    /// Reads the frames of one file, as many as are whole: at least `limit` bytes, which the file after it knew to be durable.
    async fn scan(&self, file: &BegunFile, limit: Option<u64>, scan: &mut Scan) -> Result<(), JournalError> {
        let mut cursor = Cursor::new(self.disk.clone(), file.path.clone(), file.file_len);
        let begin = file.opener.begin();
        scan.begin_file(file, JournalPosition { timeline: begin.timeline, lsn: begin.start });
        let whole_len = loop {
            match cursor.next(&file.opener).await? {
                Step::End => {
                    if let Some(limit) = limit.filter(|limit| file.file_len < *limit) {
                        let expected = format!("whole frames up to byte {limit}, as the file after it says");
                        return Err(JournalError::damage(&file.path, file.file_len, "the end", expected));
                    }
                    break file.file_len;
                }
                Step::Frame { offset, plain } => {
                    let damage = |error| JournalError::damage(&file.path, offset, error, "a journal frame");
                    scan.frame(file, offset, &JournalFrame::decode(&plain).map_err(damage)?)?;
                }
                Step::NotWhole { offset, error } => {
                    self.judge_break(file, limit, offset, cursor.frame(), error).await?;
                    scan.torn.push((file.path.clone(), offset));
                    break offset;
                }
            }
        };
        scan.end_file(file, limit, whole_len);
        Ok(())
    }

    /// A break is a torn tail, unless something written later knew the bytes there to be durable.
    async fn judge_break(
        &self,
        file: &BegunFile,
        limit: Option<u64>,
        offset: u64,
        frame: u64,
        error: crate::format::FormatError,
    ) -> Result<(), JournalError> {
        if let Some(limit) = limit {
            if offset >= limit {
                return Ok(());
            }
            let expected = format!("whole frames up to byte {limit}, as the file after it says");
            return Err(JournalError::damage(&file.path, offset, error, expected));
        }
        let len = usize::try_from(file.file_len - offset).unwrap_or(usize::MAX);
        let read = self.disk.read_range(&file.path, offset, len).await;
        let tail = read.map_err(|error| JournalError::io(&file.path, "reading its tail", error))?;
        match frame_that_knew(&file.opener, &tail, offset, frame) {
            None => Ok(()),
            Some(at) => {
                let expected =
                    format!("a whole frame, which was durable when the frame at byte {at} was written");
                Err(JournalError::damage(&file.path, offset, error, expected))
            }
        }
    }
}

/// Follows each file to the one before it, from the newest. Files outside of that chain hold nothing and go to `empty`, or
/// there is damage. Returns the chain, oldest first, with how much of each file counts.
fn link(
    dir: &Path,
    begun: Vec<BegunFile>,
    empty: &mut Vec<LeftFile>,
) -> Result<Vec<(BegunFile, Option<u64>)>, JournalError> {
    let mut chain: Vec<(BegunFile, Option<u64>)> = Vec::new();
    for file in begun.into_iter().rev() {
        let previous = chain.last().map(|(newer, _)| newer.opener.previous().clone());
        match previous {
            // That it was made is durable only once something was appended: until then no file may name it.
            None if file.holds_nothing() => {
                empty.push(LeftFile { number: file.number, disk_bytes: file.file_len, limit: 0, end: None });
            }
            None => chain.push((file, None)),
            Some(previous) if previous.number == file.number => chain.push((file, Some(previous.len))),
            Some(_) if file.holds_nothing() => {
                empty.push(LeftFile { number: file.number, disk_bytes: file.file_len, limit: 0, end: None });
            }
            Some(previous) if previous.number > file.number => {
                let path = dir.join(journal_file_name(previous.number));
                let expected = "the file that the one after it names";
                return Err(JournalError::damage(&path, 0, "no whole file", expected));
            }
            Some(previous) => {
                let expected = format!("a file that the one after it names, which names {}", previous.number);
                return Err(JournalError::damage(&file.path, 0, "records", expected));
            }
        }
    }
    let before_all = chain.last().map_or(0, |(oldest, _)| oldest.opener.previous().number);
    if let Some(file) = empty.iter().find(|file| file.number == before_all) {
        let path = dir.join(journal_file_name(file.number));
        return Err(JournalError::damage(
            &path,
            0,
            "no whole beginning",
            "the file that the one after it names",
        ));
    }
    chain.reverse();
    Ok(chain)
}

/// WAL of a generation begins only when nothing of the one before is left.
fn of_one_generation(chain: &[(BegunFile, Option<u64>)]) -> Result<(), JournalError> {
    for pair in chain.windows(2) {
        let [(before, _), (after, _)] = pair else { continue };
        let (found, expected) = (after.opener.generation(), before.opener.generation());
        if found != expected {
            let found = format!("generation {found} of the cluster");
            let expected = format!("generation {expected}, as in the file before");
            return Err(JournalError::damage(&after.path, 0, found, expected));
        }
    }
    Ok(())
}

/// What the files hold, as it is read.
#[derive(Default)]
struct Scan {
    found: Vec<Recovered>,
    torn: Vec<(PathBuf, u64)>,
    left: Vec<LeftFile>,
    /// Where the records end.
    end: Option<JournalPosition>,
    /// Where the next record of the file being read may begin.
    stands: Option<JournalPosition>,
    /// As far as frames state it, how much of the file being read was durable, and where records end there.
    durable_len: u64,
    durable_end: Option<JournalPosition>,
    /// Frames past `durable_len`: where they begin, and where their records end.
    unvouched: Vec<(u64, JournalPosition)>,
    file_end: Option<JournalPosition>,
}

impl Scan {
    fn begin_file(&mut self, file: &BegunFile, stands: JournalPosition) {
        self.durable_len = JOURNAL_BEGIN_BYTES as u64;
        if file.opener.previous().number != 0 {
            // What the file before holds past this was not vouched for when this file was begun; it counts, as far as it
            // is whole, until this file repeats it.
            self.durable_end = Some(stands);
            self.end = self.end.max(Some(stands));
        }
        self.stands = Some(stands);
        self.unvouched.clear();
        self.file_end = None;
    }

    fn frame(&mut self, file: &BegunFile, offset: u64, frame: &JournalFrame<'_>) -> Result<(), JournalError> {
        let head = &frame.head;
        if head.synced_len > offset {
            let expected = format!("at most {offset}, where it stands");
            return Err(JournalError::damage(
                &file.path,
                offset,
                format!("synced up to {}", head.synced_len),
                expected,
            ));
        }
        if head.kind == JournalFrameKind::Begin {
            return Err(JournalError::damage(&file.path, offset, "a second beginning", "WAL or a mark"));
        }
        self.durable_len = self.durable_len.max(head.synced_len);
        let vouched = self.unvouched.iter().take_while(|(at, _)| *at < self.durable_len).count();
        if let Some((_, end)) = self.unvouched.drain(..vouched).next_back() {
            self.durable_end = Some(end);
        }
        if head.kind != JournalFrameKind::Wal {
            return Ok(());
        }
        let start = JournalPosition { timeline: head.timeline, lsn: head.start };
        let range = LsnRange::new(head.start, head.start.saturating_add(frame.body.len() as u64));
        let end = JournalPosition { lsn: range.end, ..start };
        if let Some(before) = self.stands.filter(|before| *before > start) {
            let expected = format!("WAL from {before} on");
            return Err(JournalError::damage(&file.path, offset, format!("WAL at {start}"), expected));
        }
        self.stands = Some(end);
        self.file_end = Some(end);
        self.unvouched.push((offset, end));
        // What the file before held already, and this one repeats, is there once.
        let known = self.end.filter(|known| known.timeline == start.timeline && known.lsn > start.lsn);
        let from = known.map_or(range.start, |known| known.lsn.min(range.end));
        if from < range.end {
            self.add(file, head.timeline, LsnRange::new(from, range.end), head.server_time);
        }
        self.end = self.end.max(Some(end));
        Ok(())
    }

    fn add(&mut self, file: &BegunFile, timeline: TimelineId, range: LsnRange, server_time: Timestamp) {
        match self.found.last_mut() {
            Some(last)
                if last.file_number == file.number
                    && last.timeline == timeline
                    && last.range.end == range.start =>
            {
                last.range.end = range.end;
                last.server_time = server_time;
            }
            _ => self.found.push(Recovered {
                file_number: file.number,
                stream: StreamId(file.opener.header().owner),
                writer_epoch: file.opener.header().writer_epoch,
                timeline,
                range,
                server_time,
            }),
        }
    }

    fn end_file(&mut self, file: &BegunFile, limit: Option<u64>, whole_len: u64) {
        if let Some(limit) = limit {
            self.durable_len = limit;
        }
        let (number, disk_bytes) = (file.number, file.file_len);
        self.left.push(LeftFile { number, disk_bytes, limit: whole_len, end: self.file_end });
    }
}
