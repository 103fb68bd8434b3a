//! The journal under random work, faults, kills and power cuts. What `sync` said is durable is there afterwards.

use super::*;

/// Rounds of lives in one story.
const LIVES: usize = 5;

/// What a planted bug changes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    None,
    SyncDataSkipped,
    SyncDirSkipped,
    BelievesAFailedSync,
    TrimsEarly,
}

/// One story; `Err` says what was lost. The story is told by the seed alone.
async fn story(seed: u64, bug: Bug) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut disk = SimDisk::new(seed);
    // What `sync` said, what was durable elsewhere when it was trimmed, and what was ever appended.
    let (mut said, mut elsewhere, mut appended) = (0, 0, 0);
    for life in 0..LIVES {
        let salt = seed.wrapping_mul(1000).wrapping_add(life as u64);
        for attempt in 0..rng.u64(..3) {
            disk = interrupted_open(disk, &mut rng, salt + 100 * (attempt + 1)).await;
        }
        disk.set_faults(DiskFaults::default());
        let (mut journal, recovery) = match open_with(&disk, 256 << 10, salt).await {
            Ok(opened) => opened,
            Err(error) => return Err(format!("life {life}: {error}")),
        };
        let runs = runs(&journal).await;
        let covers = |from: u64, to: u64| from >= to || runs.iter().any(|run| run.0 <= from && to <= run.1);
        if !covers(elsewhere, said) {
            return Err(format!("life {life}: {elsewhere}..{said} is not in {runs:?}"));
        }
        let found = recovery.found.iter().map(|found| found.range.end.get()).max();
        assert!(found.is_none_or(|end| end <= appended) && !recovery.tail_not_durable);
        assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0));
        let end = journal.end().map_or(0, |end| end.lsn.get());
        assert_eq!(journal.synced(), journal.end());
        assert!(end >= said || elsewhere >= said);
        // What was found is durable again, by its own account.
        said = end.max(said);
        elsewhere = elsewhere.max(if end < said { said } else { elsewhere });
        let first = said;
        let mut at_lsn = first;
        disk.set_faults(DiskFaults {
            sync_fails: if rng.bool() { 0.1 } else { 0.0 },
            append_fails: if rng.bool() { 0.05 } else { 0.0 },
            capacity: rng.bool().then_some(400_000),
            sync_data_is_skipped: bug == Bug::SyncDataSkipped,
            sync_dir_is_skipped: bug == Bug::SyncDirSkipped,
            latency: Duration::ZERO..Duration::ZERO,
        });
        for _ in 0..rng.usize(1..50) {
            match rng.u8(..10) {
                0..=5 => {
                    let len = if rng.u8(..8) == 0 { rng.u64(1..40_000) } else { rng.u64(1..600) };
                    appended = appended.max(at_lsn + len);
                    let _ = journal.append(&record(at_lsn, len)).await;
                }
                6..=8 => {
                    let synced = journal.sync().await;
                    if synced.is_ok() {
                        assert_eq!(journal.synced(), journal.end());
                    }
                    said = said.max(journal.synced().map_or(0, |synced| synced.lsn.get()));
                    if synced.is_err() && bug == Bug::BelievesAFailedSync {
                        said = said.max(at_lsn);
                    }
                }
                _ => {
                    let slip = if bug == Bug::TrimsEarly { 60_000 } else { 0 };
                    elsewhere = elsewhere.max(rng.u64(0..=said));
                    // A removal that failed is tried again; what it removed is gone.
                    let _ = journal.trim(at(elsewhere + slip)).await;
                }
            }
            // What an error took back is appended again from there.
            at_lsn = journal.end().map_or(first, |end| end.lsn.get());
        }
        match rng.u8(..4) {
            0 => {
                said = journal.finish().await.ok().flatten().map_or(said, |end| said.max(end.lsn.get()));
                disk = disk.crash();
            }
            1 => disk = disk.kill(),
            2 => disk = disk.kill().crash(),
            _ => disk = disk.crash(),
        }
    }
    Ok(())
}

/// Opens the journal and dies in the middle of it: what an earlier crash left must not be lost by the next.
async fn interrupted_open(disk: SimDisk, rng: &mut fastrand::Rng, salt: u64) -> SimDisk {
    let latency = Duration::from_millis(1)..Duration::from_millis(2);
    disk.set_faults(DiskFaults { latency, ..DiskFaults::default() });
    let patience = Duration::from_micros(rng.u64(0..60_000));
    let _ = tokio::time::timeout(patience, open_with(&disk, 256 << 10, salt)).await;
    if rng.bool() { disk.crash() } else { disk.kill() }
}

fn stories(bug: Bug, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    let mut caught = None;
    run(async {
        for seed in seeds {
            if let Err(what) = story(seed, bug).await {
                caught = Some((seed, what));
                break;
            }
        }
    });
    caught
}

/// 200 seeds from `WALDEN_SEED` on, 10,000 in a long run.
fn seeds() -> std::ops::Range<u64> {
    let seed = std::env::var("WALDEN_SEED").ok().and_then(|value| value.parse::<u64>().ok()).unwrap_or(1);
    let first = seed.wrapping_mul(1_000_000) >> 1;
    first..first + if std::env::var_os("WALDEN_LONG").is_some() { 10_000 } else { 200 }
}

#[test]
fn what_was_said_to_be_durable_is_found_after_every_crash() {
    assert_eq!(stories(Bug::None, seeds()), None);
}

#[test]
fn planted_bugs_are_caught() {
    for bug in [Bug::SyncDataSkipped, Bug::SyncDirSkipped, Bug::BelievesAFailedSync, Bug::TrimsEarly] {
        assert!(stories(bug, 0..200).is_some(), "{bug:?} was not caught within 200 seeds");
    }
}
