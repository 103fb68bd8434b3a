//! What a restore may overwrite, and what it never touches.

use super::*;
use crate::base::{Generation, Lsn, LsnRange, SegmentSize, TimelineId};
use crate::disk::SecretSource;
use crate::repo::lineage::TimelinePath;
use crate::restore::recovery_file::RepositoryPlace;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Bed {
        Bed { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn places(&self) -> Places {
        let tablespaces = [Tablespace { oid: 5, path: "/source/fast".into() }];
        let mapping = TablespaceMapping { old: "/source/fast".into(), new: self.path("fast") };
        Places::new(&self.path("data"), Some(&self.path("wal")), &tablespaces, &[mapping]).unwrap()
    }

    fn file(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// What an earlier restore of `data_dir` left in `data`.
    fn restored(&self, data_dir: &Path) {
        self.file("data/PG_VERSION", "15\n");
        self.file("data/global/pg_control", "x");
        self.file("wal/000000010000000000000001", "x");
        self.file("fast/PG_15_1/1/2", "x");
        symlink(self.path("wal"), self.path("data/pg_wal")).unwrap();
        fs::create_dir(self.path("data/pg_tblspc")).unwrap();
        symlink(self.path("fast"), self.path("data/pg_tblspc/5")).unwrap();
        let file = RecoveryFile {
            data_dir: data_dir.to_owned(),
            repository: RepositoryPlace {
                url: "/r".into(),
                endpoint: None,
                region: None,
                secret: SecretSource::KeyFile("/k".into()),
            },
            cluster: "shop".parse().unwrap(),
            generation: Generation(1),
            backup: "20261122T195501Z".parse().unwrap(),
            segment_size: SegmentSize::DEFAULT,
            wal: LsnRange::new(Lsn::ZERO, Lsn::MAX),
            durable_end: Lsn::MAX,
            path: TimelinePath::new(TimelineId(1), &[]).unwrap(),
            tablespaces: vec![PlacedTablespace { oid: 5, path: self.path("fast") }],
        };
        self.file("wal/walden/recovery.toml", &file.encode().unwrap());
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(self.path("wal/walden/recovery.toml"), mode).unwrap();
    }
}

fn refused_at(result: Result<Clearance, RestoreError>) -> (PathBuf, String, String) {
    match result {
        Err(RestoreError::Conflict { path, reason, hint }) => (path, reason, hint),
        other => panic!("{other:?}"),
    }
}

#[test]
fn empty_and_absent_places_are_free() {
    let bed = Bed::new();
    assert_eq!(bed.places().inspect(Existing::Refuse).unwrap(), Clearance::default());
    for name in ["data", "wal", "fast"] {
        fs::create_dir(bed.path(name)).unwrap();
    }
    assert_eq!(bed.places().inspect(Existing::Refuse).unwrap(), Clearance::default());
}

#[test]
fn a_directory_with_anything_in_it_is_refused_without_force() {
    for name in ["data", "wal", "fast"] {
        let bed = Bed::new();
        bed.file(&format!("{name}/x"), "");
        let (path, _, hint) = refused_at(bed.places().inspect(Existing::Refuse));
        assert_eq!(path, bed.path(name));
        assert!(!hint.is_empty());
        // Nor does --force touch what is no data directory of ours.
        refused_at(bed.places().inspect(Existing::Replace));
        assert!(bed.path(name).join("x").exists());
    }
}

#[test]
fn force_replaces_all_that_an_earlier_restore_made_here() {
    let bed = Bed::new();
    bed.restored(&bed.path("data"));
    let (_, reason, _) = refused_at(bed.places().inspect(Existing::Refuse));
    assert!(reason.contains("not empty"));
    let clearance = bed.places().inspect(Existing::Replace).unwrap();
    assert_eq!(clearance.directories().count(), 3);
    clearance.clear().unwrap();
    assert_eq!(fs::read_dir(bed.path("wal")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(bed.path("fast")).unwrap().count(), 0);
    let left: Vec<_> = fs::read_dir(bed.path("data")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [INCOMPLETE]);
    // And what that left may be replaced in turn.
    bed.places().inspect(Existing::Replace).unwrap();
}

#[test]
fn a_copied_data_directory_does_not_give_away_the_originals_tablespaces() {
    let bed = Bed::new();
    bed.restored(Path::new("/the/original"));
    let (path, _, _) = refused_at(bed.places().inspect(Existing::Replace));
    assert_eq!(path, bed.path("wal"));
    assert!(bed.path("fast/PG_15_1/1/2").exists());
}

#[test]
fn a_tablespace_that_only_a_link_claims_is_not_touched() {
    let bed = Bed::new();
    bed.file("data/PG_VERSION", "15\n");
    bed.file("fast/PG_15_1/1/2", "x");
    fs::create_dir(bed.path("data/pg_tblspc")).unwrap();
    symlink(bed.path("fast"), bed.path("data/pg_tblspc/5")).unwrap();
    let (path, _, hint) = refused_at(bed.places().inspect(Existing::Replace));
    assert_eq!(path, bed.path("fast"));
    assert!(hint.contains("--tablespace-map"));
}

#[test]
fn a_running_server_is_refused_even_with_force() {
    let bed = Bed::new();
    bed.file("data/PG_VERSION", "15\n");
    fs::create_dir_all(bed.path("data")).unwrap();
    let mut sleeper =
        std::process::Command::new("sleep").arg("60").current_dir(bed.path("data")).spawn().unwrap();
    bed.file("data/postmaster.pid", &format!("{}\n/data\n", sleeper.id()));
    let (_, reason, hint) = refused_at(bed.places().inspect(Existing::Replace));
    assert!(reason.contains("a server runs in it") && hint == "stop it first", "{reason}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    bed.places().inspect(Existing::Replace).unwrap();
    // Its number was given to a process that works elsewhere.
    bed.file("data/postmaster.pid", &format!("{}\n/data\n", std::process::id()));
    bed.places().inspect(Existing::Replace).unwrap();
}

#[test]
fn places_inside_each_other_and_unknown_mappings_are_refused() {
    let at = |path: &str| vec![Tablespace { oid: 1, path: path.into() }];
    let usage = |result| matches!(result, Err(RestoreError::Usage { .. }));
    let data = Path::new("/srv/data");
    assert!(usage(Places::new(data, Some(Path::new("/srv/data/pg_wal")), &[], &[])));
    assert!(usage(Places::new(data, None, &at("/srv/data/ts"), &[])));
    assert!(usage(Places::new(data, None, &at("/srv"), &[])));
    assert!(usage(Places::new(Path::new("data"), None, &[], &[])));
    assert!(usage(Places::new(Path::new("/"), None, &[], &[])));
    assert!(usage(Places::new(Path::new("/srv/../etc"), None, &[], &[])));
    let mapping: TablespaceMapping = "/a=/b".parse().unwrap();
    assert!(usage(Places::new(data, None, &at("/x"), std::slice::from_ref(&mapping))));
    let twice = ["/a=/b".parse().unwrap(), "/a=/c".parse().unwrap()];
    assert!(usage(Places::new(data, None, &at("/a"), &twice)));
    let both = [at("/a"), vec![Tablespace { oid: 2, path: "/b".into() }]].concat();
    assert!(usage(Places::new(data, None, &both, &[mapping])), "two tablespaces in one directory");
    assert_eq!(r"/a\=b=/c".parse(), Ok(TablespaceMapping { old: "/a=b".into(), new: "/c".into() }));
    for bad in ["/a", "a=/b", "/a=b", "/a=/b=/c", ""] {
        assert!(bad.parse::<TablespaceMapping>().is_err(), "{bad}");
    }
}
