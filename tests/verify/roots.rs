//! A newest root that is damaged, or gone, in every way: named, made anew, and everything is restored as before.

use crate::bed::*;
use std::collections::BTreeSet;
use walden::base::ObjectKey;
use walden::format::header::ObjectKind;
use walden::format::root::Root;
use walden::repair::root::{self, Plan};
use walden::repair::{self, Health, Options};
use walden::repo::index::IndexEdit;
use walden::repo::{Cluster, RepoError, RootChange, layout, roots, walmap};
use walden::verify::Report;

/// A way in which a root is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Deleted,
    Emptied,
    Truncated,
    Flipped,
    /// An older root of its cluster stands in its place.
    Older,
    /// The other cluster's root of that number, or its newest.
    OfAnother,
}

const LOSSES: [Loss; 6] =
    [Loss::Deleted, Loss::Emptied, Loss::Truncated, Loss::Flipped, Loss::Older, Loss::OfAnother];

fn root_keys(cluster: &str) -> Vec<ObjectKey> {
    let prefix = format!("clusters/{cluster}/roots/");
    scene().objects.keys().filter(|key| key.as_str().starts_with(&prefix)).cloned().collect()
}

fn lose(store: Damaged, key: &ObjectKey, loss: Loss) -> Damaged {
    let (bytes, keys) = (&scene().objects[key], root_keys(CLUSTER));
    let other = match loss {
        Loss::Deleted => None,
        Loss::Emptied => Some(bytes.slice(..0)),
        Loss::Truncated => Some(bytes.slice(..bytes.len() / 2)),
        Loss::Flipped => return store.flipped(key, bytes.len() / 2, 0x10),
        Loss::Older => Some(scene().objects[&keys[0]].clone()),
        Loss::OfAnother => {
            let theirs = root_keys(OTHER);
            let same = theirs.iter().find(|other| other.file_name() == key.file_name());
            Some(scene().objects[same.or(theirs.last()).unwrap()].clone())
        }
    };
    store.with(key, other)
}

/// A store that can be written to, without its newest `count` roots.
fn without_roots(count: usize, loss: Loss) -> Damaged {
    let keys = root_keys(CLUSTER);
    keys[keys.len() - count..].iter().fold(Damaged::nowhere().writable(), |store, key| lose(store, key, loss))
}

fn number(key: &ObjectKey) -> u64 {
    key.file_name().parse().unwrap()
}

async fn repaired(store: &Damaged) -> (Plan, Root) {
    let cluster = cluster_unread(store).await;
    let plan = root::plan(&cluster).await.unwrap();
    let root = root::commit(&cluster, &plan).await.unwrap();
    (plan, root)
}

async fn assert_all_is_restored(store: &Damaged, told: &str) {
    for number in 0..backup_ids().len() {
        let files = restored_backup(store, number).await.unwrap_or_else(|error| panic!("{told}: {error}"));
        assert!(files == scene().backups[number], "{told}: backup {number}");
    }
    let (files, wal) = restored(store).await.unwrap_or_else(|error| panic!("{told}: {error}"));
    assert!(files == scene().backups[1] && wal == scene().wal, "{told}");
}

/// What a report names, but for roots that were damaged.
fn others(report: &Report, damaged: &[ObjectKey]) -> Vec<String> {
    let damaged: BTreeSet<&str> = damaged.iter().map(ObjectKey::as_str).collect();
    let keys = report.findings.iter().map(|finding| finding.key.clone());
    keys.filter(|key| !damaged.contains(key.as_str())).collect()
}

#[test]
fn the_newest_root_lost_in_any_way_is_made_anew_and_everything_is_restored() {
    block_on(async {
        let keys = root_keys(CLUSTER);
        let newest = keys.last().unwrap();
        for loss in LOSSES {
            let (store, told) = (without_roots(1, loss), format!("{loss:?}"));
            let seen = loss != Loss::Deleted;
            let report = verified(&store).await.unwrap();
            assert_eq!(names(&report, newest), seen, "{told}");
            if seen {
                let cost =
                    &report.findings.iter().find(|finding| finding.key == newest.as_str()).unwrap().cost;
                assert!(cost.contains("walden repair root"), "{cost}");
                assert!(cluster(&store).await.unwrap_err().is_damage(), "{told}");
            }
            let (plan, root) = repaired(&store).await;
            assert_eq!(plan.is_whole(), !seen, "{told}");
            assert_eq!(plan.base.number, number(newest) - 1, "{told}");
            assert_eq!(root.number, number(newest) + u64::from(seen), "{told}");
            assert_eq!(root.rebuilt_at(), Some(root.number));
            assert_all_is_restored(&store, &told).await;
            let report = verified(&store).await.unwrap();
            let damaged = if seen { std::slice::from_ref(newest) } else { &[] };
            assert_eq!(others(&report, damaged), Vec::<String>::new(), "{told}");
            // There is nothing to repair any more.
            assert!(root::plan(&cluster_unread(&store).await).await.unwrap().is_whole(), "{told}");
        }
    });
}

