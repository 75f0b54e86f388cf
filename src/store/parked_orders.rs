//! Parked orders and stock lines, and the actions of operators on them. Each action is recorded in its transaction.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::connection::column;
use super::{PendingEvent, Store, StoreError};
use crate::domain::OrderId;
use crate::domain::event::bucket_of;
use crate::domain::stock::LineState;
use crate::metrics::Query;

/// An order whose events wait for an operator.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ParkedOrder {
    /// The order.
    #[sqlx(try_from = "Uuid")]
    pub order_id: OrderId,
    /// The event that Kafka refused.
    pub event_id: Uuid,
    /// Its sequence number within the order.
    pub sequence: i32,
    /// The error.
    pub error: String,
    /// When it was parked.
    pub parked_at: DateTime<Utc>,
    /// The number of waiting events.
    #[sqlx(skip)]
    pub waiting: i64,
}

/// A line of a parked stock job.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ParkedStockLine {
    /// The order.
    #[sqlx(try_from = "Uuid")]
    pub order_id: OrderId,
    /// The attempt.
    pub attempt: i16,
    /// The line.
    pub line_number: i16,
    /// Its product.
    pub product_id: String,
    /// The quantity.
    pub quantity: i32,
    /// TAKING or RETURNING: the outcome of its call is unknown. TODO: its take was refused, and no look-up confirmed
    /// why.
    pub state: String,
    /// Why an operator must look at it.
    pub parked: String,
}

/// Parks an order only while the event is in the outbox: a slow replica may have seen the refusal long ago.
pub(super) const PARK: &str = "
insert into parked_orders (order_id, event_id, sequence, error)
select order_id, event_id, sequence, $3 from outbox where bucket = $1 and position = $2
on conflict do nothing
";

pub(super) const LIST: &str = "select * from parked_orders order by parked_at";

/// The bucket is redundant, but it is the key of the outbox, which may have millions of rows.
pub(super) const WAITING: &str = "
select order_id, count(*) from outbox where bucket = any ($1) and order_id = any ($2) group by order_id
";

/// Frees a parked order and gives its events new positions in their old order, without the refused event if $4. The old
/// positions may be below the floor of the relay, which it does not read (`events/floor.rs`). Uses the bucket like
/// [`WAITING`]. The refused event may be gone: a slow replica that did not see the parking sent it.
pub(super) const FREE: &str = "
with parked as (
    delete from parked_orders where order_id = $1 returning *
),
event as (
    delete from outbox using parked
    where outbox.bucket = $3 and outbox.order_id = parked.order_id
    returning outbox.*
),
moved as (
    insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers, created_at)
    select bucket, event_id, order_id, sequence, event_type, payload, headers, created_at
    from event
    where not $4 or event_id not in (select event_id from parked)
    order by position
)
insert into interventions (order_id, action, detail, actor)
select parked.order_id, case when $4 then 'OUTBOX_SKIP' else 'OUTBOX_REPLAY' end,
       case when $4 then coalesce(payload, format('event %s was gone already', parked.event_id))
            else parked.event_id::text end, $2
from parked left join event on event.event_id = parked.event_id
";

pub(super) const STOCK: &str = "
select line.order_id, line.attempt, line.line_number, line.product_id, line.quantity, line.state, job.parked
from (
    select * from stock_jobs
    where state in ('TAKING', 'RETURNING') and parked is not null
    order by created_at limit $1
) job
join stock_lines line on line.order_id = job.order_id and line.attempt = job.attempt
where job.state in ('TAKING', 'RETURNING')
  and (line.state in ('TAKING', 'RETURNING') or line.state = 'TODO' and line.last_error is not null)
order by job.created_at, line.line_number
";

/// Locks the order first, like every write to its stock job or its events. Otherwise a concurrent write of the stock
/// job could overwrite the resolution.
pub(super) const LOCK_ORDER: &str = "select from orders where id = $1 for update";

