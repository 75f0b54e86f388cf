//! The circuit breaker as a pure state machine: it is told the time, and neither waits nor locks.
//!
//! The words are Resilience4j's: closed, open, half-open, permitted calls.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// Where the breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls go through.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls go through to see whether the others can.
    HalfOpen,
}

impl State {
    /// The word in a readiness answer or a log line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a permitted call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failure,
    /// It was given up for reasons that say nothing of the Product Service.
    Ignored,
}

/// The permission for one call, given back by [`Breaker::record`].
#[derive(Debug)]
pub(super) struct Ticket {
    period: u64,
}

/// When the breaker opens and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) window: usize,
    pub(super) failure_percent: u8,
    pub(super) open: Duration,
}

#[derive(Debug)]
pub(super) struct Breaker {
    rules: Rules,
    phase: Phase,
    /// Counts the phases. What was permitted in an earlier one says nothing of this one.
    period: u64,
}

#[derive(Debug)]
enum Phase {
    Closed(Window),
    Open { until: Instant },
    HalfOpen { calls: u32 },
}

/// The latest outcomes, oldest first; true is a failure.
#[derive(Debug, Default)]
struct Window {
    failed: VecDeque<bool>,
    failures: usize,
}

impl Breaker {
    /// How many calls are under way at once while half-open.
    pub(super) const PERMITTED_CALLS: u32 = 3;
    /// So few outcomes are no reason to open, in whatever window.
    const FEWEST_OUTCOMES: usize = 5;

    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, phase: Phase::Closed(Window::default()), period: 0 }
    }

    /// The state that a call would find now.
    pub(super) fn state(&self, now: Instant) -> State {
        match self.phase {
            Phase::Closed(_) => State::Closed,
            Phase::Open { until } if now < until => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// The state as of the latest event, whatever the time is.
    pub(super) fn phase(&self) -> State {
        match self.phase {
            Phase::Closed(_) => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// How long it stays open, or nothing when it is not.
    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Open { until } => until.checked_duration_since(now).filter(|left| !left.is_zero()),
            Phase::Closed(_) | Phase::HalfOpen { .. } => None,
        }
    }

    /// Permits a call, or refuses it.
    pub(super) fn admit(&mut self, now: Instant) -> Option<Ticket> {
        if let Phase::Open { until } = self.phase
            && now >= until
        {
            self.enter(Phase::HalfOpen { calls: 0 });
        }
        match &mut self.phase {
            Phase::Closed(_) => {}
            Phase::HalfOpen { calls } if *calls < Self::PERMITTED_CALLS => *calls += 1,
            Phase::Open { .. } | Phase::HalfOpen { .. } => return None,
        }
        Some(Ticket { period: self.period })
    }

    /// Takes note of how a permitted call ended.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one outcome")]
    pub(super) fn record(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        if ticket.period != self.period {
            return;
        }
        match (&mut self.phase, outcome) {
            (Phase::Closed(window), Outcome::Success) => window.push(false, self.rules.window),
            (Phase::Closed(window), Outcome::Failure) => {
                window.push(true, self.rules.window);
                if window.is_bad(self.rules) {
                    self.open(now);
                }
            }
            (Phase::HalfOpen { .. }, Outcome::Success) => self.enter(Phase::Closed(Window::default())),
            (Phase::HalfOpen { .. }, Outcome::Failure) => self.open(now),
            (Phase::HalfOpen { calls }, Outcome::Ignored) => *calls = calls.saturating_sub(1),
            (Phase::Closed(_), Outcome::Ignored) | (Phase::Open { .. }, _) => {}
        }
    }

    fn open(&mut self, now: Instant) {
        self.enter(Phase::Open { until: now + self.rules.open });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.period += 1;
    }
}

impl Window {
    fn push(&mut self, failed: bool, size: usize) {
        if self.failed.len() >= size
            && let Some(oldest) = self.failed.pop_front()
        {
            self.failures -= usize::from(oldest);
        }
        self.failed.push_back(failed);
        self.failures += usize::from(failed);
    }

    fn is_bad(&self, rules: Rules) -> bool {
        let enough = (rules.window / 2).max(Breaker::FEWEST_OUTCOMES).min(rules.window);
        let outcomes = self.failed.len();
        outcomes >= enough && self.failures * 100 >= usize::from(rules.failure_percent) * outcomes
    }
}

#[cfg(test)]
mod tests;
