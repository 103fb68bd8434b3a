//! Generations of a cluster: which server is which of them, and how the next one begins. Spec: formats/root.md.
//! A generation is what its number's object says. A number whose object was made and that no root took stays empty: the next is tried.

use super::cluster::{Cluster, RootChange};
use super::error::RepoError;
use super::layout;
use super::repository::Created;
use crate::base::Generation;
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::root::{GenerationRecord, Root};
use bytes::Bytes;

/// Numbers passed over because upgrades to other servers ended before their root.
const PASSED_OVER_MAX: u32 = 100;

impl Cluster {
    /// The current generation.
    pub async fn generation(&self) -> Result<GenerationRecord, RepoError> {
        let root = self.newest_root().await?;
        self.read_generation(root.generation).await
    }

    /// Generation `generation`.
    pub async fn read_generation(&self, generation: Generation) -> Result<GenerationRecord, RepoError> {
        let key = layout::generation(self.name(), generation);
        let object = self.repo().read_object(&key, ObjectKind::Generation).await?;
        let record: GenerationRecord = object.meta().map_err(|error| RepoError::open(&key, error))?;
        if record.cluster != *self.name() || record.generation != generation {
            let found = format!("says it is generation {} of {}", record.generation, record.cluster);
            return Err(RepoError::damage(&key, found));
        }
        Ok(record)
    }

    /// Every generation up to that of `root` that has a record, oldest first.
    pub async fn generations(&self, root: &Root) -> Result<Vec<GenerationRecord>, RepoError> {
        let mut all = Vec::new();
        for number in 1..=root.generation.0 {
            match self.read_generation(Generation(number)).await {
                Ok(record) => all.push(record),
                Err(error) if super::cluster::object_is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Refuses a server that is not the current generation: one that is an older one, or none of them.
    pub async fn check_server(&self, server: &GenerationRecord) -> Result<(), RepoError> {
        let root = self.newest_root().await?;
        self.refuse_deleted(&root)?;
        let stored = self.read_generation(root.generation).await?;
        if is_same_server(&stored, server) {
            return Ok(());
        }
        let older = self.generations(&root).await?.into_iter().rev();
        if let Some(older) = older.skip(1).find(|older| is_same_server(older, server)) {
            let (cluster, current) = (self.name().to_string(), root.generation);
            return Err(RepoError::NewGeneration { cluster, generation: older.generation, current });
        }
        if stored.system_id != server.system_id {
            return Err(RepoError::WrongSystem {
                cluster: self.name().to_string(),
                found: server.system_id,
                expected: stored.system_id,
            });
        }
        let differs = |what: &str, found: u32, expected: u32| RepoError::Conflict {
            reason: format!("cluster {}: {what} of the server is {found}, stored is {expected}", self.name()),
        };
        if stored.major_version != server.major_version {
            return Err(differs("major version", server.major_version, stored.major_version));
        }
        Err(differs("WAL segment size", server.segment_size, stored.segment_size))
    }

    /// Makes `server` the next generation after `after`, in one root. Whoever wrote to the one before may go on until its streams
    /// are fenced, which is the caller's. The root that is then the newest; its generation is `server`. Run again after an
    /// interruption, or twice at once, it does the same. Durable on `Ok`. If dropped: done, or not.
    ///
    /// # Errors
    /// [`RepoError::Conflict`] when another server became the next generation meanwhile.
    pub async fn begin_generation(
        &self,
        after: Generation,
        server: &GenerationRecord,
    ) -> Result<Root, RepoError> {
        self.follow_epochs().await?;
        let next = self.next_generation(after, server).await?;
        self.commit(|root| {
            if root.generation == next && root.deleted_at.is_none() {
                return Ok(None);
            }
            if root.generation != after {
                let reason =
                    format!("generation {} of cluster {} began meanwhile", root.generation, self.name());
                return Err(RepoError::Conflict { reason });
            }
            let mut begun = root.clone();
            if let Some(stream) = root.streams.iter().rev().find(|stream| stream.generation == after) {
                begun.set_ended(after, stream.timeline);
            }
            begun.generation = next;
            // A fence that ends a stream of the generation before bears this epoch.
            begun.writer_epoch += 1;
            begun.deleted_at = None;
            Ok(Some(RootChange::of(begun)))
        })
        .await
    }

    /// The first number after `after` whose object says `server`: made now, or by an upgrade that ended before its root.
    async fn next_generation(
        &self,
        after: Generation,
        server: &GenerationRecord,
    ) -> Result<Generation, RepoError> {
        for number in (after.0 + 1..).take(PASSED_OVER_MAX as usize) {
            let record = GenerationRecord { generation: Generation(number), ..server.clone() };
            match self.create_generation(&record).await? {
                Created::Ours => return Ok(record.generation),
                Created::Taken(_) => {
                    if is_same_server(&self.read_generation(record.generation).await?, server) {
                        return Ok(record.generation);
                    }
                }
            }
        }
        let reason = format!("the {PASSED_OVER_MAX} generations after {after} are other servers");
        Err(RepoError::Conflict { reason })
    }

    pub(super) async fn create_generation(&self, record: &GenerationRecord) -> Result<Created, RepoError> {
        let key = layout::generation(self.name(), record.generation);
        let number = record.generation.0.into();
        let writer = self.repo().writer(ObjectKind::Generation, &key, [0; 16], number, 0);
        let body: Bytes = writer.finish(record.encode()).bytes;
        self.repo().create(&key, &body).await
    }
}

/// Whether WAL of one continues WAL of the other: the number does not count.
pub fn is_same_server(one: &GenerationRecord, other: &GenerationRecord) -> bool {
    (one.system_id, one.major_version, one.segment_size)
        == (other.system_id, other.major_version, other.segment_size)
}
