//! The circuit breaker of the product look-ups, in Resilience4j's terms: closed, open, half-open, permitted calls.
//!
//! Every call needs a [`Permit`] and reports its result through it. No lock is held while a call waits.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use strum::{Display, IntoStaticStr};
use tokio::time::Instant;

use crate::metrics::BreakerCalls;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum State {
    /// All calls are permitted.
    Closed,
    /// No call is permitted.
    Open,
    /// A few calls are permitted, as probes.
    HalfOpen,
}

impl State {
    /// The name of the state in the readiness answer and in log lines.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// How a permitted call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallResult {
    Success,
    Failure,
    /// The result says nothing about the health of the Product Service.
    Ignored,
}

/// When the breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerSettings {
    /// The number of latest calls from which the breaker computes the failure rate.
    pub window: usize,
    /// The failure rate that opens the breaker, in percent. More than 100 keeps it closed.
    pub failure_percent: u8,
    /// How long the breaker stays open.
    pub open: Duration,
}

/// Permits calls while they mostly succeed.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    settings: BreakerSettings,
    machine: Mutex<StateMachine>,
    calls: BreakerCalls,
}

/// The permission for one call.
///
/// A permit that is dropped without a result counts as [`CallResult::Ignored`], or as [`CallResult::Failure`]
/// when the deadline of the call has passed.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    breaker: &'a CircuitBreaker,
    deadline: Instant,
    /// The period in which the call was permitted. `None` after its result was recorded.
    period: Option<u64>,
}

#[derive(Debug)]
struct StateMachine {
    phase: Phase,
    /// Counts the changes of the phase. Results of calls from an earlier period are ignored.
    period: u64,
}

#[derive(Debug)]
enum Phase {
    Closed(Window),
    Open { until: Instant },
    HalfOpen { calls: u32 },
}

/// The latest results, oldest first; true is a failure.
#[derive(Debug, Default)]
struct Window {
    failed: VecDeque<bool>,
    failures: usize,
}

impl CircuitBreaker {
    /// How many calls may be in flight at once while the breaker is half-open.
    pub(super) const PERMITTED_CALLS: u32 = 3;
    /// Fewer results than this never open the breaker, for any size of the window.
    const MIN_RESULTS: usize = 5;

    pub(super) fn new(settings: BreakerSettings, calls: BreakerCalls) -> Self {
        let machine = StateMachine { phase: Phase::Closed(Window::default()), period: 0 };
        Self { settings, machine: Mutex::new(machine), calls }
    }

    /// The state that a call would meet now.
    pub(super) fn state(&self, now: Instant) -> State {
        self.update(|machine| match machine.phase {
            Phase::Open { until } if now >= until => State::HalfOpen,
            _ => machine.phase.state(),
        })
    }

    /// How long the breaker stays open. `None` if it is not open.
    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        self.update(|machine| match machine.phase {
            Phase::Open { until } => until.checked_duration_since(now).filter(|left| !left.is_zero()),
            Phase::Closed(_) | Phase::HalfOpen { .. } => None,
        })
    }

    /// Permits a call that must end by `deadline`, or refuses it.
    pub(super) fn acquire(&self, now: Instant, deadline: Instant) -> Option<Permit<'_>> {
        let Some(period) = self.update(|machine| machine.acquire(now)) else {
            self.calls.not_permitted.inc();
            return None;
        };
        Some(Permit { breaker: self, deadline, period: Some(period) })
    }

    /// Whether the breaker is open, so that a call need not wait for its refusal. If so, counts the call as not
    /// permitted.
    pub(super) fn refuses(&self) -> bool {
        let is_open = self.state(Instant::now()) == State::Open;
        if is_open {
            self.calls.not_permitted.inc();
        }
        is_open
    }

    /// Runs `act` under the lock, and logs a change of the state after it is released.
    fn update<T>(&self, act: impl FnOnce(&mut StateMachine) -> T) -> T {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let before = machine.period;
        let result = act(&mut machine);
        let changed = (machine.period != before).then(|| machine.phase.state());
        drop(machine);
        if let Some(state) = changed {
            self.log(state);
        }
        result
    }

    fn log(&self, state: State) {
        let open_ms = u64::try_from(self.settings.open.as_millis()).unwrap_or(u64::MAX);
        match state {
            State::Open => {
                tracing::warn!(%state, open_ms, "circuit breaker opened: too many product look-ups fail");
            }
            State::HalfOpen => {
                tracing::info!(%state, "circuit breaker half-open: probing the Product Service");
            }
            State::Closed => tracing::info!(%state, "circuit breaker closed: product look-ups work again"),
        }
    }
}

impl Permit<'_> {
    /// Records how the call ended.
    pub(super) fn record(mut self, now: Instant, result: CallResult) {
        self.release(now, result);
    }

    fn release(&mut self, now: Instant, result: CallResult) {
        if let Some(period) = self.period.take() {
            let calls = &self.breaker.calls;
            let counter = match result {
                CallResult::Success => &calls.successful,
                CallResult::Failure => &calls.failed,
                CallResult::Ignored => &calls.ignored,
            };
            counter.inc();
            self.breaker.update(|machine| machine.record(period, result, now, self.breaker.settings));
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.release(now, if now >= self.deadline { CallResult::Failure } else { CallResult::Ignored });
    }
}

impl StateMachine {
    /// The period of a permitted call. `None` if the call is refused.
    fn acquire(&mut self, now: Instant) -> Option<u64> {
        if let Phase::Open { until } = self.phase
            && now >= until
        {
            self.enter(Phase::HalfOpen { calls: 0 });
        }
        match &mut self.phase {
            Phase::Closed(_) => {}
            Phase::HalfOpen { calls } if *calls < CircuitBreaker::PERMITTED_CALLS => *calls += 1,
            Phase::Open { .. } | Phase::HalfOpen { .. } => return None,
        }
        Some(self.period)
    }

    fn record(&mut self, period: u64, result: CallResult, now: Instant, settings: BreakerSettings) {
        if period != self.period {
            return;
        }
        let open = Phase::Open { until: now + settings.open };
        match (&mut self.phase, result) {
            (Phase::Closed(window), CallResult::Success) => window.push(false, settings.window),
            (Phase::Closed(window), CallResult::Failure) => {
                window.push(true, settings.window);
                if window.exceeds(settings) {
                    self.enter(open);
                }
            }
            (Phase::HalfOpen { .. }, CallResult::Success) => self.enter(Phase::Closed(Window::default())),
            (Phase::HalfOpen { .. }, CallResult::Failure) => self.enter(open),
            (Phase::HalfOpen { calls }, CallResult::Ignored) => *calls = calls.saturating_sub(1),
            (Phase::Closed(_), CallResult::Ignored) | (Phase::Open { .. }, _) => {}
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.period += 1;
    }
}

impl Phase {
    fn state(&self) -> State {
        match self {
            Self::Closed(_) => State::Closed,
            Self::Open { .. } => State::Open,
            Self::HalfOpen { .. } => State::HalfOpen,
        }
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

    /// Whether the failure rate is reached, over at least half a window of results.
    fn exceeds(&self, settings: BreakerSettings) -> bool {
        let enough = (settings.window / 2).max(CircuitBreaker::MIN_RESULTS).min(settings.window);
        let results = self.failed.len();
        results >= enough && self.failures * 100 >= usize::from(settings.failure_percent) * results
    }
}

#[cfg(test)]
mod tests;
