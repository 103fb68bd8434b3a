//! A damaged or lost index is made anew out of segments and manifests, and everything is restored as before.

use crate::bed::*;
use std::collections::BTreeSet;
use walden::base::{BackupId, Generation, Lsn, ObjectId, ObjectKey, TimelineId, Timestamp, Unwatched};
use walden::format::header::ObjectKind;
use walden::format::index::{
    BackupState, ExpiredEntry, GapEntry, HistoryEntry, IndexMeta, PinEntry, RemovedEntry, RemovedKind,
    WalEntry,
};
use walden::format::record::{Blob, Record};
use walden::operate::info;
use walden::repair::{self, Fate, Health, Options, Plan};
use walden::repo::index::{IndexEdit, empty_page};
use walden::repo::{Cluster, Index, RepoError, RootChange, layout, roots, walmap};

async fn plan_of(cluster: &Cluster) -> Plan {
    repair::plan(cluster, &Options::default(), &Unwatched).await.unwrap()
}

/// Takes the registration of the backup that was broken off away.
async fn end_work(cluster: &Cluster) {
    let edit = |root: &walden::format::root::Root| {
        let mut next = root.clone();
        next.pending.clear();
        Ok::<_, RepoError>(Some(RootChange::of(next)))
    };
    cluster.commit(edit).await.unwrap();
}

async fn commit(cluster: &Cluster, index: IndexEdit) {
    let mut index = Some(index);
    let edit = |root: &walden::format::root::Root| {
        let index = index.take().unwrap();
        Ok::<_, RepoError>(Some(RootChange { root: root.clone(), index }))
    };
    cluster.commit(edit).await.unwrap();
}

async fn newest_index(cluster: &Cluster) -> Index {
    cluster.index(&cluster.newest_root().await.unwrap()).await.unwrap()
}

async fn index_of(store: &Damaged) -> Index {
    walmap::load(&cluster(store).await.unwrap()).await.unwrap().index
}

/// What counts of compacted WAL: which bytes are where.
fn held(index: &Index) -> Vec<WalEntry> {
    index.wal.clone()
}

/// A scene whose index objects are all flipped, but for `kept`.
async fn without_index(kept: impl Fn(&str) -> bool) -> Damaged {
    let name = cluster(&Damaged::nowhere()).await.unwrap().name().clone();
    let prefix = format!("{}/", layout::index_prefix(&name));
    let mut store = Damaged::nowhere().writable();
    for key in scene().objects.keys().filter(|key| key.as_str().starts_with(&prefix)) {
        if !kept(key.file_name()) {
            store = store.flipped(key, 200, 1);
        }
    }
    store
}

#[test]
fn an_index_of_which_nothing_is_left_is_rebuilt_and_everything_is_restored() {
    block_on(async {
        let before = index_of(&Damaged::nowhere()).await;
        let store = without_index(|_| false).await;
        let broken = cluster(&store).await.unwrap();
        end_work(&broken).await;
        let written = store.written().len();
        assert!(walmap::load(&broken).await.is_err());
        assert!(restored_backup(&store, 1).await.is_err());
        let plan = plan_of(&broken).await;
        assert!(matches!(plan.health, Health::Broken { .. }));
        assert_eq!(store.written().len(), written, "a plan changes nothing");
        let root = repair::commit(&broken, &plan).await.unwrap();
        assert_eq!(root.number, plan.root.number + 1);
        let after = index_of(&store).await;
        assert_eq!(held(&after), held(&before));
        let pages = |index: &Index| index.pages.clone();
        assert!(pages(&before).iter().all(|entry| pages(&after).contains(entry)));
        let ids = |index: &Index| index.backups.iter().map(|backup| backup.id.clone()).collect::<Vec<_>>();
        assert!(ids(&before).iter().all(|id| ids(&after).contains(id)));
        assert!(after.backups.iter().all(|backup| backup.state == BackupState::Pending), "WAL decides anew");
        for number in 0..2 {
            assert!(restored_backup(&store, number).await.unwrap() == scene().backups[number]);
        }
        let (files, wal) = restored(&store).await.unwrap();
        assert!(files == scene().backups[1] && wal == scene().wal);
        let report = verified(&store).await.unwrap();
        let of_index = |key: &str| key.contains("/index/");
        assert!(report.findings.iter().all(|finding| of_index(&finding.key)), "{:?}", report.findings);
        // The second plan was made for an index that is not the newest any more.
        repair::commit(&broken, &plan).await.unwrap_err();
    });
}

