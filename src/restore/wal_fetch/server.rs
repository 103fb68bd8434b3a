//! The process that stages WAL ahead of a recovery: one for each data directory, started by a client, in a session of its own
//! so that PostgreSQL's signals pass it by. It ends when recovery is over, when the server is gone, or when nobody asks.

use super::archive::RepoArchive;
use super::stage::{Archive, Outcome, StageOptions, Stager};
use super::{LOCK, LOG, SOCKET, WORKING};
use crate::base::{Env, WalFileName};
use crate::disk::{ScratchDir, available_memory};
use crate::restore::error::RestoreError;
use crate::restore::recovery_file::{NAME, RecoveryFile};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, test_kill_process};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

/// How often the end is looked for.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// A server that nobody asks ends; the next client starts another.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// The same once recovery is over: PostgreSQL takes the signal file away, and only then asks for the history of the timeline it
/// leaves. One that is not answered ends its promotion.
const OVER_MAX: Duration = Duration::from_secs(10);
/// The same when no PostgreSQL runs: somebody may be trying by hand.
const ORPHANED_MAX: Duration = Duration::from_secs(20);
/// How long a store may be away before PostgreSQL is told to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the memory that is available when it starts, this part may hold pages that WAL is differences from: recovery waits for them.
/// What needs more lies in a file beside the staged WAL.
const MEMORY_SHARE: u64 = 4;
/// How often a client that waits is told that its file is being worked on.
const WORKING_INTERVAL: Duration = Duration::from_secs(10);
/// For how long: what takes longer hangs, and the client gives up when it hears nothing more.
const WORKING_MAX: Duration = Duration::from_secs(3600);
/// The longest request.
const REQUEST_BYTES_MAX: u64 = 256;

/// Why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Another serves already.
    NotNeeded,
    /// PostgreSQL has left recovery.
    RecoveryOver,
    /// PostgreSQL does not run.
    Orphaned,
    /// Nobody asked for long.
    Idle,
}

/// Serves the recovery file at `recovery` until the end. Leaves nothing but the log.
pub async fn serve(recovery: &Path, env: Env) -> Result<Ended, RestoreError> {
    // Fails only for the leader of a session, which then has one of its own.
    let _ = rustix::process::setsid();
    let file = RecoveryFile::read(recovery)?;
    let staging = file.staging_dir();
    std::env::set_current_dir(&staging).map_err(|error| RestoreError::io(&staging, "enter", error))?;
    let Some(_lock) = lock(&staging)? else { return Ok(Ended::NotNeeded) };
    clean(&staging);
    let memory = usize::try_from(available_memory() / MEMORY_SHARE).unwrap_or(usize::MAX);
    let scratch = ScratchDir::first_of(vec![staging.clone()]).with_memory(memory);
    let env = Env { scratch: Arc::new(scratch), ..env };
    let listener =
        UnixListener::bind(SOCKET).map_err(|error| RestoreError::io(&staging.join(SOCKET), "bind", error))?;
    tracing::info!(data_dir = %file.data_dir.display(), image_memory_mib = memory >> 20, "serving WAL");
    let data_dir = file.data_dir.clone();
    let options = StageOptions {
        dir: staging.clone(),
        path: file.path.clone(),
        segment_size: file.segment_size,
        needed: file.wal.end,
        patience: patience(),
    };
    let stager = Stager::new(Arc::new(RepoArchive::new(file, env)), options);
    let ended = accept(listener, stager, &data_dir).await;
    tracing::info!(?ended, "done");
    clean(&staging);
    Ok(ended)
}

/// For tests and for impatient operators, in seconds.
fn patience() -> Duration {
    let given = std::env::var("WALDEN_WAL_FETCH_PATIENCE").ok().and_then(|text| text.parse().ok());
    given.map_or(PATIENCE, Duration::from_secs)
}

fn lock(staging: &Path) -> Result<Option<File>, RestoreError> {
    let path = staging.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|error| RestoreError::io(&path, "open", error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(RestoreError::io(&path, "lock", error.into())),
    }
}

/// Removes what a server staged, its socket too. Failing to does no harm: names are checked when they are taken.
fn clean(staging: &Path) {
    let kept = |name: &std::ffi::OsStr| [NAME, LOCK, LOG].iter().any(|kept| name == *kept);
    for entry in fs::read_dir(staging).into_iter().flatten().flatten() {
        if !kept(&entry.file_name()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Who is being answered, and when somebody last was.
#[derive(Debug)]
struct Activity {
    answering: AtomicUsize,
    last: Mutex<Instant>,
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Answering {
        self.answering.fetch_add(1, Ordering::SeqCst);
        Answering(self.clone())
    }

    /// How long nobody has been answered; `None` while somebody is.
    fn idle(&self) -> Option<Duration> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (self.answering.load(Ordering::SeqCst) == 0).then(|| last.elapsed())
    }
}

/// One client is being answered, until this is dropped.
struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.answering.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn accept<A: Archive>(listener: UnixListener, stager: Arc<Stager<A>>, data_dir: &Path) -> Ended {
    let histories = stager.clone();
    tokio::spawn(async move { histories.stage_histories().await });
    let activity = Arc::new(Activity { answering: AtomicUsize::new(0), last: Mutex::new(Instant::now()) });
    let mut watch = tokio::time::interval(WATCH_INTERVAL);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                let (stager, answering) = (stager.clone(), activity.begin());
                tokio::spawn(async move {
                    let _answering = answering;
                    if let Err(error) = answer(socket, &stager).await {
                        tracing::warn!(%error, "a client went away");
                    }
                });
            }
            _ = watch.tick() => {
                if let Some(ended) = activity.idle().and_then(|idle| ended(idle, data_dir)) {
                    return ended;
                }
            }
        }
    }
}

