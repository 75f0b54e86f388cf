//! The process, from `/proc` (only on Linux), and its Tokio runtime.

use std::fs;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Gauges, Labels, Seconds, register};

/// `sysconf(_SC_CLK_TCK)`, which is 100 for programs on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) struct Process {
    resident: Gauges<0>,
    cpu: Family<Labels<0>, Counter<f64, AtomicU64>>,
    open_fds: Gauges<0>,
    started: Family<Labels<0>, Seconds>,
    workers: Gauge,
    tasks: Gauge,
    /// Serialises the reads: a counter can only be increased.
    reading: Mutex<()>,
}

impl Process {
    pub(super) fn new(registry: &mut Registry) -> Self {
        Self {
            resident: register(registry, "process_resident_memory_bytes", "Resident memory"),
            cpu: register(registry, "process_cpu_seconds", "Processor time, user and system"),
            open_fds: register(registry, "process_open_fds", "Open file descriptors"),
            started: register(
                registry,
                "process_start_time_seconds",
                "Start of the process, in seconds since 1970",
            ),
            workers: register(registry, "tokio_workers", "Worker threads of the runtime"),
            tasks: register(registry, "tokio_alive_tasks", "Live tasks of the runtime"),
            reading: Mutex::default(),
        }
    }

    pub(super) fn read(&self) {
        let _lock = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.workers.set(as_gauge(runtime.metrics().num_workers()));
            self.tasks.set(as_gauge(runtime.metrics().num_alive_tasks()));
        }
        if let Some(bytes) = resident_bytes() {
            self.resident.get_or_create(&[]).set(bytes);
        }
        if let Some(fds) = fs::read_dir("/proc/self/fd").ok().map(Iterator::count) {
            // Excludes the descriptor of `/proc/self/fd` itself.
            self.open_fds.get_or_create(&[]).set(as_gauge(fds.saturating_sub(1)));
        }
        if let Some((cpu, started)) = times() {
            let counter = self.cpu.get_or_create_owned(&[]);
            counter.inc_by((cpu - counter.get()).max(0.0));
            self.started.get_or_create(&[]).set(started);
        }
    }
}

fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// `VmRSS` of `proc_pid_status(5)`.
fn resident_bytes() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kilobytes.trim().trim_end_matches("kB").trim_end().parse::<i64>().ok()? * 1024)
}

/// Processor time and start of the process, in seconds (`proc_pid_stat(5)`, `proc_stat(5)`).
fn times() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program is in brackets and may contain spaces. The third field follows.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let (user, system, started) = (ticks(14)?, ticks(15)?, ticks(22)?);
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(((user + system) / TICKS_PER_SECOND, booted + started / TICKS_PER_SECOND))
}
