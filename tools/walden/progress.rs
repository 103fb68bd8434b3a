//! Progress of long work on standard error: a bar on a terminal, a line every 30 s elsewhere.

use crate::output::Output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use walden::base::{Progress, Unwatched};
use walden::operate::units::{Bytes, Span};

/// Time between two lines off a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
const BAR: &str = "{msg} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
const COUNTER: &str = "{spinner} {msg}  {bytes}  {elapsed}";

/// Whoever watches, as the options and the terminal say. Nothing is shown after it is dropped.
pub fn watcher(output: Output) -> Box<dyn Progress> {
    match (output.is_quiet(), stderr().is_terminal()) {
        (true, _) => Box::new(Unwatched),
        (false, true) => Box::new(Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()))),
        (false, false) => Box::new(Lines::start()),
    }
}

/// A bar.
#[derive(Debug)]
struct Bar(ProgressBar);

impl Progress for Bar {
    fn stage(&self, name: &str, bytes_total: Option<u64>) {
        self.0.reset();
        self.0.set_message(name.to_owned());
        let template = match bytes_total {
            Some(total) => {
                self.0.set_length(total);
                BAR
            }
            None => {
                self.0.unset_length();
                COUNTER
            }
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.enable_steady_tick(Duration::from_millis(200));
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A line now and then, from a thread of its own: a stage that only waits is shown too.
#[derive(Debug)]
struct Lines {
    shown: Arc<Shown>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shown {
    done: AtomicU64,
    stage: Mutex<Stage>,
    over: AtomicBool,
}

#[derive(Debug, Clone)]
struct Stage {
    name: String,
    bytes_total: Option<u64>,
    began: Instant,
}

impl Lines {
    fn start() -> Lines {
        let stage = Stage { name: String::new(), bytes_total: None, began: Instant::now() };
        let shown = Shown { done: AtomicU64::new(0), stage: Mutex::new(stage), over: AtomicBool::new(false) };
        let shown = Arc::new(shown);
        let watched = shown.clone();
        let thread = std::thread::spawn(move || {
            let mut next = Instant::now() + LINE_INTERVAL;
            while !watched.over.load(Ordering::Relaxed) {
                let now = Instant::now();
                if now >= next {
                    eprintln!("{}", watched.line());
                    next = now + LINE_INTERVAL;
                }
                std::thread::park_timeout(next.saturating_duration_since(now));
            }
        });
        Lines { shown, thread: Some(thread) }
    }
}

impl Shown {
    fn line(&self) -> String {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        line(&stage, self.done.load(Ordering::Relaxed), stage.began.elapsed())
    }
}

/// `reading files: 1.2 GiB of 3.0 GiB (40 %), 350.0 MiB/s, 5.1 s left`
fn line(stage: &Stage, done: u64, elapsed: Duration) -> String {
    let Stage { name, bytes_total, .. } = stage;
    if done == 0 {
        return format!("{name}: {}", Span(elapsed));
    }
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let rate_shown = Bytes(rate as u64);
    let Some(total) = bytes_total.filter(|total| *total > 0) else {
        return format!("{name}: {}, {rate_shown}/s", Bytes(done));
    };
    let total = total.max(done);
    let percent = done.saturating_mul(100) / total;
    let left = Span(Duration::try_from_secs_f64((total - done) as f64 / rate).unwrap_or_default());
    format!("{name}: {} of {} ({percent} %), {rate_shown}/s, {left} left", Bytes(done), Bytes(total))
}

impl Progress for Lines {
    fn stage(&self, name: &str, bytes_total: Option<u64>) {
        let mut stage = self.shown.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *stage = Stage { name: name.to_owned(), bytes_total, began: Instant::now() };
        self.shown.done.store(0, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.shown.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.shown.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_rate_and_time_left() {
        let stage = |bytes_total| Stage { name: "reading files".into(), bytes_total, began: Instant::now() };
        let second = Duration::from_secs(1);
        assert_eq!(
            line(&stage(Some(400 << 20)), 100 << 20, second),
            "reading files: 100.0 MiB of 400.0 MiB (25 %), 100.0 MiB/s, 3.0 s left"
        );
        assert_eq!(line(&stage(None), 5 << 20, second), "reading files: 5.0 MiB, 5.0 MiB/s");
        assert_eq!(line(&stage(None), 0, second), "reading files: 1.0 s");
        // More than was announced: the server wrote meanwhile.
        assert_eq!(
            line(&stage(Some(1)), 2 << 20, second),
            "reading files: 2.0 MiB of 2.0 MiB (100 %), 2.0 MiB/s, 0 ms left"
        );
    }
}
