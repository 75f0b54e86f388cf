//! The stock jobs that are due: which are claimed first, and how many there are.
//!
//! What a claim costs follows from what it returns: one column decides what is due, `next_attempt_at`, and each
//! index below holds the open jobs by it: `stock_jobs_fresh` those that have not failed since their last progress,
//! `stock_jobs_failed` the others. A job that is held is due at the end of its lease, one that waits for an
//! earlier attempt long after that attempt has woken it (`stock`).

use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::OrderId;

/// Fresh jobs come first: the orders of a product that does not answer come up again and again, and the others
/// would queue behind them. The rows are found by their `ctid`, so that no statistics make the planner join
/// the whole table. `leased_until` counts for jobs that a replica of an older release holds.
macro_rules! claim {
    ($sequence:literal) => {
        concat!(
            "
with fresh as materialized (
    select ctid from stock_jobs
    where state in ('TAKING', 'RETURNING') and parked is null and failures = 0
      and next_attempt_at <= now() and leased_until < now()
    order by next_attempt_at ",
            $sequence,
            "
    limit $3
    for update skip locked
),
failed as materialized (
    select ctid from stock_jobs
    where state in ('TAKING', 'RETURNING') and parked is null and failures > 0
      and next_attempt_at <= now() and leased_until < now()
    order by next_attempt_at ",
            $sequence,
            "
    limit $3 - (select count(*) from fresh)
    for update skip locked
)
update stock_jobs
set lease_token = $1, leased_until = now() + $2, next_attempt_at = now() + $2
where ctid = any (array(select ctid from fresh union all select ctid from failed))
returning order_id, attempt, lease_token as holder, deadline < now() as overdue, failures
"
        )
    };
}

const CLAIM_OLDEST: &str = claim!("asc");
const CLAIM_NEWEST: &str = claim!("desc");

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

/// A job that was taken up.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ClaimedJob {
    /// The order.
    #[sqlx(try_from = "Uuid")]
    pub order_id: OrderId,
    /// The attempt.
    pub attempt: i16,
    /// Who holds it now.
    pub holder: Uuid,
    /// Whether it should have come to its end before.
    pub overdue: bool,
    /// How often in a row its calls brought nothing.
    pub failures: i32,
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
    /// Takes up to `limit` jobs that are due and that nobody holds.
    pub async fn claim_stock_jobs(
        &self,
        holder: Uuid,
        limit: i64,
        first: TakeUp,
    ) -> Result<Vec<ClaimedJob>, StoreError> {
        let claim = match first {
            TakeUp::Oldest => CLAIM_OLDEST,
            TakeUp::Newest => CLAIM_NEWEST,
        };
        self.bounded(async {
            let mut connection = self.connection().await?;
            let jobs = sqlx::query_as(claim)
                .bind(holder)
                .bind(self.stock.lease)
                .bind(limit)
                .fetch_all(&mut *connection)
                .await?;
            connection.give_back();
            Ok(jobs)
        })
        .await
    }

    /// Counts the work that has not come to its end.
    pub async fn unfinished_work(&self) -> Result<Unfinished, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            let counts =
                sqlx::query_as(UNFINISHED).bind(Unfinished::MOST).fetch_one(&mut *connection).await?;
            connection.give_back();
            Ok(counts)
        })
        .await
    }
}
