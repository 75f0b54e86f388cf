//! CPU and memory of each part, from `/proc`; without it (macOS) all values are 0.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::load::as_f64;

/// Linux reports CPU time in hundredths of a second, for any kernel clock.
const TICKS_A_SECOND: f64 = 100.0;

/// The processes of a load by part. Children of the first process of a part are included.
#[derive(Clone, Default)]
pub(crate) struct Watched(pub(crate) BTreeMap<&'static str, u32>);

/// CPU seconds by part.
#[derive(Clone, Default)]
pub(crate) struct Usage(pub(crate) BTreeMap<&'static str, f64>);

impl Watched {
    pub(crate) fn with(&self, part: &'static str, pid: u32) -> Self {
        let mut parts = self.clone();
        parts.0.insert(part, pid);
        parts
    }

    /// The CPU time of the processes since their start.
    pub(crate) fn usage(&self) -> Usage {
        let processes = processes();
        let used = self.0.iter().map(|(part, pid)| {
            let own = processes.get(pid).map_or(0, |process| process.own + process.ended_children);
            let is_generator = *pid == std::process::id();
            let children = processes.values().filter(|process| process.parent == *pid && !is_generator);
            let ticks = if is_generator {
                processes.get(pid).map_or(0, |process| process.own)
            } else {
                own + children.map(|process| process.own).sum::<u64>()
            };
            (*part, as_f64(ticks) / TICKS_A_SECOND)
        });
        let mut usage = Usage(used.collect());
        usage.0.insert("idle", idle());
        usage
    }
}

impl Usage {
    pub(crate) fn since(&self, before: &Self) -> Self {
        let difference = |(part, used): (&&'static str, &f64)| {
            (*part, (used - before.0.get(*part).copied().unwrap_or_default()).max(0.0))
        };
        Self(self.0.iter().map(difference).collect())
    }
}

/// The maximum memory of a process in MB.
pub(crate) fn peak_memory(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = peak.split_whitespace().next()?.parse().ok()?;
    Some(as_f64(kilobytes) * 1024.0 / 1e6)
}

pub(crate) fn unix_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or_default()
}

/// `model name` of the first CPU, and the number of CPUs.
pub(crate) fn machine() -> (String, usize) {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name);
    (model.to_owned(), std::thread::available_parallelism().map_or(1, Into::into))
}

struct Process {
    parent: u32,
    own: u64,
    ended_children: u64,
}

fn processes() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, process(&entry.path())?))
        })
        .collect()
}

/// proc(5): the fields after the name, which is in parentheses and may contain blanks.
fn process(folder: &Path) -> Option<Process> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        own: ticks(11) + ticks(12),
        ended_children: ticks(13) + ticks(14),
    })
}

/// Seconds in which the cores of the machine were idle or waited for the disk.
fn idle() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.lines().next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    as_f64(ticks(4) + ticks(5)) / TICKS_A_SECOND
}
