use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const MY_CLAIM: Uuid = Uuid::from_u128(1);
const ANOTHER_CLAIM: Uuid = Uuid::from_u128(2);
const HONOURED: CallRules = CallRules {
    key_is_honoured: true,
    key_ttl: Duration::from_hours(20),
    refusal_retries: 2,
    at_once: 3,
    now: DateTime::UNIX_EPOCH,
};
const NOT_HONOURED: CallRules = CallRules { key_is_honoured: false, ..HONOURED };

fn job(lines: i16) -> StockJob {
    let line = |number| StockLine {
        number,
        product_id: ProductId::parse(&format!("P{number}")).unwrap(),
        quantity: Quantity::new(1).unwrap(),
        state: LineState::Todo,
        last_error: None,
        sent_at: None,
    };
    StockJob {
        order: OrderId::generate(),
        attempt: 1,
        state: JobState::Taking,
        paid: false,
        parked: None,
        failures: 0,
        refusals: 0,
        actor: Actor::system(),
        reason: None,
        trace: TraceParent::continue_or_start(None),
        waits: false,
        holder: Some(MY_CLAIM),
        lines: (1..=lines).map(line).collect(),
    }
}

/// A Product Service that honours keys, and may lose answers or lack stock of some products.
#[derive(Default)]
struct Book {
    applied: HashSet<String>,
    stock_of: HashMap<i16, i32>,
    short: HashSet<i16>,
}

impl Book {
    fn call(&mut self, call: &StockCall, fate: u8) -> CallOutcome {
        if fate == 0 {
            return CallOutcome::NotSent("down".into());
        }
        let known = self.applied.contains(&call.idempotency_key);
        let taking = call.direction == Direction::Take;
        if taking && !known && self.short.contains(&call.line) {
            return if fate == 1 {
                CallOutcome::Unknown("lost".into())
            } else {
                CallOutcome::Refused("short".into())
            };
        }
        if self.applied.insert(call.idempotency_key.clone()) {
            *self.stock_of.entry(call.line).or_default() += if taking { -1 } else { 1 };
        }
        if fate == 1 { CallOutcome::Unknown("lost".into()) } else { CallOutcome::Done }
    }
}

/// Runs the job until it ends. `fates` decide which answers and recorded outcomes are lost.
fn run(job: &mut StockJob, book: &mut Book, fates: &[u8], cancel_at: Option<usize>) {
    // The default limit: these refusals are confirmed and must not park the other lines.
    let rules = CallRules { refusal_retries: 20, ..HONOURED };
    let mut fates = fates.iter().copied().chain(std::iter::repeat(9));
    for step in 0..200 {
        if cancel_at == Some(step) && job.state != JobState::Returned {
            job.give_back();
        }
        let calls = job.next_calls(rules);
        let outcomes: Vec<_> = calls.iter().map(|call| book.call(call, fates.next().unwrap())).collect();
        // A crash between the calls and the recording: the outcomes are lost.
        if fates.next() != Some(2) {
            for (call, outcome) in calls.iter().zip(&outcomes) {
                job.record(call, outcome, MY_CLAIM);
            }
        }
        match job.verdict() {
            Verdict::Unfinished => {}
            Verdict::AllTaken => job.state = JobState::Taken,
            Verdict::Refused => job.give_back(),
            Verdict::AllReturned => job.state = JobState::Returned,
        }
        if job.state == JobState::Returned
            || (job.state == JobState::Taken && cancel_at.is_none_or(|at| at < step))
        {
            return;
        }
    }
    panic!("the job never ended: {job:?}");
}

proptest! {
    #[test]
    fn all_lines_are_taken_once_or_none_despite_lost_messages(
        lines in 1_i16..6,
        short in prop::collection::hash_set(1_i16..6, 0..3),
        fates in prop::collection::vec(0_u8..6, 0..60),
        cancel_at in prop::option::of(0_usize..6),
    ) {
        let (mut job, mut book) = (job(lines), Book { short, ..Book::default() });
        run(&mut job, &mut book, &fates, cancel_at);
        let taken: Vec<i32> = (1..=lines).map(|line| book.stock_of.get(&line).copied().unwrap_or_default()).collect();
        match job.state {
            JobState::Taken => prop_assert!(taken.iter().all(|moved| *moved == -1), "{:?}", taken),
            JobState::Returned => prop_assert!(taken.iter().all(|moved| *moved == 0), "{:?}", taken),
            other => prop_assert!(false, "ended as {:?}", other),
        }
    }
}

