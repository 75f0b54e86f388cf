//! Checks the invariants on a live database, in bounded steps.
//!
//! A step reads a page of one table along its key, and the related rows by their keys, in one snapshot (a `repeatable
//! read` transaction). The service commits related changes together, so a step sees all of a change or nothing, and
//! every finding is real. No statement scans a table: each subquery ends with an aggregate or a limit, so PostgreSQL
//! probes an index for each row of the page, independent of statistics.

pub(super) mod invariants;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::event::BUCKETS;
use crate::metrics::Query;
use invariants::{EVENTS, KEYS, LEASES, ORDERS, PAYMENTS, RECENT, SCHEMA};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The name of the invariant.
    pub invariant: &'static str,
    /// The text of the invariant.
    pub says: &'static str,
    /// The order, if it concerns one.
    pub order: Option<Uuid>,
    /// The finding.
    pub detail: String,
}

/// What a step checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckPart {
    /// Indexes, the sequence of the outbox, the relay's leases.
    Schema,
    /// Events in the outbox.
    Events,
    /// Idempotency keys.
    Keys,
    /// Recent orders, by which requests without a key are deduplicated.
    Recent,
    /// Applied payment events.
    Payments,
    /// Orders and all related rows.
    Orders,
}

/// The start of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckCursor(At);

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Schema,
    /// After this position of the bucket, up to about the last position at the start of the check.
    Events {
        bucket: i16,
        after: i64,
        until: i64,
    },
    Keys(String, String),
    Recent(String, Vec<u8>),
    Payments(String),
    /// After this order, without orders that are placed during the check.
    Orders {
        after: Uuid,
        until: Uuid,
    },
}

/// The result of a step.
#[derive(Clone, Debug)]
pub struct CheckStep {
    /// What was checked.
    pub part: CheckPart,
    /// The number of rows that were checked.
    pub rows: usize,
    /// The broken invariants.
    pub broken: Vec<Broken>,
    /// The start of the next step. `None` after the last.
    pub next: Option<CheckCursor>,
}

impl CheckCursor {
    /// The start of the check.
    pub const fn start() -> Self {
        Self(At::Schema)
    }

    /// Only the orders after this one.
    pub fn after(order: Uuid) -> Self {
        Self(At::Orders { after: order, until: Uuid::now_v7() })
    }

    /// The last checked order, if the check has reached the orders.
    pub const fn order(&self) -> Option<Uuid> {
        match &self.0 {
            At::Orders { after, .. } => Some(*after),
            _ => None,
        }
    }
}

/// A page along a key.
pub(super) struct Page<K> {
    pub(super) keys: Vec<K>,
    pub(super) is_full: bool,
}

impl<K> Page<K> {
    pub(super) fn of(keys: Vec<K>, limit: i64) -> Self {
        let is_full = i64::try_from(keys.len()).is_ok_and(|count| count >= limit);
        Self { keys, is_full }
    }
}

/// A snapshot of all changes that are committed at its first statement.
pub(super) const SNAPSHOT: &str = "begin isolation level repeatable read read only";

pub(super) const LAST_POSITION: &str =
    "select coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'position')), 0)";

pub(super) const EVENTS_PAGE: &str = "
select position from outbox where bucket = $1 and position > $2 order by position limit $3
";

pub(super) const KEYS_PAGE: &str = "
select customer_id, key from idempotency_keys where (customer_id, key) > ($1, $2) order by customer_id, key limit $3
";

pub(super) const RECENT_PAGE: &str = "
select customer_id, fingerprint from recent_orders
where (customer_id, fingerprint) > ($1, $2) order by customer_id, fingerprint limit $3
";

pub(super) const PAYMENTS_PAGE: &str =
    "select event_key from payment_events where event_key > $1 order by event_key limit $2";

pub(super) const ORDERS_PAGE: &str = "select id from orders where id > $1 and id <= $2 order by id limit $3";

