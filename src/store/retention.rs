//! Deleting what is older than an operator wants to keep: an order with everything that belongs to it, or nothing.
//!
//! Parts alone cannot go: the stock job of a CONFIRMED order says what a cancellation gives back, that of a CREATED
//! one which idempotency keys are used up, and a payment event that a repeat is one. Once the order is gone, a repeated
//! payment is parked as one of an unknown order, and moves nothing.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Connection;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::Status;
use crate::metrics::Query;

/// How far the retention has come among the orders of one status, by `placed_at` and id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionCursor(Option<(DateTime<Utc>, Uuid)>);

/// What one batch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionBatch {
    /// How many orders were deleted.
    pub deleted: u64,
    /// Where the next batch begins; nothing where no older order is left.
    pub next: Option<RetentionCursor>,
}

/// Along `orders_by_status`, from where the last batch ended, so that orders that stay are not read again and again.
const CANDIDATES: &str = "
select id, placed_at, changed_at < now() - $2 as old from orders
where status = $1 and placed_at < now() - $2
  and (placed_at, id) > (coalesce($3, '-infinity'), $4)
order by placed_at, id
limit $5
";

/// Whoever changes an order or its stock or its payments locks its row first. Orders that are locked now are for the
/// next round.
const LOCK: &str = "select id, status from orders where id = any ($1) for update skip locked";

/// A statement of its own, so that it sees what was committed before the lock. An order stays as long as anything about
/// it is unfinished or waits for a person: stock work, events, a refund that is due, a parked payment. With `limit 1`
/// PostgreSQL probes the index once an order; without it, it may join the whole table.
const DELETE: &str = "
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

impl Store {
    /// Looks at up to `limit` orders of a status that were placed more than `age` ago, and deletes those that have not
    /// changed since and of which nothing is unfinished.
    pub async fn forget_orders(
        &self,
        status: Status,
        age: Duration,
        after: RetentionCursor,
        limit: i64,
    ) -> Result<RetentionBatch, StoreError> {
        self.query(Query::Housekeeping, async {
            let mut connection = self.connection().await?;
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
            connection.give_back();
            Ok(RetentionBatch { deleted, next: last.filter(|_| is_full) })
        })
        .await
    }
}
