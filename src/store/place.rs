//! Writing new orders, those of one moment together, unless the same request was an order already.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus_client::metrics::histogram::Histogram;
use rust_decimal::Decimal;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::connection::{CommitSent, Database};
use super::group_commit::{Committed, Group, GroupCommit, Limits};
use super::orders::column;
use super::{Store, StoreError};
use crate::domain::event::bucket_of;
use crate::domain::{CustomerId, Money, Order, OrderEvent, OrderId, Role, TraceParent};
use crate::metrics::Query;

/// What keeps a request from becoming a second order.
#[derive(Clone, Debug)]
pub enum Guard {
    /// Nothing: every request is an order.
    None,
    /// No other order of the customer with the same lines since `since`, unless it was cancelled.
    Window {
        /// SHA-256 of the lines.
        fingerprint: [u8; 32],
        /// The beginning of the window.
        since: DateTime<Utc>,
    },
    /// No other order of the customer under the same key.
    Key {
        /// The key, as the customer sent it.
        key: String,
        /// SHA-256 of the lines.
        fingerprint: [u8; 32],
        /// How long the order is found by the key.
        expiry: Duration,
    },
}

/// What became of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The order is new.
    New,
    /// The same request is this order already.
    Duplicate(PlacedBefore),
    /// The key belongs to a request with other lines.
    OtherLines,
    /// Another attempt goes on being just ahead.
    InProgress,
}

/// What the answer to a placement says, of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedBefore {
    /// The order.
    pub id: OrderId,
    /// What it costs.
    pub total: Money,
}

/// A set of orders, each with its lines, the first row of its history, its event and what the guard remembers: one
/// statement, which is a transaction by itself, so that a set costs one round trip and none of the five can be forgotten.
/// It writes nothing of an order whose guard yields no row, and returns the numbers of the others.
///
/// Of two requests at once the second waits at its guard for the first. An order that this statement does not see was
/// committed while it waited: however old its row in `recent_orders` is, it is no older than this request.
const INSERT: &str = "
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

const FIND_RECENT: &str = "
select orders.id, orders.total_amount
from recent_orders join orders on orders.id = recent_orders.order_id
where recent_orders.customer_id = $1 and recent_orders.fingerprint = $2
  and ($3::timestamptz is null or (recent_orders.placed_at > $3 and orders.status <> 'CANCELLED'))
";

/// Between the two statements the first order may be forgotten; then nothing is in the way any more.
const ATTEMPTS: u32 = 2;

impl Store {
    /// Makes a new order durable together with its lines, its history and its `ORDER_PLACED` (invariant 1),
    /// and with what the guard remembers of the request.
    ///
    /// `placed_as` is the role in which the customer acted.
    ///
    /// `New` says: committed on the primary, and acknowledged by the synchronous standbys, if there are any, unless an
    /// operator cancelled that wait. `OutcomeUnknown` says: the commit was sent, and the order has not been seen.
    pub async fn place(
        &self,
        order: Order,
        placed_as: Role,
        trace: &TraceParent,
        guard: Guard,
    ) -> Result<Placement, StoreError> {
        let event = OrderEvent::placed(&order, trace)?;
        let key = guard_key(&order.customer, &guard);
        let placing = Arc::new(Placing { order, placed_as, event, guard, key });
        for _ in 0..ATTEMPTS {
            if self.placements.submit(Arc::clone(&placing)).await? {
                return Ok(Placement::New);
            }
            match self.find_first(&placing).await? {
                // The set was sent twice, and the first one wrote it ([`Placements::insert_with_retry`]).
                Some(Placement::Duplicate(first)) if first.id == placing.order.id => {
                    return Ok(Placement::New);
                }
                Some(placement) => return Ok(placement),
                None => {}
            }
        }
        Ok(Placement::InProgress)
    }

    /// What is in the way of a placement; nothing where that is gone again.
    async fn find_first(&self, placing: &Placing) -> Result<Option<Placement>, StoreError> {
        let customer = &placing.order.customer;
        match &placing.guard {
            Guard::None => Ok(None),
            Guard::Window { fingerprint, .. } => {
                let first = self.find_recent(customer, fingerprint, None).await?;
                Ok(first.map(Placement::Duplicate))
            }
            Guard::Key { key, fingerprint, .. } => {
                let known = self.find_key(customer, key).await?;
                Ok(known.map(|known| match known.order {
                    _ if known.fingerprint != fingerprint => Placement::OtherLines,
                    Some(order) => Placement::Duplicate(order),
                    None => Placement::InProgress,
                }))
            }
        }
    }

