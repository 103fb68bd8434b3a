//! Does the store keep the one promise everything rests on, that an object is created once and never overwritten?
//! Several stores that people use do not (testing found two that ignore the condition, and one that races), and would lose data
//! without a word. So it is proved at `init` by racing writers, and asked at every start; the objects lie under `probe/`
//! and are removed. Refuses with [`StoreError::Unfit`], which says what the store did.

use super::{Store, StoreError};
use crate::base::{Entropy, ObjectId, ObjectKey};
use bytes::Bytes;
use futures_util::future::join_all;

/// Rounds of the proof at `init`.
const ROUNDS: usize = 20;
/// Writers racing for one name in a round.
const RACERS: usize = 16;
/// Bytes of one racer's object: enough for a store to be in the middle of one when the next arrives.
const RACER_BYTES: usize = 64 << 10;

/// Creates an object twice. The second must be refused, and the first one's bytes must stay.
pub async fn probe_start(store: &dyn Store, entropy: &dyn Entropy) -> Result<(), StoreError> {
    let key = probe_key(ObjectId::random(entropy), 0)?;
    let result = create_twice(store, &key).await;
    let removed = store.delete(&key).await;
    result.and(removed)
}

async fn create_twice(store: &dyn Store, key: &ObjectKey) -> Result<(), StoreError> {
    let (first, second) = (Bytes::from_static(b"the first"), Bytes::from_static(b"the second"));
    store.create(key, first.clone()).await?;
    let again = store.create(key, second).await;
    let found = store.get(key).await?;
    match again {
        Err(StoreError::AlreadyExists { .. }) if found == first => Ok(()),
        Err(StoreError::AlreadyExists { .. }) => {
            Err(unfit(store, "said that an object exists, and overwrote it"))
        }
        Ok(()) => Err(unfit(store, "created an object that existed: it ignores conditional writes")),
        Err(other) => Err(other),
    }
}

/// Lets 16 writers race for one name, 20 times. One must win, all must read that one's bytes, and they must stay.
pub async fn probe_init(store: &dyn Store, entropy: &dyn Entropy) -> Result<(), StoreError> {
    probe_start(store, entropy).await?;
    let id = ObjectId::random(entropy);
    for round in 1..=ROUNDS {
        let key = probe_key(id, round)?;
        let result = race(store, &key).await;
        let removed = store.delete(&key).await;
        result.and(removed)?;
    }
    Ok(())
}

/// What one racer saw.
struct Lap {
    created: Result<(), StoreError>,
    found: Result<Bytes, StoreError>,
}

async fn race(store: &dyn Store, key: &ObjectKey) -> Result<(), StoreError> {
    let laps = join_all((0..RACERS).map(|racer| async move {
        let created = store.create(key, body_of(racer)).await;
        Lap { created, found: store.get(key).await }
    }))
    .await;
    let last = store.get(key).await;
    judge(store, laps, last)
}

/// One winner at most; every reader found the winner's bytes. A racer whose outcome is unknown may be the winner.
fn judge(store: &dyn Store, laps: Vec<Lap>, last: Result<Bytes, StoreError>) -> Result<(), StoreError> {
    let winners: Vec<usize> =
        (0..laps.len()).filter(|racer| laps.get(*racer).is_some_and(|l| l.created.is_ok())).collect();
    if winners.len() > 1 {
        let many = format!("let {} of {RACERS} racing writers create the same object", winners.len());
        return Err(unfit(store, &many));
    }
    let last = last?;
    let winner = (0..laps.len()).find(|racer| body_of(*racer) == last);
    let Some(winner) = winner.filter(|winner| winners.first().is_none_or(|won| won == winner)) else {
        return Err(unfit(store, "keeps other bytes than those of the writer that won a race"));
    };
    for (racer, lap) in laps.into_iter().enumerate() {
        match lap.created {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => {}
            Err(StoreError::Unknown { .. }) if racer == winner => {}
            Err(other) => return Err(other),
        }
        if lap.found? != last {
            return Err(unfit(store, "showed a racing writer other bytes than those that stayed"));
        }
    }
    Ok(())
}

fn body_of(racer: usize) -> Bytes {
    Bytes::from(vec![racer as u8 + 1; RACER_BYTES])
}

fn probe_key(id: ObjectId, round: usize) -> Result<ObjectKey, StoreError> {
    let key = format!("probe/{id}-{round}");
    ObjectKey::new(key.clone()).ok_or(StoreError::Url { url: key, reason: "is no object name".into() })
}

fn unfit(store: &dyn Store, what: &str) -> StoreError {
    let reason = format!("it {what}; walden cannot keep data safe there with more than one writer");
    StoreError::Unfit { url: store.url(), reason }
}

#[cfg(test)]
mod tests;
