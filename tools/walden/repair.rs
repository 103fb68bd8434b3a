//! `walden repair`, and `walden repair index`.

use crate::context::Context;
use crate::repair_root::RepairRoot;
use crate::repair_wal::RepairWal;
use clap::{Args, Subcommand};
use serde::Serialize;
use walden::operate::{Exit, Failure};
use walden::repair::{self, Fate, Health, Options, Plan};

const HELP: &str = "\
Makes a new index out of the directories of segments, manifests, flush objects, and what can still be read of older index objects, when \
the newest index is damaged or gone (`walden verify` names it). Nothing is removed or overwritten: a new index object is stored, and a \
new root leads to it; what it does not name stays for the whole grace period from then on. Compacted WAL and backups come back exactly; \
what cannot is named: removals that were not collected yet, and pins, gaps and timeline histories that no readable index object has.

It refuses while a backup, a compaction or a collection is registered (stop them, and receivers); when an object is sealed under a key \
epoch that the key slot was not given (use another slot); and when an object does not open that no readable index names, unless --without \
says that it may be left out. Where something could not be had, it ends with exit code 4 after it did the rest, and names it. Run `walden \
verify` afterwards.

Examples:
  walden repair index --cluster shop --dry-run
  walden repair index --cluster shop
  walden repair index --cluster shop --without 6f1c0d2e9a884b5f8e0b7c3d5a1f2e40";

/// Mend what a repository can mend by itself
#[derive(Debug, Subcommand)]
pub enum Repair {
    Root(RepairRoot),
    Index(RepairIndex),
    Wal(RepairWal),
}

/// Rebuild a damaged index from segments and manifests
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct RepairIndex {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Store it anew, as one object, although it can be read
    #[arg(long)]
    anyway: bool,
    /// Leave out this segment or manifest, which does not open; may be given more than once
    #[arg(long, value_name = "ID")]
    without: Vec<String>,
}

#[derive(Serialize)]
struct Repaired {
    cluster: String,
    damage: Option<String>,
    root: Option<u64>,
    index_objects_read: usize,
    wal_segments: usize,
    wal_segments_left_out: Vec<String>,
    page_segments: usize,
    backups: Vec<String>,
    backups_from_manifests: Vec<String>,
    gaps: usize,
    histories: usize,
    pins: usize,
    gone: Vec<String>,
    lost: Vec<String>,
    unreadable: Vec<Unreadable>,
    notes: Vec<String>,
    refused: Option<String>,
}

#[derive(Serialize)]
struct Unreadable {
    object: String,
    found: String,
    fate: &'static str,
}

impl Repair {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Repair::Root(root) => root.run(context).await,
            Repair::Index(index) => index.run(context).await,
            Repair::Wal(wal) => wal.run(context).await,
        }
    }
}

impl RepairIndex {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let cluster = context.cluster(&repository).await?;
        let progress = crate::progress::watcher(context.output);
        let options = Options { without: self.without.iter().cloned().collect() };
        let plan = repair::plan(&cluster, &options, &*progress).await?;
        if plan.health == Health::Whole && !self.anyway && !self.dry_run {
            return Err(Failure::new(
                Exit::Conflict,
                format!("the index of cluster {} can be read: there is nothing to repair", cluster.name()),
            )
            .hint("`walden verify` says what is damaged; --anyway rebuilds it all the same"));
        }
        let root = if self.dry_run { None } else { Some(repair::commit(&cluster, &plan).await?.number) };
        let repaired = Repaired::new(cluster.name().to_string(), &plan, root);
        context.output.result(&repaired, Repaired::text)?;
        repaired.failure()
    }
}

impl Repaired {
    fn new(cluster: String, plan: &Plan, root: Option<u64>) -> Repaired {
        let page = &plan.rebuilt.page;
        let unreadable = plan.unreadable.iter().map(|unreadable| Unreadable {
            object: unreadable.key.to_string(),
            found: unreadable.reason.clone(),
            fate: match unreadable.fate {
                Fate::Unasked => "passed over",
                Fate::Named => "stays in the index",
                Fate::Undecided => {
                    "not decided: put a whole copy in its place, or leave it out with --without"
                }
                Fate::LeftOut => "left out",
            },
        });
        Repaired {
            cluster,
            damage: match &plan.health {
                Health::Whole => None,
                Health::Broken { reason } => Some(reason.clone()),
            },
            root,
            index_objects_read: plan.index_objects,
            wal_segments: page.wal.len(),
            wal_segments_left_out: plan.rebuilt.left_out.iter().map(ToString::to_string).collect(),
            page_segments: page.pages.len(),
            backups: plan.backups().iter().map(ToString::to_string).collect(),
            backups_from_manifests: plan.rebuilt.backups_found.iter().map(ToString::to_string).collect(),
            gaps: page.gaps.len(),
            histories: page.histories.len(),
            pins: page.pins.len(),
            gone: plan.rebuilt.gone.clone(),
            lost: plan.losses(),
            refused: plan.refusal(),
            unreadable: unreadable.collect(),
            notes: plan.rebuilt.notes.clone(),
        }
    }

    /// An error when something is not in the new index that was, or may have been, in the old one: it does not look like a repair that
    /// lost nothing.
    fn failure(&self) -> Result<(), Failure> {
        let Some(first) = self.lost.first() else { return Ok(()) };
        let done =
            if self.root.is_some() { "the index was made anew" } else { "the index would be made anew" };
        let what = format!("{done}, and {} things could not be had", self.lost.len());
        Err(Failure::new(Exit::Damage, what).fact("first", first).hint(
            "put whole copies in their places if there are any; `walden verify` says what can be restored",
        ))
    }

    fn text(&self) -> String {
        let mut text = match &self.damage {
            Some(damage) => format!("cluster {}: the index cannot be read: {damage}\n", self.cluster),
            None => format!("cluster {}: the index can be read\n", self.cluster),
        };
        text += &format!(
            "rebuilt: {} WAL segments ({} left out, others hold the same), {} segments of chunks, {} backups, {} pins, {} gaps, {} \
             histories; {} index objects could be read\n",
            self.wal_segments,
            self.wal_segments_left_out.len(),
            self.page_segments,
            self.backups.len(),
            self.pins,
            self.gaps,
            self.histories,
            self.index_objects_read
        );
        for unreadable in &self.unreadable {
            let Unreadable { object, found, fate } = unreadable;
            text += &format!("cannot be read: {object}: {found} ({fate})\n");
        }
        for lost in &self.lost {
            text += &format!("lost: {lost}\n");
        }
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        text += &match self.root {
            Some(root) => format!("committed as root {root}; run `walden verify` now"),
            None => match &self.refused {
                Some(why) => format!("nothing was changed (--dry-run); it would be refused: {why}"),
                None => "nothing was changed (--dry-run)".to_owned(),
            },
        };
        text
    }
}
