//! Reading, locking and changing orders, many per statement.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use uuid::Uuid;

use super::connection::{Database, column};
use super::shared_read::ReadSet;
use super::{Store, StoreError, stock};
use crate::domain::aggregate::Changes;
use crate::domain::event::bucket_of;
use crate::domain::{
    CustomerId, Line, Money, Order, OrderAggregate, OrderEvent, OrderId, Owned, ProductId, Quantity, Status,
    StatusChange,
};
use crate::metrics::Query;

/// Orders with their lines as three arrays: one round trip, and each amount stays a `numeric`. The lines come in order
/// from their index, without a sort.
pub(super) const SELECT: &str = "
select o.id, o.customer_id, o.status, o.total_amount, o.placed_at, o.version, o.changed_at,
       items.products, items.quantities, items.prices
from orders o
cross join lateral (
    select array_agg(product_id) as products, array_agg(quantity) as quantities, array_agg(unit_price) as prices
    from (
        select product_id, quantity, unit_price from order_items where order_id = o.id order by line_number
    ) line
) items
where o.id = any ($1)";

/// Locks the order until the end of the transaction. The lock precedes the position of a new outbox row, so positions
/// follow the order of the events of an order.
pub(super) static LOCK_ONE: LazyLock<String> = LazyLock::new(|| format!("{SELECT}\nfor update of o"));

/// Skips orders that another transaction has locked: waiting for them would delay the others.
pub(super) static LOCK_GROUP: LazyLock<String> =
    LazyLock::new(|| format!("{SELECT}\nfor update of o skip locked"));

