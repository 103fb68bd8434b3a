//! The document as a person reads it.

use super::{BackupInfo, ClusterInfo, DeltaInfo, GapInfo, Info, Lag, OlderInfo, VerificationInfo};
use crate::operate::units::{Bytes, Span};
use std::fmt::{self, Write};
use std::time::Duration;

/// Damages that are shown; the document has more.
const DAMAGE_SHOWN_MAX: usize = 5;

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "repository {}", self.repository)?;
        if self.clusters.is_empty() {
            writeln!(f, "no cluster yet: `walden receive` or `walden backup` stores the first")?;
        }
        self.clusters.iter().try_for_each(|cluster| write!(f, "\n{cluster}"))
    }
}

impl fmt::Display for ClusterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "cluster {}: PostgreSQL {}, system identifier {}, timeline {}",
            self.name, self.major_version, self.system_identifier, self.timeline
        )?;
        match (&self.window.start, &self.window.end) {
            (Some(start), Some(end)) => writeln!(f, "  recovery window  {start}  to  {end}")?,
            _ => writeln!(f, "  recovery window  none: no complete backup yet (`walden backup`)")?,
        }
        self.window.gaps.iter().try_for_each(|gap| writeln!(f, "  gap              {gap}"))?;
        let durable = self.durable_lsn.as_deref().unwrap_or("nothing");
        writeln!(f, "  durable          {durable}, {}", self.lag)?;
        writeln!(
            f,
            "  WAL              {} in {}, {} objects; {} wait for removal",
            Bytes(self.wal.bytes_raw),
            Bytes(self.wal.bytes_stored),
            self.wal.objects,
            Bytes(self.wal.bytes_waiting)
        )?;
        if let Some(deltas) = &self.wal.deltas {
            writeln!(f, "  deltas           {deltas}")?;
        }
        let bytes = &self.bytes;
        writeln!(
            f,
            "  stored           {} in use, {} waiting, {} unreferenced",
            Bytes(bytes.live),
            Bytes(bytes.waiting),
            Bytes(bytes.unreferenced)
        )?;
        match &self.verification {
            Some(verification) => writeln!(f, "  verified         {verification}")?,
            None => writeln!(f, "  verified         never (`walden verify`)")?,
        }
        for damage in self
            .verification
            .iter()
            .flat_map(|verification| verification.damage.iter().take(DAMAGE_SHOWN_MAX))
        {
            writeln!(
                f,
                "  DAMAGED          {}: {}\n                   costs {}",
                damage.object, damage.found, damage.cost
            )?;
        }
        show_backups(f, &self.backups)?;
        self.older_generations.iter().rev().try_for_each(|older| write!(f, "{older}"))
    }
}

fn show_backups(f: &mut fmt::Formatter<'_>, backups: &[BackupInfo]) -> fmt::Result {
    if backups.is_empty() {
        return Ok(());
    }
    writeln!(
        f,
        "  {:<17}{:<28}{:>12}{:>12}{:>12}  state",
        "backup", "restores from", "raw", "stored", "new"
    )?;
    backups.iter().try_for_each(|backup| writeln!(f, "  {backup}"))
}

impl fmt::Display for OlderInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  before that, generation {}: PostgreSQL {}, system identifier {}",
            self.generation, self.major_version, self.system_identifier
        )?;
        match (&self.window.start, &self.window.end) {
            (Some(start), Some(end)) => writeln!(f, "  recovery window  {start}  to  {end}")?,
            _ => writeln!(f, "  recovery window  none")?,
        }
        self.window.gaps.iter().try_for_each(|gap| writeln!(f, "  gap              {gap}"))?;
        show_backups(f, &self.backups)
    }
}

impl fmt::Display for VerificationInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} of ", minute(&self.finished_at), self.depth)?;
        f.write_str(if self.scope == "whole" { "everything" } else { "a sample" })?;
        match &self.covered_since {
            Some(since) if self.bytes_covered == self.bytes_total => {
                write!(f, "; every byte then was read since {}", minute(since))?;
            }
            Some(since) => {
                let share = 100.0 * self.bytes_covered as f64 / self.bytes_total.max(1) as f64;
                write!(f, "; {share:.1} % of the bytes were read since {}", minute(since))?;
            }
            None => {}
        }
        match self.damage_count {
            0 => f.write_str("; nothing is damaged"),
            1 => f.write_str("; 1 DAMAGE"),
            count => write!(f, "; {count} DAMAGES"),
        }?;
        match self.damage_count {
            count if count > DAMAGE_SHOWN_MAX as u64 => write!(f, ", the first {DAMAGE_SHOWN_MAX}:"),
            _ => Ok(()),
        }
    }
}

/// A time without what is below the minute.
fn minute(time: &str) -> String {
    time.rsplit_once(':').map_or_else(|| time.to_owned(), |(minute, _)| format!("{minute}+00"))
}

impl fmt::Display for DeltaInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of WAL in {}; {:.0} % of page images as differences, {:.0} % lately; up to {} of pages kept, ",
            Bytes(self.bytes_raw),
            Bytes(self.bytes_stored),
            100.0 * self.hit_rate,
            100.0 * self.hit_rate_newest,
            Bytes(self.cache_bytes),
        )?;
        match &self.base {
            Some(backup) => write!(f, "beside those of backup {backup}"),
            None => f.write_str("none of a backup"),
        }
    }
}

impl fmt::Display for BackupInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.stopped_at.split('.').next().unwrap_or(&self.stopped_at);
        let (raw, stored, new) = (Bytes(self.bytes_raw), Bytes(self.bytes_stored), Bytes(self.bytes_new));
        write!(
            f,
            "{:<17}{:<28}{raw:>12}{stored:>12}{new:>12}  {}",
            self.id,
            format!("{seconds}+00"),
            self.state
        )?;
        if self.damaged_blocks > 0 {
            write!(f, " ({} bad blocks on the server)", self.damaged_blocks)?;
        }
        match &self.verified {
            None => {}
            Some(known) if known.outcome == "damaged" => {
                write!(f, ", DAMAGED in the repository (found {})", minute(&known.at))?;
            }
            Some(known) => match known.depth {
                "content" => write!(f, ", verified {}", minute(&known.at))?,
                depth => write!(f, ", {depth} verified {}", minute(&known.at))?,
            },
        }
        let Some(pin) = &self.pin else { return Ok(()) };
        f.write_str(", pinned")?;
        pin.until.iter().try_for_each(|until| write!(f, " until {until}"))?;
        if pin.reason.is_empty() { Ok(()) } else { write!(f, ": {}", pin.reason) }
    }
}

impl fmt::Display for GapInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start_lsn, self.end_lsn.as_deref().unwrap_or_default())?;
        match (&self.start, &self.end) {
            (Some(start), Some(end)) => write!(f, ", {start} to {end}")?,
            (Some(start), None) => write!(f, ", from {start} until the next backup")?,
            (None, _) => f.write_str(", until the next backup")?,
        }
        self.reason.iter().try_for_each(|reason| write!(f, ": {reason}"))
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        match self.bytes {
            Some(bytes) => write!(text, "{} behind the server", Bytes(bytes))?,
            None => text.push_str("how far behind the server is not known"),
        }
        if let Some(seconds) = self.seconds {
            let span = Span(Duration::try_from_secs_f64(seconds).unwrap_or_default());
            match self.measured_by {
                "server" => write!(text, " ({span})")?,
                _ => write!(text, " when stored {span} ago (give --connection to ask the server)")?,
            }
        }
        f.write_str(&text)
    }
}
