//! A restore, from the question to a data directory that can be started: [`plan()`] decides, [`Planned::execute`] does.
//!
//! Order of writing: a marker, then everything but `global/pg_control`, all of it made durable, then pg_control, then the
//! marker goes. So whatever interrupts it leaves a directory that neither PostgreSQL nor a later restore takes for a cluster.

use super::archive::Loaded;
use super::backup_manifest::BackupManifestWriter;
use super::config_files;
use super::error::RestoreError;
use super::files::{self, Durability, WriteOptions, Written};
use super::generations;
use super::host;
use super::lost_end;
use super::place::{Existing, INCOMPLETE, Places, TablespaceMapping};
use super::plan::{self, Plan};
use super::recovery_file::{HOME, NAME, RecoveryFile, RepositoryPlace};
use super::resolve::Resolution;
use super::scan::{Meaning, Seen, SourceLimits, WalScan};
use super::settings::{self, Harmful, SettingsInput};
use super::target::{Request, Target, TargetAction};
use crate::base::progress::Progress;
use crate::base::{LsnRange, crc32c};
use crate::disk::SecretSource;
use crate::format::manifest::ManifestMeta;
use crate::format::wal::EventKind;
use crate::repo::Cluster;
use crate::repo::chunks::{ChunkIndex, ChunkReader};
use crate::repo::hold::{self, Hold};
use crate::repo::lineage::Coverage;
use crate::repo::manifest::Manifest;
use crate::repo::walmap::{self, Snapshot};
use std::collections::HashSet;
use std::fs;
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Times a restore that only reads begins again because what it reads has moved.
const LOOKS_AGAIN_MAX: u32 = 5;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The moment.
    pub request: Request,
    /// `--target-dir`.
    pub target_dir: PathBuf,
    /// `--wal-dir`.
    pub wal_dir: Option<PathBuf>,
    /// `--config-dir`; the target directory when not given.
    pub config_dir: Option<PathBuf>,
    /// `--tablespace-map`.
    pub tablespaces: Vec<TablespaceMapping>,
    /// `--target-action`.
    pub action: Option<TargetAction>,
    /// `--force`.
    pub existing: Existing,
    /// `--keep-settings`.
    pub harmful: Harmful,
    /// How `wal-fetch` will reach the repository.
    pub repository: ReachedBy,
    /// This program: what `restore_command` runs.
    pub binary: PathBuf,
    /// Threads that open chunks.
    pub threads: usize,
}

/// How the repository was reached, and will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReachedBy {
    /// Its URL.
    pub url: String,
    /// The address of an S3 server that is not Amazon's.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// Where the secret comes from; none when a person typed it.
    pub secret: Option<SecretSource>,
}

/// A plan with what is needed to carry it out.
#[derive(Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    cluster: Cluster,
    snapshot: Snapshot,
    manifest: Manifest,
    threads: usize,
}

/// Decides everything. Writes nothing; reads the index, the manifest's head and the WAL around the target.
pub async fn plan(cluster: &Cluster, options: &RestoreOptions) -> Result<Planned, RestoreError> {
    let snapshot = walmap::load(cluster).await?;
    let resolved = resolve(cluster, &snapshot, &options.request).await;
    if options.request.target == Target::Latest {
        lost_end::refuse(&snapshot, resolved.as_ref().ok().map(|(_, resolution)| resolution))?;
    }
    let (loaded, resolution) = resolved?;
    let manifest = Manifest::open(cluster, &resolution.backup.id, resolution.backup.manifest_number).await?;
    let plan = draw_up(cluster, options, &loaded, resolution, &manifest.meta).await?;
    let threads = options.threads;
    Ok(Planned { plan, cluster: cluster.clone(), snapshot, manifest, threads })
}

/// Understands a request against the generation that it is about.
pub async fn resolve(
    cluster: &Cluster,
    snapshot: &Snapshot,
    request: &Request,
) -> Result<(Loaded, Resolution), RestoreError> {
    let loaded = generations::choose(cluster, snapshot, request).await?;
    let mut resolution = loaded.archive.resolve(request, |path| loaded.scan(cluster, path)).await?;
    if loaded.record.generation != snapshot.root.generation {
        resolution.notes.push(format!(
            "this is generation {} of the cluster, PostgreSQL {}: the server before the newest, which is generation {}",
            loaded.record.generation, loaded.record.major_version, snapshot.root.generation
        ));
    }
    Ok((loaded, resolution))
}

