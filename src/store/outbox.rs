//! The outbox as the relay sees it: leases on buckets, events that are pending, events that are done.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::OrderId;
use crate::domain::event::BUCKETS;
use crate::metrics::Query;

/// When the PostgreSQL server started: tells one server from another, such as the one that it failed over to.
pub type ServerStart = DateTime<Utc>;

/// The buckets that a replica holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Each bucket with its floor, as it is stored: the position where its reads begin.
    pub floors: BTreeMap<i16, i64>,
    /// The server that said so.
    pub server: ServerStart,
}

/// A part of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The bucket.
    pub bucket: i16,
    /// The first position.
    pub from: i64,
    /// The position after the last one.
    pub to: i64,
}

/// A transaction that may have written to the outbox and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct OutboxWriter {
    /// Its virtual transaction id, which no other transaction of the server has while this one runs.
    pub transaction: String,
    /// The server process; none for a prepared transaction.
    pub pid: Option<i32>,
}

/// The transactions that may still commit events at the positions given out so far.
#[derive(Clone, Debug)]
pub struct OutboxWriters {
    /// The server that was asked.
    pub server: ServerStart,
    /// The last position that was given out before `open` was read.
    pub last_position: i64,
    /// Every transaction that held a position up to `last_position` and had not ended; others may be among them.
    pub open: Vec<OutboxWriter>,
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
returning lease.bucket, lease.floor, held.keep
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
returning bucket, floor
";

const SERVER: &str = "select pg_postmaster_start_time()";

/// Buckets that nobody holds.
const FREE: &str = "select count(*) from relay_leases where expires_at < now()";

/// A floor is true for ever, so whoever found it may store it, whoever holds the bucket now. It was found out on
/// one server, and another one that lost its latest commits gives the same positions out again.
const RAISE: &str = "
update relay_leases lease
set floor = greatest(lease.floor, raised.floor)
from unnest($1::smallint[], $2::bigint[]) as raised (bucket, floor)
where lease.bucket = raised.bucket and lease.floor < raised.floor and pg_postmaster_start_time() = $3
returning lease.bucket, lease.floor
";

/// Before [`WRITERS`]: a transaction that got its position before this was read holds its lock already.
const LAST_POSITION: &str = "
select pg_postmaster_start_time(), coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'position')), 0)
";

/// An insert locks the table before it asks for a position, and the lock is let go only after the transaction has
/// become visible.
const WRITERS: &str = "
select distinct virtualtransaction as transaction, pid
from pg_locks
where locktype = 'relation'
  and database = (select oid from pg_database where datname = current_database())
  and relation = 'outbox'::regclass
  and mode = 'RowExclusiveLock'
  and granted
";

/// Bounded by positions, because deleted rows cost as much as rows until they are cleaned away. The floors are
/// those of one server: another one is not asked.
const PENDING: &str = "
select event.bucket, event.position, event.order_id, event.sequence, event.payload, event.headers,
       event.created_at, statement_timestamp() as read_at
from unnest($1::smallint[], $2::bigint[], $3::bigint[]) as held (bucket, first, bound)
cross join lateral (
    select * from outbox
    where outbox.bucket = held.bucket
      and outbox.position >= held.first and outbox.position < held.bound
      and not exists (select from parked_orders where parked_orders.order_id = outbox.order_id)
    order by position
    limit $4
) event
where pg_postmaster_start_time() = $5
";

