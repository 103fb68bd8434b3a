//! Staging, against an archive that fails as told.

use super::*;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::OwnedMutexGuard;

const SIZE: u64 = 1 << 20;
/// Reads that a whole segment takes.
const READS_PER_SEGMENT: usize = 4;

#[derive(Debug)]
struct Fake {
    end: AtomicU64,
    failures: AtomicUsize,
    lasting: bool,
    turn: Option<Arc<tokio::sync::Mutex<()>>>,
    reads: AtomicUsize,
    /// Where each read began.
    starts: Mutex<Vec<Lsn>>,
}

impl Fake {
    fn new(end: u64) -> Arc<Fake> {
        Arc::new(Fake {
            end: end.into(),
            failures: 0.into(),
            lasting: false,
            turn: None,
            reads: 0.into(),
            starts: Mutex::default(),
        })
    }

    fn trouble(&self) -> Result<(), Trouble> {
        let left = self.failures.load(Ordering::SeqCst);
        if left == 0 {
            return Ok(());
        }
        self.failures.store(left - 1, Ordering::SeqCst);
        Err(if self.lasting { Trouble::Lasting("bad".into()) } else { Trouble::Passing("away".into()) })
    }
}

/// The byte of the path at `at`.
fn byte(at: u64) -> u8 {
    (at / 1000 % 250) as u8 + 1
}

#[async_trait]
impl Archive for Fake {
    async fn run(&self, _from: Lsn) -> Result<LsnRange, Trouble> {
        self.trouble()?;
        Ok(LsnRange::new(Lsn::ZERO, Lsn::new(self.end.load(Ordering::SeqCst))))
    }

    async fn history(&self, timeline: TimelineId) -> Result<Option<Bytes>, Trouble> {
        self.trouble()?;
        Ok((timeline.0 == 2).then(|| Bytes::from_static(b"1\t0/1\tx\n")))
    }

    async fn histories(&self) -> Result<Vec<TimelineId>, Trouble> {
        Ok(vec![TimelineId(2)])
    }

    async fn turn(&self) -> Result<Option<OwnedMutexGuard<()>>, Trouble> {
        match self.turn.clone() {
            Some(turn) => Ok(Some(turn.lock_owned().await)),
            None => Ok(None),
        }
    }

    async fn read_some(&self, range: LsnRange) -> Result<Bytes, Trouble> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.starts.lock().unwrap().push(range.start);
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.trouble()?;
        let end = range.end.get().min(range.start.get() + SIZE / READS_PER_SEGMENT as u64);
        Ok((range.start.get()..end).map(byte).collect())
    }
}

fn stager(dir: &Path, archive: &Arc<Fake>, patience: Duration) -> Arc<Stager<Fake>> {
    let options = StageOptions {
        dir: dir.to_owned(),
        path: TimelinePath::new(TimelineId(1), &[]).unwrap(),
        segment_size: SegmentSize::new(SIZE).unwrap(),
        needed: Lsn::new(6 * SIZE),
        patience,
    };
    Stager::new(archive.clone(), options)
}

fn segment(number: u64) -> WalFileName {
    WalFileName::segment(TimelineId(1), SegmentNo(number), SegmentSize::new(SIZE).unwrap())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_segment_is_whole_and_its_missing_end_is_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Fake::new(2 * SIZE + 700_001);
    let stager = stager(dir.path(), &archive, Duration::ZERO);
    assert_eq!(stager.want(segment(2)).await, Outcome::Staged);
    let content = std::fs::read(dir.path().join(segment(2).to_string())).unwrap();
    let expected: Vec<u8> =
        (2 * SIZE..3 * SIZE).map(|at| if at < 2 * SIZE + 700_001 { byte(at) } else { 0 }).collect();
    assert!(content == expected);
    assert_eq!(names(dir.path()).len(), 1, "no temporary file is left");
}

#[tokio::test]
async fn what_is_not_there_is_absent_and_history_files_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let stager = stager(dir.path(), &Fake::new(SIZE), Duration::ZERO);
    assert!(matches!(stager.want(segment(1)).await, Outcome::Absent(_)));
    assert!(matches!(stager.want(WalFileName::History(TimelineId(3))).await, Outcome::Absent(_)));
    stager.stage_histories().await;
    assert_eq!(std::fs::read(dir.path().join("00000002.history")).unwrap(), b"1\t0/1\tx\n");
    let impossible = WalFileName::Segment { timeline: TimelineId(1), xlog_id: 0, index: u32::MAX };
    assert!(matches!(stager.want(impossible).await, Outcome::Absent(_)));
}