#[test]
fn however_many_of_the_newest_roots_are_lost_nothing_else_is() {
    block_on(async {
        let keys = root_keys(CLUSTER);
        let (mut streams, mut backups) = (0, 0);
        for count in 1..keys.len() {
            let told = format!("{count} of {}", keys.len());
            let store = without_roots(count, Loss::Flipped);
            let (plan, root) = repaired(&store).await;
            assert_eq!(
                (plan.unreadable.len(), plan.base.number),
                (count, number(&keys[keys.len() - count - 1]))
            );
            let last = cluster(&Damaged::nowhere()).await.unwrap().newest_root().await.unwrap();
            assert!(root.writer_epoch > last.writer_epoch, "{told}");
            assert!(plan.broken_index.is_none(), "{told}");
            (streams, backups) =
                (streams.max(plan.streams.len()), backups.max(plan.additions.page.backups.len()));
            assert_all_is_restored(&store, &told).await;
            let report = verified(&store).await.unwrap();
            assert_eq!(others(&report, &keys), Vec::<String>::new(), "{told}");
        }
        assert!(streams > 0 && backups > 0, "{streams} streams and {backups} backups were found");
    });
}

#[test]
fn roots_that_are_gone_are_noticed_by_the_streams_they_named() {
    block_on(async {
        let keys = root_keys(CLUSTER);
        let mut noticed = 0;
        for count in 1..keys.len() {
            let store = without_roots(count, Loss::Deleted);
            let plan = root::plan(&cluster_unread(&store).await).await.unwrap();
            let streams = walmap::load(&cluster(&store).await.unwrap()).await.unwrap().root.streams.len();
            assert_eq!(plan.is_whole(), plan.streams.is_empty());
            noticed += usize::from(!plan.is_whole());
            let (plan, root) = repaired(&store).await;
            assert_eq!(
                (root.number, root.streams.len()),
                (plan.base.number + 1, streams + plan.streams.len())
            );
            assert_all_is_restored(&store, &format!("{count} are gone")).await;
        }
        assert!(noticed > 0, "no root that is gone had named a stream");
    });
}

/// Every object of a stream that the newest roots named, damaged in every way that headers, chains and fences can be.
#[test]
fn a_stream_whose_objects_are_damaged_is_named_or_said_to_be_lost() {
    block_on(async {
        let (mut named, mut unread) = (0, 0);
        for count in 1..root_keys(CLUSTER).len() {
            let lost = without_roots(count, Loss::Flipped);
            let found = root::plan(&cluster_unread(&lost).await).await.unwrap().streams;
            for stream in found {
                let prefix = format!("clusters/{CLUSTER}/wal/{}/", stream.id);
                let keys = scene().objects.keys().filter(|key| key.as_str().starts_with(&prefix));
                for key in keys {
                    let ways = [
                        lost.clone().failing(key.as_str(), Fails::Unreadable),
                        lost.clone().flipped(key, 20, 1),
                        lost.clone().flipped(key, 200, 1),
                    ];
                    for store in ways {
                        let plan = root::plan(&cluster_unread(&store).await).await.unwrap();
                        let is_named = plan.streams.iter().any(|entry| entry.id == stream.id);
                        let is_unread = plan.streams_unread.iter().any(|unread| unread.id == stream.id);
                        assert!(is_named != is_unread, "{key}, {count} roots lost: {plan:?}");
                        (named, unread) = (named + u32::from(is_named), unread + u32::from(is_unread));
                    }
                }
            }
        }
        assert!(named > 0, "{named} times named, {unread} times unread");
    });
}

