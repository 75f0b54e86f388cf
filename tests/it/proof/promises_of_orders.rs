//! No order is lost or duplicated, and every order ends; every payment is applied, refunded or parked.

use std::collections::{HashMap, HashSet};

use super::evidence::Evidence;
use super::promise::Promise;
use super::shelf::Shelf;
use super::story::PaymentKind;
use crate::support::Record;

pub(super) fn check(evidence: &Evidence) -> Vec<Promise> {
    [acknowledgements(evidence), requests(evidence), payments(evidence), arrivals(evidence), ends(evidence)]
        .into_iter()
        .flatten()
        .collect()
}

/// The answers that clients received match the database.
fn acknowledgements(evidence: &Evidence) -> Vec<Promise> {
    let mut orders = Promise::no("acknowledged orders missing");
    let mut changes = Promise::no("acknowledged changes of status missing");
    for story in &evidence.stories {
        for id in &story.acknowledged {
            orders.try_out(evidence.orders.contains_key(id), || id.clone());
        }
        let order = story.order().and_then(|id| evidence.orders.get(id));
        for status in &story.changed_to {
            let happened = order.is_some_and(|order| order.history.values().any(|(_, to)| to == status));
            changes.try_out(happened, || format!("{:?} {status}", story.order()));
        }
    }
    vec![orders, changes]
}

/// A repeated request creates one order.
fn requests(evidence: &Evidence) -> Vec<Promise> {
    let mut acknowledged = Promise::no("acknowledged keys with no order or several");
    let mut unanswered = Promise::no("unanswered keys with more than one order");
    let mut keyless = Promise::no("repeats without a key with more than one living order");
    let mut answers = Promise::no("same request answered with different orders");
    let mut unwritten = Promise::no("answers 503 'nothing was written' whose order exists");
    let mut unknown = Promise::no("requests repeated after outcome-unknown with more than one living order");
    let by_customer = evidence.orders_by_customer();
    let placed_by: HashSet<&str> = evidence.records.iter().filter_map(trace_of_placement).collect();
    for story in &evidence.stories {
        let orders = by_customer.get(story.customer.as_str()).map_or(&[][..], Vec::as_slice);
        let breach = || format!("{} has {} orders", story.customer, orders.len());
        match (&story.key, story.order()) {
            (Some(_), Some(_)) => acknowledged.try_out(orders.len() == 1, breach),
            (Some(_), None) => unanswered.try_out(orders.len() <= 1, breach),
            (None, _) => {
                let living = orders.iter().filter(|order| order.status != "CANCELLED").count();
                keyless.try_out(living <= 1, breach);
            }
        }
        for trace in &story.told_unwritten {
            unwritten.try_out(!placed_by.contains(trace.as_str()), || format!("{} {trace}", story.customer));
        }
        if story.outcomes_unknown > 0 {
            let living = orders.iter().filter(|order| order.status != "CANCELLED").count();
            unknown.try_out(living <= 1, breach);
        }
        if story.acknowledged.len() > 1 && story.key.is_some() {
            let different: HashSet<_> = story.acknowledged.iter().collect();
            answers.try_out(different.len() == 1, || format!("{} {different:?}", story.customer));
        }
    }
    vec![acknowledged, unanswered, keyless, answers, unwritten, unknown]
}

/// If this is the first event of an order, the trace id of the request that placed it.
fn trace_of_placement(record: &Record) -> Option<&str> {
    let trace = record.header("traceparent").filter(|_| record.sequence() == 1)?;
    trace.split('-').nth(1)
}

