//! `payments` and `refunds`: parked payments and due refunds.

use clap::{Args, Subcommand};
use order_service::config::Environment;
use order_service::domain::{Money, OrderId, time};
use order_service::events::{Retried, retry_parked};
use order_service::store::Store;
use order_service::store::payments::{Received, RecordPlace};
use order_service::store::settle::{ParkedPayment, RefundDue};
use serde_json::{Value, json};

use super::Failure;
use super::operate::{OrderAction, store};
use super::output::{self, Operated, Output, text};

/// The default and the maximum number of rows of a list.
const LIMIT: i64 = 1_000;
const MAX_LIMIT: i64 = 10_000;

#[derive(Subcommand)]
pub(super) enum PaymentsCommand {
    /// List the payment records that wait for an operator, oldest first
    #[command(after_help = "Example:\n  order-service payments list --limit 20")]
    List {
        /// The maximum number of records
        #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(i64).range(1..=MAX_LIMIT))]
        limit: i64,
        /// Show the records themselves; they contain an e-mail address
        #[arg(long)]
        payload: bool,
    },
    /// Apply a parked record again, after its cause was fixed
    #[command(
        after_help = "A retry helps if the order did not exist (UNKNOWN_ORDER), or if this service could not read or write the \
                      record (UNDECODABLE, UNWRITABLE). A record with an earlier decision keeps it: settle that record.\n\n\
                      Example:\n  order-service payments retry payment-events/2/1234 --by ada"
    )]
    Retry(Record),
    /// Mark a parked record as settled by other means, such as a manual refund
    #[command(after_help = "The order does not change. To confirm it, an admin sets its status.\n\n\
                      Example:\n  order-service payments settle payment-events/2/1234 --by ada --note 'paid back, ticket 77'")]
    Settle {
        #[command(flatten)]
        record: Record,
        /// What was done, for the record
        #[arg(long, value_parser = output::note)]
        note: String,
    },
}

#[derive(Args)]
pub(super) struct Record {
    /// The record as listed: topic/partition/offset
    #[arg(value_name = "RECORD")]
    place: RecordPlace,
    /// Your name, for the record
    #[arg(long, value_parser = output::actor)]
    by: String,
}

#[derive(Subcommand)]
pub(super) enum RefundsCommand {
    /// List the refunds that are due, oldest first
    #[command(after_help = "Example:\n  order-service refunds list --json")]
    List {
        /// The maximum number of refunds
        #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(i64).range(1..=MAX_LIMIT))]
        limit: i64,
    },
    /// Mark a refund as paid back
    #[command(
        after_help = "Example:\n  order-service refunds done 0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10 --by ada \
                      --note 'payout 4711'"
    )]
    Done {
        #[command(flatten)]
        action: OrderAction,
        /// How it was paid back, for the record
        #[arg(long, value_parser = output::note)]
        note: String,
    },
}

pub(super) async fn payments(args: &Operated<PaymentsCommand>, env: &Environment) -> Result<(), Failure> {
    let (store, output) = (store(env).await?, args.output);
    match &args.command {
        PaymentsCommand::List { limit, payload } => list_payments(&store, (*payload, *limit), output).await,
        PaymentsCommand::Retry(record) => retry(&store, record, output).await,
        PaymentsCommand::Settle { record: Record { place, by }, note } => {
            if !store.settle_payment(place, note, by).await? {
                return Err(not_parked(place));
            }
            let result = json!({"record": place.to_string(), "settled": true});
            output.result(&result, &format!("{place}: settled"))
        }
    }
}

fn not_parked(place: &RecordPlace) -> Failure {
    format!("{place} is not parked: `order-service payments list` shows the parked records").into()
}

/// Retries the record. Fails if it stays parked.
async fn retry(store: &Store, record: &Record, output: Output) -> Result<(), Failure> {
    let Record { place, by } = record;
    let (order, outcome) = match retry_parked(store, place, by).await? {
        Retried::NotParked => return Err(not_parked(place)),
        Retried::NoPayment(why) => return Err(format!("{place} stays parked: {why}").into()),
        Retried::Received(order, Received::Applied(outcome)) => (order, outcome),
        Retried::Received(order, received) => {
            let why = match received {
                Received::UnknownOrder => "the order does not exist",
                Received::OtherEvent => "it has the key of another payment, but other bytes",
                _ => "an earlier decision exists, and no payment is applied twice; settle it instead",
            };
            return Err(format!("{place} of order {order} stays parked: {why}").into());
        }
    };
    if outcome.is_parked() {
        return Err(format!("{place} of order {order} stays parked: {}", outcome.into_str()).into());
    }
    let result = json!({"record": place.to_string(), "orderId": order, "outcome": outcome.into_str(), "settled": true});
    output.result(&result, &format!("{place}: applied to order {order}: {}", outcome.into_str()))
}

async fn list_payments(store: &Store, (payload, limit): (bool, i64), output: Output) -> Result<(), Failure> {
    let row = |parked: ParkedPayment| {
        let mut row = json!({
            "record": parked.place.to_string(), "orderId": parked.order_id.map(OrderId),
            "parkedAt": time::rfc3339(parked.parked_at), "reason": parked.reason, "error": parked.error,
        });
        if let Some(payload) = parked.payload {
            row["payload"] = String::from_utf8_lossy(&payload).into();
        }
        row
    };
    let rows: Vec<Value> = store.parked_payments(payload, limit).await?.into_iter().map(row).collect();
    let columns: [output::Column<'_>; 6] = [
        ("RECORD", &text("record")),
        ("ORDER", &text("orderId")),
        ("PARKED AT", &text("parkedAt")),
        ("REASON", &text("reason")),
        ("ERROR", &text("error")),
        ("PAYLOAD", &text("payload")),
    ];
    let columns = if payload { &columns[..] } else { &columns[..5] };
    output.rows(&rows, columns, "No payment waits for an operator.")
}

pub(super) async fn refunds(args: &Operated<RefundsCommand>, env: &Environment) -> Result<(), Failure> {
    let (store, output) = (store(env).await?, args.output);
    let (OrderAction { order, by }, note) = match &args.command {
        RefundsCommand::List { limit } => return list_refunds(&store, *limit, output).await,
        RefundsCommand::Done { action, note } => (action, note),
    };
    if !store.refund_done(order.0, note, by).await? {
        return Err(format!("no refund is due for {order}").into());
    }
    output.result(&json!({"orderId": order, "done": true}), &format!("{order}: the refund is done"))
}

async fn list_refunds(store: &Store, limit: i64, output: Output) -> Result<(), Failure> {
    let row = |refund: RefundDue| {
        Ok::<_, Failure>(json!({
            "orderId": OrderId(refund.order_id), "amount": Money::new(refund.amount)?, "reason": refund.reason,
            "dueAt": time::rfc3339(refund.due_at),
        }))
    };
    let rows: Vec<Value> = store.refunds_due(limit).await?.into_iter().map(row).collect::<Result<_, _>>()?;
    output.rows(
        &rows,
        &[
            ("ORDER", &text("orderId")),
            ("AMOUNT", &text("amount")),
            ("REASON", &text("reason")),
            ("DUE SINCE", &text("dueAt")),
        ],
        "No refund is due.",
    )
}