#[test]
fn without_honoured_keys_a_call_that_may_have_been_sent_is_parked_and_never_repeated() {
    let mut job = job(2);
    assert_eq!(job.next_calls(NOT_HONOURED).len(), 2);
    let calls = job.next_calls(NOT_HONOURED);
    assert_eq!(calls, []);
    assert!(job.parked.is_some_and(|why| why.contains("line 1")));
}

#[test]
fn a_call_that_was_never_sent_is_repeated_even_without_honoured_keys() {
    let mut job = job(1);
    let calls = job.next_calls(NOT_HONOURED);
    job.record(&calls[0], &CallOutcome::NotSent("refused connection".into()), MY_CLAIM);
    assert_eq!(job.next_calls(NOT_HONOURED), calls);
    assert_eq!(job.parked, None);
}

#[test]
fn an_expired_claim_can_prove_that_stock_was_taken_but_not_the_opposite() {
    let mut job = job(1);
    let calls = job.next_calls(HONOURED);
    job.record(&calls[0], &CallOutcome::Refused("short".into()), ANOTHER_CLAIM);
    assert_eq!(job.lines[0].state, LineState::Taking);
    job.record(&calls[0], &CallOutcome::Done, ANOTHER_CLAIM);
    assert_eq!(job.lines[0].state, LineState::Taken);
}

#[test]
fn repeats_of_a_call_share_its_key_and_different_calls_have_different_keys() {
    let mut taking = job(2);
    let first = taking.next_calls(HONOURED);
    let again = taking.next_calls(HONOURED);
    let keys =
        |calls: &[StockCall]| calls.iter().map(|call| call.idempotency_key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&first), keys(&again));
    let mut second = StockJob { attempt: 2, ..job(2) };
    second.order = taking.order;
    let other = second.next_calls(HONOURED);
    let all: HashSet<_> = keys(&first).into_iter().chain(keys(&other)).collect();
    assert_eq!(all.len(), 4);
}

#[test]
fn stock_that_the_product_service_refuses_to_take_back_is_parked() {
    let mut job = job(1);
    job.state = JobState::Returning;
    job.lines[0].state = LineState::Taken;
    let calls = job.next_calls(HONOURED);
    job.record(&calls[0], &CallOutcome::Refused("withdrawn".into()), MY_CLAIM);
    assert!(job.parked.is_some());
    assert_eq!(job.verdict(), Verdict::Unfinished);
}

#[test]
fn a_batch_has_no_more_calls_than_run_concurrently() {
    let mut job = job(5);
    let first = job.next_calls(HONOURED);
    assert_eq!(first.len(), HONOURED.at_once);
    for call in &first {
        job.record(call, &CallOutcome::Done, MY_CLAIM);
    }
    let rest: Vec<i16> = job.next_calls(HONOURED).iter().map(|call| call.line).collect();
    assert_eq!(rest, [4, 5]);
}

#[test]
fn a_line_of_unknown_outcome_stops_further_calls_and_known_lines_are_given_back_before_parking() {
    let mut job = job(3);
    let calls = job.next_calls(NOT_HONOURED);
    job.record(&calls[0], &CallOutcome::Unknown("lost".into()), MY_CLAIM);
    job.record(&calls[1], &CallOutcome::Done, MY_CLAIM);
    job.record(&calls[2], &CallOutcome::NotSent("down".into()), MY_CLAIM);
    assert_eq!(job.next_calls(NOT_HONOURED), []);
    assert!(job.parked.is_some());
    assert_eq!(job.lines[2].state, LineState::Todo);

    job.give_back();
    assert_eq!(job.parked, None);
    let back = job.next_calls(NOT_HONOURED);
    assert_eq!(
        back.iter().map(|call| (call.line, call.direction)).collect::<Vec<_>>(),
        [(2, Direction::GiveBack)]
    );
    assert_eq!(job.parked, None);
    job.record(&back[0], &CallOutcome::Done, MY_CLAIM);
    assert_eq!(job.next_calls(NOT_HONOURED), []);
    assert!(job.parked.is_some_and(|why| why.contains("line 1")));
}

#[test]
fn proof_of_the_unknown_outcome_unparks_the_job() {
    let mut job = job(1);
    let calls = job.next_calls(NOT_HONOURED);
    job.next_calls(NOT_HONOURED);
    assert!(job.parked.is_some());
    job.record(&calls[0], &CallOutcome::Done, ANOTHER_CLAIM);
    assert_eq!((job.parked.as_deref(), job.verdict()), (None, Verdict::AllTaken));
}

