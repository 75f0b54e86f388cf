//! The measured figures of one world, each with its bound.

use std::fmt::Display;
use std::time::Duration;

/// Prints each figure at once; [`finish`](Self::finish) fails the test if a bound was broken.
#[must_use = "finish it, or broken bounds go unnoticed"]
#[derive(Default)]
pub(super) struct Report {
    broken: Vec<String>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A figure without a bound.
    pub(super) fn note(what: &str, figure: impl Display) {
        print(&format!("{what}: {figure}"));
    }

    pub(super) fn at_most<T: PartialOrd + Display + Copy>(&mut self, what: &str, figure: T, bound: T) {
        self.check(figure <= bound, &format!("{what}: {figure} (bound: at most {bound})"));
    }

    pub(super) fn at_least<T: PartialOrd + Display + Copy>(&mut self, what: &str, figure: T, bound: T) {
        self.check(figure >= bound, &format!("{what}: {figure} (bound: at least {bound})"));
    }

    /// A time with `bound` as its maximum.
    pub(super) fn within(&mut self, what: &str, time: Duration, bound: Duration) {
        let [shown, limit] = [time, bound].map(|time| format!("{:.1} ms", time.as_secs_f64() * 1e3));
        self.check(time <= bound, &format!("{what}: {shown} (bound: at most {limit})"));
    }

    fn check(&mut self, is_kept: bool, line: &str) {
        print(&format!("{line}{}", if is_kept { "" } else { " BROKEN" }));
        if !is_kept {
            self.broken.push(line.to_owned());
        }
    }

    pub(super) fn finish(self) {
        assert!(self.broken.is_empty(), "bounds are broken: {:#?}", self.broken);
    }
}

#[expect(clippy::print_stdout, reason = "the report is what the proof is for")]
fn print(line: &str) {
    println!("size: {line}");
}

#[test]
#[should_panic(expected = "rows: 5 (bound: at most 4)")]
fn a_broken_bound_fails_the_test_at_the_end() {
    let mut report = Report::new();
    report.at_most("rows", 5, 4);
    report.within("time", Duration::from_millis(1), Duration::from_millis(2));
    report.finish();
}
