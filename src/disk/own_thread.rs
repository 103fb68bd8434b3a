//! Work on a thread of its own, so that the scheduler can put it behind everything else the process does.

use rustix::process::setpriority_process;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// The niceness of [`Priority::Low`]: the last of all, which gets what others leave of the cores.
const NICENESS_LOW: i32 = 19;

/// Who goes first when the cores are busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// As everything else.
    Normal,
    /// After everything else.
    Low,
}

/// Polls `work` to its end on a thread of its own; its timers and sockets stay the runtime's. A panic goes on here. If
/// dropped: `work` is dropped at its next await.
pub async fn run<T: Send + 'static>(
    name: &str,
    priority: Priority,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let runtime = Handle::current();
    let (waiting, nobody_waits) = oneshot::channel::<()>();
    let (tell, told) = oneshot::channel::<Result<T, Box<dyn Any + Send>>>();
    let body = move || {
        if priority == Priority::Low {
            // For this thread alone, on Linux. Where it is refused, the work only competes.
            setpriority_process(None, NICENESS_LOW).ok();
        }
        let until_dropped = async {
            tokio::select! {
                biased;
                _ = nobody_waits => None,
                done = work => Some(done),
            }
        };
        let done = catch_unwind(AssertUnwindSafe(|| runtime.block_on(until_dropped)));
        if let Some(done) = done.transpose() {
            tell.send(done).ok();
        }
    };
    if let Err(error) = std::thread::Builder::new().name(name.into()).spawn(body) {
        panic!("no thread for {name}: {error}");
    }
    let done = told.await;
    drop(waiting);
    match done {
        Ok(Ok(done)) => done,
        Ok(Err(panicked)) => resume_unwind(panicked),
        Err(_) => unreachable!("the thread tells how its work ended while somebody waits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[tokio::test]
    async fn work_is_done_elsewhere_and_after_everything_else() {
        let here = std::thread::current().id();
        // Whoever runs the tests may be nice already, or not at all.
        let own = rustix::process::getpriority_process(None).unwrap();
        for (priority, niceness) in [(Priority::Normal, own), (Priority::Low, NICENESS_LOW)] {
            let found = run("test", priority, async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                (std::thread::current().id(), rustix::process::getpriority_process(None).unwrap())
            });
            let (thread, found) = found.await;
            assert!(thread != here);
            assert!(found >= niceness, "{priority:?}: {found}");
        }
        assert!(rustix::process::getpriority_process(None).unwrap() < NICENESS_LOW, "only that thread");
    }

    #[tokio::test]
    async fn a_panic_goes_on_where_the_work_is_awaited() {
        let died = tokio::spawn(run("test", Priority::Low, async { panic!("on purpose") })).await;
        let message = died.unwrap_err().into_panic();
        assert_eq!(message.downcast_ref::<&str>(), Some(&"on purpose"));
    }

    #[tokio::test]
    async fn nobody_waiting_drops_the_work() {
        let held = Arc::new(());
        let (started, begun) = oneshot::channel();
        let inside = held.clone();
        let work = run("test", Priority::Low, async move {
            started.send(()).ok();
            std::future::pending::<()>().await;
            drop(inside);
        });
        tokio::select! {
            () = work => unreachable!(),
            _ = begun => {}
        }
        for _ in 0..1000 {
            if Arc::strong_count(&held) == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the work is still there");
    }
}