/// For the progress bar.
pub(super) const ESTIMATE: &str = "
select coalesce(sum(greatest(reltuples, 0)), 0)::bigint from pg_class
where oid = any (array['orders', 'payment_events', 'outbox', 'idempotency_keys', 'recent_orders']::regclass[])
";

pub(super) const ESTIMATE_ORDERS: &str =
    "select greatest(reltuples, 0)::bigint from pg_class where oid = 'orders'::regclass";

impl Store {
    /// Estimates the rows of a whole check from PostgreSQL's statistics.
    pub async fn estimate_check(&self) -> Result<i64, StoreError> {
        self.estimate(ESTIMATE).await
    }

    /// Estimates the number of orders from PostgreSQL's statistics.
    pub async fn estimate_orders(&self) -> Result<i64, StoreError> {
        self.estimate(ESTIMATE_ORDERS).await
    }

    async fn estimate(&self, statement: &'static str) -> Result<i64, StoreError> {
        self.query(Query::Operate, async |connection| {
            Ok(sqlx::query_scalar(statement).fetch_one(connection).await?)
        })
        .await
    }

    /// Checks the next rows, at most `limit`, in one snapshot.
    pub async fn check_step(&self, from: &CheckCursor, limit: i64) -> Result<CheckStep, StoreError> {
        self.query(Query::Operate, async |connection| {
            let mut transaction = connection.begin_with(SNAPSHOT).await?;
            let step = step(&mut transaction, &from.0, limit).await?;
            transaction.commit().await?;
            Ok(step)
        })
        .await
    }
}

async fn step(connection: &mut PgConnection, at: &At, limit: i64) -> Result<CheckStep, StoreError> {
    match at {
        At::Schema => schema(connection).await,
        At::Events { bucket, after, until } => events(connection, (*bucket, *after, *until), limit).await,
        At::Keys(customer, key) => keys(connection, (customer, key), limit).await,
        At::Recent(customer, fingerprint) => recent(connection, (customer, fingerprint), limit).await,
        At::Payments(after) => payments(connection, after, limit).await,
        At::Orders { after, until } => orders(connection, (*after, *until), limit).await,
    }
}

async fn schema(connection: &mut PgConnection) -> Result<CheckStep, StoreError> {
    let mut broken = Vec::new();
    for invariant in SCHEMA {
        broken.extend(invariant.rows(sqlx::query_as(invariant.sql).fetch_all(&mut *connection).await?));
    }
    let leases = sqlx::query_as(LEASES.sql).bind(BUCKETS).fetch_all(&mut *connection).await?;
    broken.extend(LEASES.rows(leases));
    let until = sqlx::query_scalar(LAST_POSITION).fetch_one(connection).await?;
    let next = At::Events { bucket: 0, after: i64::MIN, until };
    Ok(CheckStep { part: CheckPart::Schema, rows: 0, broken, next: Some(CheckCursor(next)) })
}

async fn events(
    connection: &mut PgConnection,
    (bucket, after, until): (i16, i64, i64),
    limit: i64,
) -> Result<CheckStep, StoreError> {
    let page = sqlx::query_scalar(EVENTS_PAGE).bind(bucket).bind(after).bind(limit);
    let page = Page::of(page.fetch_all(&mut *connection).await?, limit);
    let last: Option<i64> = page.keys.last().copied();
    let mut broken = Vec::new();
    if let (Some(first), Some(last)) = (page.keys.first(), last) {
        for invariant in EVENTS {
            let found = sqlx::query_as(invariant.sql).bind(bucket).bind(first).bind(last).bind(page.is_full);
            broken.extend(invariant.rows(found.fetch_all(&mut *connection).await?));
        }
    }
    let next = match last {
        Some(last) if page.is_full && last <= until => At::Events { bucket, after: last, until },
        _ if bucket + 1 < BUCKETS => At::Events { bucket: bucket + 1, after: i64::MIN, until },
        _ => At::Keys(String::new(), String::new()),
    };
    Ok(CheckStep { part: CheckPart::Events, rows: page.keys.len(), broken, next: Some(CheckCursor(next)) })
}

