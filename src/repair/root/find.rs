//! Which roots of a cluster can be read. The newest by number may not be the newest that is there: where one is gone from the middle, the
//! search ends before it. So roots are listed too, and what the list misses is asked for by number.

use crate::base::ClusterName;
use crate::codec::OpenError;
use crate::codec::object::{Expect, OpenObject};
use crate::format::header::ObjectKind;
use crate::format::root::Root;
use crate::repo::repository::exists;
use crate::repo::roots::{self, NONE};
use crate::repo::{Cluster, RepoError, layout};
use std::collections::BTreeSet;

/// A root that is there and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its number.
    pub number: u64,
    /// Why.
    pub reason: String,
}

/// The roots of a cluster.
#[derive(Debug)]
pub(super) struct Roots {
    /// The newest that can be read.
    pub base: Root,
    /// The highest number at which there is one.
    pub highest: u64,
    /// Those above `base` that cannot be read, newest first.
    pub unreadable: Vec<Unreadable>,
    /// Those below `highest` that are gone, in order.
    pub holes: Vec<u64>,
}

/// Finds them.
///
/// # Errors
/// [`RepoError::Conflict`] when none from the floor on can be read, [`RepoError::NoKey`] when a key epoch is not held or has another
/// secret, [`RepoError::Newer`] for a root of a newer walden.
pub(super) async fn find(cluster: &Cluster) -> Result<Roots, RepoError> {
    let (repo, name) = (cluster.repo(), cluster.name());
    let listed = repo.store().list(&layout::roots_prefix(name)).await?;
    let listed: BTreeSet<u64> = listed.iter().filter_map(|meta| meta.key.file_name().parse().ok()).collect();
    let (floor, found) = roots::newest_root_number(repo, name, NONE, NONE).await?;
    let highest = listed.last().copied().unwrap_or(NONE).max(found);
    if highest == NONE {
        return Err(RepoError::NotFound {
            what: format!("a root of cluster {name}"),
            url: repo.store().url(),
        });
    }
    let least = floor.map_or(NONE + 1, |floor| floor.root);
    let (mut base, mut unreadable, mut holes) = (None, Vec::new(), Vec::new());
    for number in (least..=highest).rev() {
        if base.is_some() {
            if !listed.contains(&number) && !exists(&**repo.store(), &layout::root(name, number)).await? {
                holes.push(number);
            }
            continue;
        }
        match roots::read_root(repo, name, number).await {
            Ok(Some(root)) => base = Some(root),
            Ok(None) => holes.push(number),
            Err(error) if error.is_damage() => {
                refuse_if_whole(cluster, number).await?;
                unreadable.push(Unreadable { number, reason: error.to_string() })
            }
            Err(error) => return Err(error),
        }
    }
    holes.reverse();
    let Some(base) = base else { return Err(none_is_left(name, (least, highest), &unreadable)) };
    Ok(Roots { base, highest, unreadable, holes })
}

/// Refuses a root that does not open and is not damaged either: what it says is known to somebody, and another in its place would undo
/// that.
async fn refuse_if_whole(cluster: &Cluster, number: u64) -> Result<(), RepoError> {
    let (repo, key) = (cluster.repo(), layout::root(cluster.name(), number));
    let bytes = match repo.read(&key).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_damage() => return Ok(()),
        Err(error) => return Err(error),
    };
    let expect = Expect { repository: Some(repo.id()), key: Some(&key), kind: Some(ObjectKind::Root) };
    match OpenObject::open(bytes, &*repo.keys(), &expect) {
        // Its seal is good: nobody but walden made that.
        Ok(object) if object.meta::<Root>().is_err() => {
            Err(RepoError::Newer { key, reason: "its seal opens, and what it says is unknown".into() })
        }
        Err(error @ OpenError::WrongKey { .. }) => Err(RepoError::NoKey { key, reason: error.to_string() }),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn none_is_left(name: &ClusterName, (least, highest): (u64, u64), unreadable: &[Unreadable]) -> RepoError {
    let first = unreadable.first().map_or("they are gone", |first| &first.reason);
    let reason = format!(
        "no root of cluster {name} can be read from root {least} on, where the floor lets them begin, to root {highest} ({first}). A root \
         is made anew only out of one that can be read: put a whole copy of any of them in its place, from a copy of the store or an \
         earlier version of the object, and repair then"
    );
    RepoError::Conflict { reason }
}
