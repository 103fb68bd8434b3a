//! backup_label, which PostgreSQL puts into a backup: where recovery starts. Pure. Shape: `build_backup_content` in `access/xlogbackup.c`.

use crate::base::Lsn;

/// The file's name in the data directory.
pub const BACKUP_LABEL: &str = "backup_label";
/// The most bytes it may have; PostgreSQL's own labels are at most 1 KiB long.
pub const LABEL_BYTES_MAX: usize = 64 << 10;

/// What a backup_label says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupLabel {
    /// The redo position of the checkpoint: where recovery starts.
    pub redo: Lsn,
    /// The checkpoint record.
    pub checkpoint: Lsn,
}

/// A backup_label that does not say where recovery starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backup_label: found {found}, expected {expected}")]
pub struct LabelError {
    /// What it says.
    pub found: String,
    /// What it should.
    pub expected: &'static str,
}

impl BackupLabel {
    /// Reads a backup_label.
    pub fn parse(content: &[u8]) -> Result<Self, LabelError> {
        let wrong = |found: String, expected| LabelError { found, expected };
        if content.len() > LABEL_BYTES_MAX {
            return Err(wrong(format!("{} bytes", content.len()), "at most 64 KiB"));
        }
        // The label itself is in the server's encoding; the lines read here are ASCII.
        let text = String::from_utf8_lossy(content);
        let position = |name: &'static str, expected| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let word = line
                .and_then(|rest| rest.trim_start_matches(':').split_whitespace().next())
                .unwrap_or_default();
            word.parse::<Lsn>().map_err(|error| wrong(error.found, expected))
        };
        Ok(BackupLabel {
            redo: position("START WAL LOCATION", "START WAL LOCATION: an LSN")?,
            checkpoint: position("CHECKPOINT LOCATION", "CHECKPOINT LOCATION: an LSN")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_recovery_starts() {
        let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
                     BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-22 19:55:01 UTC\nLABEL: x\nSTART TIMELINE: 1\n";
        let read = BackupLabel::parse(label.as_bytes()).unwrap();
        assert_eq!((read.redo, read.checkpoint), (Lsn::new(0x200_0028), Lsn::new(0x200_0060)));
    }

    #[test]
    fn refuses_labels_without_positions() {
        for label in [
            "",
            "START WAL LOCATION: 0/2000028",
            "START WAL LOCATION: x\nCHECKPOINT LOCATION: 0/1\n",
            "\u{fffd}",
        ] {
            assert!(BackupLabel::parse(label.as_bytes()).is_err(), "{label:?}");
        }
        assert!(BackupLabel::parse(&vec![b'x'; LABEL_BYTES_MAX + 1]).is_err());
    }
}
