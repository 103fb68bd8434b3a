//! Each fault of the simulated store really happens, and an honest one passes the probes.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn run<F: Future<Output = ()>>(test: F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

fn always(create: Chances) -> StoreFaults {
    StoreFaults { create, ..StoreFaults::default() }
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn a_name_is_won_once() {
    run(async {
        let store = SimStore::new(1);
        store.create(&key("a"), body("first")).await.unwrap();
        let again = store.create(&key("a"), body("second")).await;
        assert!(matches!(again, Err(StoreError::AlreadyExists { .. })));
        assert_eq!(store.get(&key("a")).await.unwrap(), "first");
        assert_eq!(store.get_range(&key("a"), 1..3).await.unwrap(), "ir");
        assert!(matches!(store.get_range(&key("a"), 1..9).await, Err(StoreError::Short { wanted: 9, .. })));
        store.delete(&key("a")).await.unwrap();
        store.delete(&key("a")).await.unwrap();
        assert!(matches!(store.head(&key("a")).await, Err(StoreError::NotFound { .. })));
    });
}

#[test]
fn what_failed_before_is_not_there_and_what_is_unknown_is() {
    run(async {
        for (chances, there) in [
            (Chances { failed_before: 1.0, ..Chances::default() }, false),
            (Chances { done_but_unknown: 1.0, ..Chances::default() }, true),
        ] {
            let store = SimStore::new(1);
            store.set_faults(always(chances));
            assert!(matches!(store.create(&key("a"), body("x")).await, Err(StoreError::Unknown { .. })));
            store.settle().await;
            assert_eq!(store.objects().len(), usize::from(there));
        }
    });
}

#[test]
fn a_duplicate_comes_back_after_the_object_was_removed() {
    run(async {
        let store = SimStore::new(1);
        store.set_faults(always(Chances { duplicated: 1.0, ..Chances::default() }));
        store.create(&key("a"), body("x")).await.unwrap();
        store.delete(&key("a")).await.unwrap();
        assert!(store.objects().is_empty());
        store.settle().await;
        assert_eq!(store.objects().len(), 1, "the duplicate did not create it again");
        // Where the object stays, the duplicate changes nothing.
        store.create(&key("b"), body("y")).await.unwrap();
        store.settle().await;
        let done: Vec<bool> = store.log().last().unwrap().done.iter().map(|done| done.1).collect();
        assert_eq!(done, [true, false]);
    });
}

#[test]
fn a_delayed_create_is_done_after_the_caller_was_told_that_nobody_knows() {
    run(async {
        let store = SimStore::new(1);
        let delay = 100 * SECOND..200 * SECOND;
        store.set_faults(StoreFaults { delay, ..always(Chances { delayed: 1.0, ..Chances::default() }) });
        assert!(matches!(store.create(&key("a"), body("late")).await, Err(StoreError::Unknown { .. })));
        assert!(matches!(store.get(&key("a")).await, Err(StoreError::NotFound { .. })));
        store.settle().await;
        assert_eq!(store.get(&key("a")).await.unwrap(), "late");
        let op = store.log()[0].clone();
        assert_eq!((op.verdict, op.told.as_deref()), (Verdict::Delayed, Some("Unknown")));
        assert!(op.done[0].0 > op.asked_at + 30 * SECOND);
        assert_eq!(op.request, Request::Create(key("a"), body("late")));
    });
}

#[test]
fn a_delayed_delete_hits_what_was_made_since() {
    run(async {
        let store = SimStore::new(1);
        let (delay, delete) = (40 * SECOND..50 * SECOND, Chances { delayed: 1.0, ..Chances::default() });
        store.set_faults(StoreFaults { delay, delete, ..StoreFaults::default() });
        assert!(matches!(store.delete(&key("a")).await, Err(StoreError::Unknown { .. })));
        store.create(&key("a"), body("x")).await.unwrap();
        store.settle().await;
        assert!(store.objects().is_empty());
    });
}

#[test]
fn what_was_sent_is_done_though_the_caller_is_gone() {
    run(async {
        let store = SimStore::new(1);
        let latency = 5 * SECOND..6 * SECOND;
        store.set_faults(StoreFaults { latency, ..StoreFaults::default() });
        let name = key("a");
        let create = store.create(&name, body("x"));
        assert!(tokio::time::timeout(SECOND, create).await.is_err());
        assert!(store.objects().is_empty());
        store.settle().await;
        assert_eq!(store.objects().len(), 1);
        assert_eq!(store.log()[0].told, None);
    });
}

#[test]
fn lists_are_old_and_incomplete() {
    run(async {
        let store = SimStore::new(1);
        for number in 0..100 {
            store.create(&key(&format!("a/{number}")), body("x")).await.unwrap();
        }
        store.create(&key("ab"), body("x")).await.unwrap();
        assert_eq!(store.list("a").await.unwrap().len(), 100);
        assert_eq!(store.list("").await.unwrap().len(), 101);
        tokio::time::sleep(60 * SECOND).await;
        store.set_faults(StoreFaults { list_age: 10 * SECOND..11 * SECOND, ..StoreFaults::default() });
        store.delete(&key("a/1")).await.unwrap();
        store.create(&key("a/new"), body("x")).await.unwrap();
        let names: Vec<_> = store.list("a").await.unwrap().into_iter().map(|meta| meta.key).collect();
        assert!(names.contains(&key("a/1")) && !names.contains(&key("a/new")));
        store.set_faults(StoreFaults { list_misses: 0.1, ..StoreFaults::default() });
        assert!((70..100).contains(&store.list("a").await.unwrap().len()));
    });
}

#[test]
fn last_modified_is_by_the_stores_own_clock() {
    run(async {
        let store = SimStore::new(1);
        store.create(&key("a"), body("x")).await.unwrap();
        tokio::time::sleep(60 * SECOND).await;
        store.skew_clock(3600 * 1_000_000);
        store.create(&key("b"), body("x")).await.unwrap();
        let (a, b) = (store.head(&key("a")).await.unwrap(), store.head(&key("b")).await.unwrap());
        let apart = b.modified_unix_micros - a.modified_unix_micros;
        assert!((3_660_000_000..3_662_000_000).contains(&apart), "{apart}");
    });
}

#[test]
fn a_client_is_cut_off_or_held_up_alone() {
    run(async {
        let store = SimStore::new(1);
        let (one, two) = (store.client(1), store.client(2));
        one.cut(true);
        assert!(matches!(one.create(&key("a"), body("x")).await, Err(StoreError::Unknown { .. })));
        two.create(&key("a"), body("x")).await.unwrap();
        one.cut(false);
        one.get(&key("a")).await.unwrap();
        one.hold(true);
        let (waits, begun) = (one.clone(), tokio::time::Instant::now());
        let waiting = tokio::spawn(async move { waits.create(&key("b"), body("x")).await });
        tokio::time::sleep(3600 * SECOND).await;
        assert!(!waiting.is_finished() && store.objects().len() == 1);
        one.hold(false);
        waiting.await.unwrap().unwrap();
        assert!(begun.elapsed() >= 3600 * SECOND && store.objects().len() == 2);
    });
}

#[test]
fn a_full_or_denying_store_says_so() {
    run(async {
        let store = SimStore::new(1);
        store.set_faults(StoreFaults { capacity: Some(3), ..StoreFaults::default() });
        store.create(&key("a"), body("xyz")).await.unwrap();
        assert!(matches!(store.create(&key("b"), body("x")).await, Err(StoreError::NoSpace { .. })));
        store.set_faults(StoreFaults { denies: true, ..StoreFaults::default() });
        assert!(matches!(store.create(&key("b"), body("x")).await, Err(StoreError::Denied { .. })));
        assert!(matches!(store.get(&key("a")).await, Err(StoreError::Denied { .. })));
        assert!(matches!(store.delete(&key("a")).await, Err(StoreError::Denied { .. })));
        store.set_faults(StoreFaults { read_fails: 1.0, ..StoreFaults::default() });
        assert!(matches!(store.get(&key("a")).await, Err(StoreError::Unknown { .. })));
    });
}

#[test]
fn the_probes_tell_liars_from_the_honest() {
    run(async {
        for seed in 0..20 {
            let store = SimStore::new(seed);
            probe_init(&store, &Chance).await.unwrap();
            assert!(store.objects().is_empty());
            for lie in [Lie::Overwrites, Lie::OverwritesAndSaysExists, Lie::Races] {
                let store = SimStore::new(seed);
                store.set_faults(StoreFaults { lie, ..StoreFaults::default() });
                let refused = probe_init(&store, &Chance).await;
                assert!(matches!(refused, Err(StoreError::Unfit { .. })), "{lie:?}: {refused:?}");
                let at_start = probe_start(&store, &Chance).await;
                assert_eq!(at_start.is_ok(), lie == Lie::Races, "{lie:?}: {at_start:?}");
            }
        }
    });
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let story = |seed| {
        let mut told = Vec::new();
        run(async {
            let store = SimStore::new(seed);
            let some = Chances { failed_before: 0.2, done_but_unknown: 0.2, duplicated: 0.2, delayed: 0.2 };
            store.set_faults(always(some));
            for number in 0..50 {
                let _ = store.create(&key(&format!("{}", number % 20)), body("x")).await;
            }
            told = store.log().iter().map(|op| (op.verdict, op.asked_at, op.told.clone())).collect();
        });
        told
    };
    assert_eq!(story(1), story(1));
    assert_ne!(story(1), story(2));
    let verdicts: std::collections::BTreeSet<_> = story(1).iter().map(|op| format!("{:?}", op.0)).collect();
    assert_eq!(verdicts.len(), 5, "{verdicts:?}");
}
