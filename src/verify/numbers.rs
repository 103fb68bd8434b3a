//! What a list shows, held against what numbers and names promise: roots and floors without holes, chains that end where the
//! list of their objects ends, epochs whose slot is there. A list may be late, so what it misses is asked for by name.

use super::Finding;
use super::listing::Listed;
use crate::base::{ClusterName, Generation, ObjectKey, SlotName};
use crate::format::keyslot::FIRST_EPOCH;
use crate::format::root::{Root, StreamEntry};
use crate::repo::chain::{Chain, ChainEnd};
use crate::repo::layout::{self, KeyObject};
use crate::repo::repository::exists;
use crate::repo::roots::{self, NONE};
use crate::repo::walmap::Snapshot;
use crate::repo::{Cluster, RepoError, Repository};
use std::collections::{BTreeMap, BTreeSet};

/// The most missing links that are said: somebody may have planted one with a great number.
const UNLINKED_SAID_MAX: usize = 8;

/// The clusters of which anything is there.
pub fn clusters(listed: &Listed) -> BTreeSet<ClusterName> {
    let name = |key: &ObjectKey| match key.as_str().split('/').collect::<Vec<_>>().as_slice() {
        [layout::CLUSTERS_PREFIX, name, ..] => name.parse().ok(),
        _ => None,
    };
    listed.keys().filter_map(name).collect()
}

/// Key epochs of which anything is there.
pub fn epochs(listed: &Listed) -> BTreeSet<u32> {
    let epoch = |object| match object {
        KeyObject::Slot(_) | KeyObject::Link(_) => None,
        KeyObject::Epoch(epoch) | KeyObject::EpochSlot(epoch, _) => Some(epoch),
    };
    listed.keys().filter_map(layout::parse_key_object).filter_map(epoch).collect()
}

/// Slots without an epoch, epochs without a slot, and epochs of which one of their two copies is gone, or the link. `newest` is the
/// newest epoch, where that is proved.
pub fn slots(listed: &Listed, newest: Option<u32>) -> Vec<Finding> {
    let (mut slots, mut made, mut links) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut epochs = BTreeMap::<SlotName, BTreeSet<u32>>::new();
    for object in listed.keys().filter_map(layout::parse_key_object) {
        match object {
            KeyObject::Slot(slot) => drop(slots.insert(slot)),
            KeyObject::Epoch(epoch) => drop(made.insert(epoch)),
            KeyObject::Link(epoch) => drop(links.insert(epoch)),
            KeyObject::EpochSlot(epoch, slot) => drop(epochs.entry(slot).or_default().insert(epoch)),
        }
    }
    let listed_last = || epochs.values().flatten().chain(&made).max().copied().unwrap_or(FIRST_EPOCH);
    let newest = newest.unwrap_or_else(listed_last);
    let orphans = epochs.iter().filter(|(slot, _)| !slots.contains(*slot)).map(|(slot, epochs)| Finding {
        backups: Vec::new(),
        key: layout::slot(slot).to_string(),
        reason: format!("it is gone, and key epochs are sealed to it: {epochs:?}"),
        cost: format!("key slot {slot} opens nothing"),
    });
    let opens_newest = |slot: &&SlotName| epochs.get(*slot).is_some_and(|epochs| epochs.contains(&newest));
    let shut = slots.iter().filter(|slot| !opens_newest(slot)).map(|slot| Finding {
        backups: Vec::new(),
        key: layout::epoch_slot(newest, slot).to_string(),
        reason: "it is not there".into(),
        cost: format!("key slot {slot} does not open key epoch {newest}, unless the epoch was made for it"),
    });
    let gone = epochs.values().flatten().copied().collect::<BTreeSet<u32>>();
    let gone = gone.into_iter().filter(|epoch| !made.contains(epoch)).map(|epoch| Finding {
        key: layout::epoch(epoch).to_string(),
        backups: Vec::new(),
        reason: "it is gone, and the epoch is sealed to slots".into(),
        cost: format!("nothing, as long as key epoch {epoch} is sealed to each slot in an object of its own"),
    });
    // The link of an epoch that was destroyed is needed like any other, so one that is missing below another is lost.
    let linked = links.last().copied().unwrap_or(FIRST_EPOCH);
    let unlinked = (FIRST_EPOCH + 1..=newest.max(linked)).filter(|epoch| !links.contains(epoch));
    let unlinked = unlinked.take(UNLINKED_SAID_MAX).map(|epoch| Finding {
        key: layout::epoch_link(epoch).to_string(),
        backups: Vec::new(),
        reason: "it is gone, and links are never removed".into(),
        cost: format!(
            "nothing, as long as the object that made key epoch {epoch} is there: `walden key rotate` stores the link again"
        ),
    });
    orphans.chain(shut).chain(gone).chain(unlinked).collect()
}

