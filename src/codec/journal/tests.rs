//! Journal frames: what goes in comes out in its place, and nowhere else.

use super::*;
use crate::base::{ClusterName, Generation, Lsn, RepositoryId, TimelineId, Timestamp};
use crate::codec::ChunkIdKey;
use crate::format::header::ObjectKind;
use crate::format::journal::{JournalFrameKind, journal_place};

struct OneKey(EpochSecret, ChunkIdKey);

impl KeySource for OneKey {
    fn epoch_secret(&self, epoch: u32) -> Option<&EpochSecret> {
        (epoch == 0).then_some(&self.0)
    }

    fn chunk_id_key(&self) -> &ChunkIdKey {
        &self.1
    }
}

fn keys() -> OneKey {
    OneKey(EpochSecret([1; 32]), ChunkIdKey([2; 32]))
}

fn head(kind: JournalFrameKind, start: u64) -> JournalHead {
    JournalHead {
        kind,
        timeline: TimelineId(1),
        start: Lsn::new(start),
        server_time: Timestamp::from_micros(0),
        synced_len: 0,
    }
}

const BEGUN_WITH: JournalBegin =
    JournalBegin { generation: Generation(2), previous: JournalPrevious { number: 6, len: 999 } };

fn file(salt: u8, bodies: &[&[u8]]) -> Vec<Bytes> {
    let cluster: ClusterName = "shop".parse().unwrap();
    let header = ObjectHeader {
        kind: ObjectKind::Journal,
        required: 0,
        repository: RepositoryId([3; 16]),
        owner: [4; 16],
        number: 7,
        writer_epoch: 5,
        key_epoch: 0,
        place: ObjectHeader::place_of(&journal_place(&cluster, 7)),
        salt: [salt; 32],
    };
    let begin = head(JournalFrameKind::Begin, 100);
    let (mut sealer, first) = JournalSealer::create(&keys().0, &header, &begin, &BEGUN_WITH);
    let mut frames = vec![first];
    for body in bodies {
        let mut buffer = JournalBuffer::new(0);
        buffer.push(body);
        frames.push(sealer.seal(&head(JournalFrameKind::Wal, 100), buffer));
    }
    assert_eq!(sealer.file_len(), frames.iter().map(|f| f.len() as u64).sum::<u64>());
    frames
}

const ANY: Expect<'static> = Expect { repository: None, key: None, kind: Some(ObjectKind::Journal) };

#[test]
fn frames_come_back() {
    let frames = file(1, &[b"one", b"", b"three"]);
    let opener = JournalOpener::open(&frames[0], &keys(), &ANY).unwrap();
    assert_eq!((opener.generation(), opener.previous()), (Generation(2), &BEGUN_WITH.previous));
    assert_eq!(opener.begin().start, Lsn::new(100));
    let plain = opener.frame(3, &frames[3]).unwrap();
    assert_eq!(JournalFrame::decode(&plain).unwrap().body, b"three");
}

#[test]
fn frames_out_of_place_are_refused() {
    let (ours, others) = (file(1, &[b"one", b"two"]), file(2, &[b"one", b"two"]));
    let opener = JournalOpener::open(&ours[0], &keys(), &ANY).unwrap();
    assert_eq!(opener.frame(1, &ours[2]), Err(OpenError::Broken { frame: 1 }));
    assert_eq!(opener.frame(1, &others[1]), Err(OpenError::Broken { frame: 1 }));
    let place = journal_place(&"other".parse().unwrap(), 7);
    let expect = Expect { key: Some(&place), ..ANY };
    assert!(matches!(JournalOpener::open(&ours[0], &keys(), &expect), Err(OpenError::Misplaced { .. })));
    let stranger = OneKey(EpochSecret([9; 32]), ChunkIdKey([2; 32]));
    assert_eq!(JournalOpener::open(&ours[0], &stranger, &ANY).unwrap_err(), OpenError::WrongKey { epoch: 0 });
}

#[test]
fn equal_wal_never_looks_equal() {
    let (a, b) = (file(1, &[b"same", b"same"]), file(2, &[b"same"]));
    assert_ne!(a[1], a[2]);
    assert_ne!(a[1], b[1]);
}