#[test]
fn stock_that_proves_taken_after_the_job_ended_is_given_back() {
    let mut job = job(1);
    let calls = job.next_calls(HONOURED);
    job.record(&calls[0], &CallOutcome::Refused("short".into()), MY_CLAIM);
    job.give_back();
    assert_eq!(job.state, JobState::Returned);
    job.record(&calls[0], &CallOutcome::Done, ANOTHER_CLAIM);
    assert_eq!(job.state, JobState::Returning);
    assert_eq!(job.next_calls(HONOURED)[0].direction, Direction::GiveBack);
}

#[test]
fn a_call_of_unknown_outcome_is_not_repeated_under_a_key_that_may_be_forgotten() {
    let mut job = job(1);
    let first = job.next_calls(HONOURED);
    job.record(&first[0], &CallOutcome::Unknown("lost".into()), MY_CLAIM);
    let after = |hours| CallRules { now: HONOURED.now + TimeDelta::hours(hours), ..HONOURED };

    let again = job.next_calls(after(19));
    assert_eq!((again.len(), &again[0].idempotency_key), (1, &first[0].idempotency_key));
    job.record(&again[0], &CallOutcome::Unknown("lost".into()), MY_CLAIM);

    assert_eq!(job.next_calls(after(20)), []);
    assert!(job.parked.is_some_and(|why| why.contains("line 1") && why.contains("forgotten")));
}

#[test]
fn a_call_that_was_not_sent_restarts_the_lifetime_of_its_key() {
    let mut job = job(1);
    let first = job.next_calls(HONOURED);
    job.record(&first[0], &CallOutcome::NotSent("down".into()), MY_CLAIM);
    let later = CallRules { now: HONOURED.now + TimeDelta::hours(30), ..HONOURED };
    let again = job.next_calls(later);
    job.record(&again[0], &CallOutcome::Unknown("lost".into()), MY_CLAIM);
    assert_eq!(job.next_calls(later).len(), 1);
}

#[test]
fn the_refusal_of_a_repeated_call_counts_the_second_time() {
    let mut job = job(1);
    let first = job.next_calls(HONOURED);
    job.record(&first[0], &CallOutcome::Unknown("lost".into()), MY_CLAIM);
    let refused = CallOutcome::Refused("answered 409".into());
    for expected in [LineState::Taking, LineState::Refused] {
        let again = job.next_calls(HONOURED);
        job.record(&again[0], &refused, MY_CLAIM);
        assert_eq!(job.lines[0].state, expected);
    }
}

#[test]
fn an_unconfirmed_refusal_keeps_a_possibly_taken_line_of_a_cancelled_order_open() {
    let mut job = job(2);
    let calls = job.next_calls(HONOURED);
    job.record(&calls[0], &CallOutcome::Unknown("lost".into()), MY_CLAIM);
    job.record(&calls[1], &CallOutcome::Done, MY_CLAIM);
    job.give_back();
    for _ in 0..=HONOURED.refusal_retries {
        for call in job.next_calls(HONOURED) {
            let outcome = match call.direction {
                Direction::Take => CallOutcome::RefusalUnconfirmed("answered 404, but there are 5".into()),
                Direction::GiveBack => CallOutcome::Done,
            };
            job.record(&call, &outcome, MY_CLAIM);
        }
        assert_eq!((job.lines[0].state, job.parked.as_deref()), (LineState::Taking, None));
    }
    assert_eq!(job.next_calls(HONOURED), []);
    assert!(job.parked.as_ref().is_some_and(|why| why.contains("line 1")), "{:?}", job.parked);
}

#[test]
fn an_unconfirmed_refusal_is_retried_a_bounded_number_of_times_and_then_parked() {
    let mut job = job(2);
    let refused = CallOutcome::RefusalUnconfirmed("answered 409, but there are 5".into());
    for _ in 0..=HONOURED.refusal_retries {
        let calls = job.next_calls(HONOURED);
        assert_eq!(calls.last().map(|call| call.line), Some(2));
        job.record(&calls[0], &if calls.len() == 2 { CallOutcome::Done } else { refused.clone() }, MY_CLAIM);
        if calls.len() == 2 {
            job.record(&calls[1], &refused, MY_CLAIM);
        }
        assert_eq!((job.verdict(), job.parked.as_deref()), (Verdict::Unfinished, None));
    }
    assert_eq!(job.next_calls(HONOURED), []);
    assert!(
        job.parked.as_ref().is_some_and(|why| why.contains("line 2: refused 3 times")),
        "{:?}",
        job.parked
    );

    job.give_back();
    let back: Vec<_> = job.next_calls(HONOURED).iter().map(|call| (call.line, call.direction)).collect();
    assert_eq!(back, [(1, Direction::GiveBack)]);
}