#[test]
fn what_an_older_index_object_says_is_kept_exactly() {
    block_on(async {
        let before = index_of(&Damaged::nowhere()).await;
        let newest = before.objects[0].to_string();
        let store = without_index(|name| name != newest).await;
        let broken = cluster(&store).await.unwrap();
        end_work(&broken).await;
        let plan = plan_of(&broken).await;
        repair::commit(&broken, &plan).await.unwrap();
        let after = index_of(&store).await;
        assert_eq!(held(&after), held(&before));
        assert!(restored_backup(&store, 1).await.unwrap() == scene().backups[1]);
    });
}

#[test]
fn a_healthy_index_is_said_to_be_whole_and_its_rebuilt_copy_holds_the_same() {
    block_on(async {
        let store = Damaged::nowhere().writable();
        let whole = cluster(&store).await.unwrap();
        let plan = plan_of(&whole).await;
        assert_eq!((&plan.health, plan.unreadable.len()), (&Health::Whole, 0));
        let before = index_of(&store).await;
        assert_eq!(plan.rebuilt.page, before.into_page());
        let root = repair::commit(&whole, &plan).await.unwrap();
        assert_eq!(root.rebuilt_at(), None, "nothing was left out of it");
        assert_eq!(verified(&store).await.unwrap().findings, []);
    });
}

/// A repository whose newest index object is flipped, and what the object before it says: pins, a gap, expired WAL, a history, a removal.
async fn with_everything() -> (Damaged, Index) {
    let store = Damaged::nowhere().writable();
    let whole = cluster(&store).await.unwrap();
    end_work(&whole).await;
    let [first, second] = backup_ids() else { panic!() };
    let pin = |id: &BackupId| PinEntry {
        backup: id.clone(),
        pinned_at: Timestamp::from_micros(1),
        until: None,
        reason: "audit".into(),
    };
    let (generation, timeline) = (Generation(1), TimelineId(7));
    let expired =
        |start, end| ExpiredEntry { generation, timeline, start: Lsn::new(start), end: Lsn::new(end) };
    let mut page = empty_page();
    page.pins = vec![pin(first), pin(second)];
    page.expired = vec![expired(0, 100), expired(200, 300)];
    commit(&whole, IndexEdit::Add(page)).await;
    // Unpinned, and more expired: what the object before said of both counts no more.
    let mut page = newest_index(&whole).await.into_page();
    page.pins = vec![pin(second)];
    page.expired = vec![expired(0, 300)];
    page.gaps.push(GapEntry {
        id: ObjectId([1; 16]),
        generation,
        timeline,
        start: Lsn::new(300),
        end: Lsn::new(400),
        recorded_at: Timestamp::from_micros(2),
        reason: "slot dropped".into(),
    });
    page.histories.push(HistoryEntry { generation, timeline, content: Blob(b"1\t0/0\tno\n".to_vec()) });
    let name = ObjectId([9; 16]).to_string();
    page.removed.push(RemovedEntry { kind: RemovedKind::Pages, name, root: 1 });
    commit(&whole, IndexEdit::Rewrite(page)).await;
    let before = newest_index(&whole).await;
    let mut page = empty_page();
    page.pins = vec![PinEntry { reason: "lost".into(), ..pin(first) }];
    commit(&whole, IndexEdit::Add(page)).await;
    let newest = newest_index(&whole).await.objects;
    assert_eq!(newest[1..], before.objects, "a level upon the one before");
    let key = layout::index(whole.name(), newest[0]);
    store.alter(&key, |bytes| bytes[200] ^= 1);
    (store, before)
}

#[test]
fn pins_gaps_expired_wal_and_histories_are_those_of_the_last_root_whose_index_can_be_read() {
    block_on(async {
        let (store, before) = with_everything().await;
        let broken = cluster(&store).await.unwrap();
        let plan = plan_of(&broken).await;
        let root = repair::commit(&broken, &plan).await.unwrap();
        assert_eq!(root.rebuilt_at(), Some(root.number));
        let after = newest_index(&broken).await;
        assert_eq!(after.pins, before.pins, "one was unpinned, and the newest pin is lost");
        assert!(plan.rebuilt.notes.iter().any(|note| note.contains("pins set after root")), "{plan:?}");
        assert_eq!(after.gaps, before.gaps);
        assert_eq!(after.expired, before.expired);
        assert_eq!(after.histories, before.histories);
        assert_eq!(after.wal, before.wal);
        assert_eq!(after.backups, before.backups);
        assert!(before.pages.iter().all(|entry| after.pages.contains(entry)));
        let removed: Vec<(&str, u64)> =
            after.removed.iter().map(|removed| (removed.name.as_str(), removed.root)).collect();
        let expected: Vec<(&str, u64)> =
            before.removed.iter().map(|removed| (removed.name.as_str(), root.number)).collect();
        assert_eq!(removed, expected, "the grace period of what was removed begins anew");
    });
}

