//! The outbox for the relay: leases on buckets, pending events, and acknowledged events.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::OrderId;
use crate::domain::event::BUCKETS;
use crate::metrics::Query;

/// The start time of the PostgreSQL server. It identifies the server, for example after a failover.
pub type ServerStart = DateTime<Utc>;

/// The buckets of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Each bucket with its stored floor: the position where its reads start.
    pub floors: BTreeMap<i16, i64>,
    /// The server that the floors come from.
    pub server: ServerStart,
}

/// A range of positions in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The bucket.
    pub bucket: i16,
    /// The first position.
    pub from: i64,
    /// The position after the last one.
    pub to: i64,
}

/// An open transaction that may have written to the outbox.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct OutboxWriter {
    /// Its virtual transaction id, which is unique on the server while it runs.
    pub transaction: String,
    /// The server process. `None` for a prepared transaction.
    pub pid: Option<i32>,
}

/// The open transactions that may still commit events at positions assigned so far.
#[derive(Clone, Debug)]
pub struct OutboxWriters {
    /// The server.
    pub server: ServerStart,
    /// The last position that was assigned before `open` was read.
    pub last_position: i64,
    /// All open transactions with a position up to `last_position`, and perhaps others.
    pub open: Vec<OutboxWriter>,
}

/// An event that Kafka has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct PendingEvent {
    /// Its bucket.
    pub bucket: i16,
    /// Its position in the bucket.
    pub position: i64,
    /// The order, which is also the key of the record.
    #[sqlx(try_from = "Uuid")]
    pub order_id: OrderId,
    /// 1, 2, 3 … within the order.
    pub sequence: i32,
    /// The value of the record.
    pub payload: String,
    /// The headers of the record: a JSON array of `[name, value]`.
    pub headers: String,
    /// When it was inserted, by the clock of the database.
    pub created_at: DateTime<Utc>,
    /// When it was read, by the same clock.
    pub read_at: DateTime<Utc>,
}

impl From<Uuid> for OrderId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

/// Registers the replica. Runs before [`FORGET`], so that a replica that waits here for its own row holds no other.
pub(super) const HEARTBEAT: &str = "
insert into relay_replicas (replica, expires_at) values ($1, now() + $2)
on conflict (replica) do update set expires_at = excluded.expires_at
";

/// Deletes expired replicas, and counts the others. After an outage of the database, all replicas seem expired to each
/// other. So rows that another replica has locked are skipped, or each would wait for the other.
pub(super) const FORGET: &str = "
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

/// Renews leases up to the fair share and releases the rest, so that a new replica gets buckets.
pub(super) const RENEW: &str = "
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
returning lease.bucket, lease.floor, held.keep
";

/// Claims buckets without a holder. Skips rows that another replica is claiming.
pub(super) const CLAIM: &str = "
update relay_leases
set owner = $1, expires_at = now() + $2
where bucket in (
    select bucket from relay_leases
    where expires_at < now() and owner is distinct from $1
    order by bucket
    limit $3
    for update skip locked
)
returning bucket, floor
";

pub(super) const SERVER: &str = "select pg_postmaster_start_time()";

/// Counts the buckets without a holder.
pub(super) const FREE: &str = "select count(*) from relay_leases where expires_at < now()";

/// A floor stays true forever, so any replica may store it, even without the lease of the bucket. It belongs to one
/// server: another one that lost the latest commits assigns the same positions again.
pub(super) const RAISE: &str = "
update relay_leases lease
set floor = greatest(lease.floor, raised.floor)
from unnest($1::smallint[], $2::bigint[]) as raised (bucket, floor)
where lease.bucket = raised.bucket and lease.floor < raised.floor and pg_postmaster_start_time() = $3
returning lease.bucket, lease.floor
";

/// Read before [`WRITERS`]: a transaction that took its position before this read holds its lock already.
pub(super) const LAST_POSITION: &str = "
select pg_postmaster_start_time(), coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'position')), 0)
";

/// An insert locks the table before it takes a position, and releases the lock after its transaction is visible.
pub(super) const WRITERS: &str = "
select distinct virtualtransaction as transaction, pid
from pg_locks
where locktype = 'relation'
  and database = (select oid from pg_database where datname = current_database())
  and relation = 'outbox'::regclass
  and mode = 'RowExclusiveLock'
  and granted
";

/// Bounded by positions, because deleted rows cost as much as others until vacuum removes them. The floors belong to
/// one server, so another one returns nothing. Only while an order is parked is there a probe per event; `offset 0`
/// prevents a hash of all parked orders instead.
pub(super) const PENDING: &str = "
select event.bucket, event.position, event.order_id, event.sequence, event.payload, event.headers,
       event.created_at, statement_timestamp() as read_at
from unnest($1::smallint[], $2::bigint[], $3::bigint[]) as held (bucket, first, bound)
cross join lateral (
    select * from outbox
    where outbox.bucket = held.bucket
      and outbox.position >= held.first and outbox.position < held.bound
      and (
          not exists (select from parked_orders)
          or not exists (select from parked_orders where parked_orders.order_id = outbox.order_id offset 0)
      )
    order by position
    limit $4
) event
where pg_postmaster_start_time() = $5
";

