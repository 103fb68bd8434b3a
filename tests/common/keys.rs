//! Slots and their secrets for tests, a stop at every request, and a slot that somebody planted.

use super::crash::{GRACE, Mode, WORK_GRACE, World};
use super::sim_server::SimServer;
use super::sim_store::SimStore;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::progress::Unwatched;
use walden::base::{Env, SlotName};
use walden::codec::KeySource;
use walden::codec::keyslot::{SlotCost, Unlock, create_slot, seal_epoch, slot_public};
use walden::codec::{EpochKeys, EpochObject};
use walden::format::root::Root;
use walden::rekey::destroy::destroy;
use walden::rekey::reseal::reseal;
use walden::repo::{Cluster, RepoError, Repository, RootChange, layout, slots};
use walden::retain::gc;
use walden::store::Store;
use zeroize::Zeroizing;

/// A key that opens nothing but the slot it was given to.
pub fn key(byte: u8) -> Unlock {
    Unlock::Key(Zeroizing::new([byte; 32]))
}

pub fn name(name: &str) -> SlotName {
    name.parse().unwrap()
}

/// The repository as a process of its own opens it.
pub async fn open(store: &SimStore, unlock: &Unlock, env: Env) -> Result<Arc<Repository>, RepoError> {
    let store: Arc<dyn Store> = Arc::new(store.clone());
    Ok(Arc::new(Repository::open(store, unlock, env).await?))
}

/// Does `op` on a copy of `base`, stopped after each number of requests: whatever was sent is done, nothing else is. `check` looks at
/// what is left; then it is done again, whole, and `check` looks once more, told that it is done. Returns how many requests `op` makes.
pub async fn stopped_at_every_request(
    base: &SimStore,
    mut op: impl AsyncFnMut(SimStore) -> Result<(), RepoError>,
    mut check: impl AsyncFnMut(SimStore, bool),
) -> u64 {
    for requests in 1.. {
        let store = base.fork();
        let stopping = store.client(7);
        stopping.hold_after(requests);
        let held = async {
            while !stopping.is_held() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = tokio::select! {
            biased;
            ended = op(stopping.clone()) => Some(ended),
            () = held => None,
        };
        store.settle().await;
        check(store.clone(), ended.is_some()).await;
        if let Some(ended) = ended {
            ended.unwrap();
            return requests;
        }
        op(store.client(8)).await.unwrap_or_else(|error| panic!("stopped after {requests}, then: {error}"));
        check(store.clone(), true).await;
    }
    unreachable!("it ends some time")
}

/// Somebody who can write to the store plants a slot, with an epoch for it, and one epoch for a slot that is there under a public half of
/// its own. A rotation gives them nothing.
pub async fn planted_slot(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed, Mode::Object, 1 << 20).await;
    let repo = world.open(1).await.map_err(|error| error.to_string())?;
    let (env, evil) = (world.env(), name("evil"));
    let theirs = EpochKeys::first(&*env.entropy);
    let made = create_slot(&key(66), repo.id(), &evil, &theirs, SlotCost::LEAST, &*env.entropy);
    let (slot, public) = made.unwrap();
    world.store.put(&layout::slot(&evil), slot.into());
    let sealed = seal_epoch(&public, &theirs, &*env.entropy);
    world.store.put(&layout::epoch_slot(1, &evil), sealed.into());
    let rotated = slots::rotate(&repo).await.map_err(|error| error.to_string())?;
    let bytes = world.store.objects()[&layout::epoch(2)].clone();
    let made = EpochObject::decode(&bytes, repo.id(), 2).unwrap();
    if made.slots().contains(&evil) || world.store.objects().contains_key(&layout::epoch_slot(2, &evil)) {
        return Err("a planted slot was given the next epoch".into());
    }
    assert!(rotated.passed_over.iter().any(|(slot, _)| *slot == evil), "{rotated:?}");
    assert!(repo.keys().epoch_secret(2).is_some());
    Ok(())
}

/// Somebody who held the first epoch, and knows the chunk id key from it, puts a secret of their own in the place of the second. Nobody
/// seals under it.
pub async fn planted_epoch(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed, Mode::Object, 1 << 20).await;
    let repo = world.open(1).await.map_err(|error| error.to_string())?;
    slots::rotate(&repo).await.map_err(|error| error.to_string())?;
    let (env, main) = (world.env(), name("main"));
    let objects = world.store.objects();
    let public = slot_public(&objects[&layout::slot(&main)], repo.id(), &main).unwrap();
    let theirs = repo.keys().epoch(1).unwrap().next(&*env.entropy).unwrap();
    let link = EpochObject::decode(&objects[&layout::epoch(2)], repo.id(), 2).unwrap().link();
    let made = EpochObject::create(repo.id(), &theirs, link.as_ref(), &[public], &*env.entropy);
    world.store.put(&layout::epoch(2), made.to_object().into());
    match world.open(2).await {
        Ok(opened) if opened.keys().newest().secret.0 == theirs.secret.0 => {
            Err("a planted epoch is sealed under".into())
        }
        Ok(opened) => {
            assert_eq!(opened.keys().newest().secret.0, repo.keys().newest().secret.0);
            Ok(())
        }
        Err(error) => panic!("the slot's own copy is whole: {error}"),
    }
}

/// Archives, rotates, shows the new epoch, moves everything but flush objects, and destroys the first epoch as soon as that is allowed;
/// what was lost by it.
pub async fn rekeyed(seed: u64) -> Result<(), String> {
    let told = |error: RepoError| error.to_string();
    let mut world = World::new(seed, Mode::Object, 32 << 10).await;
    world.server = SimServer::new(seed, 32 << 10, false);
    world.pace = Some(Duration::from_secs(360_000));
    let (stop, stopped) = watch::channel(false);
    let receiving = world.receiver(1, stopped).await;
    let rotator = world.open(2).await.map_err(told)?;
    let (name, server) = (world.cluster.clone(), world.server.clone());
    let changing = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        slots::rotate(&rotator).await.map_err(told)?;
        let cluster = Cluster::open(rotator.clone(), name).await.map_err(told)?;
        server.write_more(8 << 10);
        // Roots of the first epoch go once they are old enough.
        for _ in 0..3 {
            reseal(&cluster, u64::MAX, &Unwatched).await.map_err(told)?;
            tokio::time::sleep(WORK_GRACE * 2).await;
            gc::collect_with(&cluster, GRACE, WORK_GRACE).await.map_err(told)?;
        }
        Ok::<_, String>(())
    };
    let ended = tokio::select! {
        ended = receiving => return Err(format!("receive ended: {ended:?}")),
        changed = changing => changed,
    };
    ended?;
    drop(stop);
    // Another receiver knows the new epoch from its beginning, and fences the one before.
    world.server.write_more(8 << 10);
    let (stop, stopped) = watch::channel(false);
    let receiving = world.receiver(3, stopped).await;
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.send_replace(true);
    };
    let (received, ()) = tokio::join!(receiving, stopping);
    received.map_err(|error| error.to_string())?;
    let cluster = Cluster::open(rotator.clone(), world.cluster.clone()).await.map_err(told)?;
    for _ in 0..3 {
        tokio::time::sleep(WORK_GRACE * 2).await;
        gc::collect_with(&cluster, GRACE, WORK_GRACE).await.map_err(told)?;
        let again = |root: &Root| Ok::<_, RepoError>(Some(RootChange::of(root.clone())));
        cluster.commit(again).await.map_err(told)?;
    }
    destroy(&rotator, 1, &Unwatched).await.map_err(told)?;
    world.lost().await.map_or(Ok(()), Err)
}
