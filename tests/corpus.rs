//! Replays the fuzzing corpora on a stable compiler: every file of `fuzz/corpus/<target>/`, and many small changes of each.
//! `WALDEN_CORPUS=write` writes the seeds that are missing; what fuzzing found lies beside them.

#[path = "formats/samples.rs"]
mod samples;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use walden::base::{ChunkId, Generation, Lsn, SegmentSize, SystemId, TimelineId, Timestamp};
use walden::format::directory::{Directory, FrameEntry};
use walden::format::frame::{Codec, FrameKind};
use walden::format::journal::{JournalBegin, JournalFrameKind, JournalHead, JournalPrevious};
use walden::format::record::{Blob, Record};
use walden::fuzzing::TARGETS;
use walden::wal::{Synth, WalVersion};

/// Changes tried of each file.
const CHANGES: usize = 100;
/// A corpus stays small enough to be read with the tests.
const FILES_MAX: usize = 200;
const FILE_BYTES_MAX: u64 = 16 << 10;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn files(target: &str) -> Vec<PathBuf> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var("WALDEN_CORPUS").as_deref() == Ok("write") {
            write_seeds();
        }
    });
    let entries =
        fs::read_dir(corpus(target)).unwrap_or_else(|error| panic!("no corpus of {target}: {error}"));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_corpus_replays() {
    for target in TARGETS {
        let files = files(target.name);
        assert!(!files.is_empty() && files.len() <= FILES_MAX, "{}: {} files", target.name, files.len());
        for file in files {
            let bytes = fs::read(&file).unwrap();
            // A panic's message is about the input; which one it was is told here.
            let told = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(told.is_ok(), "{} fails on {}", target.name, file.display());
        }
    }
}

#[test]
fn every_corpus_replays_with_small_changes() {
    for target in TARGETS {
        for file in files(target.name) {
            let (bytes, mut random) = (fs::read(&file).unwrap(), fastrand::Rng::with_seed(7));
            for change in 0..CHANGES {
                let changed = change_of(&bytes, &mut random);
                let told = std::panic::catch_unwind(|| (target.run)(&changed));
                assert!(
                    told.is_ok(),
                    "{} fails on change {change} of {}: {changed:02x?}",
                    target.name,
                    file.display()
                );
            }
        }
    }
}

/// One to four bytes flipped, set, removed, repeated, or the end cut off.
fn change_of(bytes: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.usize(1..=4) {
        if bytes.is_empty() {
            bytes.push(random.u8(..));
            continue;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..6) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes[at] = *random.choice(&[0, 1, 0x7f, 0x80, 0xff]).unwrap(),
            2 => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            4 => bytes.extend_from_within(at..(at + 8).min(bytes.len())),
            _ => bytes.insert(at, random.u8(..)),
        }
    }
    bytes
}

#[test]
fn corpora_are_of_targets_and_stay_small() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    let root = corpus("");
    for entry in fs::read_dir(&root).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        assert!(names.contains(&name.as_str()), "{name} is no target");
        for file in files(&name) {
            assert!(file.metadata().unwrap().len() <= FILE_BYTES_MAX, "{} is long", file.display());
        }
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets").join(format!("{name}.rs"));
        assert!(fuzz.exists(), "{} is missing", fuzz.display());
    }
}

