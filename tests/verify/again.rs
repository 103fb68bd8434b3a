//! What one run may say after another: what was not looked at again stays known, what was not seen is not proved, and what hinders a
//! run is no damage.

use crate::bed::*;
use walden::base::{Clock, ObjectKey};
use walden::disk::SystemClock;
use walden::format::verification::{VerifyDepth, VerifyOutcome, VerifyScope};
use walden::repo::{layout, verifications};
use walden::verify::{Budget, Depth, Options, Report, Stored};

const CONTENT: (VerifyOutcome, VerifyDepth) = (VerifyOutcome::Verified, VerifyDepth::Content);
const REFERENCES: (VerifyOutcome, VerifyDepth) = (VerifyOutcome::Verified, VerifyDepth::References);
/// The smallest sample.
const SAMPLE: Options = Options { budget: Budget::Bytes(1), ..Options::WHOLE };
const SHALLOW: Options = Options { depth: Depth::References, ..Options::WHOLE };

fn backups(report: &Report) -> Vec<(VerifyOutcome, VerifyDepth)> {
    let own = report.clusters.iter().find(|cluster| cluster.name.as_str() == CLUSTER).unwrap();
    own.backups.iter().map(|known| (known.outcome, known.depth)).collect()
}

/// The keys of one kind, of the cluster that is damaged.
fn of_kind(wanted: &str) -> Vec<&'static ObjectKey> {
    scene().objects.keys().filter(|key| kind(key) == Some(wanted)).collect()
}

#[test]
fn wal_that_is_whole_and_cannot_be_decoded_stays_damaged_until_it_is_decoded() {
    block_on(async {
        let mut keys = of_kind("segment of deltas");
        keys.extend(of_kind("segment of WAL"));
        assert!(!keys.is_empty());
        for key in keys {
            let store = Damaged::nowhere().writable();
            let undecodable = store.clone().failing(key.as_str(), Fails::InParts);
            let first = verified(&undecodable).await.unwrap();
            assert!(names(&first, key), "{key}: {:?}", first.findings);
            for options in [SAMPLE, SHALLOW, SAMPLE] {
                let again = verified_with(&undecodable, options).await.unwrap();
                // Reading all of it finds nothing, and says nothing of its records.
                assert_eq!(names(&again, key), options.depth == Depth::Content, "{key} {options:?}");
                assert_eq!(hurt(&again).is_empty(), hurt(&first).is_empty() || options == SHALLOW);
                let newest = verifications::newest(&cluster(&store).await.unwrap()).await.unwrap();
                let result = newest.result.unwrap();
                assert!(result.damage.iter().any(|known| known.key == key.as_str()), "{options:?}");
                assert_eq!(
                    result.backups.iter().any(|known| known.outcome == VerifyOutcome::Damaged),
                    !hurt(&first).is_empty(),
                    "{key} {options:?}"
                );
            }
            let mended = verified_with(&store, SAMPLE).await.unwrap();
            assert_eq!((mended.findings.len(), backups(&mended)), (0, vec![CONTENT; 2]), "{key}");
        }
    });
}

#[test]
fn a_run_that_could_not_follow_the_root_proves_nothing() {
    block_on(async {
        let store = Damaged::nowhere().writable();
        let mut broken = store.clone();
        for key in of_kind("index") {
            broken = broken.flipped(key, scene().objects[key].len() / 2, 1);
        }
        let report = verified(&broken).await.unwrap();
        assert!(!report.findings.is_empty());
        let result = verifications::newest(&cluster(&store).await.unwrap()).await.unwrap().result.unwrap();
        assert_eq!((result.scope, result.arcs.len(), result.bytes_covered), (VerifyScope::Sample, 0, 0));
        for options in [SHALLOW, SAMPLE] {
            let report = verified_with(&store, options).await.unwrap();
            assert_eq!(backups(&report), [REFERENCES; 2], "{options:?}: no WAL was decoded, no page judged");
        }
        assert_eq!(backups(&verified(&store).await.unwrap()), [CONTENT; 2]);
    });
}

#[test]
fn what_is_stored_while_a_list_is_made_is_not_proved_by_it() {
    block_on(async {
        let name = cluster(&Damaged::nowhere()).await.unwrap().name().clone();
        let now = SystemClock.now().unix_micros();
        // The list shows an object that was stored a minute after it was begun.
        let root = *of_kind("root").last().unwrap();
        let store = Damaged::nowhere().writable().stored_at(root, now + 60_000_000);
        assert_eq!(backups(&verified(&store).await.unwrap()), [CONTENT; 2]);
        assert_eq!(backups(&verified_with(&store, SHALLOW).await.unwrap()), [CONTENT; 2]);
        // This one was stored before that, behind the place to which the list had got: the run may not have seen it.
        let store = store.stored_at(&layout::manifest(&name, &backup_ids()[1], 0), now + 30_000_000);
        assert_eq!(backups(&verified_with(&store, SHALLOW).await.unwrap()), [CONTENT, REFERENCES]);
    });
}