#[tokio::test(start_paused = true)]
async fn trouble_that_passes_is_waited_out_and_trouble_that_stays_is_no_absence() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Fake::new(8 * SIZE);
    archive.failures.store(5, Ordering::SeqCst);
    let patient = stager(dir.path(), &archive, Duration::from_secs(60));
    assert_eq!(patient.want(segment(0)).await, Outcome::Staged);
    archive.failures.store(usize::MAX, Ordering::SeqCst);
    let started = Instant::now();
    assert_eq!(patient.want(segment(1)).await, Outcome::Failed("away".into()));
    assert!(started.elapsed() >= Duration::from_secs(50), "{:?}", started.elapsed());
    assert_eq!(patient.want(WalFileName::History(TimelineId(9))).await, Outcome::Failed("away".into()));
}

#[tokio::test]
async fn lasting_trouble_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Arc::new(Fake {
        end: (8 * SIZE).into(),
        failures: usize::MAX.into(),
        lasting: true,
        turn: None,
        reads: 0.into(),
        starts: Mutex::default(),
    });
    let patient = stager(dir.path(), &archive, Duration::from_secs(3600));
    assert_eq!(patient.want(segment(1)).await, Outcome::Failed("bad".into()));
}

#[tokio::test]
async fn the_same_file_is_fetched_once_for_all_who_ask() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Fake::new(8 * SIZE);
    let stager = stager(dir.path(), &archive, Duration::ZERO);
    let (one, two, three) =
        tokio::join!(stager.want(segment(3)), stager.want(segment(3)), stager.want(segment(3)));
    assert_eq!((one, two, three), (Outcome::Staged, Outcome::Staged, Outcome::Staged));
    assert_eq!(archive.reads.load(Ordering::SeqCst), 4, "four pieces of one segment");
    assert_eq!(stager.want(segment(3)).await, Outcome::Staged);
    assert_eq!(archive.reads.load(Ordering::SeqCst), 4, "it is there already");
    // Taken away, it is fetched again: PostgreSQL asks for some segments twice.
    std::fs::remove_file(dir.path().join(segment(3).to_string())).unwrap();
    assert_eq!(stager.want(segment(3)).await, Outcome::Staged);
    assert_eq!(archive.reads.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn what_comes_next_is_staged_up_to_what_recovery_needs() {
    let dir = tempfile::tempdir().unwrap();
    let stager = stager(dir.path(), &Fake::new(20 * SIZE), Duration::ZERO);
    stager.stage_after(segment(2));
    while names(dir.path()).iter().filter(|name| !name.ends_with(".tmp")).count() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(names(dir.path()), [3, 4, 5].map(|n| segment(n).to_string()));
}

/// What PostgreSQL does with a staged segment.
fn take(dir: &Path, number: u64) {
    std::fs::remove_file(dir.join(segment(number).to_string())).unwrap();
}

async fn staged(dir: &Path, numbers: &[u64]) {
    let all = || numbers.iter().all(|number| dir.join(segment(*number).to_string()).exists());
    while !all() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_was_taken_is_staged_ahead_again_only_for_a_recovery_that_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Fake::new(8 * SIZE);
    let stager = stager(dir.path(), &archive, Duration::ZERO);
    assert_eq!(stager.want(segment(0)).await, Outcome::Staged);
    stager.stage_after(segment(0));
    staged(dir.path(), &[1, 2, 3, 4, 5]).await;
    // PostgreSQL is quicker than the word that it took them.
    (0..4).for_each(|number| take(dir.path(), number));
    let reads = archive.reads.load(Ordering::SeqCst);
    for number in 0..4 {
        stager.stage_after(segment(number));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(archive.reads.load(Ordering::SeqCst), reads);
    assert_eq!(names(dir.path()), [4, 5].map(|number| segment(number).to_string()));

    assert_eq!(stager.want(segment(1)).await, Outcome::Staged);
    stager.stage_after(segment(1));
    staged(dir.path(), &[1, 2, 3, 4, 5]).await;
}

#[tokio::test]
async fn the_last_segment_is_read_once_where_going_back_is_dear() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Arc::new(Fake {
        turn: Some(Arc::default()),
        ..Arc::into_inner(Fake::new(5 * SIZE + 70_000)).unwrap()
    });
    let options = StageOptions {
        dir: dir.path().to_owned(),
        path: TimelinePath::new(TimelineId(1), &[]).unwrap(),
        segment_size: SegmentSize::new(SIZE).unwrap(),
        needed: Lsn::new(5 * SIZE + 70_000),
        patience: Duration::ZERO,
    };
    let stager = Stager::new(archive.clone(), options);
    let mut found = Vec::new();
    for reads in [1, 1] {
        assert_eq!(stager.want(segment(5)).await, Outcome::Staged);
        found.push(std::fs::read(dir.path().join(segment(5).to_string())).unwrap());
        take(dir.path(), 5);
        assert_eq!(archive.reads.load(Ordering::SeqCst), reads);
    }
    assert!(found[0] == found[1] && found[0].len() == SIZE as usize);
    // The copy is only that.
    std::fs::remove_file(dir.path().join(LAST)).unwrap();
    assert_eq!(stager.want(segment(5)).await, Outcome::Staged);
    take(dir.path(), 5);
    assert_eq!(archive.reads.load(Ordering::SeqCst), 2);
    // More of it was archived since.
    archive.end.store(5 * SIZE + 80_000, Ordering::SeqCst);
    assert_eq!(stager.want(segment(5)).await, Outcome::Staged);
    assert_eq!(archive.reads.load(Ordering::SeqCst), 3);
    assert!(std::fs::read(dir.path().join(segment(5).to_string())).unwrap() != found[0]);
}

/// Stages ahead with a disk that takes nothing for now: as many segments are read meanwhile as may be under way, `ordered` ones in their order.
fn read_while_the_disk_is_busy(ordered: bool) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let turn = ordered.then(Arc::default);
        let archive = Arc::new(Fake { turn, ..Arc::into_inner(Fake::new(8 * SIZE)).unwrap() });
        let stager = stager(dir.path(), &archive, Duration::ZERO);
        // Nothing reaches the disk before this lets the only thread go that waits for it.
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let holder = tokio::task::spawn_blocking(move || held.recv());
        stager.stage_after(segment(0));
        let reads = AHEAD_FETCHES_MAX * READS_PER_SEGMENT;
        while archive.reads.load(Ordering::SeqCst) < reads {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(archive.reads.load(Ordering::SeqCst), reads, "no more than may be under way");
        assert!(names(dir.path()).iter().all(|name| name.ends_with(".tmp")));
        drop(let_go);
        assert!(holder.await.unwrap().is_err());
        staged(dir.path(), &[1, 2, 3, 4, 5]).await;
        let starts = archive.starts.lock().unwrap().clone();
        assert!(!ordered || starts.is_sorted(), "{starts:?}");
    });
}

