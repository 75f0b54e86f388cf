//! The progress of the benchmark: a bar on a terminal, elsewhere one line per step.

use indicatif::{ProgressBar, ProgressStyle};

use crate::settings::Settings;

pub(crate) struct Progress {
    bar: ProgressBar,
    step: String,
}

impl Progress {
    pub(crate) fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Self { bar, step: String::new() }
    }

    pub(crate) fn step(&mut self, what: &str) {
        what.clone_into(&mut self.step);
        self.bar.set_message(what.to_owned());
    }

    pub(crate) fn tick(&self) {
        self.bar.tick();
    }

    pub(crate) fn done(&self, result: &str) {
        self.bar.inc(1);
        let line = format!("{}: {result}", self.step);
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The number of steps of the selected lines.
pub(crate) fn steps(settings: &Settings) -> u64 {
    let levels = settings.connections.len() as u64;
    let rates = if settings.rates.is_empty() { 4 } else { settings.rates.len() as u64 };
    let of = |line: &str| match line {
        "alone" if settings.baseline.is_some() => 4,
        "place" => levels + rates + 3,
        "key" | "read" | "list" | "confirm" => levels + 2,
        "payments" => 3,
        "size" => 5 * settings.sizes.len() as u64,
        _ => 1,
    };
    crate::settings::LINES.into_iter().filter(|line| settings.wants(line)).map(of).sum()
}
