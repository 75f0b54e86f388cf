//! `outbox` and `stock`: parked orders and parked stock calls.

use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use order_service::config::{self, Environment};
use order_service::domain::{OrderId, time};
use order_service::store::parked_orders::{ParkedOrder, ParkedStockLine};
use order_service::store::{DatabaseSettings, Store};
use serde_json::{Value, json};

use super::Failure;
use super::output::{self, Operated, Output, text};

#[derive(Subcommand)]
pub(super) enum OutboxCommand {
    /// List the orders whose events Kafka refuses
    #[command(after_help = "Example:\n  order-service outbox list --json")]
    List,
    /// Publish the events of a parked order again
    #[command(after_help = "Example, after the topic's max.message.bytes was raised:\n  \
                      order-service outbox replay 0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10 --by ada")]
    Replay(OrderAction),
    /// Drop the refused event of a parked order, so that its later events are published
    #[command(after_help = "The table interventions keeps the event.\n\n\
                      Example:\n  order-service outbox skip 0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10 --by ada")]
    Skip(OrderAction),
}

#[derive(Args)]
pub(super) struct OrderAction {
    /// The order
    #[arg(value_parser = OrderId::parse)]
    pub(super) order: OrderId,
    /// Your name, for the record
    #[arg(long, value_parser = output::actor)]
    pub(super) by: String,
}

#[derive(Subcommand)]
pub(super) enum StockCommand {
    /// List the lines of the 1,000 oldest jobs that wait for an operator
    #[command(after_help = "Example:\n  order-service stock list")]
    List,
    /// Record whether the Product Service applied the call of a line
    #[command(after_help = "Example, if the Product Service shows that line 2 was not taken:\n  \
                      order-service stock resolve 0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10 1 2 not-applied --by ada")]
    Resolve(Resolve),
}

#[derive(Args)]
pub(super) struct Resolve {
    #[command(flatten)]
    action: OrderAction,
    /// The attempt, as listed
    attempt: i16,
    /// The line, as listed
    line: i16,
    /// Whether the Product Service applied the call
    finding: Finding,
}

#[derive(Clone, Copy, ValueEnum)]
enum Finding {
    Applied,
    NotApplied,
}

pub(super) async fn outbox(args: &Operated<OutboxCommand>, env: &Environment) -> Result<(), Failure> {
    let store = store(env).await?;
    let (action, skip, name) = match &args.command {
        OutboxCommand::List => return list_outbox(&store, args.output).await,
        OutboxCommand::Replay(action) => (action, false, "replay"),
        OutboxCommand::Skip(action) => (action, true, "skip"),
    };
    if !store.free_parked(action.order, skip, &action.by).await? {
        return Err(format!("{} is not parked", action.order).into());
    }
    args.output
        .result(&json!({"orderId": action.order, "done": name}), &format!("{}: {name} is done", action.order))
}

async fn list_outbox(store: &Store, output: Output) -> Result<(), Failure> {
    let row = |parked: ParkedOrder| {
        json!({
            "orderId": parked.order_id, "parkedAt": time::rfc3339(parked.parked_at),
            "eventId": parked.event_id.to_string(), "sequence": parked.sequence, "waiting": parked.waiting,
            "error": parked.error,
        })
    };
    let rows: Vec<Value> = store.parked_orders().await?.into_iter().map(row).collect();
    output.rows(
        &rows,
        &[
            ("ORDER", &text("orderId")),
            ("PARKED AT", &text("parkedAt")),
            ("EVENTS", &|row| format!("{} waiting", row["waiting"])),
            ("REFUSED EVENT", &text("eventId")),
            ("SEQUENCE", &text("sequence")),
            ("ERROR", &text("error")),
        ],
        "No order is parked.",
    )
}

pub(super) async fn stock(args: &Operated<StockCommand>, env: &Environment) -> Result<(), Failure> {
    let store = store(env).await?;
    let Resolve { action: OrderAction { order, by }, attempt, line, finding } = match &args.command {
        StockCommand::List => return list_stock(&store, args.output).await,
        StockCommand::Resolve(resolve) => resolve,
    };
    let applied = matches!(finding, Finding::Applied);
    let what = format!("{order} attempt {attempt} line {line}");
    if !store.resolve_stock((*order, *attempt, *line), applied, by).await? {
        return Err(format!("{what} is not parked").into());
    }
    let result = json!({"orderId": order, "attempt": attempt, "line": line, "applied": applied});
    args.output.result(&result, &format!("{what}: done"))
}

async fn list_stock(store: &Store, output: Output) -> Result<(), Failure> {
    /// The maximum number of listed jobs. When these are resolved, the list shows the next ones.
    const LIMIT: i64 = 1_000;
    let row = |line: ParkedStockLine| {
        json!({
            "orderId": line.order_id, "attempt": line.attempt, "line": line.line_number, "productId": line.product_id,
            "quantity": line.quantity, "state": line.state, "reason": line.parked,
        })
    };
    let rows: Vec<Value> = store.parked_stock(LIMIT).await?.into_iter().map(row).collect();
    output.rows(
        &rows,
        &[
            ("ORDER", &text("orderId")),
            ("ATTEMPT", &text("attempt")),
            ("LINE", &text("line")),
            ("QUANTITY", &text("quantity")),
            ("PRODUCT", &text("productId")),
            ("STATE", &text("state")),
            ("WHY", &text("reason")),
        ],
        "No stock call waits for an operator.",
    )
}

/// The store for a command. Fails if migrations are pending.
pub(super) async fn store(env: &Environment) -> Result<Store, Failure> {
    let (database, stock) = config::read_store(env)?;
    let settings = DatabaseSettings { max_connections: 2, ..database };
    migrated(Store::new(&settings, stock, &Arc::default())).await
}

/// Fails if migrations are pending.
pub(super) async fn migrated(store: Store) -> Result<Store, Failure> {
    if store.is_migrated().await? {
        return Ok(store);
    }
    Err("migrations are pending: run `order-service migrate` first".into())
}
