//! Inserts new orders, the concurrent ones in one statement, unless an earlier identical request placed the order.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus_client::metrics::histogram::Histogram;
use rust_decimal::Decimal;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::connection::{CommitSent, Database, column};
use super::group_commit::{Group, GroupCommit, Limits};
use super::{Store, StoreError};
use crate::domain::event::bucket_of;
use crate::domain::{CustomerId, Line, Money, Order, OrderEvent, OrderId, Role, TraceParent};
use crate::metrics::Query;

/// How duplicates of a request are recognised.
#[derive(Clone, Debug)]
pub enum Deduplication {
    /// Not at all: every request is a new order.
    None,
    /// By the lines: the customer has no other order with the same lines since `since`, unless it was cancelled.
    Window {
        /// SHA-256 of the lines.
        fingerprint: [u8; 32],
        /// The start of the window.
        since: DateTime<Utc>,
    },
    /// By the key: the customer has no other order with this key.
    Key {
        /// The key, as the customer sent it.
        key: String,
        /// SHA-256 of the lines.
        fingerprint: [u8; 32],
        /// How long the order is found by the key.
        expiry: Duration,
    },
}

/// The outcome of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertOutcome {
    /// The order was inserted.
    Inserted,
    /// The same request placed this order before.
    Duplicate(PlacedOrder),
    /// The key belongs to a request with other lines.
    KeyReused,
    /// Another request with the same key or lines is being placed.
    InProgress,
}

/// A placed order, as the response shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedOrder {
    /// The order.
    pub id: OrderId,
    /// The total.
    pub total: Money,
}

/// Inserts a set of orders with their lines, histories, events and rows for deduplication. It is one statement and so
/// one transaction: a set costs one round trip, and no part of an order can be missing.
///
/// It inserts nothing for an order whose deduplication row belongs to another order, and returns the numbers of the
/// orders that it inserted. A concurrent request waits at that row. An order that this statement does not see was
/// committed during that wait, so it is not older than this request, regardless of the time of its row in
/// `recent_orders`.
pub(super) const INSERT: &str = "
with
    given as materialized (
        select * from unnest(
            $1::uuid[], $2::text[], $3::numeric[], $4::timestamptz[], $5::text[], $6::smallint[], $7::uuid[], $8::text[],
            $9::text[], $10::bytea[], $11::timestamptz[], $12::text[], $13::timestamptz[], $19::text[]
        ) with ordinality as given (
            id, customer_id, total_amount, placed_at, actor_role, bucket, event_id, payload, headers, fingerprint, since,
            key, key_expires_at, traceparent, number
        )
    ),
    recent as (
        insert into recent_orders (customer_id, fingerprint, order_id, placed_at)
        select customer_id, fingerprint, id, placed_at from given where since is not null
        on conflict (customer_id, fingerprint) do update
        set order_id = excluded.order_id, placed_at = excluded.placed_at
        where (
            select status = 'CANCELLED'
                or recent_orders.placed_at <= (select since from given where given.id = excluded.order_id)
            from orders where orders.id = recent_orders.order_id
        )
        returning order_id
    ),
    keyed as (
        insert into idempotency_keys as known (customer_id, key, fingerprint, order_id, expires_at)
        select customer_id, key, fingerprint, id, key_expires_at from given where key is not null
        on conflict (customer_id, key) do update
        set fingerprint = excluded.fingerprint, order_id = excluded.order_id, expires_at = excluded.expires_at
        where known.expires_at <= now() or (known.order_id is null and known.locked_until <= now())
        returning order_id
    ),
    accepted as materialized (
        select * from given
        where (since is null and key is null)
            or id in (select order_id from recent)
            or id in (select order_id from keyed)
    ),
    placed as (
        insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
        select id, customer_id, 'CREATED', total_amount, placed_at, 1, placed_at from accepted
    ),
    items as (
        insert into order_items (order_id, line_number, product_id, quantity, unit_price)
        select accepted.id, line.line_number, line.product_id, line.quantity, line.unit_price
        from unnest($14::bigint[], $15::smallint[], $16::text[], $17::integer[], $18::numeric[])
            as line (number, line_number, product_id, quantity, unit_price)
        join accepted using (number)
    ),
    history as (
        insert into order_history
            (order_id, version, to_status, actor_role, actor_id, changed_at, event_id, traceparent)
        select id, 1, 'CREATED', actor_role, customer_id, placed_at, event_id, traceparent from accepted
    ),
    told as (
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        select bucket, event_id, id, 1, 'ORDER_PLACED', payload, headers from accepted
    )
