//! Names and numbers of things: repositories, streams, objects, chunks, clusters, backups.
//! Random ids are 16 bytes, printed as 32 hexadecimal digits.

use super::clock::{Entropy, Timestamp, random_bytes};
use std::fmt;
use std::str::FromStr;

/// What was not an id or a name, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a {what}: expected {expected}")]
pub struct IdError {
    /// What it should have been.
    pub what: &'static str,
    /// The text as given.
    pub found: String,
    /// The shape it should have had.
    pub expected: &'static str,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                hex_bytes(text).map($name).ok_or_else(|| IdError {
                    what: $what,
                    found: text.to_owned(),
                    expected: $expected,
                })
            }
        }
    };
}

macro_rules! random_id {
    ($name:ident) => {
        impl $name {
            /// A new random id.
            pub fn random(entropy: &dyn Entropy) -> Self {
                $name(random_bytes(entropy))
            }
        }
    };
}

hex_id!(
    /// A repository, drawn at `init`; in the header of every object.
    RepositoryId, 16, "repository id", "32 hexadecimal digits"
);
hex_id!(
    /// A stream: what one writer wrote.
    StreamId, 16, "stream id", "32 hexadecimal digits"
);
hex_id!(
    /// An object named by a random id: a segment, an index object, a pending entry.
    ObjectId, 16, "object id", "32 hexadecimal digits"
);
hex_id!(
    /// A chunk: the keyed BLAKE3 of its plaintext, so that equal bytes have equal ids within one repository only.
    ChunkId, 32, "chunk id", "64 hexadecimal digits"
);
random_id!(RepositoryId);
random_id!(StreamId);
random_id!(ObjectId);

/// `text` as exactly `N` bytes of lower or upper case hexadecimal.
pub fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| (d as char).to_digit(16);
        *byte = (digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?) as u8;
    }
    Some(bytes)
}

/// PostgreSQL's system identifier: which `initdb` a data directory comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One system identifier and major version of a cluster; pg_upgrade begins the next. The first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

macro_rules! short_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $reserved:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let sane = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
                let first_sane = text.bytes().next().is_some_and(|b| sane(b) && !matches!(b, b'_' | b'-'));
                let reserved: &[&str] = $reserved;
                if first_sane && text.len() <= 48 && text.bytes().all(sane) && !reserved.contains(&text) {
                    return Ok($name(text.to_owned()));
                }
                Err(IdError { what: $what, found: text.to_owned(), expected: $expected })
            }
        }
    };
}

short_name!(
    /// The name of a cluster in a repository: 1 to 48 of `a-z`, `0-9`, `_` and `-`, beginning with a letter or digit.
    /// 48, so that `walden_<cluster>` fits PostgreSQL's 63 bytes of a slot name.
    ClusterName, "cluster name", &[], "1 to 48 of a-z, 0-9, _ and -, beginning with a letter or digit"
);
short_name!(
    /// The name of a key slot: shaped like a cluster's. `epochs` is taken: epoch secrets live under `keys/epochs/`.
    SlotName, "key slot name", &["epochs"],
    "1 to 48 of a-z, 0-9, _ and -, beginning with a letter or digit, and not \"epochs\""
);

impl ClusterName {
    /// The replication slot's default name, `walden_<cluster>`; slots know no `-`.
    pub fn slot_name(&self) -> String {
        format!("walden_{}", self.0.replace('-', "_"))
    }
}

/// A backup: the UTC second at which it began, `20261122T195501Z`. Sorts as text in order of time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

impl BackupId {
    /// The id of a backup begun at `time`.
    pub fn at(time: Timestamp) -> Self {
        let time =
            jiff::Timestamp::from_microsecond(time.unix_micros()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        BackupId(time.strftime("%Y%m%dT%H%M%SZ").to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let shape = b"dddddddd\x54dddddd\x5a";
        let fits = text.len() == shape.len()
            && text.bytes().zip(shape).all(|(b, s)| if *s == b'd' { b.is_ascii_digit() } else { b == *s });
        if fits {
            return Ok(BackupId(text.to_owned()));
        }
        Err(IdError {
            what: "backup id",
            found: text.to_owned(),
            expected: "a UTC time like 20261122T195501Z",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_ids_are_the_second_they_began() {
        let id = BackupId::at(Timestamp::from_unix_micros(1_795_377_301_999_999));
        assert_eq!(id.as_str(), "20261122T195501Z");
        assert_eq!("20261122T195501Z".parse(), Ok(id));
        assert!("20261122T195501z".parse::<BackupId>().is_err());
    }

    #[test]
    fn cluster_names_make_slot_names() {
        assert_eq!("shop-eu".parse::<ClusterName>().unwrap().slot_name(), "walden_shop_eu");
        for name in ["", "-a", "_a", "Shop", "a/b", "..", "a b", &"x".repeat(49)] {
            assert!(name.parse::<ClusterName>().is_err(), "{name:?}");
            assert!(name.parse::<SlotName>().is_err(), "{name:?}");
        }
        assert!("epochs".parse::<SlotName>().is_err());
    }

    #[test]
    fn ids_are_hexadecimal() {
        let id = ObjectId([0xab; 16]);
        assert_eq!(id.to_string(), "ab".repeat(16));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("ab".parse::<ObjectId>().is_err());
    }
}
