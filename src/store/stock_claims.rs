//! Claiming and counting due stock jobs.
//!
//! The cost of a claim depends on what it returns. One column decides what is due, `next_attempt_at`, and two indexes
//! have the open jobs by it: `stock_jobs_fresh` those without a failure since their last progress, `stock_jobs_failed`
//! the others. A held job is due at the end of its lease; a job that waits for an earlier attempt is due long after
//! that attempt has woken it (`stock`).
//!
//! A claim takes many jobs and records their calls in the same transaction. It never waits for a lock: a job or an
//! order that another transaction has locked stays due. So it cannot deadlock, although it locks jobs before their
//! orders.

use std::collections::HashSet;
use std::sync::LazyLock;

use sqlx::Connection;
use uuid::Uuid;

use super::update::write_aggregates;
use super::{Store, StoreError, orders};
use crate::domain::{OrderAggregate, OrderId};
use crate::metrics::Query;

/// Locks at most $1 due jobs, fresh ones first, and does `rest` with the `fresh` and the `failed` ones. The orders of a
/// product that does not answer are due again and again, and the others would queue behind them. `leased_until` is for
/// jobs that a replica of an older release holds.
fn with_due(direction: &str, rest: &str) -> String {
    format!(
        "
with fresh as materialized (
    select ctid, order_id, attempt, deadline, failures from stock_jobs
    where state in ('TAKING', 'RETURNING') and parked is null and failures = 0
      and next_attempt_at <= now() and leased_until < now()
    order by next_attempt_at {direction}
    limit $1
    for update skip locked
),
failed as materialized (
    select ctid, order_id, attempt, deadline, failures from stock_jobs
    where state in ('TAKING', 'RETURNING') and parked is null and failures > 0
      and next_attempt_at <= now() and leased_until < now()
    order by next_attempt_at {direction}
    limit $1 - (select count(*) from fresh)
    for update skip locked
)
{rest}
"
    )
}

fn lock_due(direction: &str) -> String {
    with_due(
        direction,
        "\
select order_id, attempt, deadline < now() as overdue, failures
from (select * from fresh union all select * from failed) due",
    )
}

pub(super) static DUE_OLDEST: LazyLock<String> = LazyLock::new(|| lock_due("asc"));
pub(super) static DUE_NEWEST: LazyLock<String> = LazyLock::new(|| lock_due("desc"));

/// Claims jobs without reading their orders. The rows are found by `ctid`, so that the planner does not join the whole
/// table.
pub(super) static CLAIM_UNREAD: LazyLock<String> = LazyLock::new(|| {
    with_due(
        "asc",
        "\
update stock_jobs
set lease_token = $2, leased_until = now() + $3, next_attempt_at = now() + $3
where ctid = any (array(select ctid from fresh union all select ctid from failed))
returning order_id, attempt, deadline < now() as overdue, failures",
    )
});

/// Readiness runs this often, so it reads at most $1 jobs of each kind. The overdue jobs are among the oldest of the
/// failed ones and of the others.
pub(super) const UNFINISHED: &str = "
with open as (
    (select deadline from stock_jobs
     where state in ('TAKING', 'RETURNING') and parked is null and failures > 0
     order by next_attempt_at limit $1)
    union all
    (select deadline from stock_jobs
     where state in ('TAKING', 'RETURNING') and parked is null and failures = 0
     order by next_attempt_at limit $1)
    union all
    (select deadline from stock_jobs
     where state in ('TAKING', 'RETURNING') and parked is not null
     order by created_at limit $1)
)
select least(count(*), $1) as open,
       least(count(*) filter (where deadline < now()), $1) as overdue,
       (select count(*) from (
           select from stock_jobs
           where state in ('TAKING', 'RETURNING') and parked is not null
           order by created_at limit $1
       ) parked) as parked,
       (select count(*) from parked_orders) as parked_orders
from open
";

/// Which jobs are claimed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOrder {
    /// The jobs that have waited longest.
    OldestFirst,
    /// The newest jobs. While no call is answered, the older ones have been tried without success.
    NewestFirst,
}