async fn draw_up(
    cluster: &Cluster,
    options: &RestoreOptions,
    loaded: &Loaded,
    resolution: Resolution,
    meta: &ManifestMeta,
) -> Result<Plan, RestoreError> {
    let repository = reach(&options.repository)?;
    let data_dir = real(&options.target_dir)?;
    let wal_dir = options.wal_dir.as_deref().map(real).transpose()?;
    let config_dir = options.config_dir.as_deref().map_or_else(|| Ok(data_dir.clone()), real)?;
    let places = Places::new(&data_dir, wal_dir.as_deref(), &meta.tablespaces, &options.tablespaces)?;
    let clearance = places.inspect(options.existing)?;
    let config = config_files::layout(&meta.config_files, &meta.settings, &config_dir, &data_dir)?;
    let action = options.action.unwrap_or(TargetAction::default_for(&options.request.target));
    let recovery_file = RecoveryFile {
        data_dir: data_dir.clone(),
        repository,
        cluster: cluster.name().clone(),
        generation: resolution.backup.generation,
        backup: resolution.backup.id.clone(),
        segment_size: loaded.archive.segment_size,
        wal: resolution.wal,
        durable_end: resolution.durable_end,
        path: resolution.path.clone(),
        tablespaces: places.tablespaces.clone(),
    };
    recovery_file.encode()?;
    let command = settings::restore_command(
        &text(&absolute(&options.binary)?)?,
        &text(&recovery_file.staging_dir().join(NAME))?,
    );
    let major = meta.server_version / 10_000;
    let changes = settings::changes(&SettingsInput {
        major,
        stop: &resolution.stop,
        action,
        timeline: resolution.path.timeline(),
        restore_command: &command,
        source: &meta.settings,
        limits: limits(cluster, loaded, &resolution).await?,
        harmful: options.harmful,
    });
    let owner = host::choose_owner(&data_dir);
    let config_at = config.main.as_deref().map(|main| (config_dir.as_path(), main));
    let start_command =
        plan::start_command(&host::find_program("pg_ctl", major), &data_dir, config_at, owner.as_ref());
    let mut notes = resolution.notes.clone();
    notes.extend(secret_note(&recovery_file.repository.secret, owner.as_ref()));
    if options.harmful == Harmful::Keep {
        notes.push(
            "settings of the source are kept: it may archive, replicate and run jobs as the source does"
                .into(),
        );
    }
    Ok(Plan {
        cluster: cluster.name().clone(),
        server_version: meta.server_version,
        request: options.request.clone(),
        action,
        clearance,
        existing: options.existing,
        owner,
        files: meta.file_count,
        bytes: meta.bytes_raw,
        tablespaces: meta
            .tablespaces
            .iter()
            .map(|t| t.path.clone())
            .zip(places.tablespaces.iter().map(|t| t.path.clone()))
            .collect(),
        places,
        settings: changes,
        config,
        config_dir,
        recovery_file,
        start_command,
        after: plan::after(action),
        notes,
        resolution,
    })
}

/// The repository as `wal-fetch` reaches it: from another directory, without a terminal.
fn reach(by: &ReachedBy) -> Result<RepositoryPlace, RestoreError> {
    let secret = match &by.secret {
        Some(SecretSource::PassphraseFile(path)) => SecretSource::PassphraseFile(absolute(path)?),
        Some(SecretSource::KeyFile(path)) => SecretSource::KeyFile(absolute(path)?),
        Some(command @ (SecretSource::PassphraseCommand(_) | SecretSource::KeyCommand(_))) => command.clone(),
        None => {
            return Err(RestoreError::Usage {
                reason: "the server will fetch WAL while it recovers, and nobody will be there to type the passphrase".into(),
                hint: Some("give --passphrase-file, --passphrase-command, --key-file or --key-command".into()),
            });
        }
    };
    let url = if by.url.contains("://") { by.url.clone() } else { text(&absolute(Path::new(&by.url))?)? };
    Ok(RepositoryPlace { url, endpoint: by.endpoint.clone(), region: by.region.clone(), secret })
}

fn secret_note(secret: &SecretSource, owner: Option<&host::ClusterOwner>) -> Option<String> {
    let (SecretSource::PassphraseFile(path) | SecretSource::KeyFile(path)) = secret else { return None };
    let owner = owner.filter(|owner| !host::can_read(path, owner.owner.user))?;
    Some(format!(
        "{} must be readable by {} alone, or the server cannot fetch WAL",
        path.display(),
        owner.name
    ))
}

fn absolute(path: &Path) -> Result<PathBuf, RestoreError> {
    std::path::absolute(path).map_err(|error| RestoreError::io(path, "find", error))
}

/// The place as the kernel names it, as far as it exists: a link and where it leads are one place.
fn real(path: &Path) -> Result<PathBuf, RestoreError> {
    let path = absolute(path)?;
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(mut real) = fs::canonicalize(ancestor) {
            real.extend(missing.iter().rev());
            return Ok(real);
        }
        missing.extend(ancestor.file_name());
    }
    Ok(path)
}

