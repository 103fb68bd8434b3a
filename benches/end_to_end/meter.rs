//! What a process takes while it runs: wall clock, time on the cores, anonymous memory; and figures as JSON lines.

use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What processes took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Wall clock.
    pub seconds: f64,
    /// On the cores, of all of them.
    pub cpu_seconds: f64,
    /// The most anonymous memory seen (RssAnon), of all of them.
    pub anon_bytes: u64,
}

/// Whose time and memory are counted.
#[derive(Debug, Clone, Copy)]
pub enum Whom {
    /// A process, its children and theirs.
    Family(u32),
    /// Every process of this name: for daemons that leave their family.
    Named(&'static str),
}

/// Samples processes every 20 ms until stopped. What a process took in its last 20 ms is not seen.
#[derive(Debug)]
pub struct Meter {
    began: Instant,
    done: Arc<AtomicBool>,
    sampling: JoinHandle<(f64, u64)>,
}

impl Meter {
    /// Begins to watch.
    pub fn start(whom: Whom) -> Meter {
        let done = Arc::new(AtomicBool::new(false));
        let stop = done.clone();
        let sampling = std::thread::spawn(move || {
            let mut cpu: HashMap<u32, f64> = HashMap::new();
            let mut anon = 0;
            loop {
                let last = stop.load(Ordering::Relaxed);
                let pids = match whom {
                    Whom::Family(pid) => family(pid),
                    Whom::Named(name) => named(name),
                };
                for pid in &pids {
                    cpu.extend(cpu_seconds(*pid).map(|seconds| (*pid, seconds)));
                }
                anon = anon.max(pids.iter().filter_map(|pid| anon_bytes(*pid)).sum());
                if last {
                    return (cpu.values().sum(), anon);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Meter { began: Instant::now(), done, sampling }
    }

    /// Ends watching.
    pub fn stop(self) -> Taken {
        let seconds = self.began.elapsed().as_secs_f64();
        self.done.store(true, Ordering::Relaxed);
        let (cpu_seconds, anon_bytes) = self.sampling.join().unwrap_or_default();
        Taken { seconds, cpu_seconds, anon_bytes }
    }
}

/// Runs a command that must end well; what it took, and what it printed on standard output.
pub fn timed(command: &mut Command) -> (Taken, String) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let meter = Meter::start(Whom::Family(child.id()));
    let output = child.wait_with_output().expect("its output");
    let taken = meter.stop();
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?} ended with {}\n{printed}{said}", output.status);
    (taken, printed)
}

/// `pid`, its children and theirs.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(pid) = family.get(next).copied() {
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    family
}

fn named(name: &str) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|process| process.file_name().to_str()?.parse().ok());
    let is =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    pids.filter(is).collect()
}

/// User and system time of a process. Its children are counted by themselves.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // utime and stime: fields 14 and 15 of proc(5), and the first after the name is the third.
    let ticks: u64 = fields.get(11..13)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some(ticks as f64 / 100.0)
}

fn anon_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Prints one figure: a line of JSON.
pub fn figure(name: &str, of: &str, value: f64, unit: &str, context: &[(&str, Value)]) {
    let mut line = Map::new();
    line.insert("figure".into(), name.into());
    line.insert("of".into(), of.into());
    line.insert("value".into(), rounded(value).into());
    line.insert("unit".into(), unit.into());
    line.extend(context.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    println!("{}", Value::Object(line));
}

/// Three digits after the point are more than a shared machine can tell.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The value below which `share` of all lie.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len());
    values[at - 1]
}

/// The middle one of a few values.
pub fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// An end that must be a good one.
pub fn assert_ended_well(what: &str, status: Option<ExitStatus>) {
    match status {
        Some(status) if status.success() => {}
        other => panic!("{what} ended with {other:?}"),
    }
}
