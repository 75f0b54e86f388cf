//! The results, as tables and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::load::{Load, Outcome, Pace, as_f64};
use crate::pgbench;

/// The parts with a CPU column in the tables.
pub(crate) const PARTS: [&str; 5] = ["service", "postgres", "stub", "kafka", "generator"];

#[derive(Default, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: BTreeMap<&'static str, String>,
    pub(crate) lines: Vec<Line>,
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) notes: Vec<String>,
}

/// One kind of work under several loads.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) levels: Vec<Level>,
    /// Transactions per second of pgbench, before and after the loads.
    pub(crate) pgbench: Vec<f64>,
    /// The maximum memory of the service in MB.
    pub(crate) memory: Option<f64>,
}

/// One load. Latencies in milliseconds, CPU in microseconds per request.
#[derive(Serialize)]
pub(crate) struct Level {
    pub(crate) connections: usize,
    /// The rate of an open loop.
    pub(crate) intended_rate: Option<f64>,
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) most: f64,
    pub(crate) failures: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) unsent: u64,
    pub(crate) cpu: BTreeMap<&'static str, f64>,
    /// The idle share of the machine's cores.
    pub(crate) idle: f64,
    /// Orders in the tables before the load, if the line compares table sizes.
    pub(crate) orders: Option<u64>,
}

/// A line of the issue.
#[derive(Serialize)]
pub(crate) struct Ratio {
    pub(crate) line: String,
    pub(crate) measured: String,
    pub(crate) beside: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) goal: String,
}

impl Level {
    pub(crate) fn new(load: &Load, outcome: &Outcome) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let per_request = |seconds: f64| seconds * 1e6 / as_f64(outcome.completed.max(1));
        let used = outcome.cpu.0.iter().filter(|(part, _)| PARTS.contains(part));
        let wall = load.duration.as_secs_f64() * as_f64(cores as u64);
        Self {
            connections: load.connections,
            intended_rate: match load.pace {
                Pace::Closed => None,
                Pace::Open(rate) => Some(rate),
            },
            rate: outcome.rate(),
            p50: outcome.millis(0.5),
            p90: outcome.millis(0.9),
            p99: outcome.millis(0.99),
            p999: outcome.millis(0.999),
            most: outcome.millis(1.0),
            failures: outcome.failures,
            first_failure: outcome.first_failure.clone(),
            unsent: outcome.unsent,
            cpu: used.map(|(part, seconds)| (*part, per_request(*seconds))).collect(),
            idle: outcome.cpu.0.get("idle").map_or(0.0, |idle| (idle / wall).min(1.0)),
            orders: None,
        }
    }
}

impl Line {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), levels: Vec::new(), pgbench: Vec::new(), memory: None }
    }

    pub(crate) fn beside(&mut self, measured: Option<pgbench::Measured>) {
        self.pgbench.extend(measured.map(|measured| measured.rate));
    }

    /// The mean of pgbench before and after.
    pub(crate) fn pgbench_mean(&self) -> Option<f64> {
        let runs = as_f64(self.pgbench.len() as u64);
        (runs > 0.0).then(|| self.pgbench.iter().sum::<f64>() / runs)
    }

    /// The closed loop of 64 connections, otherwise the one with the highest throughput.
    pub(crate) fn typical(&self) -> Option<&Level> {
        let closed = || self.levels.iter().filter(|level| level.intended_rate.is_none());
        closed()
            .find(|level| level.connections == 64)
            .or_else(|| closed().max_by(|a, b| a.rate.total_cmp(&b.rate)))
    }
}

impl Report {
    /// `value` is the figure that the goal limits.
    pub(crate) fn ratio(
        &mut self,
        line: &str,
        measured: String,
        beside: String,
        (value, unit): (f64, &'static str),
        goal: &str,
    ) {
        self.ratios.push(Ratio {
            line: line.to_owned(),
            measured,
            beside,
            value,
            unit,
            goal: goal.to_owned(),
        });
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The tables, in Markdown.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        for (what, value) in &self.machine {
            let _ = writeln!(text, "* {what}: {value}");
        }
        let mut rows = vec![
            [
                "load",
                "at",
                "/s",
                "p50 ms",
                "p90 ms",
                "p99 ms",
                "max ms",
                "CPU µs: service",
                "PostgreSQL",
                "stub",
                "Kafka",
                "generator",
                "idle",
                "failed",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for line in &self.lines {
            rows.extend(line.levels.iter().map(|level| level.row(&line.name)));
        }
        let _ = write!(text, "\n{}\n", table(&rows));
        let mut rows =
            vec![["line", "measured", "compared with", "result", "goal"].map(str::to_owned).to_vec()];
        rows.extend(self.ratios.iter().map(Ratio::row));
        let _ = write!(text, "{}", table(&rows));
        for note in &self.notes {
            let _ = write!(text, "\n* {note}");
        }
        text
    }
}

impl Level {
    fn row(&self, line: &str) -> Vec<String> {
        let at = match self.intended_rate {
            None => format!("{} conn.", self.connections),
            Some(rate) => format!("{rate:.0}/s"),
        };
        let at = self.orders.map_or(at.clone(), |orders| format!("{} orders", count(orders)));
        let cpu =
            PARTS.map(|part| self.cpu.get(part).map_or("–".to_owned(), |micros| format!("{micros:.0}")));
        let failed = if self.unsent > 0 {
            format!("{} +{} unsent", self.failures, self.unsent)
        } else {
            self.failures.to_string()
        };
        let mut row = vec![line.to_owned(), at, format!("{:.0}", self.rate)];
        row.extend([self.p50, self.p90, self.p99, self.most].map(millis));
        row.extend(cpu);
        row.extend([format!("{:.0} %", self.idle * 100.0), failed]);
        row
    }
}

impl Ratio {
    fn row(&self) -> Vec<String> {
        let value = if self.unit.is_empty() {
            format!("{:.2}", self.value)
        } else {
            format!("{:.1} {}", self.value, self.unit)
        };
        vec![self.line.clone(), self.measured.clone(), self.beside.clone(), value, self.goal.clone()]
    }
}

pub(crate) fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{} k", number / 1000),
        _ => format!("{} M", number / 1_000_000),
    }
}

fn millis(millis: f64) -> String {
    if millis < 10.0 { format!("{millis:.2}") } else { format!("{millis:.0}") }
}

/// A Markdown table with aligned columns.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}
