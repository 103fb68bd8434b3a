//! The WAL of a backup, streamed by the command that makes it when no receiver does. A slot holds it from before the backup
//! begins; a slot that was made for this is dropped afterwards, so that nobody's disk fills up behind a backup that is over.

use super::failure::Failure;
use crate::backup::{EnsureWal, ReceiverElsewhere, WalFailure};
use crate::base::{Clock, ClusterName, Generation, LsnRange, TimelineId, limits};
use crate::net::{ConnectOptions, Connection, ConnectionKind, PgError, code};
use crate::receive::machine::Cut;
use crate::receive::pipeline::{ReceiveError, Stored};
use crate::receive::postgres::PostgresConnector;
use crate::receive::session::{self, ReceiveOptions};
use crate::repo::{Cluster, RepoError};
use async_trait::async_trait;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a slot is looked at that nobody reads, for a receiver may just be connecting again, or that somebody still does.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Leaves the WAL to a running receiver, or streams it.
pub struct OwnWal {
    server: Arc<ConnectOptions>,
    slot: String,
    application_name: String,
    clock: Arc<dyn Clock>,
    streaming: Mutex<Option<Streaming>>,
}

/// A receiver of our own.
struct Streaming {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), ReceiveError>>,
    slot_is_ours: bool,
}

impl fmt::Debug for OwnWal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnWal").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl OwnWal {
    /// For a backup of the server of `server` whose receiver uses `slot`.
    pub fn new(
        server: Arc<ConnectOptions>,
        slot: String,
        cluster: &ClusterName,
        clock: Arc<dyn Clock>,
    ) -> OwnWal {
        OwnWal { server, slot, application_name: cluster.slot_name(), clock, streaming: Mutex::new(None) }
    }

    /// Stops streaming, if this streamed, and drops the slot if it was made for this. Says whether it streamed.
    pub async fn finish(&self) -> Result<bool, Failure> {
        let Some(streaming) = self.streaming.lock().await.take() else { return Ok(false) };
        streaming.stop.send_replace(true);
        let ended = streaming.task.await;
        if matches!(ended, Ok(Err(ReceiveError::Repo(RepoError::Fenced { .. })))) {
            // A receiver was started meanwhile; the slot is its own now.
            return Ok(true);
        }
        if streaming.slot_is_ours {
            self.drop_slot().await?;
        }
        Ok(true)
    }

    /// The server's side of a stream ends a moment after ours: a slot in use is asked for again. Who uses it for longer is a
    /// receiver that was started meanwhile.
    async fn drop_slot(&self) -> Result<(), PgError> {
        let mut server = self.replication().await?;
        let until = Instant::now() + RECONNECT_PATIENCE;
        loop {
            match server.drop_slot(&self.slot).await {
                Ok(()) => break,
                Err(error) if is(&error, code::UNDEFINED_OBJECT) => break,
                Err(error) if is(&error, code::OBJECT_IN_USE) => {
                    if Instant::now() >= until {
                        tracing::warn!(slot = self.slot, "the slot stays: another receiver uses it now");
                        break;
                    }
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
        server.close().await;
        Ok(())
    }

    async fn replication(&self) -> Result<Connection, PgError> {
        Connection::connect(&self.server, ConnectionKind::PhysicalReplication, &self.application_name).await
    }

    /// Whether a receiver is connected to the slot, or connects again within [`RECONNECT_PATIENCE`].
    async fn receiver_runs(&self) -> Result<bool, PgError> {
        let mut server =
            Connection::connect(&self.server, ConnectionKind::Sql, &self.application_name).await?;
        let until = Instant::now() + RECONNECT_PATIENCE;
        let runs = loop {
            match server.slot_state(&self.slot).await? {
                None => break false,
                Some(slot) if slot.active => break true,
                Some(_) if Instant::now() >= until => break false,
                Some(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        };
        server.close().await;
        Ok(runs)
    }

    async fn start(&self, cluster: &Cluster) -> Result<Streaming, PgError> {
        let mut server = self.replication().await?;
        let slot_is_ours = match server.create_physical_slot(&self.slot).await {
            Ok(()) => true,
            Err(error) if is(&error, code::DUPLICATE_OBJECT) => false,
            Err(error) => return Err(error),
        };
        server.close().await;
        let connector = PostgresConnector {
            options: self.server.clone(),
            application_name: self.application_name.clone(),
            clock: self.clock.clone(),
        };
        let options = ReceiveOptions {
            slot: self.slot.clone(),
            journal: None,
            cut: Cut::default(),
            shutdown_grace: limits::SHUTDOWN_GRACE,
        };
        let (repo, name) = (cluster.repo().clone(), cluster.name().clone());
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(async move {
            let (stored, _) = watch::channel(Stored::default());
            session::run(repo, name, &connector, &options, stored, stopping).await
        });
        Ok(Streaming { stop, task, slot_is_ours })
    }
}

fn is(error: &PgError, code: &str) -> bool {
    error.sqlstate() == Some(code)
}

#[async_trait]
impl EnsureWal for OwnWal {
    async fn begin(&self, cluster: &Cluster) -> Result<(), WalFailure> {
        let begin = async {
            if self.receiver_runs().await? {
                return Ok::<_, Failure>(None);
            }
            tracing::info!(slot = self.slot, "no receiver runs: the backup streams its WAL itself");
            Ok(Some(self.start(cluster).await?))
        };
        *self.streaming.lock().await = begin.await?;
        Ok(())
    }

    async fn wait(
        &self,
        cluster: &Cluster,
        place: (Generation, TimelineId),
        range: LsnRange,
        deadline: Instant,
    ) -> Result<bool, WalFailure> {
        let mut streaming = self.streaming.lock().await;
        let elsewhere = ReceiverElsewhere.wait(cluster, place, range, deadline);
        let Some(own) = streaming.as_mut() else { return elsewhere.await };
        tokio::pin!(elsewhere);
        tokio::select! {
            durable = &mut elsewhere => durable,
            ended = &mut own.task => {
                // Never joined twice: `finish` has nothing left to stop.
                *streaming = None;
                match ended {
                    Ok(Ok(()) | Err(ReceiveError::Repo(RepoError::Fenced { .. }))) => elsewhere.await,
                    Ok(Err(error)) => Err(Failure::from(error).into()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}