/// A due job.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct DueJob {
    /// The order.
    #[sqlx(try_from = "Uuid")]
    pub order_id: OrderId,
    /// The attempt.
    pub attempt: i16,
    /// Whether it is past its deadline.
    pub overdue: bool,
    /// The number of batches in a row without progress.
    pub failures: i32,
}

/// The result of a claim.
#[derive(Debug)]
pub struct ClaimedJobs<T> {
    /// The claimed jobs, each with the decision about it.
    pub jobs: Vec<(DueJob, T)>,
    /// Whether more jobs may be due.
    pub more: bool,
}

/// Counts of unfinished work, each up to [`Unfinished::MOST`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Unfinished {
    /// All open jobs.
    pub open: i64,
    /// Jobs past their deadline.
    pub overdue: i64,
    /// Jobs that wait for an operator.
    pub parked: i64,
    /// Orders whose events wait for an operator.
    pub parked_orders: i64,
}

impl Unfinished {
    /// Where counting stops.
    pub const MOST: i64 = 1_000;
}

impl Store {
    /// Locks up to `limit` due jobs with their orders, lets `decide` claim each, and writes all changes in one
    /// transaction. A job without a decision stays due.
    pub async fn claim_stock_jobs<T>(
        &self,
        limit: i64,
        first: ClaimOrder,
        mut decide: impl FnMut(&mut OrderAggregate) -> Option<T>,
    ) -> Result<ClaimedJobs<T>, StoreError> {
        let due = match first {
            ClaimOrder::OldestFirst => DUE_OLDEST.as_str(),
            ClaimOrder::NewestFirst => DUE_NEWEST.as_str(),
        };
        self.query(Query::ClaimStockJobs, async |connection| {
            let mut transaction = connection.begin().await?;
            let due: Vec<DueJob> = sqlx::query_as(due).bind(limit).fetch_all(&mut *transaction).await?;
            let is_full = due.len() == usize::try_from(limit).unwrap_or(usize::MAX);
            let (mut has_events, mut changed) = (false, Vec::new());
            let mut claimed = ClaimedJobs { jobs: Vec::with_capacity(due.len()), more: is_full };
            if !due.is_empty() {
                // Only the first job of an order is claimed.
                let mut seen = HashSet::with_capacity(due.len());
                let due: Vec<DueJob> = due.into_iter().filter(|job| seen.insert(job.order_id)).collect();
                let wanted: Vec<_> = due.iter().map(|job| (job.order_id, Some(job.attempt))).collect();
                let mut locked = orders::lock(&mut transaction, &wanted, false).await?;
                for job in due {
                    let Some(mut aggregate) = locked.remove(&job.order_id) else { continue };
                    match decide(&mut aggregate) {
                        Some(decision) => {
                            claimed.jobs.push((job, decision));
                            changed.push(aggregate);
                        }
                        None => claimed.more = true,
                    }
                }
                has_events = changed.iter().any(|aggregate| aggregate.changes.status.is_some());
                let aggregates: Vec<&OrderAggregate> = changed.iter().collect();
                write_aggregates(&mut transaction, &aggregates, self.stock).await?;
            }
            transaction.commit().await?;
            for aggregate in &changed {
                self.database.metrics.orders.changed(aggregate);
            }
            if has_events {
                self.outbox_written.notify_one();
            }
            Ok(claimed)
        })
        .await
    }

    /// Claims one due job without reading it, after a claim of many failed: one of them may be unreadable.
    pub async fn claim_stock_job_unread(&self, holder: Uuid) -> Result<Option<DueJob>, StoreError> {
        self.query(Query::ClaimStockJobs, async |connection| {
            Ok(sqlx::query_as(CLAIM_UNREAD.as_str())
                .bind(1_i64)
                .bind(holder)
                .bind(self.stock.lease)
                .fetch_optional(&mut *connection)
                .await?)
        })
        .await
    }

    /// Counts the unfinished work.
    pub async fn unfinished_work(&self) -> Result<Unfinished, StoreError> {
        self.query(Query::Readiness, async |connection| {
            Ok(sqlx::query_as(UNFINISHED).bind(Unfinished::MOST).fetch_one(&mut *connection).await?)
        })
        .await
    }
}
