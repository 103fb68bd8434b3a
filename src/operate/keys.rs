//! What `walden key list` shows: slots, epochs, and what each epoch still seals. As much of it as can be had without a key.

use super::units::Bytes;
use crate::base::{Progress, SlotName, Timestamp};
use crate::codec::EpochObject;
use crate::codec::keyslot::{self, SlotPublic};
use crate::format::envelope::PlainObject;
use crate::format::keyslot::{EpochSlot, KeySlot};
use crate::rekey::census::{self, Census};
use crate::repo::keys::KeyObjects;
use crate::repo::repository::read_marker;
use crate::repo::slots::{self, Standing};
use crate::repo::{RepoError, Repository, layout};
use crate::store::{Store, StoreError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The keys of a repository.
#[derive(Debug, Clone, Serialize)]
pub struct Keys {
    /// Its URL.
    pub repository: String,
    /// The slot that opened it now; none when it was looked at without a key.
    pub opened_by: Option<String>,
    /// What could not be checked, and why.
    pub unchecked: Option<String>,
    /// Slots, by name.
    pub slots: Vec<SlotInfo>,
    /// Epochs, oldest first.
    pub epochs: Vec<EpochInfo>,
    /// Objects whose header cannot be read; none when nothing was counted.
    pub unreadable_objects: Option<u64>,
}

/// A slot.
#[derive(Debug, Clone, Serialize)]
pub struct SlotInfo {
    /// Its name.
    pub name: String,
    /// `passphrase` or `key`; none when its object cannot be read.
    pub kind: Option<String>,
    /// What argon2id costs; none for a key.
    pub argon2id: Option<Argon2id>,
    /// Epochs that are sealed to it.
    pub epochs: Vec<u32>,
    /// Whether somebody who held the newest epoch gave it to the slot: the next one will be given to it too. None without a key.
    pub vouched: Option<bool>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// The cost of a passphrase.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Argon2id {
    /// Memory.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// An epoch.
#[derive(Debug, Clone, Serialize)]
pub struct EpochInfo {
    /// Its number.
    pub epoch: u32,
    /// Whether new objects are sealed under it.
    pub newest: bool,
    /// Whether it follows from the epochs before it, so that it is used: if not, somebody planted it, or links are lost. None without a
    /// key.
    pub proved: Option<bool>,
    /// Since when it is there, by the store's clock.
    pub since: Option<String>,
    /// Slots that it was given to.
    pub slots: Vec<String>,
    /// Objects that are sealed under it; none when nothing was counted.
    pub objects: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// How many of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
}

/// Gathers it. `repo` is the repository opened, or why it is not; `counted` says whether every object's header is read.
pub async fn gather(
    store: &dyn Store,
    repo: Result<&Repository, String>,
    counted: bool,
    progress: &dyn Progress,
) -> Result<Keys, RepoError> {
    let id = read_marker(store).await?;
    let objects = KeyObjects::list(store).await?;
    let mut found: Vec<(SlotInfo, Option<SlotPublic>)> = Vec::new();
    for name in &objects.slots {
        found.push(slot(store, id, name).await?);
    }
    let mut epochs = Vec::new();
    for epoch in &objects.epochs {
        epochs.push(look_at(store, id, *epoch, &mut found).await?);
    }
    match &repo {
        Ok(repo) => {
            prove(repo, &mut epochs);
            vouch(repo, &mut found).await?;
        }
        Err(_) => epochs.last_mut().into_iter().for_each(|newest| newest.newest = true),
    }
    let census = if counted { Some(census::count(store, progress).await?) } else { None };
    if let Some(census) = &census {
        epochs.iter_mut().for_each(|epoch| tally(epoch, census));
        // Whoever destroyed it had counted; what is under it now was stored by somebody who did not know.
        let gone = census.epochs.keys().filter(|epoch| !objects.epochs.contains(epoch));
        epochs.extend(gone.map(|epoch| {
            let mut lost = EpochInfo::new(*epoch);
            tally(&mut lost, census);
            lost
        }));
    }
    let unchecked = repo.as_ref().err().map(|why| format!("links and vouchers were not checked: {why}"));
    Ok(Keys {
        repository: store.url(),
        opened_by: repo.ok().map(|repo| repo.slot().name().to_string()),
        unchecked,
        slots: found.into_iter().map(|(info, _)| info).collect(),
        epochs,
        unreadable_objects: census.map(|census| census.unreadable),
    })
}

impl EpochInfo {
    fn new(epoch: u32) -> EpochInfo {
        let (kinds, slots) = (BTreeMap::new(), Vec::new());
        EpochInfo {
            epoch,
            newest: false,
            proved: None,
            since: None,
            slots,
            objects: None,
            bytes: None,
            kinds,
        }
    }
}

async fn slot(
    store: &dyn Store,
    id: crate::base::RepositoryId,
    name: &SlotName,
) -> Result<(SlotInfo, Option<SlotPublic>), RepoError> {
    let mut info = SlotInfo {
        name: name.to_string(),
        kind: None,
        argon2id: None,
        epochs: Vec::new(),
        vouched: None,
        problem: None,
    };
    let bytes = store.get(&layout::slot(name)).await?;
    let read = KeySlot::from_object(&bytes).map_err(|error| error.to_string());
    let read = read.and_then(|slot| {
        let public = keyslot::slot_public(&bytes, id, name).map_err(|error| error.to_string())?;
        Ok((slot, public))
    });
    match read {
        Ok((slot, public)) => {
            info.kind = Some(slot.kind.to_string());
            info.argon2id = slot.cost().map(|cost| Argon2id {
                memory_kib: cost.memory_kib(),
                passes: cost.passes(),
                lanes: cost.lanes(),
            });
            Ok((info, Some(public)))
        }
        Err(problem) => {
            info.problem = Some(problem);
            Ok((info, None))
        }
    }
}

/// When an epoch was made, and to which of the slots it is sealed.
async fn look_at(
    store: &dyn Store,
    id: crate::base::RepositoryId,
    epoch: u32,
    slots: &mut [(SlotInfo, Option<SlotPublic>)],
) -> Result<EpochInfo, RepoError> {
    let mut info = EpochInfo::new(epoch);
    let key = layout::epoch(epoch);
    info.since = match store.head(&key).await {
        Ok(meta) => Some(Timestamp::from_unix_micros(meta.modified_unix_micros).to_string()),
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let made = present(store.get(&key).await)?;
    let made = made.and_then(|bytes| EpochObject::decode(&bytes, id, epoch).ok());
    for (slot, public) in slots {
        let Some(public) = public else { continue };
        let own = present(store.get(&layout::epoch_slot(epoch, public.name())).await)?;
        let own = own.and_then(|bytes| EpochSlot::from_object(&bytes).ok());
        let whole = made.as_ref().is_some_and(|made| made.sealed_to(public).is_some());
        if whole || own.is_some_and(|own| public.is_of(&own)) {
            slot.epochs.push(epoch);
            info.slots.push(slot.name.clone());
        }
    }
    Ok(info)
}

fn present<T>(got: Result<T, StoreError>) -> Result<Option<T>, RepoError> {
    match got {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Which epochs links prove, and which of these is the newest.
fn prove(repo: &Repository, epochs: &mut [EpochInfo]) {
    let keys = repo.keys();
    let opened_by = repo.slot().name().as_str();
    for info in epochs {
        info.newest = info.epoch == keys.chain().last();
        // One that was not given to our slot is known by its link alone.
        let given = info.slots.iter().any(|slot| slot == opened_by);
        info.proved = Some(match given {
            true => keys.epoch(info.epoch).is_some(),
            false => keys.chain().key(info.epoch).is_some(),
        });
    }
}

async fn vouch(repo: &Repository, found: &mut [(SlotInfo, Option<SlotPublic>)]) -> Result<(), RepoError> {
    let standings: BTreeMap<String, Standing> = slots::standings(repo)
        .await?
        .into_iter()
        .map(|(name, standing)| (name.to_string(), standing))
        .collect();
    for (slot, _) in found {
        match standings.get(&slot.name) {
            Some(Standing::Vouched) => slot.vouched = Some(true),
            Some(Standing::Unvouched(reason)) => {
                slot.vouched = Some(false);
                slot.problem.get_or_insert_with(|| reason.clone());
            }
            None => {}
        }
    }
    Ok(())
}

fn tally(info: &mut EpochInfo, census: &Census) {
    let kinds = census.epochs.get(&info.epoch);
    let sum = |of: fn(&census::Tally) -> u64| kinds.map_or(0, |kinds| kinds.values().map(of).sum());
    info.objects = Some(sum(|tally| tally.objects));
    info.bytes = Some(sum(|tally| tally.bytes));
    info.kinds = kinds.into_iter().flatten().map(|(kind, tally)| (kind.name(), tally.objects)).collect();
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "repository {}", self.repository)?;
        writeln!(f, "\n{:<20}{:<12}{:<30}{:<14}vouched", "slot", "opened by", "argon2id", "epochs")?;
        self.slots.iter().try_for_each(|slot| {
            write!(f, "{slot}")?;
            let now = self.opened_by.as_ref() == Some(&slot.name);
            writeln!(f, "{}", if now { ", opened the repository now" } else { "" })?;
            slot.problem.iter().try_for_each(|problem| writeln!(f, "  {problem}"))
        })?;
        writeln!(f, "\n{:<20}{:<34}{:>10}{:>12}", "epoch", "since", "objects", "bytes")?;
        self.epochs.iter().try_for_each(|epoch| writeln!(f, "{epoch}"))?;
        match self.unreadable_objects {
            None => writeln!(f, "objects were not counted")?,
            Some(0) => writeln!(
                f,
                "counted by the header of every object; what is under the lasting key is in no epoch"
            )?,
            Some(count) => writeln!(f, "{count} objects have no readable header: `walden verify` says more")?,
        }
        if self.epochs.iter().any(|epoch| epoch.proved == Some(false)) {
            writeln!(
                f,
                "an epoch that is not proved is never used: somebody planted it, or links below keys/epochs are lost"
            )?;
        }
        self.unchecked.iter().try_for_each(|why| writeln!(f, "{why}"))
    }
}

impl fmt::Display for SlotInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_deref().unwrap_or("unreadable");
        let cost = self.argon2id.map_or("-".to_owned(), |cost| {
            let memory = Bytes(u64::from(cost.memory_kib) << 10);
            format!("{memory}, {} passes, lanes {}", cost.passes, cost.lanes)
        });
        let vouched = match self.vouched {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not checked",
        };
        write!(f, "{:<20}{kind:<12}{cost:<30}{:<14}{vouched}", self.name, ranges(&self.epochs))
    }
}

impl fmt::Display for EpochInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.newest, self.proved) {
            (true, _) => ", the newest",
            (false, Some(false)) => ", not proved",
            (false, _) => "",
        };
        let number = format!("{}{what}", self.epoch);
        let since = self.since.as_deref().unwrap_or("destroyed, or damaged");
        let objects = self.objects.map_or("-".to_owned(), |objects| objects.to_string());
        let bytes = self.bytes.map_or("-".to_owned(), |bytes| Bytes(bytes).to_string());
        write!(f, "{number:<20}{since:<34}{objects:>10}{bytes:>12}")?;
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        if kinds.is_empty() { Ok(()) } else { write!(f, "  {}", kinds.join(", ")) }
    }
}

/// `1-3, 5` for 1, 2, 3 and 5.
fn ranges(epochs: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for epoch in epochs {
        match runs.last_mut() {
            Some((_, to)) if *to + 1 == *epoch => *to = *epoch,
            _ => runs.push((*epoch, *epoch)),
        }
    }
    let shown =
        runs.iter().map(|(from, to)| if from == to { format!("{from}") } else { format!("{from}-{to}") });
    match runs.is_empty() {
        true => "none".to_owned(),
        false => shown.collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_shown_as_ranges() {
        assert_eq!(ranges(&[]), "none");
        assert_eq!(ranges(&[1]), "1");
        assert_eq!(ranges(&[1, 2, 3, 5, 7, 8]), "1-3, 5, 7-8");
    }
}
