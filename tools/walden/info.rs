//! `walden info`.

use crate::context::Context;
use clap::Args;
use walden::net::server::WalPosition;
use walden::net::{Connection, ConnectionKind};
use walden::operate::Failure;
use walden::operate::info::{self, Info as Document};

const HELP: &str = "\
The recovery window runs from the first moment the earliest backup can restore to the newest server time at which \
everything was durable, less the gaps. It grows while the server is idle. With --connection (or PGHOST and the like) \
the server is asked how far the archive is behind; without, that is as of the newest WAL that was stored.

Example:
  walden info --repo /srv/walden --json | jq '.clusters[].window'";

/// Show what can be restored, backups, WAL, and how far the archive is behind
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Info {}

impl Info {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository().await?;
        let server = server(context).await;
        let mut clusters = Vec::new();
        for cluster in context.clusters(&repository).await? {
            clusters.push(info::cluster(&cluster, server).await?);
        }
        let document = Document { repository: repository.store().url(), clusters };
        context.output.result(&document, ToString::to_string)
    }
}

/// Where the server is, if one cluster and a way to its server are known. A server that is down is no reason to show nothing.
async fn server(context: &Context) -> Option<WalPosition> {
    let name = context.settings.cluster_name()?;
    if context.settings.connection().is_empty() && std::env::var_os("PGHOST").is_none() {
        return None;
    }
    let ask = async {
        let options = context.connect_options()?;
        let mut server = Connection::connect(&options, ConnectionKind::Sql, &name.slot_name()).await?;
        let position = server.wal_position().await?;
        server.close().await;
        Ok::<_, Failure>(position)
    };
    match ask.await {
        Ok(position) => Some(position),
        Err(failure) => {
            tracing::warn!("the server was not asked how far it is: {}", failure.what);
            None
        }
    }
}