/// One index probe per event. `offset 0` prevents a join in the other direction, which the planner chooses if the
/// outbox was analyzed while empty. Then each delete would read all deleted rows that an open snapshot keeps.
pub(super) const DELETE: &str = "
delete from outbox
where ctid = any (array(
    select event.ctid
    from unnest($1::smallint[], $2::bigint[]) as done (bucket, position)
    cross join lateral (
        select ctid from outbox
        where outbox.bucket = done.bucket and outbox.position = done.position
        offset 0
    ) event
))
";

impl Store {
    /// Renews the leases of `replica` for `duration`, and balances the buckets between the live replicas.
    pub async fn renew_lease(&self, replica: Uuid, duration: Duration) -> Result<Lease, StoreError> {
        self.query(Query::RelayLease, async |connection| {
            let mut transaction = connection.begin().await?;
            let share = fair_share(count_others(&mut transaction, replica, duration).await?);
            let renewed: Vec<(i16, i64, bool)> = sqlx::query_as(RENEW)
                .bind(replica)
                .bind(duration)
                .bind(share)
                .fetch_all(&mut *transaction)
                .await?;
            let kept =
                renewed.into_iter().filter_map(|(bucket, floor, keep)| keep.then_some((bucket, floor)));
            let mut floors: BTreeMap<i16, i64> = kept.collect();
            let missing = share - i64::try_from(floors.len()).unwrap_or(i64::MAX);
            if missing > 0 {
                let claimed: Vec<(i16, i64)> = sqlx::query_as(CLAIM)
                    .bind(replica)
                    .bind(duration)
                    .bind(missing)
                    .fetch_all(&mut *transaction)
                    .await?;
                floors.extend(claimed);
            }
            let server = sqlx::query_scalar(SERVER).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(Lease { floors, server })
        })
        .await
    }

    /// Sends the heartbeat of `replica`, and checks whether it holds too many buckets, or too few while some are free.
    /// Cheaper than a renewal, which writes a row per bucket.
    pub async fn is_share_unfair(
        &self,
        replica: Uuid,
        duration: Duration,
        held: usize,
    ) -> Result<bool, StoreError> {
        self.query(Query::RelayLease, async |connection| {
            let mut transaction = connection.begin().await?;
            let share = fair_share(count_others(&mut transaction, replica, duration).await?);
            let free: i64 = sqlx::query_scalar(FREE).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            let held = i64::try_from(held).unwrap_or(i64::MAX);
            Ok(held > share || (held < share && free > 0))
        })
        .await
    }

    /// Stores floors that belong to `server`, and returns the stored ones. Stores and returns none on another server.
    pub async fn raise_floors(
        &self,
        server: ServerStart,
        floors: &BTreeMap<i16, i64>,
    ) -> Result<BTreeMap<i16, i64>, StoreError> {
        let (buckets, positions): (Vec<i16>, Vec<i64>) = floors.iter().unzip();
        let raise = sqlx::query_as(RAISE).bind(buckets).bind(positions).bind(server);
        Ok(self.fetch_all(Query::RelayFloor, raise).await?.into_iter().collect())
    }

    /// Reads the open transactions that may have written to the outbox.
    pub async fn outbox_writers(&self) -> Result<OutboxWriters, StoreError> {
        self.query(Query::RelayFloor, async |connection| {
            let (server, last_position) = sqlx::query_as(LAST_POSITION).fetch_one(&mut *connection).await?;
            let open = sqlx::query_as(WRITERS).fetch_all(&mut *connection).await?;
            Ok(OutboxWriters { server, last_position, open })
        })
        .await
    }

    /// Releases all leases of `replica`, so that the others need not wait for their expiry.
    pub async fn release_lease(&self, replica: Uuid) -> Result<(), StoreError> {
        let release = sqlx::query(
            "with gone as (delete from relay_replicas where replica = $1)
             update relay_leases set owner = null, expires_at = '-infinity' where owner = $1",
        );
        self.execute(Query::RelayLease, release.bind(replica)).await?;
        Ok(())
    }

    /// Reads the oldest events of each range by position, at most `limit` per range, without those of parked orders.
    /// None on another server than that of the floors.
    pub async fn pending_events(
        &self,
        server: ServerStart,
        ranges: &[Range],
        limit: i64,
    ) -> Result<Vec<PendingEvent>, StoreError> {
        let buckets: Vec<i16> = ranges.iter().map(|range| range.bucket).collect();
        let from: Vec<i64> = ranges.iter().map(|range| range.from).collect();
        let to: Vec<i64> = ranges.iter().map(|range| range.to).collect();
        let pending = sqlx::query_as(PENDING).bind(buckets).bind(from).bind(to).bind(limit).bind(server);
        self.fetch_all(Query::RelayRead, pending).await
    }

    /// Deletes acknowledged events by `(bucket, position)`.
    pub async fn delete_events(&self, done: &[(i16, i64)]) -> Result<(), StoreError> {
        let (buckets, positions): (Vec<i16>, Vec<i64>) = done.iter().copied().unzip();
        self.execute(Query::RelayDelete, sqlx::query(DELETE).bind(buckets).bind(positions)).await?;
        Ok(())
    }
}

/// Registers the replica, and counts the other live ones.
async fn count_others(
    connection: &mut PgConnection,
    replica: Uuid,
    duration: Duration,
) -> Result<i64, sqlx::Error> {
    sqlx::query(HEARTBEAT).bind(replica).bind(duration).execute(&mut *connection).await?;
    sqlx::query_scalar(FORGET).bind(replica).fetch_one(connection).await
}

/// The number of buckets of each of `others + 1` replicas, rounded up so that all buckets are held.
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
