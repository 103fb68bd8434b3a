//! A damaged or lost index is made anew out of segments and manifests, and everything is restored as before.

use crate::bed::*;
use walden::base::Unwatched;
use walden::format::index::{BackupState, WalEntry};
use walden::repair::{self, Health};
use walden::repo::{Index, layout, walmap};

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
        assert!(walmap::load(&broken).await.is_err());
        assert!(restored_backup(&store, 1).await.is_err());
        let plan = repair::plan(&broken, &Unwatched).await.unwrap();
        assert!(matches!(plan.health, Health::Broken { .. }));
        assert!(store.written().is_empty(), "a plan changes nothing");
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
        let plan = repair::plan(&broken, &Unwatched).await.unwrap();
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
        let plan = repair::plan(&whole, &Unwatched).await.unwrap();
        assert_eq!((&plan.health, plan.unreadable.len()), (&Health::Whole, 0));
        let before = index_of(&store).await;
        assert_eq!(plan.rebuilt.page.wal, before.wal);
        assert!(before.backups.iter().all(|backup| plan.rebuilt.page.backups.contains(backup)));
        repair::commit(&whole, &plan).await.unwrap();
        assert_eq!(verified(&store).await.unwrap().findings, []);
    });
}