/// Holes among the roots, floors and generations of `name`.
pub async fn roots(
    repo: &Repository,
    name: &ClusterName,
    listed: &Listed,
) -> Result<Vec<Finding>, RepoError> {
    let store = &**repo.store();
    let numbers = |folder: &str| -> BTreeSet<u64> {
        let prefix = format!("{}/{folder}/", layout::cluster_prefix(name));
        let inside = listed.keys().filter_map(|key| key.as_str().strip_prefix(&prefix));
        inside.filter_map(|number| number.parse().ok()).collect()
    };
    let mut findings = Vec::new();
    let mut gone = |key: ObjectKey, reason: String, cost: &str| {
        let cost = format!("{cost} of cluster {name}");
        findings.push(Finding { key: key.to_string(), reason, cost, backups: Vec::new() })
    };
    let (floors_there, roots_there) = (numbers("floors"), numbers("roots"));
    let newest = newest_readable(repo, name, &roots_there).await?;
    let (floor_named, generation) =
        newest.as_ref().map_or((NONE, Generation(1)), |root| (root.floor, root.generation));
    let floor_max = floors_there.last().copied().unwrap_or(NONE).max(floor_named);
    let mut floors_gone = 0;
    for number in (1..=floor_max).filter(|number| !floors_there.contains(number)) {
        let key = layout::floor(name, number);
        if !exists(store, &key).await? {
            floors_gone += 1;
            gone(key, "it is gone, and floors are never removed".into(), "the way to the newest root");
        }
    }
    for number in 1..=generation.0 {
        let key = layout::generation(name, Generation(number));
        if !exists(store, &key).await? {
            gone(key, "it is gone, and generations are never removed".into(), "what tells the server");
        }
    }
    let Some(highest) = roots_there.last().copied() else {
        gone(layout::root(name, NONE + 1), "there is no root".into(), "everything");
        return Ok(findings);
    };
    // Collection may have raised the floor since the list: asked last, and of no use when floors are missing.
    let floor = match roots::newest_floor(repo, name, NONE).await {
        Ok(floor) => floor,
        Err(error) if error.is_damage() => None,
        Err(error) => return Err(error),
    };
    let lowest = roots_there.first().copied().unwrap_or(highest);
    let from = floor.filter(|_| floors_gone == 0).map_or(lowest, |floor| floor.root);
    let mut missing = Vec::new();
    for number in (from..highest).filter(|number| !roots_there.contains(number)) {
        if !exists(store, &layout::root(name, number)).await? {
            missing.push(number);
        }
    }
    let above = |number: u64| roots_there.range(number..).count();
    for number in missing {
        let reason = format!("it is gone, and {} newer roots are there", above(number));
        gone(layout::root(name, number), reason, "until `walden repair root`, the way to the newest root");
    }
    Ok(findings)
}

/// The highest root of those listed that can be read.
async fn newest_readable(
    repo: &Repository,
    name: &ClusterName,
    numbers: &BTreeSet<u64>,
) -> Result<Option<Root>, RepoError> {
    for number in numbers.iter().rev() {
        match roots::read_root(repo, name, *number).await {
            Ok(Some(root)) => return Ok(Some(root)),
            Ok(None) | Err(RepoError::Damage { .. } | RepoError::NoKey { .. } | RepoError::Newer { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Chains that end before their objects do, and closed streams without a fence.
pub async fn chains(
    cluster: &Cluster,
    snapshot: &Snapshot,
    listed: &Listed,
) -> Result<Vec<Finding>, RepoError> {
    let store = &**cluster.repo().store();
    let mut findings = Vec::new();
    let chains = snapshot.wal.chains();
    let begun =
        |chain: &Chain| !chain.objects.is_empty() || begun_before(&chain.stream) || chain.end_number() > 0;
    for (place, chain) in chains.iter().enumerate() {
        let ChainEnd::Open { next } = chain.end else { continue };
        let stream = chain.stream.id;
        let above = |key: &&ObjectKey| {
            layout::parse_flush(key).is_some_and(|(of, number)| of == stream && number > next)
        };
        let key = layout::flush(cluster.name(), stream, next);
        let above = listed.keys().filter(above).count();
        let succeeded = chains.iter().skip(place + 1).any(begun);
        let reason = match (above, succeeded) {
            (0, false) => continue,
            (0, true) => "there is no fence, and a later stream has begun".to_owned(),
            _ => format!("it is not there, and {above} objects above it in its stream are"),
        };
        if !exists(store, &key).await? {
            let from = chain.end_lsn().map_or("its beginning".to_owned(), |end| end.to_string());
            findings.push(Finding {
                backups: Vec::new(),
                key: key.to_string(),
                reason,
                cost: format!("WAL of stream {stream} from {from} on, if it had any"),
            });
        }
    }
    Ok(findings)
}

fn begun_before(stream: &StreamEntry) -> bool {
    stream.low_water_lsn.is_some()
}

/// Pending work whose object is gone.
pub async fn pending(cluster: &Cluster, root: &Root) -> Result<Vec<Finding>, RepoError> {
    let mut missing = Vec::new();
    for entry in &root.pending {
        let key = layout::pending(cluster.name(), entry.id);
        if !exists(&**cluster.repo().store(), &key).await? {
            missing.push((entry.id, key));
        }
    }
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    // Work that ended meanwhile took its entry out of the root first.
    let now = cluster.newest_root().await?;
    missing.retain(|(id, _)| now.pending.iter().any(|entry| entry.id == *id));
    let finding = |(_, key): (_, ObjectKey)| Finding {
        backups: Vec::new(),
        key: key.to_string(),
        reason: "it is gone, and the newest root names it".into(),
        cost: "the work in progress that it stands for: it will be expired".into(),
    };
    Ok(missing.into_iter().map(finding).collect())
}
