//! One promise: its number of trials, and its violations.

use std::fmt;

pub(super) struct Promise {
    broken_as: &'static str,
    trials: usize,
    breaches: Vec<String>,
}

impl Promise {
    /// `broken_as` names the violation.
    pub(super) fn no(broken_as: &'static str) -> Self {
        Self { broken_as, trials: 0, breaches: Vec::new() }
    }

    /// Records one trial; `breach` describes a violation.
    pub(super) fn try_out(&mut self, is_kept: bool, breach: impl FnOnce() -> String) {
        self.trials += 1;
        if !is_kept {
            self.breaches.push(breach());
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.breaches.is_empty()
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const EXAMPLES: usize = 3;
        write!(f, "{}: {} of {}", self.broken_as, self.breaches.len(), self.trials)?;
        if !self.is_kept() {
            let examples = &self.breaches[..self.breaches.len().min(EXAMPLES)];
            return write!(f, " BROKEN: {}", examples.join("; "));
        }
        // The rule of three: zero failures in N trials bound the rate at 3/N with 95 % confidence.
        match 300.0 / f64::from(u32::try_from(self.trials).unwrap()) {
            percent if percent < 100.0 => write!(f, " (< {} % at 95 %)", rounded(percent)),
            _ => Ok(()),
        }
    }
}

/// Two significant digits.
fn rounded(percent: f64) -> String {
    let decimals = (0..8).find(|decimals| percent * 10_f64.powi(*decimals) >= 10.0).unwrap_or(8);
    format!("{percent:.*}", usize::try_from(decimals).unwrap())
}

#[test]
fn a_line_shows_the_bound_or_the_violations() {
    let mut kept = Promise::no("orders missing");
    (0..5_432).for_each(|_| kept.try_out(true, String::new));
    assert_eq!(kept.to_string(), "orders missing: 0 of 5432 (< 0.055 % at 95 %)");
    let mut broken = Promise::no("orders missing");
    broken.try_out(false, || "one".to_owned());
    assert_eq!(broken.to_string(), "orders missing: 1 of 1 BROKEN: one");
}