#[test]
fn wal_that_came_after_a_run_is_not_proved_by_it_though_it_is_not_compacted() {
    block_on(async {
        let store = Damaged::nowhere().writable();
        assert_eq!(backups(&verified(&store).await.unwrap()), [CONTENT; 2]);
        let later = SystemClock.now().unix_micros() + 60_000_000;
        let store = of_kind("flush object").into_iter().fold(store, |store, key| store.stored_at(key, later));
        assert_eq!(backups(&verified_with(&store, SHALLOW).await.unwrap()), [CONTENT, REFERENCES]);
        // Every run that reads at all decodes it.
        assert_eq!(backups(&verified_with(&store, SAMPLE).await.unwrap()), [CONTENT; 2]);
    });
}

#[test]
fn what_goes_after_it_was_listed_is_missed() {
    block_on(async {
        let mut missed = 0;
        for kind in ["segment of pages", "segment of WAL", "segment of deltas", "manifest"] {
            for key in of_kind(kind) {
                let before = verified(&Damaged::nowhere().with(key, None)).await.unwrap();
                let since = verified(&Damaged::nowhere().gone_since(key)).await.unwrap();
                assert_eq!(names(&since, key), names(&before, key), "{key}: {:?}", since.findings);
                assert_eq!(hurt(&since), hurt(&before), "{key}");
                missed += usize::from(names(&since, key));
            }
        }
        assert!(missed >= 4, "{missed}");
    });
}

#[test]
fn a_bad_sector_is_named_and_everything_else_is_looked_at() {
    block_on(async {
        for kind in
            ["segment of pages", "segment of WAL", "segment of deltas", "manifest", "flush object", "index"]
        {
            for key in of_kind(kind) {
                let store = Damaged::nowhere().writable().failing(key.as_str(), Fails::Unreadable);
                let report = verified(&store).await.unwrap();
                assert!(names(&report, key), "{key}: {:?}", report.findings);
                assert_eq!((report.failed.len(), report.unread.len()), (0, 0));
                assert!(report.clusters.iter().all(|own| matches!(own.stored, Stored::Yes { .. })));
            }
        }
    });
}

#[test]
fn what_the_store_does_not_give_is_told_and_is_neither_proved_nor_damaged() {
    block_on(async {
        let key = layout::manifest(cluster(&Damaged::nowhere()).await.unwrap().name(), &backup_ids()[0], 0);
        let store = Damaged::nowhere().writable();
        assert_eq!(backups(&verified(&store).await.unwrap()), [CONTENT; 2]);
        // The other clusters are verified, and this one keeps what is known of it.
        let failing = store.clone().failing(key.as_str(), Fails::Unknown);
        let report = verified(&failing).await.unwrap();
        assert_eq!(report.findings, []);
        assert_eq!(report.failed.iter().map(|failed| failed.name.as_str()).collect::<Vec<_>>(), [CLUSTER]);
        assert!(report.clusters.iter().any(|own| own.name.as_str() == OTHER));
        assert_eq!(backups(&verified_with(&store, SHALLOW).await.unwrap()), [CONTENT; 2]);
        // One object that nothing else leads through: a floor.
        let floor = of_kind("floor")[0];
        let listed = store.clone().failing("clusters/shop/pending", Fails::Unknown);
        let report = verified(&listed).await.unwrap();
        assert_eq!((report.findings.len(), report.failed.len()), (0, 0), "{floor}: {:?}", report.failed);
        assert!(report.unread.iter().all(|unread| unread.key.as_str().contains("/pending/")));
        assert!(!report.unread.is_empty());
        assert_eq!(backups(&report), [CONTENT; 2]);
    });
}

#[test]
fn a_refusal_is_not_stored_as_damage() {
    block_on(async {
        let store = Damaged::nowhere().writable();
        assert_eq!(backups(&verified(&store).await.unwrap()), [CONTENT; 2]);
        let written = store.written().keys().filter(|key| key.as_str().contains("/shop/")).count();
        for folder in ["index", "roots", "segments"] {
            let denied = store.clone().failing(&format!("clusters/{CLUSTER}/{folder}"), Fails::Denied);
            for options in [Options::WHOLE, SAMPLE, SHALLOW] {
                let report = verified_with(&denied, options).await.unwrap();
                assert_eq!(report.findings, [], "{folder}");
                assert_eq!(report.failed.len(), 1, "{folder} {options:?}");
                assert!(report.failed[0].error.to_string().contains("refuses access"), "{:?}", report.failed);
                assert!(report.clusters.iter().any(|own| own.name.as_str() == OTHER));
            }
            let result = verifications::newest(&cluster(&store).await.unwrap()).await.unwrap();
            assert_eq!((result.number, result.result.unwrap().damage_count), (1, 0));
        }
        assert_eq!(store.written().keys().filter(|key| key.as_str().contains("/shop/")).count(), written);
    });
}
