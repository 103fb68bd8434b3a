//! Stores that lie in every way seen in the field are refused; honest ones are not, and nothing stays behind.

use super::*;
use crate::store::{LocalStore, ObjectMeta};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

#[derive(Debug)]
struct Chance;

impl Entropy for Chance {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill_with(|| fastrand::u8(..));
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    Overwrites,
    KeepsFirstButSaysOk,
    OverwritesAndSaysExists,
    ChecksThenWrites,
    LosesAnswers,
}

#[derive(Debug)]
struct Liar {
    lie: Lie,
    objects: Mutex<BTreeMap<ObjectKey, Bytes>>,
}

impl Liar {
    fn new(lie: Lie) -> Self {
        Liar { lie, objects: Mutex::default() }
    }
}

#[async_trait]
impl Store for Liar {
    async fn create(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let there = self.objects.lock().unwrap().contains_key(key);
        if self.lie == Lie::ChecksThenWrites {
            tokio::task::yield_now().await;
        }
        let exists = Err(StoreError::AlreadyExists { key: key.clone() });
        let mut objects = self.objects.lock().unwrap();
        match self.lie {
            Lie::KeepsFirstButSaysOk if there => Ok(()),
            Lie::ChecksThenWrites | Lie::LosesAnswers if there => exists,
            Lie::OverwritesAndSaysExists if there => {
                objects.insert(key.clone(), body);
                exists
            }
            Lie::LosesAnswers if objects.len() + 1 == RACERS => {
                objects.insert(key.clone(), body);
                Err(StoreError::Unknown { key: key.clone(), reason: "cut".into() })
            }
            _ => {
                objects.insert(key.clone(), body);
                Ok(())
            }
        }
    }

    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        let found = self.objects.lock().unwrap().get(key).cloned();
        found.ok_or(StoreError::NotFound { key: key.clone() })
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        Ok(self.get(key).await?.slice(range.start as usize..range.end as usize))
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let len = self.get(key).await?.len() as u64;
        Ok(ObjectMeta { key: key.clone(), len, modified_unix_micros: 0 })
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        Ok(Vec::new())
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }

    fn url(&self) -> String {
        "sim://liar".into()
    }
}

#[tokio::test]
async fn stores_that_overwrite_are_refused_at_every_start() {
    for lie in [Lie::Overwrites, Lie::KeepsFirstButSaysOk, Lie::OverwritesAndSaysExists] {
        let liar = Liar::new(lie);
        let refused = probe_start(&liar, &Chance).await;
        assert!(matches!(refused, Err(StoreError::Unfit { .. })), "{lie:?}: {refused:?}");
        assert!(liar.objects.lock().unwrap().is_empty(), "{lie:?}: probe objects stay");
    }
}

#[tokio::test]
async fn a_store_that_only_races_is_refused_at_init() {
    let liar = Liar::new(Lie::ChecksThenWrites);
    probe_start(&liar, &Chance).await.unwrap();
    let refused = probe_init(&liar, &Chance).await;
    assert!(matches!(refused, Err(StoreError::Unfit { .. })), "{refused:?}");
    assert!(liar.objects.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_unknown_winner_is_no_lie() {
    let store = Liar::new(Lie::LosesAnswers);
    let key = |i: usize| ObjectKey::new(format!("a/{i}")).unwrap();
    for i in 0..RACERS - 1 {
        store.create(&key(i), Bytes::new()).await.unwrap();
    }
    race(&store, &key(99)).await.unwrap();
}

#[tokio::test]
async fn the_local_store_passes_and_is_left_clean() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    probe_init(&store, &Chance).await.unwrap();
    assert!(store.list("").await.unwrap().is_empty());
}
