//! BASE_BACKUP as one stream of events, the same for 14's dialect (one COPY per tablespace, archives without their two
//! closing zero blocks) and that of 15 and later (one COPY with messages inside).
//!
//! What is refused: a backup that ends with fewer archives than tablespaces, or without the manifest that was asked for.

use super::PgError;
use super::connection::Connection;
use crate::base::{Lsn, TimelineId};
use crate::wire::base_backup::{archive_oid, position_from_row};
use crate::wire::command::{self, Dialect};
use crate::wire::message::RowGatherer;
use crate::wire::{BackupMessage, Message, Row, WireError, limits};
use bytes::Bytes;

pub use crate::wire::TablespaceRow;
pub use crate::wire::command::{BaseBackupOptions, Checkpoint, ServerManifest};

/// The two zero blocks that end a tar archive; 14 leaves them to its client.
static TAR_END: [u8; 1024] = [0; 1024];

/// KiB a second that the server takes for MAX_RATE.
const RATE_KIB: std::ops::RangeInclusive<u32> = 32..=1_048_576;

/// What a base backup is made of, in this order: `Start`, `Tablespaces`, then for each archive `Archive` and its `Data`, then
/// `Manifest` pieces, then `End`. `Progress` may come anywhere between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseBackupEvent {
    /// The backup began: recovery must replay WAL from here.
    Start {
        /// The redo position of its checkpoint.
        lsn: Lsn,
        /// The timeline.
        timeline: TimelineId,
    },
    /// What will be sent; the data directory itself comes last.
    Tablespaces(Vec<TablespaceRow>),
    /// An archive begins.
    Archive {
        /// `base.tar` or `<oid>.tar`.
        name: String,
        /// The tablespace; `None` for the data directory.
        tablespace_oid: Option<u32>,
    },
    /// The next bytes of the archive, a tar that ends with two zero blocks.
    Data(Bytes),
    /// The next bytes of backup_manifest.
    Manifest(Bytes),
    /// Bytes the server has sent (15 and later).
    Progress(u64),
    /// The backup ended: recovery is consistent once WAL up to here is replayed.
    End {
        /// One past the last WAL it needs.
        lsn: Lsn,
        /// The timeline.
        timeline: TimelineId,
    },
}

/// A running base backup. Dropping it closes the connection, which ends the backup on the server.
#[derive(Debug)]
pub struct BaseBackupStream {
    connection: Connection,
    dialect: Dialect,
    wants_manifest: bool,
    state: State,
    rows: RowGatherer,
    tablespaces: Vec<TablespaceRow>,
    archives: usize,
    manifests: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The row with the start position comes.
    Start,
    /// The tablespace rows come.
    Tablespaces,
    /// A COPY comes, or the row with the end position.
    Between,
    /// Inside COPY, before the first archive (15 and later).
    Copy,
    Archive,
    Manifest,
    /// The end position was read.
    Ended,
    /// ReadyForQuery was read.
    Done,
    Failed,
}

impl Connection {
    /// Starts a base backup. The server does not verify checksums and does not wait for archiving; both are ours to do.
    pub async fn base_backup(mut self, options: &BaseBackupOptions) -> Result<BaseBackupStream, PgError> {
        let request = |what, reason: String| Err(PgError::Request { what, reason });
        match options.max_rate_kib {
            Some(rate) if !RATE_KIB.contains(&rate) => {
                let (least, most) = (RATE_KIB.start(), RATE_KIB.end());
                return request(
                    "maximum rate",
                    format!("{rate} KiB a second, PostgreSQL takes {least} to {most}"),
                );
            }
            _ => {}
        }
        if options.label.chars().any(char::is_control) {
            return request("backup label", "contains a control character".to_owned());
        }
        if options.incremental && self.server_version() < 170_000 {
            return request("incremental backup", "PostgreSQL knows it from 17 on".to_owned());
        }
        let dialect = self.dialect();
        self.send_command(&command::base_backup(dialect, options)).await?;
        Ok(BaseBackupStream {
            connection: self,
            dialect,
            wants_manifest: options.manifest != ServerManifest::None,
            state: State::Start,
            rows: RowGatherer::default(),
            tablespaces: Vec::new(),
            archives: 0,
            manifests: 0,
        })
    }

