//! `walden repair root`.

use crate::context::Context;
use clap::Args;
use serde::Serialize;
use walden::format::root::PendingKind;
use walden::operate::{Exit, Failure};
use walden::repair::root::{self, Plan};

const HELP: &str = "\
A root says what makes up a cluster now. When the newest is damaged or gone, nothing can be read or stored until another takes its place. \
This command makes one out of the newest root that can be read: all WAL is found again, backups and gaps that only the damaged root knew \
are taken from the index object that was made for it. Nothing is removed or overwritten. First put a whole copy of the object in its place, \
if there is one anywhere: that is better still. Receivers and backups may run: they go on with the new root, or begin anew by themselves.

A root that is gone from between others is made anew too, and so is the newest if WAL shows that it was there. If the newest was deleted and \
nothing shows it, --anyway takes what was stored for it and never committed; that works only before anybody commits again. Run `walden verify` afterwards: it names the damaged root until \
`walden gc` removes it, a day later.

Examples:
  walden repair root --cluster shop --dry-run
  walden repair root --cluster shop";

/// Make a damaged newest root anew, out of the one before it
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct RepairRoot {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Make a new root although the newest can be read
    #[arg(long)]
    anyway: bool,
}

#[derive(Serialize)]
struct Repaired {
    cluster: String,
    damaged: Vec<Damaged>,
    missing: Vec<u64>,
    made_from: u64,
    root: Option<u64>,
    streams: Vec<Stream>,
    streams_unread: Vec<UnreadStream>,
    backups: Vec<String>,
    wal_segments: usize,
    page_segments: usize,
    gaps: usize,
    histories: usize,
    pins: usize,
    work_going_on: Vec<Work>,
    work_ended: Vec<Work>,
    broken_index: Option<Broken>,
    notes: Vec<String>,
    #[serde(skip)]
    number: u64,
}

#[derive(Serialize)]
struct Damaged {
    root: u64,
    found: String,
}

#[derive(Serialize)]
struct Stream {
    stream: String,
    timeline: u32,
    writer_epoch: u64,
}

#[derive(Serialize)]
struct UnreadStream {
    stream: String,
    found: String,
}

#[derive(Serialize)]
struct Work {
    id: String,
    kind: &'static str,
}

#[derive(Serialize)]
struct Broken {
    object: String,
    found: String,
}

impl RepairRoot {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let cluster = context.cluster_unread(&repository).await?;
        let plan = root::plan(&cluster).await?;
        if plan.is_whole() && !self.anyway && !self.dry_run {
            let (number, name) = (plan.base.number, cluster.name());
            let what = format!(
                "root {number} of cluster {name}, the newest, can be read: there is nothing to repair"
            );
            return Err(Failure::new(Exit::Conflict, what)
                .hint("`walden verify` says what is damaged; --anyway makes a new root all the same"));
        }
        let root = if self.dry_run { None } else { Some(root::commit(&cluster, &plan).await?.number) };
        context.output.result(&Repaired::new(cluster.name().to_string(), plan, root), Repaired::text)
    }
}

impl Repaired {
    fn new(cluster: String, plan: Plan, root: Option<u64>) -> Repaired {
        let notes = plan.notes();
        let work = |entries: &[walden::format::root::PendingEntry]| {
            let named = entries.iter().map(|entry| Work { id: entry.id.to_string(), kind: kind(entry.kind) });
            named.collect::<Vec<Work>>()
        };
        let page = &plan.additions.page;
        Repaired {
            cluster,
            missing: plan.holes,
            made_from: plan.base.number,
            root,
            streams: plan
                .streams
                .iter()
                .map(|stream| Stream {
                    stream: stream.id.to_string(),
                    timeline: stream.timeline.0,
                    writer_epoch: stream.writer_epoch,
                })
                .collect(),
            streams_unread: plan
                .streams_unread
                .iter()
                .map(|stream| UnreadStream { stream: stream.id.to_string(), found: stream.reason.clone() })
                .collect(),
            backups: page.backups.iter().map(|backup| backup.id.to_string()).collect(),
            wal_segments: page.wal.len(),
            page_segments: page.pages.len(),
            gaps: page.gaps.len(),
            histories: page.histories.len(),
            pins: page.pins.len(),
            work_going_on: work(&plan.work.going_on),
            work_ended: work(&plan.work.ended),
            broken_index: plan.broken_index.map(|broken| Broken { object: broken.key, found: broken.reason }),
            damaged: plan
                .unreadable
                .into_iter()
                .map(|lost| Damaged { root: lost.number, found: lost.reason })
                .collect(),
            notes,
            number: plan.number,
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for Damaged { root, found } in &self.damaged {
            text += &format!("root {root} cannot be read: {found}\n");
        }
        for number in &self.missing {
            text += &format!("root {number} is gone, and newer ones are there\n");
        }
        text += &format!(
            "root {} of cluster {} is made of root {}, and of what shows of those after it:\n",
            self.number, self.cluster, self.made_from
        );
        text += &format!(
            "  {} streams; {} backups, {} segments of chunks, {} WAL segments, {} gaps, {} histories, {} pins\n",
            self.streams.len(),
            self.backups.len(),
            self.page_segments,
            self.wal_segments,
            self.gaps,
            self.histories,
            self.pins
        );
        for Stream { stream, timeline, .. } in &self.streams {
            text += &format!("  WAL of stream {stream}, timeline {timeline}\n");
        }
        for UnreadStream { stream, found } in &self.streams_unread {
            text += &format!(
                "  WAL of stream {stream} is lost: nothing of it opens, so no root can name it ({found}). Put whole copies of its objects \
                 in their places first, if there are any\n"
            );
        }
        for backup in &self.backups {
            text += &format!("  backup {backup}\n");
        }
        for Work { id, kind } in &self.work_going_on {
            text += &format!("registered work goes on: {kind} {id}\n");
        }
        for Work { id, kind } in &self.work_ended {
            text += &format!("registered work that has ended, or has to begin anew: {kind} {id}\n");
        }
        if let Some(Broken { object, found }) = &self.broken_index {
            text += &format!(
                "{object} cannot be read: {found}. It may be the index of the damaged root, so the new root leads to it: run \
                 `walden repair index` next\n"
            );
        }
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        text += &match (self.root, &self.broken_index) {
            (Some(root), None) => format!("committed as root {root}; run `walden verify` now"),
            (Some(root), Some(_)) => format!("committed as root {root}; run `walden repair index` now"),
            (None, _) => "nothing was changed (--dry-run)".to_owned(),
        };
        text
    }
}

fn kind(kind: PendingKind) -> &'static str {
    match kind {
        PendingKind::Backup => "backup",
        PendingKind::Restore => "restore",
        PendingKind::Compaction => "compaction",
        PendingKind::Collection => "collection",
    }
}
