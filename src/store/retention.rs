//! Deleting old orders, each with everything that belongs to it.
//!
//! Parts of an order cannot be deleted alone. The stock job of a CONFIRMED order has the lines that a cancellation
//! gives back, the job of a CREATED order has the idempotency keys in use, and payment events identify repeats. After
//! the order is deleted, a repeated payment is parked as a payment of an unknown order, and changes nothing.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Connection;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::Status;
use crate::metrics::Query;

/// A position among the orders of one status, by `placed_at` and id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionCursor(Option<(DateTime<Utc>, Uuid)>);

/// Reads along `orders_by_status` from the end of the last batch, so that orders that stay are not read repeatedly.
pub(super) const CANDIDATES: &str = "
select id, placed_at, changed_at < now() - $2 as old from orders
where status = $1 and placed_at < now() - $2
  and (placed_at, id) > (coalesce($3, '-infinity'), $4)
order by placed_at, id
limit $5
";

/// Every change of an order, its stock or its payments locks the row of the order first. Orders that are locked now are
/// deleted in the next round.
pub(super) const LOCK: &str = "select id, status from orders where id = any ($1) for update skip locked";

/// A separate statement, so that it sees everything that was committed before the lock. An order stays while anything
/// about it is unfinished or waits for an operator: stock jobs, events, a due refund, a parked payment. With `limit 1`,
/// PostgreSQL probes the index once per order; without it, it may join the whole table.
pub(super) const DELETE: &str = "
with gone as materialized (
    select id from unnest($1::uuid[]) as locked (id)
    where (select true from stock_jobs
           where order_id = id and (state in ('TAKING', 'RETURNING') or parked is not null) limit 1) is null
      and (select true from refunds_due where order_id = id and done_at is null limit 1) is null
      and (select true from parked_orders where order_id = id limit 1) is null
      and (select true from parked_payments where order_id = id and settled_at is null limit 1) is null
),
lines as (delete from stock_lines where order_id = any (array(select id from gone))),
jobs as (delete from stock_jobs where order_id = any (array(select id from gone))),
settled as (delete from parked_payments where order_id = any (array(select id from gone))),
refunds as (delete from refunds_due where order_id = any (array(select id from gone))),
paid as (delete from payments where order_id = any (array(select id from gone))),
events as (delete from payment_events where order_id = any (array(select id from gone))),
history as (delete from order_history where order_id = any (array(select id from gone))),
items as (delete from order_items where order_id = any (array(select id from gone)))
delete from orders where id = any (array(select id from gone))
";

/// Deletes settled payments whose order is unknown or deleted, which the deletion of orders does not reach.
pub(super) const DELETE_SETTLED: &str = "
delete from parked_payments where ctid = any (array(
    select ctid from parked_payments where settled_at < now() - $1::interval order by settled_at limit $2))
and settled_at < now() - $1::interval
";

impl Store {
    /// Reads up to `limit` orders of a status that were placed more than `age` ago, and deletes those that have not
    /// changed since and have nothing unfinished. Returns the number of deleted orders, and the cursor of the next batch,
    /// `None` after the last order.
    pub async fn delete_old_orders(
        &self,
        status: Status,
        age: Duration,
        after: RetentionCursor,
        limit: i64,
    ) -> Result<(u64, Option<RetentionCursor>), StoreError> {
        self.query(Query::Housekeeping, async |connection| {
            let (placed_at, id) = after.0.unzip();
            let candidates: Vec<(Uuid, DateTime<Utc>, bool)> = sqlx::query_as(CANDIDATES)
                .bind(status.as_str())
                .bind(age)
                .bind(placed_at)
                .bind(id.unwrap_or_default())
                .bind(limit)
                .fetch_all(&mut *connection)
                .await?;
            let is_full = i64::try_from(candidates.len()).is_ok_and(|count| count == limit);
            let last = candidates.last().map(|(id, placed_at, _)| RetentionCursor(Some((*placed_at, *id))));
            let old: Vec<Uuid> = candidates.iter().filter(|(_, _, old)| *old).map(|(id, _, _)| *id).collect();
            let mut transaction = connection.begin().await?;
            let locked: Vec<(Uuid, String)> =
                sqlx::query_as(LOCK).bind(old).fetch_all(&mut *transaction).await?;
            let unchanged = locked.into_iter().filter(|(_, now)| now == status.as_str());
            let locked: Vec<Uuid> = unchanged.map(|(id, _)| id).collect();
            let deleted = sqlx::query(DELETE).bind(locked).execute(&mut *transaction).await?.rows_affected();
            transaction.commit().await?;
            Ok((deleted, last.filter(|_| is_full)))
        })
        .await
    }

    /// Deletes up to `limit` parked payments that were settled more than `age` ago. Returns how many it deleted.
    pub async fn delete_settled_payments(&self, age: Duration, limit: i64) -> Result<u64, StoreError> {
        self.execute(Query::Housekeeping, sqlx::query(DELETE_SETTLED).bind(age).bind(limit)).await
    }
}