    /// Hands the server the manifest of an earlier backup, for an incremental one on this connection (17 and later).
    pub async fn upload_manifest(&mut self, manifest: &Bytes) -> Result<(), PgError> {
        const PIECE_BYTES: usize = 64 << 10;
        self.send_command("UPLOAD_MANIFEST").await?;
        let mut failure = None;
        loop {
            match self.message(limits::SQL_MESSAGE_BYTES_MAX).await? {
                Message::CopyIn => {
                    for piece in manifest.chunks(PIECE_BYTES) {
                        let protocol = |error: std::io::Error| PgError::Request {
                            what: "manifest",
                            reason: error.to_string(),
                        };
                        let data =
                            postgres_protocol::message::frontend::CopyData::new(piece).map_err(protocol)?;
                        data.write(self.writer.out());
                        self.writer.flush().await?;
                    }
                    postgres_protocol::message::frontend::copy_done(self.writer.out());
                    self.writer.flush().await?;
                }
                Message::CommandComplete(_) => {}
                Message::Error(error) => failure = Some(self.failure(error)?),
                Message::ReadyForQuery(_) => {
                    self.busy = false;
                    return failure.map_or(Ok(()), Err);
                }
                other => return Err(self.unexpected(&other, "CopyInResponse")),
            }
        }
    }
}