#[test]
fn segments_are_read_while_the_disk_has_yet_to_take_those_before() {
    read_while_the_disk_is_busy(false);
    read_while_the_disk_is_busy(true);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_what_is_fetched_ahead_is_patient_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Fake::new(8 * SIZE);
    let stager = stager(dir.path(), &archive, Duration::from_secs(60));
    stager.stage_after(segment(0));
    while archive.reads.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    archive.failures.store(3, Ordering::SeqCst);
    assert_eq!(stager.want(segment(1)).await, Outcome::Staged);
}

#[tokio::test]
async fn who_asks_for_what_is_under_way_does_not_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Fake::new(8 * SIZE);
    let stager = stager(dir.path(), &archive, Duration::ZERO);
    // Later ones were staged already.
    stager.staged_end.store(7, Ordering::Relaxed);
    let permit = stager.ahead_fetches.clone().acquire_owned().await.unwrap();
    let (_, ours) = stager.begin(segment(3), Duration::ZERO, Some(permit));
    assert!(ours);
    assert_eq!(stager.want(segment(3)).await, Outcome::Staged);
    assert_eq!(stager.staged_end.load(Ordering::Relaxed), 7);
    take(dir.path(), 3);
    assert_eq!(stager.want(segment(3)).await, Outcome::Staged);
    assert_eq!(stager.staged_end.load(Ordering::Relaxed), 4, "now it goes back");
}
