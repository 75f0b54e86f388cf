//! The stock jobs that are due: which are taken up first, and how many there are.

use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::OrderId;

/// What has not failed yet comes first: the orders of a product that does not answer come up again and again, and
/// the others would stand in line behind them.
macro_rules! claim {
    ($sequence:literal) => {
        concat!(
            "
update stock_jobs
set lease_token = $1, leased_until = now() + $2
where (order_id, attempt) in (
    select order_id, attempt from stock_jobs
    where state in ('TAKING', 'RETURNING') and parked is null
      and next_attempt_at <= now() and leased_until < now()
      and not exists (
          select from stock_jobs earlier
          where earlier.order_id = stock_jobs.order_id and earlier.attempt < stock_jobs.attempt
            and earlier.state = 'RETURNING' and earlier.parked is null
      )
    order by failures > 0, next_attempt_at ",
            $sequence,
            "
    limit $3
    for update skip locked
)
returning order_id, attempt, lease_token as holder, deadline < now() as overdue, failures
"
        )
    };
}

const CLAIM_OLDEST: &str = claim!("asc");
const CLAIM_NEWEST: &str = claim!("desc");

const UNFINISHED: &str = "
select count(*) as open,
       count(*) filter (where deadline < now()) as overdue,
       count(*) filter (where parked is not null) as parked,
       (select count(*) from parked_orders) as parked_orders
from stock_jobs
where state in ('TAKING', 'RETURNING')
";

/// Which jobs are taken up first.
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

/// Work that has not come to its end.
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
            let counts = sqlx::query_as(UNFINISHED).fetch_one(&mut *connection).await?;
            connection.give_back();
            Ok(counts)
        })
        .await
    }
}
