//! The outbox as the relay sees it: leases on buckets, events that are pending, events that are done.

use std::time::Duration;

use sqlx::Connection;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::OrderId;
use crate::domain::event::BUCKETS;

/// The buckets that a replica holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The buckets, ascending.
    pub buckets: Vec<i16>,
}

/// An event that Kafka has not acknowledged yet.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct PendingEvent {
    /// Its bucket.
    pub bucket: i16,
    /// Its place in the bucket.
    pub position: i64,
    /// The order, also the key of the record.
    #[sqlx(try_from = "Uuid")]
    pub order_id: OrderId,
    /// 1, 2, 3 … within the order.
    pub sequence: i32,
    /// The value of the record.
    pub payload: String,
    /// The headers of the record: a JSON array of `[name, value]`.
    pub headers: String,
}

impl From<Uuid> for OrderId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

/// Registers the replica. Before [`FORGET`]: whoever waits here for the row that is its own holds no other yet.
const HEARTBEAT: &str = "
insert into relay_replicas (replica, expires_at) values ($1, now() + $2)
on conflict (replica) do update set expires_at = excluded.expires_at
";

/// Forgets the replicas that are gone, and counts who is left. After an outage of the database all of them
/// look gone to each other: rows that another replica has in hand are passed over, or each would wait for the
/// other's.
const FORGET: &str = "
with gone as (
    delete from relay_replicas
    where replica in (
        select replica from relay_replicas
        where expires_at < now() and replica <> $1
        for update skip locked
    )
)
select count(*) from relay_replicas where replica <> $1 and expires_at >= now()
";

/// Renews up to the fair share and lets go of the rest, so that a new replica finds something to do.
const RENEW: &str = "
with held as (
    select bucket, row_number() over (order by bucket) <= $3 as keep
    from relay_leases
    where owner = $1
)
update relay_leases lease
set owner = case when held.keep then $1 end,
    expires_at = case when held.keep then now() + $2 else '-infinity' end
from held
where lease.bucket = held.bucket and lease.owner = $1
returning lease.bucket, held.keep
";

/// Takes buckets that nobody holds any more. Rows that another replica is just taking are passed over.
const CLAIM: &str = "
update relay_leases
set owner = $1, expires_at = now() + $2
where bucket in (
    select bucket from relay_leases
    where expires_at < now() and owner is distinct from $1
    order by bucket
    limit $3
    for update skip locked
)
returning bucket
";

const PENDING: &str = "
select event.bucket, event.position, event.order_id, event.sequence, event.payload, event.headers
from unnest($1::smallint[]) as held (bucket)
cross join lateral (
    select * from outbox
    where outbox.bucket = held.bucket
      and not exists (select from parked_orders where parked_orders.order_id = outbox.order_id)
    order by position
    limit $2
) event
";

const DELETE: &str = "
delete from outbox
using unnest($1::smallint[], $2::bigint[]) as done (bucket, position)
where outbox.bucket = done.bucket and outbox.position = done.position
";

impl Store {
    /// Renews the leases of `replica` for `duration`, and evens out the buckets among the replicas that live.
    pub async fn renew_lease(&self, replica: Uuid, duration: Duration) -> Result<Lease, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            let mut transaction = connection.begin().await?;
            sqlx::query(HEARTBEAT).bind(replica).bind(duration).execute(&mut *transaction).await?;
            let others: i64 = sqlx::query_scalar(FORGET).bind(replica).fetch_one(&mut *transaction).await?;
            let share = fair_share(others);
            let renewed: Vec<(i16, bool)> = sqlx::query_as(RENEW)
                .bind(replica)
                .bind(duration)
                .bind(share)
                .fetch_all(&mut *transaction)
                .await?;
            let mut buckets: Vec<i16> =
                renewed.into_iter().filter_map(|(bucket, keep)| keep.then_some(bucket)).collect();
            let missing = share - i64::try_from(buckets.len()).unwrap_or(i64::MAX);
            if missing > 0 {
                let claimed: Vec<i16> = sqlx::query_scalar(CLAIM)
                    .bind(replica)
                    .bind(duration)
                    .bind(missing)
                    .fetch_all(&mut *transaction)
                    .await?;
                buckets.extend(claimed);
            }
            transaction.commit().await?;
            connection.give_back();
            buckets.sort_unstable();
            Ok(Lease { buckets })
        })
        .await
    }

    /// Gives all leases of `replica` back at once, so that the others need not wait until they expire.
    pub async fn release_lease(&self, replica: Uuid) -> Result<(), StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            sqlx::query(
                "with gone as (delete from relay_replicas where replica = $1)
                 update relay_leases set owner = null, expires_at = '-infinity' where owner = $1",
            )
            .bind(replica)
            .execute(&mut *connection)
            .await?;
            connection.give_back();
            Ok(())
        })
        .await
    }

    /// The oldest events of each held bucket, at most `limit` a bucket, each bucket by position; those of parked
    /// orders wait.
    pub async fn pending_events(&self, lease: &Lease, limit: i64) -> Result<Vec<PendingEvent>, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            let events =
                sqlx::query_as(PENDING).bind(&lease.buckets).bind(limit).fetch_all(&mut *connection).await?;
            connection.give_back();
            Ok(events)
        })
        .await
    }

    /// Deletes events that Kafka acknowledged, each by its `(bucket, position)`.
    pub async fn delete_events(&self, done: &[(i16, i64)]) -> Result<(), StoreError> {
        let (buckets, positions): (Vec<i16>, Vec<i64>) = done.iter().copied().unzip();
        self.bounded(async {
            let mut connection = self.connection().await?;
            sqlx::query(DELETE).bind(buckets).bind(positions).execute(&mut *connection).await?;
            connection.give_back();
            Ok(())
        })
        .await
    }
}

/// How many buckets one of `others + 1` replicas holds, rounded up so that none is left over.
fn fair_share(others: i64) -> i64 {
    let replicas = others + 1;
    (i64::from(BUCKETS) + replicas - 1) / replicas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_replicas_cover_all_buckets() {
        for others in 0..100 {
            assert!(fair_share(others) * (others + 1) >= i64::from(BUCKETS), "{others}");
        }
        assert_eq!((fair_share(0), fair_share(1), fair_share(2), fair_share(63)), (64, 32, 22, 1));
    }
}