#[test]
fn a_root_that_is_gone_from_the_middle_is_made_anew() {
    block_on(async {
        let keys = root_keys(CLUSTER);
        for gone in 1..keys.len() - 1 {
            let key = &keys[gone];
            let store = lose(Damaged::nowhere().writable(), key, Loss::Deleted);
            assert!(names(&verified(&store).await.unwrap(), key), "{key}");
            let (plan, root) = repaired(&store).await;
            let newest = number(keys.last().unwrap());
            assert_eq!(
                (&plan.holes, plan.base.number, root.number),
                (&vec![number(key)], newest, newest + 1)
            );
            assert_eq!(others(&verified(&store).await.unwrap(), &[]), Vec::<String>::new(), "{key}");
            assert_all_is_restored(&store, key.as_str()).await;
        }
    });
}

#[test]
fn without_any_root_that_can_be_read_nothing_is_made() {
    block_on(async {
        let keys = root_keys(CLUSTER);
        let store = without_roots(keys.len(), Loss::Flipped);
        let error = root::plan(&cluster_unread(&store).await).await.unwrap_err();
        let RepoError::Conflict { reason } = &error else { panic!("{error}") };
        assert!(reason.contains("no root of cluster shop can be read"), "{reason}");
        assert!(store.written().is_empty());
        // One that is below the floor proves nothing.
        let below = layout::root(&CLUSTER.parse().unwrap(), number(&keys[0]) - 1);
        let store = store.with(&below, Some(scene().objects[&keys[0]].clone()));
        root::plan(&cluster_unread(&store).await).await.unwrap_err();
    });
}

/// The newest root with its header changed, and the checksum of that made right.
fn with_header(change: impl FnOnce(&mut [u8])) -> Damaged {
    let newest = root_keys(CLUSTER).pop().unwrap();
    let mut bytes = scene().objects[&newest].to_vec();
    change(&mut bytes[..152]);
    let crc = crc32fast::hash(&bytes[..152]);
    bytes[152..156].copy_from_slice(&crc.to_le_bytes());
    Damaged::nowhere().writable().with(&newest, Some(bytes.into()))
}

#[test]
fn a_root_that_is_whole_and_not_understood_is_left_as_it_is() {
    block_on(async {
        let newest = root_keys(CLUSTER).pop().unwrap();
        // A record that is not one, under a good seal.
        let whole = cluster(&Damaged::nowhere()).await.unwrap();
        let writer = whole.repo().writer(ObjectKind::Root, &newest, [0; 16], number(&newest), 9);
        let record = writer.finish(vec![0xff; 40]).bytes;
        let cases = [
            ("a required bit that is not known", with_header(|header| header[12] = 0x80), true),
            ("a major version that is not known", with_header(|header| header[6] += 1), true),
            ("a record", Damaged::nowhere().writable().with(&newest, Some(record)), true),
            ("another secret", with_header(|header| header[151] ^= 1), false),
        ];
        for (told, store, is_newer) in cases {
            assert!(cluster(&store).await.is_err(), "{told}");
            let error = root::plan(&cluster_unread(&store).await).await.unwrap_err();
            match (&error, is_newer) {
                (RepoError::Newer { .. }, true) | (RepoError::NoKey { .. }, false) => {}
                _ => panic!("{told}: {error}"),
            }
            assert!(store.written().is_empty(), "{told}");
        }
    });
}

