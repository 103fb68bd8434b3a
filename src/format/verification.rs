//! What verification found of a cluster, and how much of it was looked at since when. Spec: formats/verification.md.

use super::record::{Extension, code, record};
use crate::base::{BackupId, ClusterName, Timestamp};

/// The most entries of damage that are kept: who needs more of them verifies again.
pub const DAMAGE_KEPT_MAX: usize = 256;
/// The most arcs that are kept: beyond, neighbours become one with the earlier times of both.
pub const ARCS_MAX: usize = 256;
/// The most places that are kept as not proved: with more of them, no arc counts.
pub const UNPROVED_MAX: usize = 65_536;
/// The most bytes of a text about damage.
pub const DAMAGE_TEXT_BYTES_MAX: usize = 1000;

record! {
    /// What one run found, and what is left of those before it. The newest counts.
    pub struct Verification {
        /// The cluster, repeated so that it cannot stand in for another cluster's.
        pub cluster: ClusterName,
        /// Its number; the key's too.
        pub number: u64,
        /// The newest root that it looked at.
        pub root: u64,
        /// When the run began, by its host's clock.
        pub started_at: Timestamp,
        /// When it ended.
        pub finished_at: Timestamp,
        /// How deep it looked.
        pub depth: VerifyDepth,
        /// Whether it looked at everything.
        pub scope: VerifyScope,
        /// Objects of the cluster that the run read.
        pub objects: u64,
        /// Bytes of the cluster that the run read.
        pub bytes: u64,
        /// Bytes of the cluster that lie on `arcs`: read now or before.
        pub bytes_covered: u64,
        /// Bytes of the cluster.
        pub bytes_total: u64,
        /// Backups, oldest first.
        pub backups: Vec<BackupVerification>,
        /// What is wrong, `DAMAGE_KEPT_MAX` at most.
        pub damage: Vec<DamageEntry>,
        /// How much was wrong in all.
        pub damage_count: u64,
        /// Which objects were read since when; ascending, without overlaps.
        pub arcs: Vec<VerifiedArc>,
        /// Places whose objects are not proved, on `arcs` or not: damaged, or not to be read; ascending, `UNPROVED_MAX` at most.
        pub unproved: Vec<u64>,
        /// Later versions' fields.
        pub extensions: Vec<Extension>,
    }
}

code! {
    /// How deep was looked.
    pub enum VerifyDepth {
        /// Checksums, lengths and places, without keys.
        Checksums = 1,
        /// Everything that it leads to is there, of the right length.
        References = 2,
        /// All of that was opened: seals, chunk ids, page checksums, WAL records.
        Content = 3,
        /// It was restored.
        Restored = 4,
    }
}

code! {
    /// How much was looked at.
    pub enum VerifyScope {
        /// Every object.
        Whole = 1,
        /// Some, by turns.
        Sample = 2,
    }
}

code! {
    /// What a backup turned out to be.
    pub enum VerifyOutcome {
        /// Everything that restoring it needs was proved.
        Verified = 1,
        /// Something that it needs is damaged or gone.
        Damaged = 2,
    }
}

record! {
    /// A backup.
    pub struct BackupVerification {
        /// Which.
        pub backup: BackupId,
        /// What it turned out to be.
        pub outcome: VerifyOutcome,
        /// How deep that goes.
        pub depth: VerifyDepth,
        /// Since when that is known: of everything that it needs, the time of what was looked at longest ago.
        pub at: Timestamp,
        /// Of one that is damaged, why.
        pub reason: String,
    }
}

record! {
    /// One thing that is wrong.
    pub struct DamageEntry {
        /// The object, or the one that refers to what is missing.
        pub key: String,
        /// What is wrong with it.
        pub reason: String,
        /// What that costs.
        pub cost: String,
        /// When it was first found.
        pub found_at: Timestamp,
    }
}

record! {
    /// A part of the ring on which every object has a place: what is on it was read.
    pub struct VerifiedArc {
        /// The first place.
        pub first: u64,
        /// The last place.
        pub last: u64,
        /// The newest Last-Modified that was listed then, microseconds since 1970: later objects were not seen.
        pub listed_unix_micros: i64,
        /// When they were read, by the host's clock.
        pub at: Timestamp,
    }
}
