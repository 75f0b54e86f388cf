//! The final state that the checks read: the database, the topics, the Product Service's own ledger, and the clients'
//! observations.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use super::plan::Plan;
use super::story::Story;
use super::world::World;
use crate::support::Record;

pub(super) struct Evidence {
    pub(super) stories: Vec<Story>,
    pub(super) orders: BTreeMap<String, Order>,
    pub(super) records: Vec<Record>,
    /// All records of the payment topic.
    pub(super) payments: Vec<Record>,
    /// Partition and offset of each payment record that was applied or parked.
    pub(super) traced: HashSet<(i32, i64)>,
    pub(super) movements: Vec<Movement>,
    pub(super) jobs: Vec<Job>,
    pub(super) parked: Vec<Parked>,
    pub(super) outbox: i64,
    /// The number of status changes by status and reason.
    pub(super) changes: Vec<Change>,
}

#[derive(Debug, sqlx::FromRow)]
pub(super) struct Change {
    pub(super) to_status: String,
    pub(super) reason: String,
    pub(super) count: i64,
}

/// An order with its related rows.
#[derive(Debug, Default, sqlx::FromRow)]
pub(super) struct Order {
    id: Uuid,
    #[sqlx(rename = "customer_id")]
    pub(super) customer: String,
    pub(super) status: String,
    pub(super) version: i32,
    /// The payment deadline of the order.
    pub(super) payment_deadline: DateTime<Utc>,
    /// The reason of the cancellation, if any.
    pub(super) cancelled_for: Option<String>,
    /// Line number, product and quantity.
    #[sqlx(skip)]
    pub(super) lines: Vec<(i16, String, i64)>,
    /// Old and new status, by version.
    #[sqlx(skip)]
    pub(super) history: BTreeMap<i64, (Option<String>, String)>,
    pub(super) is_paid: bool,
    pub(super) refund_is_due: bool,
    /// A payment of the order is parked.
    pub(super) waits_for_an_operator: bool,
}

/// One entry of the Product Service's ledger.
#[derive(Debug)]
pub(super) struct Movement {
    pub(super) product: String,
    pub(super) change: i64,
    pub(super) stock: i64,
    pub(super) key: String,
}

#[derive(Debug, sqlx::FromRow)]
pub(super) struct Job {
    #[sqlx(rename = "order_id")]
    pub(super) order: Uuid,
    pub(super) state: String,
    pub(super) parked: Option<String>,
    /// Details for the report.
    pub(super) details: String,
}

#[derive(Debug, sqlx::FromRow)]
pub(super) struct Parked {
    pub(super) payload: Vec<u8>,
    pub(super) error: String,
}

impl Evidence {
    pub(super) async fn gather(world: &World, plan: &Plan, stories: Vec<Story>) -> Self {
        let database = &world.database;
        let jobs = sqlx::query_as(
            "select order_id, state, parked,
                    format('failures %s, due in %s, lines %s', failures, next_attempt_at - now(),
                           (select string_agg(concat_ws(' ', line_number, line.state, last_error), ', ')
                            from stock_lines line
                            where line.order_id = job.order_id and line.attempt = job.attempt)) as details
             from stock_jobs job",
        );
        let parked = sqlx::query_as("select payload, error from parked_payments");
        let traced = sqlx::query_as::<_, (i32, i64)>(
            "select partition, \"offset\" from payment_events union select partition, \"offset\" from parked_payments",
        );
        let outbox = sqlx::query_scalar("select count(*) from outbox");
        let changes = sqlx::query_as(
            "select to_status, coalesce(reason, actor_role) as reason, count(*) from order_history
             where version > 1 group by 1, 2 order by 1, 2",
        );
        Self {
            stories,
            orders: read_orders(database, plan.unpaid_order_ttl()).await,
            records: world.orders.everything().await,
            payments: world.payments.everything().await,
            traced: traced.fetch_all(database).await.unwrap().into_iter().collect(),
            movements: world.ledger().await.iter().map(movement).collect(),
            jobs: jobs.fetch_all(database).await.unwrap(),
            parked: parked.fetch_all(database).await.unwrap(),
            outbox: outbox.fetch_one(database).await.unwrap(),
            changes: changes.fetch_all(database).await.unwrap(),
        }
    }

    /// The orders of each customer.
    pub(super) fn orders_by_customer(&self) -> HashMap<&str, Vec<&Order>> {
        let mut by_customer: HashMap<&str, Vec<&Order>> = HashMap::new();
        for order in self.orders.values() {
            by_customer.entry(&order.customer).or_default().push(order);
        }
        by_customer
    }
}

async fn read_orders(database: &PgPool, ttl: Duration) -> BTreeMap<String, Order> {
    let rows: Vec<Order> = sqlx::query_as(
        "select id, customer_id, status, version, placed_at + $1 as payment_deadline, payments.order_id is not null as is_paid,
                refunds_due.order_id is not null as refund_is_due,
                exists (select from parked_payments where order_id = id) as waits_for_an_operator,
                (select reason from order_history where order_id = id and to_status = 'CANCELLED') as cancelled_for
         from orders
         left join payments on payments.order_id = id
         left join refunds_due on refunds_due.order_id = id",
    )
    .bind(ttl)
    .fetch_all(database)
    .await
    .unwrap();
    let mut orders: BTreeMap<String, Order> =
        rows.into_iter().map(|order| (order.id.to_string(), order)).collect();
    let lines: Vec<(Uuid, i16, String, i32)> =
        sqlx::query_as("select order_id, line_number, product_id, quantity from order_items")
            .fetch_all(database)
            .await
            .unwrap();
    for (id, number, product, quantity) in lines {
        orders.entry(id.to_string()).or_default().lines.push((number, product, quantity.into()));
    }
    let history: Vec<(Uuid, i32, Option<String>, String)> =
        sqlx::query_as("select order_id, version, from_status, to_status from order_history")
            .fetch_all(database)
            .await
            .unwrap();
    for (id, version, from, to) in history {
        orders.entry(id.to_string()).or_default().history.insert(version.into(), (from, to));
    }
    orders
}

fn movement(entry: &Value) -> Movement {
    let number = |name: &str| entry[name].as_i64().unwrap();
    Movement {
        product: entry["productId"].as_str().unwrap().to_owned(),
        change: number("change"),
        stock: number("stock"),
        key: entry["idempotencyKey"].as_str().unwrap_or_default().to_owned(),
    }
}
