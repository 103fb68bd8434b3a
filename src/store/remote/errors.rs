//! What a store's answer means for the caller's next move. `object_store` tells the HTTP status of its rarer errors only in words;
//! they are read here, and anything unreadable is an unknown outcome. A test holds this against live answers.

use crate::base::ObjectKey;
use crate::store::StoreError;
use crate::store::options::RemoteUrl;
use object_store::Error;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Create,
    Read,
    /// The bytes up to this one.
    Range(u64),
    Delete,
}

/// An error by the caller's next move.
pub(super) fn sort_out(url: &RemoteUrl, asked: Asked, key: &ObjectKey, error: Error) -> StoreError {
    let (key, reason) = (key.clone(), words(&error));
    let says = |codes: &[&str]| codes.iter().any(|code| reason.contains(code));
    if says(&["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]) {
        let reason = format!("there is no bucket or container {}", url.bucket);
        return StoreError::Url { url: url.to_string(), reason };
    }
    match error {
        Error::NotFound { .. } if asked == Asked::Create => StoreError::Unknown { key, reason },
        Error::NotFound { .. } => StoreError::NotFound { key },
        // S3: another request for the same name was under way, and neither won yet. Azure: something else is in the way.
        Error::AlreadyExists { .. }
            if says(&["ConditionalRequestConflict", "OperationAborted", "BeingDeleted"]) =>
        {
            StoreError::Unknown { key, reason }
        }
        Error::AlreadyExists { .. } | Error::Precondition { .. } if asked == Asked::Create => {
            StoreError::AlreadyExists { key }
        }
        Error::PermissionDenied { .. } if asked == Asked::Create && says(&["UnauthorizedBlobOverwrite"]) => {
            StoreError::AlreadyExists { key }
        }
        Error::PermissionDenied { .. } if says(&["QuotaExceeded", "RequestTimeTooSkewed"]) => {
            by_code(key, reason)
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreError::Denied { key, reason },
        Error::NotImplemented { .. } | Error::NotSupported { .. } => {
            StoreError::Unfit { url: url.to_string(), reason }
        }
        _ => by_status(url, asked, key, reason),
    }
}

/// Refusals whose code says more than their status.
fn by_code(key: ObjectKey, reason: String) -> StoreError {
    match reason.contains("QuotaExceeded") {
        true => StoreError::NoSpace { key, reason },
        // The clocks disagree; once they agree, the same request will do.
        false => StoreError::Unknown { key, reason },
    }
}

fn by_status(url: &RemoteUrl, asked: Asked, key: ObjectKey, reason: String) -> StoreError {
    let full =
        ["XMinioStorageFull", "QuotaExceeded", "InsufficientCapacity", "No space left", "no free volumes"];
    if full.iter().any(|code| reason.contains(code)) {
        return StoreError::NoSpace { key, reason };
    }
    if reason.contains("without LOCATION") {
        return elsewhere(url);
    }
    match (status_in(&reason), asked) {
        (Some(507), _) => StoreError::NoSpace { key, reason },
        (Some(416), Asked::Range(wanted)) => StoreError::Short { key, wanted },
        (Some(501), Asked::Create) => StoreError::Unfit { url: url.to_string(), reason },
        (Some(301 | 302 | 307 | 308), _) => elsewhere(url),
        (Some(408 | 409 | 412 | 425 | 429), _) => StoreError::Unknown { key, reason },
        (Some(400..=499), _) => StoreError::Denied { key, reason },
        // `object_store` finds it out by itself when a range begins past the end.
        (None, Asked::Range(wanted)) if reason.contains("Wanted range starting at") => {
            StoreError::Short { key, wanted }
        }
        _ if reason.contains("169.254.169.254") || reason.contains("metadata.google.internal") => {
            StoreError::Unknown {
                key,
                reason: format!("no credentials were found, and no instance answers for one: {reason}"),
            }
        }
        _ => StoreError::Unknown { key, reason },
    }
}

fn elsewhere(url: &RemoteUrl) -> StoreError {
    let reason = format!("the bucket {} is in another region, or the endpoint is another's", url.bucket);
    StoreError::Url { url: url.to_string(), reason }
}

/// An error and its causes, each said once.
fn words(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        cause = error.source();
    }
    said
}

/// The status in `Server returned non-2xx status code: 507 Insufficient Storage`.
fn status_in(reason: &str) -> Option<u16> {
    let (_, rest) = reason.split_once("non-2xx status code: ")?;
    rest.get(..3)?.parse().ok()
}