/// Resolves a line, and makes its job due again.
pub(super) const RESOLVE: &str = "
with line as (
    update stock_lines line set state = $4, sent_at = null
    from stock_jobs job
    where line.order_id = $1 and line.attempt = $2 and line.line_number = $3 and line.state = $5
      and job.order_id = $1 and job.attempt = $2 and job.parked is not null
    returning line.*
),
job as (
    update stock_jobs set parked = null, failures = 0, refusals = 0, next_attempt_at = now(), leased_until = '-infinity'
    where order_id = $1 and attempt = $2 and exists (select from line)
)
insert into interventions (order_id, action, detail, actor)
select $1, 'STOCK_RESOLVE', format('attempt %s line %s: %s to %s', $2, $3, $5, $4), $6 from line
";

impl Store {
    /// Parks the order of an event that Kafka refuses as invalid.
    pub async fn park_order(&self, event: &PendingEvent, error: &str) -> Result<(), StoreError> {
        let park = sqlx::query(PARK).bind(event.bucket).bind(event.position).bind(error);
        self.execute(Query::Park, park).await?;
        Ok(())
    }

    /// The parked orders, oldest first.
    pub async fn parked_orders(&self) -> Result<Vec<ParkedOrder>, StoreError> {
        self.query(Query::Operate, async |connection| {
            let mut parked: Vec<ParkedOrder> = sqlx::query_as(LIST).fetch_all(&mut *connection).await?;
            let waiting: Vec<(Uuid, i64)> = sqlx::query_as(WAITING)
                .bind(column(&parked, |order| bucket_of(order.order_id)))
                .bind(column(&parked, |order| order.order_id.0))
                .fetch_all(connection)
                .await?;
            let waiting: HashMap<_, _> = waiting.into_iter().collect();
            for order in &mut parked {
                order.waiting = waiting.get(&order.order_id.0).copied().unwrap_or_default();
            }
            Ok(parked)
        })
        .await
    }

    /// Frees the events of a parked order, without the refused one if `skip`; the relay sends them. Returns whether the
    /// order was parked.
    ///
    /// Locks the order first, so that concurrent events come after those that are moved.
    pub async fn free_parked(&self, order: OrderId, skip: bool, actor: &str) -> Result<bool, StoreError> {
        self.query(Query::Operate, async |connection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(LOCK_ORDER).bind(order.0).execute(&mut *transaction).await?;
            let freed = sqlx::query(FREE)
                .bind(order.0)
                .bind(actor)
                .bind(bucket_of(order))
                .bind(skip)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
            Ok(freed.rows_affected() > 0)
        })
        .await
    }

    /// The lines of the oldest `limit` parked stock jobs.
    pub async fn parked_stock(&self, limit: i64) -> Result<Vec<ParkedStockLine>, StoreError> {
        self.fetch_all(Query::Operate, sqlx::query_as(STOCK).bind(limit)).await
    }

    /// Records what an operator found out about a parked line: whether its call was applied. Returns whether the line
    /// was parked.
    pub async fn resolve_stock(
        &self,
        (order, attempt, line): (OrderId, i16, i16),
        applied: bool,
        actor: &str,
    ) -> Result<bool, StoreError> {
        self.query(Query::Operate, async |connection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(LOCK_ORDER).bind(order.0).execute(&mut *transaction).await?;
            let mut resolved = false;
            for (from, to) in transitions(applied) {
                resolved |= resolve(&mut transaction, (order, attempt, line), (from, to), actor).await?;
                if resolved {
                    break;
                }
            }
            transaction.commit().await?;
            Ok(resolved)
        })
        .await
    }
}

/// The new states of a line that is being taken, that is being given back, or whose refusal no look-up confirmed.
fn transitions(applied: bool) -> [(LineState, LineState); 3] {
    use LineState::{Returned, Returning, Taken, Taking, Todo};
    if applied {
        [(Taking, Taken), (Returning, Returned), (Todo, Taken)]
    } else {
        [(Taking, Todo), (Returning, Taken), (Todo, Todo)]
    }
}

async fn resolve(
    connection: &mut PgConnection,
    (order, attempt, line): (OrderId, i16, i16),
    (from, to): (LineState, LineState),
    actor: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query(RESOLVE)
        .bind(order.0)
        .bind(attempt)
        .bind(line)
        .bind(to.into_str())
        .bind(from.into_str())
        .bind(actor)
        .execute(connection)
        .await?;
    Ok(done.rows_affected() > 0)
}
