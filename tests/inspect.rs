//! walden-inspect as a person runs it, on the golden vectors: what it shows with and without a key, how far it goes on a damaged
//! file, and its exit codes.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use walden::base::{Generation, Lsn, RepositoryId, TimelineId, Timestamp};
use walden::codec::journal::{JournalBuffer, JournalSealer};
use walden::codec::keyslot::{Unlock, open_epoch, open_slot};
use walden::codec::{KeySource, Keyring};
use walden::format::header::{ObjectHeader, ObjectKind};
use walden::format::journal::{JournalBegin, JournalFrameKind, JournalHead, JournalPrevious, journal_place};
use zeroize::Zeroizing;

const PASSPHRASE: &str = "correct horse battery staple";
const REPOSITORY: RepositoryId = RepositoryId([0xa7; 16]);

/// A repository of the vectors' keys, and a passphrase file.
struct Bench {
    dir: TempDir,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn vector(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("formats/vectors").join(file)
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { dir: TempDir::new().unwrap() };
        for (file, name) in [
            ("marker.bin", "walden"),
            ("keys/main.bin", "keys/main"),
            ("keys/epoch-1-main.bin", "keys/epochs/1/main"),
            ("keys/epoch-2-main.bin", "keys/epochs/2/main"),
            ("keys/link-2.bin", "keys/epochs/2/_link"),
            ("objects/root.bin", "clusters/shop/roots/00000000000000000007"),
        ] {
            let path = bench.path("repo").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(vector(file), path).unwrap();
        }
        bench.secret("pass", PASSPHRASE, 0o600);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn secret(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), format!("{text}\n")).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walden-inspect"));
        command.current_dir(self.dir.path()).env_clear();
        let output = command.args(args).output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn with_key(&self, args: &[&str]) -> Ran {
        self.run(&[&["--repo", "./repo", "--passphrase-file", "pass"], args].concat())
    }

    fn file(&self, file: &str) -> String {
        vector(file).to_str().unwrap().to_owned()
    }
}

#[test]
fn shows_what_is_plain_without_a_key_and_everything_with_one() {
    let bench = Bench::new();
    let name = "clusters/shop/roots/00000000000000000007";
    let plain = bench.run(&[&format!("repo/{name}")]);
    assert_eq!(plain.code, 0, "{}", plain.err);
    assert!(
        plain.out.contains("kind: Root") && plain.out.contains(&format!("place: {name}")),
        "{}",
        plain.out
    );
    assert!(!plain.out.contains("shop\n"), "the cluster's name is encrypted: {}", plain.out);
    let opened = bench.with_key(&[name]);
    assert_eq!(opened.code, 0, "{}", opened.err);
    assert!(opened.out.contains("cluster: shop") && opened.out.contains("streams[1]"), "{}", opened.out);
}

#[test]
fn prints_one_json_document() {
    let bench = Bench::new();
    let ran = bench.with_key(&["--json", "--frames", &bench.file("objects/index.bin")]);
    let document: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&document["version"], &document["good"]), (&1.into(), &true.into()));
    assert_eq!(document["meta"]["levels"][0]["entry_count"], 100);
    assert_eq!(document["records"][0]["backups"][0]["id"], "20261122T195501Z");
    let failed = bench.run(&["--json", "nowhere"]);
    let error: Value = serde_json::from_str(&failed.err).unwrap();
    assert_eq!((failed.code, &error["error"]["kind"]), (6, &"not_found".into()));
}

#[test]
fn a_damaged_file_is_shown_as_far_as_it_is_good() {
    let bench = Bench::new();
    let flush = fs::read(vector("objects/flush.bin")).unwrap();
    fs::write(bench.path("cut"), &flush[..12_000]).unwrap();
    for ran in [bench.run(&["cut"]), bench.with_key(&["cut"])] {
        assert_eq!(ran.code, 4);
        assert!(ran.out.contains("frames[0]: offset 160") && !ran.out.contains("frames[1]"), "{}", ran.out);
        assert!(ran.err.contains("good up to byte 9240 of 12000"), "{}", ran.err);
    }
    // Damage that only the key shows.
    let sealed = bench.file("refused/frame-bit-crc.bin");
    assert_eq!(bench.run(&[&sealed]).code, 0);
    let ran = bench.with_key(&[&sealed]);
    assert_eq!((ran.code, ran.err.trim()), (4, "error: frame 0: the seal is broken"));
}

