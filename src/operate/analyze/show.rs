//! The document as a person reads it: shares first, then what to look at.

use super::Analysis;
use crate::operate::units::Bytes;
use std::fmt;

/// Images of more than this share of WAL are worth a hint.
const IMAGES_MANY: f64 = 0.5;

impl fmt::Display for Analysis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (&self.start_lsn, &self.end_lsn);
        writeln!(f, "{}: WAL {start} to {end} of timeline {}", self.source, self.timeline)?;
        self.whole(f)?;
        writeln!(
            f,
            "\n{:<18} {:>11} {:>11} {:>6} {:>10} {:>11}",
            "resource manager", "records", "bytes", "share", "images", "bytes"
        )?;
        for rmgr in &self.by_rmgr {
            let share = self.share(rmgr.bytes_records + rmgr.bytes_images);
            let (bytes, images) = (Bytes(rmgr.bytes_records), Bytes(rmgr.bytes_images));
            let (name, records) = (&rmgr.rmgr, rmgr.records);
            writeln!(f, "{name:<18} {records:>11} {bytes:>11} {share:>6} {:>10} {images:>11}", rmgr.images)?;
        }
        writeln!(
            f,
            "\n{:<18} {:>11} {:>11} {:>6} {:>10} {:>11}",
            "relation", "records", "data", "share", "images", "bytes"
        )?;
        for relation in &self.relations {
            let share = self.share(relation.bytes_data + relation.bytes_images);
            let (bytes, images) = (Bytes(relation.bytes_data), Bytes(relation.bytes_images));
            let (name, records) = (&relation.relation, relation.records);
            writeln!(
                f,
                "{name:<18} {records:>11} {bytes:>11} {share:>6} {:>10} {images:>11}",
                relation.images
            )?;
        }
        if self.relations_left_out > 0 {
            writeln!(f, "and {} more (--relations)", self.relations_left_out)?;
        }
        self.hints(f)
    }
}

impl Analysis {
    fn whole(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, what: &str, bytes: u64, more: String| {
            let share = self.share(bytes);
            writeln!(f, "  {what:<24} {:>11} {share:>6}  {more}", Bytes(bytes))
        };
        line(f, "WAL", self.bytes_raw, String::new())?;
        if let Some(stored) = self.bytes_stored {
            line(f, "stored", stored, String::new())?;
        }
        let compressed = match self.images_compressed {
            0 => "none compressed by PostgreSQL".to_owned(),
            some => format!("{some} compressed by PostgreSQL"),
        };
        line(f, "page images", self.bytes_images, format!("{}, {compressed}", self.images))?;
        line(f, "records without images", self.bytes_records, self.records.to_string())?;
        line(f, "switched segments", self.bytes_switches, "left empty".to_owned())?;
        line(f, "page headers, padding", self.bytes_overhead, String::new())
    }

    fn share(&self, bytes: u64) -> String {
        format!("{:.1}%", 100.0 * bytes as f64 / self.bytes_raw.max(1) as f64)
    }

    fn hints(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nwhich table or index a file is: SELECT pg_filenode_relation(TABLESPACE, FILENUMBER), in its database; 1663 is given as 0"
        )?;
        if self.bytes_images as f64 > IMAGES_MANY * self.bytes_raw as f64 {
            let between = Bytes(self.bytes_raw / self.checkpoints.max(1));
            writeln!(
                f,
                "page images are written for the first change of a page after each checkpoint: {} checkpoints here, one in {between} of WAL. A larger max_wal_size and checkpoint_timeout make fewer",
                self.checkpoints
            )?;
        }
        if self.unread_count > 0 {
            writeln!(
                f,
                "{} places could not be read, which is usual where WAL begins, ends or is recycled:",
                self.unread_count
            )?;
            self.unread.iter().try_for_each(|error| writeln!(f, "  {error}"))?;
        }
        Ok(())
    }
}