select number from accepted
";

pub(super) const FIND_RECENT: &str = "
select orders.id, orders.total_amount
from recent_orders join orders on orders.id = recent_orders.order_id
where recent_orders.customer_id = $1 and recent_orders.fingerprint = $2
  and ($3::timestamptz is null or (recent_orders.placed_at > $3 and orders.status <> 'CANCELLED'))
";

/// The first order may be deleted between the insert and the look-up; then the insert is tried again.
const ATTEMPTS: u32 = 2;

impl Store {
    /// Inserts a new order with its lines, history, `ORDER_PLACED` event and deduplication row (invariant 1).
    ///
    /// `placed_as` is the role of the customer.
    ///
    /// `Inserted` means: committed on the primary, and acknowledged by the synchronous standbys, if there are any,
    /// unless an operator cancelled that wait. `OutcomeUnknown` means: the commit was sent, but the order was not
    /// found.
    pub async fn place(
        &self,
        order: Order,
        placed_as: Role,
        trace: &TraceParent,
        deduplication: Deduplication,
    ) -> Result<InsertOutcome, StoreError> {
        let event = OrderEvent::placed(&order, trace)?;
        let key = conflict_key(&order.customer, &deduplication);
        let placing = Arc::new(Placing { order, placed_as, event, deduplication, key });
        for _ in 0..ATTEMPTS {
            if self.placements.submit(Arc::clone(&placing)).await? {
                return Ok(InsertOutcome::Inserted);
            }
            // Boxed, because it is rare and large, and the task of each placement would have room for it.
            match Box::pin(self.find_first(&placing)).await? {
                // The set was sent twice, and the first attempt inserted it ([`Placements::insert_with_retry`]).
                Some(InsertOutcome::Duplicate(first)) if first.id == placing.order.id => {
                    return Ok(InsertOutcome::Inserted);
                }
                Some(placement) => return Ok(placement),
                None => {}
            }
        }
        Ok(InsertOutcome::InProgress)
    }

    /// Finds the earlier order of a duplicate request. `None` if it was deleted.
    async fn find_first(&self, placing: &Placing) -> Result<Option<InsertOutcome>, StoreError> {
        let customer = &placing.order.customer;
        match &placing.deduplication {
            Deduplication::None => Ok(None),
            Deduplication::Window { fingerprint, .. } => {
                let first = self.find_recent(customer, fingerprint, None).await?;
                Ok(first.map(InsertOutcome::Duplicate))
            }
            Deduplication::Key { key, fingerprint, .. } => {
                let known = self.find_key(customer, key).await?;
                Ok(known.map(|known| match known.order {
                    _ if known.fingerprint != fingerprint => InsertOutcome::KeyReused,
                    Some(order) => InsertOutcome::Duplicate(order),
                    None => InsertOutcome::InProgress,
                }))
            }
        }
    }

    /// Finds the latest order of the customer with the same lines and without a key. With `since`, only a later order
    /// that is not cancelled.
    pub async fn find_recent(
        &self,
        customer: &CustomerId,
        fingerprint: &[u8; 32],
        since: Option<DateTime<Utc>>,
    ) -> Result<Option<PlacedOrder>, StoreError> {
        let found = self.database.read(Query::FindRecent, |connection| {
            let find =
                sqlx::query_as(FIND_RECENT).bind(customer.as_str().to_owned()).bind(fingerprint.to_vec());
            Box::pin(find.bind(since).fetch_optional(connection))
        });
        found.await?.map(|(id, total)| PlacedOrder::read(id, total)).transpose()
    }
}

impl PlacedOrder {
    pub(super) fn read(id: Uuid, total: Decimal) -> Result<Self, StoreError> {
        let wrong = |_| StoreError::Inconsistent { table: "orders", column: "total_amount", id };
        Ok(Self { id: OrderId(id), total: Money::new(total).map_err(wrong)? })
    }
}

