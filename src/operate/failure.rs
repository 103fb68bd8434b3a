//! An error as a person or a script is told it: what happened, where, what was found and expected, what to do next, and
//! the exit code. Every error of the library that reaches a command is mapped here, variant by variant.

use super::config::ConfigError;
use super::exit::Exit;
use super::when::WhenError;
use crate::backup::BackupError;
use crate::base::ids::IdError;
use crate::base::lsn::LsnParseError;
use crate::base::{BackupId, ObjectKey};
use crate::codec::OpenError;
use crate::codec::keyslot::KeySlotError;
use crate::copy::CopyError;
use crate::disk::SecretError;
use crate::disk::journal::JournalError;
use crate::net::{ConnectionStringError, PgError, code};
use crate::receive::pipeline::ReceiveError;
use crate::receive::upstream::UpstreamError;
use crate::repo::backups::NameError;
use crate::repo::{RepoError, layout};
use crate::restore::RestoreError;
use crate::retain::delete::DeleteError;
use crate::store::StoreError;
use std::fmt;
use std::io;

/// An error on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, in a sentence.
    pub what: String,
    /// `where`, `found`, `expected` and the like, where the sentence does not say them.
    pub facts: Vec<(&'static str, String)>,
    /// What to do next.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(exit: Exit, what: impl fmt::Display) -> Failure {
        Failure { exit, what: what.to_string(), facts: Vec::new(), hint: None }
    }

    /// Adds a fact.
    pub fn fact(mut self, name: &'static str, value: impl fmt::Display) -> Failure {
        self.facts.push((name, value.to_string()));
        self
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hint = Some(hint.to_string());
        self
    }

    /// The `--json` document.
    pub fn json(&self) -> serde_json::Value {
        let mut error = serde_json::Map::new();
        error.insert("code".into(), self.exit.code().into());
        error.insert("kind".into(), self.exit.name().into());
        error.insert("message".into(), self.what.clone().into());
        for (name, value) in &self.facts {
            error.insert((*name).into(), value.clone().into());
        }
        if let Some(hint) = &self.hint {
            error.insert("hint".into(), hint.clone().into());
        }
        serde_json::json!({ "version": 1, "error": error })
    }
}

/// For a terminal: `error: …`, the facts, `hint: …`, without a newline at the end.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        let width = self.facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
        for (name, value) in &self.facts {
            write!(f, "\n  {:width$} {value}", format!("{name}:"))?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// Whether the system said that a file system or a quota is full.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What this host's disk said: that the command was given a place where it may not write, or something worse.
pub(super) fn disk_failure(error: impl fmt::Display, source: &io::Error) -> Failure {
    match source.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(Exit::Usage, error)
            .hint("run this as a user who may write there, or name another directory"),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory => Failure::new(Exit::Usage, error),
        _ => Failure::new(Exit::Internal, error),
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        let failure = Failure::new(Exit::Usage, &error);
        match error {
            ConfigError::Secret { .. } => failure.hint(
                "keep the password in ~/.pgpass or $PGPASSFILE, keys in a file that only you can read (passphrase_file, \
                 key_file), and store credentials in the environment",
            ),
            ConfigError::Unreadable { .. }
            | ConfigError::Syntax { .. }
            | ConfigError::UnknownKey { .. }
            | ConfigError::Value { .. }
            | ConfigError::TwoSecrets { .. }
            | ConfigError::Missing { .. }
            | ConfigError::Name { .. } => failure,
        }
    }
}

impl From<WhenError> for Failure {
    fn from(error: WhenError) -> Failure {
        Failure::new(Exit::Usage, error)
    }
}

impl From<IdError> for Failure {
    fn from(error: IdError) -> Failure {
        Failure::new(Exit::Usage, error)
    }
}

