//! The breaker without a clock.

use proptest::prelude::*;

use super::*;

const OPEN: Duration = Duration::from_secs(5);

fn breaker(window: usize, failure_percent: u8) -> Breaker {
    Breaker::new(Rules { window, failure_percent, open: OPEN })
}

fn call(breaker: &mut Breaker, outcome: Outcome, now: Instant) {
    let ticket = breaker.admit(now).unwrap();
    breaker.record(ticket, outcome, now);
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = breaker(10, 50);
    for _ in 0..5 {
        call(&mut breaker, Outcome::Failure, now);
    }
    assert_eq!(breaker.state(now), State::Open);
    breaker
}

#[test]
fn it_opens_when_the_share_of_failures_is_reached_and_not_before() {
    let now = Instant::now();
    let mut breaker = breaker(10, 50);
    for outcome in [Outcome::Success; 5].into_iter().chain([Outcome::Failure; 4]) {
        call(&mut breaker, outcome, now);
    }
    assert_eq!(breaker.state(now), State::Closed);
    call(&mut breaker, Outcome::Failure, now);
    assert_eq!(breaker.state(now), State::Open);
}

#[test]
fn a_few_failures_alone_do_not_open_it() {
    let now = Instant::now();
    for (window, enough) in [(100, 50), (10, 5), (6, 5), (3, 3), (1, 1)] {
        let mut breaker = breaker(window, 50);
        for _ in 1..enough {
            call(&mut breaker, Outcome::Failure, now);
        }
        assert_eq!(breaker.state(now), State::Closed, "window {window}");
        call(&mut breaker, Outcome::Failure, now);
        assert_eq!(breaker.state(now), State::Open, "window {window}");
    }
}

#[test]
fn failures_leave_the_window_after_as_many_calls_as_it_holds() {
    let now = Instant::now();
    let mut breaker = breaker(10, 50);
    for _ in 0..100 {
        for outcome in [Outcome::Success, Outcome::Success, Outcome::Failure] {
            call(&mut breaker, outcome, now);
        }
    }
    assert_eq!(breaker.state(now), State::Closed);
    let Phase::Closed(window) = &breaker.phase else { panic!("{breaker:?}") };
    assert_eq!(window.failed.len(), 10);
    assert_eq!(window.failures, window.failed.iter().filter(|failed| **failed).count());
}

#[test]
fn what_was_given_up_counts_as_nothing() {
    let now = Instant::now();
    let mut breaker = breaker(10, 50);
    for _ in 0..100 {
        call(&mut breaker, Outcome::Ignored, now);
    }
    for _ in 0..4 {
        call(&mut breaker, Outcome::Failure, now);
    }
    assert_eq!(breaker.state(now), State::Closed);
}

#[test]
fn a_share_above_100_percent_keeps_it_closed() {
    let now = Instant::now();
    let mut breaker = breaker(10, 101);
    for _ in 0..100 {
        call(&mut breaker, Outcome::Failure, now);
    }
    assert_eq!(breaker.state(now), State::Closed);
}

#[test]
fn while_open_it_refuses_and_says_for_how_long() {
    let now = Instant::now();
    let mut breaker = opened(now);
    assert_eq!(breaker.remaining(now), Some(OPEN));
    let later = now + Duration::from_millis(4_999);
    assert_eq!(breaker.remaining(later), Some(Duration::from_millis(1)));
    assert!(breaker.admit(later).is_none());
    assert_eq!(breaker.state(now + OPEN), State::HalfOpen);
    assert_eq!(breaker.remaining(now + OPEN), None);
}

#[test]
fn half_open_permits_a_few_calls_at_once() {
    let now = Instant::now();
    let (mut breaker, later) = (opened(now), now + OPEN);
    let tickets: Vec<_> = (0..Breaker::PERMITTED_CALLS).map(|_| breaker.admit(later).unwrap()).collect();
    assert!(breaker.admit(later).is_none());
    for ticket in tickets {
        breaker.record(ticket, Outcome::Ignored, later);
        assert_eq!(breaker.state(later), State::HalfOpen);
        assert!(breaker.admit(later).is_some(), "the place of a call that was given up is free again");
    }
}

#[test]
fn a_success_closes_it_with_a_clean_slate() {
    let now = Instant::now();
    let (mut breaker, later) = (opened(now), now + OPEN);
    call(&mut breaker, Outcome::Success, later);
    assert_eq!(breaker.state(later), State::Closed);
    for _ in 0..4 {
        call(&mut breaker, Outcome::Failure, later);
    }
    assert_eq!(breaker.state(later), State::Closed);
}

#[test]
fn a_failure_opens_it_again_for_the_whole_time() {
    let now = Instant::now();
    let (mut breaker, later) = (opened(now), now + OPEN);
    call(&mut breaker, Outcome::Failure, later);
    assert_eq!(breaker.state(later), State::Open);
    assert_eq!(breaker.remaining(later), Some(OPEN));
}

#[test]
fn an_outcome_of_an_earlier_phase_decides_nothing() {
    let start = Instant::now();
    let mut breaker = breaker(10, 50);
    let [old_success, old_failure] = [(); 2].map(|()| breaker.admit(start).unwrap());
    for _ in 0..5 {
        call(&mut breaker, Outcome::Failure, start);
    }
    breaker.record(old_success, Outcome::Success, start);
    assert_eq!(breaker.state(start), State::Open);

    let later = start + OPEN;
    let [probe, other] = [(); 2].map(|()| breaker.admit(later).unwrap());
    breaker.record(old_failure, Outcome::Failure, later);
    assert_eq!(breaker.state(later), State::HalfOpen);
    breaker.record(probe, Outcome::Success, later);
    breaker.record(other, Outcome::Failure, later);
    assert_eq!(breaker.state(later), State::Closed);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Admit,
    End(usize, Outcome),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![Just(Outcome::Success), Just(Outcome::Failure), Just(Outcome::Ignored)];
    let step = prop_oneof![
        1 => (0_u64..6_000).prop_map(Step::Wait),
        6 => Just(Step::Admit),
        6 => (any::<usize>(), outcome).prop_map(|(index, outcome)| Step::End(index, outcome)),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn whatever_happens_it_refuses_while_open_and_can_always_close_again(steps in steps()) {
        let mut now = Instant::now();
        let mut breaker = breaker(10, 50);
        let mut tickets: Vec<Ticket> = Vec::new();
        for step in steps {
            let before = breaker.state(now);
            match step {
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Admit => {
                    let ticket = breaker.admit(now);
                    prop_assert!(before != State::Open || ticket.is_none());
                    prop_assert!(before != State::Closed || ticket.is_some());
                    tickets.extend(ticket);
                }
                Step::End(index, outcome) if !tickets.is_empty() => {
                    let ticket = tickets.swap_remove(index % tickets.len());
                    breaker.record(ticket, outcome, now);
                }
                Step::End(..) => {}
            }
            let probes = tickets.iter().filter(|ticket| ticket.period == breaker.period).count();
            if let Phase::HalfOpen { calls } = breaker.phase {
                prop_assert_eq!(probes, calls as usize);
                prop_assert!(calls <= Breaker::PERMITTED_CALLS);
            }
        }
        for ticket in tickets {
            breaker.record(ticket, Outcome::Ignored, now);
        }
        now += OPEN;
        call(&mut breaker, Outcome::Success, now);
        prop_assert_eq!(breaker.state(now), State::Closed);
    }
}