fn text(path: &Path) -> Result<String, RestoreError> {
    let not_text = || RestoreError::usage(format!("{}: not UTF-8, which settings must be", path.display()));
    path.to_str().map(str::to_owned).ok_or_else(not_text)
}

/// The greatest limits that the source logged in the WAL to be replayed.
async fn limits(
    cluster: &Cluster,
    loaded: &Loaded,
    resolution: &Resolution,
) -> Result<SourceLimits, RestoreError> {
    let archive = &loaded.archive;
    let coverage = Coverage::of(&resolution.path, &archive.pieces, archive.segment_size);
    let scan = loaded.scan(cluster, &resolution.path);
    let mut greatest = SourceLimits::default();
    let spans = coverage.runs.iter().flat_map(|run| &run.spans);
    for span in spans.filter(|span| span.range.intersect(resolution.wal).is_some()) {
        let changes =
            span.piece.summary.events.iter().filter(|event| event.kind == EventKind::ParameterChange);
        for event in changes.filter(|event| span.range.contains(event.lsn)) {
            let visit = &mut |seen: &Seen| {
                if let Meaning::Limits(limits) = seen.meaning {
                    greatest = greatest.max(limits);
                }
                ControlFlow::Continue(())
            };
            scan.scan(LsnRange::new(event.lsn, event.end), visit).await?;
        }
    }
    Ok(greatest)
}

/// What a restore did.
#[derive(Debug, Clone)]
pub struct Restored {
    /// What was planned.
    pub plan: Plan,
    /// What was written.
    pub written: Written,
}

impl Planned {
    /// Does what the plan says. Everything is durable on return. If it fails or is dropped, the target is marked and cannot be
    /// started.
    pub async fn execute(self, progress: Arc<dyn Progress>) -> Result<Restored, RestoreError> {
        let backup = &self.plan.resolution.backup.id;
        let holder = format!("restore of {backup}, pid {}", std::process::id());
        let hold = Hold::take(&self.cluster, Some(backup), &holder).await;
        let written = hold.during(self.execute_held(&progress)).await;
        hold.release().await;
        Ok(Restored { written: written?, plan: self.plan })
    }

    async fn execute_held(&self, progress: &Arc<dyn Progress>) -> Result<Written, RestoreError> {
        let plan = &self.plan;
        plan.places.inspect(plan.existing)?;
        plan.clearance.clear()?;
        // Since the plan was made and until it was registered, anything may have moved.
        let backup = &plan.resolution.backup.id;
        let mut now = hold::moved(&self.cluster, &self.snapshot, backup).await?;
        for _ in 0..LOOKS_AGAIN_MAX {
            let snapshot = now.as_ref().unwrap_or(&self.snapshot);
            let error = match self.write(snapshot, progress).await {
                Err(RestoreError::Repo(error)) if error.is_damage() => error,
                done => return done,
            };
            match hold::moved(&self.cluster, snapshot, backup).await? {
                None => return Err(error.into()),
                newer => now = newer,
            }
            tracing::info!(%error, "what was being read has moved; beginning again");
            plan.places.inspect(Existing::Replace)?.clear()?;
        }
        let reason = format!("what it reads moved {LOOKS_AGAIN_MAX} times while it was being restored");
        Err(RestoreError::Damage { what: format!("backup {backup}"), reason })
    }

    async fn write(
        &self,
        snapshot: &Snapshot,
        progress: &Arc<dyn Progress>,
    ) -> Result<Written, RestoreError> {
        let Planned { plan, cluster, manifest, threads, .. } = self;
        let owner = plan.owner.as_ref().map(|owner| owner.owner);
        let places = plan.places.clone();
        let mut options = WriteOptions { places, owner, durability: Arc::new(Durability::begin([])?) };
        files::make_places(&options)?;
        let tablespaces = plan.places.tablespaces.iter().map(|tablespace| tablespace.path.as_path());
        let roots =
            [Some(plan.places.data_dir.as_path()), plan.places.wal_dir.as_deref()].into_iter().flatten();
        options.durability = Arc::new(Durability::begin(roots.chain(tablespaces))?);
        write_recovery_file(plan, owner)?;

        progress.stage("reading the index of chunks", None);
        let index = ChunkIndex::load(cluster, &snapshot.index.pages).await?;
        let chunks = ChunkReader::new(cluster.clone(), Arc::new(index), *threads);
        progress.stage("restoring files", Some(manifest.meta.bytes_raw));
        let mut listing = begin_listing(plan, &manifest.meta)?;
        let replaced = replaced(plan);
        let almost =
            files::write_files(manifest, &chunks, &options, &replaced, &mut listing, progress).await?;

        write_config(plan, owner, &mut listing)?;
        write_settings(plan, owner)?;
        finish_listing(plan, &manifest.meta, listing, owner)?;
        progress.stage("making it durable", None);
        let durability = options.durability.clone();
        let synced = tokio::task::spawn_blocking(move || durability.sync()).await;
        synced.map_err(|_| RestoreError::Interrupted)??;
        almost.write_control(manifest, &chunks, &options).await?;
        let data_dir = &plan.places.data_dir;
        let marker = data_dir.join(INCOMPLETE);
        fs::remove_file(&marker).map_err(|error| RestoreError::io(&marker, "remove", error))?;
        files::sync_dir(data_dir)?;
        for dir in plan.places.all().filter_map(Path::parent) {
            files::sync_dir(dir)?;
        }
        Ok(almost.written)
    }
}