impl From<LsnParseError> for Failure {
    fn from(error: LsnParseError) -> Failure {
        Failure::new(Exit::Usage, error)
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Failure {
        let failure = Failure::new(Exit::Key, &error);
        match &error {
            SecretError::Exposed { origin, .. } => {
                let path = match origin {
                    crate::disk::SecretSource::PassphraseFile(path)
                    | crate::disk::SecretSource::KeyFile(path) => path,
                    crate::disk::SecretSource::PassphraseCommand(_)
                    | crate::disk::SecretSource::KeyCommand(_) => {
                        return failure;
                    }
                };
                failure.hint(format!("chmod 600 {}", path.display()))
            }
            SecretError::Unreadable { .. } | SecretError::Failed { .. } | SecretError::Shape { .. } => {
                failure
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        match &error {
            StoreError::NotFound { .. } => Failure::new(Exit::NotFound, error),
            StoreError::AlreadyExists { .. } => Failure::new(Exit::Conflict, error),
            StoreError::Unknown { .. } => Failure::new(Exit::Store, error)
                .hint("run it again once the store answers; whether it did what it was asked last is not known"),
            StoreError::Short { .. } => Failure::new(Exit::Damage, error),
            StoreError::Unreadable { .. } => Failure::new(Exit::Damage, error)
                .hint("the disk under the repository fails: see its log, and run `walden verify` to see what else is lost"),
            StoreError::NoSpace { .. } => {
                Failure::new(Exit::NoSpace, error).hint("make room where the repository lies, and run it again")
            }
            StoreError::Denied { .. } => {
                Failure::new(Exit::Store, error).hint("check the credentials and what they may do in the bucket or directory")
            }
            StoreError::Url { .. } => Failure::new(Exit::Usage, error),
            StoreError::Unfit { .. } => Failure::new(Exit::Store, error).hint(
                "walden rests on conditional creation of objects; use another store, or declare single_writer = true \
                 in [repository.NAME] if no two processes will ever write to it at once",
            ),
        }
    }
}

impl From<ConnectionStringError> for Failure {
    fn from(error: ConnectionStringError) -> Failure {
        Failure::new(Exit::Usage, error)
    }
}

impl From<PgError> for Failure {
    fn from(error: PgError) -> Failure {
        let exit = match &error {
            PgError::Connect { .. }
            | PgError::NoSuchHost { .. }
            | PgError::Auth { .. }
            | PgError::Tls { .. }
            | PgError::Unsupported { .. }
            | PgError::Protocol { .. }
            | PgError::Timeout { .. }
            | PgError::Closed { .. } => Exit::Postgres,
            PgError::Server(message) => match message.code.as_str() {
                code::OBJECT_IN_USE => Exit::Conflict,
                code::UNDEFINED_OBJECT => Exit::NotFound,
                _ => Exit::Postgres,
            },
            PgError::Request { .. } => Exit::Usage,
        };
        let hint = error.hint().map(str::to_owned);
        with_hint(Failure::new(exit, error), hint)
    }
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Failure {
        match &error {
            UpstreamError::Lost(_) | UpstreamError::Refused(_) => Failure::new(Exit::Postgres, error),
            UpstreamError::SlotInUse { .. } => Failure::new(Exit::Conflict, error)
                .hint("another receiver is connected; stop it, or choose another slot with --slot"),
            UpstreamError::WalRemoved { .. } => Failure::new(Exit::Postgres, error)
                .hint("what is gone cannot be stored any more: a new `walden backup` begins behind it"),
            UpstreamError::Ahead { .. } => Failure::new(Exit::Conflict, error).hint(
                "this server lost WAL that is stored, as after a failover to a standby that was behind",
            ),
        }
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Failure {
        match error {
            BackupError::Repo(error) => error.into(),
            BackupError::Pg(error) => error.into(),
            BackupError::Archive { .. } | BackupError::Label(_) | BackupError::Unsupported { .. } => {
                Failure::new(Exit::Postgres, error)
            }
            BackupError::Interrupted => Failure::new(Exit::Interrupted, error),
            BackupError::Expired => Failure::new(Exit::Conflict, error).hint(
                "take the backup again; if nothing held this process up, see what kept it from the store",
            ),
            BackupError::ChunksGone { .. } => {
                Failure::new(Exit::Conflict, error).hint("take the backup again")
            }
            BackupError::Wal { source } => match source.downcast::<Failure>() {
                Ok(failure) => *failure,
                Err(source) => Failure::new(Exit::Postgres, format!("the backup's WAL: {source}")),
            },
            BackupError::WalMissing { ref source, .. } => {
                let cause = source.as_ref().and_then(|source| source.downcast_ref::<Failure>());
                Failure::new(cause.map_or(Exit::Postgres, |failure| failure.exit), &error)
                    .hint("it becomes restorable as soon as `walden receive` has stored that WAL")
            }
        }
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Failure {
        let list = |ids: &[BackupId]| ids.iter().map(BackupId::as_str).collect::<Vec<_>>().join(", ");
        match &error {
            NameError::Unknown { known, .. } => {
                let there = if known.is_empty() { "none".into() } else { list(known) };
                Failure::new(Exit::NotFound, &error).fact("there are", there)
            }
            NameError::Ambiguous { fits, .. } => Failure::new(Exit::Usage, &error).fact("found", list(fits)),
        }
    }
}

impl From<DeleteError> for Failure {
    fn from(error: DeleteError) -> Failure {
        match &error {
            DeleteError::NotFound(_) => Failure::new(Exit::NotFound, error),
            DeleteError::Last { .. } => Failure::new(Exit::Conflict, error)
                .hint("take another backup first; the last one goes only with its cluster"),
            DeleteError::Pinned { id, .. } => {
                let hint = format!("`walden unpin {id}`, or give --force");
                Failure::new(Exit::Conflict, error).hint(hint)
            }
            DeleteError::Reading(_) => Failure::new(Exit::Conflict, error)
                .hint("wait until it ended; one that was killed counts as running for an hour"),
            DeleteError::Deltas { .. } => Failure::new(Exit::Conflict, error).hint(
                "remove the older backups first, or let `walden expire` remove what the policy does not keep",
            ),
            DeleteError::Repo(_) => match error {
                DeleteError::Repo(error) => error.into(),
                other => Failure::new(Exit::Internal, other),
            },
        }
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Failure {
        match error {
            CopyError::Source(error) => Failure::from(error).fact("repository", "the source"),
            CopyError::Destination(error) => match Failure::from(error).fact("repository", "the destination") {
                other @ Failure { exit: Exit::WrongSystem, .. } => other.hint(
                    "the destination holds another server under this name: give another with --as",
                ),
                other => other,
            },
            CopyError::Itself { .. } => Failure::new(Exit::Conflict, error)
                .hint("give another repository with --to, or another name with --as"),
            CopyError::Written { .. } => Failure::new(Exit::Conflict, error)
                .hint("it goes on by itself; copy into another repository, or under another name with --as"),
            CopyError::Name(error) => error.into(),
            CopyError::Pending { .. } => Failure::new(Exit::Conflict, error)
                .hint("`walden info` shows what is missing; `walden receive` stores it"),
            CopyError::BaseAlone { .. } => {
                Failure::new(Exit::Conflict, error).hint("`walden info` shows which backups restore")
            }
            CopyError::Differs { .. } => Failure::new(Exit::Conflict, error)
                .hint("nothing was added to its WAL or backups: copy under another name with --as"),
            CopyError::Unrelated { .. } => Failure::new(Exit::Conflict, error)
                .hint("nothing was added to it: copy under another name with --as; `walden info` on both sides shows which server each is of"),
            CopyError::LetGo { .. } => Failure::new(Exit::Conflict, error)
                .hint("its name is free for another copy with --as"),
            CopyError::Interrupted => Failure::new(Exit::Interrupted, error),
            CopyError::Expired => Failure::new(Exit::Conflict, error).hint(
                "copy again: it goes on where it was; if nothing held this process up, see what kept it from the store",
            ),
        }
    }
}

impl From<ReceiveError> for Failure {
    fn from(error: ReceiveError) -> Failure {
        match error {
            ReceiveError::Repo(error) => error.into(),
            ReceiveError::Upstream(error) => error.into(),
            ReceiveError::Journal(error) => error.into(),
            ReceiveError::Hole(_) => Failure::new(Exit::Postgres, error),
            ReceiveError::Divergence(_) | ReceiveError::Timeline(_) => Failure::new(Exit::Conflict, error)
                .hint("this server's WAL does not continue what is stored; nothing was written"),
            ReceiveError::LeftBehind { .. } => Failure::new(Exit::Conflict, error).hint(
                "it is never put into another generation; keep the files if it may still matter, and move them out of that directory",
            ),
            ReceiveError::Again(_) | ReceiveError::Unnamed { .. } | ReceiveError::Internal(_) => Failure::new(Exit::Internal, error),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Failure {
        match error {
            RestoreError::Usage { reason, hint } => with_hint(Failure::new(Exit::Usage, reason), hint),
            RestoreError::Ambiguous(_) => Failure::new(Exit::Usage, error),
            RestoreError::Outside { target, reason, window } => {
                Failure::new(Exit::OutsideWindow, format!("target {target} is outside the recovery window"))
                    .fact("found", reason)
                    .fact("expected", window)
            }
            RestoreError::Damage { what, reason } => {
                Failure::new(Exit::Damage, "something stored is damaged")
                    .fact("where", what)
                    .fact("found", reason)
                    .hint("run `walden verify` to see everything that is damaged, and what each costs")
            }
            RestoreError::Key { .. } => Failure::new(Exit::Key, error),
            RestoreError::NotFound { .. } => Failure::new(Exit::NotFound, error),
            RestoreError::Conflict { path, reason, hint } => {
                Failure::new(Exit::Conflict, format!("{}: {reason}", path.display())).hint(hint)
            }
            RestoreError::NoSpace { .. } => Failure::new(Exit::NoSpace, error)
                .hint("what was written is marked and cannot be started; make room and restore again"),
            RestoreError::Io { ref source, .. } => disk_failure(&error, source),
            RestoreError::Repo(error) => error.into(),
            RestoreError::Interrupted => Failure::new(Exit::Interrupted, error),
        }
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Failure {
        match &error {
            JournalError::Full { .. } | JournalError::NoSpace { .. } => Failure::new(Exit::NoSpace, error),
            JournalError::Busy { .. } => Failure::new(Exit::Conflict, error)
                .hint("another receiver of this cluster runs on this host; stop it, or give --journal-dir"),
            JournalError::Generation { .. } => Failure::new(Exit::Conflict, error),
            JournalError::Damage { .. } => Failure::new(Exit::Damage, error).hint(
                "what was acknowledged and not yet in the repository may be lost: keep the file, and take a backup",
            ),
            JournalError::Closed { source, .. } => {
                let exit = match source {
                    OpenError::NoKey { .. } | OpenError::WrongKey { .. } => Exit::Key,
                    OpenError::Misplaced { .. } => Exit::Conflict,
                    OpenError::Newer(_) => Exit::Usage,
                    _ => Exit::Damage,
                };
                Failure::new(exit, error)
            }
            JournalError::NoKey { .. } => Failure::new(Exit::Key, error),
            JournalError::Io { source, .. } => disk_failure(&error, source),
            JournalError::Interrupted { .. } => Failure::new(Exit::Internal, error),
        }
    }
}

fn with_hint(failure: Failure, hint: Option<String>) -> Failure {
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn key_slot_exit(error: &KeySlotError) -> Exit {
    match error {
        KeySlotError::Damaged(_)
        | KeySlotError::Misplaced { .. }
        | KeySlotError::Forged { .. }
        | KeySlotError::Unlinked { .. } => Exit::Damage,
        KeySlotError::WrongSecret { .. }
        | KeySlotError::WrongKind { .. }
        | KeySlotError::EmptyPassphrase { .. } => Exit::Key,
        KeySlotError::NoMemory { .. } => Exit::Internal,
    }
}

fn damage_hint(key: &ObjectKey) -> String {
    match layout::cluster_of(key) {
        Some(cluster) if layout::is_root(key) => format!(
            "`walden repair root --cluster {cluster} --dry-run` shows what a new one would be made of; no WAL and no backup is lost with it"
        ),
        Some(_) if layout::is_index(key) => {
            "`walden repair index --dry-run` shows what a new index would be made of".into()
        }
        _ => "run `walden verify` to see everything that is damaged, and what each costs".into(),
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Failure {
        match error {
            RepoError::Store(StoreError::Unreadable { key, reason }) if layout::is_root(&key) => {
                RepoError::Damage { key, reason }.into()
            }
            RepoError::Store(error) => error.into(),
            RepoError::Damage { key, reason } => Failure::new(Exit::Damage, "something stored is damaged")
                .fact("where", format!("object {key}"))
                .fact("found", reason)
                .hint(damage_hint(&key)),
            RepoError::NoKey { .. } => Failure::new(Exit::Key, error)
                .hint("the key slot that was opened was not given that epoch: open the repository with another (`walden key list`)"),
            RepoError::Key { .. } => Failure::new(Exit::Key, error)
                .hint("give the passphrase or key of one of the repository's key slots"),
            RepoError::KeySlot { ref source, .. } => Failure::new(key_slot_exit(source), error),
            RepoError::NotFound { .. } => Failure::new(Exit::NotFound, error),
            RepoError::Conflict { .. } => Failure::new(Exit::Conflict, error),
            RepoError::Fenced { .. } => Failure::new(Exit::Conflict, error)
                .hint("another `walden receive` took this cluster over; stop one of the two"),
            RepoError::WrongSystem { ref cluster, found, expected } => {
                let what = format!("the server is not the one stored as cluster {cluster}");
                Failure::new(Exit::WrongSystem, what)
                    .fact("found", format!("system identifier {found}"))
                    .fact("expected", format!("system identifier {expected}"))
                    .hint(format!(
                        "if pg_upgrade made it of the one stored, `walden cluster upgrade --cluster {cluster}` begins the next generation; \
                         else check --connection, or store it under another --cluster"
                    ))
            }
            RepoError::NewGeneration { .. } => Failure::new(Exit::Superseded, error)
                .hint("`walden cluster list` shows the generations; start `walden receive` on the server that is the newest"),
            RepoError::Deleted { ref cluster, .. } => {
                let hint = format!(
                    "`walden cluster upgrade --cluster {cluster} --new-system` begins the name anew, in its next generation"
                );
                Failure::new(Exit::NotFound, error).hint(hint)
            }
            RepoError::NoRoom { .. } => Failure::new(Exit::NoSpace, error)
                .hint("make room there, or name another folder with --cache-dir"),
            RepoError::Newer { .. } => Failure::new(Exit::Usage, error)
                .hint("a newer walden wrote it: use that version here too; nothing is damaged"),
            RepoError::Configuration { .. } => Failure::new(Exit::Usage, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::SystemId;

    #[test]
    fn is_told_to_people_and_to_scripts() {
        let failure: Failure =
            RepoError::WrongSystem { cluster: "shop".into(), found: SystemId(7), expected: SystemId(8) }
                .into();
        assert_eq!(
            failure.to_string(),
            "error: the server is not the one stored as cluster shop\n  \
             found:    system identifier 7\n  \
             expected: system identifier 8\n\
             hint: if pg_upgrade made it of the one stored, `walden cluster upgrade --cluster shop` begins the next generation; \
             else check --connection, or store it under another --cluster"
        );
        let json = failure.json();
        assert_eq!((&json["version"], &json["error"]["code"]), (&1.into(), &11.into()));
        assert_eq!(json["error"]["kind"], "wrong_system");
        assert_eq!(json["error"]["expected"], "system identifier 8");
    }

    #[test]
    fn damage_is_told_with_the_command_that_mends_it() {
        let hint = |key: &str, unreadable: bool| {
            let (key, reason) = (ObjectKey::new(key).unwrap(), "because".to_owned());
            let error = match unreadable {
                true => RepoError::Store(StoreError::Unreadable { key, reason }),
                false => RepoError::Damage { key, reason },
            };
            Failure::from(error).hint.unwrap()
        };
        let root = "clusters/shop/roots/00000000000000000007";
        assert!(hint(root, false).contains("`walden repair root --cluster shop --dry-run`"));
        assert!(hint(root, true).contains("`walden repair root --cluster shop --dry-run`"));
        assert!(hint("clusters/shop/index/00000000000000000000000000000007", false).contains("repair index"));
        assert!(hint("clusters/shop/backups/20261122T195501Z", false).contains("walden verify"));
    }

    #[test]
    fn every_error_has_its_exit_code() {
        let key = || ObjectKey::new("walden").unwrap();
        let reason = || "because".to_owned();
        let store = |error: StoreError| Failure::from(RepoError::Store(error)).exit;
        assert_eq!(store(StoreError::NotFound { key: key() }), Exit::NotFound);
        assert_eq!(store(StoreError::AlreadyExists { key: key() }), Exit::Conflict);
        assert_eq!(store(StoreError::Unknown { key: key(), reason: reason() }), Exit::Store);
        assert_eq!(store(StoreError::NoSpace { key: key(), reason: reason() }), Exit::NoSpace);
        assert_eq!(store(StoreError::Denied { key: key(), reason: reason() }), Exit::Store);
        assert_eq!(store(StoreError::Url { url: reason(), reason: reason() }), Exit::Usage);
        assert_eq!(store(StoreError::Unfit { url: reason(), reason: reason() }), Exit::Store);

        let repo = |error: RepoError| Failure::from(error).exit;
        assert_eq!(repo(RepoError::Damage { key: key(), reason: reason() }), Exit::Damage);
        assert_eq!(repo(RepoError::NoKey { key: key(), reason: reason() }), Exit::Key);
        assert_eq!(repo(RepoError::Newer { key: key(), reason: reason() }), Exit::Usage);
        assert_eq!(repo(RepoError::Key { reason: reason() }), Exit::Key);
        assert_eq!(repo(RepoError::NotFound { what: reason(), url: reason() }), Exit::NotFound);
        assert_eq!(repo(RepoError::Conflict { reason: reason() }), Exit::Conflict);
        assert_eq!(repo(RepoError::Fenced { stream: reason(), number: 1, epoch: 2 }), Exit::Conflict);
        assert_eq!(repo(RepoError::Configuration { reason: reason() }), Exit::Usage);
        let disk = |kind: io::ErrorKind| {
            let (path, action) = ("/target".into(), "write".into());
            Failure::from(RestoreError::Io { path, action, source: kind.into() }).exit
        };
        assert_eq!(disk(io::ErrorKind::PermissionDenied), Exit::Usage);
        assert_eq!(disk(io::ErrorKind::ReadOnlyFilesystem), Exit::Usage);
        assert_eq!(disk(io::ErrorKind::Other), Exit::Internal);
        assert_eq!(Failure::from(ConfigError::Missing { what: reason() }).exit, Exit::Usage);
        assert_eq!(Failure::from(WhenError::Shape { found: reason() }).exit, Exit::Usage);
    }
}
