//! The breaker as the look-ups of all placements share it: behind a lock that is never held across a wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Breaker, Outcome, Rules, State, Ticket};
use super::settings::ProductSettings;
use crate::metrics::BreakerCalls;

/// Permits attempts or refuses them, and logs when that changes.
pub(super) struct Gate {
    breaker: Mutex<Breaker>,
    open: Duration,
    calls: BreakerCalls,
}

/// The permission for one attempt.
///
/// Dropped without [`Pass::finish`] (its placement ended over another product, or was itself given up) it
/// counts as nothing, unless the attempt had used up its time: then that is a failure like any other.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    ticket: Option<Ticket>,
    due: Instant,
}

impl Gate {
    pub(super) fn new(settings: &ProductSettings, calls: BreakerCalls) -> Self {
        let rules = Rules {
            window: settings.breaker_window,
            failure_percent: settings.breaker_failure_percent,
            open: settings.breaker_open,
        };
        Self { breaker: Mutex::new(Breaker::new(rules)), open: rules.open, calls }
    }

    pub(super) fn state(&self) -> State {
        self.with(|breaker, now| breaker.state(now))
    }

    /// How long no attempt will be permitted, if that is so.
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.with(|breaker, now| breaker.remaining(now))
    }

    /// Permits an attempt that has to be over at `due`.
    pub(super) fn admit(&self, due: Instant) -> Option<Pass<'_>> {
        let Some(ticket) = self.with_change(Breaker::admit) else {
            self.calls.not_permitted.inc();
            return None;
        };
        Some(Pass { gate: self, ticket: Some(ticket), due })
    }

    /// Whether no attempt is permitted now, so that one need not wait for its turn to be refused.
    pub(super) fn refuses(&self) -> bool {
        let is_open = self.state() == State::Open;
        if is_open {
            self.calls.not_permitted.inc();
        }
        is_open
    }

    fn with<T>(&self, act: impl FnOnce(&mut Breaker, std::time::Instant) -> T) -> T {
        // Taken before the lock, time could run backwards between two of its holders.
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut breaker, Instant::now().into_std())
    }

    fn with_change<T>(&self, act: impl FnOnce(&mut Breaker, std::time::Instant) -> T) -> T {
        let (before, result, after) = self.with(|breaker, now| {
            let before = breaker.phase();
            (before, act(breaker, now), breaker.phase())
        });
        if before != after {
            self.log(after);
        }
        result
    }

    fn log(&self, state: State) {
        let open_ms = u64::try_from(self.open.as_millis()).unwrap_or(u64::MAX);
        match state {
            State::Open => {
                tracing::warn!(%state, open_ms, "too many product look-ups fail: refusing them for a while");
            }
            State::HalfOpen => tracing::info!(%state, "trying a few product look-ups"),
            State::Closed => tracing::info!(%state, "product look-ups work again"),
        }
    }
}

impl Pass<'_> {
    /// The attempt came to an end of its own.
    pub(super) fn finish(mut self, outcome: Outcome) {
        self.give_back(outcome);
    }

    fn give_back(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            let calls = &self.gate.calls;
            match outcome {
                Outcome::Success => &calls.successful,
                Outcome::Failure => &calls.failed,
                Outcome::Ignored => &calls.ignored,
            }
            .inc();
            self.gate.with_change(|breaker, now| breaker.record(ticket, outcome, now));
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let late = Instant::now() >= self.due;
        self.give_back(if late { Outcome::Failure } else { Outcome::Ignored });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        let mut settings = ProductSettings::new("http://shop".parse().unwrap());
        settings.breaker_window = 10;
        settings.breaker_open = Duration::ZERO;
        Gate::new(&settings, BreakerCalls::default())
    }

    fn half_open() -> Gate {
        let gate = gate();
        for _ in 0..5 {
            gate.admit(Instant::now()).unwrap().finish(Outcome::Failure);
        }
        assert_eq!(gate.state(), State::HalfOpen);
        gate
    }

    #[test]
    fn a_pass_that_is_dropped_in_time_frees_its_place_and_decides_nothing() {
        let gate = half_open();
        let due = Instant::now() + Duration::from_hours(1);
        for _ in 0..10 {
            let passes: Vec<_> = (0..Breaker::PERMITTED_CALLS).map(|_| gate.admit(due).unwrap()).collect();
            assert!(gate.admit(due).is_none());
            drop(passes);
        }
        gate.admit(due).unwrap().finish(Outcome::Success);
        assert_eq!(gate.state(), State::Closed);
    }

    #[test]
    fn a_pass_that_is_dropped_when_its_time_is_over_is_a_failure() {
        let gate = gate();
        let past = Instant::now();
        for _ in 0..5 {
            assert_eq!(gate.state(), State::Closed);
            drop(gate.admit(past).unwrap());
        }
        assert_eq!(gate.state(), State::HalfOpen, "opened, for no time at all");
    }
}
