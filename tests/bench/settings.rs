//! The settings of the benchmark from the environment (`main.rs` lists them).

use std::env;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::Result;

/// The valid names of `BENCH_ONLY`, in the order in which they run.
pub(crate) const LINES: [&str; 12] = [
    "start", "alone", "place", "key", "hot", "read", "list", "confirm", "payments", "events", "backlog",
    "size",
];

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) only: Vec<String>,
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) connections: Vec<usize>,
    /// Requests per second; by default shares of the maximum.
    pub(crate) rates: Vec<f64>,
    pub(crate) orders: u64,
    pub(crate) sizes: Vec<u64>,
    /// Events of the line `backlog`.
    pub(crate) backlog: u64,
    pub(crate) binary: PathBuf,
    pub(crate) baseline: Option<PathBuf>,
    pub(crate) kafka: Option<String>,
    pub(crate) log_filter: String,
    pub(crate) pgbench_mode: String,
    /// Further settings of the service.
    pub(crate) service: Vec<(String, String)>,
    pub(crate) folder: PathBuf,
    pub(crate) plots: PathBuf,
}

impl Settings {
    pub(crate) fn read() -> Result<Self> {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench"));
        let only = list("BENCH_ONLY", "")?;
        if let Some(unknown) = only.iter().find(|name: &&String| !LINES.contains(&name.as_str())) {
            return Err(format!("BENCH_ONLY: {unknown} is not one of {}", LINES.join(", ")).into());
        }
        let passed_on = env::vars().filter_map(|(name, value)| {
            name.strip_prefix("BENCH_SERVICE_").map(|name| (name.to_owned(), value))
        });
        Ok(Self {
            only,
            duration: Duration::from_secs(one("BENCH_SECONDS", "5")?),
            warm_up: Duration::from_secs(one("BENCH_WARM_UP_SECONDS", "1")?),
            connections: list("BENCH_CONNECTIONS", "1,8,64,256")?,
            rates: list("BENCH_RATES", "")?,
            orders: one("BENCH_ORDERS", "10000")?,
            sizes: list("BENCH_SIZES", "10000,100000")?,
            backlog: one("BENCH_BACKLOG", "1000000")?,
            binary: one("BENCH_BINARY", env!("CARGO_BIN_EXE_order-service"))?,
            baseline: given("BENCH_BASELINE").map(PathBuf::from),
            kafka: given("KAFKA_BOOTSTRAP_SERVERS"),
            log_filter: one("BENCH_LOG_FILTER", "warn")?,
            pgbench_mode: one("BENCH_PGBENCH_MODE", "prepared")?,
            service: passed_on.collect(),
            plots: given("BENCH_PLOTS").map_or_else(|| folder.join("plots"), PathBuf::from),
            folder,
        })
    }

    pub(crate) fn wants(&self, line: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == line)
    }
}

fn given(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn one<T: FromStr>(name: &str, default: &str) -> Result<T> {
    let text = given(name).unwrap_or_else(|| default.to_owned());
    text.trim().parse().map_err(|_| format!("{name}: {text:?} is not a valid value").into())
}

fn list<T: FromStr>(name: &str, default: &str) -> Result<Vec<T>> {
    let text = given(name).unwrap_or_else(|| default.to_owned());
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| item.parse().map_err(|_| format!("{name}: {item:?} is not a valid value").into()))
        .collect()
}
