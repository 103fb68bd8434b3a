//! Exit codes: a promise to scripts. One enum, one place; numbers are never given another meaning.

/// How a command ends. (`wal-fetch`, which PostgreSQL calls, has codes of its own.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// A bug of ours, or the local disk failing.
    Internal = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The target lies outside the recovery window, or in a gap.
    OutsideWindow = 3,
    /// Something stored is damaged.
    Damage = 4,
    /// The passphrase or key is wrong, missing, or exposed to others.
    Key = 5,
    /// There is no such repository, cluster, backup or file.
    NotFound = 6,
    /// Somebody or something is in the way: a non-empty target, a slot in use, a newer receiver.
    Conflict = 7,
    /// PostgreSQL refused, failed, or cannot be reached.
    Postgres = 8,
    /// The repository's store refused, failed, or cannot be reached.
    Store = 9,
    /// No space left: on the target, in the journal, or in the store.
    NoSpace = 10,
    /// The server is another cluster than the one stored.
    WrongSystem = 11,
    /// The cluster's next generation began: this server, or this work, is of one that is over.
    Superseded = 12,
    /// Stopped by ctrl-C (SIGINT).
    Interrupted = 130,
    /// Stopped by SIGTERM.
    Terminated = 143,
}

impl Exit {
    /// All of them, in order of their numbers.
    pub const ALL: [Exit; 15] = [
        Exit::Done,
        Exit::Internal,
        Exit::Usage,
        Exit::OutsideWindow,
        Exit::Damage,
        Exit::Key,
        Exit::NotFound,
        Exit::Conflict,
        Exit::Postgres,
        Exit::Store,
        Exit::NoSpace,
        Exit::WrongSystem,
        Exit::Superseded,
        Exit::Interrupted,
        Exit::Terminated,
    ];

    /// Its number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Its name in `--json` documents.
    pub const fn name(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Internal => "internal",
            Exit::Usage => "usage",
            Exit::OutsideWindow => "outside_window",
            Exit::Damage => "damage",
            Exit::Key => "key",
            Exit::NotFound => "not_found",
            Exit::Conflict => "conflict",
            Exit::Postgres => "postgres",
            Exit::Store => "store",
            Exit::NoSpace => "no_space",
            Exit::WrongSystem => "wrong_system",
            Exit::Superseded => "superseded",
            Exit::Interrupted => "interrupted",
            Exit::Terminated => "terminated",
        }
    }

    /// What it means, for `walden help exit-codes` and the README.
    pub const fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Internal => "internal error, a bug of walden",
            Exit::Usage => "wrong usage or configuration",
            Exit::OutsideWindow => "the target lies outside the recovery window",
            Exit::Damage => "something stored is damaged",
            Exit::Key => "the passphrase or key is wrong, missing or exposed",
            Exit::NotFound => "no such repository, cluster, backup or file",
            Exit::Conflict => "conflict: non-empty target, slot in use, fenced by a newer receiver",
            Exit::Postgres => "PostgreSQL refused, failed or cannot be reached",
            Exit::Store => "the store refused, failed or cannot be reached",
            Exit::NoSpace => "no space left",
            Exit::WrongSystem => "the server has another system identifier",
            Exit::Superseded => "the cluster's next generation began, and this server is of one that is over",
            Exit::Interrupted => "interrupted by ctrl-C",
            Exit::Terminated => "terminated by SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_was_promised() {
        let promised = [
            (0, "done"),
            (1, "internal"),
            (2, "usage"),
            (3, "outside_window"),
            (4, "damage"),
            (5, "key"),
            (6, "not_found"),
            (7, "conflict"),
            (8, "postgres"),
            (9, "store"),
            (10, "no_space"),
            (11, "wrong_system"),
            (12, "superseded"),
            (130, "interrupted"),
            (143, "terminated"),
        ];
        assert_eq!(Exit::ALL.map(|exit| (exit.code(), exit.name())), promised);
    }
}