fn write_recovery_file(plan: &Plan, owner: Option<files::Owner>) -> Result<(), RestoreError> {
    let home = plan.places.data_dir.join(HOME);
    let made = fs::DirBuilder::new().mode(0o700).create(&home);
    made.map_err(|error| RestoreError::io(&home, "create", error))?;
    files::give(&home, owner)?;
    files::write_durably(&home.join(NAME), plan.recovery_file.encode()?.as_bytes(), 0o600, owner)
}

/// Files of the backup that the configuration takes the place of: the source had both, and used the one outside.
fn replaced(plan: &Plan) -> HashSet<String> {
    let inside = plan.config_paths().filter_map(|path| {
        path.strip_prefix(&plan.places.data_dir).ok().and_then(|path| path.to_str().map(str::to_owned))
    });
    inside.collect()
}

type Listing = BackupManifestWriter<BufWriter<fs::File>>;

fn listing_path(plan: &Plan) -> PathBuf {
    plan.places.data_dir.join("backup_manifest")
}

fn begin_listing(plan: &Plan, meta: &ManifestMeta) -> Result<Listing, RestoreError> {
    let path = listing_path(plan);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let begun = file
        .and_then(|file| BackupManifestWriter::create(BufWriter::new(file), plan.major(), meta.system_id));
    begun.map_err(|error| RestoreError::io(&path, "write", error))
}

fn finish_listing(
    plan: &Plan,
    meta: &ManifestMeta,
    listing: Listing,
    owner: Option<files::Owner>,
) -> Result<(), RestoreError> {
    let path = listing_path(plan);
    let failed = |error| RestoreError::io(&path, "write", error);
    let writer =
        listing.finish(meta.timeline, LsnRange::new(meta.redo.min(meta.stop), meta.stop)).map_err(failed)?;
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    files::give(&path, owner)
}

fn write_config(plan: &Plan, owner: Option<files::Owner>, listing: &mut Listing) -> Result<(), RestoreError> {
    for dir in &plan.config.dirs {
        files::make_dirs(&plan.config_dir.join(dir), owner)?;
    }
    for (file, path) in plan.config.files.iter().zip(plan.config_paths()) {
        if let Some(dir) = path.parent() {
            files::make_dirs(dir, owner)?;
        }
        let inside = path.strip_prefix(&plan.places.data_dir).ok().and_then(Path::to_str);
        if inside.is_none() && plan.existing == Existing::Refuse && path.exists() {
            return Err(RestoreError::Conflict {
                path,
                reason: "a configuration file is there already".into(),
                hint: "give another --config-dir, or --force to replace it".into(),
            });
        }
        files::write_durably(&path, &file.content, 0o600, owner)?;
        if let Some(inside) = inside {
            let (len, crc32c) = (file.content.len() as u64, crc32c::crc32c(&file.content));
            let listed = listing.file(
                inside,
                len,
                plan.resolution.backup.started_at.unix_micros() / 1_000_000,
                crc32c,
            );
            listed.map_err(|error| RestoreError::io(&listing_path(plan), "write", error))?;
        }
    }
    Ok(())
}

fn write_settings(plan: &Plan, owner: Option<files::Owner>) -> Result<(), RestoreError> {
    let data_dir = &plan.places.data_dir;
    let auto = data_dir.join("postgresql.auto.conf");
    let mut content = match fs::read(&auto) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(RestoreError::io(&auto, "read", error)),
    };
    content.extend_from_slice(settings::render(&plan.settings).as_bytes());
    files::write_durably(&auto, &content, 0o600, owner)?;
    files::write_durably(&data_dir.join("recovery.signal"), b"", 0o600, owner)
}