/// Writes the new statuses, their history rows and their events, in one statement.
pub(super) const CHANGE_STATUS: &str = "
with
    change as (
        select * from unnest(
            $1::uuid[], $2::text[], $3::integer[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::smallint[], $10::uuid[], $11::text[], $12::text[], $13::text[], $14::text[]
        ) as change (order_id, status, version, changed_at, from_status, actor_role, actor_id, reason,
                     bucket, event_id, event_type, payload, headers, traceparent)
    ),
    changed as (
        update orders set status = change.status, version = change.version, changed_at = change.changed_at
        from change where orders.id = any ($1) and orders.id = change.order_id
    ),
    history as (
        insert into order_history
            (order_id, version, from_status, to_status, actor_role, actor_id, reason, changed_at, event_id, traceparent)
        select order_id, version, from_status, status, actor_role, actor_id, reason, changed_at, event_id, traceparent
        from change
    )
insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
select bucket, event_id, order_id, version, event_type, payload, headers from change
";

impl Store {
    /// Reads an order, protected by its owner. `None` if the order does not exist. Concurrent reads share a round trip.
    pub async fn find_order(&self, id: OrderId) -> Result<Option<Owned<Order>>, StoreError> {
        let order = self.order_reads.ask(id).await??;
        Ok(order.map(|order| Owned::new(order.customer.clone(), order)))
    }
}

/// Reads orders in sets.
pub(super) struct OrderReads(pub(super) Database);

impl ReadSet for OrderReads {
    const QUERY: Query = Query::ReadOrder;

    type Question = OrderId;
    type Answer = Result<Option<Order>, StoreError>;

    async fn read(&self, ids: &[OrderId]) -> Result<Vec<Self::Answer>, StoreError> {
        let rows = self.0.read(Query::ReadOrder, |connection| {
            Box::pin(sqlx::query_as(SELECT).bind(column(ids, |id| id.0)).fetch_all(connection))
        });
        Ok(assign(ids, rows.await?))
    }
}

/// Assigns the rows to the ids, which may repeat; the rows may have any order.
fn assign(ids: &[OrderId], rows: Vec<OrderRow>) -> Vec<Result<Option<Order>, StoreError>> {
    let orders: HashMap<OrderId, Result<Order, StoreError>> =
        rows.into_iter().map(|row| (OrderId(row.id), Order::try_from(row))).collect();
    ids.iter().map(|id| orders.get(id).cloned().transpose()).collect()
}

/// Locks and loads these orders until the end of the transaction. Leaves out those that do not exist and, unless
/// `wait`, those that another transaction has locked.
pub(super) async fn lock(
    connection: &mut PgConnection,
    wanted: &[(OrderId, Option<i16>)],
    wait: bool,
) -> Result<HashMap<OrderId, OrderAggregate>, StoreError> {
    let ids: Vec<Uuid> = wanted.iter().map(|(id, _)| id.0).collect();
    let statement = if wait { LOCK_ONE.as_str() } else { LOCK_GROUP.as_str() };
    let rows: Vec<OrderRow> = sqlx::query_as(statement).bind(ids).fetch_all(&mut *connection).await?;
    let orders: Vec<Order> = rows.into_iter().map(Order::try_from).collect::<Result<_, _>>()?;
    let jobs: HashMap<OrderId, Option<i16>> = wanted.iter().copied().collect();
    let jobs = column(&orders, |order| (order.id, jobs.get(&order.id).copied().flatten()));
    let loaded = stock::load_jobs(connection, &jobs).await?;
    let locked = orders.into_iter().zip(loaded).map(|(order, (job, paid))| {
        (order.id, OrderAggregate { order, job, paid, changes: Changes::default() })
    });
    Ok(locked.collect())
}

/// Writes the new statuses with their history rows and events (invariant 1).
pub(super) async fn write_statuses(
    connection: &mut PgConnection,
    aggregates: &[&OrderAggregate],
) -> Result<(), StoreError> {
    let changes = aggregates.iter().filter_map(|aggregate| {
        let change = aggregate.changes.status.as_ref()?;
        Some((&aggregate.order, change))
    });
    let changes: Vec<(&Order, &StatusChange)> = changes.collect();
    if changes.is_empty() {
        return Ok(());
    }
    let events: Vec<OrderEvent> = changes
        .iter()
        .map(|(order, change)| OrderEvent::status_updated(order, change))
        .collect::<Result<_, _>>()?;
    sqlx::query(CHANGE_STATUS)
        .bind(column(&changes, |(order, _)| order.id.0))
        .bind(column(&changes, |(order, _)| order.status.as_str()))
        .bind(column(&changes, |(order, _)| order.version))
        .bind(column(&changes, |(order, _)| order.changed_at))
        .bind(column(&changes, |(_, change)| change.from.as_str()))
        .bind(column(&changes, |(_, change)| change.actor.role.into_str()))
        .bind(column(&changes, |(_, change)| change.actor.id.as_str()))
        .bind(column(&changes, |(_, change)| change.reason.as_deref()))
        .bind(column(&changes, |(order, _)| bucket_of(order.id)))
        .bind(column(&events, |event| event.id))
        .bind(column(&events, |event| event.event_type.into_str()))
        .bind(column(&events, |event| event.payload.as_str()))
        .bind(column(&events, |event| event.headers.as_str()))
        .bind(column(&events, |event| event.traceparent.as_str()))
        .execute(connection)
        .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
pub(super) struct OrderRow {
    pub(super) id: Uuid,
    customer_id: String,
    status: String,
    total_amount: Decimal,
    placed_at: DateTime<Utc>,
    version: i32,
    changed_at: DateTime<Utc>,
    products: Vec<String>,
    quantities: Vec<i32>,
    prices: Vec<Decimal>,
}

impl TryFrom<OrderRow> for Order {
    type Error = StoreError;

    fn try_from(row: OrderRow) -> Result<Self, StoreError> {
        let wrong = |table, column| StoreError::Inconsistent { table, column, id: row.id };
        let lines = row
            .products
            .iter()
            .zip(&row.quantities)
            .zip(&row.prices)
            .map(|((product, quantity), price)| {
                Ok(Line {
                    product_id: ProductId::parse(product).map_err(|_| wrong("order_items", "product_id"))?,
                    quantity: Quantity::new(u64::from(quantity.unsigned_abs()))
                        .map_err(|_| wrong("order_items", "quantity"))?,
                    price: Money::new(*price).map_err(|_| wrong("order_items", "unit_price"))?,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Self {
            id: OrderId(row.id),
            customer: CustomerId::parse(&row.customer_id).map_err(|_| wrong("orders", "customer_id"))?,
            status: row.status.parse::<Status>().map_err(|_| wrong("orders", "status"))?,
            placed_at: row.placed_at,
            total: Money::new(row.total_amount).map_err(|_| wrong("orders", "total_amount"))?,
            version: row.version,
            changed_at: row.changed_at,
            lines,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(number: u128) -> OrderRow {
        OrderRow {
            id: Uuid::from_u128(number),
            customer_id: format!("customer-{number}@example.com"),
            status: "CREATED".to_owned(),
            total_amount: Decimal::ONE,
            placed_at: DateTime::UNIX_EPOCH,
            version: 1,
            changed_at: DateTime::UNIX_EPOCH,
            products: vec!["P1".to_owned()],
            quantities: vec![1],
            prices: vec![Decimal::ONE],
        }
    }

    proptest! {
        /// PostgreSQL returns rows in any order, and a set may contain an order twice, or a missing one.
        #[test]
        fn each_caller_of_a_shared_read_gets_its_own_order(
            asked in proptest::collection::vec(0_u128..8, 1..20),
            found in Just((0_u128..6).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let ids: Vec<OrderId> = asked.iter().map(|number| OrderId(Uuid::from_u128(*number))).collect();
            let rows = found.iter().filter(|number| asked.contains(number)).map(|number| row(*number));
            let assigned = assign(&ids, rows.collect());
            prop_assert_eq!(assigned.len(), ids.len());
            for (id, order) in ids.iter().zip(assigned) {
                let order = order.unwrap();
                prop_assert_eq!(order.is_some(), id.0.as_u128() < 6);
                prop_assert!(order.is_none_or(|order| order.id == *id));
            }
        }
    }

    #[test]
    fn an_unreadable_row_is_an_error_only_for_its_own_callers() {
        let ids: Vec<OrderId> = [1, 2, 1].map(|number| OrderId(Uuid::from_u128(number))).to_vec();
        let broken = OrderRow { status: "LOST".to_owned(), ..row(1) };
        let assigned = assign(&ids, vec![row(2), broken]);
        assert_eq!(assigned.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
    }

    /// pgbench runs this statement for comparison with the benchmark: one order by its id.
    #[test]
    fn the_benchmark_uses_the_same_statement_as_the_service() {
        let benchmark = include_str!("../../tests/bench/sql/select.sql");
        let lines = benchmark.lines().filter(|line| !line.starts_with("--") && !line.starts_with('\\'));
        let benchmark: Vec<&str> = lines.collect();
        let (condition, select) = benchmark.split_last().unwrap();
        let select = format!("\n{}\n", select.join("\n"));
        assert_eq!(SELECT, format!("{select}where o.id = any ($1)"));
        assert!(condition.starts_with("where o.id = (") && condition.ends_with(")::uuid;"), "{condition}");
    }
}