fn write_seeds() {
    for (target, name, bytes) in seeds() {
        let path = corpus(target).join(format!("seed-{name}"));
        if !path.exists() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

type Seed = (&'static str, String, Vec<u8>);

fn seeds() -> Vec<Seed> {
    let mut seeds = vectors();
    seeds.extend(records());
    seeds.extend(wal());
    seeds.extend(protocol());
    seeds.extend(texts());
    seeds
}

/// Small golden vectors.
fn vectors() -> Vec<Seed> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("formats/vectors");
    let mut seeds = Vec::new();
    for folder in ["", "keys", "objects", "refused", "deltas"] {
        for path in fs::read_dir(dir.join(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            let delta = path.to_str().unwrap().contains("delta");
            let small = path.metadata().unwrap().len() <= if delta { 16 << 10 } else { 1200 };
            if path.extension().is_none_or(|extension| extension != "bin") || !small {
                continue;
            }
            let (bytes, name) =
                (fs::read(&path).unwrap(), path.file_stem().unwrap().to_str().unwrap().to_owned());
            let plain = [b"WALDREP\x01", b"WALDKEY\x01", b"WALDEPO\x01", b"WALDEPA\x01", b"WALDEPL\x01"]
                .iter()
                .any(|magic| bytes.starts_with(*magic));
            let target = if plain { "key_slot" } else { "object" };
            seeds.push((if delta { "delta_frame" } else { target }, name, bytes));
        }
    }
    seeds
}

fn records() -> Vec<Seed> {
    let entry = FrameEntry {
        offset: 160,
        sealed_len: 100,
        plain_len: 200,
        kind: FrameKind::Data,
        codec: Codec::Zstd,
        chunk: ChunkId([9; 32]),
        position: 1 << 32,
    };
    let directory = Directory { meta: Blob(samples::index_meta().encode()), frames: vec![entry] };
    let head = |kind| JournalHead {
        kind,
        timeline: TimelineId(1),
        start: Lsn::new(1 << 32),
        server_time: Timestamp::from_micros(1),
        synced_len: 241,
    };
    let begin =
        JournalBegin { generation: Generation(1), previous: JournalPrevious { number: 1, len: 4096 } };
    let with = |kind, body: &[u8]| [head(kind).encode(), body.to_vec()].concat();
    let chunk = ChunkId([1; 32]);
    vec![
        ("directory", "directory".into(), directory.encode()),
        ("index", "page".into(), samples::index_page().encode()),
        ("index", "meta".into(), samples::index_meta().encode()),
        ("root", "root".into(), samples::root().encode()),
        ("root", "floor".into(), samples::floor().encode()),
        ("root", "generation".into(), samples::generation().encode()),
        ("root", "pending".into(), samples::pending().encode()),
        ("root", "verification".into(), samples::verification().encode()),
        ("manifest", "meta".into(), samples::manifest_meta().encode()),
        ("manifest", "pages".into(), samples::manifest_pages(chunk).encode()),
        ("manifest", "page".into(), samples::manifest_page(chunk, chunk).encode()),
        ("manifest", "map".into(), samples::block_map().encode()),
        ("wal_meta", "flush".into(), samples::flush_first().encode()),
        ("wal_meta", "heartbeat".into(), samples::heartbeat().encode()),
        ("wal_meta", "segment".into(), samples::segment().encode()),
        ("wal_meta", "fence".into(), samples::fence().encode()),
        ("wal_meta", "summary".into(), samples::summary().encode()),
        ("journal", "begin".into(), with(JournalFrameKind::Begin, &begin.encode())),
        ("journal", "wal".into(), with(JournalFrameKind::Wal, b"wal bytes")),
        ("journal", "mark".into(), with(JournalFrameKind::Mark, b"")),
        ("journal", "previous".into(), begin.encode()),
    ]
}

fn wal() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (index, version) in
        [14, 15, 16, 17, 18].into_iter().map(|v| WalVersion::from_major(v).unwrap()).enumerate()
    {
        let start = Lsn::new(1 << 32);
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut synth = Synth::new(version, size, SystemId(7), TimelineId(1), start);
        let time = Timestamp::from_micros(1_000_000);
        synth.checkpoint(time);
        synth.commit(700, time);
        synth.restore_point("here", time);
        synth.noise(9000);
        synth.abort(701, time);
        let bytes = synth.take();
        // The choice: position 0x100000000, from a record's start of this version.
        seeds.push(("wal_bytes", format!("wal-{index}"), [&[(index as u8) << 1 | 1], &bytes[..]].concat()));
        seeds.push(("wal_bytes", format!("anywhere-{index}"), [&[0], &bytes[..]].concat()));
        seeds.push(("wal_page", format!("long-{index}"), bytes[..40].to_vec()));
        seeds.push(("wal_page", format!("short-{index}"), bytes[8192..8216].to_vec()));
        // Commits with parts: database, subtransactions, dropped relations; the smgr and dbase records.
        let time = time.micros().to_le_bytes();
        let flags = (1u32 | 2 | 4 | 8).to_le_bytes();
        let dropped =
            [&1u32.to_le_bytes()[..], &1663u32.to_le_bytes(), &5u32.to_le_bytes(), &16390u32.to_le_bytes()]
                .concat();
        let parts = [
            &5u32.to_le_bytes()[..],
            &1663u32.to_le_bytes(),
            &1u32.to_le_bytes(),
            &701u32.to_le_bytes(),
            &dropped,
        ]
        .concat();
        let commit = [&time[..], &flags, &parts].concat();
        let choice = index as u8;
        for (rmgr, info, name, main) in [
            (1, 0x80, "commit", commit.as_slice()),
            (1, 0x20, "abort", &time),
            (1, 0x30, "commit-prepared", &[9; 60]),
            (0, 0x00, "checkpoint", &[1; 88]),
            (0, 0x70, "restore-point", &[65; 72]),
            (2, 0x10, "create", &[2; 16]),
            (2, 0x20, "truncate", &[3; 20]),
            (4, 0x10, "database", &[4; 24]),
        ] {
            seeds.push(("wal_record", format!("{name}-{index}"), [&[choice, rmgr, info, 9], main].concat()));
        }
        // Contents of one length, of some lengths, of no record's shape; damaged; from inside of a record.
        for (name, flags, piece, content) in [
            ("rows", 0, 9, [&b"0123456789abcdef"[..]; 20].concat()),
            ("lengths", 0x10, 200, vec![7; 1900]),
            ("shapes", 8, 30, [[0u8, 0x20, 4, 0, 1, 2, 3, 4, 5, 6, 7].as_slice(); 30].concat()),
            ("inside", 0x40, 90, (0..1000u32).map(|at| (at * at / 7) as u8).collect()),
        ] {
            seeds.push((
                "delta_wal",
                format!("{name}-{index}"),
                [&[choice | flags, 10, 0, piece], &content[..]].concat(),
            ));
        }
        // Splits of B-tree pages, of a block that the base has: four tuples move.
        let left = [&[0, 0x20, 16, 0][..], &[6; 12], &[2, 0, 0, 0]].concat();
        let right = [1, 0xE0, 64, 0, 9, 0, 0, 0];
        let tuples = [&[0, 0, 7, 0, 5, 0, 16, 0][..], &[9; 8]].concat().repeat(5);
        let split = [&left[..], &right, &[255, 10], &tuples, &[0, 0, 0, 0, 2, 0, 3, 0, 0, 0]].concat();
        let splits = [&[choice | 8 | 0x20, 11, 0x40, split.len() as u8 - 1][..], &split.repeat(6)].concat();
        seeds.push(("delta_wal", format!("splits-{index}"), splits));
        let block =
            [&[choice | 8, 10, 0, 9, 0, 0x20, 4, 0][..], &[6; 12], &[0; 4], &[255, 3], b"datamai"].concat();
        seeds.push(("wal_record", format!("block-{index}"), block));
    }
    seeds
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn protocol() -> Vec<Seed> {
    let wal = [&b"w"[..], &[1; 24], b"wal"].concat();
    let row = message(b'T', b"\0\x01systemid\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    let values = message(b'D', b"\0\x01\0\0\0\x03123");
    let login =
        [message(b'R', &[0; 4]), message(b'S', b"server_version\x0015.19\0"), message(b'Z', b"I")].concat();
    let error = message(b'E', b"SERROR\0C42704\0Mno such slot\0\0");
    let scram = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let query = [row, values, message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
    let copy = [message(b'W', b"\0\0\0"), message(b'd', &wal), message(b'c', b"")].concat();
    let binary = [&b"PGCOPY\n\xff\r\n\0"[..], &[0; 8], b"\0\x01\0\0\0\x02hi\xff\xff"].concat();
    vec![
        ("replication", "wal".into(), wal),
        ("replication", "keepalive".into(), [&b"k"[..], &[1; 17]].concat()),
        ("messages", "login".into(), login),
        ("messages", "error".into(), error),
        ("messages", "scram".into(), scram),
        ("messages", "query".into(), query),
        ("messages", "copy".into(), copy),
        ("base_backup", "archive".into(), b"nbase.tar\0\0".to_vec()),
        ("base_backup", "manifest".into(), b"m".to_vec()),
        ("base_backup", "data".into(), b"dbytes".to_vec()),
        ("base_backup", "progress".into(), b"p\0\0\0\0\0\0\0\x09".to_vec()),
        ("copy_binary", "row".into(), binary),
        ("tar", "file".into(), tar("PG_VERSION", b'0', b"15\n")),
        ("tar", "link".into(), tar("pg_tblspc/16400", b'2', b"")),
        ("tar", "end".into(), [tar("base", b'5', b""), vec![0; 1024]].concat()),
    ]
}

fn tar(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, if kind == b'2' { b"/srv/fast" } else { b"" });
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = content.len().next_multiple_of(512) - content.len();
    [&header, content, &vec![0; padding]].concat()
}

fn texts() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = Vec::new();
    let mut add = |target: &'static str, texts: &[&str]| {
        seeds.extend(
            texts.iter().enumerate().map(|(at, text)| (target, at.to_string(), text.as_bytes().to_vec())),
        );
    };
    add(
        "conninfo",
        &[
            "host=db1,db2 port=5432,5433 user=walden dbname='a b' sslmode=verify-full",
            "postgresql://walden@db1:5432,[::1]/shop?target_session_attrs=read-write&application_name=x%20y",
            "postgresql:///shop?host=/run/postgresql",
            "service=shop\0[shop]\nhost=db1\nuser=walden\n",
            "host=db1 user=a\0db1:*:*:a:secret\\:word\n#comment\n",
            "password = 'it''s \\'quoted\\'' connect_timeout=3 keepalives=1",
        ],
    );
    add(
        "history",
        &[
            "1\t0/3000000\tno recovery target specified\n",
            "# a comment\n\n1\t0/3000000\n2\t1/0\tafter LSN 1/0\n",
            "",
        ],
    );
    add(
        "config",
        &[
            "[repository.main]\nurl = \"/srv/walden\"\npassphrase_file = \"/etc/walden/pass\"\n",
            "[cluster.shop]\nconnection = \"host=db1\"\nrepositories = [\"main\"]\nack = \"journal\"\n",
            "[cluster.shop\nconnection = 1",
        ],
    );
    add(
        "names",
        &[
            "0/16B3748",
            "000000010000000000000001",
            "00000002.history",
            "5151515151515151515151515151515A",
            "shop-eu_1",
            "clusters/shop/roots/00000000000000000007",
        ],
    );
    seeds
}
