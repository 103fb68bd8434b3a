//! `walden check`.

use crate::context::Context;
use crate::receive::duration;
use clap::Args;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use walden::base::{Generation, ObjectKey, SystemId};
use walden::disk::{Disk, OsDisk};
use walden::net::{Connection, ConnectionKind};
use walden::operate::check::{self, Finding, Level};
use walden::operate::config::Ack;
use walden::operate::info::{self, ClusterInfo, WindowInfo};
use walden::operate::{Exit, Failure};
use walden::repo::{Cluster, RepoError, Repository, losses};
use walden::store::probe_start;

const HELP: &str = "\
Looks at the server (role, pg_hba, settings, slot), at free disk space and at the store, then writes a message into the \
server's WAL, waits until it is durable in the repository, and reads it back. A line each; the exit code is that of the \
first that failed, warnings are none.

Example:
  walden check --cluster shop";

/// Check that the server is archived, and can be
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Check {
    /// How long to wait until what was written is durable
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    timeout: Duration,
}

/// How long the look beside a receiver may take.
const BESIDE_LIMIT: Duration = Duration::from_secs(60);
/// Less free space than this is worth a warning.
const FREE_LOW: u64 = 1 << 30;

#[derive(Serialize)]
struct Line {
    name: &'static str,
    level: &'static str,
    found: String,
    hint: Option<String>,
}

#[derive(Serialize)]
struct Document {
    ok: bool,
    checks: Vec<Line>,
}

impl Check {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let mut findings = Vec::new();
        // What cannot be looked at further ends the check, after what was found is shown.
        if let Err(failure) = self.look(context, &mut findings).await {
            findings.push(Finding::new("check", Level::Fail(failure.exit), &failure.what, hint_of(&failure)));
        }
        let failed = findings.iter().find_map(|finding| match finding.level {
            Level::Fail(exit) => Some(exit),
            Level::Ok | Level::Warn => None,
        });
        let line = |finding: Finding| {
            let Finding { name, level, found, hint } = finding;
            Line { name, level: level.word(), found, hint }
        };
        let document = Document { ok: failed.is_none(), checks: findings.into_iter().map(line).collect() };
        context.output.result(&document, show)?;
        match failed {
            Some(exit) => Err(Failure::new(exit, "the check failed")),
            None => Ok(()),
        }
    }

    async fn look(&self, context: &Context, findings: &mut Vec<Finding>) -> Result<(), Failure> {
        let name = context.settings.require_cluster()?;
        let slot = context.settings.slot(None, name);
        let options = context.connect_options()?;
        let mut server = Connection::connect(&options, ConnectionKind::Sql, &name.slot_name()).await?;
        findings.push(Finding::ok("connection", format!("{} as {}", server.host(), options.user)));
        let facts = check::gather(&mut server).await?;
        findings.extend(check::judge(&facts, &slot));
        findings.push(replication(context).await?);

        let repository = context.repository().await?;
        findings.push(Finding::ok("repository", format!("{} opens with this key", repository.store().url())));
        if !context.settings.repository()?.single_writer {
            probe_start(&**repository.store(), &*context.env.entropy).await?;
            findings.push(Finding::ok("store", "creates an object only once"));
        }
        let journal = match context.settings.ack(None) {
            Ack::Object => None,
            Ack::Journal => Some(context.settings.journal_dir(None, name)),
        };
        free_space(&repository.store().url(), journal.as_deref(), findings).await;
        let cluster = match Cluster::open(repository, name.clone()).await {
            Ok(cluster) => Some(cluster),
            Err(RepoError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let stored = stored_system(cluster.as_ref()).await?;
        findings.push(check::system_identifier(facts.settings.system_id, stored));
        let receiving = facts.slots.iter().any(|known| known.name == slot && known.active);
        match cluster {
            Some(cluster) if stored == Some(facts.settings.system_id) => {
                let info = info::cluster(&cluster, None).await?;
                findings.push(backups(&info));
                findings.push(stored_wal(&cluster, &info.window).await?);
                findings.push(check::archived(&mut server, &cluster, receiving, self.timeout).await?);
            }
            _ => findings.push(Finding::new(
                "archived",
                Level::Warn,
                "not tried: nothing of this server is stored",
                "start `walden receive`, and check again beside it",
            )),
        }
        server.close().await;
        Ok(())
    }
}

/// Whether anything of the current generation can be restored.
fn backups(info: &ClusterInfo) -> Finding {
    let complete = info.backups.iter().filter(|backup| backup.state == "complete").count();
    check::backups(complete, Generation(info.generation))
}

/// Whether flush objects are lost, or were, and no backup was taken since.
async fn stored_wal(cluster: &Cluster, window: &WindowInfo) -> Result<Finding, Failure> {
    let losses = losses::losses(cluster).await?;
    let reasons: Vec<&(ObjectKey, String)> = losses.iter().flat_map(|loss| &loss.reasons).collect();
    let first = reasons.first().map(|(key, reason)| format!("{key}: {reason}"));
    // Without a backup before it, a gap takes nothing away.
    let open = window.gaps.iter().find(|gap| window.end.is_some() && gap.end.is_none());
    Ok(check::stored_wal(reasons.len(), first.as_deref(), open.map(ToString::to_string).as_deref()))
}

/// Whether pg_hba.conf lets us in for replication too, which it lists apart.
async fn replication(context: &Context) -> Result<Finding, Failure> {
    let options = context.connect_options()?;
    let name = context.settings.require_cluster()?;
    match Connection::connect(&options, ConnectionKind::PhysicalReplication, &name.slot_name()).await {
        Ok(connection) => {
            connection.close().await;
            Ok(Finding::ok("pg_hba", "replication connections are let in"))
        }
        Err(error) => {
            let line =
                format!("add to pg_hba.conf: host replication {} <address> scram-sha-256", options.user);
            Ok(Finding::new("pg_hba", Level::Fail(Exit::Postgres), error, line))
        }
    }
}

async fn stored_system(cluster: Option<&Cluster>) -> Result<Option<SystemId>, Failure> {
    match cluster {
        Some(cluster) => Ok(Some(cluster.generation().await?.system_id)),
        None => Ok(None),
    }
}

/// What a receiver does not find out by itself, looked at while it begins. Logs what is not as it should be, and what could not be
/// looked at; neither is its failure.
pub async fn warn_beside_receiving(
    context: &Context,
    repository: Arc<Repository>,
    slot: &str,
    journal: Option<&Path>,
) {
    let mut findings = Vec::new();
    let looking = look_beside_receiving(context, repository, slot, journal, &mut findings);
    let failed = match tokio::time::timeout(BESIDE_LIMIT, looking).await {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure.what),
        Err(_) => Some(format!("no answer within {BESIDE_LIMIT:?}")),
    };
    for Finding { name, level, found, hint } in findings {
        match level {
            Level::Ok => {}
            Level::Warn | Level::Fail(_) => {
                tracing::warn!(hint, "check: {name}: {found}");
            }
        }
    }
    if let Some(failed) = failed {
        tracing::warn!("check: not everything could be looked at: {failed}");
    }
}