/// No order is cancelled as unpaid if it was paid before its deadline, and each payment is applied or parked.
fn arrivals(evidence: &Evidence) -> Vec<Promise> {
    let mut in_time = Promise::no("orders cancelled as unpaid although paid in time");
    for story in &evidence.stories {
        let Some(order) = story.order().and_then(|id| evidence.orders.get(id)) else { continue };
        for payment in story.paid_amounts().filter(|payment| payment.acknowledged_at < order.payment_deadline)
        {
            let timed_out = order.cancelled_for.as_deref() == Some("PAYMENT_TIMEOUT");
            let breach = || format!("{:?} paid {}", story.order(), payment.acknowledged_at);
            in_time.try_out(!timed_out, breach);
        }
    }
    let mut trace = Promise::no("payment records neither applied nor parked");
    let mut places: HashMap<&str, Vec<(i32, i64)>> = HashMap::new();
    for record in &evidence.payments {
        places.entry(&record.payload).or_default().push((record.partition, record.offset));
    }
    for (payload, places) in places {
        trace.try_out(places.iter().any(|place| evidence.traced.contains(place)), || payload.to_owned());
    }
    let mut stock = Promise::no("paid orders cancelled for OUT_OF_STOCK although the stock was there");
    for (id, order) in evidence.orders.iter().filter(|(_, order)| order.is_paid) {
        if order.lines.iter().all(|(_, product, _)| Shelf::never_runs_out(product)) {
            stock.try_out(order.cancelled_for.as_deref() != Some("OUT_OF_STOCK"), || id.clone());
        }
    }
    vec![in_time, trace, stock]
}

/// No payment is lost, and every payment of a cancelled order makes a refund due.
fn payments(evidence: &Evidence) -> Vec<Promise> {
    let mut lost = Promise::no("payments lost");
    let mut unsettled = Promise::no("paid orders neither CONFIRMED nor CANCELLED with a refund due");
    let mut refunds = Promise::no("refunds without a paid and cancelled order");
    let mut parked = Promise::no("unexpected parked records");
    for story in evidence.stories.iter().filter(|story| story.is_paid()) {
        let order = story.order().and_then(|id| evidence.orders.get(id));
        lost.try_out(order.is_some_and(|order| order.is_paid), || format!("{:?}", story.order()));
    }
    for (id, order) in &evidence.orders {
        let breach = || format!("{id} {} refund due: {}", order.status, order.refund_is_due);
        let cancelled = order.status == "CANCELLED";
        if order.is_paid {
            let settled = order.status == "CONFIRMED" || (cancelled && order.refund_is_due);
            unsettled.try_out(settled, breach);
        }
        if order.refund_is_due {
            refunds.try_out(order.is_paid && cancelled, breach);
        }
    }
    let for_an_operator = |story: &super::story::Story| -> Vec<String> {
        let again = story.paid_amounts().count() > 1;
        let parked = story.paid_amounts().filter(|paid| again || paid.kind == PaymentKind::WrongAmount);
        parked.map(|payment| payment.envelope.clone()).chain(story.garbage.clone()).collect()
    };
    let planned: HashSet<String> = evidence.stories.iter().flat_map(for_an_operator).collect();
    for record in &evidence.parked {
        let payload = String::from_utf8_lossy(&record.payload);
        parked.try_out(planned.contains(payload.as_ref()), || format!("{}: {payload}", record.error));
    }
    let mut garbage = Promise::no("broken records neither applied nor parked");
    let kept: HashSet<&[u8]> = evidence.parked.iter().map(|parked| parked.payload.as_slice()).collect();
    for record in evidence.stories.iter().flat_map(|story| &story.garbage) {
        garbage.try_out(kept.contains(record.as_bytes()), || record.clone());
    }
    let mut money = Promise::no("orders with a payment neither applied nor parked, or both");
    for story in &evidence.stories {
        let Some(order) = story.order().and_then(|id| evidence.orders.get(id)) else { continue };
        let paid = story.paid_amounts().count();
        let parked = story.paid_amounts().filter(|paid| kept.contains(paid.envelope.as_bytes())).count();
        let breach = || format!("{:?}: {paid} came, {parked} parked", story.order());
        money.try_out(paid == parked + usize::from(order.is_paid), breach);
    }
    vec![lost, unsettled, refunds, parked, garbage, money]
}

/// Every order and every stock job has ended, except orders with a parked payment.
fn ends(evidence: &Evidence) -> Vec<Promise> {
    let mut orders = Promise::no("unfinished orders");
    let mut jobs = Promise::no("stock jobs unfinished or parked");
    for (id, order) in &evidence.orders {
        orders.try_out(order.status != "CREATED" || order.waits_for_an_operator, || id.clone());
    }
    for job in &evidence.jobs {
        let ended = matches!(job.state.as_str(), "TAKEN" | "RETURNED") && job.parked.is_none();
        jobs.try_out(ended, || format!("{} {} {:?}, {}", job.order, job.state, job.parked, job.details));
    }
    vec![orders, jobs]
}