/// An order to insert.
pub(super) struct Placing {
    order: Order,
    placed_as: Role,
    event: OrderEvent,
    deduplication: Deduplication,
    key: Option<u64>,
}

/// Identifies the deduplication row of a request. Two requests with one row cannot be in one set, because a statement
/// cannot write a row twice; nor in two concurrent sets, because one would wait for the other.
fn conflict_key(customer: &CustomerId, deduplication: &Deduplication) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    customer.as_str().hash(&mut hasher);
    match deduplication {
        Deduplication::None => return None,
        Deduplication::Window { fingerprint, .. } => fingerprint.hash(&mut hasher),
        Deduplication::Key { key, .. } => key.hash(&mut hasher),
    }
    Some(hasher.finish())
}

/// The number of sets in flight. Placements that arrive meanwhile are the next set. A second set in flight would make
/// all sets smaller, and each costs a commit: PostgreSQL needed a fifth more CPU per order (`kit/decisions/0004`).
const WRITERS: u32 = 1;

/// The pool for sets. Its lock timeout is short, because all orders of a set would wait.
pub(super) fn pool(database: &Database) -> Database {
    const LOCK_TIMEOUT: Duration = Duration::from_millis(250);
    let lock_timeout = LOCK_TIMEOUT.min(database.settings.deadline / 2).as_millis().to_string();
    // The plan is the same for all sets; planning each one would take a tenth of its time.
    let more = [("lock_timeout", lock_timeout.as_str()), ("plan_cache_mode", "force_generic_plan")];
    database.with_own_pool("placing", WRITERS, &more)
}

/// Commits placements in groups.
pub(super) struct Placements {
    sets: Database,
    /// For an order that is inserted alone, and for the check of an unknown outcome.
    alone: Database,
    outbox_written: Arc<Notify>,
    /// The number of orders in each statement.
    sizes: Histogram,
}

impl Placements {
    pub(super) fn start(
        sets: &Database,
        alone: &Database,
        outbox_written: &Arc<Notify>,
    ) -> Arc<GroupCommit<Self>> {
        let settings = &alone.settings;
        let limits = Limits {
            group: 128,
            writers: WRITERS as usize,
            alone: 8,
            waiting: 1024,
            deadline: settings.deadline,
            grace: settings.acquire_timeout,
        };
        let placements = Self {
            sets: sets.clone(),
            alone: alone.clone(),
            outbox_written: Arc::clone(outbox_written),
            sizes: sets.metrics.database.group_writes("place"),
        };
        GroupCommit::new(placements, limits)
    }

    /// Inserts a set; returns which orders were inserted.
    ///
    /// A set whose connection was lost is sent once more. The first attempt may have committed, or may still commit.
    /// Then the deduplication rows or the primary key refuse the second attempt. So the outcome is known if the second
    /// attempt succeeds, and stays unknown if it fails.
    async fn insert_with_retry(
        &self,
        database: &Database,
        set: &[Arc<Placing>],
        deadline: Instant,
    ) -> Result<Vec<bool>, StoreError> {
        self.sizes.observe(f64::from(u32::try_from(set.len()).unwrap_or(u32::MAX)));
        match insert(database, set, deadline).await {
            Err(StoreError::OutcomeUnknown(cause)) if cause.is_lost_connection() => {
                let inserted = insert(database, set, deadline).await;
                inserted.map_err(|error| match error {
                    StoreError::OutcomeUnknown(_) => error,
                    error => StoreError::unknown(error),
                })
            }
            inserted => inserted,
        }
    }
}

impl Group for Placements {
    const QUERY: Query = Query::Place;

    type Item = Arc<Placing>;
    /// Whether the order was inserted.
    type Answer = bool;

    fn key(placing: &Arc<Placing>) -> Option<u64> {
        placing.key
    }

