//! Property: any series of payment events has the result that the contract defines for the whole series.

use std::time::Duration;

use chrono::DateTime;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::aggregate::Changes;
use crate::domain::stock::{CallOutcome, CallRules, JobState};
use crate::domain::{CustomerId, Line, Order, ProductId, Quantity};

const HOLDER: Uuid = Uuid::from_u128(1);
const RULES: CallRules = CallRules {
    key_is_honoured: true,
    key_ttl: Duration::from_hours(20),
    refusal_retries: 20,
    at_once: 8,
    now: DateTime::UNIX_EPOCH,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    PaidExactly,
    PaidOther(u32),
    Failed,
}

/// The result of a series of events.
#[derive(Debug, Default, PartialEq, Eq)]
struct End {
    status: Option<Status>,
    /// The number of status changes.
    moves: i32,
    paid: Option<Money>,
    refund: Option<(Money, String)>,
    mismatches: usize,
    paid_again: usize,
}

fn total() -> Money {
    money(200)
}

fn money(amount: u32) -> Money {
    Money::parse(&amount.to_string()).unwrap()
}

fn amount_of(event: Event) -> Option<Money> {
    match event {
        Event::PaidExactly => Some(total()),
        Event::PaidOther(amount) => Some(money(amount)),
        Event::Failed => None,
    }
}

/// The contract for a whole series: the first decisive event decides, and payments for a cancelled order are refunded.
fn expected(events: &[Event], in_stock: bool) -> End {
    let decisive = events.iter().position(|event| matches!(event, Event::PaidExactly | Event::Failed));
    let others =
        |events: &[Event]| events.iter().filter(|event| matches!(event, Event::PaidOther(_))).count();
    let Some(decisive) = decisive else {
        return End { status: Some(Status::Created), mismatches: others(events), ..End::default() };
    };
    let mut end = End { moves: 1, mismatches: others(&events[..decisive]), ..End::default() };
    let after = &events[decisive + 1..];
    let paid_after = after.iter().filter(|event| amount_of(**event).is_some()).count();
    end.paid_again =
        if events[decisive] == Event::Failed { paid_after.saturating_sub(1) } else { paid_after };
    match (events[decisive], in_stock) {
        (Event::Failed, _) => {
            end.status = Some(Status::Cancelled);
            end.paid = after.iter().find_map(|event| amount_of(*event));
            end.refund = end.paid.map(|amount| (amount, "PAID_AFTER_CANCELLED".to_owned()));
        }
        (_, true) => (end.status, end.paid) = (Some(Status::Confirmed), Some(total())),
        (_, false) => {
            (end.status, end.paid) = (Some(Status::Cancelled), Some(total()));
            end.refund = Some((total(), "OUT_OF_STOCK".to_owned()));
        }
    }
    end
}

fn an_order() -> OrderAggregate {
    let line = |id: &str| Line {
        product_id: ProductId::parse(id).unwrap(),
        quantity: Quantity::new(1).unwrap(),
        price: money(100),
    };
    let customer = CustomerId::parse("ada@example.com").unwrap();
    let order = Order::place(customer, vec![line("P1"), line("P2")]).unwrap();
    OrderAggregate { order, job: None, paid: None, changes: Changes::default() }
}

/// Simulates the stock worker on a due job.
fn work_stock(aggregate: &mut OrderAggregate, in_stock: bool) {
    if aggregate.job.as_ref().is_none_or(|job| job.state != JobState::Taking) {
        return;
    }
    let calls = aggregate.claim_stock_job(HOLDER, RULES).unwrap();
    let outcomes: Vec<_> = calls
        .into_iter()
        .map(|call| {
            let taken = in_stock || call.line == 1;
            (call, if taken { CallOutcome::Done } else { CallOutcome::Refused("short".into()) })
        })
        .collect();
    aggregate.apply_outcomes(&outcomes, HOLDER).unwrap();
}

/// Runs the events; the worker runs after `worker_at` of them, and at the end.
fn run(events: &[Event], in_stock: bool, worker_at: usize) -> End {
    let (mut aggregate, mut end) = (an_order(), End::default());
    let trace = TraceParent::continue_or_start(None);
    for step in 0..=events.len() {
        aggregate.changes = Changes::default();
        if let Some(event) = events.get(step) {
            let event = amount_of(*event).map_or(PaymentEvent::Failed, PaymentEvent::Succeeded);
            let outcome = aggregate.apply_payment(event, &trace);
            end.mismatches += usize::from(outcome == PaymentOutcome::AmountMismatch);
            end.paid_again += usize::from(outcome == PaymentOutcome::PaidAgain);
        }
        count_changes(&aggregate.changes, &mut end);
        aggregate.changes = Changes::default();
        if step >= worker_at {
            work_stock(&mut aggregate, in_stock);
        }
        count_changes(&aggregate.changes, &mut end);
    }
    assert_eq!(aggregate.order.version, 1 + end.moves);
    End { status: Some(aggregate.order.status), ..end }
}

/// Counts the written changes; none may be written twice.
fn count_changes(changes: &Changes, end: &mut End) {
    end.moves += i32::from(changes.status.is_some());
    if let Some(amount) = changes.payment {
        assert_eq!(end.paid.replace(amount), None, "paid twice");
    }
    if let Some(refund) = &changes.refund {
        let refund = (refund.amount, refund.reason.clone());
        assert_eq!(end.refund.replace(refund), None, "refunded twice");
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        Just(Event::PaidExactly),
        (1_u32..400)
            .prop_filter_map("the total", |amount| (amount != 200).then_some(Event::PaidOther(amount))),
        Just(Event::Failed),
    ];
    prop::collection::vec(event, 0..8).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn payment_events_in_any_order_lead_to_the_result_of_the_contract(
        events in events(),
        in_stock: bool,
        worker_at in 0_usize..9,
    ) {
        let worker_at = worker_at.min(events.len());
        prop_assert_eq!(run(&events, in_stock, worker_at), expected(&events, in_stock));
    }
}
