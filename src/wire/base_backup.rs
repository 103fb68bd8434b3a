//! What BASE_BACKUP answers: the rows around it, and from 15 on the messages inside its one CopyOut
//! (`n` archive, `m` manifest, `d` data, `p` progress; `backup/basebackup_copy.c`).

use super::{Row, WireError};
use crate::base::{Lsn, TimelineId};
use bytes::{Buf, Bytes};

/// A tablespace as BASE_BACKUP lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceRow {
    /// Its oid; `None` for the data directory itself, which comes last.
    pub oid: Option<u32>,
    /// Where it lies on the server; empty for the data directory.
    pub path: String,
    /// About how large it is, in KiB, when progress was asked for.
    pub size_kib: Option<u64>,
}

impl TablespaceRow {
    /// Reads `spcoid`, `spclocation`, `size`.
    pub fn from_row(row: &Row) -> Result<Self, WireError> {
        let oid = row.parse_opt::<u32>("spcoid")?;
        let path = row.by_name("spclocation").unwrap_or_default().to_owned();
        if oid.is_some() == path.is_empty() {
            return Err(WireError::malformed("tablespace row", format!("{row:?}")));
        }
        Ok(TablespaceRow { oid, path, size_kib: row.parse_opt::<u64>("size")? })
    }

    /// The archive's name as 15 and later call it: `base.tar`, or the oid.
    pub fn archive_name(&self) -> String {
        match self.oid {
            Some(oid) => format!("{oid}.tar"),
            None => "base.tar".to_owned(),
        }
    }
}

/// Reads the row before and after a backup: `recptr`, `tli`.
pub fn position_from_row(row: &Row) -> Result<(Lsn, TimelineId), WireError> {
    let lsn = row.parse::<Lsn>("recptr")?;
    match row.parse::<u32>("tli")? {
        0 => Err(WireError::malformed("tli", "timeline 0")),
        timeline => Ok((lsn, TimelineId(timeline))),
    }
}

/// A message inside the CopyOut of 15 and later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupMessage {
    /// An archive begins.
    Archive {
        /// `base.tar` or `<oid>.tar`.
        name: String,
        /// Where the tablespace lies on the server; empty for the data directory.
        path: String,
    },
    /// The backup_manifest begins.
    Manifest,
    /// Bytes of the archive or manifest that began last.
    Data(Bytes),
    /// Bytes done so far.
    Progress(u64),
}

impl BackupMessage {
    /// Decodes the body of one CopyData, without copying data.
    pub fn decode(mut body: Bytes) -> Result<Self, WireError> {
        let malformed = |reason: &str| WireError::malformed("base backup message", reason);
        let Some(kind) = body.first().copied() else { return Err(malformed("empty")) };
        body.advance(1);
        match kind {
            b'd' => Ok(BackupMessage::Data(body)),
            b'n' => {
                let mut strings = body.split(|byte| *byte == 0);
                let mut text = || strings.next().map(std::str::from_utf8);
                match (text(), text(), text(), text()) {
                    (Some(Ok(name)), Some(Ok(path)), Some(Ok("")), None) if !name.is_empty() => {
                        Ok(BackupMessage::Archive { name: name.to_owned(), path: path.to_owned() })
                    }
                    _ => Err(malformed("an archive's name and path are not two strings")),
                }
            }
            b'm' if body.is_empty() => Ok(BackupMessage::Manifest),
            b'p' if body.len() == 8 => match u64::try_from(body.get_i64()) {
                Ok(done) => Ok(BackupMessage::Progress(done)),
                Err(_) => Err(malformed("negative progress")),
            },
            other => Err(malformed(&format!("type {:?} of {} bytes", char::from(other), body.len()))),
        }
    }
}

/// The tablespace an archive name stands for: `None` for `base.tar`.
pub fn archive_oid(name: &str) -> Result<Option<u32>, WireError> {
    if name == "base.tar" {
        return Ok(None);
    }
    match name.strip_suffix(".tar").map(str::parse::<u32>) {
        Some(Ok(oid)) => Ok(Some(oid)),
        _ => {
            Err(WireError::malformed("archive name", format!("found {name:?}, expected base.tar or an oid")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(body: &'static [u8]) -> Result<BackupMessage, WireError> {
        BackupMessage::decode(Bytes::from_static(body))
    }

    #[test]
    fn reads_the_four_kinds() {
        let archive =
            |name: &str, path: &str| BackupMessage::Archive { name: name.into(), path: path.into() };
        assert_eq!(decode(b"nbase.tar\0\0").unwrap(), archive("base.tar", ""));
        assert_eq!(decode(b"n16385.tar\0/srv/ts 1\0").unwrap(), archive("16385.tar", "/srv/ts 1"));
        assert_eq!(decode(b"m").unwrap(), BackupMessage::Manifest);
        assert_eq!(decode(b"dxyz").unwrap(), BackupMessage::Data(Bytes::from_static(b"xyz")));
        assert_eq!(decode(b"p\0\0\0\0\0\0\x01\0").unwrap(), BackupMessage::Progress(256));
    }

    #[test]
    fn refuses_the_rest() {
        for body in
            [&b""[..], b"n", b"nbase.tar", b"nbase.tar\0", b"n\0\0", b"na\0b\0c\0", b"m\0", b"p\0", b"q"]
        {
            assert!(decode(body).is_err(), "{body:?}");
        }
        assert!(decode(b"p\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn archive_names_are_oids() {
        assert_eq!(
            (archive_oid("base.tar").unwrap(), archive_oid("16385.tar").unwrap()),
            (None, Some(16385))
        );
        for name in ["", "base", "x.tar", "../1.tar", "99999999999.tar"] {
            assert!(archive_oid(name).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bodies_are_errors_not_panics(kind in prop::sample::select(b"nmdp\0".to_vec()), tail in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut body = vec![kind];
            body.extend(&tail);
            let _ = BackupMessage::decode(Bytes::from(body));
        }
    }
}
