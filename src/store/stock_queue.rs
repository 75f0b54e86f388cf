//! The stock jobs that are due: which are claimed first, and how many there are.
//!
//! What a claim costs follows from what it returns: one column decides what is due, `next_attempt_at`, and each
//! index below holds the open jobs by it: `stock_jobs_fresh` those that have not failed since their last progress,
//! `stock_jobs_failed` the others. A job that is held is due at the end of its lease, one that waits for an
//! earlier attempt long after that attempt has woken it (`stock`).
//!
//! A claim takes many jobs and writes down their calls in the same transaction. It waits for nobody: a job or an
//! order that another transaction has locked stays due. So it cannot be part of a deadlock, although it locks jobs
//! before their orders.

use std::collections::HashSet;

use sqlx::Connection;
use uuid::Uuid;

use super::update::write_aggregates;
use super::{Store, StoreError, orders};
use crate::domain::{OrderAggregate, OrderId};
use crate::metrics::Query;

/// The jobs that are due, locked, at most $1. Fresh ones come first: the orders of a product that does not answer
/// come up again and again, and the others would queue behind them. `leased_until` counts for jobs that a replica
/// of an older release holds.
macro_rules! due {
    ($sequence:literal, $rest:literal) => {
        concat!(
            "
with fresh as materialized (
    select ctid, order_id, attempt, deadline, failures from stock_jobs
    where state in ('TAKING', 'RETURNING') and parked is null and failures = 0
      and next_attempt_at <= now() and leased_until < now()
    order by next_attempt_at ",
            $sequence,
            "
    limit $1
    for update skip locked
),
failed as materialized (
    select ctid, order_id, attempt, deadline, failures from stock_jobs
    where state in ('TAKING', 'RETURNING') and parked is null and failures > 0
      and next_attempt_at <= now() and leased_until < now()
    order by next_attempt_at ",
            $sequence,
            "
    limit $1 - (select count(*) from fresh)
    for update skip locked
)",
            $rest
        )
    };
}

macro_rules! due_jobs {
    ($sequence:literal) => {
        due!(
            $sequence,
            "
select order_id, attempt, deadline < now() as overdue, failures
from (select * from fresh union all select * from failed) due
"
        )
    };
}

const DUE_OLDEST: &str = due_jobs!("asc");
const DUE_NEWEST: &str = due_jobs!("desc");

/// Claims jobs without reading them. The rows are found by their `ctid`, so that no statistics make the planner
/// join the whole table.
const CLAIM_UNREAD: &str = due!(
    "asc",
    "
update stock_jobs
set lease_token = $2, leased_until = now() + $3, next_attempt_at = now() + $3
where ctid = any (array(select ctid from fresh union all select ctid from failed))
returning order_id, attempt, deadline < now() as overdue, failures
"
);

/// Readiness asks this often, so it looks at no more than $1 jobs of each kind. The oldest of those that failed,
/// and the oldest of the others, are the ones that are overdue.
const UNFINISHED: &str = "
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
pub enum TakeUp {
    /// Those that wait for longest.
    Oldest,
    /// The latest: while nothing is answered, those before it have been tried in vain.
    Newest,
}

/// A job that is due.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct DueJob {
    /// The order.
    #[sqlx(try_from = "Uuid")]
    pub order_id: OrderId,
    /// The attempt.
    pub attempt: i16,
    /// Whether it should have come to its end before.
    pub overdue: bool,
    /// How often in a row its calls brought nothing.
    pub failures: i32,
}

/// What a claim of many jobs brought.
#[derive(Debug)]
pub struct ClaimedJobs<T> {
    /// The jobs that were claimed, each with what was decided.
    pub jobs: Vec<(DueJob, T)>,
    /// Whether more jobs may be due.
    pub more: bool,
}

/// Work that has not come to its end, each figure up to [`Unfinished::MOST`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Unfinished {
    /// All of it.
    pub open: i64,
    /// Past its deadline.
    pub overdue: i64,
    /// Waiting for a person.
    pub parked: i64,
    /// Orders whose events wait for a person.
    pub parked_orders: i64,
}

impl Unfinished {
    /// Where counting stops.
    pub const MOST: i64 = 1_000;
}

impl Store {
    /// Locks up to `limit` jobs that are due, with their orders, lets `decide` claim each, and makes all changes
    /// durable in one transaction. A job for which it decides nothing stays due.
    pub async fn claim_stock_jobs<T>(
        &self,
        limit: i64,
        first: TakeUp,
        mut decide: impl FnMut(&mut OrderAggregate) -> Option<T>,
    ) -> Result<ClaimedJobs<T>, StoreError> {
        let due = match first {
            TakeUp::Oldest => DUE_OLDEST,
            TakeUp::Newest => DUE_NEWEST,
        };
        self.query(Query::ClaimStockJobs, async {
            let mut connection = self.connection().await?;
            let mut transaction = connection.begin().await?;
            let due: Vec<DueJob> = sqlx::query_as(due).bind(limit).fetch_all(&mut *transaction).await?;
            let is_full = due.len() == usize::try_from(limit).unwrap_or(usize::MAX);
            let (mut has_events, mut changed) = (false, Vec::new());
            let mut claimed = ClaimedJobs { jobs: Vec::with_capacity(due.len()), more: is_full };
            if !due.is_empty() {
                // Of two jobs of one order the first is claimed.
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
            connection.give_back();
            for aggregate in &changed {
                self.database.metrics().orders.changed(aggregate);
            }
            if has_events {
                self.outbox_written.notify_one();
            }
            Ok(claimed)
        })
        .await
    }

    /// Claims one job that is due without reading it: for when a claim of many failed, because one of them may be
    /// what cannot be read.
    pub async fn claim_stock_job_unread(&self, holder: Uuid) -> Result<Option<DueJob>, StoreError> {
        self.query(Query::ClaimStockJobs, async {
            let mut connection = self.connection().await?;
            let job = sqlx::query_as(CLAIM_UNREAD)
                .bind(1_i64)
                .bind(holder)
                .bind(self.stock.lease)
                .fetch_optional(&mut *connection)
                .await?;
            connection.give_back();
            Ok(job)
        })
        .await
    }

    /// Counts the work that has not come to its end.
    pub async fn unfinished_work(&self) -> Result<Unfinished, StoreError> {
        self.query(Query::Readiness, async {
            let mut connection = self.connection().await?;
            let counts =
                sqlx::query_as(UNFINISHED).bind(Unfinished::MOST).fetch_one(&mut *connection).await?;
            connection.give_back();
            Ok(counts)
        })
        .await
    }
}
