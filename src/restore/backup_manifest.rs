//! PostgreSQL's `backup_manifest`, so that pg_verifybackup proves a restored directory. Written entry by entry.
//! Source: `backend/backup/backup_manifest.c`, `common/parse_manifest.c`. Version 1 before 17, version 2 with the system
//! identifier from 17 on. Checksums are CRC-32C, printed as the bytes lie in memory.

use crate::base::{LsnRange, SystemId, TimelineId};
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// The first major version that writes version 2.
const SYSTEM_ID_SINCE: u32 = 17;

/// Writes a `backup_manifest`.
pub struct BackupManifestWriter<W> {
    to: W,
    hasher: Sha256,
    files: u64,
}

impl<W: Write> BackupManifestWriter<W> {
    /// Begins the manifest of a backup of a server of `major` version.
    pub fn create(to: W, major: u32, system_id: SystemId) -> io::Result<Self> {
        let mut writer = BackupManifestWriter { to, hasher: Sha256::new(), files: 0 };
        if major < SYSTEM_ID_SINCE {
            writer.put("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")?;
        } else {
            let head = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": ";
            writer.put(&format!("{head}{system_id},\n\"Files\": ["))?;
        }
        Ok(writer)
    }

    /// A file, by its path below the data directory, `modified` in seconds since 1970.
    pub fn file(&mut self, path: &str, len: u64, modified: i64, crc32c: u32) -> io::Result<()> {
        let comma = if self.files == 0 { "\n" } else { ",\n" };
        let path = json_text(path);
        let time = match jiff::Timestamp::from_second(modified) {
            Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S GMT").to_string(),
            Err(_) => "1970-01-01 00:00:00 GMT".to_owned(),
        };
        let [a, b, c, d] = crc32c.to_le_bytes();
        self.files += 1;
        self.put(&format!(
            "{comma}{{ \"Path\": {path}, \"Size\": {len}, \"Last-Modified\": \"{time}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{a:02x}{b:02x}{c:02x}{d:02x}\" }}"
        ))
    }

    /// Ends it with the WAL that the backup needs. Returns the writer below; nothing is flushed.
    pub fn finish(mut self, timeline: TimelineId, wal: LsnRange) -> io::Result<W> {
        let (start, end) = (wal.start, wal.end);
        self.put(&format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}\n],\n"
        ))?;
        let digest = self.hasher.finalize();
        self.to.write_all(b"\"Manifest-Checksum\": \"")?;
        for byte in digest {
            write!(self.to, "{byte:02x}")?;
        }
        self.to.write_all(b"\"}\n")?;
        Ok(self.to)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.hasher.update(text.as_bytes());
        self.to.write_all(text.as_bytes())
    }
}

/// `text` as a JSON string.
fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Lsn;

    fn manifest(major: u32) -> String {
        let mut writer = BackupManifestWriter::create(Vec::new(), major, SystemId(7_012_345)).unwrap();
        writer.file("backup_label", 224, 1_593_553_299, 0x54ea_bd0f).unwrap();
        writer.file("odd \"name\"\\", 0, -1, 0).unwrap();
        let wal = LsnRange::new(Lsn::new(0x200_0028), Lsn::new(0x200_0100));
        String::from_utf8(writer.finish(TimelineId(1), wal).unwrap()).unwrap()
    }

    #[test]
    fn says_what_postgres_would() {
        let text = manifest(15);
        let expected = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"backup_label\", \"Size\": 224, \"Last-Modified\": \"2020-06-30 21:41:39 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"0fbdea54\" },\n\
            { \"Path\": \"odd \\\"name\\\"\\\\\", \"Size\": 0, \"Last-Modified\": \"1969-12-31 23:59:59 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\" }\n],\n\"WAL-Ranges\": [\n\
            { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";
        assert_eq!(text.split_once("\"Manifest-Checksum\"").unwrap().0, expected);
        assert!(manifest(17).starts_with(
            "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7012345,\n\"Files\": ["
        ));
    }

    #[test]
    fn its_checksum_covers_every_line_but_the_last() {
        for major in [14, 18] {
            let text = manifest(major);
            let (body, last) = text.trim_end().rsplit_once('\n').unwrap();
            let digest = Sha256::digest(format!("{body}\n"));
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(last, format!("\"Manifest-Checksum\": \"{hex}\"}}"));
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(parsed["Files"].as_array().unwrap().len(), 2);
        }
    }
}