#[test]
fn whoever_commits_meanwhile_wins() {
    block_on(async {
        let keys = root_keys(CLUSTER);
        let newest = keys.last().unwrap();
        let store = without_roots(1, Loss::Flipped);
        let repairing = cluster_unread(&store).await;
        let plan = root::plan(&repairing).await.unwrap();
        // Somebody who read the root when it was whole goes on from it.
        let whole = store.clone().with(newest, Some(scene().objects[newest].clone()));
        let theirs = cluster(&whole).await.unwrap();
        let edit = |root: &Root| Ok::<_, RepoError>(Some(RootChange::of(root.clone())));
        let won = theirs.commit(edit).await.unwrap();
        assert_eq!(won.number, plan.number);
        let error = root::commit(&repairing, &plan).await.unwrap_err();
        assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
        assert_eq!(cluster(&store).await.unwrap().newest_root().await.unwrap(), won);
        assert!(root::plan(&repairing).await.unwrap().is_whole());
        // Of two that repair one wins, and the other changes nothing.
        let store = without_roots(1, Loss::Flipped);
        let (one, other) = (cluster_unread(&store).await, cluster_unread(&store).await);
        let plans = (root::plan(&one).await.unwrap(), root::plan(&other).await.unwrap());
        let won = root::commit(&one, &plans.0).await.unwrap();
        root::commit(&other, &plans.1).await.unwrap_err();
        assert_eq!(other.newest_root().await.unwrap(), won);
        // Nor where the number of a root that is gone was taken: by another repair, or as it was put back.
        let hole = &keys[keys.len() - 2];
        let store = lose(Damaged::nowhere().writable(), hole, Loss::Deleted);
        let plan = root::plan(&cluster_unread(&store).await).await.unwrap();
        let back = store.clone().with(hole, Some(scene().objects[hole].clone()));
        let error = root::commit(&cluster_unread(&back).await, &plan).await.unwrap_err();
        assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
        assert!(store.written().keys().all(|key| !key.as_str().contains("/roots/")));
        // Nor when the damaged root was removed.
        let store = without_roots(1, Loss::Flipped);
        let plan = root::plan(&cluster_unread(&store).await).await.unwrap();
        let error = root::commit(&cluster_unread(&lose(store, newest, Loss::Deleted)).await, &plan).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("was removed meanwhile"), "{error}");
        // Nor is anything made when a whole copy was put back.
        let store = without_roots(1, Loss::Flipped);
        let plan = root::plan(&cluster_unread(&store).await).await.unwrap();
        let back = store.clone().with(newest, Some(scene().objects[newest].clone()));
        root::commit(&cluster_unread(&back).await, &plan).await.unwrap_err();
        assert!(store.written().keys().all(|key| !key.as_str().contains("/roots/")));
    });
}

/// A commit that rewrites the index, so that an index object is made for the newest root; both lost.
async fn with_its_index(flipped: usize) -> (Damaged, ObjectKey) {
    let store = Damaged::nowhere().writable();
    let whole = cluster(&store).await.unwrap();
    let committed = whole
        .commit_indexed(|root, index| {
            let mut next = root.clone();
            next.pending.clear();
            let index = IndexEdit::Rewrite(index.clone().into_page());
            Ok::<_, RepoError>(Some(RootChange { root: next, index }))
        })
        .await
        .unwrap();
    let key = layout::index(whole.name(), committed.index.unwrap());
    store.alter(&layout::root(whole.name(), committed.number), |bytes| bytes[200] ^= 1);
    store.alter(&key, |bytes| bytes[flipped] ^= 1);
    (store, key)
}

#[test]
fn where_the_index_of_the_lost_root_is_damaged_too_it_is_made_anew_next() {
    block_on(async {
        // In its directory, and in its header: then only its age says that it may be that root's.
        for flipped in [200, 20] {
            let (store, key) = with_its_index(flipped).await;
            let (plan, root) = repaired(&store).await;
            let broken = plan.broken_index.unwrap();
            assert_eq!((broken.key.as_str(), root.index), (key.as_str(), Some(broken.id)));
            let whole = cluster(&store).await.unwrap();
            assert!(walmap::load(&whole).await.unwrap_err().is_damage());
            end_work(&whole).await;
            let plan = repair::plan(&whole, &Options::default(), &walden::base::Unwatched).await.unwrap();
            assert!(matches!(plan.health, Health::Broken { .. }));
            repair::commit(&whole, &plan).await.unwrap();
            assert_all_is_restored(&store, key.as_str()).await;
        }
    });
}

async fn end_work(cluster: &Cluster) {
    let edit = |root: &Root| {
        let next = Root { pending: Vec::new(), ..root.clone() };
        Ok::<_, RepoError>(Some(RootChange::of(next)))
    };
    cluster.commit(edit).await.unwrap();
}

#[test]
fn a_whole_root_is_said_to_be_whole() {
    block_on(async {
        let store = Damaged::nowhere().writable();
        let whole = cluster(&store).await.unwrap();
        let plan = root::plan(&whole).await.unwrap();
        assert!(plan.is_whole() && plan.additions.page == walden::repo::index::empty_page());
        let newest = whole.newest_root().await.unwrap();
        assert_eq!((plan.base, plan.number), (newest.clone(), newest.number + 1));
        let number = roots::newest_root_number(whole.repo(), whole.name(), 0, 0).await.unwrap().1;
        assert_eq!(number, newest.number);
    });
}
