//! A copy that is stopped at any request, on either side.

use crate::bed::{check, copy_all, empty, open, verified};
use crate::common::crash::{GRACE, Mode, WORK_GRACE, World, simulate, unlock};
use crate::common::keeping::with_backups;
use crate::common::keys;
use crate::common::sim_store::SimStore;
use walden::copy::CopyError;
use walden::repo::cluster::RootChange;
use walden::repo::{Cluster, RepoError};
use walden::retain::gc;

/// What is left of a copy that never goes on: nothing, once it was collected.
async fn leaks(world: &mut World, store: &SimStore) -> Vec<String> {
    let repo = open(store, world.env()).await;
    let Ok(cluster) = Cluster::open(repo, world.cluster.clone()).await else { return Vec::new() };
    for _ in 0..3 {
        tokio::time::sleep(WORK_GRACE.max(GRACE) * 2).await;
        gc::collect_with(&cluster, GRACE, WORK_GRACE).await.unwrap();
        // The floor rises to a root that is old enough: one is made now for the next time.
        cluster.commit::<RepoError>(|root| Ok(Some(RootChange::of(root.clone())))).await.unwrap();
    }
    let root = cluster.newest_root().await.unwrap();
    let index = cluster.index(&root).await.unwrap();
    assert!(root.pending.is_empty(), "{:?}", root.pending);
    let mut named: Vec<String> = Vec::new();
    named.extend(index.wal.iter().map(|entry| entry.id.to_string()));
    named.extend(index.pages.iter().map(|entry| entry.id.to_string()));
    let manifest = |backup: &walden::format::index::BackupEntry| {
        walden::repo::layout::manifest_name(&backup.id, backup.manifest_number)
    };
    named.extend(index.backups.iter().map(manifest));
    let keys = store.objects().into_keys();
    let counts = |key: &str| key.contains("/segments/") || key.contains("/backups/");
    let names = keys.filter(|key| counts(key.as_str())).map(|key| key.file_name().to_owned());
    names.filter(|name| !named.contains(name)).collect()
}

#[test]
fn a_copy_stopped_at_any_request_goes_on_and_loses_nothing() {
    simulate(async {
        let mut world = with_backups(3, 2).await;
        let to = empty(&mut world, 30).await;
        let source = world.store.fork();
        let mut lives = World::of(3, Mode::Object, world.server.fork(), source.clone(), world.disk.fork(1));
        let copying = async |store: SimStore| {
            // Chance of its own: ids that were drawn before would come again.
            lives.seed += 1;
            let (ours, theirs) = (lives.env(), lives.env());
            let from = keys::open(&source.fork(), &unlock(), ours).await?;
            let from = Cluster::open(from, lives.cluster.clone()).await?;
            match copy_all(&from, &open(&store, theirs).await).await {
                Ok(copied) => {
                    assert!(copied.left_out.is_empty());
                    Ok(())
                }
                Err(CopyError::Destination(error)) => Err(error),
                Err(error) => panic!("{error}"),
            }
        };
        let looking = async |store: SimStore, done: bool| {
            let (backups, end) = check(&mut world, &store).await;
            if done {
                assert_eq!((backups, end), (2, world.server.end().get()));
            } else {
                let leaks = leaks(&mut world, &store.fork()).await;
                assert!(leaks.is_empty(), "{leaks:?}");
            }
        };
        let requests = keys::stopped_at_every_request(&to, copying, looking).await;
        assert!(requests > 30, "{requests}");
    });
}

#[test]
fn a_copy_is_whole_whatever_the_stores_do() {
    for seed in 1..=4 {
        simulate(async {
            let mut world = with_backups(seed, 2).await;
            let to = empty(&mut world, seed + 40).await;
            let mut faulty =
                World::of(seed, Mode::Object, world.server.fork(), to.clone(), world.disk.fork(1));
            faulty.unleash(Default::default());
            world.store.set_faults(to.faults());
            let mut copies = 0;
            let done = loop {
                copies += 1;
                assert!(copies < 50, "seed {seed}: it never ends");
                let Ok(source) = world.cluster_of(20).await else { continue };
                let Ok(repo) = keys::open(&to.client(9), &crate::bed::other_key(), world.env()).await else {
                    continue;
                };
                match copy_all(&source, &repo).await {
                    Ok(done) => break done,
                    Err(CopyError::Source(error) | CopyError::Destination(error))
                        if error.is_transient() || matches!(error, RepoError::Key { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            };
            assert!(done.left_out.is_empty(), "seed {seed}");
            world.calm();
            faulty.calm();
            to.settle().await;
            assert_eq!(check(&mut world, &to).await, (2, world.server.end().get()), "seed {seed}");
            verified(&to, world.env()).await;
        });
    }
}
