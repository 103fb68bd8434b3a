//! Base backups: BASE_BACKUP's stream in; chunks, a manifest and an index entry out.
//! A plan and machines without IO (`tar`, `checksum`, `cutter`), and a driver beside them. Spec: formats/manifest.md.

pub mod checksum;
pub mod tar;
