//! The breaker on a clock that the test moves.

use proptest::prelude::*;

use super::*;

const OPEN: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_hours(1);

fn breaker(window: usize, failure_percent: u8) -> CircuitBreaker {
    CircuitBreaker::new(BreakerSettings { window, failure_percent, open: OPEN }, BreakerCalls::default())
}

/// A permit whose deadline does not pass during the test.
fn acquire(breaker: &CircuitBreaker, now: Instant) -> Option<Permit<'_>> {
    breaker.acquire(now, Instant::now() + HOUR)
}

fn call(breaker: &CircuitBreaker, result: CallResult, now: Instant) {
    acquire(breaker, now).unwrap().record(now, result);
}

fn opened(now: Instant) -> CircuitBreaker {
    let breaker = breaker(10, 50);
    for _ in 0..5 {
        call(&breaker, CallResult::Failure, now);
    }
    assert_eq!(breaker.state(now), State::Open);
    breaker
}

#[test]
fn the_breaker_opens_exactly_when_the_failure_rate_is_reached() {
    let now = Instant::now();
    let breaker = breaker(10, 50);
    for result in [CallResult::Success; 5].into_iter().chain([CallResult::Failure; 4]) {
        call(&breaker, result, now);
    }
    assert_eq!(breaker.state(now), State::Closed);
    call(&breaker, CallResult::Failure, now);
    assert_eq!(breaker.state(now), State::Open);
}

#[test]
fn a_few_failures_do_not_open_the_breaker() {
    let now = Instant::now();
    for (window, enough) in [(100, 50), (10, 5), (6, 5), (3, 3), (1, 1)] {
        let breaker = breaker(window, 50);
        for _ in 1..enough {
            call(&breaker, CallResult::Failure, now);
        }
        assert_eq!(breaker.state(now), State::Closed, "window {window}");
        call(&breaker, CallResult::Failure, now);
        assert_eq!(breaker.state(now), State::Open, "window {window}");
    }
}

#[test]
fn the_window_contains_only_the_latest_results() {
    let now = Instant::now();
    let breaker = breaker(10, 50);
    for _ in 0..100 {
        for result in [CallResult::Success, CallResult::Success, CallResult::Failure] {
            call(&breaker, result, now);
        }
    }
    assert_eq!(breaker.state(now), State::Closed);
    let machine = breaker.machine.lock().unwrap();
    let Phase::Closed(window) = &machine.phase else { panic!("{machine:?}") };
    assert_eq!(window.failed.len(), 10);
    assert_eq!(window.failures, window.failed.iter().filter(|failed| **failed).count());
}

#[test]
fn ignored_results_do_not_count() {
    let now = Instant::now();
    let breaker = breaker(10, 50);
    for _ in 0..100 {
        call(&breaker, CallResult::Ignored, now);
    }
    for _ in 0..4 {
        call(&breaker, CallResult::Failure, now);
    }
    assert_eq!(breaker.state(now), State::Closed);
}

#[test]
fn a_failure_rate_above_100_percent_keeps_the_breaker_closed() {
    let now = Instant::now();
    let breaker = breaker(10, 101);
    for _ in 0..100 {
        call(&breaker, CallResult::Failure, now);
    }
    assert_eq!(breaker.state(now), State::Closed);
}

#[test]
fn an_open_breaker_refuses_calls_and_returns_the_remaining_time() {
    let now = Instant::now();
    let breaker = opened(now);
    assert_eq!(breaker.remaining(now), Some(OPEN));
    let later = now + Duration::from_millis(4_999);
    assert_eq!(breaker.remaining(later), Some(Duration::from_millis(1)));
    assert!(acquire(&breaker, later).is_none());
    assert_eq!(breaker.state(now + OPEN), State::HalfOpen);
    assert_eq!(breaker.remaining(now + OPEN), None);
}

#[test]
fn a_half_open_breaker_permits_a_few_concurrent_calls() {
    let now = Instant::now();
    let (breaker, later) = (opened(now), now + OPEN);
    let permits: Vec<_> =
        (0..CircuitBreaker::PERMITTED_CALLS).map(|_| acquire(&breaker, later).unwrap()).collect();
    assert!(acquire(&breaker, later).is_none());
    let mut released = Vec::new();
    for permit in permits {
        permit.record(later, CallResult::Ignored);
        assert_eq!(breaker.state(later), State::HalfOpen);
        released.push(acquire(&breaker, later).expect("an ignored call frees its permit"));
    }
}