    async fn commit(
        &self,
        set: &mut [Arc<Placing>],
        alone: bool,
        deadline: Instant,
    ) -> Result<Vec<Option<bool>>, StoreError> {
        let database = if alone { &self.alone } else { &self.sets };
        let inserted = match self.insert_with_retry(database, set, deadline).await {
            Err(error) if error.is_lock_timeout() && !alone => {
                return Ok(vec![None; set.len()]);
            }
            Err(error @ StoreError::OutcomeUnknown(_)) => {
                let orders = column(set, |placing| &placing.order);
                let written = self.alone.find_written(&orders).await;
                if written.is_empty() {
                    return Err(error);
                }
                column(set, |placing| written.contains(&placing.order.id.0))
            }
            inserted => inserted?,
        };
        self.outbox_written.notify_one();
        Ok(inserted.into_iter().map(Some).collect())
    }
}

/// Inserts a set; returns which orders were inserted. One statement without an explicit transaction, so that it is
/// sent, executed and committed in one round trip.
async fn insert(
    database: &Database,
    set: &[Arc<Placing>],
    deadline: Instant,
) -> Result<Vec<bool>, StoreError> {
    // All sets use the same order of rows, so that two sets do not wait for each other.
    let mut sorted: Vec<usize> = (0..set.len()).collect();
    sorted.sort_by_key(|index| set[*index].key);
    let rows = column(&sorted, |index| &*set[*index]);
    let commit = CommitSent::default();
    let work = async {
        let mut connection = database.connection().await?;
        commit.mark();
        let accepted: Vec<i64> = bind(sqlx::query_scalar(INSERT), &rows).fetch_all(&mut *connection).await?;
        connection.release();
        Ok(accepted)
    };
    let started = Instant::now();
    let accepted = timeout_at(deadline, work).await.unwrap_or(Err(StoreError::Deadline));
    database.metrics.database.used(Query::Place, started.elapsed());
    let accepted = accepted.map_err(|error| commit.classify(error))?;
    let mut inserted = vec![false; set.len()];
    for number in accepted {
        let index = usize::try_from(number - 1).ok().and_then(|number| sorted.get(number));
        if let Some(inserted) = index.and_then(|index| inserted.get_mut(*index)) {
            *inserted = true;
        }
    }
    Ok(inserted)
}

type Insert<'q> = sqlx::query::QueryScalar<'q, sqlx::Postgres, i64, sqlx::postgres::PgArguments>;

/// Binds the parameters of [`INSERT`]: an element per order, and per line from the 14th to the 18th.
fn bind<'q>(insert: Insert<'q>, rows: &[&'q Placing]) -> Insert<'q> {
    let requests = column(rows, |row| match &row.deduplication {
        Deduplication::None => (None, None, None, None),
        Deduplication::Window { fingerprint, since } => (Some(&fingerprint[..]), Some(*since), None, None),
        Deduplication::Key { key, fingerprint, expiry } => {
            (Some(&fingerprint[..]), None, Some(key.as_str()), Some(row.order.placed_at + *expiry))
        }
    });
    let lines: Vec<(i64, i16, &Line)> = (1..)
        .zip(rows)
        .flat_map(|(order, row)| (1..).zip(&row.order.lines).map(move |(number, line)| (order, number, line)))
        .collect();
    insert
        .bind(column(rows, |row| row.order.id.0))
        .bind(column(rows, |row| row.order.customer.as_str()))
        .bind(column(rows, |row| row.order.total.decimal()))
        .bind(column(rows, |row| row.order.placed_at))
        .bind(column(rows, |row| row.placed_as.into_str()))
        .bind(column(rows, |row| bucket_of(row.order.id)))
        .bind(column(rows, |row| row.event.id))
        .bind(column(rows, |row| row.event.payload.as_str()))
        .bind(column(rows, |row| row.event.headers.as_str()))
        .bind(column(&requests, |(fingerprint, ..)| *fingerprint))
        .bind(column(&requests, |(_, since, ..)| *since))
        .bind(column(&requests, |(.., key, _)| *key))
        .bind(column(&requests, |(.., expires_at)| *expires_at))
        .bind(column(&lines, |(order, ..)| *order))
        .bind(column(&lines, |(_, number, _)| *number))
        .bind(column(&lines, |(.., line)| line.product_id.as_str()))
        .bind(column(&lines, |(.., line)| line.quantity.get().cast_signed()))
        .bind(column(&lines, |(.., line)| line.price.decimal()))
        .bind(column(rows, |row| row.event.traceparent.as_str()))
}