async fn look_beside_receiving(
    context: &Context,
    repository: Arc<Repository>,
    slot: &str,
    journal: Option<&Path>,
    findings: &mut Vec<Finding>,
) -> Result<(), Failure> {
    free_space(&repository.store().url(), journal, findings).await;
    let name = context.settings.require_cluster()?;
    let mut server =
        Connection::connect(&context.connect_options()?, ConnectionKind::Sql, &name.slot_name()).await?;
    let mut facts = check::gather(&mut server).await?;
    server.close().await;
    // It is just being taken, or made.
    facts.slots.iter_mut().filter(|known| known.name == slot).for_each(|known| known.active = true);
    let is_made = facts.slots.iter().any(|known| known.name == slot);
    let judged = check::judge(&facts, slot).into_iter();
    findings.extend(
        judged.filter(|finding| {
            is_made || finding.name != check::SLOT || matches!(finding.level, Level::Fail(_))
        }),
    );
    let stored = match Cluster::open(repository, name.clone()).await {
        Ok(cluster) => stored_system(Some(&cluster)).await?,
        Err(RepoError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    findings.push(check::system_identifier(facts.settings.system_id, stored));
    Ok(())
}

async fn free_space(url: &str, journal: Option<&Path>, findings: &mut Vec<Finding>) {
    let mut places = Vec::new();
    if let Some(path) = url.strip_prefix("file://") {
        places.push(("repository disk", path.to_owned()));
    }
    places.extend(journal.map(|dir| ("journal disk", dir.display().to_string())));
    for (name, place) in places {
        match OsDisk.free_bytes(Path::new(&place)).await {
            Ok(free) => findings.push(check::free_space(name, &place, free, FREE_LOW)),
            Err(error) => {
                let hint = "make the directory, owned by the user that runs `walden receive`";
                findings.push(Finding::new(name, Level::Warn, format!("{place}: {error}"), hint));
            }
        }
    }
}

fn hint_of(failure: &Failure) -> String {
    failure
        .hint
        .clone()
        .unwrap_or_else(|| "mend this first; what comes after it was not looked at".to_owned())
}

fn show(document: &Document) -> String {
    let mut text = String::new();
    for Line { name, level, found, hint } in &document.checks {
        text += &format!("{level:<4}  {name:<24}  {found}\n");
        if let Some(hint) = hint {
            text += &format!("{:32}hint: {hint}\n", "");
        }
    }
    text
}