    /// The latest order of the customer for the same lines without a key; where `since` is given, only if it
    /// is younger and not cancelled.
    pub async fn find_recent(
        &self,
        customer: &CustomerId,
        fingerprint: &[u8; 32],
        since: Option<DateTime<Utc>>,
    ) -> Result<Option<PlacedBefore>, StoreError> {
        let found = self.database.read(Query::FindRecent, |connection| {
            let find =
                sqlx::query_as(FIND_RECENT).bind(customer.as_str().to_owned()).bind(fingerprint.to_vec());
            Box::pin(find.bind(since).fetch_optional(connection))
        });
        found.await?.map(|(id, total)| PlacedBefore::read(id, total)).transpose()
    }
}

impl PlacedBefore {
    pub(super) fn read(id: Uuid, total: Decimal) -> Result<Self, StoreError> {
        let wrong = |_| StoreError::Inconsistent { table: "orders", column: "total_amount", id };
        Ok(Self { id: OrderId(id), total: Money::new(total).map_err(wrong)? })
    }
}

/// An order that is about to be written.
pub(super) struct Placing {
    order: Order,
    placed_as: Role,
    event: OrderEvent,
    guard: Guard,
    key: Option<u64>,
}

/// One statement cannot write a row of a guard twice, and a set that needs the row of another would wait for it.
fn guard_key(customer: &CustomerId, guard: &Guard) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    customer.as_str().hash(&mut hasher);
    match guard {
        Guard::None => return None,
        Guard::Window { fingerprint, .. } => fingerprint.hash(&mut hasher),
        Guard::Key { key, .. } => key.hash(&mut hasher),
    }
    Some(hasher.finish())
}

/// How many sets are under way at once: while one waits for the disk, the next is executed. More would make the sets
/// smaller, and each set costs a commit.
const WRITERS: u32 = 2;

/// The pool on which sets are written: a set does not wait long for another transaction, because all its orders would.
pub(super) fn pool(database: &Database) -> Database {
    const LOCK_TIMEOUT: Duration = Duration::from_millis(250);
    let lock_timeout = LOCK_TIMEOUT.min(database.settings().deadline / 2).as_millis().to_string();
    // The plan is the same for all sets. Planning it anew for each takes a tenth of its time.
    let more = [("lock_timeout", lock_timeout.as_str()), ("plan_cache_mode", "force_generic_plan")];
    database.with_own_pool("placing", WRITERS, &more)
}

/// How placements are committed.
pub(super) struct Placements {
    sets: Database,
    /// For an order that is tried alone, and for finding out what was written.
    alone: Database,
    outbox_written: Arc<Notify>,
    /// How many orders share a statement.
    sizes: Histogram,
}

impl Placements {
    pub(super) fn start(
        sets: &Database,
        alone: &Database,
        outbox_written: &Arc<Notify>,
    ) -> GroupCommit<Self> {
        let settings = alone.settings();
        let limits = Limits {
            group: 128,
            writers: WRITERS as usize,
            alone: 8,
            waiting: 1024,
            deadline: settings.deadline,
            settle: settings.acquire_timeout,
        };
        let placements = Self {
            sets: sets.clone(),
            alone: alone.clone(),
            outbox_written: Arc::clone(outbox_written),
            sizes: sets.metrics().database.group_writes("place"),
        };
        GroupCommit::new(placements, limits)
    }

    /// Which of them the guards let happen.
    ///
    /// A set whose connection was lost is sent once more. It may have been written, and still may be, but its orders
    /// have their ids: where they exist the guards refuse the repeat, or the primary key does. So the repeat settles
    /// what became of the set where it succeeds; where it fails, that stays unknown.
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
    /// Whether the guard let it happen.
    type Answer = bool;

    fn key(placing: &Arc<Placing>) -> Option<u64> {
        placing.key
    }

