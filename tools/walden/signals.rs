//! SIGINT and SIGTERM: what is asked to stop stops cleanly at the first, and is left at the second.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use walden::operate::{Exit, Failure};

/// The two signals.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// From now on they do not end the process.
    pub fn catch() -> Result<Signals, Failure> {
        let catch =
            |kind| signal(kind).map_err(|error| Failure::new(Exit::Internal, format!("no signals: {error}")));
        Ok(Signals { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Waits for one; the exit code that says so.
    pub async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }
}

/// Runs `work` until it ends or a signal comes; work that is dropped leaves nothing half-done behind.
pub async fn until_signal(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut signals = Signals::catch()?;
    tokio::select! {
        ended = work => ended,
        signal = signals.next() => Err(interrupted(signal)),
    }
}

/// Runs `work`, which ends soon after `stop` is set, and says which signal set it. A second signal leaves it at once.
pub async fn stop_on_signal<T, E: Into<Failure>>(
    work: impl Future<Output = Result<T, E>>,
    stop: watch::Sender<bool>,
) -> (Result<T, Failure>, Option<Exit>) {
    let mut signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(failure) => return (Err(failure), None),
    };
    tokio::pin!(work);
    let mut first = None;
    loop {
        tokio::select! {
            ended = &mut work => return (ended.map_err(Into::into), first),
            signal = signals.next() => {
                if first.is_some() {
                    return (Err(interrupted(signal)), first);
                }
                first = Some(signal);
                tracing::info!("stopping; a second signal stops at once");
                stop.send_replace(true);
            }
        }
    }
}

/// The failure that a signal is.
fn interrupted(signal: Exit) -> Failure {
    Failure::new(signal, if signal == Exit::Terminated { "terminated" } else { "interrupted" })
}
