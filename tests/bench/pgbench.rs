//! pgbench before and after each load: the same order, or the same select, directly in PostgreSQL.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::load::{as_f64, histogram};

const CLIENTS: &str = "64";
const THREADS: &str = "2";

/// A script of pgbench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// One order in one transaction.
    Order,
    /// One order with its lines, from this number of orders.
    Select(u64),
}

/// The result of pgbench.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Transactions a second.
    pub(crate) rate: f64,
    /// Mean latency in milliseconds.
    pub(crate) millis: f64,
}

/// pgbench, and how it sends its statements: `simple`, `extended` or `prepared`.
#[derive(Clone, Debug)]
pub(crate) struct Pgbench {
    program: PathBuf,
    folder: PathBuf,
    mode: String,
}

impl Pgbench {
    /// `None` if pgbench is not installed: then there are no ratios.
    pub(crate) fn find(folder: PathBuf, mode: String) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let program = std::env::split_paths(&path)
            .chain(debian.map(|version| version.path().join("bin")))
            .map(|folder| folder.join("pgbench"))
            .find(|program| program.is_file())?;
        Some(Self { program, folder, mode })
    }

    /// As many transactions as it can.
    pub(crate) fn run(&self, url: &str, script: Script, duration: Duration) -> Result<Measured> {
        self.execute(url, script, duration, &[])
    }

    /// An open loop; returns the p99 in milliseconds, counted from the intended start of each transaction.
    pub(crate) fn p99_at(&self, url: &str, script: Script, duration: Duration, rate: f64) -> Result<f64> {
        let prefix = self.folder.join("pgbench-log").to_string_lossy().into_owned();
        let more = ["--rate", &rate.to_string(), "--log", "--log-prefix", &prefix].map(str::to_owned);
        self.execute(url, script, duration, &more)?;
        // One file per thread; the third column of a line is a latency in microseconds.
        let mut latency = histogram();
        for file in std::fs::read_dir(&self.folder)?.flatten().map(|file| file.path()) {
            if file.to_string_lossy().starts_with(&prefix) {
                let lines = std::fs::read_to_string(&file)?;
                let column = lines.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
                column.for_each(|micros| latency.saturating_record(micros));
                std::fs::remove_file(file)?;
            }
        }
        Ok(as_f64(latency.value_at_quantile(0.99)) / 1000.0)
    }

    fn execute(&self, url: &str, script: Script, duration: Duration, more: &[String]) -> Result<Measured> {
        let (name, text, orders) = match script {
            Script::Order => ("order.sql", include_str!("sql/order.sql"), 1),
            Script::Select(orders) => ("select.sql", include_str!("sql/select.sql"), orders),
        };
        let file = self.folder.join(name);
        std::fs::write(&file, text)?;
        let output = Command::new(&self.program)
            .args(["--no-vacuum", "--client", CLIENTS, "--jobs", THREADS, "--protocol", &self.mode])
            .args(["--time", &duration.as_secs().max(1).to_string()])
            .args(more)
            .args(["--define", &format!("orders={orders}"), "--file"])
            .arg(file)
            .arg(url)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let number = |prefix: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(prefix))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let measured = number("tps = ").zip(number("latency average = "));
        let measured = measured.filter(|_| output.status.success());
        measured.map(|(rate, millis)| Measured { rate, millis }).ok_or_else(|| {
            let complaints = String::from_utf8_lossy(&output.stderr);
            let first = complaints.lines().find(|line| line.contains("ERROR")).unwrap_or(&complaints);
            format!("pgbench {name}: {first}").into()
        })
    }
}