impl BaseBackupStream {
    /// The next event; `None` once all is read. Cancel-safe: a dropped call loses nothing. After an error there is no more.
    pub async fn next(&mut self) -> Result<Option<BaseBackupEvent>, PgError> {
        loop {
            let message = match self.state {
                State::Done => return Ok(None),
                State::Failed => {
                    return Err(PgError::closed(self.connection.host(), "the base backup has failed"));
                }
                _ => self.connection.message(limits::COPY_MESSAGE_BYTES_MAX).await,
            };
            let step = message.and_then(|message| self.take(message));
            match step {
                Ok(Step::More) => {}
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
    }

    /// The connection again, after `next` gave `None`.
    pub fn into_connection(self) -> Result<Connection, PgError> {
        match self.state {
            State::Done => Ok(self.connection),
            _ => Err(PgError::closed(self.connection.host(), "the base backup was given up")),
        }
    }

    /// What can interrupt the backup from elsewhere.
    pub fn cancel_token(&self) -> Option<super::CancelToken> {
        self.connection.cancel_token()
    }

    fn take(&mut self, message: Message) -> Result<Step, PgError> {
        match message {
            Message::Error(error) => Err(PgError::Server(Box::new(error))),
            message => self.step(message).map_err(|error| self.connection.facts.protocol(error)),
        }
    }

    /// What a message means in this state.
    fn step(&mut self, message: Message) -> Result<Step, WireError> {
        match (self.state, message) {
            (State::Start | State::Tablespaces | State::Between, Message::RowDescription(columns)) => {
                self.rows.describe(columns);
                Ok(Step::More)
            }
            (State::Start | State::Tablespaces | State::Between, Message::DataRow(values)) => {
                self.rows.push(values)?;
                Ok(Step::More)
            }
            (State::Start | State::Tablespaces | State::Between, Message::CommandComplete(_)) => {
                self.rows_complete()
            }
            (State::Ended, Message::CommandComplete(_)) => Ok(Step::More),
            (State::Ended, Message::ReadyForQuery(_)) => {
                self.state = State::Done;
                self.connection.busy = false;
                Ok(Step::More)
            }
            (State::Between, Message::CopyOut) => self.copy_begins(),
            (State::Archive | State::Manifest | State::Copy, Message::CopyDone) => Ok(self.copy_ends()),
            (State::Archive | State::Manifest | State::Copy, Message::CopyData(body)) => match self.dialect {
                Dialect::Keywords => Ok(self.data(body)),
                Dialect::Parenthesised => self.copy_message(body),
            },
            (State::Start, other) => Err(other.unexpected("the start position")),
            (State::Tablespaces, other) => Err(other.unexpected("tablespaces")),
            (State::Between, other) => Err(other.unexpected("an archive or the end position")),
            (State::Copy | State::Archive | State::Manifest, other) => Err(other.unexpected("CopyData")),
            (State::Ended | State::Done | State::Failed, other) => Err(other.unexpected("ReadyForQuery")),
        }
    }

    fn rows_complete(&mut self) -> Result<Step, WireError> {
        let rows = self.rows.take();
        match self.state {
            State::Start => {
                let (lsn, timeline) = only_position(&rows)?;
                self.state = State::Tablespaces;
                Ok(Step::Event(BaseBackupEvent::Start { lsn, timeline }))
            }
            State::Tablespaces => {
                self.tablespaces = rows.iter().map(TablespaceRow::from_row).collect::<Result<_, _>>()?;
                if self.tablespaces.iter().filter(|row| row.oid.is_none()).count() != 1 {
                    let reason = "the data directory is not listed once".to_owned();
                    return Err(WireError::Malformed { what: "tablespace rows", reason });
                }
                self.state = State::Between;
                Ok(Step::Event(BaseBackupEvent::Tablespaces(self.tablespaces.clone())))
            }
            _ => {
                let (lsn, timeline) = only_position(&rows)?;
                let wanted = (self.tablespaces.len(), usize::from(self.wants_manifest));
                if (self.archives, self.manifests) != wanted {
                    let reason = format!(
                        "{} archives and {} manifests, expected {} and {}",
                        self.archives, self.manifests, wanted.0, wanted.1
                    );
                    return Err(WireError::Malformed { what: "base backup", reason });
                }
                self.state = State::Ended;
                Ok(Step::Event(BaseBackupEvent::End { lsn, timeline }))
            }
        }
    }

    fn copy_begins(&mut self) -> Result<Step, WireError> {
        if self.dialect == Dialect::Parenthesised {
            self.state = State::Copy;
            return Ok(Step::More);
        }
        // 14: the archives come in the order of the rows, then the manifest.
        match self.tablespaces.get(self.archives) {
            Some(row) => {
                let event = BaseBackupEvent::Archive { name: row.archive_name(), tablespace_oid: row.oid };
                self.archives += 1;
                self.state = State::Archive;
                Ok(Step::Event(event))
            }
            None => {
                self.manifests += 1;
                self.state = State::Manifest;
                Ok(Step::More)
            }
        }
    }

    fn copy_ends(&mut self) -> Step {
        let ended = std::mem::replace(&mut self.state, State::Between);
        match (self.dialect, ended) {
            (Dialect::Keywords, State::Archive) => {
                Step::Event(BaseBackupEvent::Data(Bytes::from_static(&TAR_END)))
            }
            _ => Step::More,
        }
    }

    /// Bytes of whatever began last.
    fn data(&self, bytes: Bytes) -> Step {
        Step::Event(match self.state {
            State::Manifest => BaseBackupEvent::Manifest(bytes),
            _ => BaseBackupEvent::Data(bytes),
        })
    }

    /// A message inside the COPY of 15 and later.
    fn copy_message(&mut self, body: Bytes) -> Result<Step, WireError> {
        match BackupMessage::decode(body)? {
            BackupMessage::Data(_) if self.state == State::Copy => {
                let reason = "data before the first archive".to_owned();
                Err(WireError::Malformed { what: "base backup", reason })
            }
            BackupMessage::Data(bytes) => Ok(self.data(bytes)),
            BackupMessage::Progress(done) => Ok(Step::Event(BaseBackupEvent::Progress(done))),
            BackupMessage::Manifest => {
                self.manifests += 1;
                self.state = State::Manifest;
                Ok(Step::More)
            }
            BackupMessage::Archive { name, .. } => {
                let tablespace_oid = archive_oid(&name)?;
                if !self.tablespaces.iter().any(|row| row.oid == tablespace_oid) {
                    let reason = format!("archive {name:?} is of no tablespace listed");
                    return Err(WireError::Malformed { what: "base backup", reason });
                }
                self.archives += 1;
                self.state = State::Archive;
                Ok(Step::Event(BaseBackupEvent::Archive { name, tablespace_oid }))
            }
        }
    }
}

enum Step {
    More,
    Event(BaseBackupEvent),
}

fn only_position(rows: &[Row]) -> Result<(Lsn, TimelineId), WireError> {
    match rows {
        [row] => position_from_row(row),
        rows => {
            Err(WireError::Malformed { what: "position", reason: format!("{} rows, expected 1", rows.len()) })
        }
    }
}
