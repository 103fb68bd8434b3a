//! `walden restore`.

use crate::context::{Context, threads};
use crate::progress::watcher;
use clap::{ArgGroup, Args, ValueEnum};
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walden::base::{Lsn, TimelineId};
use walden::operate::units::{Bytes, Span};
use walden::operate::{Exit, Failure, when};
use walden::restore::place::{Existing, TablespaceMapping};
use walden::restore::run::{self, ReachedBy, RestoreOptions};
use walden::restore::settings::Harmful;
use walden::restore::{Boundary, Request, Target, TargetAction, TimelineChoice};

const HELP: &str = "\
Writes a data directory that a plain PostgreSQL of the same major version starts from, and prints the command that starts \
it; the server then fetches the WAL it needs by itself. Without a target everything that is archived is restored, and the \
server promotes itself; with one it stops there and waits, readable, until it is told to go on. A target outside the \
recovery window is an error that prints the window; nothing is ever restored instead of what was asked for.

Times: as PostgreSQL prints them (`2026-11-22 19:55:01.123456+00`), RFC 3339, or `10 minutes ago`. A time without a zone \
is local time; one that the clock showed twice is refused. What was understood is printed in UTC.

Settings that would let the restored server disturb production (archiving, replication, logical workers) are turned off \
and printed, unless --keep-settings.

Examples:
  walden restore --cluster shop --target-dir /var/lib/postgresql/15/restored
  walden restore --cluster shop --target-dir /restore --to-time '2026-11-22 19:55:01.123456+00'
  walden restore --cluster shop --target-dir /restore --to-lsn 0/3A1B2C8 --dry-run
  walden restore --cluster shop --target-dir /restore --tablespace-map /mnt/fast=/restore-fast";

/// Restore the cluster as it was at a moment
#[derive(Debug, Args)]
#[command(after_help = HELP)]
#[command(group = ArgGroup::new("target").multiple(false))]
pub struct Restore {
    /// The directory to write the data directory to; empty, or not there yet
    #[arg(long, value_name = "DIR")]
    target_dir: PathBuf,
    /// Restore everything committed by this time
    #[arg(long, value_name = "TIME", group = "target")]
    to_time: Option<String>,
    /// Restore everything that ends at or before this WAL position
    #[arg(long, value_name = "LSN", group = "target")]
    to_lsn: Option<Lsn>,
    /// Restore up to the end of this transaction
    #[arg(long, value_name = "XID", group = "target")]
    to_xid: Option<u32>,
    /// Restore up to a point named with pg_create_restore_point()
    #[arg(long, value_name = "NAME", group = "target")]
    to_name: Option<String>,
    /// Restore the backup alone: stop as soon as it is consistent
    #[arg(long, group = "target")]
    immediate: bool,
    /// Restore everything that is archived; what happens without a target
    #[arg(long, group = "target")]
    latest: bool,
    /// Leave out what happened exactly at the target
    #[arg(long)]
    exclusive: bool,
    /// The timeline to follow [default: the cluster's newest]
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
    /// The backup to start from, by its id or a unique beginning of it [default: the newest that reaches the target]
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Put the tablespace of directory OLD into NEW; once for each tablespace
    #[arg(long, value_name = "OLD=NEW")]
    tablespace_map: Vec<TablespaceMapping>,
    /// Put pg_wal here, and a link into the data directory
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
    /// Put configuration that lay outside the data directory here [default: the data directory]
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// What the server does at the target [default: pause; promote without a target]
    #[arg(long, value_enum, value_name = "ACTION")]
    target_action: Option<Action>,
    /// Empty a target directory that holds a stopped cluster or an unfinished restore
    #[arg(long)]
    force: bool,
    /// Keep settings that let the restored server archive, replicate and run jobs as the source does
    #[arg(long)]
    keep_settings: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// `--target-action`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    Pause,
    Promote,
    Shutdown,
}

#[derive(Serialize)]
struct Document {
    /// The target's time in UTC as it was understood.
    understood: Option<String>,
    plan: Value,
    restored: Option<Restored>,
    #[serde(skip)]
    text: String,
}

#[derive(Serialize)]
struct Restored {
    files: u64,
    bytes: u64,
    seconds: f64,
}

impl Restore {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let (target, understood) = self.target(context)?;
        let repository = context.repository().await?;
        let cluster = context.cluster(&repository).await?;
        let options = self.options(context, target)?;
        let began = Instant::now();
        let planned = run::plan(&cluster, &options).await?;
        let mut text = String::new();
        if let Some(understood) = &understood {
            text += &format!("understood    {understood}\n");
        }
        let plan = planned.plan.to_json();
        text += &planned.plan.to_string();
        if self.dry_run {
            return context
                .output
                .result(&Document { understood, plan, restored: None, text }, |d| d.text.clone());
        }
        let progress: Arc<_> = watcher(context.output).into();
        let done = planned.execute(progress).await?;
        let seconds = began.elapsed().as_secs_f64();
        let restored = Restored { files: done.written.files, bytes: done.written.bytes, seconds };
        let took = Span(Duration::from_secs_f64(seconds));
        let rate = Bytes((restored.bytes as f64 / seconds.max(0.001)) as u64);
        text += &format!("restored      {} in {took} ({rate}/s)\n", Bytes(restored.bytes));
        context
            .output
            .result(&Document { understood, plan, restored: Some(restored), text }, |d| d.text.clone())
    }

    /// The target, and its time in UTC if it is one.
    fn target(&self, context: &Context) -> Result<(Target, Option<String>), Failure> {
        if let Some(text) = &self.to_time {
            let moment = when::parse(text, context.env.clock.now(), &TimeZone::system())?;
            return Ok((Target::Time(moment.at), Some(moment.to_string())));
        }
        let target = match self {
            Restore { to_lsn: Some(lsn), .. } => Target::Lsn(*lsn),
            Restore { to_xid: Some(xid), .. } => Target::Xid(*xid),
            Restore { to_name: Some(name), .. } => Target::Name(name.clone()),
            Restore { immediate: true, .. } => Target::Immediate,
            _ => Target::Latest,
        };
        Ok((target, None))
    }

    fn options(&self, context: &Context, target: Target) -> Result<RestoreOptions, Failure> {
        let repository = context.settings.repository()?;
        let binary = std::env::current_exe()
            .map_err(|error| Failure::new(Exit::Internal, format!("the path of this program: {error}")))?;
        Ok(RestoreOptions {
            request: Request {
                target,
                boundary: if self.exclusive { Boundary::Exclusive } else { Boundary::Inclusive },
                timeline: self
                    .timeline
                    .map_or(TimelineChoice::Newest, |n| TimelineChoice::Number(TimelineId(n))),
                backup: self.backup.clone(),
            },
            target_dir: self.target_dir.clone(),
            wal_dir: self.wal_dir.clone(),
            config_dir: self.config_dir.clone(),
            tablespaces: self.tablespace_map.clone(),
            action: self.target_action.map(|action| match action {
                Action::Pause => TargetAction::Pause,
                Action::Promote => TargetAction::Promote,
                Action::Shutdown => TargetAction::Shutdown,
            }),
            existing: if self.force { Existing::Replace } else { Existing::Refuse },
            harmful: if self.keep_settings { Harmful::Keep } else { Harmful::Disarm },
            repository: ReachedBy {
                url: repository.url.clone(),
                endpoint: repository.endpoint.clone(),
                region: repository.region.clone(),
                secret: repository.secret.clone(),
            },
            binary,
            threads: threads(),
        })
    }
}