#[test]
fn registered_work_keeps_an_index_from_being_made_anew() {
    block_on(async {
        let store = without_index(|_| false).await;
        let broken = cluster(&store).await.unwrap();
        let plan = plan_of(&broken).await;
        let refused = plan.refusal().unwrap();
        assert!(refused.contains("Backup") && refused.contains("walden gc"), "{refused}");
        let error = repair::commit(&broken, &plan).await.unwrap_err();
        assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
        assert!(store.written().is_empty());
        end_work(&broken).await;
        let plan = plan_of(&broken).await;
        assert_eq!(plan.refusal(), None);
        repair::commit(&broken, &plan).await.unwrap();
    });
}

#[test]
fn what_does_not_open_and_no_index_names_is_left_out_only_on_order() {
    block_on(async {
        // A directory near the end of a segment of chunks.
        let pages = index_of(&Damaged::nowhere()).await.pages;
        let [first, ..] = pages.as_slice() else { panic!() };
        let name = cluster(&Damaged::nowhere()).await.unwrap().name().clone();
        let key = layout::segment(&name, first.id);
        let at = first.directory_offset as usize + 40;
        let store = without_index(|_| false).await.flipped(&key, at, 1);
        let broken = cluster(&store).await.unwrap();
        end_work(&broken).await;
        let plan = plan_of(&broken).await;
        let found = plan.unreadable.iter().find(|unreadable| unreadable.key == key).unwrap();
        assert_eq!(found.fate, Fate::Undecided);
        assert!(plan.refusal().unwrap().contains(&format!("--without {}", first.id)), "{plan:?}");
        repair::commit(&broken, &plan).await.unwrap_err();
        let without = |name: String| Options { without: BTreeSet::from([name]) };
        let wrong = without(pages.last().unwrap().id.to_string());
        let error = repair::plan(&broken, &wrong, &Unwatched).await.unwrap_err();
        assert!(matches!(error, RepoError::Conflict { .. }), "it can be read: {error}");
        let plan = repair::plan(&broken, &without(first.id.to_string()), &Unwatched).await.unwrap();
        repair::commit(&broken, &plan).await.unwrap();
        let after = newest_index(&broken).await;
        assert!(after.pages.iter().all(|entry| entry.id != first.id));
        // Backups that have chunks there are taken, and never for whole ones.
        assert_eq!(after.backups.len(), 2);
        let hurt: Vec<bool> = after.backups.iter().map(|backup| backup.damaged_blocks > 0).collect();
        assert!(hurt.contains(&true), "{hurt:?}");
        for (number, hurt) in hurt.into_iter().enumerate() {
            let restored = restored_backup(&store, number).await;
            assert!(hurt || restored.unwrap() == scene().backups[number]);
        }
    });
}

#[test]
fn what_an_index_names_stays_named_when_it_does_not_open() {
    block_on(async {
        let whole = cluster(&Damaged::nowhere()).await.unwrap();
        let name = whole.name().clone();
        let newest = whole.newest_root().await.unwrap();
        let mut older = newest.clone();
        while older.index == newest.index {
            let read = roots::read_root(whole.repo(), &name, older.number - 1).await;
            older = read.unwrap().unwrap();
        }
        let known = whole.index(&older).await.unwrap();
        let newest = layout::index(&name, newest.index.unwrap());
        let mut store = Damaged::nowhere().writable().flipped(&newest, 200, 1);
        // A segment of WAL, one of chunks, and a manifest that the index before has.
        let keys = [
            layout::segment(&name, known.wal[0].id),
            layout::segment(&name, known.pages[0].id),
            layout::manifest(&name, &known.backups[0].id, 0),
        ];
        for key in &keys {
            let len = store.objects()[key].len();
            store = store.flipped(key, len - 60, 1);
        }
        let broken = cluster(&store).await.unwrap();
        end_work(&broken).await;
        let plan = plan_of(&broken).await;
        let fates =
            |key: &ObjectKey| plan.unreadable.iter().find(|found| found.key == *key).map(|found| found.fate);
        assert_eq!(
            keys.iter().map(fates).collect::<Vec<_>>(),
            [Some(Fate::Named); 3],
            "{:?}",
            plan.unreadable
        );
        let page = &plan.rebuilt.page;
        assert!(page.wal.contains(&known.wal[0]) && page.pages.contains(&known.pages[0]));
        assert!(page.backups.contains(&known.backups[0]));
        assert_eq!(plan.refusal(), None);
    });
}