async fn keys(
    connection: &mut PgConnection,
    (customer, key): (&str, &str),
    limit: i64,
) -> Result<CheckStep, StoreError> {
    let page = sqlx::query_as(KEYS_PAGE).bind(customer).bind(key).bind(limit);
    let page: Page<(String, String)> = Page::of(page.fetch_all(&mut *connection).await?, limit);
    let (customers, keys): (Vec<&str>, Vec<&str>) =
        page.keys.iter().map(|(customer, key)| (customer.as_str(), key.as_str())).unzip();
    let found = sqlx::query_as(KEYS.sql).bind(customers).bind(keys).fetch_all(connection).await?;
    let rows = page.keys.len();
    let next = page.keys.into_iter().next_back().filter(|_| page.is_full);
    let next = next.map_or(At::Recent(String::new(), Vec::new()), |(customer, key)| At::Keys(customer, key));
    Ok(CheckStep { part: CheckPart::Keys, rows, broken: KEYS.rows(found), next: Some(CheckCursor(next)) })
}

async fn recent(
    connection: &mut PgConnection,
    (customer, fingerprint): (&str, &[u8]),
    limit: i64,
) -> Result<CheckStep, StoreError> {
    let page = sqlx::query_as(RECENT_PAGE).bind(customer).bind(fingerprint).bind(limit);
    let page: Page<(String, Vec<u8>)> = Page::of(page.fetch_all(&mut *connection).await?, limit);
    let (customers, fingerprints): (Vec<&str>, Vec<&[u8]>) =
        page.keys.iter().map(|(customer, lines)| (customer.as_str(), lines.as_slice())).unzip();
    let found = sqlx::query_as(RECENT.sql).bind(customers).bind(fingerprints).fetch_all(connection).await?;
    let rows = page.keys.len();
    let next = page.keys.into_iter().next_back().filter(|_| page.is_full);
    let next = next.map_or(At::Payments(String::new()), |(customer, lines)| At::Recent(customer, lines));
    Ok(CheckStep { part: CheckPart::Recent, rows, broken: RECENT.rows(found), next: Some(CheckCursor(next)) })
}

async fn payments(connection: &mut PgConnection, after: &str, limit: i64) -> Result<CheckStep, StoreError> {
    let page = sqlx::query_scalar(PAYMENTS_PAGE).bind(after).bind(limit);
    let page: Page<String> = Page::of(page.fetch_all(&mut *connection).await?, limit);
    let mut broken = Vec::new();
    for invariant in PAYMENTS {
        let found = sqlx::query_as(invariant.sql).bind(&page.keys).fetch_all(&mut *connection).await?;
        broken.extend(invariant.rows(found));
    }
    let rows = page.keys.len();
    let next = match page.keys.into_iter().next_back().filter(|_| page.is_full) {
        Some(last) => CheckCursor(At::Payments(last)),
        None => CheckCursor::after(Uuid::nil()),
    };
    Ok(CheckStep { part: CheckPart::Payments, rows, broken, next: Some(next) })
}

async fn orders(
    connection: &mut PgConnection,
    (after, until): (Uuid, Uuid),
    limit: i64,
) -> Result<CheckStep, StoreError> {
    let page = sqlx::query_scalar(ORDERS_PAGE).bind(after).bind(until).bind(limit);
    let page: Page<Uuid> = Page::of(page.fetch_all(&mut *connection).await?, limit);
    let mut broken = Vec::new();
    for invariant in ORDERS {
        let found = sqlx::query_as(invariant.sql).bind(&page.keys).fetch_all(&mut *connection).await?;
        broken.extend(invariant.rows(found));
    }
    let next = page.keys.last().filter(|_| page.is_full);
    let next = next.map(|last| CheckCursor(At::Orders { after: *last, until }));
    Ok(CheckStep { part: CheckPart::Orders, rows: page.keys.len(), broken, next })
}

/// All invariants by name and text.
pub fn invariants() -> Vec<(&'static str, &'static str)> {
    invariants::all().map(|one| (one.name, one.says)).collect()
}