fn ended(idle: Duration, data_dir: &Path) -> Option<Ended> {
    if idle > OVER_MAX && !signalled(data_dir) {
        return Some(Ended::RecoveryOver);
    }
    if idle > ORPHANED_MAX && !postmaster_lives(data_dir) {
        return Some(Ended::Orphaned);
    }
    (idle > IDLE_MAX).then_some(Ended::Idle)
}

/// PostgreSQL removes the file that asked for recovery when recovery ends.
fn signalled(data_dir: &Path) -> bool {
    ["recovery.signal", "standby.signal"].iter().any(|name| data_dir.join(name).exists())
}

fn postmaster_lives(data_dir: &Path) -> bool {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()).map(i32::abs);
    pid.and_then(Pid::from_raw).is_some_and(|pid| {
        test_kill_process(pid).is_ok() || test_kill_process(pid) == Err(rustix::io::Errno::PERM)
    })
}

/// One request, one answer: `want NAME` gets `staged`, `absent WHY` or `failed WHY`, and `working` before it for as long as that takes;
/// `took NAME` gets none.
async fn answer<A: Archive>(socket: UnixStream, stager: &Arc<Stager<A>>) -> io::Result<()> {
    let (from, mut to) = socket.into_split();
    let mut line = String::new();
    BufReader::new(tokio::io::AsyncReadExt::take(from, REQUEST_BYTES_MAX)).read_line(&mut line).await?;
    let (verb, name) = line.trim_end().split_once(' ').unwrap_or_default();
    let Ok(name) = name.parse::<WalFileName>() else {
        return to.write_all(b"failed the request names no file\n").await;
    };
    match verb {
        "took" => {
            stager.stage_after(name);
            Ok(())
        }
        "want" => {
            let (mut wanted, begun) = (std::pin::pin!(stager.want(name)), Instant::now());
            let outcome = loop {
                match tokio::time::timeout(WORKING_INTERVAL, &mut wanted).await {
                    Ok(outcome) => break outcome,
                    // An epoch of WAL deltas may have to be decoded first.
                    Err(_) if begun.elapsed() < WORKING_MAX => {
                        to.write_all(format!("{WORKING}\n").as_bytes()).await?;
                    }
                    Err(_) => {}
                }
            };
            tracing::info!(%name, ?outcome, "asked for");
            to.write_all(reply(&outcome).as_bytes()).await
        }
        _ => to.write_all(b"failed the request is unknown\n").await,
    }
}

fn reply(outcome: &Outcome) -> String {
    let line = |word: &str, reason: &str| format!("{word} {}\n", reason.replace(['\n', '\r'], " "));
    match outcome {
        Outcome::Staged => "staged\n".to_owned(),
        Outcome::Absent(reason) => line("absent", reason),
        Outcome::Failed(reason) => line("failed", reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Lsn, LsnRange, SegmentSize, TimelineId};
    use crate::repo::lineage::TimelinePath;
    use crate::restore::wal_fetch::stage::Trouble;
    use async_trait::async_trait;
    use bytes::Bytes;
    use tokio::sync::OwnedMutexGuard;

    /// An archive that proves only after so long that it has nothing.
    struct Slow(Duration);

    #[async_trait]
    impl Archive for Slow {
        async fn run(&self, _from: Lsn) -> Result<LsnRange, Trouble> {
            tokio::time::sleep(self.0).await;
            Ok(LsnRange::new(Lsn::ZERO, Lsn::ZERO))
        }

        async fn history(&self, _timeline: TimelineId) -> Result<Option<Bytes>, Trouble> {
            tokio::time::sleep(self.0).await;
            Ok(None)
        }

        async fn histories(&self) -> Result<Vec<TimelineId>, Trouble> {
            Ok(Vec::new())
        }

        async fn turn(&self) -> Result<Option<OwnedMutexGuard<()>>, Trouble> {
            Ok(None)
        }

        async fn read_some(&self, _range: LsnRange) -> Result<Bytes, Trouble> {
            Err(Trouble::Lasting("nothing is there".into()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_that_it_goes_on_for_an_hour_at_most() {
        for (seconds, told) in [(5, 0), (35, 3), (3 * 3600, 359)] {
            let dir = tempfile::tempdir().unwrap();
            let options = StageOptions {
                dir: dir.path().to_owned(),
                path: TimelinePath::new(TimelineId(1), &[]).unwrap(),
                segment_size: SegmentSize::DEFAULT,
                needed: Lsn::ZERO,
                patience: Duration::ZERO,
            };
            let stager = Stager::new(Arc::new(Slow(Duration::from_secs(seconds))), options);
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(b"want 00000002.history\n").await.unwrap();
            let answering = tokio::spawn(async move { answer(theirs, &stager).await });
            let mut lines = Vec::new();
            let mut from = BufReader::new(ours).lines();
            while let Some(line) = from.next_line().await.unwrap() {
                lines.push(line);
            }
            answering.await.unwrap().unwrap();
            let last = lines.pop().unwrap();
            assert!(last.starts_with("absent "), "{last}");
            assert_eq!((lines.len(), lines.iter().all(|line| line == WORKING)), (told, true), "{seconds} s");
        }
    }

    #[test]
    fn what_is_asked_right_after_the_signal_file_went_is_still_answered() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("recovery.signal"), "").unwrap();
        assert_eq!(ended(OVER_MAX * 2, dir.path()), None);
        fs::remove_file(dir.path().join("recovery.signal")).unwrap();
        assert_eq!(ended(Duration::ZERO, dir.path()), None, "PostgreSQL asks for the timeline's history now");
        assert_eq!(ended(OVER_MAX * 2, dir.path()), Some(Ended::RecoveryOver));
    }
}