#[test]
fn exit_codes_say_what_is_wrong() {
    let bench = Bench::new();
    for (file, code) in [
        ("refused/magic.bin", 4),
        ("refused/required-bit.bin", 4),
        ("refused/wrong-key.bin", 5),
        ("refused/marker-bit.bin", 4),
        ("refused/slot-passphrase.bin", 5),
        ("refused/slot-low-order.bin", 4),
        ("refused/epoch-voucher.bin", 4),
        ("refused/count.bin", 4),
    ] {
        let ran = bench.with_key(&[&bench.file(file)]);
        assert_eq!(ran.code, code, "{file}: {}", ran.err);
    }
    bench.secret("wrong", "another", 0o600);
    bench.secret("open", PASSPHRASE, 0o644);
    let name = "clusters/shop/roots/00000000000000000007";
    for (secret, says) in [("wrong", "no key slot"), ("open", "can be read by others")] {
        let ran = bench.run(&["--repo", "./repo", "--passphrase-file", secret, name]);
        assert!(ran.code == 5 && ran.err.contains(says), "{}", ran.err);
        assert!(!ran.err.contains(PASSPHRASE) && !ran.out.contains(PASSPHRASE));
    }
    assert_eq!(bench.with_key(&["clusters/shop/roots/00000000000000000008"]).code, 6);
    assert_eq!(bench.run(&["repo"]).code, 2);
}

#[test]
fn an_object_under_anothers_name_is_told() {
    let bench = Bench::new();
    let roots = bench.path("repo/clusters/shop/roots");
    fs::copy(roots.join("00000000000000000007"), roots.join("00000000000000000008")).unwrap();
    let ran = bench.run(&["repo/clusters/shop/roots/00000000000000000008"]);
    assert!(ran.code == 4 && ran.err.contains("made for another place"), "{}", ran.err);
}

#[test]
fn writes_the_plaintext_of_a_frame() {
    let bench = Bench::new();
    let ran = bench.with_key(&["--frame", "0", &bench.file("objects/pages.bin")]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "15\n"));
    assert_eq!(bench.with_key(&["--frame", "9", &bench.file("objects/pages.bin")]).code, 6);
    assert_eq!(bench.run(&["--frame", "0", &bench.file("objects/pages.bin")]).code, 5);
}

/// A journal file of the vectors' repository with one piece of WAL, whose sync the mark after it vouches for.
fn journal() -> Vec<u8> {
    let name = "main".parse().unwrap();
    let unlock = Unlock::Passphrase(Zeroizing::new(PASSPHRASE.to_owned()));
    let slot = open_slot(&fs::read(vector("keys/main.bin")).unwrap(), REPOSITORY, &name, &unlock).unwrap();
    let keys = open_epoch(&slot, 1, &fs::read(vector("keys/epoch-1-main.bin")).unwrap()).unwrap();
    let header = ObjectHeader {
        kind: ObjectKind::Journal,
        required: 0,
        repository: REPOSITORY,
        owner: [0; 16],
        number: 3,
        writer_epoch: 0,
        key_epoch: 0,
        place: ObjectHeader::place_of(&journal_place(&"shop".parse().unwrap(), 3)),
        salt: [5; 32],
    };
    let head = |kind, synced_len| JournalHead {
        kind,
        timeline: TimelineId(1),
        start: Lsn::new(0x3000_0000),
        server_time: Timestamp::from_micros(0),
        synced_len,
    };
    let begun_with =
        JournalBegin { generation: Generation(1), previous: JournalPrevious { number: 0, len: 0 } };
    let ring = Keyring::new(REPOSITORY, keys);
    let secret = ring.epoch_secret(0).unwrap();
    let (mut sealer, begin) =
        JournalSealer::create(secret, &header, &head(JournalFrameKind::Begin, 0), &begun_with);
    let mut buffer = JournalBuffer::new(16);
    buffer.push(b"sixteen wal byte");
    let wal = sealer.seal(&head(JournalFrameKind::Wal, begin.len() as u64), buffer);
    let synced = sealer.file_len();
    let mark = sealer.seal(&head(JournalFrameKind::Mark, synced), JournalBuffer::new(0));
    [begin, wal, mark].concat()
}

#[test]
fn a_torn_journal_tail_is_no_damage_and_a_hole_before_a_good_frame_is() {
    let bench = Bench::new();
    let good = journal();
    fs::write(bench.path("good"), &good).unwrap();
    let ran = bench.with_key(&["good"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("wal_start: 0/30000000") && ran.out.contains("frame_count: 3"), "{}", ran.out);
    let torn = [&good[..], &[0; 500]].concat();
    fs::write(bench.path("torn"), torn).unwrap();
    let ran = bench.with_key(&["torn"]);
    assert!(ran.code == 0 && ran.out.contains("tail: torn, or never written"), "{} {}", ran.out, ran.err);
    let mut broken = good;
    broken[300] ^= 1;
    fs::write(bench.path("broken"), broken).unwrap();
    let ran = bench.run(&["broken"]);
    assert!(ran.code == 4 && ran.err.contains("good up to byte 241"), "{} {}", ran.out, ran.err);
}
