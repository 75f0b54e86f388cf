//! Counts of unfinished work, for a scrape. Each count stops at 10,000 and reads along an index.

use super::payments::COUNT_PARKED;
use super::{Store, StoreError};
use crate::domain::aggregate::reason;
use crate::metrics::Query;

/// Counting stops here.
const MAX_COUNT: i64 = 10_000;

/// Counts of unfinished work, each at most 10,000.
#[derive(Clone, Debug, PartialEq)]
pub struct UnfinishedWork {
    /// Events that Kafka has not acknowledged.
    pub outbox: Outbox,
    /// Unfinished stock jobs.
    pub stock: StockJobs,
    /// Parked records of the payment topic, by reason.
    pub parked_payments: Vec<(String, i64)>,
    /// Refunds that are due, by reason.
    pub refunds_due: Vec<(String, i64)>,
    /// The age of the oldest, in seconds; 0 without any.
    pub oldest_refund_seconds: f64,
}

/// Events that Kafka has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, sqlx::FromRow)]
pub struct Outbox {
    /// The number, without events of parked orders.
    pub pending: i64,
    /// The age of the oldest, in seconds; 0 without any.
    pub oldest_seconds: f64,
    /// Parked orders.
    pub parked_orders: i64,
}

/// Unfinished stock jobs.
#[derive(Clone, Copy, Debug, PartialEq, sqlx::FromRow)]
pub struct StockJobs {
    /// In state TAKING.
    pub taking: i64,
    /// In state RETURNING.
    pub returning: i64,
    /// Past their deadline, and not parked.
    pub overdue: i64,
    /// Parked: they wait for an operator.
    pub parked: i64,
    /// The age of the oldest, in seconds; 0 without any.
    pub oldest_seconds: f64,
    /// TAKING and past the deadline.
    pub taking_overdue: i64,
    /// TAKING, paid, and past the deadline or parked: the order is paid and still CREATED.
    pub paid_not_confirmed: i64,
}

/// Reads each bucket from its floor on, like the relay: only deleted rows and events of parked orders are below the
/// floor. The events of a bucket come by position, so the first is the oldest.
pub(super) const OUTBOX: &str = "
select
    (select count(*) from (
        select from relay_leases lease
        cross join lateral (
            select created_at from outbox
            where outbox.bucket = lease.bucket and outbox.position >= lease.floor
              and not exists (select from parked_orders where parked_orders.order_id = outbox.order_id)
            order by position limit $1
        ) event
        limit $1
    ) counted) as pending,
    (
        select coalesce(extract(epoch from now() - min(event.created_at)), 0)::float8 from relay_leases lease
        cross join lateral (
            select created_at from outbox
            where outbox.bucket = lease.bucket and outbox.position >= lease.floor
              and not exists (select from parked_orders where parked_orders.order_id = outbox.order_id)
            order by position limit 1
        ) event
    ) as oldest_seconds,
    (select count(*) from (select from parked_orders order by order_id limit $1) counted) as parked_orders
";

/// Reads the start of each index: the jobs that have been due or parked longest.
pub(super) const STOCK: &str = "
with unfinished as materialized (
    (select state, paid, deadline, created_at, false as is_parked from stock_jobs
     where state in ('TAKING', 'RETURNING') and parked is null and failures > 0
     order by next_attempt_at limit $1)
    union all
    (select state, paid, deadline, created_at, false from stock_jobs
     where state in ('TAKING', 'RETURNING') and parked is null and failures = 0
     order by next_attempt_at limit $1)
    union all
    (select state, paid, deadline, created_at, true from stock_jobs
     where state in ('TAKING', 'RETURNING') and parked is not null
     order by created_at limit $1)
)
select least(count(*) filter (where state = 'TAKING'), $1) as taking,
       least(count(*) filter (where state = 'RETURNING'), $1) as returning,
       least(count(*) filter (where deadline < now() and not is_parked), $1) as overdue,
       count(*) filter (where is_parked) as parked,
       coalesce(extract(epoch from now() - min(created_at)), 0)::float8 as oldest_seconds,
       least(count(*) filter (where state = 'TAKING' and deadline < now()), $1) as taking_overdue,
       least(count(*) filter (where state = 'TAKING' and paid and (deadline < now() or is_parked)), $1)
           as paid_not_confirmed
from unfinished
";

/// The name for all other reasons of refunds.
pub const OTHER_REASON: &str = "OTHER";

/// The reason may be free text of an admin; all such texts count as [`OTHER_REASON`].
pub(super) const REFUNDS: &str = "
select case when reason = any ($2) then reason else 'OTHER' end as reason,
       count(*)
from (select reason from refunds_due where done_at is null order by due_at limit $1) due
group by 1
";

pub(super) const OLDEST_REFUND: &str = "
select coalesce(extract(epoch from now() - min(due_at)), 0)::float8
from (select due_at from refunds_due where done_at is null order by due_at limit 1) due
";

impl Store {
    /// Counts the unfinished work on one connection.
    pub async fn count_unfinished_work(&self) -> Result<UnfinishedWork, StoreError> {
        self.query(Query::Scrape, async |connection| {
            let outbox = sqlx::query_as(OUTBOX).bind(MAX_COUNT).fetch_one(&mut *connection).await?;
            let stock = sqlx::query_as(STOCK).bind(MAX_COUNT).fetch_one(&mut *connection).await?;
            let parked_payments =
                sqlx::query_as(COUNT_PARKED).bind(MAX_COUNT).fetch_all(&mut *connection).await?;
            let refunds_due =
                sqlx::query_as(REFUNDS).bind(MAX_COUNT).bind(reason::ALL).fetch_all(&mut *connection).await?;
            let oldest_refund_seconds = sqlx::query_scalar(OLDEST_REFUND).fetch_one(&mut *connection).await?;
            Ok(UnfinishedWork { outbox, stock, parked_payments, refunds_due, oldest_refund_seconds })
        })
        .await
    }
}
