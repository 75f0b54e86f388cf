//! Finding unpaid orders.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::OrderId;
use crate::metrics::Query;

/// `order by` with `limit` makes PostgreSQL use `orders_by_status`, independent of statistics.
pub(super) const OLDEST_DUE: &str = "
select now() as now,
       (
           select placed_at from orders
           where status = 'CREATED' and (placed_at, id) > ($1, $2) and placed_at <= now() - $3
           order by placed_at, id
           limit 1
       ) is not null as is_any_due
";

/// A page along `orders_by_status`. An order whose stock is being taken was paid, or an admin is confirming it; an
/// order with a parked payment waits for an operator. The limits keep each probe an index scan per order.
pub(super) const PAGE: &str = "
select head.id, head.placed_at, job.found is null and parked.found is null as is_unpaid
from (
    select id, placed_at from orders
    where status = 'CREATED' and (placed_at, id) > ($1, $2) and placed_at <= $3
    order by placed_at, id
    limit $4
) head
left join lateral (
    select true as found from stock_jobs where order_id = head.id and state = 'TAKING' limit 1
) job on true
left join lateral (
    select true as found from parked_payments where order_id = head.id and settled_at is null limit 1
) parked on true
order by head.placed_at, head.id
";

/// A position among the CREATED orders, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpaidCursor {
    placed_at: DateTime<Utc>,
    id: Uuid,
}

impl UnpaidCursor {
    /// Before the oldest order.
    pub const START: Self = Self { placed_at: DateTime::UNIX_EPOCH, id: Uuid::nil() };
}

impl Store {
    /// The time of the database, if an order after the cursor has been CREATED for longer than `ttl`.
    pub async fn unpaid_order_is_due(
        &self,
        ttl: Duration,
        after: UnpaidCursor,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.query(Query::FindUnpaid, async |connection| {
            let (now, is_any_due): (DateTime<Utc>, bool) = sqlx::query_as(OLDEST_DUE)
                .bind(after.placed_at)
                .bind(after.id)
                .bind(ttl)
                .fetch_one(&mut *connection)
                .await?;
            Ok(is_any_due.then_some(now))
        })
        .await
    }

    /// Reads the next `limit` CREATED orders after the cursor that were placed by `until`. Returns the unpaid ones, and
    /// the cursor of the next page, `None` after the last.
    pub async fn unpaid_orders(
        &self,
        until: DateTime<Utc>,
        after: UnpaidCursor,
        limit: i64,
    ) -> Result<(Vec<OrderId>, Option<UnpaidCursor>), StoreError> {
        self.query(Query::FindUnpaid, async |connection| {
            let rows: Vec<(Uuid, DateTime<Utc>, bool)> = sqlx::query_as(PAGE)
                .bind(after.placed_at)
                .bind(after.id)
                .bind(until)
                .bind(limit)
                .fetch_all(&mut *connection)
                .await?;
            let next = rows.last().map(|(id, placed_at, _)| UnpaidCursor { placed_at: *placed_at, id: *id });
            let unpaid = rows.into_iter().filter(|(.., is_unpaid)| *is_unpaid);
            Ok((unpaid.map(|(id, ..)| OrderId(id)).collect(), next))
        })
        .await
    }
}
