//! What the journal lets go of: files whose WAL is durable elsewhere; and whose WAL comes next, once nothing of another generation
//! of the cluster is left.

use super::{Journal, JournalError, JournalPosition};
use crate::base::{Generation, StreamId};

impl Journal {
    /// From now on records belong to `stream`, of `generation`; they go to files of their own. What was appended before is synced.
    /// To be called before the first append.
    ///
    /// # Errors
    /// [`JournalError::Generation`] when it holds WAL of another generation, which is to be [discarded](Journal::discard) once it
    /// is durable elsewhere.
    pub async fn begin_stream(
        &mut self,
        stream: StreamId,
        writer_epoch: u64,
        generation: Generation,
    ) -> Result<(), JournalError> {
        self.sync().await?;
        self.leave_in_order().await?;
        if let Some(held) = self.generation.filter(|held| *held != generation) {
            if self.left.iter().any(|file| file.end.is_some()) {
                return Err(JournalError::Generation { dir: self.dir.clone(), held, wanted: generation });
            }
            self.discard().await?;
        }
        self.generation = Some(generation);
        self.stream = Some((stream, writer_epoch));
        Ok(())
    }

    /// Removes the files in which nothing lies past `upto`, which is durable elsewhere. The one being written stays.
    pub async fn trim(&mut self, upto: JournalPosition) -> Result<(), JournalError> {
        while let Some(oldest) = self.left.front() {
            if oldest.end.is_some_and(|end| end > upto) {
                break;
            }
            self.remove(oldest.number).await?;
            self.left.pop_front();
        }
        Ok(())
    }

    /// One at a time: if several removals were lost and kept in any order, a hole would look like damage.
    async fn remove(&self, number: u64) -> Result<(), JournalError> {
        let path = self.path(number);
        self.disk.remove(&path).await.map_err(|error| JournalError::io(&path, "removing it", error))?;
        self.sync_dir().await
    }

    /// Removes every file: all that they hold is durable elsewhere. What comes next may be of another generation.
    pub async fn discard(&mut self) -> Result<(), JournalError> {
        self.sync().await?;
        self.leave_in_order().await?;
        while let Some(oldest) = self.left.front() {
            self.remove(oldest.number).await?;
            self.left.pop_front();
        }
        (self.end, self.synced, self.generation) = (None, None, None);
        Ok(())
    }

    /// The generation of what it holds; none when it never held anything.
    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }
}
