//! What an error of the file system means for an object.

use crate::base::ObjectKey;
use crate::store::StoreError;
use rustix::io::Errno;
use std::io;

/// An error by the caller's next move.
pub(super) fn sort_out(key: &ObjectKey, doing: &str, error: io::Error) -> StoreError {
    let (key, reason) = (key.clone(), format!("{doing}: {error}"));
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound { key },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace { key, reason },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreError::Denied { key, reason }
        }
        _ => StoreError::Unknown { key, reason },
    }
}

/// As [`sort_out`]; what is not found while writing is a directory that someone removed, not the object.
pub(super) fn sort_out_write(key: &ObjectKey, doing: &str, error: io::Error) -> StoreError {
    let reason = format!("{doing}: {error}");
    match sort_out(key, doing, error) {
        StoreError::NotFound { key } => StoreError::Unknown { key, reason },
        other => other,
    }
}

/// As [`sort_out`]; what the medium under a file does not give is damage of that object, and nothing else is known to be wrong.
pub(super) fn sort_out_read(key: &ObjectKey, error: io::Error) -> StoreError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN) => {
            StoreError::Unreadable { key: key.clone(), reason: error.to_string() }
        }
        _ => sort_out(key, "reading it", error),
    }
}
