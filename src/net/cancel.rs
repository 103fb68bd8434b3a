//! Cancel requests: what ctrl-C needs to interrupt a command that runs on the server.

use super::PgError;
use super::connect::Route;
use std::fmt;
use zeroize::Zeroizing;

/// Interrupts the running command of one connection. Its secret never shows in `Debug`.
#[derive(Clone)]
pub struct CancelToken {
    pub(super) route: Route,
    pub(super) process: i32,
    pub(super) secret: Zeroizing<i32>,
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").field("process", &self.process).finish_non_exhaustive()
    }
}

impl CancelToken {
    /// The server process, as in `pg_stat_activity.pid`.
    pub fn process(&self) -> i32 {
        self.process
    }

    /// Asks the server to interrupt the command, over the same host and the same TLS. `Ok` means that it was told,
    /// not that anything was running; the command itself then fails with SQLSTATE 57014.
    pub async fn cancel(&self) -> Result<(), PgError> {
        self.route.cancel(self.process, *self.secret).await
    }
}
