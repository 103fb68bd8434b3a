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
        head(f, "resource manager", "bytes")?;
        for rmgr in &self.by_rmgr {
            self.row(f, &rmgr.rmgr, rmgr.records, rmgr.bytes_records, rmgr.images, rmgr.bytes_images)?;
        }
        head(f, "relation", "data")?;
        for of in &self.relations {
            self.row(f, &of.relation, of.records, of.bytes_data, of.images, of.bytes_images)?;
        }
        if self.relations_left_out > 0 {
            let bytes = Bytes(self.bytes_relations_left_out);
            writeln!(f, "and {} more, {bytes} (--relations)", self.relations_left_out)?;
        }
        self.hints(f)
    }
}

fn head(f: &mut fmt::Formatter<'_>, of: &str, bytes: &str) -> fmt::Result {
    writeln!(f, "\n{of:<18} {:>11} {bytes:>11} {:>6} {:>10} {:>11}", "records", "share", "images", "bytes")
}

impl Analysis {
    fn row(
        &self,
        f: &mut fmt::Formatter<'_>,
        name: &str,
        records: u64,
        bytes: u64,
        images: u64,
        bytes_images: u64,
    ) -> fmt::Result {
        let share = self.share(bytes + bytes_images);
        let (bytes, of_images) = (Bytes(bytes), Bytes(bytes_images));
        writeln!(f, "{name:<18} {records:>11} {bytes:>11} {share:>6} {images:>10} {of_images:>11}")
    }

    fn whole(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, what: &str, bytes: u64, more: String| {
            let share = self.share(bytes);
            writeln!(f, "  {what:<24} {:>11} {share:>6}  {more}", Bytes(bytes))
        };
        line(f, "WAL", self.bytes_raw, String::new())?;
        if let Some(stored) = &self.stored {
            line(f, "stored", stored.sum(), String::new())?;
            line(f, "  images and splits", stored.bytes_delta_images, String::new())?;
            line(f, "  records in deltas", stored.bytes_delta_records, String::new())?;
            line(f, "  plain WAL, directories", stored.bytes_plain_and_overhead, String::new())?;
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