#[test]
fn a_success_closes_the_breaker_with_an_empty_window() {
    let now = Instant::now();
    let (breaker, later) = (opened(now), now + OPEN);
    call(&breaker, CallResult::Success, later);
    assert_eq!(breaker.state(later), State::Closed);
    for _ in 0..4 {
        call(&breaker, CallResult::Failure, later);
    }
    assert_eq!(breaker.state(later), State::Closed);
}

#[test]
fn a_failed_probe_opens_the_breaker_again_for_the_full_time() {
    let now = Instant::now();
    let (breaker, later) = (opened(now), now + OPEN);
    call(&breaker, CallResult::Failure, later);
    assert_eq!(breaker.state(later), State::Open);
    assert_eq!(breaker.remaining(later), Some(OPEN));
}

#[test]
fn results_of_an_earlier_period_are_ignored() {
    let start = Instant::now();
    let breaker = breaker(10, 50);
    let [old_success, old_failure] = [(); 2].map(|()| acquire(&breaker, start).unwrap());
    for _ in 0..5 {
        call(&breaker, CallResult::Failure, start);
    }
    old_success.record(start, CallResult::Success);
    assert_eq!(breaker.state(start), State::Open);

    let later = start + OPEN;
    let [probe, other] = [(); 2].map(|()| acquire(&breaker, later).unwrap());
    old_failure.record(later, CallResult::Failure);
    assert_eq!(breaker.state(later), State::HalfOpen);
    probe.record(later, CallResult::Success);
    other.record(later, CallResult::Failure);
    assert_eq!(breaker.state(later), State::Closed);
}

#[test]
fn a_permit_dropped_before_its_deadline_is_released_without_a_result() {
    let now = Instant::now();
    let (breaker, later) = (opened(now), now + OPEN);
    for _ in 0..10 {
        let permits: Vec<_> =
            (0..CircuitBreaker::PERMITTED_CALLS).map(|_| acquire(&breaker, later).unwrap()).collect();
        assert!(acquire(&breaker, later).is_none());
        drop(permits);
    }
    call(&breaker, CallResult::Success, later);
    assert_eq!(breaker.state(later), State::Closed);
}

#[test]
fn a_permit_dropped_after_its_deadline_counts_as_a_failure() {
    let (breaker, past) = (breaker(10, 50), Instant::now());
    for _ in 0..5 {
        assert_eq!(breaker.state(past), State::Closed);
        drop(breaker.acquire(past, past).unwrap());
    }
    assert_eq!(breaker.state(past), State::Open);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Acquire,
    End(usize, CallResult),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let result = prop_oneof![Just(CallResult::Success), Just(CallResult::Failure), Just(CallResult::Ignored)];
    let step = prop_oneof![
        1 => (0_u64..6_000).prop_map(Step::Wait),
        6 => Just(Step::Acquire),
        6 => (any::<usize>(), result).prop_map(|(index, result)| Step::End(index, result)),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn after_any_calls_an_open_breaker_refuses_and_can_close_again(steps in steps()) {
        let mut now = Instant::now();
        let breaker = breaker(10, 50);
        let mut permits: Vec<Permit<'_>> = Vec::new();
        for step in steps {
            let before = breaker.state(now);
            match step {
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Acquire => {
                    let permit = acquire(&breaker, now);
                    prop_assert!(before != State::Open || permit.is_none());
                    prop_assert!(before != State::Closed || permit.is_some());
                    permits.extend(permit);
                }
                Step::End(index, result) if !permits.is_empty() => {
                    permits.swap_remove(index % permits.len()).record(now, result);
                }
                Step::End(..) => {}
            }
            let machine = breaker.machine.lock().unwrap();
            if let Phase::HalfOpen { calls } = machine.phase {
                let probes = permits.iter().filter(|permit| permit.period == Some(machine.period)).count();
                prop_assert_eq!(probes, calls as usize);
                prop_assert!(calls <= CircuitBreaker::PERMITTED_CALLS);
            }
        }
        for permit in permits {
            permit.record(now, CallResult::Ignored);
        }
        now += OPEN;
        call(&breaker, CallResult::Success, now);
        prop_assert_eq!(breaker.state(now), State::Closed);
    }
}
