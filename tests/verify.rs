//! Damage is named: every flipped byte of a repository, every kind of object lost, cut, altered, replaced or exchanged; and what
//! is restored in spite of it is identical, or the restore fails with its code.

mod common;

#[path = "verify/again.rs"]
mod again;
#[path = "verify/bed.rs"]
mod bed;
#[path = "verify/damage.rs"]
mod damage;
#[path = "verify/flips.rs"]
mod flips;
#[path = "verify/journal.rs"]
mod journal;
#[path = "verify/mend.rs"]
mod mend;
#[path = "verify/repair.rs"]
mod repair;
#[path = "verify/results.rs"]
mod results;
#[path = "verify/roots.rs"]
mod roots;
#[path = "verify/roots_live.rs"]
mod roots_live;
