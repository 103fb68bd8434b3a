//! `walden slot drop`.

use crate::context::Context;
use crate::receive::slot_name;
use clap::{Args, Subcommand};
use serde::Serialize;
use walden::net::{Connection, ConnectionKind, code};
use walden::operate::{Exit, Failure};

/// Manage the replication slot
#[derive(Debug, Subcommand)]
pub enum Slot {
    Drop(Drop),
}

const HELP: &str = "\
For a cluster that is not archived any more: a slot that nobody reads keeps WAL until the server's disk is full. WAL \
that was not stored yet is let go; a receiver that starts later makes a new slot, and records the gap.

Example:
  walden slot drop --cluster shop --connection 'host=db1 user=walden'";

/// Drop the replication slot on the server
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Drop {
    /// The replication slot [default: walden_<cluster>]
    #[arg(long, value_name = "NAME", value_parser = slot_name)]
    slot: Option<String>,
}

#[derive(Serialize)]
struct Dropped {
    slot: String,
    dropped: bool,
}

impl Slot {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Slot::Drop(drop) => drop.run(context).await,
        }
    }
}

impl Drop {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let name = context.settings.require_cluster()?;
        let slot = context.settings.slot(self.slot.as_deref(), name);
        let options = context.connect_options()?;
        let mut server =
            Connection::connect(&options, ConnectionKind::PhysicalReplication, &name.slot_name()).await?;
        let dropped = server.drop_slot(&slot).await;
        let host = server.host().to_owned();
        server.close().await;
        match dropped {
            Ok(()) => {}
            Err(error) if error.sqlstate() == Some(code::UNDEFINED_OBJECT) => {
                return Err(Failure::new(Exit::NotFound, format!("{host} has no replication slot {slot}")));
            }
            Err(error) if error.sqlstate() == Some(code::OBJECT_IN_USE) => {
                return Err(Failure::new(Exit::Conflict, format!("replication slot {slot} is in use"))
                    .hint("stop the receiver that reads it first"));
            }
            Err(error) => return Err(error.into()),
        }
        context
            .output
            .result(&Dropped { slot, dropped: true }, |dropped| format!("dropped slot {}", dropped.slot))
    }
}