#[test]
fn a_backup_that_lacks_chunks_stays_listed_as_damaged_and_is_told() {
    block_on(async {
        let before = index_of(&Damaged::nowhere()).await;
        let name = cluster(&Damaged::nowhere()).await.unwrap().name().clone();
        let newest = layout::index(&name, before.objects[0]);
        let mut damaged = BTreeSet::new();
        // Known from their manifests alone, and named by an index object that can be read; each time a segment of chunks is lost.
        for unknown in [true, false] {
            for gone in &before.pages {
                let store = match unknown {
                    true => without_index(|_| false).await,
                    false => Damaged::nowhere().writable().flipped(&newest, 60, 1),
                };
                let store = store.with(&layout::segment(&name, gone.id), None);
                let broken = cluster(&store).await.unwrap();
                end_work(&broken).await;
                let plan = plan_of(&broken).await;
                assert_eq!(plan.refusal(), None);
                assert_eq!(plan.backups(), backup_ids(), "none is left out");
                repair::commit(&broken, &plan).await.unwrap();
                let info = info::cluster(&broken, None).await.unwrap();
                let mut hurt = 0;
                for (number, id) in backup_ids().iter().enumerate() {
                    let state = info.backups.iter().find(|shown| shown.id == id.as_str()).unwrap().state;
                    let told = plan.losses().iter().any(|loss| loss.contains(id.as_str()));
                    match restored_backup(&store, number).await {
                        Ok(files) => {
                            assert!(files == scene().backups[number]);
                            assert_eq!((state, told), ("complete", false));
                        }
                        Err(_) => {
                            assert_eq!((state, told), ("damaged", true));
                            hurt += 1;
                        }
                    }
                }
                damaged.insert(hurt);
            }
        }
        assert!(damaged.iter().any(|hurt| *hurt > 0), "{damaged:?}");
    });
}

#[test]
fn a_repair_that_lost_nothing_says_so() {
    block_on(async {
        let store = without_index(|_| false).await;
        let broken = cluster(&store).await.unwrap();
        end_work(&broken).await;
        assert_eq!(plan_of(&broken).await.losses(), Vec::<String>::new());
    });
}

#[test]
fn a_root_that_a_stalled_process_won_below_the_floor_says_nothing() {
    block_on(async {
        let before = index_of(&Damaged::nowhere()).await;
        let store = without_index(|_| false).await;
        let broken = cluster(&store).await.unwrap();
        end_work(&broken).await;
        let newest = broken.newest_root().await.unwrap();
        let floor = roots::newest_floor(broken.repo(), broken.name(), 0).await.unwrap().unwrap().root;
        // It expired everything, in a root whose number had been won and removed before.
        let (repo, number) = (broken.repo(), floor - 1);
        assert_eq!(roots::read_root(repo, broken.name(), number).await.unwrap(), None);
        let mut page = empty_page();
        let removal = |kind, name: String| RemovedEntry { kind, name, root: number };
        let segments = before.wal.iter().map(|entry| removal(RemovedKind::Wal, entry.id.to_string()));
        let backups = before.backups.iter().map(|backup| removal(RemovedKind::Backup, backup.id.to_string()));
        page.removed = segments.chain(backups).collect();
        let (id, count) = (ObjectId([5; 16]), page.removed.len() as u64);
        let key = layout::index(broken.name(), id);
        let mut writer = repo.writer(ObjectKind::Index, &key, id.0, number, 0);
        let plain = page.encode();
        writer.add(&plain, repo.chunk_id(&plain), 0);
        let meta = IndexMeta { levels: Vec::new(), entry_count: count, extensions: Vec::new() };
        repo.create_own(&key, &writer.finish(meta.encode()).bytes).await.unwrap();
        let key = layout::root(broken.name(), number);
        let writer = repo.writer(ObjectKind::Root, &key, [0; 16], number, newest.writer_epoch);
        let root = walden::format::root::Root { number, index: Some(id), ..newest };
        repo.create_own(&key, &writer.finish(root.encode()).bytes).await.unwrap();
        let plan = plan_of(&broken).await;
        assert_eq!(held_by(&plan), held(&before));
        assert_eq!(plan.backups(), before.backups.iter().map(|backup| backup.id.clone()).collect::<Vec<_>>());
        assert_eq!(plan.rebuilt.page.removed, []);
    });
}

fn held_by(plan: &Plan) -> Vec<WalEntry> {
    plan.rebuilt.page.wal.clone()
}