/// One index probe an event: `offset 0` keeps the planner from joining the other way round. It does so where the
/// outbox was analyzed while it was empty, and then each delete reads all deleted rows that a snapshot keeps.
const DELETE: &str = "
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
    /// Renews the leases of `replica` for `duration`, and evens out the buckets among the replicas that live.
    pub async fn renew_lease(&self, replica: Uuid, duration: Duration) -> Result<Lease, StoreError> {
        self.query(Query::RelayLease, async {
            let mut connection = self.connection().await?;
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
            connection.give_back();
            Ok(Lease { floors, server })
        })
        .await
    }

    /// Says that `replica` lives, and whether the `held` buckets are not its fair share: more, or fewer while
    /// there are free ones. Cheaper than a renewal, which writes a row for each bucket.
    pub async fn is_share_unfair(
        &self,
        replica: Uuid,
        duration: Duration,
        held: usize,
    ) -> Result<bool, StoreError> {
        self.query(Query::RelayLease, async {
            let mut connection = self.connection().await?;
            let mut transaction = connection.begin().await?;
            let share = fair_share(count_others(&mut transaction, replica, duration).await?);
            let free: i64 = sqlx::query_scalar(FREE).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            connection.give_back();
            let held = i64::try_from(held).unwrap_or(i64::MAX);
            Ok(held > share || (held < share && free > 0))
        })
        .await
    }

    /// Stores floors that were found out on `server`; returns those that are stored, none on another server.
    pub async fn raise_floors(
        &self,
        server: ServerStart,
        floors: &BTreeMap<i16, i64>,
    ) -> Result<BTreeMap<i16, i64>, StoreError> {
        let (buckets, positions): (Vec<i16>, Vec<i64>) = floors.iter().unzip();
        self.query(Query::RelayFloor, async {
            let mut connection = self.connection().await?;
            let raised: Vec<(i16, i64)> = sqlx::query_as(RAISE)
                .bind(buckets)
                .bind(positions)
                .bind(server)
                .fetch_all(&mut *connection)
                .await?;
            connection.give_back();
            Ok(raised.into_iter().collect())
        })
        .await
    }

    /// The transactions that may have written to the outbox and have not ended.
    pub async fn outbox_writers(&self) -> Result<OutboxWriters, StoreError> {
        self.query(Query::RelayFloor, async {
            let mut connection = self.connection().await?;
            let (server, last_position) = sqlx::query_as(LAST_POSITION).fetch_one(&mut *connection).await?;
            let open = sqlx::query_as(WRITERS).fetch_all(&mut *connection).await?;
            connection.give_back();
            Ok(OutboxWriters { server, last_position, open })
        })
        .await
    }

    /// Gives all leases of `replica` back at once, so that the others need not wait until they expire.
    pub async fn release_lease(&self, replica: Uuid) -> Result<(), StoreError> {
        self.query(Query::RelayLease, async {
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

    /// The oldest events of each range, at most `limit` a range, each bucket by position; those of parked orders
    /// wait. Nothing on another server than that which said the floors.
    pub async fn pending_events(
        &self,
        server: ServerStart,
        ranges: &[Range],
        limit: i64,
    ) -> Result<Vec<PendingEvent>, StoreError> {
        let buckets: Vec<i16> = ranges.iter().map(|range| range.bucket).collect();
        let from: Vec<i64> = ranges.iter().map(|range| range.from).collect();
        let to: Vec<i64> = ranges.iter().map(|range| range.to).collect();
        self.query(Query::RelayRead, async {
            let mut connection = self.connection().await?;
            let events = sqlx::query_as(PENDING)
                .bind(buckets)
                .bind(from)
                .bind(to)
                .bind(limit)
                .bind(server)
                .fetch_all(&mut *connection)
                .await?;
            connection.give_back();
            Ok(events)
        })
        .await
    }

    /// Deletes events that Kafka acknowledged, each by its `(bucket, position)`.
    pub async fn delete_events(&self, done: &[(i16, i64)]) -> Result<(), StoreError> {
        let (buckets, positions): (Vec<i16>, Vec<i64>) = done.iter().copied().unzip();
        self.query(Query::RelayDelete, async {
            let mut connection = self.connection().await?;
            sqlx::query(DELETE).bind(buckets).bind(positions).execute(&mut *connection).await?;
            connection.give_back();
            Ok(())
        })
        .await
    }
}

/// Registers the replica and counts the others that live.
async fn count_others(
    connection: &mut PgConnection,
    replica: Uuid,
    duration: Duration,
) -> Result<i64, sqlx::Error> {
    sqlx::query(HEARTBEAT).bind(replica).bind(duration).execute(&mut *connection).await?;
    sqlx::query_scalar(FORGET).bind(replica).fetch_one(connection).await
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