    async fn commit(
        &self,
        set: &mut [Arc<Placing>],
        alone: bool,
        deadline: Instant,
    ) -> Result<Vec<Committed<bool>>, StoreError> {
        let database = if alone { &self.alone } else { &self.sets };
        let inserted = match self.insert_with_retry(database, set, deadline).await {
            Err(error) if error.is_lock_timeout() && !alone => {
                return Ok(set.iter().map(|_| Committed::LeftOut).collect());
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
        Ok(inserted.into_iter().map(Committed::Answer).collect())
    }
}

/// Which of them the guards let happen: one statement without a transaction around it, so that it is sent, executed
/// and committed in one round trip.
async fn insert(
    database: &Database,
    set: &[Arc<Placing>],
    deadline: Instant,
) -> Result<Vec<bool>, StoreError> {
    // In the same sequence everywhere, so that two sets do not wait for each other.
    let mut sorted: Vec<usize> = (0..set.len()).collect();
    sorted.sort_by_key(|index| set[*index].key);
    let columns = Columns::of(sorted.iter().map(|index| &*set[*index]));
    let commit = CommitSent::default();
    let work = async {
        let mut connection = database.connection().await?;
        commit.mark();
        let accepted: Vec<i64> = columns.bind(sqlx::query_scalar(INSERT)).fetch_all(&mut *connection).await?;
        connection.give_back();
        Ok(accepted)
    };
    let started = Instant::now();
    let accepted = timeout_at(deadline, work).await.unwrap_or(Err(StoreError::Deadline));
    database.metrics().database.used(Query::Place, started.elapsed());
    let accepted = accepted.map_err(|error| commit.judge(error))?;
    let mut inserted = vec![false; set.len()];
    for number in accepted {
        let index = usize::try_from(number - 1).ok().and_then(|number| sorted.get(number));
        if let Some(inserted) = index.and_then(|index| inserted.get_mut(*index)) {
            *inserted = true;
        }
    }
    Ok(inserted)
}

/// The parameters of [`INSERT`]: a value of each order in each, and of each line in the `line_` ones.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    customers: Vec<&'a str>,
    totals: Vec<Decimal>,
    placed_at: Vec<DateTime<Utc>>,
    roles: Vec<&'a str>,
    buckets: Vec<i16>,
    event_ids: Vec<Uuid>,
    payloads: Vec<&'a str>,
    headers: Vec<&'a str>,
    traces: Vec<&'a str>,
    fingerprints: Vec<Option<&'a [u8]>>,
    since: Vec<Option<DateTime<Utc>>>,
    keys: Vec<Option<&'a str>>,
    key_expires_at: Vec<Option<DateTime<Utc>>>,
    line_orders: Vec<i64>,
    line_numbers: Vec<i16>,
    line_products: Vec<&'a str>,
    line_quantities: Vec<i32>,
    line_prices: Vec<Decimal>,
}

type Insert<'q> = sqlx::query::QueryScalar<'q, sqlx::Postgres, i64, sqlx::postgres::PgArguments>;

impl<'a> Columns<'a> {
    fn of(set: impl Iterator<Item = &'a Placing>) -> Self {
        let mut columns = Self::default();
        (1..).zip(set).for_each(|(number, placing)| columns.push(number, placing));
        columns
    }

    fn push(&mut self, number: i64, Placing { order, placed_as, event, guard, .. }: &'a Placing) {
        self.ids.push(order.id.0);
        self.customers.push(order.customer.as_str());
        self.totals.push(order.total.decimal());
        self.placed_at.push(order.placed_at);
        self.roles.push(placed_as.as_str());
        self.buckets.push(bucket_of(order.id));
        self.event_ids.push(event.id);
        self.payloads.push(&event.payload);
        self.headers.push(&event.headers);
        self.traces.push(&event.traceparent);
        let (fingerprint, since, key, expires_at) = match guard {
            Guard::None => (None, None, None, None),
            Guard::Window { fingerprint, since } => (Some(fingerprint), Some(*since), None, None),
            Guard::Key { key, fingerprint, expiry } => {
                (Some(fingerprint), None, Some(key.as_str()), Some(order.placed_at + *expiry))
            }
        };
        self.fingerprints.push(fingerprint.map(<[u8; 32]>::as_slice));
        self.since.push(since);
        self.keys.push(key);
        self.key_expires_at.push(expires_at);
        for (line_number, line) in (1..).zip(&order.lines) {
            self.line_orders.push(number);
            self.line_numbers.push(line_number);
            self.line_products.push(line.product_id.as_str());
            self.line_quantities.push(line.quantity.get().cast_signed());
            self.line_prices.push(line.price.decimal());
        }
    }

    fn bind<'q>(self, insert: Insert<'q>) -> Insert<'q>
    where
        'a: 'q,
    {
        insert
            .bind(self.ids)
            .bind(self.customers)
            .bind(self.totals)
            .bind(self.placed_at)
            .bind(self.roles)
            .bind(self.buckets)
            .bind(self.event_ids)
            .bind(self.payloads)
            .bind(self.headers)
            .bind(self.fingerprints)
            .bind(self.since)
            .bind(self.keys)
            .bind(self.key_expires_at)
            .bind(self.line_orders)
            .bind(self.line_numbers)
            .bind(self.line_products)
            .bind(self.line_quantities)
            .bind(self.line_prices)
            .bind(self.traces)
    }
}
